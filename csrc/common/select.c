/* The largest of many: a scan for what beats the worst that is held, and a heap of those. NaN is above all numbers. */
#include "common/ops.h"

size_t qwq_first_largest(const float *x, size_t n, next_above_fn *next_above)
{
    size_t best = 0;
    for (size_t i = 1; i < n && x[best] == x[best]; i++) {
        i = next_above(x, i, n, x[best]);
        if (i < n)
            best = i;
    }
    return best;
}

/* An integer in the order of floats: zeros alike, NaNs alike and above all. */
static int32_t rank(float x)
{
    union {
        float f;
        int32_t i;
    } v = {x + 0.0f};
    if (x != x)
        return INT32_MAX;
    return v.i < 0 ? v.i ^ INT32_MAX : v.i;
}

/* Whether i comes after j: it is smaller, or as large and later. */
static int after(const int32_t *index, const float *value, size_t i, size_t j)
{
    int32_t a = rank(value[i]), b = rank(value[j]);
    return a < b || (a == b && index[i] > index[j]);
}

static void swap(int32_t *index, float *value, size_t i, size_t j)
{
    int32_t k = index[i];
    float v = value[i];
    index[i] = index[j];
    value[i] = value[j];
    index[j] = k;
    value[j] = v;
}

/* Lets entry i sink to where none of those below comes after it: the last of all is on top. */
static void sink(int32_t *index, float *value, size_t i, size_t k)
{
    for (size_t child; (child = 2 * i + 1) < k; i = child) {
        if (child + 1 < k && after(index, value, child + 1, child))
            child++;
        if (!after(index, value, child, i))
            return;
        swap(index, value, i, child);
    }
}

void qwq_largest(int32_t *index, float *value, const float *x, size_t n, size_t k, next_above_fn *next_above)
{
    for (size_t i = 0; i < k; i++) {
        index[i] = (int32_t)i;
        value[i] = x[i];
    }
    for (size_t i = k / 2; i-- > 0;)
        sink(index, value, i, k);
    for (size_t i = k; i < n && value[0] == value[0]; i++) {
        i = next_above(x, i, n, value[0]);
        if (i < n) {
            index[0] = (int32_t)i;
            value[0] = x[i];
            sink(index, value, 0, k);
        }
    }
    for (size_t last = k; last-- > 1;) { /* the top is the last of those that remain */
        swap(index, value, 0, last);
        sink(index, value, 0, last);
    }
}
