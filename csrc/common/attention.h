/* Attention: how a KV cache lies in memory, and the functions of one rung. */
#ifndef QWQ_ATTENTION_H
#define QWQ_ATTENTION_H

#include <stddef.h>
#include <stdint.h>

#include "qwq.h"

/* <cdef> */
enum {
    CHUNK = 1024, /* tokens whose scores share a maximum; anchored at position 0 */
    BLOCK = 32,   /* tokens whose weights share a unit; likewise */
    BLOCKS = CHUNK / BLOCK,
    SPAN = 128, /* tokens that are worked on at a time, and of a page */
    SPANS = CHUNK / SPAN,
    DIMS = 32,           /* the same of dimensions */
    ROWS = 6,            /* query rows at work together; a row is one head of one token */
    STRIDE = CHUNK + 32, /* of a row's scores: rows 4 KiB apart would meet in the same cache sets */
    HALVES = 2,          /* of the dimensions of keys and queries, which have a scale each */
    KEY_OFFSET = 128,    /* int8 keys are stored as unsigned bytes; the sums begin at -128 times that of the query */
    UNITS = 255 * 256    /* the largest weight of a block, in its unit */
};
/* </cdef> */
static const float ATTENTION_SMALLEST = 0x1p-100f, ATTENTION_LARGEST = 0x1p56f, ATTENTION_LOWEST = -0x1p126f;

/* What a layer has in a page, with a head dimension E (rounded up to 32): for each KV head in turn
 *   int8: keys 128 * E bytes [128/16][E/4][16][4], value + 128; values 128 * E bytes [E/32][128/4][32][4]; scales of
 * the lower half of the dimensions of keys [128], floats; of the upper half [128]; scales of values [128]. Four
 *         dimensions of a key, or four tokens of a value, are what one instruction multiplies; reading follows
 *         addresses.
 *   fp32: keys [128][E], then values [128][E].
 * Each of these begins at a multiple of 64 bytes. Dimensions that E is rounded up by are zero. */

/* <cdef> */
/* One span of one KV head: its part of a page. */
typedef struct {
    const void *k, *v;
    const float *k_scale[HALVES], *v_scale; /* int8 only */
} qwq_span;

/* One chunk of one KV head: those of its spans that are asked for. */
typedef struct {
    qwq_span spans[SPANS];
    const int16_t *bias; /* qwq_key_bias.codes of the head */
    const void *then;    /* what is read after it: the keys of the next chunk. NULL: there is none */
} qwq_chunk;

/* Up to six rows, in the caller's scratch. A row's result lies in `out`: E sums of p v, the largest score, the sum of
 * p, and room up to E + 16 floats. */
typedef struct {
    size_t rows, E;
    int streams;                 /* the cache is read once, from memory */
    const void *q;               /* int8 [E/4][rows][4]; fp32 [rows][E] */
    int32_t begin[HALVES][ROWS]; /* int8: where the sums begin */
    float factor[HALVES][ROWS];  /* scale of the query * log2(e) / sqrt(E); fp32: the first */
    size_t pairs;                /* of the keys' bias; with them, scores have a third part */
    const int16_t *bias_q;       /* [pairs][rows][2]: queries, turned back to the chunk's first position */
    float bias_factor[ROWS];     /* their scale * that of the bias * log2(e) / sqrt(E) */
    size_t from[ROWS], to[ROWS]; /* the tokens of the chunk that a row sees; to = 0 where none */
    float *scores;               /* [rows][STRIDE]; fp32: then p */
    void *p;                     /* int8: weights, as the variant likes, 4 bytes for each of [rows][STRIDE] */
    float unit[ROWS][BLOCKS];
    uint8_t wide[BLOCKS]; /* some row has 16-bit weights in the block */
    float *out;
} qwq_rows;
/* </cdef> */

/* Where dimension e of token t of a span lies among int8 values. */
static inline size_t value_at(size_t t, size_t e)
{
    return e / DIMS * DIMS * SPAN + t / 4 * 4 * DIMS + e % DIMS * 4 + t % 4;
}

/* <cdef> */
enum { OUT_TOP = 0, OUT_TOTAL = 1, OUT_EXTRA = 16 }; /* behind the E sums */

/* x * gain - center [E], where these are not NULL, to q [E], rounded; returns the scale. */
typedef float quantise_kv_fn(int8_t *q, const float *x, const float *gain, const float *center, size_t E);
/* Scores of spans first to last - 1. */
typedef void scores_fn(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last);
/* From scores to weights, for those spans; the largest score and the sum of p go to the results. */
typedef void weights_fn(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last, int p_bits);
/* The sums of p v, over those spans. */
typedef void values_fn(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last);
/* A chunk's result into that of the chunks before. */
typedef void merge_fn(float *state, const float *out, size_t E);

typedef struct {
    quantise_kv_fn *quantise;
    scores_fn *scores_int8;
    weights_fn *weights_int8; /* the layout of qwq_rows.p is its own and that of values_int8: override both */
    values_fn *values_int8;
    scores_fn *scores_fp32;
    weights_fn *weights_fp32;
    values_fn *values_fp32;
    merge_fn *merge;
    size_t rows; /* of queries in a tile, at most ROWS */
} qwq_attention_kernels;
/* </cdef> */

#endif
