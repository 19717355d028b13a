/* Attention over a KV cache, AVX-512 with VNNI: 16 tokens, or 16 dimensions, a register. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "common/attention.h"
#include "common/fixed.h"
#include "x86/target.h"

TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")

#include "x86/inline.h"

/* GCC 12 would move all loads to the front, and run out of registers. */
#define IN_ORDER __asm__ volatile("" ::: "memory")

enum { PLANE = CHUNK + 64, LOW = ROWS * PLANE }; /* weights: upper bytes of each row, then lower bytes */

INLINE __m512 load_moved(const float *x, const float *gain, const float *center, size_t e, size_t E)
{
    __mmask16 some = (__mmask16)(E - e < 16 ? (1u << (E - e)) - 1 : 0xFFFF);
    __m512 v = _mm512_maskz_loadu_ps(some, x + e);
    v = gain ? _mm512_mul_ps(v, _mm512_maskz_loadu_ps(some, gain + e)) : v;
    return center ? _mm512_sub_ps(v, _mm512_maskz_loadu_ps(some, center + e)) : v;
}

static float quantise(int8_t *q, const float *x, const float *gain, const float *center, size_t E)
{
    __m512 magnitude = _mm512_setzero_ps();
    for (size_t e = 0; e < E; e += 16)
        magnitude = _mm512_max_ps(magnitude, _mm512_abs_ps(load_moved(x, gain, center, e, E)));
    float largest = _mm512_reduce_max_ps(magnitude);
    largest = largest < ATTENTION_LARGEST ? largest : ATTENTION_LARGEST;
    __m512 inverse = _mm512_set1_ps(largest >= ATTENTION_SMALLEST ? 127 / largest : 0);
    const __m512 most = _mm512_set1_ps(127), least = _mm512_set1_ps(-127);
    for (size_t e = 0; e < E; e += 16) {
        __mmask16 some = (__mmask16)(E - e < 16 ? (1u << (E - e)) - 1 : 0xFFFF);
        __m512 v = _mm512_mul_ps(load_moved(x, gain, center, e, E), inverse);
        __m512i n = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, least), most));
        _mm512_mask_cvtepi32_storeu_epi8(q + e, some, n);
    }
    return largest * (1.0f / 127.0f);
}

/* GCC 12 would load the broadcast first, and run out of registers: the operand stays in memory. */
#define DOT(sum, levels, four)                                                                                         \
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(levels), "m"(*(const int32_t *)(const void *)(four)))

#define DOT_WORDS(sum, words, two)                                                                                     \
    __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(words), "m"(*(const int32_t *)(const void *)(two)))

/* Towards the second cache, where the context streams from memory: left alone, the processor reads ahead to the end of
 * a page of the system, and waits at the next. Once for each line that is used, since it can hold few requests at a
 * time. */
enum { AHEAD = 8192 };

INLINE void fetch(const void *at)
{
    _mm_prefetch((const char *)at, _MM_HINT_T1);
}

/* From a place in the keys or values of a span, of so many bytes, to what is fetched there: it may lie in the next. */
INLINE ptrdiff_t ahead_of(const void *at, const void *of, const void *next, size_t bytes)
{
    size_t offset = (size_t)((const uint8_t *)at - (const uint8_t *)of) + AHEAD;
    if (offset < bytes)
        return AHEAD;
    return (ptrdiff_t)((uintptr_t)next + (offset - bytes) - (uintptr_t)at);
}

/* The scales of 32 tokens that come next: those of values in the same span, those of keys in the next one. */
INLINE void fetch_scales(const qwq_span *span, const qwq_span *next, size_t t)
{
    for (size_t i = t; i < t + BLOCK; i += 16) {
        fetch(span->v_scale + i);
        fetch(next->k_scale[0] + i);
        fetch(next->k_scale[1] + i);
    }
}

/* then: the keys or values behind the keys of the span. */
INLINE void scores_of(qwq_rows *rows, const qwq_span *span, const qwq_span *next, const void *then, size_t t,
                      const int streams, const int R)
{
    size_t E = rows->E;
    const uint8_t *k = span->k;
    for (size_t b = 0; b < SPAN / BLOCK; b++, k += 16 * E) {
        const ptrdiff_t ahead = streams ? ahead_of(k, span->k, then, SPAN * E) : 0;
        if (streams)
            fetch_scales(span, next, b * BLOCK);
        const int8_t *q = rows->q;
        float *scores = rows->scores + t + b * BLOCK;
        __m512 half[ROWS][2];
    UNROLL for (int h = 0; h < HALVES; h++) {
            __m512i s0[ROWS], s1[ROWS];
            UNROLL for (int r = 0; r < R; r++)
                s0[r] = s1[r] = _mm512_set1_epi32(rows->begin[h][r]);
            for (const uint8_t *end = k + 8 * E; k < end; k += 64, q += 4 * R) {
                __m512i k0 = _mm512_load_si512(k), k1 = _mm512_load_si512(k + 16 * E);
                if (streams) {
                    fetch(k + ahead);
                    fetch(k + 16 * E + ahead);
                }
                UNROLL for (int r = 0; r < R; r++) {
                    DOT(s0[r], k0, q + 4 * r);
                    DOT(s1[r], k1, q + 4 * r);
                }
            }
            __m512 scale0 = _mm512_load_ps(span->k_scale[h] + b * BLOCK);
            __m512 scale1 = _mm512_load_ps(span->k_scale[h] + b * BLOCK + 16);
            UNROLL for (int r = 0; r < R; r++) {
                __m512 factor = _mm512_set1_ps(rows->factor[h][r]);
                __m512 x0 = _mm512_mul_ps(_mm512_cvtepi32_ps(s0[r]), _mm512_mul_ps(factor, scale0));
                __m512 x1 = _mm512_mul_ps(_mm512_cvtepi32_ps(s1[r]), _mm512_mul_ps(factor, scale1));
                half[r][0] = h ? _mm512_add_ps(half[r][0], x0) : x0;
                half[r][1] = h ? _mm512_add_ps(half[r][1], x1) : x1;
            }
        }
        UNROLL for (int r = 0; r < R; r++) {
            _mm512_store_ps(scores + (size_t)r * STRIDE, half[r][0]);
            _mm512_store_ps(scores + (size_t)r * STRIDE + 16, half[r][1]);
        }
    }
}

/* The keys' bias: its part of the scores of a block is added to the others. */
INLINE void add_bias(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last, const int R)
{
    size_t pairs = rows->pairs;
    for (size_t b = first * SPAN / BLOCK; b < last * SPAN / BLOCK; b++) {
        const int16_t *line = chunk->bias + b * BLOCK * 2 * pairs, *q = rows->bias_q;
        __m512i s0[ROWS], s1[ROWS];
        UNROLL for (int r = 0; r < R; r++)
            s0[r] = s1[r] = _mm512_setzero_si512();
        for (size_t n = 0; n < pairs; n++, line += 32, q += 2 * R) {
            __m512i k0 = _mm512_load_si512(line), k1 = _mm512_load_si512(line + 32 * pairs);
            UNROLL for (int r = 0; r < R; r++) {
                DOT_WORDS(s0[r], k0, q + 2 * r);
                DOT_WORDS(s1[r], k1, q + 2 * r);
            }
        }
        UNROLL for (int r = 0; r < R; r++) {
            float *scores = rows->scores + (size_t)r * STRIDE + b * BLOCK;
            __m512 factor = _mm512_set1_ps(rows->bias_factor[r]);
            __m512 x0 = _mm512_mul_ps(_mm512_cvtepi32_ps(s0[r]), factor);
            __m512 x1 = _mm512_mul_ps(_mm512_cvtepi32_ps(s1[r]), factor);
            _mm512_store_ps(scores, _mm512_add_ps(_mm512_load_ps(scores), x0));
            _mm512_store_ps(scores + 16, _mm512_add_ps(_mm512_load_ps(scores + 16), x1));
        }
    }
}

static void scores_int8(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    for (size_t s = first; s < last; s++) {
        const qwq_span *span = &chunk->spans[s];
        const qwq_span *next = s + 1 < last ? span + 1 : span;
        const void *then = s + 1 < last ? next->k : chunk->spans[first].v;
        if (rows->streams)
            FOR_TILE(rows->rows, scores_of, rows, span, next, then, s * SPAN, 1)
        else
            FOR_TILE(rows->rows, scores_of, rows, span, next, then, s * SPAN, 0)
    }
    if (rows->pairs)
        FOR_TILE(rows->rows, add_bias, rows, chunk, first, last)
}

/* The largest score that a row sees. Those beside it, in the same spans, become too low to count. */
INLINE float largest_score(float *scores, size_t from, size_t to)
{
    for (size_t t = from / SPAN * SPAN; t < from; t++)
        scores[t] = ATTENTION_LOWEST;
    for (size_t t = to; t % SPAN; t++)
        scores[t] = ATTENTION_LOWEST;
    __m512 a = _mm512_set1_ps(ATTENTION_LOWEST), b = a;
    for (size_t t = from / SPAN * SPAN; t < to; t += 32) {
        a = _mm512_max_ps(a, _mm512_load_ps(scores + t));
        b = _mm512_max_ps(b, _mm512_load_ps(scores + t + 16));
    }
    return _mm512_reduce_max_ps(_mm512_max_ps(a, b));
}

/* Lane i: the largest of register i of four. */
INLINE __m128 four_largest(const __m512 *x)
{
    __m512 a = _mm512_max_ps(_mm512_shuffle_f32x4(x[0], x[1], 0x44), _mm512_shuffle_f32x4(x[0], x[1], 0xEE));
    __m512 b = _mm512_max_ps(_mm512_shuffle_f32x4(x[2], x[3], 0x44), _mm512_shuffle_f32x4(x[2], x[3], 0xEE));
    __m512 c = _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
    c = _mm512_max_ps(c, _mm512_permute_ps(c, 0x4E));
    c = _mm512_max_ps(c, _mm512_permute_ps(c, 0xB1));
    return _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, c));
}

/* Two blocks' bytes, from words below 256, in the order of tokens: packing twice has mixed their quads. */
INLINE __m512i in_order(__m512i packed)
{
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), packed);
}

/* Sums of two blocks' bytes, in even and odd lanes: of lower ones, and 2^32 times those of upper ones. */
INLINE __m512i sums_of_bytes(__m512i low, __m512i high)
{
    __m512i lows = _mm512_sad_epu8(low, _mm512_setzero_si512()), highs = _mm512_sad_epu8(high, _mm512_setzero_si512());
    return _mm512_or_si512(lows, _mm512_slli_epi64(highs, 32));
}

/* Bit i: rounding the weights of block i of four to 8 bits takes, or adds, more than 1/128 of their sum. Sums are of
 * weights with 128 added. */
INLINE uint32_t blocks_to_keep(__m512i s01, __m512i s23)
{
    __m512i c = _mm512_add_epi64(_mm512_shuffle_i64x2(s01, s23, 0x44), _mm512_shuffle_i64x2(s01, s23, 0xEE));
    c = _mm512_add_epi64(c, _mm512_shuffle_i64x2(c, c, 0xB1));
    __m512i off = _mm512_sub_epi32(c, _mm512_set1_epi32(128 * BLOCK)); /* in the lower halves */
    __m512i sum = _mm512_add_epi32(off, _mm512_slli_epi32(_mm512_srli_epi64(c, 32), 8));
    uint32_t keep = _mm512_cmpgt_epi32_mask(_mm512_slli_epi32(_mm512_abs_epi32(off), 7), sum);
    return (keep & 1) | (keep >> 1 & 2) | (keep >> 6 & 4) | (keep >> 7 & 8);
}

/* From w and inverse units to bytes, for one span: upper bytes, or all of a block's where it keeps them. Returns which
 * blocks do. */
INLINE uint32_t round_span(uint8_t *plane, const float *w, const float *inverse, int p_bits)
{
    __m512i words[4], high[2], sums[2];
    UNROLL for (int i = 0; i < 4; i++) {
        __m512 x = _mm512_set1_ps(inverse[i]);
        __m512i c0 = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(w + 32 * i), x));
        __m512i c1 = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(w + 32 * i + 16), x));
        words[i] = _mm512_add_epi16(_mm512_packus_epi32(c0, c1), _mm512_set1_epi16(128));
    }
    UNROLL for (int i = 0; i < 2; i++) {
        __m512i a = words[2 * i], b = words[2 * i + 1], bytes = _mm512_set1_epi16(255);
        __m512i low = _mm512_packus_epi16(_mm512_and_si512(a, bytes), _mm512_and_si512(b, bytes));
        high[i] = _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
        sums[i] = sums_of_bytes(low, high[i]);
        _mm512_store_si512(plane + 64 * i, in_order(high[i]));
    }
    uint32_t keep = p_bits ? (p_bits == 16 ? 15 : 0) : blocks_to_keep(sums[0], sums[1]);
    if (!keep)
        return 0;
    UNROLL for (int i = 0; i < 4; i++)
        if (keep >> i & 1) {
            __m512i c = _mm512_sub_epi16(words[i], _mm512_set1_epi16(128));
            __m512i l = _mm512_and_si512(c, _mm512_set1_epi16(255));
            c = in_order(_mm512_packus_epi16(_mm512_srli_epi16(c, 8), c));
            l = in_order(_mm512_packus_epi16(l, l));
            _mm256_store_si256((__m256i *)(void *)(plane + 32 * i), _mm512_castsi512_si256(c));
            _mm256_store_si256((__m256i *)(void *)(plane + LOW + 32 * i), _mm512_castsi512_si256(l));
        }
    return keep;
}

/* One row: from scores to p, whose sum it returns, and to w = p * scale, with the largest w in each lane of a block.
 * Spans that the row sees in part have a scale of zero where it does not see: there, anything may be in the cache. */
INLINE __m512 weigh(float *scores, __m512 *largest, const qwq_chunk *chunk, float top, size_t from, size_t to)
{
    __m512 total = _mm512_setzero_ps();
    for (size_t t = from / SPAN * SPAN; t < to; t += SPAN) {
        float clean[SPAN] __attribute__((aligned(64)));
        const float *scale = chunk->spans[t / SPAN].v_scale;
        if (t < from || t + SPAN > to) {
            for (size_t i = 0; i < SPAN; i++)
                clean[i] = t + i >= from && t + i < to ? scale[i] : 0;
            scale = clean;
        }
        for (size_t i = 0; i < SPAN; i += 32) {
            __m512 p0 = fixed_exp2_avx512(_mm512_sub_ps(_mm512_load_ps(scores + t + i), _mm512_set1_ps(top)));
            __m512 p1 = fixed_exp2_avx512(_mm512_sub_ps(_mm512_load_ps(scores + t + i + 16), _mm512_set1_ps(top)));
            total = _mm512_add_ps(_mm512_add_ps(total, p0), p1);
            p0 = _mm512_mul_ps(p0, _mm512_load_ps(scale + i));
            p1 = _mm512_mul_ps(p1, _mm512_load_ps(scale + i + 16));
            _mm512_store_ps(scores + t + i, p0);
            _mm512_store_ps(scores + t + i + 16, p1);
            largest[(t + i) / BLOCK] = _mm512_max_ps(p0, p1);
        }
    }
    return total;
}

static void weights_int8(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last, int p_bits)
{
    uint32_t kept[ROWS], any = 0;
    for (size_t r = 0; r < rows->rows; r++) {
        float *scores = rows->scores + r * STRIDE, *out = rows->out + r * (rows->E + OUT_EXTRA) + rows->E;
        float *unit = rows->unit[r], inverse[BLOCKS] __attribute__((aligned(64)));
        size_t from = rows->from[r], to = rows->to[r];
        uint8_t *plane = (uint8_t *)rows->p + r * PLANE;
        __m512 largest[BLOCKS];
        kept[r] = 0;
        out[OUT_TOP] = largest_score(scores, from, to);
        out[OUT_TOTAL] = fixed_lanes_avx512(weigh(scores, largest, chunk, out[OUT_TOP], from, to));
        for (size_t t = from / SPAN * SPAN; t < to; t += SPAN) {
            __m128 most = four_largest(largest + t / BLOCK);
            __mmask8 present = _mm_cmp_ps_mask(most, _mm_set1_ps(ATTENTION_SMALLEST), _CMP_GE_OQ);
            _mm_store_ps(inverse + t / BLOCK, _mm_maskz_div_ps(present, _mm_set1_ps(UNITS), most));
            _mm_storeu_ps(unit + t / BLOCK, _mm_mul_ps(most, _mm_set1_ps(1.0f / UNITS)));
        }
        for (size_t t = first * SPAN; t < last * SPAN; t += SPAN)
            if (t + SPAN > from && t < to) {
                uint32_t keep = round_span(plane + t, scores + t, inverse + t / BLOCK, p_bits);
                kept[r] |= keep << t / BLOCK;
            } else {
                _mm512_store_si512(plane + t, _mm512_setzero_si512());
                _mm512_store_si512(plane + t + 64, _mm512_setzero_si512());
                _mm_storeu_ps(unit + t / BLOCK, _mm_setzero_ps());
            }
        any |= kept[r];
    }
    for (size_t b = first * SPAN / BLOCK; b < last * SPAN / BLOCK; b++) {
        rows->wide[b] = any >> b & 1;
        for (size_t r = 0; rows->wide[b] && r < rows->rows; r++) {
            uint8_t *low = (uint8_t *)rows->p + r * PLANE + LOW + b * BLOCK;
            if (!(kept[r] >> b & 1)) /* 8 bits, beside another row's 16 */
                _mm256_store_si256((__m256i *)(void *)low, _mm256_setzero_si256());
        }
    }
}

/* One plane of a block's weights of R rows, times 32 dimensions of its values. */
INLINE void dot_values(__m512i acc[ROWS][2], const uint8_t *plane, const int8_t *v, ptrdiff_t ahead, const int streams,
                       const int R)
{
    UNROLL for (int quad = 0; quad < BLOCK / 4; quad++, v += 4 * DIMS) {
        IN_ORDER;
        __m512i v0 = _mm512_load_si512(v), v1 = _mm512_load_si512(v + 64);
        if (streams) {
            fetch(v + ahead);
            fetch(v + 64 + ahead);
        }
        UNROLL for (int r = 0; r < R; r++) {
            __m512i p = _mm512_set1_epi32(*(const int32_t *)(const void *)(plane + r * PLANE + 4 * quad));
            acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], p, v0);
            acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], p, v1);
        }
    }
}

/* One span, 32 dimensions from e on, of R rows. */
INLINE void values_of(qwq_rows *rows, const int8_t *v, size_t span, size_t e, ptrdiff_t ahead, const int streams,
                      const int R)
{
    float *out = rows->out + e;
    size_t step = rows->E + OUT_EXTRA;
    __m512 sum[ROWS][2];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int i = 0; i < 2; i++)
            sum[r][i] = _mm512_load_ps(out + (size_t)r * step + 16 * i);
    for (size_t b = span * SPAN / BLOCK; b < (span + 1) * SPAN / BLOCK; b++, v += BLOCK * DIMS) {
        const uint8_t *plane = (const uint8_t *)rows->p + b * BLOCK;
        float upper = 256; /* the upper bytes alone are that much larger */
        __m512i acc[ROWS][2];
        UNROLL for (int r = 0; r < R; r++)
            acc[r][0] = acc[r][1] = _mm512_setzero_si512();
        dot_values(acc, plane, v, ahead, streams, R);
        if (rows->wide[b]) {
            upper = 1;
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int i = 0; i < 2; i++)
                    acc[r][i] = _mm512_slli_epi32(acc[r][i], 8);
            dot_values(acc, plane + LOW, v, 0, 0, R);
        }
        UNROLL for (int r = 0; r < R; r++) {
            __m512 unit = _mm512_set1_ps(rows->unit[r][b] * upper);
            UNROLL for (int i = 0; i < 2; i++)
                sum[r][i] = _mm512_add_ps(sum[r][i], _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][i]), unit));
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int i = 0; i < 2; i++)
            _mm512_store_ps(out + (size_t)r * step + 16 * i, sum[r][i]);
}

INLINE void values_rows(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last, const int streams, const int R)
{
    for (size_t span = first; span < last; span++) {
        const int8_t *v = chunk->spans[span].v;
        const void *next = span + 1 < last ? chunk->spans[span + 1].v : chunk->then ? chunk->then : v;
        for (size_t e = 0; e < rows->E; e += DIMS, v += SPAN * DIMS) {
            ptrdiff_t ahead = streams ? ahead_of(v, chunk->spans[span].v, next, SPAN * rows->E) : 0;
            values_of(rows, v, span, e, ahead, streams, R);
        }
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
    if (rows->streams)
        FOR_TILE(rows->rows, values_rows, rows, chunk, first, last, 1)
    else
        FOR_TILE(rows->rows, values_rows, rows, chunk, first, last, 0)
}

#include "x86/avx512_attention_fp32.h"

static void merge(float *state, const float *out, size_t E)
{
    float top = state[E + OUT_TOP] > out[E + OUT_TOP] ? state[E + OUT_TOP] : out[E + OUT_TOP];
    float keep = fixed_exp2(state[E + OUT_TOP] - top), add = fixed_exp2(out[E + OUT_TOP] - top);
    state[E + OUT_TOP] = top;
    state[E + OUT_TOTAL] = state[E + OUT_TOTAL] * keep + out[E + OUT_TOTAL] * add;
    for (size_t e = 0; e < E; e += 16) {
        __m512 old = _mm512_mul_ps(_mm512_load_ps(state + e), _mm512_set1_ps(keep));
        __m512 new = _mm512_mul_ps(_mm512_load_ps(out + e), _mm512_set1_ps(add));
        _mm512_store_ps(state + e, _mm512_add_ps(old, new));
    }
}

TARGET_END

void qwq_avx512_attention(qwq_attention_kernels *kernels)
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
typedef int qwq_no_attention_avx512; /* a file must hold something */
#endif
