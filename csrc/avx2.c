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

/* Bytes of q8 go to 255, too far for a pair's sum in 16 bits. So |x| is multiplied with w that has taken x's sign: both
 * are at most 127 in magnitude. The sum then begins at 0, for w is read as signed. */
static inline __m256i dot_signed(__m256i sum, __m256i w, const int8_t *four)
{
    __m256i x = _mm256_set1_epi32(*(const int32_t *)(const void *)four);
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* Eight rows, from row 8 x quarter, and one token. */
static __m256 q8_eight(const uint8_t *w, qwq_tile tile, size_t t, size_t tokens, size_t groups, int quarter)
{
    const __m256i offset = _mm256_set1_epi8((char)0x80);
    __m256 y = _mm256_setzero_ps();
    for (size_t g = 0; g < groups; g++, w += Q8_BLOCK) {
        __m256i sum = _mm256_setzero_si256();
        const int8_t *q = tile.q + g * GROUP * tokens + t * 4;
        for (size_t l = 0; l < LINES; l++) {
            const uint8_t *line = w + (2 * l + (size_t)quarter / 2) * LINE + quarter % 2 * 32;
            __m256i signed_w = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(const void *)line), offset);
            sum = dot_signed(sum, signed_w, q + l * tokens * 4);
        }
        const __m128i *scales = (const __m128i *)(const void *)(w + 2 * LINES * LINE + 16 * quarter);
        __m256 both = _mm256_mul_ps(_mm256_set1_ps(tile.scale[g * tokens + t]), _mm256_cvtph_ps(_mm_loadu_si128(scales)));
        y = _mm256_add_ps(y, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), both));
    }
    return y;
}

static void q8_panel(float *y, size_t ldy, size_t rows, const uint8_t *panel, qwq_tile tile, size_t tokens,
                     size_t groups)
{
    for (size_t t = 0; t < tokens; t++) {
        float results[PANEL];
        for (int quarter = 0; quarter < 4; quarter++)
            _mm256_storeu_ps(results + 8 * quarter, q8_eight(panel, tile, t, tokens, groups, quarter));
        for (size_t r = 0; r < rows; r++)
            y[t * ldy + r] = results[r];
    }
}

const qwq_kernels qwq_avx2_kernels = {quantise, quantise_q4, q4_panel, quantise_q8, q8_panel};

#else
typedef int qwq_no_avx2; /* a file must hold something */
#endif
