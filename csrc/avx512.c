/* AVX-512 with VNNI: a panel's 32 rows are two registers, a tile's tokens are broadcast from memory. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma")

static void quantise(int8_t *q, float *scale, int32_t *sum, const float *x, size_t K)
{
    for (size_t g = 0; g < K / GROUP; g++, x += GROUP, q += GROUP) {
        __m512 v[4], largest = _mm512_setzero_ps();
        for (int i = 0; i < 4; i++) {
            v[i] = _mm512_loadu_ps(x + 16 * i);
            largest = _mm512_max_ps(largest, _mm512_abs_ps(v[i]));
        }
        float most = _mm512_reduce_max_ps(largest);
        __m512 inverse = _mm512_set1_ps(most >= 0x1p-100f ? 127.0f / most : 0);
        __m512i total = _mm512_setzero_si512();
        for (int i = 0; i < 4; i++) {
            __m512i n = _mm512_cvtps_epi32(_mm512_mul_ps(v[i], inverse));
            total = _mm512_add_epi32(total, n);
            _mm_storeu_si128((__m128i *)(void *)(q + 16 * i), _mm512_cvtepi32_epi8(n));
        }
        scale[g] = most * (1.0f / 127.0f);
        sum[g] = _mm512_reduce_add_epi32(total);
    }
}

/* How many of the middles each value is above: four steps of bisection in a table of sixteen. */
static inline __m512i nearest(__m512 value, __m512 middles)
{
    __m512i n = _mm512_setzero_si512();
    for (int step = 8; step >= 1; step /= 2) {
        __m512 middle = _mm512_permutexvar_ps(_mm512_add_epi32(n, _mm512_set1_epi32(step - 1)), middles);
        n = _mm512_mask_add_epi32(n, _mm512_cmp_ps_mask(value, middle, _CMP_GT_OQ), n, _mm512_set1_epi32(step));
    }
    return n;
}

/* spec.quant.lane_sum: four registers of lanes, then halves. */
static inline float lane_sum(const __m512 *x)
{
    __m512 lanes = _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(x[0], x[1]), x[2]), x[3]);
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

static uint16_t quantise_q4(uint8_t *code, const float *w)
{
    const __m512 middles = _mm512_loadu_ps(QWQ_MIDDLES);
    const __m512 levels = _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)QWQ_CODEBOOK)));
    __m512 v[4], products[4], squares[4], magnitude = _mm512_setzero_ps();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_loadu_ps(w + 16 * i);
        magnitude = _mm512_max_ps(magnitude, _mm512_abs_ps(v[i]));
    }
    float largest = _mm512_reduce_max_ps(magnitude), sign = 1;
    for (int i = 0; i < 4; i++) { /* the first of the largest gives the sign */
        __mmask16 at = _mm512_cmp_ps_mask(_mm512_abs_ps(v[i]), _mm512_set1_ps(largest), _CMP_EQ_OQ);
        if (at) {
            sign = w[16 * i + __builtin_ctz(at)] < 0 ? -1.0f : 1.0f;
            break;
        }
    }
    for (int i = 0; i < 4; i++)
        v[i] = _mm512_mul_ps(v[i], _mm512_set1_ps(sign));
    float best = __builtin_inff();
    uint16_t best_scale = 0;
    for (int start = 0; start < STARTS; start++) {
        float scale = largest * QWQ_STARTS[start] > QWQ_SMALLEST ? largest * QWQ_STARTS[start] : QWQ_SMALLEST;
        for (int round = 0; round < ROUNDS; round++) {
            __m512 inverse = _mm512_set1_ps(1.0f / scale);
            for (int i = 0; i < 4; i++) {
                __m512 level = _mm512_permutexvar_ps(nearest(_mm512_mul_ps(v[i], inverse), middles), levels);
                products[i] = _mm512_mul_ps(v[i], level);
                squares[i] = _mm512_mul_ps(level, level);
            }
            scale = lane_sum(products) / lane_sum(squares);
            scale = scale > QWQ_SMALLEST ? scale : QWQ_SMALLEST;
            scale = scale < QWQ_LARGEST ? scale : QWQ_LARGEST;
        }
        uint16_t half = largest > 0 ? float_to_half(scale) : 0;
        scale = half_to_float(half);
        __m512 inverse = _mm512_set1_ps(scale > 0 ? 1.0f / scale : 0);
        __m512i codes[4];
        for (int i = 0; i < 4; i++) {
            codes[i] = nearest(_mm512_mul_ps(v[i], inverse), middles);
            __m512 level = _mm512_permutexvar_ps(codes[i], levels);
            __m512 rest = _mm512_sub_ps(v[i], _mm512_mul_ps(_mm512_set1_ps(scale), level));
            squares[i] = _mm512_mul_ps(rest, rest);
        }
        float error = lane_sum(squares);
        if (start == 0 || error < best) {
            best = error;
            best_scale = half;
            for (int i = 0; i < 4; i++)
                _mm_storeu_si128((__m128i *)(void *)(code + 16 * i), _mm512_cvtepi32_epi8(codes[i]));
        }
    }
    return (uint16_t)(best_scale | (sign < 0 ? 0x8000u : 0));
}

/* GCC 12 would load the broadcast first, and run out of registers: the operand stays in memory. */
#define DOT(sum, levels, four) \
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(levels), "m"(*(const int32_t *)(const void *)(four)))

/* One panel and TOKENS tokens, all groups. Unrolled: 2 x TOKENS sums of a group and as many results are registers. A
 * format says how it begins (FORMAT##_BEGIN), how rows 0-15 and 16-31 of line l are read, and where scales stand. */
#define FORMAT_TILE(FORMAT, name, TOKENS)                                                                             \
    static void name##_tile_##TOKENS(float *y, size_t ldy, size_t rows, const uint8_t *w, qwq_tile tile, size_t groups)\
    {                                                                                                                 \
        FORMAT##_BEGIN                                                                                                \
        const int8_t *q = tile.q;                                                                                     \
        __m512 y0[TOKENS], y1[TOKENS];                                                                                \
        for (int t = 0; t < TOKENS; t++)                                                                              \
            y0[t] = y1[t] = _mm512_setzero_ps();                                                                      \
        for (size_t g = 0; g < groups; g++, w += FORMAT##_BLOCK, q += GROUP * TOKENS) {                               \
            __m512i s0[TOKENS], s1[TOKENS];                                                                           \
            _Pragma("GCC unroll 8") for (int t = 0; t < TOKENS; t++)                                                  \
                s0[t] = s1[t] = _mm512_set1_epi32(tile.begin[g * TOKENS + (size_t)t]);                                \
            _Pragma("GCC unroll 4") for (int l = 0; l < LINES; l++) {                                                 \
                FORMAT##_LINE(w, l)                                                                                   \
                _Pragma("GCC unroll 8") for (int t = 0; t < TOKENS; t++) {                                            \
                    DOT(s0[t], first, q + (l * TOKENS + t) * 4);                                                      \
                    DOT(s1[t], second, q + (l * TOKENS + t) * 4);                                                     \
                }                                                                                                     \
            }                                                                                                         \
            const __m256i *scales = (const __m256i *)(const void *)(w + FORMAT##_BLOCK - 2 * PANEL);                  \
            __m512 w0 = _mm512_cvtph_ps(_mm256_loadu_si256(scales));                                                  \
            __m512 w1 = _mm512_cvtph_ps(_mm256_loadu_si256(scales + 1));                                              \
            _Pragma("GCC unroll 8") for (int t = 0; t < TOKENS; t++) {                                                \
                __m512 x = _mm512_set1_ps(tile.scale[g * TOKENS + (size_t)t]);                                        \
                y0[t] = _mm512_add_ps(y0[t], _mm512_mul_ps(_mm512_cvtepi32_ps(s0[t]), _mm512_mul_ps(x, w0)));         \
                y1[t] = _mm512_add_ps(y1[t], _mm512_mul_ps(_mm512_cvtepi32_ps(s1[t]), _mm512_mul_ps(x, w1)));         \
            }                                                                                                         \
        }                                                                                                             \
        const __mmask16 m0 = (__mmask16)(rows >= 16 ? 0xFFFF : (1u << rows) - 1);                                     \
        const __mmask16 m1 = (__mmask16)(rows >= 32 ? 0xFFFF : rows > 16 ? (1u << (rows - 16)) - 1 : 0);              \
        for (int t = 0; t < TOKENS; t++) {                                                                            \
            _mm512_mask_storeu_ps(y + (size_t)t * ldy, m0, y0[t]);                                                    \
            _mm512_mask_storeu_ps(y + (size_t)t * ldy + 16, m1, y1[t]);                                               \
        }                                                                                                             \
    }

/* A format's tiles of 1 to 6 tokens, and the choice among them. */
#define FORMAT_PANEL(FORMAT, name)                                                                                    \
    FORMAT_TILE(FORMAT, name, 1)                                                                                      \
    FORMAT_TILE(FORMAT, name, 2)                                                                                      \
    FORMAT_TILE(FORMAT, name, 3)                                                                                      \
    FORMAT_TILE(FORMAT, name, 4)                                                                                      \
    FORMAT_TILE(FORMAT, name, 5)                                                                                      \
    FORMAT_TILE(FORMAT, name, 6)                                                                                      \
    static void name##_panel(float *y, size_t ldy, size_t rows, const uint8_t *panel, qwq_tile tile, size_t tokens,   \
                             size_t groups)                                                                           \
    {                                                                                                                 \
        switch (tokens) {                                                                                             \
        case 1: name##_tile_1(y, ldy, rows, panel, tile, groups); break;                                              \
        case 2: name##_tile_2(y, ldy, rows, panel, tile, groups); break;                                              \
        case 3: name##_tile_3(y, ldy, rows, panel, tile, groups); break;                                              \
        case 4: name##_tile_4(y, ldy, rows, panel, tile, groups); break;                                              \
        case 5: name##_tile_5(y, ldy, rows, panel, tile, groups); break;                                              \
        default: name##_tile_6(y, ldy, rows, panel, tile, groups); break;                                             \
        }                                                                                                             \
    }

/* q4: a line holds both halves of the panel as nibbles, which look up their levels. */
#define Q4_BEGIN                                                                                                      \
    const __m512i low = _mm512_set1_epi8(15);                                                                         \
    const __m512i levels = _mm512_add_epi8(                                                                           \
        _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)QWQ_CODEBOOK)),                         \
        _mm512_set1_epi8(LEVEL_OFFSET));
#define Q4_LINE(w, l)                                                                                                 \
    __m512i codes = _mm512_loadu_si512(w + l * LINE);                                                                 \
    __m512i first = _mm512_shuffle_epi8(levels, _mm512_and_si512(codes, low));                                        \
    __m512i second = _mm512_shuffle_epi8(levels, _mm512_and_si512(_mm512_srli_epi16(codes, 4), low));

/* q8: a line for each half, of bytes as they are multiplied. */
#define Q8_BEGIN
#define Q8_LINE(w, l)                                                                                                 \
    __m512i first = _mm512_loadu_si512(w + 2 * l * LINE);                                                             \
    __m512i second = _mm512_loadu_si512(w + (2 * l + 1) * LINE);

FORMAT_PANEL(Q4, q4)
FORMAT_PANEL(Q8, q8)

static uint16_t quantise_q8(int8_t *q, const float *w)
{
    __m512 v[4], magnitude = _mm512_setzero_ps();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_loadu_ps(w + 16 * i);
        magnitude = _mm512_max_ps(magnitude, _mm512_abs_ps(v[i]));
    }
    float scale = _mm512_reduce_max_ps(magnitude) * (1.0f / 127.0f);
    uint16_t half = float_to_half(scale < QWQ_LARGEST ? scale : QWQ_LARGEST);
    scale = half_to_float(half);
    __m512 inverse = _mm512_set1_ps(scale > 0 ? 1.0f / scale : 0);
    const __m512 most = _mm512_set1_ps(127), least = _mm512_set1_ps(-127);
    for (int i = 0; i < 4; i++) {
        __m512 cut = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(v[i], inverse), least), most);
        _mm_storeu_si128((__m128i *)(void *)(q + 16 * i), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(cut)));
    }
    return half;
}

const qwq_kernels qwq_avx512_kernels = {quantise, quantise_q4, q4_panel, quantise_q8, q8_panel};

#else
typedef int qwq_no_avx512; /* a file must hold something */
#endif
