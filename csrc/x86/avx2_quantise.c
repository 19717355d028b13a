/* Quantising weights and activations, AVX2. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "common/kernels.h"
#include "x86/target.h"

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

/* numerics.quant.lane_sum: lanes 0-7 and 8-15 in turn, then halves. */
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
    return scale_q4(code, w, best_scale, sign, best);
}

static uint16_t quantise_q8(int8_t *q, const float *w)
{
    float largest = 0;
    for (int k = 0; k < GROUP; k++)
        largest = __builtin_fabsf(w[k]) > largest ? __builtin_fabsf(w[k]) : largest;
    uint16_t half = scale_q8(largest);
    float scale = half_to_float(half);
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

TARGET_END

void qwq_avx2_quantise(qwq_matmul_kernels *k)
{
    k->largest = largest;
    k->quantise = quantise;
    k->quantise_q4 = quantise_q4;
    k->quantise_q8 = quantise_q8;
}

#else
typedef int qwq_no_avx2_quantise; /* a file must hold something */
#endif
