/* The twin of spec/fixed.py for every variant: exp and exp2, and sums of 16 lanes. Not math.h: that would hide C's own.
 * A variant includes this after its target pragma, and gets what its instructions allow. */
#ifndef QWQ_FIXED_H
#define QWQ_FIXED_H

#include <stdint.h>

#define POWER_5 0x1.5bb9b6p-10f
#define POWER_4 0x1.3ceae2p-7f
#define POWER_3 0x1.c6b756p-5f
#define POWER_2 0x1.ebf9bap-3f
#define POWER_1 0x1.62e42ap-1f
#define LOG2_E 0x1.715476p0f
#define LN2_HIGH 0x1.63p-1f
#define LN2_LOW -0x1.BD0106p-13f
#define LEAST_POWER -126.0f
#define LEAST_EXP -87.0f
#define ROUNDER 0x1.8p23f /* added, it leaves a rounded integer in the low bits; taken off again, that integer */

/* 2^(n + r), n as its bits are after ROUNDER was added. */
static inline float fixed_power(float n, float r)
{
    union { float f; uint32_t u; } whole = {n}, y = {((((POWER_5 * r + POWER_4) * r + POWER_3) * r + POWER_2) * r
                                                      + POWER_1) * r + 1};
    y.u += whole.u << 23;
    return y.f;
}

static inline float fixed_exp2(float x)
{
    float n = x + ROUNDER;
    return x < LEAST_POWER ? 0 : fixed_power(n, x - (n - ROUNDER));
}

static inline float fixed_exp(float x)
{
    float n = x * LOG2_E + ROUNDER, whole = n - ROUNDER;
    return x < LEAST_EXP ? 0 : fixed_power(n, ((x - whole * LN2_HIGH) - whole * LN2_LOW) * LOG2_E);
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
static inline __m256i fixed_power_avx2(__m256 n, __m256 r)
{
    __m256 y = _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(POWER_5), r), _mm256_set1_ps(POWER_4));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(POWER_3));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(POWER_2));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(POWER_1));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(1));
    return _mm256_add_epi32(_mm256_castps_si256(y), _mm256_slli_epi32(_mm256_castps_si256(n), 23));
}

static inline __m256 fixed_exp2_avx2(__m256 x)
{
    __m256 n = _mm256_add_ps(x, _mm256_set1_ps(ROUNDER));
    __m256i y = fixed_power_avx2(n, _mm256_sub_ps(x, _mm256_sub_ps(n, _mm256_set1_ps(ROUNDER))));
    return _mm256_and_ps(_mm256_castsi256_ps(y), _mm256_cmp_ps(x, _mm256_set1_ps(LEAST_POWER), _CMP_GE_OQ));
}

static inline __m256 fixed_exp_avx2(__m256 x)
{
    __m256 n = _mm256_add_ps(_mm256_mul_ps(x, _mm256_set1_ps(LOG2_E)), _mm256_set1_ps(ROUNDER));
    __m256 whole = _mm256_sub_ps(n, _mm256_set1_ps(ROUNDER));
    __m256 r = _mm256_sub_ps(_mm256_sub_ps(x, _mm256_mul_ps(whole, _mm256_set1_ps(LN2_HIGH))),
                             _mm256_mul_ps(whole, _mm256_set1_ps(LN2_LOW)));
    __m256i y = fixed_power_avx2(n, _mm256_mul_ps(r, _mm256_set1_ps(LOG2_E)));
    return _mm256_and_ps(_mm256_castsi256_ps(y), _mm256_cmp_ps(x, _mm256_set1_ps(LEAST_EXP), _CMP_GE_OQ));
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
static inline __m512i fixed_power_avx512(__m512 n, __m512 r)
{
    __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(POWER_5), r), _mm512_set1_ps(POWER_4));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(POWER_3));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(POWER_2));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(POWER_1));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(1));
    return _mm512_add_epi32(_mm512_castps_si512(y), _mm512_slli_epi32(_mm512_castps_si512(n), 23));
}

static inline __m512 fixed_exp2_avx512(__m512 x)
{
    __m512 n = _mm512_add_ps(x, _mm512_set1_ps(ROUNDER));
    __m512i y = fixed_power_avx512(n, _mm512_sub_ps(x, _mm512_sub_ps(n, _mm512_set1_ps(ROUNDER))));
    __mmask16 within = _mm512_cmp_ps_mask(x, _mm512_set1_ps(LEAST_POWER), _CMP_GE_OQ);
    return _mm512_castsi512_ps(_mm512_maskz_mov_epi32(within, y));
}

static inline __m512 fixed_exp_avx512(__m512 x)
{
    __m512 n = _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E)), _mm512_set1_ps(ROUNDER));
    __m512 whole = _mm512_sub_ps(n, _mm512_set1_ps(ROUNDER));
    __m512 r = _mm512_sub_ps(_mm512_sub_ps(x, _mm512_mul_ps(whole, _mm512_set1_ps(LN2_HIGH))),
                             _mm512_mul_ps(whole, _mm512_set1_ps(LN2_LOW)));
    __m512i y = fixed_power_avx512(n, _mm512_mul_ps(r, _mm512_set1_ps(LOG2_E)));
    __mmask16 within = _mm512_cmp_ps_mask(x, _mm512_set1_ps(LEAST_EXP), _CMP_GE_OQ);
    return _mm512_castsi512_ps(_mm512_maskz_mov_epi32(within, y));
}

static inline float fixed_lanes_avx512(__m512 lanes)
{
    return fixed_lanes_avx2(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
}
#endif

#endif
