/* The small operations in scalar C, the twin of numerics/fixed.py. Every other variant gives these bits. */
#include <math.h>

#include "common/fixed.h"
#include "common/ops.h"

static void exponentials(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = exp_1(x[i]);
}

/* numerics.fixed.lane_sum, from the sums of its 16 lanes. */
static float halves(float *lanes)
{
    for (int half = 8; half >= 1; half /= 2)
        for (int j = 0; j < half; j++)
            lanes[j] = lanes[j] + lanes[j + half];
    return lanes[0];
}

static void rmsnorm(float *y, const float *x, const float *w, float eps, size_t D)
{
    float lanes[16] = {0};
    for (size_t i = 0; i < D; i++)
        lanes[i % 16] = lanes[i % 16] + x[i] * x[i];
    float inverse = fixed_inverse(sqrtf(halves(lanes) / (float)D + eps));
    for (size_t i = 0; i < D; i++)
        y[i] = x[i] * inverse * w[i];
}

static void rope(float *x, const float *cos, const float *sin, size_t N, size_t E)
{
    for (size_t h = 0; h < N; h++) {
        float *first = x + h * E, *second = first + E / 2;
        for (size_t i = 0; i < E / 2; i++) {
            float a = first[i], b = second[i];
            first[i] = a * cos[i] - b * sin[i];
            second[i] = b * cos[i] + a * sin[i];
        }
    }
}

static void softmax(float *y, const float *x, size_t n)
{
    float largest = -INFINITY, lanes[16] = {0};
    for (size_t i = 0; i < n; i++) /* a NaN is skipped here, and makes the sum NaN */
        largest = x[i] > largest ? x[i] : largest;
    for (size_t i = 0; i < n; i++) {
        y[i] = exp_1(x[i] - largest);
        lanes[i % 16] = lanes[i % 16] + y[i];
    }
    float sum = halves(lanes);
    for (size_t i = 0; i < n; i++)
        y[i] = y[i] / sum;
}

static void finish(float *y, const float *x, const float *scale, const float *bias, const float *residual, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float v = scale ? x[i] * *scale : x[i];
        v = bias ? v + bias[i] : v;
        y[i] = residual ? residual[i] + v : v;
    }
}

static void swiglu(float *y, const float *gate, const float *up, float beta, size_t F)
{
    for (size_t i = 0; i < F; i++)
        y[i] = gate[i] / (1.0f + exp_1(-(beta * gate[i]))) * up[i];
}

static size_t next_above(const float *x, size_t i, size_t n, float threshold)
{
    while (i < n && x[i] <= threshold)
        i++;
    return i;
}

void qwq_scalar_ops(qwq_ops *ops)
{
    ops->exp = exponentials;
    ops->rmsnorm = rmsnorm;
    ops->rope = rope;
    ops->softmax = softmax;
    ops->swiglu = swiglu;
    ops->finish = finish;
    ops->next_above = next_above;
}
