/* What every entry point asks before it writes anything: arrays that are there, aligned, and apart. */
#ifndef QWQ_CHECK_H
#define QWQ_CHECK_H

#include <stddef.h>
#include <stdint.h>

#include "qwq.h"

/* bytes: SIZE_MAX where there can be no so large array. element: what `from` is a multiple of. */
typedef struct {
    const void *from;
    size_t bytes, element;
} qwq_array;

/* 0, or an error. The first `outputs` of some arrays are written, and overlap no other. Of none that has 0 bytes
 * anything is asked: that is how a caller leaves out what it does not use. */
static inline int qwq_check(const qwq_array *arrays, int outputs, int count)
{
    for (int i = 0; i < count; i++) {
        uintptr_t from = (uintptr_t)arrays[i].from;
        if (!arrays[i].bytes)
            continue;
        if (arrays[i].bytes == SIZE_MAX)
            return QWQ_ESIZE;
        if (!from)
            return QWQ_ENULL;
        if (arrays[i].bytes > UINTPTR_MAX - from)
            return QWQ_ESIZE;
        if (from % arrays[i].element)
            return QWQ_EALIGN;
    }
    for (int i = 0; i < outputs; i++)
        for (int j = i + 1; j < count; j++) {
            uintptr_t a = (uintptr_t)arrays[i].from, b = (uintptr_t)arrays[j].from;
            if (arrays[i].bytes && arrays[j].bytes && a < b + arrays[j].bytes && b < a + arrays[i].bytes)
                return QWQ_EOVERLAP;
        }
    return 0;
}

static inline int qwq_threads_are_possible(int threads)
{
    return threads >= 1 && threads <= QWQ_MOST_THREADS;
}

/* Whether an order of columns names columns alone. */
static inline int qwq_are_columns(const int32_t *columns, size_t K)
{
    int bad = 0;
    for (size_t k = 0; columns && k < K; k++)
        bad |= columns[k] < 0 || (size_t)columns[k] >= K;
    return !bad;
}

/* Whether the caller no longer wants the result. */
static inline int stopped(const int32_t *stop)
{
    return stop && __atomic_load_n(stop, __ATOMIC_RELAXED);
}

static inline size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* To the next multiple. */
static inline size_t up(size_t n, size_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

#endif
