/* The small operations: the functions of one rung, each for one row or one token. NumPy: numerics/fixed.py. */
#ifndef QWQ_OPS_H
#define QWQ_OPS_H

#include <stddef.h>
#include <stdint.h>

/* <cdef> */
/* y [n] = e^x. */
typedef void exp_fn(float *y, const float *x, size_t n);
/* y [D] from x [D], w [D]. */
typedef void rmsnorm_fn(float *y, const float *x, const float *w, float eps, size_t D);
/* x [N, E] in place, by cos [E/2] and sin [E/2]. */
typedef void rope_fn(float *x, const float *cos, const float *sin, size_t N, size_t E);
/* y [n] from x [n]; y may be x. */
typedef void softmax_fn(float *y, const float *x, size_t n);
/* y [F] from gate [F], up [F]. */
typedef void swiglu_fn(float *y, const float *gate, const float *up, float beta, size_t F);
/* y [n] = residual + (x * *scale + bias) of x [n], without those that are NULL; y may be residual. */
typedef void finish_fn(float *y, const float *x, const float *scale, const float *bias, const float *residual,
                       size_t n);
/* The first j in i..n - 1 with x[j] above the threshold or NaN; n if there is none. */
typedef size_t next_above_fn(const float *x, size_t i, size_t n, float threshold);

typedef struct {
    exp_fn *exp;
    rmsnorm_fn *rmsnorm;
    rope_fn *rope;
    softmax_fn *softmax;
    swiglu_fn *swiglu;
    finish_fn *finish;
    next_above_fn *next_above;
} qwq_ops;
/* </cdef> */

/* select.c: k of n, the largest first, by any variant's next_above. Between 1 and n of them; index and value [k]. */
size_t qwq_first_largest(const float *x, size_t n, next_above_fn *next_above);
void qwq_largest(int32_t *index, float *value, const float *x, size_t n, size_t k, next_above_fn *next_above);

#endif
