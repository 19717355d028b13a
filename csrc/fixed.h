/* The twin of spec/fixed.py for every variant: one exp, and sums of 16 lanes. Not math.h, which would hide C's own.
 * A variant includes this after its target pragma, and gets what its instructions allow. */
#ifndef QWQ_FIXED_H
#define QWQ_FIXED_H

#include <stdint.h>

#define EXP_5 0x1.10625p-7f
#define EXP_4 0x1.572A64p-5f
#define EXP_3 0x1.5557Bp-3f
#define EXP_2 0x1.FFFDFCp-2f
#define EXP_LEAST -87.0f
#define LOG2_E 0x1.715476p0f
#define LN2_HIGH 0x1.63p-1f
#define LN2_LOW -0x1.BD0106p-13f
#define ROUNDER 0x1.8p23f /* added, it leaves a rounded integer in the low bits; taken off again, that integer */

static inline float fixed_exp(float x)
{
    union { float f; uint32_t u; } n = {x * LOG2_E + ROUNDER}, y;
    if (x < EXP_LEAST)
        return 0;
    float whole = n.f - ROUNDER, r = (x - whole * LN2_HIGH) - whole * LN2_LOW;
    y.f = ((((EXP_5 * r + EXP_4) * r + EXP_3) * r + EXP_2) * r + 1) * r + 1;
    y.u += n.u << 23;
    return y.f;
}

/* 16 lanes, halved four times: j and j + 8, then j + 4, j + 2, j + 1. spec.quant.lane_sum. */
static inline float fixed_lanes(float *lanes)
{
    for (int half = 8; half >= 1; half /= 2)
        for (int j = 0; j < half; j++)
            lanes[j] = lanes[j] + lanes[j + half];
    return lanes[0];
}

#if defined(__AVX2__)
static inline __m256 fixed_exp_avx2(__m256 x)
{
    __m256 n = _mm256_add_ps(_mm256_mul_ps(x, _mm256_set1_ps(LOG2_E)), _mm256_set1_ps(ROUNDER));
    __m256 whole = _mm256_sub_ps(n, _mm256_set1_ps(ROUNDER));
    __m256 r = _mm256_sub_ps(_mm256_sub_ps(x, _mm256_mul_ps(whole, _mm256_set1_ps(LN2_HIGH))),
                             _mm256_mul_ps(whole, _mm256_set1_ps(LN2_LOW)));
    __m256 y = _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(EXP_5), r), _mm256_set1_ps(EXP_4));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(EXP_3));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(EXP_2));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(1));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(1));
    __m256i bits = _mm256_add_epi32(_mm256_castps_si256(y), _mm256_slli_epi32(_mm256_castps_si256(n), 23));
    return _mm256_and_ps(_mm256_castsi256_ps(bits), _mm256_cmp_ps(x, _mm256_set1_ps(EXP_LEAST), _CMP_GE_OQ));
}

static inline float fixed_lanes_avx2(__m256 low, __m256 high)
{
    __m256 eight = _mm256_add_ps(low, high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
#endif

#if defined(__AVX512F__)
static inline __m512 fixed_exp_avx512(__m512 x)
{
    __mmask16 within = _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP_LEAST), _CMP_GE_OQ);
    __m512 n = _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E)), _mm512_set1_ps(ROUNDER));
    __m512 whole = _mm512_sub_ps(n, _mm512_set1_ps(ROUNDER));
    __m512 r = _mm512_sub_ps(_mm512_sub_ps(x, _mm512_mul_ps(whole, _mm512_set1_ps(LN2_HIGH))),
                             _mm512_mul_ps(whole, _mm512_set1_ps(LN2_LOW)));
    __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(EXP_5), r), _mm512_set1_ps(EXP_4));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(EXP_3));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(EXP_2));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(1));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(1));
    return _mm512_castsi512_ps(_mm512_maskz_add_epi32(within, _mm512_castps_si512(y),
                                                      _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
}

static inline float fixed_lanes_avx512(__m512 lanes)
{
    return fixed_lanes_avx2(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
}
#endif

#endif
