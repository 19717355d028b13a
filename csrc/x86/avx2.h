/* What AVX2 and AVX-VNNI share: registers of eight rows, four for a panel. To be included after TARGET. */
#ifndef QWQ_AVX2_H
#define QWQ_AVX2_H

#include "x86/inline.h"

enum { ROWS = 4 }; /* registers of rows */

INLINE __m256i load(const void *from)
{
    return _mm256_loadu_si256((const __m256i *)from);
}

/* The levels of q4 with their excess, in both halves. */
INLINE __m256i q4_levels(void)
{
    __m128i codebook = _mm_loadu_si128((const __m128i *)(const void *)QWQ_CODEBOOK);
    return _mm256_add_epi8(_mm256_broadcastsi128_si256(codebook), _mm256_set1_epi8(Q4_EXCESS));
}

INLINE void q4_line(uint8_t *first, uint8_t *second, const uint8_t *line)
{
    const __m256i low = _mm256_set1_epi8(15), levels = q4_levels();
    for (int b = 0; b < LINE; b += 32) {
        __m256i codes = load(line + b), high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low);
        _mm256_storeu_si256((__m256i *)(void *)(first + b), _mm256_shuffle_epi8(levels, _mm256_and_si256(codes, low)));
        _mm256_storeu_si256((__m256i *)(void *)(second + b), _mm256_shuffle_epi8(levels, high));
    }
}

INLINE __m256 eight_halves(const uint8_t *from)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)from));
}

INLINE void halves(float *to, const uint8_t *from)
{
    for (int r = 0; r < PANEL; r += 8)
        _mm256_storeu_ps(to + r, eight_halves(from + 2 * r));
}

INLINE void bytes_times(float *to, const uint8_t *bytes, const float *d)
{
    for (int r = 0; r < PANEL; r += 8) {
        __m256i eight = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(bytes + r)));
        _mm256_storeu_ps(to + r, _mm256_mul_ps(_mm256_loadu_ps(d + r), _mm256_cvtepi32_ps(eight)));
    }
}

INLINE void signed_bytes_times(float *to, const uint8_t *bytes, const float *d)
{
    for (int r = 0; r < PANEL; r += 8) {
        __m256i eight = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(bytes + r)));
        _mm256_storeu_ps(to + r, _mm256_mul_ps(_mm256_loadu_ps(d + r), _mm256_cvtepi32_ps(eight)));
    }
}

#include "common/unpack.h"

/* Four columns of x in every lane. Volatile, as are the products: GCC 12 would load all broadcasts first, and run out
 * of registers. */
INLINE __m256i four_of(const int8_t *q)
{
    __m256i x;
    __asm__ volatile("vpbroadcastd %1, %0" : "=x"(x) : "m"(*(const int32_t *)(const void *)q));
    return x;
}

/* y [PANEL] += sum * (scale * ratio) + offset * total. No ratio: the scales have it already. No offset: none. */
INLINE void add_scaled(float *y, const __m256i *sum, const float *scale, const float *ratio, const float *offset,
                       const float *total)
{
    UNROLL for (int r = 0; r < ROWS; r++) {
        __m256 both = _mm256_loadu_ps(scale + 8 * r);
        if (ratio)
            both = _mm256_mul_ps(both, _mm256_set1_ps(*ratio));
        __m256 y8 = _mm256_add_ps(_mm256_loadu_ps(y + 8 * r), _mm256_mul_ps(_mm256_cvtepi32_ps(sum[r]), both));
        if (offset)
            y8 = _mm256_add_ps(y8, _mm256_mul_ps(_mm256_loadu_ps(offset + 8 * r), _mm256_set1_ps(*total)));
        _mm256_storeu_ps(y + 8 * r, y8);
    }
}

/* Adds to sum [T][ROWS] some lines of a panel times T tokens, `step` bytes from one line's x to the next. */
typedef void dots_fn(__m256i (*sum)[ROWS], const uint8_t *code, const int8_t *q, size_t lines, size_t step);
enum { MOST_AT_ONCE = 3 };

/* T tokens from t0 on. */
INLINE void wide_tokens(float *y, const qwq_wide *w, const qwq_tile *tile, size_t t0, size_t tokens, size_t groups,
                        const qwq_layout *layout, dots_fn *dots, const int T)
{
    const int8_t *q = tile->q + 4 * t0;
    size_t each = LINES / layout->subgroups;
    y += t0 * PANEL;
    for (size_t g = 0; g < groups; g++, w++) {
        const uint8_t *code = w->code[0][0];
        for (size_t s = 0; s < layout->subgroups; s++, code += each * 2 * LINE, q += each * 4 * tokens) {
            size_t at = (g * layout->subgroups + s) * tokens + t0;
            __m256i sum[MOST_AT_ONCE][ROWS];
            UNROLL for (int t = 0; t < T; t++)
                UNROLL for (int r = 0; r < ROWS; r++)
                    sum[t][r] = _mm256_set1_epi32(tile->begin[at + (size_t)t]);
            if (layout->row_zeros)
                UNROLL for (int t = 0; t < T; t++)
                    UNROLL for (int r = 0; r < ROWS; r++)
                        sum[t][r] = _mm256_mullo_epi32(sum[t][r], load(w->zero[s] + 8 * r));
            dots(sum, code, q, each, 4 * tokens);
            const float *offset = layout->offset ? w->offset[s] : NULL;
            UNROLL for (int t = 0; t < T; t++) {
                float *to = y + t * PANEL;
                const float *total = tile->sum + at + t;
                size_t of_group = g * tokens + t0 + (size_t)t;
                if (layout->subgroups == 1) /* the products of both scales are read */
                    add_scaled(to, sum[t], w->scaled[0] + tile->scaled[of_group] / sizeof(float), NULL, offset, total);
                else
                    add_scaled(to, sum[t], w->scale[s], tile->ratio + of_group, offset, total);
            }
        }
    }
}

/* sum + the products of unsigned and signed bytes, in fours. */
typedef __m256i dot_fn(__m256i sum, __m256i w, __m256i x);

/* q4 straight from its blocks, where memory is what is waited for: T tokens from t0 on. A panel is taken in two halves,
 * of rows 0-7 with 16-23 and of rows 8-15 with 24-31. */
INLINE void q4_tokens(float *y, const uint8_t *w, const qwq_tile *tile, size_t t0, size_t tokens, size_t groups,
                      int half, dot_fn *dot, const int T)
{
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i levels = q4_levels();
    const int8_t *q = tile->q + t0 * 4;
    y += t0 * PANEL + 8 * (size_t)half;
    for (size_t g = 0; g < groups; g++, w += Q4_BLOCK, q += GROUP * tokens) {
        __m256i s0[MOST_AT_ONCE], s1[MOST_AT_ONCE];
        UNROLL for (int t = 0; t < T; t++)
            s0[t] = s1[t] = _mm256_set1_epi32(tile->begin[g * tokens + t0 + (size_t)t]);
        UNROLL_BY(2) for (size_t l = 0; l < LINES; l++) {
            __m256i codes = load(w + l * LINE + 32 * half);
            __m256i first = _mm256_shuffle_epi8(levels, _mm256_and_si256(codes, low));
            __m256i second = _mm256_shuffle_epi8(levels, _mm256_and_si256(_mm256_srli_epi16(codes, 4), low));
            UNROLL for (int t = 0; t < T; t++) {
                __m256i x = four_of(q + (l * tokens + (size_t)t) * 4);
                s0[t] = dot(s0[t], first, x);
                s1[t] = dot(s1[t], second, x);
            }
        }
        const uint8_t *scales = w + NIBBLES + 16 * half;
        const __m256 w0 = eight_halves(scales), w1 = eight_halves(scales + 32);
        UNROLL for (int t = 0; t < T; t++) {
            __m256 x = _mm256_set1_ps(tile->ratio[g * tokens + t0 + (size_t)t]);
            float *to = y + t * PANEL;
            __m256 y0 = _mm256_mul_ps(_mm256_cvtepi32_ps(s0[t]), _mm256_mul_ps(x, w0));
            __m256 y1 = _mm256_mul_ps(_mm256_cvtepi32_ps(s1[t]), _mm256_mul_ps(x, w1));
            _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), y0));
            _mm256_storeu_ps(to + 16, _mm256_add_ps(_mm256_loadu_ps(to + 16), y1));
        }
    }
}

INLINE void q4_any(float *y, const uint8_t *blocks, const qwq_tile *tile, size_t tokens, size_t groups, dot_fn *dot)
{
    for (int half = 0; half < 2; half++)
        for (size_t t = 0; t < tokens; t += 3)
            switch (tokens - t) {
            case 1: q4_tokens(y, blocks, tile, t, tokens, groups, half, dot, 1); break;
            case 2: q4_tokens(y, blocks, tile, t, tokens, groups, half, dot, 2); break;
            default: q4_tokens(y, blocks, tile, t, tokens, groups, half, dot, 3); break;
            }
}

#endif
