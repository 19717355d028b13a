/* One decoder layer in one call: products, rope, cache and attention in the order of spec.model.block. A small model
 * would spend its time between the calls. The whole call is checked once; then its parts run unchecked. */
#include <string.h>

#include "common/calls.h"
#include "common/check.h"

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* The products of a layer, with the sizes [rows, columns] of their weights. */
enum { Q, KEYS, VALUES, O, GATE_UP, DOWN, WEIGHTS };
typedef struct {
    const qwq_linear *w;
    size_t rows, columns;
} weight;

/* Fused, Q stands for all three projections; KEYS and VALUES then have no rows. */
static void weights_of(weight *weights, const qwq_layer *l)
{
    const size_t q = l->H * l->kv.E, k = l->kv.K * l->kv.E;
    const qwq_qkv *qkv = &l->qkv;
    int fused = qkv->fused.packed != NULL;
    weights[Q] = (weight){fused ? &qkv->fused : &qkv->q, fused ? q + 2 * k : q, l->D};
    weights[KEYS] = (weight){&qkv->k, fused ? 0 : k, l->D};
    weights[VALUES] = (weight){&qkv->v, fused ? 0 : k, l->D};
    weights[O] = (weight){&l->o, l->D, q};
    weights[GATE_UP] = (weight){&l->gate_up, 2 * l->F, l->D};
    weights[DOWN] = (weight){&l->down, l->D, l->F};
}

/* Where a layer's intermediate results are. */
typedef struct {
    float *qkv, *q, *k, *v, *heads, *act, *wanted; /* the last: rows of x, if not all are wanted */
    void *rest;                                    /* scratch of whatever is running */
    size_t bytes;
} places;

/* The parts of a call, and its tokens: all, and the wanted ones. */
typedef struct {
    const qwq_part *parts;
    size_t count, T, wanted;
} tokens;

/* 0 if the sizes of a part cannot be. */
static int count_tokens(tokens *n, const qwq_part *parts, size_t count)
{
    const size_t most = 1 << 24;
    *n = (tokens){.parts = parts, .count = count};
    if (count > most)
        return 0;
    for (size_t i = 0; i < count; i++) {
        const qwq_part *p = &parts[i];
        if (p->pos > most || p->T > most || !qwq_part_is_possible(p))
            return 0;
        n->T += p->T;
        n->wanted += p->T - p->first;
    }
    return n->T <= most;
}

/* Sizes that a layer can have, and of which no product here overflows. */
static int possible(const qwq_layer *l, int threads)
{
    const size_t most = 1 << 24, E = l->kv.E, K = l->kv.K;
    return qwq_threads_are_possible(threads) && l->D && l->D <= most && l->F && l->F <= most && l->F % 32 == 0 && E &&
           E <= most && E % 2 == 0 && K && K <= most && l->H && l->H <= most && l->H % K == 0 &&
           l->H + 2 * K <= most / E;
}

static places places_of(uint8_t *at, const qwq_layer *l, const tokens *n, int threads)
{
    const size_t T = n->T;
    const size_t q = l->H * l->kv.E, k = l->kv.K * l->kv.E;
    const size_t all = l->qkv.fused.packed ? q + 2 * k : 0; /* three weights write to q, k and v */
    places p;
    uint8_t *start = at;
    float **floats[] = {&p.qkv, &p.q, &p.k, &p.v, &p.heads, &p.act, &p.wanted};
    const size_t sizes[] = {T * all, T * q, T * k, T * k, T * q, T * l->F, n->wanted < T ? n->wanted * l->D : 0};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        *floats[i] = (float *)(void *)at;
        at += up(sizes[i] * sizeof(float), 64);
    }
    const qwq_queries queries = {.H = l->H};
    size_t rest = qwq_attention_room(&(qwq_attention_call){
        .kv = &l->kv, .parts = n->parts, .count = n->count, .queries = &queries, .threads = threads});
    weight weights[WEIGHTS];
    weights_of(weights, l);
    for (int i = 0; i < WEIGHTS; i++)
        if (weights[i].rows)
            rest = larger(rest, qwq_matmul_scratch(&weights[i].w->format, T, weights[i].columns, threads));
    p.rest = at;
    p.bytes = (size_t)(at - start) + up(rest, 64);
    return p;
}

size_t qwq_layer_scratch(const qwq_layer *layer, const qwq_part *parts, size_t count, int threads)
{
    tokens n;
    if (!layer || (count && !parts) || !possible(layer, threads) || !count_tokens(&n, parts, count) ||
        !qwq_attention_is_possible(&layer->kv, &(qwq_queries){.H = layer->H}))
        return 0;
    return places_of(NULL, layer, &n, threads).bytes;
}

/* Columns of a matrix as a matrix of their own. */
static void take(float *to, const float *from, size_t T, size_t columns, size_t ld)
{
    for (size_t t = 0; t < T; t++)
        memcpy(to + t * columns, from + t * ld, columns * sizeof(float));
}

/* All that could be wrong with a call whose sizes are possible, before anything is written. */
static int check(const float *x, const qwq_layer *l, const tokens *n, const float *cos, const float *sin,
                 const void *scratch, const int32_t *stop, int threads)
{
    const size_t q = l->H * l->kv.E, k = l->kv.K * l->kv.E, half = n->T * (l->kv.E / 2), size = sizeof(float);
    enum { OURS = 8 };
    qwq_array arrays[OURS + QWQ_BIAS_ARRAYS + 2 * WEIGHTS] = {{x, n->T * l->D * size, size}, /* what is written */
                                                              {scratch, places_of(NULL, l, n, threads).bytes, 64},
                                                              {cos, half * size, size},
                                                              {sin, half * size, size},
                                                              {l->input_norm, l->D * size, size},
                                                              {l->post_norm, l->D * size, size},
                                                              {l->qkv_bias, (q + 2 * k) * size, size},
                                                              {stop, stop ? sizeof *stop : 0, sizeof *stop}};
    size_t capacity = 0;
    for (size_t i = 0; i < n->count; i++)
        capacity = larger(capacity, n->parts[i].capacity);
    int code = qwq_bias_arrays(arrays + OURS, &l->kv, capacity);
    if (code)
        return code;
    weight weights[WEIGHTS];
    weights_of(weights, l);
    for (int i = 0; i < WEIGHTS; i++) {
        const weight *w = &weights[i];
        if (w->rows && !w->w->packed) /* neither fused nor apart: a format without weights says nothing */
            return QWQ_ENULL;
        size_t bytes = w->rows ? qwq_packed_bytes(&w->w->format, w->rows, w->columns) : 0;
        if (w->rows && !bytes)
            return QWQ_EFORMAT;
        const int32_t *columns = w->rows ? w->w->columns : NULL;
        qwq_array *of_weight = arrays + OURS + QWQ_BIAS_ARRAYS + 2 * i;
        of_weight[0] = (qwq_array){w->w->packed, bytes, 64};
        of_weight[1] = (qwq_array){columns, columns ? w->columns * sizeof *columns : 0, sizeof *columns};
    }
    const int count = sizeof arrays / sizeof *arrays;
    code = qwq_check(arrays, 2, count);
    for (size_t i = 0; !code && i < n->count; i++)
        code = qwq_check_pages(&l->kv, &n->parts[i], 0, arrays, 2, count);
    for (int i = 0; !code && i < WEIGHTS; i++)
        if (weights[i].rows && !qwq_are_columns(weights[i].w->columns, weights[i].columns))
            code = QWQ_EFORMAT;
    return code ? code : qwq_bias_dims(&l->kv);
}

/* One call while it runs. */
typedef struct {
    const qwq_layer *layer;
    const places *at;
    const qwq_table *table;
    const int32_t *stop;
    int threads;
} step;

static int product(const step *s, float *y, const weight *w, const float *x, size_t T, qwq_fusion fusion)
{
    fusion.eps = s->layer->eps;
    fusion.stop = s->stop;
    return qwq_matmul_run(&(qwq_matmul_call){.y = y,
                                             .w = w->w,
                                             .x = x,
                                             .fusion = &fusion,
                                             .scratch = s->at->rest,
                                             .T = T,
                                             .N = w->rows,
                                             .K = w->columns,
                                             .table = s->table,
                                             .threads = s->threads});
}

static void turn(const step *s, float *x, const float *cos, const float *sin, size_t T, size_t heads, size_t ld)
{
    qwq_rope_run(&(qwq_rope_call){x, cos, sin, T, heads, s->layer->kv.E, ld, s->table, s->threads});
}

/* Attention hides what this finds: int8 has no NaN, and cuts magnitudes above 2^56. Magnitudes of floats are in the
 * order of their bits, NaN last. */
static int in_range(const float *x, size_t n)
{
    int32_t beyond = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        beyond |= (bits & 0x7FFFFFFF) > ((127 + 56) << 23);
    }
    return !beyond;
}

/* The wanted rows of all parts, from rows of `ld` floats, to rows of `columns` after one another; may be in place. */
static void take_wanted(float *to, const float *from, const tokens *n, size_t columns, size_t ld)
{
    for (size_t i = 0; i < n->count; i++) {
        const qwq_part *part = &n->parts[i];
        for (size_t t = part->first; t < part->T; t++, to += columns)
            if (to != from + t * ld)
                memmove(to, from + t * ld, columns * sizeof(float));
        from += part->T * ld;
    }
}

/* Queries that are turned as the wanted rows of all parts, after one another. */
static void turn_wanted(const step *s, float *q, const float *cos, const float *sin, const tokens *n)
{
    const size_t half = s->layer->kv.E / 2, columns = s->layer->H * s->layer->kv.E;
    if (n->wanted == n->T) {
        turn(s, q, cos, sin, n->T, s->layer->H, columns);
        return;
    }
    for (size_t i = 0; i < n->count; i++) {
        const qwq_part *part = &n->parts[i];
        size_t first = part->first * half, rows = part->T - part->first;
        turn(s, q, cos + first, sin + first, rows, s->layer->H, columns);
        q += rows * columns;
        cos += part->T * half;
        sin += part->T * half;
    }
}

/* Queries of the wanted rows, keys and values of all, turned: x [T, D] -> at->q, at->k, at->v. */
static int project(const step *s, const weight *weights, const float *x, const float *cos, const float *sin,
                   const tokens *n)
{
    const qwq_layer *l = s->layer;
    const places *p = s->at;
    const size_t q = l->H * l->kv.E, k = l->kv.K * l->kv.E, all = q + 2 * k, T = n->T;
    qwq_fusion fusion = {.norm = l->input_norm, .bias = l->qkv_bias};
    int error;
    if (l->qkv.fused.packed) {
        if ((error = product(s, p->qkv, &weights[Q], x, T, fusion)))
            return error;
        turn(s, p->qkv, cos, sin, T, l->H + l->kv.K, all);
        take_wanted(p->q, p->qkv, n, q, all);
        take(p->k, p->qkv + q, T, k, all);
        take(p->v, p->qkv + q + k, T, k, all);
        return 0;
    }
    fusion.bias = l->qkv_bias + q;
    if ((error = product(s, p->k, &weights[KEYS], x, T, fusion)))
        return error;
    fusion.bias = l->qkv_bias + q + k;
    if ((error = product(s, p->v, &weights[VALUES], x, T, fusion)))
        return error;
    if (n->wanted < T) {
        take_wanted(p->wanted, x, n, l->D, l->D);
        x = p->wanted;
    }
    fusion.bias = l->qkv_bias;
    if (n->wanted && (error = product(s, p->q, &weights[Q], x, n->wanted, fusion)))
        return error;
    turn_wanted(s, p->q, cos, sin, n);
    turn(s, p->k, cos, sin, T, l->kv.K, k);
    return 0;
}

int qwq_layer_step(float *x, const qwq_layer *l, const qwq_part *parts, size_t count, const float *cos,
                   const float *sin, void *scratch, const int32_t *stop, int isa, int threads)
{
    if (!l || (count && !parts))
        return QWQ_ENULL;
    const qwq_table *table = qwq_table_of(isa);
    if (!table)
        return QWQ_EISA;
    const qwq_queries queries = {.H = l->H, .window = l->window, .stop = stop};
    tokens n;
    if (!possible(l, threads) || !count_tokens(&n, parts, count) || !qwq_attention_is_possible(&l->kv, &queries))
        return QWQ_ESIZE;
    int error = check(x, l, &n, cos, sin, scratch, stop, threads);
    if (error || !n.T)
        return error;
    const places p = places_of(scratch, l, &n, threads);
    const step s = {l, &p, table, stop, threads};
    const size_t q = l->H * l->kv.E, k = l->kv.K * l->kv.E, T = n.wanted;
    weight weights[WEIGHTS];
    weights_of(weights, l);
    if ((error = project(&s, weights, x, cos, sin, &n)))
        return error;
    if (!in_range(p.q, T * q) || !in_range(p.k, n.T * k) || !in_range(p.v, n.T * k))
        return QWQ_ERANGE;
    qwq_append_run(&(qwq_append_call){&l->kv, parts, count, p.k, p.v, table, threads});
    take_wanted(x, x, &n, l->D, l->D);
    if (!T)
        return 0;
    const qwq_attention_call attention = {p.heads, &l->kv, parts, count, p.q, p.rest, &queries, table, threads};
    if ((error = qwq_attention_run(&attention)) ||
        (error = product(&s, x, &weights[O], p.heads, T, (qwq_fusion){.residual = x})) ||
        (error = product(&s, p.act, &weights[GATE_UP], x, T, (qwq_fusion){.norm = l->post_norm, .swiglu = 1})))
        return error;
    return product(&s, x, &weights[DOWN], p.act, T, (qwq_fusion){.residual = x});
}
