/* AVX2: sixteen lanes are two registers; the end of a row is padded with zeros, or done by the scalar twin's line. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "common/fixed.h"
#include "common/ops.h"
#include "x86/target.h"

TARGET("avx2")

static void exponentials(float *y, const float *x, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, exp_8(_mm256_loadu_ps(x + i)));
    for (; i < n; i++)
        y[i] = exp_1(x[i]);
}

static inline float halves(__m256 low, __m256 high)
{
    __m256 eight = _mm256_add_ps(low, high);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

static void rmsnorm(float *y, const float *x, const float *w, float eps, size_t D)
{
    __m256 low = _mm256_setzero_ps(), high = low;
    size_t i = 0;
    float last[16] = {0};
    for (; i + 16 <= D; i += 16) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        low = _mm256_add_ps(low, _mm256_mul_ps(a, a));
        high = _mm256_add_ps(high, _mm256_mul_ps(b, b));
    }
    memcpy(last, x + i, (D - i) * sizeof(float));
    __m256 a = _mm256_loadu_ps(last), b = _mm256_loadu_ps(last + 8);
    low = _mm256_add_ps(low, _mm256_mul_ps(a, a));
    high = _mm256_add_ps(high, _mm256_mul_ps(b, b));
    __m128 mean = _mm_set_ss(halves(low, high) / (float)D + eps);
    float inverse = fixed_inverse(_mm_cvtss_f32(_mm_sqrt_ss(mean)));
    for (i = 0; i + 8 <= D; i += 8) {
        __m256 normalised = _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(inverse));
        _mm256_storeu_ps(y + i, _mm256_mul_ps(normalised, _mm256_loadu_ps(w + i)));
    }
    for (; i < D; i++)
        y[i] = x[i] * inverse * w[i];
}

static void rope(float *x, const float *cos, const float *sin, size_t N, size_t E)
{
    for (size_t h = 0; h < N; h++) {
        float *first = x + h * E, *second = first + E / 2;
        size_t i = 0;
        for (; i + 8 <= E / 2; i += 8) {
            __m256 a = _mm256_loadu_ps(first + i), b = _mm256_loadu_ps(second + i);
            __m256 c = _mm256_loadu_ps(cos + i), s = _mm256_loadu_ps(sin + i);
            _mm256_storeu_ps(first + i, _mm256_sub_ps(_mm256_mul_ps(a, c), _mm256_mul_ps(b, s)));
            _mm256_storeu_ps(second + i, _mm256_add_ps(_mm256_mul_ps(b, c), _mm256_mul_ps(a, s)));
        }
        for (; i < E / 2; i++) {
            float a = first[i], b = second[i];
            first[i] = a * cos[i] - b * sin[i];
            second[i] = b * cos[i] + a * sin[i];
        }
    }
}

static void softmax(float *y, const float *x, size_t n)
{
    __m256 most = _mm256_set1_ps(-__builtin_inff()), low = _mm256_setzero_ps(), high = low;
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        most = _mm256_max_ps(_mm256_loadu_ps(x + i), most); /* of a NaN and a number, the second */
    float lanes[16] = {0}, largest = -__builtin_inff();
    _mm256_storeu_ps(lanes, most);
    for (int j = 0; j < 8; j++)
        largest = lanes[j] > largest ? lanes[j] : largest;
    for (; i < n; i++)
        largest = x[i] > largest ? x[i] : largest;
    const __m256 shift = _mm256_set1_ps(largest);
    for (i = 0; i + 16 <= n; i += 16) {
        __m256 a = exp_8(_mm256_sub_ps(_mm256_loadu_ps(x + i), shift));
        __m256 b = exp_8(_mm256_sub_ps(_mm256_loadu_ps(x + i + 8), shift));
        low = _mm256_add_ps(low, a);
        high = _mm256_add_ps(high, b);
        _mm256_storeu_ps(y + i, a);
        _mm256_storeu_ps(y + i + 8, b);
    }
    memset(lanes, 0, sizeof lanes);
    for (size_t j = 0; i + j < n; j++)
        lanes[j] = y[i + j] = exp_1(x[i + j] - largest);
    float sum = halves(_mm256_add_ps(low, _mm256_loadu_ps(lanes)), _mm256_add_ps(high, _mm256_loadu_ps(lanes + 8)));
    for (i = 0; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_div_ps(_mm256_loadu_ps(y + i), _mm256_set1_ps(sum)));
    for (; i < n; i++)
        y[i] = y[i] / sum;
}

static void finish(float *y, const float *x, const float *scale, const float *bias, const float *residual, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = _mm256_loadu_ps(x + i);
        v = scale ? _mm256_mul_ps(v, _mm256_set1_ps(*scale)) : v;
        v = bias ? _mm256_add_ps(v, _mm256_loadu_ps(bias + i)) : v;
        v = residual ? _mm256_add_ps(_mm256_loadu_ps(residual + i), v) : v;
        _mm256_storeu_ps(y + i, v);
    }
    for (; i < n; i++) {
        float v = scale ? x[i] * *scale : x[i];
        v = bias ? v + bias[i] : v;
        y[i] = residual ? residual[i] + v : v;
    }
}

static void swiglu(float *y, const float *gate, const float *up, float beta, size_t F)
{
    const __m256 one = _mm256_set1_ps(1.0f), minus = _mm256_set1_ps(-0.0f), b = _mm256_set1_ps(beta);
    size_t i = 0;
    for (; i + 8 <= F; i += 8) {
        __m256 g = _mm256_loadu_ps(gate + i);
        __m256 e = exp_8(_mm256_xor_ps(_mm256_mul_ps(b, g), minus));
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(one, e)), _mm256_loadu_ps(up + i)));
    }
    for (; i < F; i++)
        y[i] = gate[i] / (1.0f + exp_1(-(beta * gate[i]))) * up[i];
}

static size_t next_above(const float *x, size_t i, size_t n, float threshold)
{
    const __m256 t = _mm256_set1_ps(threshold);
    for (; i + 32 <= n; i += 32) {
        __m256 above[4];
        for (int j = 0; j < 4; j++)
            above[j] = _mm256_cmp_ps(_mm256_loadu_ps(x + i + 8 * j), t, _CMP_NLE_UQ);
        __m256 any = _mm256_or_ps(_mm256_or_ps(above[0], above[1]), _mm256_or_ps(above[2], above[3]));
        if (_mm256_movemask_ps(any))
            break;
    }
    for (; i + 8 <= n; i += 8) {
        int above = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + i), t, _CMP_NLE_UQ));
        if (above)
            return i + (size_t)__builtin_ctz((unsigned)above);
    }
    while (i < n && x[i] <= threshold)
        i++;
    return i;
}

TARGET_END

void qwq_avx2_ops(qwq_ops *ops)
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
