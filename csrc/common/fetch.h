/* Reading for the caches, before what is read is needed. */
#ifndef QWQ_FETCH_H
#define QWQ_FETCH_H

#include "common/kernels.h"

/* Reads a line after another, as the processor's own fetching follows them: an unpacking jumps from codes to scales, and
 * to planes of bits. */
static inline void read_in_order(const uint8_t *from, size_t bytes)
{
    for (size_t b = 0; b < bytes; b += LINE)
        (void)*(const volatile uint8_t *)(from + b);
}

/* Some bytes into the second cache: what comes next is fetched while this is multiplied. */
static inline void fetch(const void *from, size_t bytes)
{
    for (size_t b = 0; b < bytes; b += LINE)
        __builtin_prefetch((const char *)from + b, 0, 2);
}

#endif
