/* Quantising weights and activations, AVX-512. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "common/kernels.h"
#include "x86/target.h"

TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma")

static void largest(float *largest, const float *x, size_t groups)
{
    const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
    for (size_t g = 0; g < groups; g++, x += GROUP) {
        __m512i most = _mm512_setzero_si512(); /* as integers, magnitudes are in the order of floats, NaN last */
        for (int i = 0; i < 4; i++)
            most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_loadu_si512(x + 16 * i), magnitude));
        largest[g] = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(most))));
    }
}

static int32_t quantise(int8_t *q, const float *x, float inverse)
{
    __m512i total = _mm512_setzero_si512();
    for (int i = 0; i < 4; i++) {
        __m512i n = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), _mm512_set1_ps(inverse)));
        total = _mm512_add_epi32(total, n);
        _mm_storeu_si128((__m128i *)(void *)(q + 16 * i), _mm512_cvtepi32_epi8(n));
    }
    return _mm512_reduce_add_epi32(total);
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

/* numerics.quant.lane_sum: four registers of lanes, then halves. */
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
    const __m512 levels =
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)QWQ_CODEBOOK)));
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
    return scale_q4(code, w, best_scale, sign, best);
}

static uint16_t quantise_q8(int8_t *q, const float *w)
{
    __m512 v[4], magnitude = _mm512_setzero_ps();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm512_loadu_ps(w + 16 * i);
        magnitude = _mm512_max_ps(magnitude, _mm512_abs_ps(v[i]));
    }
    uint16_t half = scale_q8(_mm512_reduce_max_ps(magnitude));
    float scale = half_to_float(half);
    __m512 inverse = _mm512_set1_ps(scale > 0 ? 1.0f / scale : 0);
    const __m512 most = _mm512_set1_ps(127), least = _mm512_set1_ps(-127);
    for (int i = 0; i < 4; i++) {
        __m512 cut = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(v[i], inverse), least), most);
        _mm_storeu_si128((__m128i *)(void *)(q + 16 * i), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(cut)));
    }
    return half;
}

TARGET_END

void qwq_avx512_quantise(qwq_matmul_kernels *k)
{
    k->largest = largest;
    k->quantise = quantise;
    k->quantise_q4 = quantise_q4;
    k->quantise_q8 = quantise_q8;
}

#else
typedef int qwq_no_avx512_quantise; /* a file must hold something */
#endif
