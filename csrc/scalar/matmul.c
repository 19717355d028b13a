/* The reading copy: scalar C99, the twin of numerics/quant.py. Every other variant gives these bits. */
#include <math.h>

#include "common/formats.h"

static void largest(float *largest, const float *x, size_t groups)
{
    for (size_t g = 0; g < groups; g++, x += GROUP) {
        union {
            uint32_t u;
            float f;
        } most = {0}; /* as integers, magnitudes are in the order of floats, NaN last */
        for (int k = 0; k < GROUP; k++) {
            union {
                float f;
                uint32_t u;
            } v = {x[k]};
            v.u &= 0x7FFFFFFFu;
            most.u = v.u > most.u ? v.u : most.u;
        }
        largest[g] = most.f;
    }
}

static int32_t quantise(int8_t *q, const float *x, float inverse)
{
    int32_t sum = 0;
    for (int k = 0; k < GROUP; k++) {
        q[k] = (int8_t)lrintf(x[k] * inverse);
        sum += q[k];
    }
    return sum;
}

static uint8_t nearest(float value)
{
    uint8_t n = 0;
    while (n < 15 && value > QWQ_MIDDLES[n])
        n++;
    return n;
}

/* Sums of 64 in the order of numerics.quant.lane_sum. */
static float lane_sum(const float *x)
{
    float lanes[16];
    for (int j = 0; j < 16; j++)
        lanes[j] = ((x[j] + x[j + 16]) + x[j + 32]) + x[j + 48];
    for (int half = 8; half >= 1; half /= 2)
        for (int j = 0; j < half; j++)
            lanes[j] = lanes[j] + lanes[j + half];
    return lanes[0];
}

static uint16_t quantise_q4(uint8_t *code, const float *w)
{
    float largest = 0, sign = 1, v[GROUP], products[GROUP], squares[GROUP];
    for (int k = 0; k < GROUP; k++)
        if (fabsf(w[k]) > largest) { /* the first of the largest gives the sign */
            largest = fabsf(w[k]);
            sign = w[k] < 0 ? -1.0f : 1.0f;
        }
    for (int k = 0; k < GROUP; k++)
        v[k] = w[k] * sign;
    float best = INFINITY;
    uint16_t best_scale = 0;
    for (int start = 0; start < STARTS; start++) {
        float scale = fmaxf(largest * QWQ_STARTS[start], QWQ_SMALLEST);
        for (int round = 0; round < ROUNDS; round++) {
            float inverse = 1.0f / scale;
            for (int k = 0; k < GROUP; k++) {
                float level = QWQ_CODEBOOK[nearest(v[k] * inverse)];
                products[k] = v[k] * level;
                squares[k] = level * level;
            }
            scale = fminf(fmaxf(lane_sum(products) / lane_sum(squares), QWQ_SMALLEST), QWQ_LARGEST);
        }
        uint16_t half = largest > 0 ? float_to_half(scale) : 0;
        scale = half_to_float(half);
        float inverse = scale > 0 ? 1.0f / scale : 0;
        uint8_t codes[GROUP];
        for (int k = 0; k < GROUP; k++) {
            codes[k] = nearest(v[k] * inverse);
            float rest = v[k] - scale * (float)QWQ_CODEBOOK[codes[k]];
            squares[k] = rest * rest;
        }
        float error = lane_sum(squares);
        if (start == 0 || error < best) {
            best = error;
            best_scale = half;
            for (int k = 0; k < GROUP; k++)
                code[k] = codes[k];
        }
    }
    return scale_q4(code, w, best_scale, sign, best);
}

static uint16_t quantise_q8(int8_t *q, const float *w)
{
    float largest = 0;
    for (int k = 0; k < GROUP; k++)
        largest = fabsf(w[k]) > largest ? fabsf(w[k]) : largest;
    uint16_t half = scale_q8(largest);
    float scale = half_to_float(half), inverse = scale > 0 ? 1.0f / scale : 0;
    for (int k = 0; k < GROUP; k++)
        q[k] = (int8_t)fminf(fmaxf(rintf(w[k] * inverse), -127), 127);
    return half;
}

static inline void q4_line(uint8_t *first, uint8_t *second, const uint8_t *line)
{
    for (int b = 0; b < LINE; b++) {
        first[b] = (uint8_t)(QWQ_CODEBOOK[line[b] & 15] + Q4_EXCESS);
        second[b] = (uint8_t)(QWQ_CODEBOOK[line[b] >> 4] + Q4_EXCESS);
    }
}

static inline void halves(float *to, const uint8_t *from)
{
    for (int r = 0; r < PANEL; r++)
        to[r] = half_to_float((uint16_t)(from[2 * r] | from[2 * r + 1] << 8));
}

static inline void bytes_times(float *to, const uint8_t *bytes, const float *d)
{
    for (int r = 0; r < PANEL; r++)
        to[r] = d[r] * (float)bytes[r];
}

static inline void signed_bytes_times(float *to, const uint8_t *bytes, const float *d)
{
    for (int r = 0; r < PANEL; r++)
        to[r] = d[r] * (float)(int8_t)bytes[r];
}

#include "common/unpack.h"

UNPACK(planes, planes_to_bytes, layout->planes[1], layout->planes[2])

void qwq_unpack_q4(qwq_wide *wide, const uint8_t *block, size_t part, const qwq_format *format,
                   const qwq_layout *layout)
{
    unpack_q4(wide, block, part, format, layout);
}

void qwq_unpack_bytes(qwq_wide *wide, const uint8_t *block, size_t part, const qwq_format *format,
                      const qwq_layout *layout)
{
    unpack_bytes(wide, block, part, format, layout);
}

void qwq_unpack_planes(qwq_wide *wide, const uint8_t *block, size_t part, const qwq_format *format,
                       const qwq_layout *layout)
{
    unpack_planes(wide, block, part, format, layout);
}

void qwq_scalar_wide(float *y, const qwq_wide *w, const qwq_tile *tile, size_t tokens, size_t groups,
                     const qwq_layout *layout)
{
    size_t subgroups = layout->subgroups, columns = GROUP / subgroups;
    for (size_t t = 0; t < tokens; t++)
        for (size_t r = 0; r < PANEL; r++)
            for (size_t i = 0; i < groups * subgroups; i++) {
                size_t g = i / subgroups, s = i % subgroups;
                int32_t sum = tile->begin[i * tokens + t] * (layout->row_zeros ? w[g].zero[s][r] : 1);
                for (size_t k = s * columns; k < (s + 1) * columns; k++)
                    sum += w[g].code[k / 4][r / 16][r % 16 * 4 + k % 4] *
                           tile->q[((g * LINES + k / 4) * tokens + t) * 4 + k % 4];
                float both = tile->ratio[g * tokens + t] * w[g].scale[s][r];
                y[t * PANEL + r] = y[t * PANEL + r] + (float)sum * both;
                if (layout->offset)
                    y[t * PANEL + r] = y[t * PANEL + r] + w[g].offset[s][r] * tile->sum[i * tokens + t];
            }
}

/* A column of a block of floats is 32 numbers; the products of a group are summed first. */
#define FLOATS(name, type, to_float)                                                                                   \
    static void name(float *y, const uint8_t *blocks, const qwq_tile *tile, size_t tokens, size_t groups,              \
                     const qwq_format *format, const qwq_layout *layout)                                               \
    {                                                                                                                  \
        const type *w = (const type *)(const void *)blocks;                                                            \
        (void)format, (void)layout;                                                                                    \
        for (size_t t = 0; t < tokens; t++)                                                                            \
            for (size_t r = 0; r < PANEL; r++)                                                                         \
                for (size_t g = 0; g < groups; g++) {                                                                  \
                    float sum = 0;                                                                                     \
                    for (size_t k = g * GROUP; k < (g + 1) * GROUP; k++)                                               \
                        sum = sum + tile->x[k * tokens + t] * to_float(w[k * PANEL + r]);                              \
                    y[t * PANEL + r] = y[t * PANEL + r] + sum;                                                         \
                }                                                                                                      \
    }

FLOATS(bf16, uint16_t, bf16_to_float)
FLOATS(fp16, uint16_t, half_to_float)
FLOATS(fp32, float, )

void qwq_scalar_matmul(qwq_matmul_kernels *k)
{
    *k = (qwq_matmul_kernels){
        .largest = largest,
        .quantise = quantise,
        .quantise_q4 = quantise_q4,
        .quantise_q8 = quantise_q8,
        .widen = {[QWQ_BF16] = widen_bf16, [QWQ_FP16] = widen_fp16},
        .wide = qwq_scalar_wide,
        .blocks = {[QWQ_BF16] = bf16, [QWQ_FP16] = fp16, [QWQ_FP32] = fp32},
        .tile = MOST_TILE,
    };
    for (int codes = 0; codes < QWQ_CODE_TYPES; codes++)
        k->unpack[codes] = qwq_code_types[codes].unpack;
}
