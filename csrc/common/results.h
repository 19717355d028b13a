/* The end of a product: scales, bias, residual or SwiGLU, and the places of results. matmul.c includes this. */
#ifndef QWQ_RESULTS_H
#define QWQ_RESULTS_H

#include "common/check.h"
#include "common/kernels.h"
#include "common/ops.h"

/* What is done with results, for some tokens and the panels of a thread. */
typedef struct {
    float *y;
    const float *scale; /* of tokens; NULL for floats */
    const qwq_fusion *fusion;
    const qwq_ops *ops;
    size_t N, t0, t1;
} qwq_end;

/* n of one token's results, rows from n0 on: times the token's scale, plus the bias and the residual. */
static void finish(float *to, const float *results, const qwq_end *e, size_t t, size_t n0, size_t n)
{
    const float *bias = e->fusion->bias, *residual = e->fusion->residual;
    e->ops->finish(to, results, e->scale ? e->scale + t : NULL, bias ? bias + n0 : NULL,
                   residual ? residual + t * e->N + n0 : NULL, n);
}

/* One panel's results, rows from n0, to where they belong. */
static void store(const float *results, const qwq_end *e, size_t n0)
{
    for (size_t t = e->t0; t < e->t1; t++, results += PANEL)
        finish(e->y + t * e->N + n0, results, e, t, n0, smaller(PANEL, e->N - n0));
}

/* Two panels' results, gate and up, to the 32 columns that they make. */
static void store_swiglu(const float *gates, const float *ups, const qwq_end *e, size_t n0)
{
    for (size_t t = e->t0; t < e->t1; t++, gates += PANEL, ups += PANEL) {
        float gate[PANEL] __attribute__((aligned(LINE))), one[PANEL] __attribute__((aligned(LINE)));
        finish(gate, gates, e, t, n0, PANEL);
        finish(one, ups, e, t, n0 + PANEL, PANEL);
        e->ops->swiglu(e->y + t * (e->N / 2) + n0 / 2, gate, one, 1.0f, PANEL);
    }
}

#endif
