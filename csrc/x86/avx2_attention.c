/* Attention over a KV cache, AVX2. A product of bytes can exceed 16 bits in pairs here, so bytes are widened first. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "common/attention.h"
#include "common/fixed.h"
#include "x86/target.h"

TARGET("avx2,fma")

#include "x86/inline.h"

/* GCC 12 would move all loads to the front, and run out of registers. */
#define IN_ORDER __asm__ volatile("" ::: "memory")

enum { TURN = 3 };            /* rows that fit in registers beside each other */
enum { LOW = ROWS * STRIDE }; /* weights, as words: upper bytes of each row, then lower bytes */

INLINE __m256i first_lanes(size_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE __m256 load_moved(const float *x, const float *gain, const float *center, size_t e, size_t E)
{
    __m256i some = first_lanes(E - e);
    __m256 v = _mm256_maskload_ps(x + e, some);
    v = gain ? _mm256_mul_ps(v, _mm256_maskload_ps(gain + e, some)) : v;
    return center ? _mm256_sub_ps(v, _mm256_maskload_ps(center + e, some)) : v;
}

/* A block's weights as words: upper bytes, and lower bytes elsewhere. */
INLINE void store_weights(qwq_rows *rows, size_t r, size_t b, const __m256i *high, const __m256i *low)
{
    int16_t *at = (int16_t *)rows->p + r * STRIDE + b * BLOCK;
    for (int i = 0; i < 2; i++) {
        __m256i *to = (__m256i *)(void *)(at + 16 * i), *to_low = (__m256i *)(void *)(at + LOW + 16 * i);
        _mm256_store_si256(to, _mm256_permute4x64_epi64(_mm256_packus_epi32(high[2 * i], high[2 * i + 1]), 0xD8));
        _mm256_store_si256(to_low, _mm256_permute4x64_epi64(_mm256_packus_epi32(low[2 * i], low[2 * i + 1]), 0xD8));
    }
}

#include "x86/avx2_bias.h"
#include "x86/avx2_weights.h"

static float quantise(int8_t *q, const float *x, const float *gain, const float *center, size_t E)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 magnitude = _mm256_setzero_ps();
    for (size_t e = 0; e < E; e += 8)
        magnitude = _mm256_max_ps(magnitude, _mm256_andnot_ps(sign, load_moved(x, gain, center, e, E)));
    float largest = largest_of(magnitude);
    largest = largest < ATTENTION_LARGEST ? largest : ATTENTION_LARGEST;
    __m256 inverse = _mm256_set1_ps(largest >= ATTENTION_SMALLEST ? 127 / largest : 0);
    const __m256 most = _mm256_set1_ps(127), least = _mm256_set1_ps(-127);
    for (size_t e = 0; e < E; e += 8) {
        int32_t n[8];
        __m256 v = _mm256_mul_ps(load_moved(x, gain, center, e, E), inverse);
        _mm256_storeu_si256((__m256i *)(void *)n, _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, least), most)));
        for (size_t i = 0; i < 8 && e + i < E; i++)
            q[e + i] = (int8_t)n[i];
    }
    return largest * (1.0f / 127.0f);
}

/* Sums of neighbours: eight of what two registers hold in pairs. */
INLINE __m256i add_pairs(__m256i a, __m256i b)
{
    return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xD8);
}

INLINE __m256i four_words(const int8_t *q)
{
    return _mm256_cvtepi8_epi16(_mm_set1_epi32(*(const int32_t *)(const void *)q));
}

/* 8 tokens from t on, R rows from r on. */
INLINE void scores_of(qwq_rows *rows, const qwq_chunk *chunk, size_t t, size_t r, const int R)
{
    size_t E = rows->E, step = 4 * rows->rows;
    const qwq_span *span = &chunk->spans[t / SPAN];
    const uint8_t *k = (const uint8_t *)span->k + t % SPAN / 16 * 16 * E + t % 16 * 4;
    const int8_t *q = (const int8_t *)rows->q + 4 * r;
    __m256 half[TURN];
    UNROLL for (int h = 0; h < HALVES; h++) {
        __m256i s[TURN][2];
        UNROLL for (int i = 0; i < R; i++)
            s[i][0] = s[i][1] = _mm256_setzero_si256();
        for (const uint8_t *end = k + 8 * E; k < end; k += 64, q += step) {
        __m256i k0 = _mm256_cvtepu8_epi16(_mm_load_si128((const __m128i *)(const void *)k));
        __m256i k1 = _mm256_cvtepu8_epi16(_mm_load_si128((const __m128i *)(const void *)(k + 16)));
        UNROLL for (int i = 0; i < R; i++) {
            __m256i words = four_words(q + 4 * i);
            s[i][0] = _mm256_add_epi32(s[i][0], _mm256_madd_epi16(k0, words));
            s[i][1] = _mm256_add_epi32(s[i][1], _mm256_madd_epi16(k1, words));
        }
    }
        __m256 scale = _mm256_load_ps(span->k_scale[h] + t % SPAN);
        UNROLL for (int i = 0; i < R; i++) {
            __m256i begin = _mm256_set1_epi32(rows->begin[h][r + (size_t)i]);
            __m256 sum = _mm256_cvtepi32_ps(_mm256_add_epi32(add_pairs(s[i][0], s[i][1]), begin));
            __m256 x = _mm256_mul_ps(sum, _mm256_mul_ps(_mm256_set1_ps(rows->factor[h][r + (size_t)i]), scale));
            half[i] = h ? _mm256_add_ps(half[i], x) : x;
        }
    }
    UNROLL for (int i = 0; i < R; i++)
        _mm256_store_ps(rows->scores + (r + (size_t)i) * STRIDE + t, half[i]);
}

static void scores_int8(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    for (size_t t = first * SPAN; t < last * SPAN; t += 8)
        for (size_t r = 0; r < rows->rows; r += TURN)
            switch (rows->rows - r) {
            case 1: scores_of(rows, chunk, t, r, 1); break;
            case 2: scores_of(rows, chunk, t, r, 2); break;
            default: scores_of(rows, chunk, t, r, TURN); break;
            }
    if (rows->pairs)
        add_bias(rows, chunk, first, last);
}

/* One plane of a block's weights, of R rows, times 8 dimensions of its values. */
INLINE void dot_values(__m256i s[TURN][2], const int16_t *weights, const int8_t *v, const int R)
{
    _Pragma("GCC unroll 1") for (int quad = 0; quad < BLOCK / 4; quad++, v += 4 * DIMS, weights += 4) {
        IN_ORDER;
        __m256i v0 = _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)(const void *)v));
        __m256i v1 = _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)(const void *)(v + 16)));
        UNROLL for (int i = 0; i < R; i++) {
            __m256i four = _mm256_set1_epi64x(*(const int64_t *)(const void *)(weights + i * STRIDE));
            s[i][0] = _mm256_add_epi32(s[i][0], _mm256_madd_epi16(v0, four));
            s[i][1] = _mm256_add_epi32(s[i][1], _mm256_madd_epi16(v1, four));
        }
    }
}

INLINE void values_of(qwq_rows *rows, const int8_t *v, size_t b, size_t e, size_t r, const int R)
{
    size_t E = rows->E;
    const int16_t *weights = (const int16_t *)rows->p + r * STRIDE + b * BLOCK;
    __m256i s[TURN][2];
    UNROLL for (int i = 0; i < R; i++)
        s[i][0] = s[i][1] = _mm256_setzero_si256();
    v += value_at(b * BLOCK % SPAN, e);
    float upper = 256; /* the upper bytes alone are that much larger */
    dot_values(s, weights, v, R);
    if (rows->wide[b]) {
        upper = 1;
        UNROLL for (int i = 0; i < R; i++)
            UNROLL for (int j = 0; j < 2; j++)
                s[i][j] = _mm256_slli_epi32(s[i][j], 8);
        dot_values(s, weights + LOW, v, R);
    }
    UNROLL for (int i = 0; i < R; i++) {
        float *at = rows->out + (r + (size_t)i) * (E + OUT_EXTRA) + e;
        __m256 sum = _mm256_cvtepi32_ps(add_pairs(s[i][0], s[i][1]));
        __m256 unit = _mm256_set1_ps(rows->unit[r + (size_t)i][b] * upper);
        _mm256_store_ps(at, _mm256_add_ps(_mm256_load_ps(at), _mm256_mul_ps(sum, unit)));
    }
}

static void values_int8(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    zero_out(rows);
    for (size_t b = first * SPAN / BLOCK; b < last * SPAN / BLOCK; b++)
        for (size_t e = 0; e < rows->E; e += 8)
            for (size_t r = 0; r < rows->rows; r += TURN) {
                const int8_t *v = chunk->spans[b * BLOCK / SPAN].v;
                switch (rows->rows - r) {
                case 1: values_of(rows, v, b, e, r, 1); break;
                case 2: values_of(rows, v, b, e, r, 2); break;
                default: values_of(rows, v, b, e, r, TURN); break;
                }
            }
}

/* numerics.quant.lane_sum of 8 tokens at once, once lanes j and j + 8 are added: sums of halves, side by side. */
INLINE __m256 eight_lane_sums(const __m256 *s)
{
    __m256 four[4], two[2];
    UNROLL for (int i = 0; i < 4; i++)
        four[i] = _mm256_add_ps(_mm256_permute2f128_ps(s[i], s[i + 4], 0x20),
                                _mm256_permute2f128_ps(s[i], s[i + 4], 0x31));
    UNROLL for (int i = 0; i < 2; i++) {
        __m256d a = _mm256_castps_pd(four[2 * i]), b = _mm256_castps_pd(four[2 * i + 1]);
        two[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    }
    return _mm256_add_ps(_mm256_shuffle_ps(two[0], two[1], 0x88), _mm256_shuffle_ps(two[0], two[1], 0xDD));
}

static void scores_fp32(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    size_t E = rows->E;
    for (size_t b = first * SPAN / BLOCK; b < last * SPAN / BLOCK; b++)
        for (size_t r = 0; r < rows->rows; r++)
            for (size_t t = b * BLOCK; t < (b + 1) * BLOCK; t += 8) {
                const float *q = (const float *)rows->q + r * E;
                __m256 s[8];
                UNROLL for (size_t i = 0; i < 8; i++) {
                    const float *k = (const float *)chunk->spans[t / SPAN].k + (t % SPAN + i) * E;
                    __m256 low = _mm256_mul_ps(_mm256_loadu_ps(q), _mm256_load_ps(k));
                    __m256 high = _mm256_mul_ps(_mm256_loadu_ps(q + 8), _mm256_load_ps(k + 8));
                    for (size_t e = 16; e < E; e += 16) {
                        __m256 q0 = _mm256_loadu_ps(q + e), q1 = _mm256_loadu_ps(q + e + 8);
                        low = _mm256_add_ps(low, _mm256_mul_ps(q0, _mm256_load_ps(k + e)));
                        high = _mm256_add_ps(high, _mm256_mul_ps(q1, _mm256_load_ps(k + e + 8)));
                    }
                    s[i] = _mm256_add_ps(low, high);
                }
                __m256 factor = _mm256_set1_ps(rows->factor[0][r]);
                _mm256_store_ps(rows->scores + r * STRIDE + t, _mm256_mul_ps(eight_lane_sums(s), factor));
            }
}

static void weights_fp32(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last, int p_bits)
{
    (void)chunk, (void)first, (void)last, (void)p_bits;
    for (size_t r = 0; r < rows->rows; r++) {
        float *scores = rows->scores + r * STRIDE, *out = rows->out + r * (rows->E + OUT_EXTRA) + rows->E;
        float top = largest_score(scores, rows->from[r], rows->to[r]);
        __m256 total[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        for (size_t t = rows->from[r] / BLOCK * BLOCK; t < (rows->to[r] + 15) / 16 * 16; t += 8) {
            __m256 p = fixed_exp2_avx2(_mm256_sub_ps(_mm256_load_ps(scores + t), _mm256_set1_ps(top)));
            total[t / 8 % 2] = _mm256_add_ps(total[t / 8 % 2], p);
            _mm256_store_ps(scores + t, p);
        }
        out[OUT_TOP] = top;
        out[OUT_TOTAL] = fixed_lanes_avx2(total[0], total[1]);
    }
}

/* out [8 L] += p v, token by token. */
INLINE void values_span(float *out, const float *p, const float *v, size_t from, size_t to, size_t E, const int L)
{
    __m256 sum[8];
    UNROLL for (int i = 0; i < L; i++)
        sum[i] = _mm256_load_ps(out + 8 * i);
    for (size_t t = from; t < to; t++) {
        __m256 weight = _mm256_set1_ps(p[t]);
        UNROLL for (int i = 0; i < L; i++)
            sum[i] = _mm256_add_ps(sum[i], _mm256_mul_ps(weight, _mm256_load_ps(v + t * E + 8 * (size_t)i)));
    }
    UNROLL for (int i = 0; i < L; i++)
        _mm256_store_ps(out + 8 * i, sum[i]);
}

static void values_fp32(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    size_t E = rows->E;
    zero_out(rows);
    for (size_t b = first * SPAN / BLOCK; b < last * SPAN / BLOCK; b++)
        for (size_t r = 0; r < rows->rows; r++) {
            size_t from = rows->from[r] > b * BLOCK ? rows->from[r] - b * BLOCK : 0, e = 0;
            size_t to = rows->to[r] < b * BLOCK ? 0 : rows->to[r] - b * BLOCK;
            to = to < BLOCK ? to : BLOCK;
            float *out = rows->out + r * (E + OUT_EXTRA);
            const float *p = rows->scores + r * STRIDE + b * BLOCK;
            const float *v = (const float *)chunk->spans[b * BLOCK / SPAN].v + b * BLOCK % SPAN * E;
            for (; e + 64 <= E; e += 64)
                values_span(out + e, p, v + e, from, to, E, 8);
            for (; e < E; e += 16)
                values_span(out + e, p, v + e, from, to, E, 2);
        }
}

static void merge(float *state, const float *out, size_t E)
{
    float top = state[E + OUT_TOP] > out[E + OUT_TOP] ? state[E + OUT_TOP] : out[E + OUT_TOP];
    float keep = fixed_exp2(state[E + OUT_TOP] - top), add = fixed_exp2(out[E + OUT_TOP] - top);
    state[E + OUT_TOP] = top;
    state[E + OUT_TOTAL] = state[E + OUT_TOTAL] * keep + out[E + OUT_TOTAL] * add;
    for (size_t e = 0; e < E; e += 8) {
        __m256 old = _mm256_mul_ps(_mm256_load_ps(state + e), _mm256_set1_ps(keep));
        __m256 new = _mm256_mul_ps(_mm256_load_ps(out + e), _mm256_set1_ps(add));
        _mm256_store_ps(state + e, _mm256_add_ps(old, new));
    }
}

TARGET_END

void qwq_avx2_attention(qwq_attention_kernels *kernels)
{
    kernels->quantise = quantise;
    kernels->scores_int8 = scores_int8;
    kernels->weights_int8 = weights_int8;
    kernels->values_int8 = values_int8;
    kernels->scores_fp32 = scores_fp32;
    kernels->weights_fp32 = weights_fp32;
    kernels->values_fp32 = values_fp32;
    kernels->merge = merge;
    kernels->rows = ROWS;
}

#else
typedef int qwq_no_attention_avx2; /* a file must hold something */
#endif
