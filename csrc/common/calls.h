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

/* Keys and values of all tokens of the parts, after one another. kv: all but pages and capacity. */
typedef struct {
    const qwq_kv *kv;
    const qwq_part *parts;
    size_t count;
    const float *k, *v;
    const qwq_table *table;
    int threads;
} qwq_append_call;
void qwq_append_run(const qwq_append_call *call);

/* Queries of the wanted tokens of the parts, after one another. queries: all but pos and T. */
typedef struct {
    float *y;
    const qwq_kv *kv;
    const qwq_part *parts;
    size_t count;
    const float *q;
    void *scratch;
    const qwq_queries *queries;
    const qwq_table *table;
    int threads;
} qwq_attention_call;
/* kv and queries may be without arrays, parts without pages. */
size_t qwq_attention_room(const qwq_attention_call *call);
int qwq_attention_run(const qwq_attention_call *call);

/* What could be wrong with the cache of a part, of whose T tokens keys and values are written unless `reads`: its pages
 * are there, aligned, and apart from the `outputs` of some arrays, or, if they are written, from all of them. */
int qwq_check_pages(const qwq_kv *kv, const qwq_part *part, int reads, const qwq_array *arrays, int outputs, int count);

/* The arrays of a cache's key bias, for qwq_check; or QWQ_ESIZE, also for one of less tokens than `capacity`. The sizes
 * of the cache are possible. */
enum { QWQ_BIAS_ARRAYS = 7 };
int qwq_bias_arrays(qwq_array *arrays, const qwq_kv *kv, size_t capacity);
/* Then, QWQ_ESIZE for a dimension that keys do not have. */
int qwq_bias_dims(const qwq_kv *kv);

/* Whether attention can have such sizes, and a part of them: its tokens fit in its cache. */
int qwq_attention_is_possible(const qwq_kv *kv, const qwq_queries *queries);
int qwq_part_is_possible(const qwq_part *part);

#endif
