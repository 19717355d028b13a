/* AVX2: as avx512.c, with registers of eight rows and tiles of three tokens. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"
#include "target.h"

TARGET("avx2,f16c,fma")

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

static inline void bytes_times(float *to, const uint8_t *bytes, const float *d)
{
    for (int r = 0; r < PANEL; r += 8) {
        __m256i eight = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(bytes + r)));
        _mm256_storeu_ps(to + r, _mm256_mul_ps(_mm256_loadu_ps(d + r), _mm256_cvtepi32_ps(eight)));
    }
}

static inline void signed_bytes_times(float *to, const uint8_t *bytes, const float *d)
{
    for (int r = 0; r < PANEL; r += 8) {
        __m256i eight = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(bytes + r)));
        _mm256_storeu_ps(to + r, _mm256_mul_ps(_mm256_loadu_ps(d + r), _mm256_cvtepi32_ps(eight)));
    }
}

#define SIGNED_BYTES /* of q8, see DOTS_255 */
#include "unpack.h"

#define EACH_TOKEN(TOKENS) _Pragma("GCC unroll 3") for (size_t t = 0; t < TOKENS; t++)

/* Products of bytes are added in pairs to 16 bits, which saturate, and these then to 32. How much may be added in 16
 * bits before depends on the largest byte of w: beside |x| <= 127, four lines where it is 31, two where it is 63, one
 * where it is 127. Beyond that |x| is multiplied with w that has taken x's sign, both at most 127; sums then begin at
 * the excess that w has lost.
 *
 * The instructions are volatile, so that they stay in this order: GCC 12 would load broadcasts early, and run out of
 * registers. */
enum { LINES_31 = 4, LINES_63 = 2, LINES_127 = 1, LINES_255 = 1 };
#define FOUR_OF_X(x, q) __asm__ volatile("vpbroadcastd %1, %0" : "=x"(x) : "m"(*(const int32_t *)(const void *)(q)))
#define PAIRS(p, w, x) __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(p) : "x"(w), "x"(x))
#define ADD_PAIRS(p, more) __asm__ volatile("vpaddw %1, %0, %0" : "+x"(p) : "x"(more))
#define ADD_FOURS(sum, p, ones)                                                                                       \
    __asm__ volatile("vpmaddwd %2, %1, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "+x"(p) : "x"(ones))

/* TOKENS times a panel's four registers of rows. A broadcast of x takes an arithmetic unit, too: it serves all four. */
enum { ROWS = 4 };
#define EACH_ROW _Pragma("GCC unroll 4") for (size_t r = 0; r < ROWS; r++)
#define DOTS(MOST, TOKENS)                                                                                            \
    _Pragma("GCC unroll 4") for (size_t l = 0; l < each; l += LINES_##MOST) {                                         \
        __m256i pairs[TOKENS][ROWS], x[TOKENS], more;                                                                 \
        _Pragma("GCC unroll 4") for (size_t i = 0; i < LINES_##MOST; i++, code += 2 * LINE, q += 4 * tokens)          \
        {                                                                                                             \
            EACH_TOKEN(TOKENS) FOUR_OF_X(x[t], q + 4 * t);                                                            \
            EACH_ROW                                                                                                  \
            {                                                                                                         \
                const __m256i levels = load(code + 32 * r);                                                           \
                EACH_TOKEN(TOKENS)                                                                                    \
                {                                                                                                     \
                    if (i == 0) {                                                                                     \
                        PAIRS(pairs[t][r], levels, x[t]);                                                             \
                    } else {                                                                                          \
                        PAIRS(more, levels, x[t]);                                                                    \
                        ADD_PAIRS(pairs[t][r], more);                                                                 \
                    }                                                                                                 \
                    if (i == LINES_##MOST - 1)                                                                        \
                        ADD_FOURS(sum[t][r], pairs[t][r], ones);                                                      \
                }                                                                                                     \
            }                                                                                                         \
        }                                                                                                             \
    }
#define DOTS_31(TOKENS) DOTS(31, TOKENS)
#define DOTS_63(TOKENS) DOTS(63, TOKENS)
#define DOTS_127(TOKENS) DOTS(127, TOKENS)
#define DOTS_255(TOKENS)                                                                                              \
    for (size_t l = 0; l < each; l++, code += 2 * LINE, q += 4 * tokens) {                                            \
        __m256i x[TOKENS], magnitude[TOKENS], p;                                                                      \
        EACH_TOKEN(TOKENS)                                                                                            \
        {                                                                                                             \
            FOUR_OF_X(x[t], q + 4 * t);                                                                               \
            __asm__ volatile("vpabsb %1, %0" : "=x"(magnitude[t]) : "x"(x[t]));                                       \
        }                                                                                                             \
        EACH_ROW                                                                                                      \
        {                                                                                                             \
            const __m256i w8 = load(code + 32 * r); /* signed, as unpack.h leaves them here */                        \
            EACH_TOKEN(TOKENS)                                                                                        \
            {                                                                                                         \
                __asm__ volatile("vpsignb %2, %1, %0" : "=x"(p) : "x"(w8), "x"(x[t]));                                \
                PAIRS(p, magnitude[t], p);                                                                            \
                ADD_FOURS(sum[t][r], p, ones);                                                                        \
            }                                                                                                         \
        }                                                                                                             \
    }

/* y [PANEL] += sum * (scale * ratio) + offset * total. No ratio: the scales have it already. No offset: none. */
static inline void add_scaled(float *y, const __m256i *sum, const float *scale, const float *ratio, const float *offset,
                              const float *total)
{
    EACH_ROW
    {
        __m256 both = _mm256_loadu_ps(scale + 8 * r);
        if (ratio)
            both = _mm256_mul_ps(both, _mm256_set1_ps(*ratio));
        __m256 y8 = _mm256_add_ps(_mm256_loadu_ps(y + 8 * r), _mm256_mul_ps(_mm256_cvtepi32_ps(sum[r]), both));
        if (offset)
            y8 = _mm256_add_ps(y8, _mm256_mul_ps(_mm256_loadu_ps(offset + 8 * r), _mm256_set1_ps(*total)));
        _mm256_storeu_ps(y + 8 * r, y8);
    }
}

static void scale(qwq_wide *w, uint64_t used)
{
    for (; used; used &= used - 1) {
        int i = __builtin_ctzll(used);
        EACH_ROW _mm256_storeu_ps(w->scaled[i] + 8 * r, _mm256_mul_ps(_mm256_loadu_ps(w->scale[0] + 8 * r),
                                                                      _mm256_set1_ps(QWQ_RATIO[i])));
    }
}

#define WIDE_TILE(MOST, TOKENS)                                                                                       \
    static void wide_##MOST##_##TOKENS(float *y, const qwq_wide *w, const qwq_tile *tile, size_t t0, size_t tokens,   \
                                       size_t groups, const qwq_layout *layout)                                       \
    {                                                                                                                 \
        const int8_t *q = tile->q + 4 * t0;                                                                           \
        const __m256i ones = _mm256_set1_epi16(1);                                                                    \
        size_t each = LINES / layout->subgroups;                                                                      \
        y += t0 * PANEL;                                                                                              \
        for (size_t g = 0; g < groups; g++, w++) {                                                                    \
            const uint8_t *code = w->code[0][0];                                                                      \
            for (size_t s = 0; s < layout->subgroups; s++) {                                                          \
                size_t at = (g * layout->subgroups + s) * tokens + t0;                                                \
                __m256i sum[TOKENS][ROWS];                                                                            \
                EACH_TOKEN(TOKENS) EACH_ROW                                                                           \
                sum[t][r] = MOST == 255 ? _mm256_setzero_si256() : _mm256_set1_epi32(tile->begin[at + t]);            \
                DOTS_##MOST(TOKENS)                                                                                   \
                const float *offset = layout->offset ? w->offset[s] : NULL;                                           \
                EACH_TOKEN(TOKENS)                                                                                    \
                if (layout->subgroups == 1) { /* the products of both scales are read */                              \
                    size_t scaled = tile->scaled[g * tokens + t0 + t] / sizeof(float);                                \
                    add_scaled(y + t * PANEL, sum[t], w->scaled[0] + scaled, NULL, offset, tile->sum + at + t);       \
                } else {                                                                                              \
                    const float *ratio = tile->ratio + g * tokens + t0 + t;                                           \
                    add_scaled(y + t * PANEL, sum[t], w->scale[s], ratio, offset, tile->sum + at + t);                \
                }                                                                                                     \
            }                                                                                                         \
        }                                                                                                             \
    }

#define WIDE(MOST)                                                                                                    \
    WIDE_TILE(MOST, 1)                                                                                                \
    WIDE_TILE(MOST, 2)                                                                                                \
    static void wide_##MOST(float *y, const qwq_wide *w, const qwq_tile *tile, size_t tokens, size_t groups,          \
                            const qwq_layout *layout)                                                                 \
    {                                                                                                                 \
        size_t t = 0;                                                                                                 \
        for (; t + 2 <= tokens; t += 2)                                                                               \
            wide_##MOST##_2(y, w, tile, t, tokens, groups, layout);                                                   \
        if (t < tokens)                                                                                               \
            wide_##MOST##_1(y, w, tile, t, tokens, groups, layout);                                                   \
    }

WIDE(31)
WIDE(63)
WIDE(127)
WIDE(255)

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
                    __m256i x;                                                                                        \
                    FOUR_OF_X(x, q + (l * tokens + t) * 4);                                                           \
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

static void q4(float *y, const uint8_t *blocks, const qwq_tile *tile, size_t tokens, size_t groups,
               const qwq_format *format, const qwq_layout *layout)
{
    (void)format, (void)layout;
    for (int half = 0; half < 2; half++)
        for (size_t t = 0; t < tokens; t += 3)
            switch (tokens - t) {
            case 1: q4_1(y, blocks, tile, t, tokens, groups, half); break;
            case 2: q4_2(y, blocks, tile, t, tokens, groups, half); break;
            default: q4_3(y, blocks, tile, t, tokens, groups, half); break;
            }
}

/* Floats: a column of a panel is four registers. A group's products are summed first, then added to y. */
#define FLOATS_TILE(NAME, name, TOKENS)                                                                               \
    static void name##_##TOKENS(float *y, const uint8_t *w, const qwq_tile *tile, size_t t0, size_t tokens,           \
                                size_t groups)                                                                        \
    {                                                                                                                 \
        const float *x = tile->x + t0;                                                                                \
        y += t0 * PANEL;                                                                                              \
        for (size_t g = 0; g < groups; g++) {                                                                         \
            __m256 sum[TOKENS][ROWS];                                                                                 \
            EACH_TOKEN(TOKENS) EACH_ROW sum[t][r] = _mm256_setzero_ps();                                              \
            _Pragma("GCC unroll 4") for (size_t k = 0; k < GROUP; k++, x += tokens, w += NAME##_COLUMN) {             \
                __m256 one[TOKENS];                                                                                   \
                EACH_TOKEN(TOKENS) __asm__ volatile("vbroadcastss %1, %0" : "=x"(one[t]) : "m"(x[t]));                \
                EACH_ROW                                                                                              \
                {                                                                                                     \
                    const __m256 eight = NAME##_EIGHT(w + NAME##_COLUMN / ROWS * r);                                  \
                    EACH_TOKEN(TOKENS) sum[t][r] = _mm256_add_ps(sum[t][r], _mm256_mul_ps(one[t], eight));            \
                }                                                                                                     \
            }                                                                                                         \
            EACH_TOKEN(TOKENS) EACH_ROW                                                                               \
            {                                                                                                         \
                float *to = y + t * PANEL + 8 * r;                                                                    \
                _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sum[t][r]));                                  \
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
    static void name(float *y, const uint8_t *blocks, const qwq_tile *tile, size_t tokens, size_t groups,             \
                     const qwq_format *format, const qwq_layout *layout)                                              \
    {                                                                                                                 \
        (void)format, (void)layout;                                                                                   \
        size_t t = 0;                                                                                                 \
        for (; t + 2 <= tokens; t += 2)                                                                               \
            name##_2(y, blocks, tile, t, tokens, groups);                                                             \
        if (t < tokens)                                                                                               \
            name##_1(y, blocks, tile, t, tokens, groups);                                                             \
    }

FLOATS(BF16, bf16)
FLOATS(FP16, fp16)
FLOATS(FP32, fp32)

const qwq_kernels qwq_avx2_kernels = {largest, quantise, quantise_q4, quantise_q8, unpack, widen, scale, wide,
                                      {q4, NULL, NULL, NULL, NULL, bf16, fp16, fp32}, QWQ_AVX2};

TARGET_END

#else
typedef int qwq_no_avx2; /* a file must hold something */
#endif
