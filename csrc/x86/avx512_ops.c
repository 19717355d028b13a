/* AVX-512: sixteen lanes are one register, and a mask ends every row. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "common/fixed.h"
#include "common/ops.h"
#include "x86/target.h"

TARGET("avx512f,avx512dq,avx512bw,avx512vl")

/* The lanes that a row's last n elements fill. */
static inline __mmask16 first(size_t n)
{
    return (__mmask16)(n >= 16 ? 0xFFFF : (1u << n) - 1);
}

static void exponentials(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = first(n - i);
        _mm512_mask_storeu_ps(y + i, m, exp_16(_mm512_maskz_loadu_ps(m, x + i)));
    }
}

static inline float halves(__m512 lanes)
{
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

static void rmsnorm(float *y, const float *x, const float *w, float eps, size_t D)
{
    __m512 lanes = _mm512_setzero_ps();
    for (size_t i = 0; i < D; i += 16) {
        __m512 v = _mm512_maskz_loadu_ps(first(D - i), x + i);
        lanes = _mm512_add_ps(lanes, _mm512_mul_ps(v, v));
    }
    __m128 mean = _mm_set_ss(halves(lanes) / (float)D + eps);
    const __m512 inverse = _mm512_set1_ps(fixed_inverse(_mm_cvtss_f32(_mm_sqrt_ss(mean))));
    for (size_t i = 0; i < D; i += 16) {
        __mmask16 m = first(D - i);
        __m512 normalised = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, x + i), inverse);
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(normalised, _mm512_maskz_loadu_ps(m, w + i)));
    }
}

static void rope(float *x, const float *cos, const float *sin, size_t N, size_t E)
{
    for (size_t i = 0; i < E / 2; i += 16) {
        __mmask16 m = first(E / 2 - i);
        __m512 c = _mm512_maskz_loadu_ps(m, cos + i), s = _mm512_maskz_loadu_ps(m, sin + i);
        for (float *a = x + i, *b = a + E / 2; a < x + N * E; a += E, b += E) {
            __m512 u = _mm512_maskz_loadu_ps(m, a), v = _mm512_maskz_loadu_ps(m, b);
            _mm512_mask_storeu_ps(a, m, _mm512_sub_ps(_mm512_mul_ps(u, c), _mm512_mul_ps(v, s)));
            _mm512_mask_storeu_ps(b, m, _mm512_add_ps(_mm512_mul_ps(v, c), _mm512_mul_ps(u, s)));
        }
    }
}

static void softmax(float *y, const float *x, size_t n)
{
    const __m512 least = _mm512_set1_ps(-__builtin_inff());
    __m512 most = least, lanes = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 16) /* of a NaN and a number, max takes the second */
        most = _mm512_max_ps(_mm512_mask_loadu_ps(least, first(n - i), x + i), most);
    const __m512 shift = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = first(n - i);
        __m512 e = exp_16(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + i), shift));
        lanes = _mm512_add_ps(lanes, _mm512_maskz_mov_ps(m, e));
        _mm512_mask_storeu_ps(y + i, m, e);
    }
    const __m512 sum = _mm512_set1_ps(halves(lanes));
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 m = first(n - i);
        _mm512_mask_storeu_ps(y + i, m, _mm512_div_ps(_mm512_maskz_loadu_ps(m, y + i), sum));
    }
}

static void swiglu(float *y, const float *gate, const float *up, float beta, size_t F)
{
    const __m512 one = _mm512_set1_ps(1.0f), minus = _mm512_set1_ps(-0.0f), b = _mm512_set1_ps(beta);
    for (size_t i = 0; i < F; i += 16) {
        __mmask16 m = first(F - i);
        __m512 g = _mm512_maskz_loadu_ps(m, gate + i);
        __m512 e = exp_16(_mm512_xor_ps(_mm512_mul_ps(b, g), minus));
        __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, e));
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(m, up + i)));
    }
}

static inline __m512 finish_16(__mmask16 m, const float *x, const float *scale, const float *bias,
                               const float *residual)
{
    __m512 v = _mm512_maskz_loadu_ps(m, x);
    v = scale ? _mm512_mul_ps(v, _mm512_set1_ps(*scale)) : v;
    v = bias ? _mm512_add_ps(v, _mm512_maskz_loadu_ps(m, bias)) : v;
    return residual ? _mm512_add_ps(_mm512_maskz_loadu_ps(m, residual), v) : v;
}

/* What a masked store has written cannot be read before it has reached the cache, and SwiGLU reads it at once. */
static void finish(float *y, const float *x, const float *scale, const float *bias, const float *residual, size_t n)
{
    for (; n >= 16; n -= 16, x += 16, y += 16) {
        _mm512_storeu_ps(y, finish_16(0xFFFF, x, scale, bias, residual));
        bias = bias ? bias + 16 : NULL;
        residual = residual ? residual + 16 : NULL;
    }
    if (n)
        _mm512_mask_storeu_ps(y, first(n), finish_16(first(n), x, scale, bias, residual));
}

static size_t next_above(const float *x, size_t i, size_t n, float threshold)
{
    const __m512 t = _mm512_set1_ps(threshold);
    for (; i + 64 <= n; i += 64) {
        unsigned any = 0;
        for (int j = 0; j < 4; j++)
            any |= _mm512_cmp_ps_mask(_mm512_loadu_ps(x + i + 16 * j), t, _CMP_NLE_UQ);
        if (any)
            break;
    }
    for (; i < n; i += 16) {
        __mmask16 m = first(n - i);
        unsigned above = _mm512_mask_cmp_ps_mask(m, _mm512_maskz_loadu_ps(m, x + i), t, _CMP_NLE_UQ);
        if (above)
            return i + (size_t)__builtin_ctz(above);
    }
    return n;
}

TARGET_END

void qwq_avx512_ops(qwq_ops *ops)
{
    ops->exp = exponentials;
    ops->rmsnorm = rmsnorm;
    ops->rope = rope;
    ops->softmax = softmax;
    ops->swiglu = swiglu;
    ops->finish = finish;
    ops->next_above = next_above;
}
#endif
