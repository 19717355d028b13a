/* The entry points of the small operations: they check a call, share its rows among threads, and call a rung. */
#include "common/ops.h"

#include "common/calls.h"
#include "common/check.h"
#include "common/parallel.h"
#include "common/table.h"
#include "qwq.h"

/* Rows of some 4-byte columns, ld apart. */
static qwq_array rows(const void *from, size_t T, size_t ld, size_t columns)
{
    if (T > QWQ_MOST_SIZE || columns > QWQ_MOST_SIZE || ld > QWQ_MOST_SIZE)
        return (qwq_array){from, SIZE_MAX, 4};
    if (!T || !columns)
        return (qwq_array){from, 0, 4};
    return (qwq_array){from, ((T - 1) * ld + columns) * 4, 4};
}

/* The rows of one operation: a row is a piece. w: RMSNorm's weights; up: of SwiGLU. */
typedef struct {
    const qwq_ops *ops;
    float *y;
    const float *x, *w, *up;
    float number; /* eps or beta */
    size_t columns, ld;
} rows_job;

static void rmsnorm_rows(const void *job, size_t first, size_t end, int worker)
{
    const rows_job *j = job;
    (void)worker;
    for (size_t t = first; t < end; t++)
        j->ops->rmsnorm(j->y + t * j->columns, j->x + t * j->columns, j->w, j->number, j->columns);
}

static void softmax_rows(const void *job, size_t first, size_t end, int worker)
{
    const rows_job *j = job;
    (void)worker;
    for (size_t t = first; t < end; t++)
        j->ops->softmax(j->y + t * j->columns, j->x + t * j->columns, j->columns);
}

static void swiglu_rows(const void *job, size_t first, size_t end, int worker)
{
    const rows_job *j = job;
    (void)worker;
    for (size_t t = first; t < end; t++)
        j->ops->swiglu(j->y + t * j->columns, j->x + t * j->ld, j->up + t * j->ld, j->number, j->columns);
}

static void rope_rows(const void *call, size_t first, size_t end, int worker)
{
    const qwq_rope_call *c = call;
    size_t half = c->E / 2;
    (void)worker;
    for (size_t t = first; t < end; t++)
        c->table->ops.rope(c->x + t * c->ld, c->cos + t * half, c->sin + t * half, c->N, c->E);
}

int qwq_exp(float *y, const float *x, size_t n, int isa)
{
    const qwq_table *table = qwq_table_of(isa);
    if (!table)
        return QWQ_EISA;
    int code = qwq_check((qwq_array[]){rows(y, 1, 0, n), rows(x, 1, 0, n)}, 1, 2);
    if (!code)
        table->ops.exp(y, x, n);
    return code;
}

int qwq_rmsnorm(float *y, const float *x, const float *w, float eps, size_t T, size_t D, int isa, int threads)
{
    const qwq_table *table = qwq_table_of(isa);
    if (!table)
        return QWQ_EISA;
    if (!D || !qwq_threads_are_possible(threads))
        return QWQ_ESIZE;
    int code = qwq_check((qwq_array[]){rows(y, T, D, D), rows(x, T, D, D), rows(w, 1, 0, D)}, 1, 3);
    if (code)
        return code;
    const rows_job job = {.ops = &table->ops, .y = y, .x = x, .w = w, .number = eps, .columns = D};
    qwq_parallel_for(rmsnorm_rows, &job, T, threads);
    return 0;
}

int qwq_rope(float *x, const float *cos, const float *sin, size_t T, size_t N, size_t E, size_t ld, int isa,
             int threads)
{
    const qwq_table *table = qwq_table_of(isa);
    if (!table)
        return QWQ_EISA;
    size_t columns, half = E / 2;
    if (!E || E % 2 || __builtin_mul_overflow(N, E, &columns) || ld < columns || !qwq_threads_are_possible(threads))
        return QWQ_ESIZE;
    const qwq_array arrays[] = {rows(x, T, ld, columns), rows(cos, T, half, half), rows(sin, T, half, half)};
    int code = qwq_check(arrays, 1, 3);
    if (code || !N)
        return code;
    qwq_rope_run(&(qwq_rope_call){x, cos, sin, T, N, E, ld, table, threads});
    return 0;
}

void qwq_rope_run(const qwq_rope_call *c)
{
    qwq_parallel_for(rope_rows, c, c->T, c->threads);
}

int qwq_softmax(float *y, const float *x, size_t T, size_t n, int isa, int threads)
{
    const qwq_table *table = qwq_table_of(isa);
    if (!table)
        return QWQ_EISA;
    if (!n || !qwq_threads_are_possible(threads))
        return QWQ_ESIZE;
    int code = qwq_check((qwq_array[]){rows(y, T, n, n), rows(x, T, n, n)}, y == x ? 0 : 1, 2);
    if (code)
        return code;
    const rows_job job = {.ops = &table->ops, .y = y, .x = x, .columns = n};
    qwq_parallel_for(softmax_rows, &job, T, threads);
    return 0;
}

int qwq_swiglu(float *y, const float *gate, const float *up, float beta, size_t T, size_t F, size_t ld, int isa,
               int threads)
{
    const qwq_table *table = qwq_table_of(isa);
    if (!table)
        return QWQ_EISA;
    if (ld < F || !qwq_threads_are_possible(threads))
        return QWQ_ESIZE;
    int code = qwq_check((qwq_array[]){rows(y, T, F, F), rows(gate, T, ld, F), rows(up, T, ld, F)}, 1, 3);
    if (code || !F)
        return code;
    const rows_job job = {.ops = &table->ops, .y = y, .x = gate, .up = up, .number = beta, .columns = F, .ld = ld};
    qwq_parallel_for(swiglu_rows, &job, T, threads);
    return 0;
}

int qwq_argmax(int32_t *index, const float *x, size_t n, int isa)
{
    const qwq_table *table = qwq_table_of(isa);
    if (!table)
        return QWQ_EISA;
    if (!n || n > INT32_MAX)
        return QWQ_ESIZE;
    int code = qwq_check((qwq_array[]){rows(index, 1, 0, 1), rows(x, 1, 0, n)}, 1, 2);
    if (!code)
        *index = (int32_t)qwq_first_largest(x, n, table->ops.next_above);
    return code;
}

int qwq_top_k(int32_t *index, float *value, const float *x, size_t n, size_t k, int isa)
{
    const qwq_table *table = qwq_table_of(isa);
    if (!table)
        return QWQ_EISA;
    if (!k || k > n || n > INT32_MAX)
        return QWQ_ESIZE;
    int code = qwq_check((qwq_array[]){rows(index, 1, 0, k), rows(value, 1, 0, k), rows(x, 1, 0, n)}, 2, 3);
    if (!code)
        qwq_largest(index, value, x, n, k, table->ops.next_above);
    return code;
}
