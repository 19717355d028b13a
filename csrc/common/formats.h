/* The table of formats: how one packed matrix stores its numbers. */
#ifndef QWQ_FORMATS_H
#define QWQ_FORMATS_H

#include "common/kernels.h"

/* Packs the codes of a group of a panel, in the order of qwq_wide.code. */
typedef void put_fn(uint8_t *to, const uint8_t (*code)[2][LINE], const qwq_layout *layout);

/* What is true of all formats with one type of codes. */
typedef struct {
    const char *name;
    int bits;          /* of a code: a group of a panel has 64 * 32 of them */
    size_t element;    /* bytes of a code before packing */
    int floats;        /* each code is a float: there is no scale */
    unsigned groups;   /* the sizes of groups that exist, added up */
    unsigned scales;   /* the kinds of scales that exist, SCALES(kind) of each */
    int zero_point;    /* the largest zero point of a whole weight */
    int32_t excess;    /* what unpacked bytes exceed their levels by, where that is fixed */
    int most;          /* what no unpacked byte exceeds */
    uint8_t planes[4]; /* for put_planes: the widths of the planes of bits, from the lowest, which is 4; 0 ends */
    put_fn *put;       /* packs; NULL for floats, which qwq_pack_floats packs */
    unpack_fn *unpack; /* scalar: other rungs inherit it, or have their own; NULL for floats */
} qwq_code_type;

/* How scales are stored, and what else comes with them. */
typedef struct {
    const char *name;
    size_t of_block, of_group; /* bytes of a row */
    int super;                 /* blocks are super-blocks of 256 columns, with float16 numbers of their own */
    int zero_point, offset;    /* whether there can be one zero point for all; whether there are offsets */
} qwq_scales;

extern const qwq_code_type qwq_code_types[QWQ_CODE_TYPES];
extern const qwq_scales qwq_scale_kinds[QWQ_SCALE_KINDS];

/* Scalar code that others name: scalar/matmul.c. */
unpack_fn qwq_unpack_q4, qwq_unpack_bytes, qwq_unpack_planes;
wide_fn qwq_scalar_wide;

/* Packs up to 32 rows of floats of `element` bytes, [rows, K], as one panel. */
void qwq_pack_floats(uint8_t *panel, const uint8_t *w, size_t rows, size_t K, size_t element);

/* Finds the layout of a format; 0 if there is no such. */
int qwq_layout_of(qwq_layout *layout, const qwq_format *format);

#endif
