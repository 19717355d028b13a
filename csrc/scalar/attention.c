/* Attention over a KV cache, scalar: the reading copy, the twin of numerics/kv.py. Every variant gives these bits. */
#include <math.h>

#include "common/attention.h"
#include "common/fixed.h"

static float moved(const float *x, const float *gain, const float *center, size_t e)
{
    float v = gain ? x[e] * gain[e] : x[e];
    return center ? v - center[e] : v;
}

static float quantise(int8_t *q, const float *x, const float *gain, const float *center, size_t E)
{
    float largest = 0;
    for (size_t e = 0; e < E; e++) {
        float magnitude = fabsf(moved(x, gain, center, e));
        largest = magnitude > largest ? magnitude : largest;
    }
    largest = fminf(largest, ATTENTION_LARGEST);
    float inverse = largest >= ATTENTION_SMALLEST ? 127 / largest : 0;
    for (size_t e = 0; e < E; e++)
        q[e] = (int8_t)lrintf(fminf(fmaxf(moved(x, gain, center, e) * inverse, -127), 127));
    return largest * (1.0f / 127.0f);
}

static int32_t bias_of(const qwq_rows *rows, const qwq_chunk *chunk, size_t r, size_t t)
{
    int32_t sum = 0;
    for (size_t n = 0; n < rows->pairs; n++)
        for (size_t i = 0; i < 2; i++)
            sum += chunk->bias[(t / 16 * rows->pairs + n) * 32 + t % 16 * 2 + i] *
                   rows->bias_q[(n * rows->rows + r) * 2 + i];
    return sum;
}

static void scores_int8(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    const int8_t *q = rows->q;
    size_t E = rows->E;
    for (size_t r = 0; r < rows->rows; r++)
        for (size_t t = first * SPAN; t < last * SPAN; t++) {
            const qwq_span *span = &chunk->spans[t / SPAN];
            const uint8_t *k = (const uint8_t *)span->k + t % SPAN / 16 * 16 * E + t % 16 * 4;
            float halves[HALVES];
            for (size_t h = 0; h < HALVES; h++) {
                int32_t sum = rows->begin[h][r];
                for (size_t e = h * E / 2; e < (h + 1) * E / 2; e++)
                    sum += k[e / 4 * 64 + e % 4] * q[(e / 4 * rows->rows + r) * 4 + e % 4];
                halves[h] = (float)sum * (rows->factor[h][r] * span->k_scale[h][t % SPAN]);
            }
            float score = halves[0] + halves[1];
            if (rows->pairs)
                score = score + (float)bias_of(rows, chunk, r, t) * rows->bias_factor[r];
            rows->scores[r * STRIDE + t] = score;
        }
}

/* The largest score that a row sees, and p = 2^(score - largest) in `p`; their sum. Others are 0. */
static float softmax(float *p, float *total, const float *scores, size_t from, size_t to, size_t first, size_t last)
{
    float top = ATTENTION_LOWEST, lanes[16] = {0};
    for (size_t t = from; t < to; t++)
        top = scores[t] > top ? scores[t] : top;
    for (size_t t = first * SPAN; t < last * SPAN; t++) {
        p[t] = t >= from && t < to ? fixed_exp2(scores[t] - top) : 0;
        lanes[t % 16] = lanes[t % 16] + p[t];
    }
    *total = fixed_lanes(lanes);
    return top;
}

static void weights_int8(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last, int p_bits)
{
    for (size_t r = 0; r < rows->rows; r++) {
        float *p = rows->scores + r * STRIDE, *out = rows->out + r * (rows->E + OUT_EXTRA) + rows->E;
        out[OUT_TOP] = softmax(p, &out[OUT_TOTAL], p, rows->from[r], rows->to[r], first, last);
        for (size_t b = first * SPAN / BLOCK; b < last * SPAN / BLOCK; b++) {
            const float *scale = chunk->spans[b * BLOCK / SPAN].v_scale + b * BLOCK % SPAN;
            float w[BLOCK], largest = 0;
            for (size_t i = 0; i < BLOCK; i++) {
                float weight = p[b * BLOCK + i];
                w[i] = weight > 0 ? weight * scale[i] : 0; /* unseen: anything may lie there */
                largest = w[i] > largest ? w[i] : largest;
            }
            float inverse = largest >= ATTENTION_SMALLEST ? UNITS / largest : 0;
            int32_t *weights = (int32_t *)rows->p + r * STRIDE + b * BLOCK, narrow[BLOCK], sum = 0, off = 0;
            for (size_t i = 0; i < BLOCK; i++) {
                weights[i] = (int32_t)lrintf(w[i] * inverse);
                narrow[i] = (weights[i] + 128) / 256 * 256;
                sum += weights[i];
                off += weights[i] - narrow[i];
            }
            if (p_bits == 8 || (p_bits == 0 && (off < 0 ? -off : off) * 128 <= sum))
                for (size_t i = 0; i < BLOCK; i++)
                    weights[i] = narrow[i];
            rows->unit[r][b] = largest * (1.0f / UNITS);
        }
    }
}

static void values_int8(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    size_t E = rows->E;
    for (size_t r = 0; r < rows->rows; r++)
        for (size_t e = 0; e < E; e++) {
            float total = 0;
            for (size_t b = first * SPAN / BLOCK; b < last * SPAN / BLOCK; b++) {
                const int8_t *v = chunk->spans[b * BLOCK / SPAN].v;
                int32_t sum = 0;
                for (size_t t = b * BLOCK; t < (b + 1) * BLOCK; t++)
                    sum += ((const int32_t *)rows->p)[r * STRIDE + t] * v[value_at(t % SPAN, e)];
                total = total + (float)sum * rows->unit[r][b];
            }
            rows->out[r * (E + OUT_EXTRA) + e] = total;
        }
}

static void scores_fp32(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    size_t E = rows->E;
    for (size_t r = 0; r < rows->rows; r++)
        for (size_t t = first * SPAN; t < last * SPAN; t++) {
            const float *q = (const float *)rows->q + r * E,
                        *k = (const float *)chunk->spans[t / SPAN].k + t % SPAN * E;
            float lanes[16];
            for (size_t j = 0; j < 16; j++)
                lanes[j] = q[j] * k[j];
            for (size_t e = 16; e < E; e++)
                lanes[e % 16] = lanes[e % 16] + q[e] * k[e];
            rows->scores[r * STRIDE + t] = fixed_lanes(lanes) * rows->factor[0][r];
        }
}

static void weights_fp32(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last, int p_bits)
{
    (void)chunk;
    (void)p_bits;
    for (size_t r = 0; r < rows->rows; r++) {
        float *p = rows->scores + r * STRIDE, *out = rows->out + r * (rows->E + OUT_EXTRA) + rows->E;
        out[OUT_TOP] = softmax(p, &out[OUT_TOTAL], p, rows->from[r], rows->to[r], first, last);
    }
}

static void values_fp32(qwq_rows *rows, const qwq_chunk *chunk, size_t first, size_t last)
{
    (void)first;
    (void)last;
    size_t E = rows->E;
    for (size_t r = 0; r < rows->rows; r++)
        for (size_t e = 0; e < E; e++) {
            float total = 0;
            for (size_t t = rows->from[r]; t < rows->to[r]; t++) {
                const float *v = chunk->spans[t / SPAN].v;
                total = total + rows->scores[r * STRIDE + t] * v[t % SPAN * E + e];
            }
            rows->out[r * (E + OUT_EXTRA) + e] = total;
        }
}

static void merge(float *state, const float *out, size_t E)
{
    float top = fmaxf(state[E + OUT_TOP], out[E + OUT_TOP]);
    float keep = fixed_exp2(state[E + OUT_TOP] - top), add = fixed_exp2(out[E + OUT_TOP] - top);
    state[E + OUT_TOP] = top;
    state[E + OUT_TOTAL] = state[E + OUT_TOTAL] * keep + out[E + OUT_TOTAL] * add;
    for (size_t e = 0; e < E; e++)
        state[e] = state[e] * keep + out[e] * add;
}

void qwq_scalar_attention(qwq_attention_kernels *kernels)
{
    kernels->quantise = quantise;
    kernels->scores_int8 = scores_int8;
    kernels->weights_int8 = weights_int8;
    kernels->values_int8 = values_int8;
    kernels->scores_fp32 = scores_fp32;
    kernels->weights_fp32 = weights_fp32;
    kernels->values_fp32 = values_fp32;
    kernels->merge = merge;
    kernels->rows = ROWS;
}
