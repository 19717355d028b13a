/* Calls that have been checked. An entry point checks its call and then runs it; layer.c checks a layer once and runs
 * its parts. Sizes are possible, and arrays are there, aligned and apart. Runs return 0, or QWQ_ESTOP. */
#ifndef QWQ_CALLS_H
#define QWQ_CALLS_H

#include "common/check.h"
#include "common/table.h"
#include "qwq.h"

typedef struct {
    float *y;
    const qwq_linear *w;
    const float *x;
    const qwq_fusion *fusion;
    void *scratch;
    size_t T, N, K;
    const qwq_table *table;
    int threads;
} qwq_matmul_call;
int qwq_matmul_run(const qwq_matmul_call *call);

typedef struct {
    float *x;
    const float *cos, *sin;
    size_t T, N, E, ld;
    const qwq_table *table;
    int threads;
} qwq_rope_call;
void qwq_rope_run(const qwq_rope_call *call);

typedef struct {
    const qwq_kv *kv;
    const float *k, *v;
    size_t pos, T;
    const qwq_table *table;
    int threads;
} qwq_append_call;
void qwq_append_run(const qwq_append_call *call);

typedef struct {
    float *y;
    const qwq_kv *kv;
    const float *q;
    void *scratch;
    const qwq_queries *queries;
    const qwq_table *table;
    int threads;
} qwq_attention_call;
int qwq_attention_run(const qwq_attention_call *call);

/* The arrays of a cache's key bias, for qwq_check; or QWQ_ESIZE. The sizes of the cache are possible. */
enum { QWQ_BIAS_ARRAYS = 7 };
int qwq_bias_arrays(qwq_array *arrays, const qwq_kv *kv);
/* Then, QWQ_ESIZE for a dimension that keys do not have. */
int qwq_bias_dims(const qwq_kv *kv);

/* Whether attention can have such sizes; T tokens that a cache of this capacity has room for. */
int qwq_attention_is_possible(const qwq_kv *kv, const qwq_queries *queries);

#endif
