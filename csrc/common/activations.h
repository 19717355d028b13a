/* Quantising activations: the scale of a token, and the ratio of each of its groups.
 * numerics.quant.quantise_activations says it in NumPy. */
#ifndef QWQ_ACTIVATIONS_H
#define QWQ_ACTIVATIONS_H

#include <string.h>

#include "common/kernels.h"

/* Whether anything is left of a token of this largest |x|: not of one too small for 127 / x, or not finite. */
static inline int has_scale(float top)
{
    return top >= 0x1p-100f && top < __builtin_inff();
}

/* The scale of a token; NaN where anything is not finite, which so comes to its results. */
static inline float scale_of(float top)
{
    return top < __builtin_inff() ? top * (1.0f / 127.0f) : __builtin_nanf("");
}

/* The smallest ratio with which a group of this largest |x| is within 127 steps of the scale. */
static inline size_t step_of(float largest, float top)
{
    if (!has_scale(top))
        return 0;
    float r = largest / top;
    size_t n = 0;
    for (size_t half = QWQ_RATIOS / 2; half >= 1; half /= 2)
        if (QWQ_RATIO[n + half] >= r)
            n += half;
    return n;
}

/* One group of a token; x * 0 would be NaN for what is not finite, and no integer. */
static inline int32_t quantise_group(const qwq_matmul_kernels *kernels, int8_t *q, const float *x, size_t step,
                                     float top)
{
    if (has_scale(top))
        return kernels->quantise(q, x, 127.0f / (top * QWQ_RATIO[step]));
    memset(q, 0, GROUP);
    return 0;
}

#endif
