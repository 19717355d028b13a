/* The KV cache in pages: cache.c. */
#ifndef QWQ_CACHE_H
#define QWQ_CACHE_H

#include "common/attention.h"

enum { MOST_DIMS = 4096 }; /* of a head */

int qwq_cache_is_possible(size_t K, size_t E);
/* A head's part of page n. */
qwq_span qwq_span_at(const qwq_kv *kv, size_t head, size_t n);
/* x * gain - center [E] to q, E rounded up to 32: each half with a scale of its own. */
void qwq_quantise_halves(const qwq_attention_kernels *kernels, int8_t *q, float scale[HALVES], const float *x,
                         const float *gain, const float *center, size_t E);

/* One head's vector of several, or NULL where there are none. */
static inline const float *qwq_of_head(const float *vectors, size_t head, size_t E)
{
    return vectors ? vectors + head * E : NULL;
}

#endif
