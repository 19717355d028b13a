/* Parallel loops on one pool of threads. */
#ifndef QWQ_PARALLEL_H
#define QWQ_PARALLEL_H

#include <stddef.h>

/* Pieces `first` to end - 1 of a job. worker: 0 to threads - 1; no two calls that run at once have the same. */
typedef void qwq_pieces(const void *job, size_t first, size_t end, int worker);

/* Run pieces 0 to `pieces` - 1 on the calling thread and up to threads - 1 others, and return after the last piece.
 * A loop is complete when its pieces are: it never waits for a thread that has taken none. */
void qwq_parallel_for(qwq_pieces *run, const void *job, size_t pieces, int threads);

#endif
