/* The reading copy: scalar C99, the twin of spec/quant.py. Every other variant gives these bits. */
#include <math.h>

#include "kernels.h"

static void quantise(int8_t *q, float *scale, int32_t *sum, const float *x, size_t K)
{
    for (size_t g = 0; g < K / GROUP; g++, x += GROUP, q += GROUP) {
        float largest = 0;
        for (int k = 0; k < GROUP; k++)
            largest = fabsf(x[k]) > largest ? fabsf(x[k]) : largest;
        float inverse = largest >= 0x1p-100f ? 127.0f / largest : 0;
        int32_t total = 0;
        for (int k = 0; k < GROUP; k++) {
            q[k] = (int8_t)lrintf(x[k] * inverse);
            total += q[k];
        }
        scale[g] = largest * (1.0f / 127.0f);
        sum[g] = total;
    }
}

static uint8_t nearest(float value)
{
    uint8_t n = 0;
    while (n < 15 && value > QWQ_MIDDLES[n])
        n++;
    return n;
}

/* Sums of 64 in the order of spec.quant.lane_sum. */
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
    return (uint16_t)(best_scale | (sign < 0 ? 0x8000u : 0));
}

/* The code of row r, column k of a group. Rows 0-15 are low nibbles, rows 16-31 high ones. */
static int code(const uint8_t *block, int r, int k)
{
    uint8_t byte = block[k / 4 * LINE + r % 16 * 4 + k % 4];
    return r < 16 ? byte & 15 : byte >> 4;
}

static void q4_panel(float *y, size_t ldy, size_t rows, const uint8_t *panel, qwq_tile tile, size_t tokens,
                     size_t groups)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t t = 0; t < tokens; t++) {
            float total = 0;
            for (size_t g = 0; g < groups; g++) {
                const uint8_t *block = panel + g * Q4_BLOCK;
                const int8_t *q = tile.q + g * GROUP * tokens;
                int32_t sum = tile.begin[g * tokens + t];
                for (int k = 0; k < GROUP; k++) {
                    int level = QWQ_CODEBOOK[code(block, (int)r, k)] + LEVEL_OFFSET;
                    sum += level * q[((size_t)k / 4 * tokens + t) * 4 + (size_t)k % 4];
                }
                const uint8_t *half = block + LINES * LINE + 2 * r;
                float both = tile.scale[g * tokens + t] * half_to_float((uint16_t)(half[0] | half[1] << 8));
                total = total + (float)sum * both;
            }
            y[t * ldy + r] = total;
        }
}

static uint16_t quantise_q8(int8_t *q, const float *w)
{
    float largest = 0;
    for (int k = 0; k < GROUP; k++)
        largest = fabsf(w[k]) > largest ? fabsf(w[k]) : largest;
    uint16_t half = float_to_half(fminf(largest * (1.0f / 127.0f), QWQ_LARGEST));
    float scale = half_to_float(half), inverse = scale > 0 ? 1.0f / scale : 0;
    for (int k = 0; k < GROUP; k++)
        q[k] = (int8_t)fminf(fmaxf(rintf(w[k] * inverse), -127), 127);
    return half;
}

static void q8_panel(float *y, size_t ldy, size_t rows, const uint8_t *panel, qwq_tile tile, size_t tokens,
                     size_t groups)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t t = 0; t < tokens; t++) {
            float total = 0;
            for (size_t g = 0; g < groups; g++) {
                const uint8_t *block = panel + g * Q8_BLOCK;
                const int8_t *q = tile.q + g * GROUP * tokens;
                int32_t sum = tile.begin[g * tokens + t];
                for (size_t k = 0; k < GROUP; k++) {
                    int level = block[(k / 4 * 2 + r / 16) * LINE + r % 16 * 4 + k % 4];
                    sum += level * q[(k / 4 * tokens + t) * 4 + k % 4];
                }
                const uint8_t *half = block + LINES * 2 * LINE + 2 * r;
                float both = tile.scale[g * tokens + t] * half_to_float((uint16_t)(half[0] | half[1] << 8));
                total = total + (float)sum * both;
            }
            y[t * ldy + r] = total;
        }
}

const qwq_kernels qwq_ref_kernels = {quantise, quantise_q4, q4_panel, quantise_q8, q8_panel};
