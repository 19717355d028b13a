/* The KV cache: pages, their layout, and new tokens. */
#include "common/cache.h"

#include <math.h>
#include <string.h>

#include "common/calls.h"
#include "common/check.h"
#include "common/parallel.h"

/* So all products of sizes stay below 2^63: the most are 2^30 tokens, 2^16 heads, and 8 bytes of 2^12 dimensions. */
int qwq_cache_is_possible(size_t K, size_t E)
{
    return K && K <= QWQ_MOST_HEADS && E && E <= MOST_DIMS;
}

static size_t head_bytes(size_t E, int fp32)
{
    return SPAN * (up(E, DIMS) * (fp32 ? 8 : 2) + (fp32 ? 0 : (HALVES + 1) * sizeof(float)));
}

size_t qwq_kv_page_bytes(const qwq_kv *kv)
{
    return kv && qwq_cache_is_possible(kv->K, kv->E) ? kv->K * head_bytes(kv->E, !kv->int8) : 0;
}

/* A head's part of page n. */
qwq_span qwq_span_at(const qwq_kv *kv, size_t head, size_t n)
{
    const uint8_t *k = kv->pages[n] + kv->offset + head * head_bytes(kv->E, !kv->int8);
    size_t wide = up(kv->E, DIMS);
    if (!kv->int8)
        return (qwq_span){.k = k, .v = k + SPAN * wide * 4};
    const float *scale = (const float *)(const void *)(k + 2 * SPAN * wide);
    return (qwq_span){k, k + SPAN * wide, {scale, scale + SPAN}, scale + 2 * SPAN};
}

/* x * gain - center [E] to q, E rounded up to 32: each half with a scale of its own. */
void qwq_quantise_halves(const qwq_attention_kernels *kernels, int8_t *q, float scale[HALVES], const float *x,
                         const float *gain, const float *center, size_t E)
{
    size_t wide = up(E, DIMS), lower = smaller(E, wide / 2);
    memset(q + E, 0, wide - E);
    scale[0] = kernels->quantise(q, x, gain, center, lower);
    scale[1] =
        kernels->quantise(q + lower, x + lower, gain ? gain + lower : NULL, center ? center + lower : NULL, E - lower);
}

/* Token i of a span: keys, values and scales into their places. */
static void place(const qwq_attention_kernels *kernels, qwq_span span, size_t i, const float *k, const float *v,
                  const float *gain, const float *center, size_t E)
{
    size_t wide = up(E, DIMS);
    int8_t row[MOST_DIMS];
    float scale[HALVES];
    uint8_t *keys = (uint8_t *)(uintptr_t)span.k + i / 16 * 16 * wide + i % 16 * 4;
    uint8_t *values = (uint8_t *)(uintptr_t)span.v;
    qwq_quantise_halves(kernels, row, scale, k, gain, center, E);
    for (size_t h = 0; h < HALVES; h++)
        ((float *)(uintptr_t)span.k_scale[h])[i] = scale[h];
    for (size_t e = 0; e < wide; e++)
        keys[e / 4 * 64 + e % 4] = (uint8_t)(row[e] + KEY_OFFSET);
    ((float *)(uintptr_t)span.v_scale)[i] = kernels->quantise(row, v, NULL, NULL, E);
    for (size_t e = 0; e < wide; e++)
        values[value_at(i, e)] = (uint8_t)row[e];
}

static void place_fp32(qwq_span span, size_t i, const float *k, const float *v, size_t E)
{
    size_t wide = up(E, DIMS);
    float *keys = (float *)(uintptr_t)span.k + i * wide, *values = (float *)(uintptr_t)span.v + i * wide;
    memcpy(keys, k, E * sizeof(float));
    memcpy(values, v, E * sizeof(float));
    memset(keys + E, 0, (wide - E) * sizeof(float));
    memset(values + E, 0, (wide - E) * sizeof(float));
}

int qwq_bias_arrays(qwq_array *arrays, const qwq_kv *kv, size_t capacity)
{
    const qwq_key_bias *bias = &kv->bias;
    size_t pairs = kv->int8 ? bias->pairs : 0;
    if (pairs > kv->E / 2 ||
        (pairs && (bias->most < 1 || bias->chunks > QWQ_MOST_SIZE / CHUNK || bias->chunks * CHUNK < capacity)))
        return QWQ_ESIZE;
    size_t all = kv->K * pairs;
    size_t vectors = kv->int8 ? kv->K * kv->E * sizeof(float) : 0;
    const qwq_array ours[] = {{bias->key_gain, bias->key_gain ? vectors : 0, 4},
                              {bias->query_gain, bias->query_gain ? vectors : 0, 4},
                              {bias->center, bias->center ? vectors : 0, 4},
                              {bias->first, all * sizeof *bias->first, 4},
                              {bias->codes, all * CHUNK * 2 * sizeof *bias->codes, 64},
                              {bias->scale, pairs ? kv->K * sizeof *bias->scale : 0, 4},
                              {bias->turns, bias->chunks * all * 2 * sizeof *bias->turns, 4}};
    memcpy(arrays, ours, sizeof ours);
    return 0;
}

int qwq_bias_dims(const qwq_kv *kv)
{
    for (size_t n = 0; kv->int8 && n < kv->K * kv->bias.pairs; n++)
        if (kv->bias.first[n] < 0 || (size_t)kv->bias.first[n] >= kv->E / 2)
            return QWQ_ESIZE;
    return 0;
}

int qwq_part_is_possible(const qwq_part *part)
{
    return part->capacity <= QWQ_MOST_SIZE && part->pos <= part->capacity && part->T <= part->capacity - part->pos &&
           part->first <= part->T;
}

static int meet(uintptr_t a, size_t bytes_of_a, uintptr_t b, size_t bytes_of_b)
{
    return a < b + bytes_of_b && b < a + bytes_of_a;
}

int qwq_check_pages(const qwq_kv *kv, const qwq_part *part, int reads, const qwq_array *arrays, int outputs, int count)
{
    size_t bytes = qwq_kv_page_bytes(kv), end = part->pos + part->T;
    size_t written = reads || !part->T ? end : part->pos; /* the first token that is */
    if (!end)
        return 0;
    if (!part->pages)
        return QWQ_ENULL;
    for (size_t n = 0; n * SPAN < end; n++) {
        uintptr_t from = (uintptr_t)part->pages[n];
        if (!from)
            return QWQ_ENULL;
        if (kv->offset > UINTPTR_MAX - from || bytes > UINTPTR_MAX - from - kv->offset)
            return QWQ_ESIZE;
        from += kv->offset;
        if (from % 64)
            return QWQ_EALIGN;
        const int is_written = (n + 1) * SPAN > written;
        for (int i = 0; i < (is_written ? count : outputs); i++)
            if (arrays[i].bytes && meet(from, bytes, (uintptr_t)arrays[i].from, arrays[i].bytes))
                return QWQ_EOVERLAP;
        for (size_t m = 0; is_written && m < n; m++)
            if (meet(from, bytes, (uintptr_t)part->pages[m] + kv->offset, bytes))
                return QWQ_EOVERLAP;
    }
    return 0;
}

int qwq_kv_append(const qwq_kv *kv, const float *k, const float *v, size_t pos, size_t T, int isa, int threads)
{
    const qwq_table *table = qwq_table_of(isa);
    if (!table)
        return QWQ_EISA;
    if (!kv)
        return QWQ_ENULL;
    const qwq_part part = {kv->pages, kv->capacity, pos, T, 0};
    if (!qwq_cache_is_possible(kv->K, kv->E) || !qwq_part_is_possible(&part) || !qwq_threads_are_possible(threads))
        return QWQ_ESIZE;
    size_t heads = kv->K * kv->E * sizeof(float);
    qwq_array arrays[2 + QWQ_BIAS_ARRAYS] = {{k, T * heads, 4}, {v, T * heads, 4}};
    int code = qwq_bias_arrays(arrays + 2, kv, kv->capacity);
    code = code ? code : qwq_check(arrays, 0, 2 + QWQ_BIAS_ARRAYS);
    code = code ? code : qwq_check_pages(kv, &part, 0, arrays, 0, 2 + QWQ_BIAS_ARRAYS);
    code = code ? code : qwq_bias_dims(kv);
    if (!code)
        qwq_append_run(&(qwq_append_call){kv, &part, 1, k, v, table, threads});
    return code;
}

static size_t spans_of(const qwq_part *part)
{
    return part->T ? (part->pos + part->T - 1) / SPAN + 1 - part->pos / SPAN : 0;
}

/* Tokens of one part in one span of one head. k, v: of the part. */
static void append_span(const qwq_append_call *c, const qwq_part *part, const float *k, const float *v, size_t head,
                        size_t n)
{
    qwq_kv kv = *c->kv;
    kv.pages = part->pages;
    size_t pos = part->pos, end = pos + part->T, E = kv.E, start = n * SPAN;
    qwq_span span = qwq_span_at(&kv, head, n);
    const float *gain = qwq_of_head(kv.bias.key_gain, head, E), *center = qwq_of_head(kv.bias.center, head, E);
    for (size_t p = start > pos ? start : pos; p < end && p < start + SPAN; p++) {
        size_t from = ((p - pos) * kv.K + head) * E;
        if (kv.int8)
            place(&c->table->attention, span, p - start, k + from, v + from, gain, center, E);
        else
            place_fp32(span, p - start, k + from, v + from, E);
    }
}

/* A piece is one span of one head: threads share no line of the cache. */
static void append_spans(const void *call, size_t first, size_t last, int worker)
{
    const qwq_append_call *c = call;
    const size_t K = c->kv->K;
    const qwq_part *part = c->parts;
    size_t begin = 0, tokens = 0; /* pieces and tokens of the parts before */
    (void)worker;
    for (size_t n = first; n < last; n++) {
        while (n - begin >= K * spans_of(part)) {
            begin += K * spans_of(part);
            tokens += part++->T;
        }
        size_t spans = spans_of(part), i = n - begin, from = tokens * K * c->kv->E;
        append_span(c, part, c->k + from, c->v + from, i / spans, part->pos / SPAN + i % spans);
    }
}

void qwq_append_run(const qwq_append_call *c)
{
    size_t pieces = 0, tokens = 0;
    for (size_t i = 0; i < c->count; i++) {
        pieces += c->kv->K * spans_of(&c->parts[i]);
        tokens += c->parts[i].T;
    }
    qwq_parallel_for(append_spans, c, pieces, tokens > 1 ? c->threads : 1);
}
