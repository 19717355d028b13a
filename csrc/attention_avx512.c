/* Attention over a KV-cache, AVX-512 with VNNI: 16 tokens, or 16 dimensions, a register. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")
#include <immintrin.h>

#include "attention.h"
#include "fixed.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum { PLANE = CHUNK + 64, LOW = ROWS * PLANE }; /* weights: upper bytes of each row, then lower bytes */

INLINE __m512 load_centred(const float *x, const float *center, size_t e, size_t E)
{
    __mmask16 some = (__mmask16)(E - e < 16 ? (1u << (E - e)) - 1 : 0xFFFF);
    __m512 v = _mm512_maskz_loadu_ps(some, x + e);
    return center ? _mm512_sub_ps(v, _mm512_maskz_loadu_ps(some, center + e)) : v;
}

static float quantise(int8_t *q, const float *x, const float *center, size_t E)
{
    __m512 magnitude = _mm512_setzero_ps();
    for (size_t e = 0; e < E; e += 16)
        magnitude = _mm512_max_ps(magnitude, _mm512_abs_ps(load_centred(x, center, e, E)));
    float largest = _mm512_reduce_max_ps(magnitude);
    largest = largest < ATTENTION_LARGEST ? largest : ATTENTION_LARGEST;
    __m512 inverse = _mm512_set1_ps(largest >= ATTENTION_SMALLEST ? 127 / largest : 0);
    const __m512 most = _mm512_set1_ps(127), least = _mm512_set1_ps(-127);
    for (size_t e = 0; e < E; e += 16) {
        __mmask16 some = (__mmask16)(E - e < 16 ? (1u << (E - e)) - 1 : 0xFFFF);
        __m512 v = _mm512_mul_ps(load_centred(x, center, e, E), inverse);
        __m512i n = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, least), most));
        _mm512_mask_cvtepi32_storeu_epi8(q + e, some, n);
    }
    return largest * (1.0f / 127.0f);
}

/* GCC 12 would load the broadcast first, and run out of registers: the operand stays in memory. */
#define DOT(sum, levels, four) \
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(levels), "m"(*(const int32_t *)(const void *)(four)))

INLINE void scores_of(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last, const int R)
{
    size_t E = rows->E;
    const uint8_t *k = (const uint8_t *)chunk->k + first * BLOCK * E;
    for (size_t b = first; b < last; b++, k += BLOCK * E) {
        __m512i s0[ROWS], s1[ROWS];
        const int8_t *q = rows->q;
        UNROLL for (int r = 0; r < R; r++)
            s0[r] = s1[r] = _mm512_set1_epi32(rows->begin[r]);
        for (const uint8_t *line = k; line < k + 16 * E; line += 64, q += 4 * R) {
            __m512i k0 = _mm512_load_si512(line), k1 = _mm512_load_si512(line + 16 * E);
            UNROLL for (int r = 0; r < R; r++) {
                DOT(s0[r], k0, q + 4 * r);
                DOT(s1[r], k1, q + 4 * r);
            }
        }
        __m512 scale0 = _mm512_load_ps(chunk->k_scale + b * BLOCK);
        __m512 scale1 = _mm512_load_ps(chunk->k_scale + b * BLOCK + 16);
        UNROLL for (int r = 0; r < R; r++) {
            float *scores = rows->scores + (size_t)r * STRIDE + b * BLOCK;
            __m512 factor = _mm512_set1_ps(rows->factor[r]);
            _mm512_store_ps(scores, _mm512_mul_ps(_mm512_cvtepi32_ps(s0[r]), _mm512_mul_ps(factor, scale0)));
            _mm512_store_ps(scores + 16, _mm512_mul_ps(_mm512_cvtepi32_ps(s1[r]), _mm512_mul_ps(factor, scale1)));
        }
    }
}

static void scores_int8(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    switch (rows->rows) {
    case 1: scores_of(rows, chunk, first, last, 1); break;
    case 2: scores_of(rows, chunk, first, last, 2); break;
    case 3: scores_of(rows, chunk, first, last, 3); break;
    case 4: scores_of(rows, chunk, first, last, 4); break;
    case 5: scores_of(rows, chunk, first, last, 5); break;
    default: scores_of(rows, chunk, first, last, 6); break;
    }
}

/* The largest score that a row sees. Those beside it, in the same blocks, become too low to count. */
INLINE float largest_score(float *scores, size_t from, size_t to)
{
    for (size_t t = from / BLOCK * BLOCK; t < from; t++)
        scores[t] = ATTENTION_LOWEST;
    for (size_t t = to; t % BLOCK; t++)
        scores[t] = ATTENTION_LOWEST;
    __m512 a = _mm512_set1_ps(ATTENTION_LOWEST), b = a;
    for (size_t t = from / BLOCK * BLOCK; t < to; t += BLOCK) {
        a = _mm512_max_ps(a, _mm512_load_ps(scores + t));
        b = _mm512_max_ps(b, _mm512_load_ps(scores + t + 16));
    }
    return _mm512_reduce_max_ps(_mm512_max_ps(a, b));
}

/* The sums of a block's lower and upper bytes of 32 words. */
INLINE void sum_bytes(__m512i words, uint32_t *low, uint32_t *high)
{
    __m512i l = _mm512_sad_epu8(_mm512_and_si512(words, _mm512_set1_epi16(255)), _mm512_setzero_si512());
    __m512i h = _mm512_sad_epu8(_mm512_srli_epi16(words, 8), _mm512_setzero_si512());
    __m512i both = _mm512_or_si512(l, _mm512_slli_epi64(h, 32));
    uint64_t sums = (uint64_t)_mm512_reduce_add_epi64(both);
    *low = (uint32_t)sums;
    *high = (uint32_t)(sums >> 32);
}

static void weights_int8(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last, int p_bits)
{
    for (size_t b = first; b < last; b++)
        rows->wide[b] = p_bits == 16;
    for (size_t r = 0; r < rows->rows; r++) {
        float *scores = rows->scores + r * STRIDE, *out = rows->out + r * (rows->E + OUT_EXTRA) + rows->E;
        size_t from = rows->from[r], to = rows->to[r];
        uint8_t *plane = (uint8_t *)rows->p + r * PLANE;
        float top = largest_score(scores, from, to);
        __m512 total = _mm512_setzero_ps();
        for (size_t b = first; b < last; b++) {
            __m256i *high = (__m256i *)(void *)(plane + b * BLOCK), *low = (__m256i *)(void *)(plane + LOW + b * BLOCK);
            if (b < from / BLOCK || b * BLOCK >= to) {
                _mm256_store_si256(high, _mm256_setzero_si256());
                _mm256_store_si256(low, _mm256_setzero_si256());
                rows->unit[r][b] = 0;
                continue;
            }
            __m512 p0 = fixed_exp_avx512(_mm512_sub_ps(_mm512_load_ps(scores + b * BLOCK), _mm512_set1_ps(top)));
            __m512 p1 = fixed_exp_avx512(_mm512_sub_ps(_mm512_load_ps(scores + b * BLOCK + 16), _mm512_set1_ps(top)));
            total = _mm512_add_ps(_mm512_add_ps(total, p0), p1);
            /* where p is 0, anything may lie in the cache */
            __m512 w0 = _mm512_maskz_mul_ps(_mm512_test_epi32_mask(_mm512_castps_si512(p0), _mm512_castps_si512(p0)), p0,
                                            _mm512_load_ps(chunk->v_scale + b * BLOCK));
            __m512 w1 = _mm512_maskz_mul_ps(_mm512_test_epi32_mask(_mm512_castps_si512(p1), _mm512_castps_si512(p1)), p1,
                                            _mm512_load_ps(chunk->v_scale + b * BLOCK + 16));
            float largest = _mm512_reduce_max_ps(_mm512_max_ps(w0, w1));
            __m512 inverse = _mm512_set1_ps(largest >= ATTENTION_SMALLEST ? UNITS / largest : 0);
            __m512i c0 = _mm512_cvtps_epi32(_mm512_mul_ps(w0, inverse));
            __m512i c1 = _mm512_cvtps_epi32(_mm512_mul_ps(w1, inverse));
            /* Packing puts quads of tokens in the order 0 4 1 5 2 6 3 7, in which values_of reads them. */
            __m512i words = _mm512_add_epi16(_mm512_packus_epi32(c0, c1), _mm512_set1_epi16(128));
            int keep = p_bits == 16;
            if (p_bits == 0) {
                uint32_t lows, highs;
                sum_bytes(words, &lows, &highs);
                int32_t off = (int32_t)lows - 128 * BLOCK, sum = (int32_t)(256 * highs) + off;
                keep = (off < 0 ? -off : off) * 128 > sum;
            }
            __m256i lower = _mm256_setzero_si256();
            if (keep) {
                rows->wide[b] = 1;
                words = _mm512_sub_epi16(words, _mm512_set1_epi16(128));
                lower = _mm512_cvtepi16_epi8(words);
            }
            _mm256_store_si256(high, _mm512_cvtepi16_epi8(_mm512_srli_epi16(words, 8)));
            _mm256_store_si256(low, lower);
            rows->unit[r][b] = largest * (1.0f / UNITS);
        }
        out[OUT_TOP] = top;
        out[OUT_TOTAL] = fixed_lanes_avx512(total);
    }
}

/* One plane of a block's weights, of R rows, times 16 L dimensions of its values. */
INLINE void dot_values(__m512i acc[ROWS][4], const uint8_t *plane, const int8_t *v, size_t E, const int R, const int L)
{
    UNROLL for (int quad = 0; quad < 8; quad++, v += 4 * E) {
        __m512i line[4];
        UNROLL for (int i = 0; i < L; i++)
            line[i] = _mm512_load_si512(v + 64 * i);
        UNROLL for (int r = 0; r < R; r++) {
            __m512i p;
            __asm__("vpbroadcastd %1, %0"
                    : "=v"(p)
                    : "m"(*(const int32_t *)(const void *)(plane + r * PLANE + (quad % 4 * 2 + quad / 4) * 4)));
            UNROLL for (int i = 0; i < L; i++)
                acc[r][i] = _mm512_dpbusd_epi32(acc[r][i], p, line[i]);
        }
    }
}

INLINE void values_of(qwq_rows *rows, const int8_t *v, size_t b, size_t e, const int R, const int L)
{
    const uint8_t *plane = (const uint8_t *)rows->p + b * BLOCK;
    size_t E = rows->E;
    float *out = rows->out + e;
    __m512i acc[ROWS][4];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int i = 0; i < L; i++)
            acc[r][i] = _mm512_setzero_si512();
    v += (b * BLOCK * E + e * 4);
    float upper = 256; /* the upper bytes alone are that much larger */
    dot_values(acc, plane, v, E, R, L);
    if (rows->wide[b]) {
        upper = 1;
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int i = 0; i < L; i++)
                acc[r][i] = _mm512_slli_epi32(acc[r][i], 8);
        dot_values(acc, plane + LOW, v, E, R, L);
    }
    UNROLL for (int r = 0; r < R; r++) {
        __m512 unit = _mm512_set1_ps(rows->unit[r][b] * upper);
        UNROLL for (int i = 0; i < L; i++) {
            float *at = out + (size_t)r * (E + OUT_EXTRA) + 16 * i;
            _mm512_store_ps(at, _mm512_add_ps(_mm512_load_ps(at), _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][i]), unit)));
        }
    }
}

INLINE void values_rows(qwq_rows *rows, const int8_t *v, size_t first, size_t last, const int R)
{
    size_t E = rows->E;
    for (size_t b = first; b < last; b++) {
        size_t e = 0;
        for (; e + 64 <= E; e += 64)
            values_of(rows, v, b, e, R, 4);
        for (; e < E; e += 16)
            values_of(rows, v, b, e, R, 1);
    }
}

INLINE void zero_out(qwq_rows *rows)
{
    for (size_t r = 0; r < rows->rows; r++)
        for (size_t e = 0; e < rows->E; e += 16)
            _mm512_store_ps(rows->out + r * (rows->E + OUT_EXTRA) + e, _mm512_setzero_ps());
}

static void values_int8(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    zero_out(rows);
    switch (rows->rows) {
    case 1: values_rows(rows, chunk->v, first, last, 1); break;
    case 2: values_rows(rows, chunk->v, first, last, 2); break;
    case 3: values_rows(rows, chunk->v, first, last, 3); break;
    case 4: values_rows(rows, chunk->v, first, last, 4); break;
    case 5: values_rows(rows, chunk->v, first, last, 5); break;
    default: values_rows(rows, chunk->v, first, last, 6); break;
    }
}

/* spec.quant.lane_sum of 16 registers at once: sums of halves, side by side. */
INLINE __m512 sixteen_lane_sums(const __m512 *s)
{
    __m512 four[4];
    UNROLL for (int i = 0; i < 4; i++) {
        __m512 a = _mm512_add_ps(_mm512_shuffle_f32x4(s[i], s[i + 4], 0x44), _mm512_shuffle_f32x4(s[i], s[i + 4], 0xEE));
        __m512 b = _mm512_add_ps(_mm512_shuffle_f32x4(s[i + 8], s[i + 12], 0x44),
                                 _mm512_shuffle_f32x4(s[i + 8], s[i + 12], 0xEE));
        four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
    }
    __m512 two[2];
    UNROLL for (int i = 0; i < 2; i++) {
        __m512d a = _mm512_castps_pd(four[2 * i]), b = _mm512_castps_pd(four[2 * i + 1]);
        two[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    return _mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x88), _mm512_shuffle_ps(two[0], two[1], 0xDD));
}

static void scores_fp32(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    size_t E = rows->E;
    for (size_t b = first; b < last; b++)
        for (size_t r = 0; r < rows->rows; r++)
            for (size_t t = b * BLOCK; t < (b + 1) * BLOCK; t += 16) {
                const float *q = (const float *)rows->q + r * E;
                __m512 s[16];
                UNROLL for (size_t four = 0; four < 16; four += 4) {
                    const float *k = (const float *)chunk->k + (t + four) * E;
                    __m512 x = _mm512_loadu_ps(q);
                    UNROLL for (size_t i = 0; i < 4; i++)
                        s[four + i] = _mm512_mul_ps(x, _mm512_load_ps(k + i * E));
                    for (size_t e = 16; e < E; e += 16) {
                        x = _mm512_loadu_ps(q + e);
                        UNROLL for (size_t i = 0; i < 4; i++)
                            s[four + i] = _mm512_add_ps(s[four + i], _mm512_mul_ps(x, _mm512_load_ps(k + i * E + e)));
                    }
                }
                __m512 factor = _mm512_set1_ps(rows->factor[r]);
                _mm512_store_ps(rows->scores + r * STRIDE + t, _mm512_mul_ps(sixteen_lane_sums(s), factor));
            }
}

static void weights_fp32(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last, int p_bits)
{
    (void)chunk, (void)first, (void)last, (void)p_bits;
    for (size_t r = 0; r < rows->rows; r++) {
        float *scores = rows->scores + r * STRIDE, *out = rows->out + r * (rows->E + OUT_EXTRA) + rows->E;
        float top = largest_score(scores, rows->from[r], rows->to[r]);
        __m512 total = _mm512_setzero_ps();
        for (size_t t = rows->from[r] / BLOCK * BLOCK; t < rows->to[r]; t += 16) {
            __m512 p = fixed_exp_avx512(_mm512_sub_ps(_mm512_load_ps(scores + t), _mm512_set1_ps(top)));
            total = _mm512_add_ps(total, p);
            _mm512_store_ps(scores + t, p);
        }
        out[OUT_TOP] = top;
        out[OUT_TOTAL] = fixed_lanes_avx512(total);
    }
}

/* out [16 L] += p v, token by token. */
INLINE void values_span(float *out, const float *p, const float *v, size_t from, size_t to, size_t E, const int L)
{
    __m512 sum[8];
    UNROLL for (int i = 0; i < L; i++)
        sum[i] = _mm512_load_ps(out + 16 * i);
    for (size_t t = from; t < to; t++) {
        __m512 weight = _mm512_set1_ps(p[t]);
        UNROLL for (int i = 0; i < L; i++)
            sum[i] = _mm512_add_ps(sum[i], _mm512_mul_ps(weight, _mm512_load_ps(v + t * E + 16 * (size_t)i)));
    }
    UNROLL for (int i = 0; i < L; i++)
        _mm512_store_ps(out + 16 * i, sum[i]);
}

static void values_fp32(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    size_t E = rows->E;
    zero_out(rows);
    for (size_t b = first; b < last; b++)
        for (size_t r = 0; r < rows->rows; r++) {
            size_t from = rows->from[r] > b * BLOCK ? rows->from[r] : b * BLOCK, e = 0;
            size_t to = rows->to[r] < (b + 1) * BLOCK ? rows->to[r] : (b + 1) * BLOCK;
            float *out = rows->out + r * (E + OUT_EXTRA);
            const float *p = rows->scores + r * STRIDE, *v = chunk->v;
            for (; e + 128 <= E; e += 128)
                values_span(out + e, p, v + e, from, to, E, 8);
            for (; e + 32 <= E; e += 32)
                values_span(out + e, p, v + e, from, to, E, 2);
            for (; e < E; e += 16)
                values_span(out + e, p, v + e, from, to, E, 1);
        }
}

static void merge(float *state, const float *out, size_t E)
{
    float top = state[E + OUT_TOP] > out[E + OUT_TOP] ? state[E + OUT_TOP] : out[E + OUT_TOP];
    float keep = fixed_exp(state[E + OUT_TOP] - top), add = fixed_exp(out[E + OUT_TOP] - top);
    state[E + OUT_TOP] = top;
    state[E + OUT_TOTAL] = state[E + OUT_TOTAL] * keep + out[E + OUT_TOTAL] * add;
    for (size_t e = 0; e < E; e += 16) {
        __m512 old = _mm512_mul_ps(_mm512_load_ps(state + e), _mm512_set1_ps(keep));
        __m512 new = _mm512_mul_ps(_mm512_load_ps(out + e), _mm512_set1_ps(add));
        _mm512_store_ps(state + e, _mm512_add_ps(old, new));
    }
}

const qwq_attention_kernels qwq_attention_avx512 = {
    quantise, scores_int8, weights_int8, values_int8, scores_fp32, weights_fp32, values_fp32, merge,
};

#else
typedef int qwq_no_attention_avx512; /* a file must hold something */
#endif
