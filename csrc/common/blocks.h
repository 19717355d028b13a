/* The table of ggml's block types: how a GGUF file stores neighbouring columns of one row. */
#ifndef QWQ_BLOCKS_H
#define QWQ_BLOCKS_H

#include "common/formats.h"

enum { MOST_COLUMNS = 256, MOST_GROUPS = 16 };

/* The scales of one block of one row. The halves are fp16, as the file has them. */
typedef struct {
    uint8_t scale[2], offset[2];
    uint8_t sub_scale[MOST_GROUPS], sub_min[MOST_GROUPS];
} qwq_block_scales;

/* Decodes a block to the codes of its columns, and its scales. */
typedef void block_fn(uint8_t *restrict code, qwq_block_scales *restrict to, const uint8_t *restrict from);

/* One type. Any bytes are a block of it. */
typedef struct {
    const char *name;
    size_t columns, bytes; /* of a block */
    qwq_format format;     /* which holds its numbers without loss */
    block_fn *decode;
} qwq_block_type;

extern const qwq_block_type qwq_block_types[QWQ_BLOCK_TYPES];

#endif
