/* Products and quantising: how weights and activations lie in memory, and the functions of one rung. */
#ifndef QWQ_KERNELS_H
#define QWQ_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/fixed.h"
#include "qwq.h"

/* <cdef> */
enum {
    GROUP = QWQ_GROUP,
    PANEL = 32,    /* rows that are packed together */
    MOST_TILE = 6, /* tokens of the largest tile of any rung */
    LINE = 64,     /* bytes: four columns of a panel's nibbles, or of half of its bytes */
    LINES = GROUP / 4,
    NIBBLES = LINES * LINE,            /* bytes of a panel's group */
    Q4_BLOCK = NIBBLES + PANEL * 2,    /* one group of a panel: its lines, then 32 fp16 scales */
    Q8_BLOCK = 2 * NIBBLES + PANEL * 2 /* the same with two lines for four columns: rows 0-15, rows 16-31 */
};
/* </cdef> */

/* The sixteen levels, in [-63, 63]. numerics/quant.py: CODEBOOK. */
static const int8_t QWQ_CODEBOOK[16] = {-55, -43, -34, -26, -19, -13, -7, -2, 4, 10, 16, 22, 29, 38, 48, 63};
/* Integers are multiplied as unsigned bytes, with this much too much; the sums begin at as much less. */
enum { Q4_EXCESS = 64, Q8_EXCESS = 128, ZERO_EXCESS = 16 };

/* <cdef> */
/* A group of any integer format, unpacked: bytes as they are multiplied, and the scales of its up to four subgroups.
 * One unpacking serves all tokens of a prompt. */
typedef struct {
    uint8_t code[LINES][2][LINE]; /* rows 0-15, rows 16-31 */
    float scale[4][PANEL];
    float offset[4][PANEL];
    int32_t zero[4][PANEL];          /* where the layout has row_zeros */
    float scaled[QWQ_RATIOS][PANEL]; /* scale[0] times each ratio that some token needs, where a kernel wants that */
} qwq_wide;

/* What a kernel must know of a format: formats.c finds it. */
typedef struct {
    size_t columns;    /* of a block */
    size_t bytes;      /* of a block */
    size_t code_bytes; /* of a group's codes, which come first; the scales follow all of the block's */
    size_t scales_at;  /* where they begin in a block */
    size_t subgroups;  /* of a group of 64: 1, 2, 4 */
    size_t in_block;   /* groups of weights that share a scale, */
    int group_bits;    /* and the binary logarithm of their columns */
    int32_t excess;    /* what every byte of qwq_wide exceeds its level by */
    int offset;        /* whether there is an offset */
    int row_zeros;     /* whether a sum begins with as many times its number as its row's zero point: excess is 1 */
    int most;          /* what no byte of qwq_wide exceeds */
    int floats;        /* no integers at all */
    uint8_t planes[4]; /* the widths of the planes that hold a code's bits, from the lowest; 0 ends them */
} qwq_layout;

/* A tile's activations. Integers: q [group][line][token][4]; for each group and token the ratio of its scale to the
 * token's, and where its row of qwq_wide.scaled is, in bytes; for each subgroup and token what its sum begins with, and
 * its sum of x, which an offset is multiplied with. Floats: x [column][token]. */
typedef struct {
    const int8_t *q;
    const float *ratio;
    const uint16_t *scaled;
    const int32_t *begin;
    const float *sum;
    const float *x;
} qwq_tile;

/* The largest |x| of each group of 64; no less than infinity where there is anything that is not finite. */
typedef void largest_fn(float *largest, const float *x, size_t groups);
/* One group of 64 of a token: q = round(x * inverse). Returns their sum. */
typedef int32_t quantise_fn(int8_t *q, const float *x, float inverse);
/* One group of 64 weights: the codes, and the scale as fp16 bits. */
typedef uint16_t quantise_q4_fn(uint8_t *code, const float *w);
typedef uint16_t quantise_q8_fn(int8_t *q, const float *w);
/* One group of a panel, the part-th of its block, to the unpacked form. */
typedef void unpack_fn(qwq_wide *wide, const uint8_t *block, size_t part, const qwq_format *format,
                       const qwq_layout *layout);
/* Groups of bf16 or fp16 as blocks of fp32. */
typedef void widen_fn(float *to, const uint8_t *blocks, size_t groups);
/* qwq_wide.scaled of one group, for the ratios of which a bit is set. */
typedef void scale_fn(qwq_wide *wide, uint64_t used);
/* y [tokens][PANEL] += one panel's groups, unpacked, and one tile. */
typedef void wide_fn(float *y, const qwq_wide *wide, const qwq_tile *tile, size_t tokens, size_t groups,
                     const qwq_layout *layout);
/* The same straight from blocks, for few tokens, which wait for memory; and for floats. */
typedef void blocks_fn(float *y, const uint8_t *blocks, const qwq_tile *tile, size_t tokens, size_t groups,
                       const qwq_format *format, const qwq_layout *layout);

typedef struct {
    largest_fn *largest;
    quantise_fn *quantise;
    quantise_q4_fn *quantise_q4;
    quantise_q8_fn *quantise_q8;
    unpack_fn *unpack[QWQ_CODE_TYPES]; /* NULL for floats */
    widen_fn *widen[QWQ_CODE_TYPES];   /* NULL but for bf16 and fp16 */
    scale_fn *scale;                   /* NULL where `wide` does not read qwq_wide.scaled */
    wide_fn *wide;
    blocks_fn *blocks[QWQ_CODE_TYPES]; /* NULL where there is only the way through `wide` */
    size_t tile;                       /* tokens that the kernels take at a time, at most MOST_TILE */
} qwq_matmul_kernels;
/* </cdef> */

/* What a group's scale can be, beside its token's: eight steps to the octave. numerics/quant.py: RATIOS. */
static const float QWQ_RATIO[QWQ_RATIOS] = {
    0x1p+0f,        0x1.d5818ep-1f, 0x1.ae89fap-1f, 0x1.8ace54p-1f, 0x1.6a09e6p-1f, 0x1.4bfdaep-1f, 0x1.306fep-1f,
    0x1.172b84p-1f, 0x1p-1f,        0x1.d5818ep-2f, 0x1.ae89fap-2f, 0x1.8ace54p-2f, 0x1.6a09e6p-2f, 0x1.4bfdaep-2f,
    0x1.306fep-2f,  0x1.172b84p-2f, 0x1p-2f,        0x1.d5818ep-3f, 0x1.ae89fap-3f, 0x1.8ace54p-3f, 0x1.6a09e6p-3f,
    0x1.4bfdaep-3f, 0x1.306fep-3f,  0x1.172b84p-3f, 0x1p-3f,        0x1.d5818ep-4f, 0x1.ae89fap-4f, 0x1.8ace54p-4f,
    0x1.6a09e6p-4f, 0x1.4bfdaep-4f, 0x1.306fep-4f,  0x1.172b84p-4f, 0x1p-4f,        0x1.d5818ep-5f, 0x1.ae89fap-5f,
    0x1.8ace54p-5f, 0x1.6a09e6p-5f, 0x1.4bfdaep-5f, 0x1.306fep-5f,  0x1.172b84p-5f, 0x1p-5f,        0x1.d5818ep-6f,
    0x1.ae89fap-6f, 0x1.8ace54p-6f, 0x1.6a09e6p-6f, 0x1.4bfdaep-6f, 0x1.306fep-6f,  0x1.172b84p-6f, 0x1p-6f,
    0x1.d5818ep-7f, 0x1.ae89fap-7f, 0x1.8ace54p-7f, 0x1.6a09e6p-7f, 0x1.4bfdaep-7f, 0x1.306fep-7f,  0x1.172b84p-7f,
    0x1p-7f,        0x1.d5818ep-8f, 0x1.ae89fap-8f, 0x1.8ace54p-8f, 0x1.6a09e6p-8f, 0x1.4bfdaep-8f, 0x1.306fep-8f,
    0x1.172b84p-8f};

/* What the search for a scale tries, and between what it stays. numerics/quant.py: STARTS, SMALLEST, LARGEST. */
enum { STARTS = 4, ROUNDS = 2 };
static const float QWQ_STARTS[STARTS] = {(float)(0.75 / 63), (float)(0.85 / 63), (float)(0.95 / 63),
                                         (float)(1.05 / 63)};
static const float QWQ_SMALLEST = 0x1p-24f, QWQ_LARGEST = 65504.0f;
/* Halfway between two levels: above as many of these as a value is, so is its code. */
static const float QWQ_MIDDLES[16] = {-49, -38.5f, -30, -22.5f, -16, -10, -4.5f, 1, 7, 13, 19, 25.5f, 33.5f, 43, 55.5f};

enum { CODE_OF_ZERO = 7 }; /* above so many middles is 0 */

/* float to fp16 bits, to nearest, ties to even; for numbers from 0 to 65,504. */
static inline uint16_t float_to_half(float x)
{
    union {
        float f;
        uint32_t u;
    } v = {x};
    if (v.u < 0x38800000u) { /* subnormal: a multiple of 2^-24, which adding 0.5 leaves in the low bits */
        v.f += 0.5f;
        return (uint16_t)(v.u - 0x3F000000u);
    }
    uint32_t odd = (v.u >> 13) & 1;
    return (uint16_t)((v.u + 0x0FFFu + odd - 0x38000000u) >> 13);
}

/* The scale of a group of q8, as fp16 bits; 0 where each of its codes would be 0. */
static inline uint16_t scale_q8(float largest)
{
    float scale = largest * (1.0f / 127.0f);
    scale = scale > QWQ_SMALLEST ? scale : QWQ_SMALLEST;
    return largest > QWQ_SMALLEST / 2 ? float_to_half(scale < QWQ_LARGEST ? scale : QWQ_LARGEST) : 0;
}

/* The scale of a group of q4 with its sign. A group that the smallest scale would enlarge becomes zeros instead, where
 * they have a smaller error: no level is 0. */
static inline uint16_t scale_q4(uint8_t *code, const float *w, uint16_t scale, float sign, float error)
{
    if (scale == 1) {
        float lanes[16] = {0};
        for (int k = 0; k < GROUP; k++)
            lanes[k % 16] = lanes[k % 16] + w[k] * w[k];
        if (fixed_lanes(lanes) < error) {
            memset(code, CODE_OF_ZERO, GROUP);
            return 0;
        }
    }
    return (uint16_t)(scale | (sign < 0 ? 0x8000u : 0));
}

/* fp16 bits to float, exactly. */
static inline float half_to_float(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } v;
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 1023u;
    if (exponent == 0) { /* subnormal: a multiple of 2^-24 */
        v.f = (float)mantissa * 0x1p-24f;
        v.u |= sign;
        return v.f;
    }
    v.u = sign | ((exponent == 31 ? 255u : exponent + 112u) << 23) | (mantissa << 13);
    return v.f;
}

static inline float bf16_to_float(uint16_t b)
{
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)b << 16};
    return v.f;
}

#endif
