/* OpenMP where the compiler has it. Without it, every parallel_for is a plain loop on the calling thread. */
#ifndef QWQ_PARALLEL_H
#define QWQ_PARALLEL_H

#ifdef _OPENMP
#include <omp.h>
#define QWQ_PRAGMA(...) _Pragma(#__VA_ARGS__)
#define OMP(...) QWQ_PRAGMA(omp __VA_ARGS__)
#else
#define OMP(...)
#endif

/* The number of the calling thread in its team, from 0. */
static inline int thread_number(void)
{
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

#endif
