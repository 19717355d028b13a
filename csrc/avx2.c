/* AVX2: as avx512.c, with registers of eight rows and tiles of three tokens. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#pragma GCC target("avx2,f16c,fma")

static void largest(float *largest, const float *x, size_t groups)
{
    const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
    for (size_t g = 0; g < groups; g++, x += GROUP) {
        __m256i most = _mm256_setzero_si256(); /* as integers, magnitudes are in the order of floats, NaN last */
        for (int i = 0; i < 8; i++)
            most = _mm256_max_epi32(most, _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + 8 * i)), magnitude));
        __m128i four = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xB1));
        largest[g] = _mm_cvtss_f32(_mm_castsi128_ps(four));
    }
}

static int32_t quantise(int8_t *q, const float *x, float inverse)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7); /* undoes what packing does to halves */
    __m256i n[8], total = _mm256_setzero_si256();
    for (int i = 0; i < 8; i++) {
        n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse)));
        total = _mm256_add_epi32(total, n[i]);
    }
    for (int i = 0; i < 2; i++) {
        __m256i a = _mm256_packs_epi32(n[4 * i], n[4 * i + 1]), b = _mm256_packs_epi32(n[4 * i + 2], n[4 * i + 3]);
        __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order);
        _mm256_storeu_si256((__m256i *)(void *)(q + 32 * i), bytes);
    }
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}

/* How many of the middles each value is above. A table of sixteen takes two registers and a choice. */
static inline __m256i nearest(__m256 value)
{
    const __m256 low = _mm256_loadu_ps(QWQ_MIDDLES), high = _mm256_loadu_ps(QWQ_MIDDLES + 8);
    __m256 upper = _mm256_cmp_ps(value, _mm256_set1_ps(QWQ_MIDDLES[7]), _CMP_GT_OQ);
    __m256i n = _mm256_and_si256(_mm256_castps_si256(upper), _mm256_set1_epi32(8));
    for (int step = 4; step >= 1; step /= 2) {
        __m256i at = _mm256_add_epi32(n, _mm256_set1_epi32(step - 1));
        __m256 middle = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, at), _mm256_permutevar8x32_ps(high, at), upper);
        __m256i above = _mm256_castps_si256(_mm256_cmp_ps(value, middle, _CMP_GT_OQ));
        n = _mm256_add_epi32(n, _mm256_and_si256(above, _mm256_set1_epi32(step)));
    }
    return n;
}

static inline __m256 level_of(__m256i n, __m256 low, __m256 high)
{
    __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(n, 28)); /* bit 3 becomes the sign */
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, n), _mm256_permutevar8x32_ps(high, n), upper);
}

/* spec.quant.lane_sum: lanes 0-7 and 8-15 in turn, then halves. */
static inline float lane_sum(const __m256 *x)
{
    __m256 low = _mm256_add_ps(_mm256_add_ps(_mm256_add_ps(x[0], x[2]), x[4]), x[6]);
    __m256 high = _mm256_add_ps(_mm256_add_ps(_mm256_add_ps(x[1], x[3]), x[5]), x[7]);
    __m256 eight = _mm256_add_ps(low, high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

static uint16_t quantise_q4(uint8_t *code, const float *w)
{
    float table[16];
    for (int i = 0; i < 16; i++)
        table[i] = QWQ_CODEBOOK[i];
    const __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);
    float largest = 0, sign = 1;
    for (int k = 0; k < GROUP; k++)
        if (__builtin_fabsf(w[k]) > largest) { /* the first of the largest gives the sign */
            largest = __builtin_fabsf(w[k]);
            sign = w[k] < 0 ? -1.0f : 1.0f;
        }
    __m256 v[8], products[8], squares[8];
    for (int i = 0; i < 8; i++)
        v[i] = _mm256_mul_ps(_mm256_loadu_ps(w + 8 * i), _mm256_set1_ps(sign));
    float best = __builtin_inff();
    uint16_t best_scale = 0;
    for (int start = 0; start < STARTS; start++) {
        float scale = largest * QWQ_STARTS[start] > QWQ_SMALLEST ? largest * QWQ_STARTS[start] : QWQ_SMALLEST;
        for (int round = 0; round < ROUNDS; round++) {
            __m256 inverse = _mm256_set1_ps(1.0f / scale);
            for (int i = 0; i < 8; i++) {
                __m256 level = level_of(nearest(_mm256_mul_ps(v[i], inverse)), low, high);
                products[i] = _mm256_mul_ps(v[i], level);
                squares[i] = _mm256_mul_ps(level, level);
            }
            scale = lane_sum(products) / lane_sum(squares);
            scale = scale > QWQ_SMALLEST ? scale : QWQ_SMALLEST;
            scale = scale < QWQ_LARGEST ? scale : QWQ_LARGEST;
        }
        uint16_t half = largest > 0 ? float_to_half(scale) : 0;
        scale = half_to_float(half);
        __m256 inverse = _mm256_set1_ps(scale > 0 ? 1.0f / scale : 0);
        int32_t codes[GROUP];
        for (int i = 0; i < 8; i++) {
            __m256i n = nearest(_mm256_mul_ps(v[i], inverse));
            _mm256_storeu_si256((__m256i *)(void *)(codes + 8 * i), n);
            __m256 rest = _mm256_sub_ps(v[i], _mm256_mul_ps(_mm256_set1_ps(scale), level_of(n, low, high)));
            squares[i] = _mm256_mul_ps(rest, rest);
        }
        float error = lane_sum(squares);
        if (start == 0 || error < best) {
            best = error;
            best_scale = half;
            for (int k = 0; k < GROUP; k++)
                code[k] = (uint8_t)codes[k];
        }
    }
    return (uint16_t)(best_scale | (sign < 0 ? 0x8000u : 0));
}

static uint16_t quantise_q8(int8_t *q, const float *w)
{
    float largest = 0;
    for (int k = 0; k < GROUP; k++)
        largest = __builtin_fabsf(w[k]) > largest ? __builtin_fabsf(w[k]) : largest;
    float scale = largest * (1.0f / 127.0f);
    uint16_t half = float_to_half(scale < QWQ_LARGEST ? scale : QWQ_LARGEST);
    scale = half_to_float(half);
    __m256 inverse = _mm256_set1_ps(scale > 0 ? 1.0f / scale : 0);
    const __m256 most = _mm256_set1_ps(127), least = _mm256_set1_ps(-127);
    for (int i = 0; i < 8; i++) {
        __m256 cut = _mm256_min_ps(_mm256_max_ps(_mm256_mul_ps(_mm256_loadu_ps(w + 8 * i), inverse), least), most);
        int32_t eight[8];
        _mm256_storeu_si256((__m256i *)(void *)eight, _mm256_cvtps_epi32(cut));
        for (int k = 0; k < 8; k++)
            q[8 * i + k] = (int8_t)eight[k];
    }
    return half;
}

static inline __m256i load(const void *from)
{
    return _mm256_loadu_si256((const __m256i *)from);
}

static inline void q4_line(uint8_t *first, uint8_t *second, const uint8_t *line)
{
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i levels = _mm256_add_epi8(
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)QWQ_CODEBOOK)),
        _mm256_set1_epi8(Q4_EXCESS));
    for (int b = 0; b < LINE; b += 32) {
        __m256i codes = load(line + b), high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), low);
        _mm256_storeu_si256((__m256i *)(void *)(first + b), _mm256_shuffle_epi8(levels, _mm256_and_si256(codes, low)));
        _mm256_storeu_si256((__m256i *)(void *)(second + b), _mm256_shuffle_epi8(levels, high));
    }
}

static inline __m256 eight_halves(const uint8_t *from)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)from));
}

static inline void halves(float *to, const uint8_t *from)
{
    for (int r = 0; r < PANEL; r += 8)
        _mm256_storeu_ps(to + r, eight_halves(from + 2 * r));
}

#include "unpack.h"

#define EACH_TOKEN(TOKENS) _Pragma("GCC unroll 6") for (size_t t = 0; t < TOKENS; t++)

static inline __m256i four_of_x(const int8_t *q)
{
    return _mm256_set1_epi32(*(const int32_t *)(const void *)q);
}

/* Products of bytes are added in pairs to 16 bits, which saturate, and these then to 32. How much may be added in 16
 * bits before depends on the largest byte of w: beside |x| <= 127, four lines where it is 31, two where it is 63, one
 * where it is 127. Beyond that |x| is multiplied with w that has taken x's sign, both at most 127; sums then begin at
 * the excess that w has lost. */
#define PRODUCTS_31(w, x) _mm256_maddubs_epi16(w, x)
#define PRODUCTS_63(w, x) _mm256_maddubs_epi16(w, x)
#define PRODUCTS_127(w, x) _mm256_maddubs_epi16(w, x)
#define PRODUCTS_255(w, x) _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x))
enum { LINES_31 = 4, LINES_63 = 2, LINES_127 = 1, LINES_255 = 1 };
#define BYTES_31(w) load(w)
#define BYTES_63(w) load(w)
#define BYTES_127(w) load(w)
#define BYTES_255(w) _mm256_xor_si256(load(w), _mm256_set1_epi8((char)0x80))

/* Rows from `row`, 8 x REGISTERS of them, in tokens t0 to t0 + TOKENS - 1 of the tile. */
#define EACH_REGISTER(REGISTERS) _Pragma("GCC unroll 2") for (size_t i = 0; i < REGISTERS; i++)
#define WIDE_TILE(MOST, REGISTERS, TOKENS)                                                                            \
    static void wide_##MOST##_##TOKENS(float *y, const qwq_wide *w, const qwq_tile *tile, size_t t0, size_t tokens,   \
                                       size_t groups, const qwq_layout *layout, size_t row)                           \
    {                                                                                                                 \
        const int8_t *q = tile->q + 4 * t0;                                                                           \
        size_t each = LINES / layout->subgroups;                                                                      \
        y += t0 * PANEL + row;                                                                                        \
        for (size_t g = 0; g < groups; g++, w++)                                                                      \
            for (size_t s = 0; s < layout->subgroups; s++) {                                                          \
                size_t at = (g * layout->subgroups + s) * tokens + t0;                                                \
                __m256i sum[TOKENS][REGISTERS];                                                                       \
                EACH_TOKEN(TOKENS) EACH_REGISTER(REGISTERS)                                                           \
                sum[t][i] = MOST == 255 ? _mm256_setzero_si256() : _mm256_set1_epi32(tile->begin[at + t]);            \
                const uint8_t *code = w->code[s * each][row / 16] + row % 16 * 4;                                     \
                for (size_t l = 0; l < each; l += LINES_##MOST) {                                                     \
                    __m256i pairs[TOKENS][REGISTERS];                                                                 \
                    _Pragma("GCC unroll 4") for (size_t j = 0; j < LINES_##MOST; j++, code += 2 * LINE)               \
                    {                                                                                                 \
                        __m256i levels[REGISTERS];                                                                    \
                        EACH_REGISTER(REGISTERS) levels[i] = BYTES_##MOST(code + LINE / 2 * i);                       \
                        EACH_TOKEN(TOKENS)                                                                            \
                        {                                                                                             \
                            __m256i x = four_of_x(q + 4 * t);                                                         \
                            EACH_REGISTER(REGISTERS)                                                                  \
                            {                                                                                         \
                                __m256i p = PRODUCTS_##MOST(levels[i], x);                                            \
                                pairs[t][i] = j == 0 ? p : _mm256_add_epi16(pairs[t][i], p);                          \
                            }                                                                                         \
                        }                                                                                             \
                        q += 4 * tokens;                                                                              \
                    }                                                                                                 \
                    EACH_TOKEN(TOKENS) EACH_REGISTER(REGISTERS)                                                       \
                    sum[t][i] = _mm256_add_epi32(sum[t][i], _mm256_madd_epi16(pairs[t][i], _mm256_set1_epi16(1)));    \
                }                                                                                                     \
                EACH_TOKEN(TOKENS)                                                                                    \
                {                                                                                                     \
                    const __m256 x = _mm256_set1_ps(tile->ratio[g * tokens + t0 + t]);                                \
                    EACH_REGISTER(REGISTERS)                                                                          \
                    {                                                                                                 \
                        float *to = y + t * PANEL + 8 * i;                                                            \
                        __m256 both = _mm256_mul_ps(x, _mm256_loadu_ps(w->scale[s] + row + 8 * i));                   \
                        __m256 y8 = _mm256_add_ps(_mm256_loadu_ps(to),                                                \
                                                  _mm256_mul_ps(_mm256_cvtepi32_ps(sum[t][i]), both));                \
                        if (layout->offset)                                                                           \
                            y8 = _mm256_add_ps(y8, _mm256_mul_ps(_mm256_loadu_ps(w->offset[s] + row + 8 * i),         \
                                                                 _mm256_set1_ps(tile->sum[at + t])));                 \
                        _mm256_storeu_ps(to, y8);                                                                     \
                    }                                                                                                 \
                }                                                                                                     \
            }                                                                                                         \
    }

/* Tiles of up to TOKENS; the last takes what is left. */
#define WIDE(MOST, REGISTERS, TOKENS, ...)                                                                            \
    static void wide_##MOST(float *y, const qwq_wide *w, const qwq_tile *tile, size_t tokens, size_t groups,          \
                            const qwq_layout *layout)                                                                 \
    {                                                                                                                 \
        static void (*const tiles[TOKENS])(float *, const qwq_wide *, const qwq_tile *, size_t, size_t, size_t,       \
                                           const qwq_layout *, size_t) = {__VA_ARGS__};                               \
        for (size_t row = 0; row < PANEL; row += 8 * REGISTERS)                                                       \
            for (size_t t = 0; t < tokens; t += TOKENS)                                                               \
                tiles[(tokens - t < TOKENS ? tokens - t : TOKENS) - 1](y, w, tile, t, tokens, groups, layout, row);   \
    }
#define WIDE_OF_SIX(MOST)                                                                                             \
    WIDE_TILE(MOST, 1, 1)                                                                                             \
    WIDE_TILE(MOST, 1, 2)                                                                                             \
    WIDE_TILE(MOST, 1, 3)                                                                                             \
    WIDE_TILE(MOST, 1, 4)                                                                                             \
    WIDE_TILE(MOST, 1, 5)                                                                                             \
    WIDE_TILE(MOST, 1, 6)                                                                                             \
    WIDE(MOST, 1, 6, wide_##MOST##_1, wide_##MOST##_2, wide_##MOST##_3, wide_##MOST##_4, wide_##MOST##_5,             \
         wide_##MOST##_6)

WIDE_OF_SIX(31)
WIDE_OF_SIX(63)
WIDE_OF_SIX(127)
WIDE_TILE(255, 2, 1)
WIDE_TILE(255, 2, 2)
WIDE_TILE(255, 2, 3)
WIDE(255, 2, 3, wide_255_1, wide_255_2, wide_255_3)

static void wide(float *y, const qwq_wide *w, const qwq_tile *tile, size_t tokens, size_t groups,
                 const qwq_layout *layout)
{
    if (layout->most <= 31)
        wide_31(y, w, tile, tokens, groups, layout);
    else if (layout->most <= 63)
        wide_63(y, w, tile, tokens, groups, layout);
    else if (layout->most <= 127)
        wide_127(y, w, tile, tokens, groups, layout);
    else
        wide_255(y, w, tile, tokens, groups, layout);
}

/* q4 straight from its blocks, where memory is what is waited for. A panel is taken in two halves, of rows 0-7 with
 * 16-23 and of rows 8-15 with 24-31. */
#define Q4_TILE(TOKENS)                                                                                               \
    static void q4_##TOKENS(float *y, const uint8_t *w, const qwq_tile *tile, size_t t0, size_t tokens,               \
                            size_t groups, int half)                                                                  \
    {                                                                                                                 \
        const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);                                        \
        const __m256i levels = _mm256_add_epi8(                                                                       \
            _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)QWQ_CODEBOOK)),                \
            _mm256_set1_epi8(Q4_EXCESS));                                                                             \
        const int8_t *q = tile->q + t0 * 4;                                                                           \
        y += t0 * PANEL + 8 * (size_t)half;                                                                           \
        for (size_t g = 0; g < groups; g++, w += Q4_BLOCK, q += GROUP * tokens) {                                     \
            __m256i s0[TOKENS], s1[TOKENS];                                                                           \
            EACH_TOKEN(TOKENS) s0[t] = s1[t] = _mm256_set1_epi32(tile->begin[g * tokens + t0 + t]);                   \
            _Pragma("GCC unroll 2") for (size_t l = 0; l < LINES; l++) {                                              \
                __m256i codes = load(w + l * LINE + 32 * half);                                                       \
                __m256i first = _mm256_shuffle_epi8(levels, _mm256_and_si256(codes, low));                            \
                __m256i second = _mm256_shuffle_epi8(levels, _mm256_and_si256(_mm256_srli_epi16(codes, 4), low));     \
                EACH_TOKEN(TOKENS)                                                                                    \
                {                                                                                                     \
                    __m256i x = four_of_x(q + (l * tokens + t) * 4);                                                  \
                    s0[t] = _mm256_add_epi32(s0[t], _mm256_madd_epi16(_mm256_maddubs_epi16(first, x), ones));         \
                    s1[t] = _mm256_add_epi32(s1[t], _mm256_madd_epi16(_mm256_maddubs_epi16(second, x), ones));        \
                }                                                                                                     \
            }                                                                                                         \
            const uint8_t *scales = w + NIBBLES + 16 * half;                                                          \
            const __m256 w0 = eight_halves(scales), w1 = eight_halves(scales + 32);                                   \
            EACH_TOKEN(TOKENS)                                                                                        \
            {                                                                                                         \
                __m256 x = _mm256_set1_ps(tile->ratio[g * tokens + t0 + t]);                                          \
                float *to = y + t * PANEL;                                                                            \
                __m256 y0 = _mm256_mul_ps(_mm256_cvtepi32_ps(s0[t]), _mm256_mul_ps(x, w0));                           \
                __m256 y1 = _mm256_mul_ps(_mm256_cvtepi32_ps(s1[t]), _mm256_mul_ps(x, w1));                           \
                _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), y0));                                         \
                _mm256_storeu_ps(to + 16, _mm256_add_ps(_mm256_loadu_ps(to + 16), y1));                               \
            }                                                                                                         \
        }                                                                                                             \
    }

Q4_TILE(1)
Q4_TILE(2)
Q4_TILE(3)

static void q4(float *y, const uint8_t *blocks, const qwq_tile *tile, size_t tokens, size_t groups)
{
    for (int half = 0; half < 2; half++)
        for (size_t t = 0; t < tokens; t += 3)
            switch (tokens - t) {
            case 1: q4_1(y, blocks, tile, t, tokens, groups, half); break;
            case 2: q4_2(y, blocks, tile, t, tokens, groups, half); break;
            default: q4_3(y, blocks, tile, t, tokens, groups, half); break;
            }
}

/* Floats: 16 rows of a panel are two registers. A group's products are summed first, then added to y. */
#define FLOATS_TILE(NAME, name, TOKENS)                                                                               \
    static void name##_##TOKENS(float *y, const uint8_t *w, const qwq_tile *tile, size_t t0, size_t tokens,           \
                                size_t groups, int half)                                                              \
    {                                                                                                                 \
        const float *x = tile->x + t0;                                                                                \
        w += half * NAME##_COLUMN / 2;                                                                                \
        y += t0 * PANEL + 16 * (size_t)half;                                                                          \
        for (size_t g = 0; g < groups; g++) {                                                                         \
            __m256 s0[TOKENS], s1[TOKENS];                                                                            \
            EACH_TOKEN(TOKENS) s0[t] = s1[t] = _mm256_setzero_ps();                                                   \
            _Pragma("GCC unroll 4") for (size_t k = 0; k < GROUP; k++, x += tokens, w += NAME##_COLUMN) {             \
                const __m256 w0 = NAME##_EIGHT(w), w1 = NAME##_EIGHT(w + NAME##_COLUMN / 4);                          \
                EACH_TOKEN(TOKENS)                                                                                    \
                {                                                                                                     \
                    __m256 one = _mm256_set1_ps(x[t]);                                                                \
                    s0[t] = _mm256_add_ps(s0[t], _mm256_mul_ps(one, w0));                                             \
                    s1[t] = _mm256_add_ps(s1[t], _mm256_mul_ps(one, w1));                                             \
                }                                                                                                     \
            }                                                                                                         \
            EACH_TOKEN(TOKENS)                                                                                        \
            {                                                                                                         \
                float *to = y + t * PANEL;                                                                            \
                _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), s0[t]));                                      \
                _mm256_storeu_ps(to + 8, _mm256_add_ps(_mm256_loadu_ps(to + 8), s1[t]));                              \
            }                                                                                                         \
        }                                                                                                             \
    }

enum { FP32_COLUMN = PANEL * 4, BF16_COLUMN = PANEL * 2, FP16_COLUMN = PANEL * 2 };
#define FP32_EIGHT(w) _mm256_loadu_ps((const float *)(const void *)(w))
#define FP16_EIGHT(w) eight_halves(w)
#define BF16_EIGHT(w)                                                                                                 \
    _mm256_castsi256_ps(                                                                                              \
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(w))), 16))

#define FLOATS(NAME, name)                                                                                            \
    FLOATS_TILE(NAME, name, 1)                                                                                        \
    FLOATS_TILE(NAME, name, 2)                                                                                        \
    FLOATS_TILE(NAME, name, 3)                                                                                        \
    static void name(float *y, const uint8_t *blocks, const qwq_tile *tile, size_t tokens, size_t groups)             \
    {                                                                                                                 \
        for (int half = 0; half < 2; half++)                                                                          \
            for (size_t t = 0; t < tokens; t += 3)                                                                    \
                switch (tokens - t) {                                                                                 \
                case 1: name##_1(y, blocks, tile, t, tokens, groups, half); break;                                    \
                case 2: name##_2(y, blocks, tile, t, tokens, groups, half); break;                                    \
                default: name##_3(y, blocks, tile, t, tokens, groups, half); break;                                   \
                }                                                                                                     \
    }

FLOATS(BF16, bf16)
FLOATS(FP16, fp16)
FLOATS(FP32, fp32)

const qwq_kernels qwq_avx2_kernels = {largest, quantise, quantise_q4, quantise_q8, unpack, NULL, wide,
                                      {q4, NULL, NULL, NULL, NULL, bf16, fp16, fp32}};

#else
typedef int qwq_no_avx2; /* a file must hold something */
#endif
