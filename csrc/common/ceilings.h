/* The ceilings that `qwq bench` compares with: the functions of one rung. */
#ifndef QWQ_CEILINGS_H
#define QWQ_CEILINGS_H

#include <stddef.h>
#include <stdint.h>

#include "qwq.h"

/* <cdef> */
/* Runs the instructions of a ceiling `rounds` times, in registers. */
typedef void peak_fn(size_t rounds);
/* Reads some lines of 64 bytes in one of the orders QWQ_ONE_STREAM ... */
typedef void read_fn(const uint8_t *from, size_t lines, int order);

typedef struct {
    peak_fn *run;             /* NULL where there is no such ceiling, as for scalar code */
    size_t products;          /* of one round */
    const char *instructions; /* those that multiply */
} qwq_peak_of;

typedef struct {
    qwq_peak_of peak[QWQ_PEAKS];
    read_fn *read;
} qwq_ceilings;
/* </cdef> */

enum { STREAMS = 4, PAGE = 4096 };

#endif
