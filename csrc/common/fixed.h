/* exp and exp2, and sums of 16 lanes, one definition for every variant: numerics/fixed.py says it in NumPy, and all
 * forms here give its bits.
 *
 * Not called math.h, which would hide the system's. No fma: products and sums are rounded one by one.
 */
#ifndef QWQ_FIXED_H
#define QWQ_FIXED_H

#include <stdint.h>

#define EXP_LOWEST (-0x1.5d589ep+6f) /* below it, e^x is less than the smallest normal number: 0 */
#define EXP_HIGHEST 0x1.62e42ep+6f   /* above it, more than the largest: +inf */
#define EXP_LOG2E 0x1.715476p+0f
#define EXP_LN2_HIGH 0x1.62e4p-1f /* 15 bits, so that n times it is exact */
#define EXP_LN2_LOW 0x1.7f7d1cp-20f
#define EXP_ROUND 0x1.8p23f /* adding it rounds to even, and leaves the integer in the low bits */
/* e^r for |r| <= ln 2 / 2, within 2^-28: 1 + r + C2 r^2 + ... */
#define EXP_C6 0x1.6a4d6p-10f
#define EXP_C5 0x1.12398ep-7f
#define EXP_C4 0x1.5558bp-5f
#define EXP_C3 0x1.555492p-3f
#define EXP_C2 0x1.fffffcp-2f

static inline float exp_1(float x)
{
    if (!(x >= EXP_LOWEST)) /* a NaN stays the NaN it is */
        return x < EXP_LOWEST ? 0 : x;
    if (x > EXP_HIGHEST)
        return __builtin_inff();
    union {
        float f;
        uint32_t u;
    } n = {x * EXP_LOG2E + EXP_ROUND}, y;
    float whole = n.f - EXP_ROUND;
    float r = (x - whole * EXP_LN2_HIGH) - whole * EXP_LN2_LOW;
    y.f = EXP_C6 * r + EXP_C5;
    y.f = y.f * r + EXP_C4;
    y.f = y.f * r + EXP_C3;
    y.f = y.f * r + EXP_C2;
    y.f = y.f * r + 1.0f;
    y.f = y.f * r + 1.0f;
    y.u += n.u << 23; /* times 2^n: the exponent's bits; those of EXP_ROUND are shifted out */
    return y.f;
}

/* 2^r for |r| <= 1/2, of degree 5. */
#define POWER_5 0x1.5bb9b6p-10f
#define POWER_4 0x1.3ceae2p-7f
#define POWER_3 0x1.c6b756p-5f
#define POWER_2 0x1.ebf9bap-3f
#define POWER_1 0x1.62e42ap-1f
#define LEAST_POWER -126.0f

/* 2^x for x below 127.5; 0 where that is less than the smallest normal number. */
static inline float fixed_exp2(float x)
{
    if (x < LEAST_POWER)
        return 0;
    union {
        float f;
        uint32_t u;
    } n = {x + EXP_ROUND}, y;
    float r = x - (n.f - EXP_ROUND);
    y.f = ((((POWER_5 * r + POWER_4) * r + POWER_3) * r + POWER_2) * r + POWER_1) * r + 1;
    y.u += n.u << 23;
    return y.f;
}

/* 16 lanes, halved four times: j and j + 8, then j + 4, j + 2, j + 1. numerics.fixed.lane_sum. */
static inline float fixed_lanes(float *lanes)
{
    for (int half = 8; half >= 1; half /= 2)
        for (int j = 0; j < half; j++)
            lanes[j] = lanes[j] + lanes[j + half];
    return lanes[0];
}

/* RMSNorm's factor, from the root of the mean square. NaN if float32 cannot hold the mean square: 1 / infinity would turn
 * the row into zeros, and so into logits that look like numbers. */
static inline float fixed_inverse(float root)
{
    return root < __builtin_inff() ? 1.0f / root : __builtin_nanf("");
}

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("avx2"))) static inline __m256 exp_8(__m256 x)
{
    const __m256 round = _mm256_set1_ps(EXP_ROUND), one = _mm256_set1_ps(1.0f);
    __m256 n = _mm256_add_ps(_mm256_mul_ps(x, _mm256_set1_ps(EXP_LOG2E)), round);
    __m256 whole = _mm256_sub_ps(n, round);
    __m256 r = _mm256_sub_ps(_mm256_sub_ps(x, _mm256_mul_ps(whole, _mm256_set1_ps(EXP_LN2_HIGH))),
                             _mm256_mul_ps(whole, _mm256_set1_ps(EXP_LN2_LOW)));
    __m256 y = _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(EXP_C6), r), _mm256_set1_ps(EXP_C5));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(EXP_C4));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(EXP_C3));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(EXP_C2));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), one);
    y = _mm256_add_ps(_mm256_mul_ps(y, r), one);
    __m256i power = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
    y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), power));
    y = _mm256_blendv_ps(y, _mm256_set1_ps(__builtin_inff()),
                         _mm256_cmp_ps(x, _mm256_set1_ps(EXP_HIGHEST), _CMP_GT_OQ));
    y = _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(EXP_LOWEST), _CMP_LT_OQ), y);
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}

__attribute__((target("avx512f"))) static inline __m512 exp_16(__m512 x)
{
    const __m512 round = _mm512_set1_ps(EXP_ROUND), one = _mm512_set1_ps(1.0f);
    __m512 n = _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(EXP_LOG2E)), round);
    __m512 whole = _mm512_sub_ps(n, round);
    __m512 r = _mm512_sub_ps(_mm512_sub_ps(x, _mm512_mul_ps(whole, _mm512_set1_ps(EXP_LN2_HIGH))),
                             _mm512_mul_ps(whole, _mm512_set1_ps(EXP_LN2_LOW)));
    __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(EXP_C6), r), _mm512_set1_ps(EXP_C5));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(EXP_C4));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(EXP_C3));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(EXP_C2));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), one);
    y = _mm512_add_ps(_mm512_mul_ps(y, r), one);
    __m512i power = _mm512_slli_epi32(_mm512_castps_si512(n), 23);
    y = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y), power));
    y = _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP_HIGHEST), _CMP_GT_OQ),
                           _mm512_set1_ps(__builtin_inff()));
    y = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(EXP_LOWEST), _CMP_NLT_UQ), y);
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

__attribute__((target("avx2"))) static inline __m256 fixed_exp2_avx2(__m256 x)
{
    __m256 n = _mm256_add_ps(x, _mm256_set1_ps(EXP_ROUND));
    __m256 r = _mm256_sub_ps(x, _mm256_sub_ps(n, _mm256_set1_ps(EXP_ROUND)));
    __m256 y = _mm256_add_ps(_mm256_mul_ps(_mm256_set1_ps(POWER_5), r), _mm256_set1_ps(POWER_4));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(POWER_3));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(POWER_2));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(POWER_1));
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(1));
    __m256i power = _mm256_add_epi32(_mm256_castps_si256(y), _mm256_slli_epi32(_mm256_castps_si256(n), 23));
    return _mm256_and_ps(_mm256_castsi256_ps(power), _mm256_cmp_ps(x, _mm256_set1_ps(LEAST_POWER), _CMP_GE_OQ));
}

__attribute__((target("avx2"))) static inline float fixed_lanes_avx2(__m256 low, __m256 high)
{
    __m256 eight = _mm256_add_ps(low, high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

__attribute__((target("avx512f,avx512dq"))) static inline __m512 fixed_exp2_avx512(__m512 x)
{
    __m512 n = _mm512_add_ps(x, _mm512_set1_ps(EXP_ROUND));
    __m512 r = _mm512_sub_ps(x, _mm512_sub_ps(n, _mm512_set1_ps(EXP_ROUND)));
    __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_set1_ps(POWER_5), r), _mm512_set1_ps(POWER_4));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(POWER_3));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(POWER_2));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(POWER_1));
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(1));
    __m512i power = _mm512_add_epi32(_mm512_castps_si512(y), _mm512_slli_epi32(_mm512_castps_si512(n), 23));
    __mmask16 within = _mm512_cmp_ps_mask(x, _mm512_set1_ps(LEAST_POWER), _CMP_GE_OQ);
    return _mm512_castsi512_ps(_mm512_maskz_mov_epi32(within, power));
}

__attribute__((target("avx512f,avx512dq"))) static inline float fixed_lanes_avx512(__m512 lanes)
{
    return fixed_lanes_avx2(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
}
#endif

#endif
