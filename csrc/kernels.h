/* What the variants of an ISA share: layouts, and the table through which api.c calls them. */
#ifndef QWQ_KERNELS_H
#define QWQ_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "qwq.h"

enum {
    GROUP = QWQ_GROUP,
    PANEL = 32,                                /* rows that are packed together */
    TILE = 6,                                  /* tokens that a kernel holds in registers */
    LINE = 64,                                 /* bytes: four columns of a panel, two codes a byte */
    LINES = GROUP / 4,
    Q4_BLOCK = LINES * LINE + PANEL * 2        /* one group of a panel: its lines, then 32 fp16 scales */
};

/* The sixteen levels, in [-63, 63]. spec/quant.py: CODEBOOK. */
static const int8_t QWQ_CODEBOOK[16] = {-55, -43, -34, -26, -19, -13, -7, -2, 4, 10, 16, 22, 29, 38, 48, 63};
/* Levels are multiplied as unsigned bytes, level + 64; the sums begin at -64 times that of the activations. */
enum { LEVEL_OFFSET = 64 };

/* A tile's activations: q [group][line][token][4], then for each group and token a scale and the sum's beginning. */
typedef struct {
    const int8_t *q;
    const float *scale;
    const int32_t *begin;
} qwq_tile;

/* Groups of 64 of one token: q [K], scale [K/64], sum [K/64]. */
typedef void quantise_fn(int8_t *q, float *scale, int32_t *sum, const float *x, size_t K);
/* y [tokens][ldy], columns 0 to rows - 1, from one panel and one tile of 1 to 6 tokens. */
typedef void q4_panel_fn(float *y, size_t ldy, size_t rows, const uint8_t *panel, qwq_tile tile, size_t tokens,
                         size_t groups);

typedef struct {
    quantise_fn *quantise;
    q4_panel_fn *q4_panel;
} qwq_kernels;

extern const qwq_kernels qwq_ref_kernels;
#if defined(__x86_64__)
extern const qwq_kernels qwq_avx2_kernels;
extern const qwq_kernels qwq_avx512_kernels;
#endif

/* fp16 bits to float, exactly. */
static inline float half_to_float(uint16_t h)
{
    union { uint32_t u; float f; } v;
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 1023u;
    if (exponent == 0) { /* subnormal: a multiple of 2^-24 */
        v.f = (float)mantissa * 0x1p-24f;
        v.u |= sign;
        return v.f;
    }
    v.u = sign | ((exponent == 31 ? 255u : exponent + 112u) << 23) | (mantissa << 13);
    return v.f;
}

#endif
