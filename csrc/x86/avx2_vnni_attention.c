/* Attention over an int8 cache, AVX-VNNI: bytes are multiplied as they are, where AVX2 widens them first. */
#include "common/cpu.h"
#if defined(__x86_64__) && defined(TARGET_VNNI)
#include <immintrin.h>

#include "common/attention.h"
#include "common/fixed.h"
#include "x86/target.h"

TARGET(TARGET_VNNI)

#include "x86/inline.h"

/* GCC 12 would move all loads to the front, and run out of registers. */
#define IN_ORDER __asm__ volatile("" ::: "memory")

enum { PLANE = CHUNK + 64, LOW = ROWS * PLANE }; /* weights: upper bytes of each row, then lower bytes */

INLINE __m256i dot(__m256i sum, __m256i u8, __m256i s8)
{
    __asm__(VNNI_FORM "vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(u8), "x"(s8));
    return sum;
}

INLINE __m256i four_bytes(const void *from)
{
    return _mm256_set1_epi32(*(const int32_t *)from);
}

/* 16 tokens from t on, of R rows. */
INLINE void scores_of(qwq_rows *rows, const qwq_chunk *chunk, size_t t, const int R)
{
    size_t E = rows->E;
    const qwq_span *span = &chunk->spans[t / SPAN];
    const uint8_t *k = (const uint8_t *)span->k + t % SPAN * E;
    const int8_t *q = rows->q;
    float *scores = rows->scores + t;
    UNROLL for (int h = 0; h < HALVES; h++) {
    __m256i s[ROWS][2];
    UNROLL for (int r = 0; r < R; r++)
        s[r][0] = s[r][1] = _mm256_set1_epi32(rows->begin[h][r]);
    for (const uint8_t *end = k + 8 * E; k < end; k += 64, q += 4 * R) {
        IN_ORDER;
        __m256i k0 = _mm256_load_si256((const __m256i *)(const void *)k);
        __m256i k1 = _mm256_load_si256((const __m256i *)(const void *)(k + 32));
        UNROLL for (int r = 0; r < R; r++) {
            __m256i four = four_bytes(q + 4 * r);
            s[r][0] = dot(s[r][0], k0, four);
            s[r][1] = dot(s[r][1], k1, four);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int i = 0; i < 2; i++) {
            __m256 both = _mm256_mul_ps(_mm256_set1_ps(rows->factor[h][r]), _mm256_load_ps(span->k_scale[h] + t % SPAN + 8 * i));
            __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(s[r][i]), both);
            float *at = scores + (size_t)r * STRIDE + 8 * i;
            _mm256_store_ps(at, h ? _mm256_add_ps(_mm256_load_ps(at), x) : x);
        }
    }
}

#include "x86/avx2_bias.h"

static void scores_int8(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    for (size_t t = first * SPAN; t < last * SPAN; t += 16)
        FOR_TILE(rows->rows, scores_of, rows, chunk, t)
    if (rows->pairs)
        add_bias(rows, chunk, first, last);
}

/* 32 integers below 256 as bytes, in order. */
INLINE void store_bytes(uint8_t *at, const __m256i *n)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* undoes what packing does to halves */
    __m256i words[2] = {_mm256_packus_epi32(n[0], n[1]), _mm256_packus_epi32(n[2], n[3])};
    __m256i bytes = _mm256_packus_epi16(words[0], words[1]);
    _mm256_store_si256((__m256i *)(void *)at, _mm256_permutevar8x32_epi32(bytes, order));
}

INLINE void store_weights(qwq_rows *rows, size_t r, size_t b, const __m256i *high, const __m256i *low)
{
    uint8_t *at = (uint8_t *)rows->p + r * PLANE + b * BLOCK;
    store_bytes(at, high);
    store_bytes(at + LOW, low);
}

#include "x86/avx2_weights.h"

/* One plane of a block's weights, of R rows, times 16 dimensions of its values. */
INLINE void dot_values(__m256i s[ROWS][2], const uint8_t *plane, const int8_t *v, const int R)
{
    _Pragma("GCC unroll 2") for (int quad = 0; quad < BLOCK / 4; quad++, v += 4 * DIMS) {
        IN_ORDER;
        __m256i v0 = _mm256_load_si256((const __m256i *)(const void *)v);
        __m256i v1 = _mm256_load_si256((const __m256i *)(const void *)(v + 32));
        UNROLL for (int r = 0; r < R; r++) {
            __m256i four = four_bytes(plane + r * PLANE + 4 * quad);
            s[r][0] = dot(s[r][0], four, v0);
            s[r][1] = dot(s[r][1], four, v1);
        }
    }
}

/* Block b, 16 dimensions from e on, of R rows. */
INLINE void values_of(qwq_rows *rows, const int8_t *v, size_t b, size_t e, const int R)
{
    const uint8_t *plane = (const uint8_t *)rows->p + b * BLOCK;
    size_t step = rows->E + OUT_EXTRA;
    __m256i s[ROWS][2];
    UNROLL for (int r = 0; r < R; r++)
        s[r][0] = s[r][1] = _mm256_setzero_si256();
    v += value_at(b * BLOCK % SPAN, e);
    float upper = 256; /* the upper bytes alone are that much larger */
    dot_values(s, plane, v, R);
    if (rows->wide[b]) {
        upper = 1;
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int i = 0; i < 2; i++)
                s[r][i] = _mm256_slli_epi32(s[r][i], 8);
        dot_values(s, plane + LOW, v, R);
    }
    UNROLL for (int r = 0; r < R; r++) {
        __m256 unit = _mm256_set1_ps(rows->unit[r][b] * upper);
        UNROLL for (int i = 0; i < 2; i++) {
            float *at = rows->out + (size_t)r * step + e + 8 * i;
            __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(s[r][i]), unit);
            _mm256_store_ps(at, _mm256_add_ps(_mm256_load_ps(at), product));
        }
    }
}

static void values_int8(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    zero_out(rows);
    for (size_t b = first * SPAN / BLOCK; b < last * SPAN / BLOCK; b++)
        for (size_t e = 0; e < rows->E; e += 16)
            FOR_TILE(rows->rows, values_of, rows, chunk->spans[b * BLOCK / SPAN].v, b, e)
}

TARGET_END

void qwq_avx2_vnni_attention(qwq_attention_kernels *kernels)
{
    kernels->scores_int8 = scores_int8;
    kernels->weights_int8 = weights_int8; /* bytes, for values_int8 */
    kernels->values_int8 = values_int8;
}

#else
typedef int qwq_no_avx2_vnni_attention; /* a file must hold something */
#endif
