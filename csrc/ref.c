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

const qwq_kernels qwq_ref_kernels = {quantise, q4_panel};
