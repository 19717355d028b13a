/* AVX2: a panel is taken in two halves, of rows 0-7 with 16-23 and of rows 8-15 with 24-31. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#pragma GCC target("avx2,f16c,fma")

static void quantise(int8_t *q, float *scale, int32_t *sum, const float *x, size_t K)
{
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* undoes what packing does to halves */
    for (size_t g = 0; g < K / GROUP; g++, x += GROUP, q += GROUP) {
        __m256 v[8], largest = _mm256_setzero_ps();
        for (int i = 0; i < 8; i++) {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            largest = _mm256_max_ps(largest, _mm256_and_ps(v[i], magnitude));
        }
        float lanes[8], most = 0;
        _mm256_storeu_ps(lanes, largest);
        for (int i = 0; i < 8; i++)
            most = lanes[i] > most ? lanes[i] : most;
        __m256 inverse = _mm256_set1_ps(most >= 0x1p-100f ? 127.0f / most : 0);
        __m256i n[8], total = _mm256_setzero_si256();
        for (int i = 0; i < 8; i++) {
            n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
            total = _mm256_add_epi32(total, n[i]);
        }
        for (int i = 0; i < 2; i++) {
            __m256i a = _mm256_packs_epi32(n[4 * i], n[4 * i + 1]), b = _mm256_packs_epi32(n[4 * i + 2], n[4 * i + 3]);
            __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order);
            _mm256_storeu_si256((__m256i *)(void *)(q + 32 * i), bytes);
        }
        int32_t parts[8], all = 0;
        _mm256_storeu_si256((__m256i *)(void *)parts, total);
        for (int i = 0; i < 8; i++)
            all += parts[i];
        scale[g] = most * (1.0f / 127.0f);
        sum[g] = all;
    }
}

/* Levels are at most 127, activations 127 in magnitude: a pair's sum, 32,258, fits in 16 bits. */
static inline __m256i dot(__m256i sum, __m256i levels, const int8_t *four)
{
    __m256i x = _mm256_set1_epi32(*(const int32_t *)(const void *)four);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(levels, x), _mm256_set1_epi16(1)));
}

#define Q4_TILE(TOKENS)                                                                                               \
    static void q4_tile_##TOKENS(float y[][PANEL], const uint8_t *w, qwq_tile tile, size_t t0, size_t tokens,         \
                                 size_t groups, int half)                                                             \
    {                                                                                                                 \
        const __m256i low = _mm256_set1_epi8(15);                                                                     \
        const __m256i levels = _mm256_add_epi8(                                                                       \
            _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)QWQ_CODEBOOK)),                \
            _mm256_set1_epi8(LEVEL_OFFSET));                                                                          \
        const int8_t *q = tile.q + t0 * 4;                                                                            \
        for (size_t g = 0; g < groups; g++, w += Q4_BLOCK, q += GROUP * tokens) {                                     \
            __m256i s0[TOKENS], s1[TOKENS];                                                                           \
            _Pragma("GCC unroll 4") for (int t = 0; t < TOKENS; t++)                                                  \
                s0[t] = s1[t] = _mm256_set1_epi32(tile.begin[g * tokens + t0 + (size_t)t]);                           \
            _Pragma("GCC unroll 2") for (int l = 0; l < LINES; l++) {                                                 \
                __m256i codes = _mm256_loadu_si256((const __m256i *)(const void *)(w + l * LINE + 32 * half));        \
                __m256i first = _mm256_shuffle_epi8(levels, _mm256_and_si256(codes, low));                            \
                __m256i second = _mm256_shuffle_epi8(levels, _mm256_and_si256(_mm256_srli_epi16(codes, 4), low));     \
                _Pragma("GCC unroll 4") for (int t = 0; t < TOKENS; t++) {                                            \
                    const int8_t *four = q + ((size_t)l * tokens + (size_t)t) * 4;                                    \
                    s0[t] = dot(s0[t], first, four);                                                                  \
                    s1[t] = dot(s1[t], second, four);                                                                 \
                }                                                                                                     \
            }                                                                                                         \
            const uint8_t *scales = w + LINES * LINE + 16 * half;                                                     \
            __m256 w0 = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)scales));                      \
            __m256 w1 = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(scales + 32)));               \
            _Pragma("GCC unroll 4") for (int t = 0; t < TOKENS; t++) {                                                \
                __m256 x = _mm256_set1_ps(tile.scale[g * tokens + t0 + (size_t)t]);                                   \
                float *out = y[t0 + (size_t)t] + 8 * half;                                                            \
                __m256 add0 = _mm256_mul_ps(_mm256_cvtepi32_ps(s0[t]), _mm256_mul_ps(x, w0));                         \
                __m256 add1 = _mm256_mul_ps(_mm256_cvtepi32_ps(s1[t]), _mm256_mul_ps(x, w1));                         \
                _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), add0));                                     \
                _mm256_storeu_ps(out + 16, _mm256_add_ps(_mm256_loadu_ps(out + 16), add1));                           \
            }                                                                                                         \
        }                                                                                                             \
    }

Q4_TILE(1)
Q4_TILE(2)
Q4_TILE(3)

static void q4_panel(float *y, size_t ldy, size_t rows, const uint8_t *panel, qwq_tile tile, size_t tokens,
                     size_t groups)
{
    float results[TILE][PANEL] = {{0}};
    for (int half = 0; half < 2; half++)
        for (size_t t = 0; t < tokens; t += 3)
            switch (tokens - t) {
            case 1: q4_tile_1(results, panel, tile, t, tokens, groups, half); break;
            case 2: q4_tile_2(results, panel, tile, t, tokens, groups, half); break;
            default: q4_tile_3(results, panel, tile, t, tokens, groups, half); break;
            }
    for (size_t t = 0; t < tokens; t++)
        for (size_t r = 0; r < rows; r++)
            y[t * ldy + r] = results[t][r];
}

const qwq_kernels qwq_avx2_kernels = {quantise, q4_panel};

#else
typedef int qwq_no_avx2; /* a file must hold something */
#endif
