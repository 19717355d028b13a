/* One decoder layer in one call: the entry points of matmul, rope, cache and attention in the order of
 * spec.model.block. A small model would spend its time between the calls. */
#include <string.h>

#include "check.h"
#include "qwq.h"

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Where a layer's intermediate results are. */
typedef struct {
    float *qkv, *q, *k, *v, *heads, *act;
    void *rest; /* scratch of whatever is running */
    size_t bytes;
} places;

/* Sizes that a layer can have, and of which no product here overflows. */
static int possible(const qwq_layer *l, size_t pos, size_t T, int threads)
{
    const size_t most = 1 << 24;
    return l && threads >= 1 && threads <= QWQ_MOST_THREADS && l->D && l->D <= most && l->F && l->F <= most &&
           l->F % 32 == 0 && l->E && l->E <= most && l->E % 2 == 0 && l->K && l->K <= most && l->H && l->H <= most &&
           l->H % l->K == 0 && l->H + 2 * l->K <= most / l->E && T <= most && pos <= most;
}

static places places_of(uint8_t *at, const qwq_layer *l, size_t pos, size_t T, int threads)
{
    const size_t all = (l->H + 2 * l->K) * l->E, q = l->H * l->E, k = l->K * l->E;
    const qwq_linear *linear[] = {&l->qkv, &l->o, &l->gate_up, &l->down};
    const size_t inputs[] = {l->D, q, l->D, l->F};
    places p;
    uint8_t *start = at;
    float **floats[] = {&p.qkv, &p.q, &p.k, &p.v, &p.heads, &p.act};
    const size_t columns[] = {all, q, k, k, q, l->F};
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++) {
        *floats[i] = (float *)(void *)at;
        at += up(T * columns[i] * sizeof(float), 64);
    }
    size_t rest = qwq_attention_scratch(pos, T, l->H, l->K, l->E, threads);
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++)
        rest = larger(rest, qwq_matmul_scratch(&linear[i]->format, T, inputs[i], threads));
    p.rest = at;
    p.bytes = (size_t)(at - start) + up(rest, 64);
    return p;
}

size_t qwq_layer_scratch(const qwq_layer *layer, size_t pos, size_t T, int threads)
{
    return possible(layer, pos, T, threads) ? places_of(NULL, layer, pos, T, threads).bytes : 0;
}

/* Columns of a matrix as a matrix of their own. */
static void take(float *to, const float *from, size_t T, size_t columns, size_t ld)
{
    for (size_t t = 0; t < T; t++)
        memcpy(to + t * columns, from + t * ld, columns * sizeof(float));
}

/* All that could be wrong with a call, before anything is written. */
static int check(const float *x, const qwq_layer *l, const float *cos, const float *sin, const void *scratch,
                 const int32_t *stop, size_t pos, size_t T, size_t first, int isa, int threads)
{
    if (!l)
        return QWQ_ENULL;
    if (!qwq_isa_supported(isa))
        return QWQ_EISA;
    if (!possible(l, pos, T, threads) || pos + T > l->capacity || first > T)
        return QWQ_ESIZE;
    const size_t q = l->H * l->E, k = l->K * l->E, half = T * (l->E / 2), size = sizeof(float);
    const size_t kv = (l->kv_int8 ? qwq_kv_int8_bytes : qwq_kv_fp32_bytes)(l->capacity, l->K, l->E);
    if (!kv)
        return QWQ_ESIZE;
    const qwq_linear *linear[] = {&l->qkv, &l->o, &l->gate_up, &l->down};
    const size_t rows[] = {q + 2 * k, l->D, 2 * l->F, l->D}, columns[] = {l->D, q, l->D, l->F};
    size_t bytes[4];
    for (size_t i = 0; i < 4; i++)
        if (!(bytes[i] = qwq_packed_bytes(&linear[i]->format, rows[i], columns[i])))
            return QWQ_EFORMAT;
    const qwq_array arrays[] = {{x, T * l->D * size, size}, /* what is written comes first */
                                {l->kv, kv, 64},
                                {scratch, places_of(NULL, l, pos, T, threads).bytes, 64},
                                {cos, half * size, size},
                                {sin, half * size, size},
                                {l->input_norm, l->D * size, size},
                                {l->post_norm, l->D * size, size},
                                {l->qkv_bias, (q + 2 * k) * size, size},
                                {l->qkv.w, bytes[0], 64},
                                {l->o.w, bytes[1], 64},
                                {l->gate_up.w, bytes[2], 64},
                                {l->down.w, bytes[3], 64},
                                {l->center, l->center ? k * size : 0, size},
                                {stop, stop ? sizeof *stop : 0, sizeof *stop}};
    return qwq_check(arrays, 3, sizeof arrays / sizeof *arrays);
}

int qwq_layer_step(float *x, const qwq_layer *l, const float *cos, const float *sin, void *scratch,
                   const int32_t *stop, size_t pos, size_t T, size_t first, int isa, int threads)
{
    int error = check(x, l, cos, sin, scratch, stop, pos, T, first, isa, threads);
    if (error || !T)
        return error;
    const size_t q = l->H * l->E, k = l->K * l->E, all = q + 2 * k;
    const places p = places_of(scratch, l, pos, T, threads);
#define MATMUL(y, linear, from, T, N, K, ...)                                                                         \
    qwq_matmul(y, &linear.format, linear.w, from, &(qwq_fusion){.stop = stop, __VA_ARGS__}, p.rest, T, N, K, isa,     \
               threads)
    if ((error = MATMUL(p.qkv, l->qkv, x, T, all, l->D, .norm = l->input_norm, .eps = l->eps, .bias = l->qkv_bias)) ||
        (error = qwq_rope(p.qkv, cos, sin, T, l->H + l->K, l->E, all, isa, threads)))
        return error;
    take(p.k, p.qkv + q, T, k, all);
    take(p.v, p.qkv + q + k, T, k, all);
    if ((error = l->kv_int8
                     ? qwq_kv_int8_append(l->kv, p.k, p.v, l->center, pos, T, l->capacity, l->K, l->E, isa, threads)
                     : qwq_kv_fp32_append(l->kv, p.k, p.v, pos, T, l->capacity, l->K, l->E, isa, threads)) ||
        first == T)
        return error;
    x += first * l->D; /* from here on, only of the rows that are asked for */
    pos += first;
    T -= first;
    take(p.q, p.qkv + first * all, T, q, all);
    if ((error = l->kv_int8 ? qwq_attention_int8(p.heads, l->kv, p.q, p.rest, pos, T, l->capacity, l->H, l->K, l->E,
                                                 l->window, 0, stop, isa, threads)
                            : qwq_attention_fp32(p.heads, l->kv, p.q, p.rest, pos, T, l->capacity, l->H, l->K, l->E,
                                                 l->window, stop, isa, threads)) ||
        (error = MATMUL(x, l->o, p.heads, T, l->D, q, .residual = x)) ||
        (error = MATMUL(p.act, l->gate_up, x, T, 2 * l->F, l->D, .norm = l->post_norm, .eps = l->eps, .swiglu = 1)))
        return error;
    return MATMUL(x, l->down, p.act, T, l->D, l->F, .residual = x);
}
