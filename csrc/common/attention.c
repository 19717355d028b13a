/* Attention's entry points: they check a call, lay out its arrays, share the work among threads, and call a rung. */
#include "common/attention.h"

#include <math.h>
#include <string.h>

#include "common/calls.h"
#include "common/check.h"
#include "common/fixed.h"
#include "common/parallel.h"

enum {
    PASS = 48,           /* rows that walk through the context together, so that a chunk is read from cache */
    MOST = 4096,         /* head dimension */
    LEAST_WORK = 1 << 20 /* multiplications below which one thread is as fast */
};

/* One call, in the letters of qwq.h; `wide` is E as the cache holds it, `step` the floats of a row's result. */
typedef struct {
    const qwq_attention_kernels *kernels;
    qwq_kv kv;
    qwq_queries queries;
    const float *q;
    float *y;
    int fp32;
    float over_root; /* log2(e) / sqrt(E): scores are logarithms to base 2 */
    size_t G, wide, step;
    size_t rows, first, chunks; /* of a KV head; the first chunk that is seen, and their number */
    float *scratch, *kept;
} job;

/* So all products of sizes stay below 2^63: the most are 2^30 tokens, 2^16 heads, and 8 bytes of 2^12 dimensions. */
static int sizes_are_possible(size_t capacity, size_t K, size_t E)
{
    return capacity <= QWQ_MOST_SIZE && K && K <= QWQ_MOST_HEADS && E && E <= MOST;
}

static size_t head_bytes(size_t capacity, size_t E, int fp32)
{
    return up(capacity, SPAN) * (up(E, DIMS) * (fp32 ? 8 : 2) + (fp32 ? 0 : (HALVES + 1) * sizeof(float)));
}

size_t qwq_kv_bytes(const qwq_kv *kv)
{
    if (!kv || !sizes_are_possible(kv->capacity, kv->K, kv->E))
        return 0;
    return kv->K * head_bytes(kv->capacity, kv->E, !kv->int8);
}

/* A head's arrays from token t on, which begins a span. */
static qwq_chunk chunk_at(const qwq_kv *kv, size_t head, size_t t)
{
    const uint8_t *k = kv->data + head * head_bytes(kv->capacity, kv->E, !kv->int8);
    size_t C = up(kv->capacity, SPAN), wide = up(kv->E, DIMS);
    if (!kv->int8)
        return (qwq_chunk){.k = k + t * wide * 4, .v = k + (C + t) * wide * 4};
    const float *scale = (const float *)(const void *)(k + 2 * C * wide) + t;
    return (qwq_chunk){k + t * wide,
                       k + (C + t) * wide,
                       {scale, scale + C},
                       scale + 2 * C,
                       kv->bias.codes + head * CHUNK * kv->bias.pairs * 2};
}

static const float *of_head(const float *vectors, size_t head, size_t E)
{
    return vectors ? vectors + head * E : NULL;
}

/* x * gain - center [E] to q, E rounded up to 32: each half with a scale of its own. */
static void quantise_halves(const qwq_attention_kernels *kernels, int8_t *q, float scale[HALVES], const float *x,
                            const float *gain, const float *center, size_t E)
{
    size_t wide = up(E, DIMS), lower = smaller(E, wide / 2);
    memset(q + E, 0, wide - E);
    scale[0] = kernels->quantise(q, x, gain, center, lower);
    scale[1] =
        kernels->quantise(q + lower, x + lower, gain ? gain + lower : NULL, center ? center + lower : NULL, E - lower);
}

/* Token i of a span: keys, values and scales into their places. */
static void place(const qwq_attention_kernels *kernels, qwq_chunk span, size_t i, const float *k, const float *v,
                  const float *gain, const float *center, size_t E)
{
    size_t wide = up(E, DIMS);
    int8_t row[MOST];
    float scale[HALVES];
    uint8_t *keys = (uint8_t *)(uintptr_t)span.k + i / 16 * 16 * wide + i % 16 * 4;
    uint8_t *values = (uint8_t *)(uintptr_t)span.v;
    quantise_halves(kernels, row, scale, k, gain, center, E);
    for (size_t h = 0; h < HALVES; h++)
        ((float *)(uintptr_t)span.k_scale[h])[i] = scale[h];
    for (size_t e = 0; e < wide; e++)
        keys[e / 4 * 64 + e % 4] = (uint8_t)(row[e] + KEY_OFFSET);
    ((float *)(uintptr_t)span.v_scale)[i] = kernels->quantise(row, v, NULL, NULL, E);
    for (size_t e = 0; e < wide; e++)
        values[value_at(i, e, wide)] = (uint8_t)row[e];
}

static void place_fp32(qwq_chunk span, size_t i, const float *k, const float *v, size_t E)
{
    size_t wide = up(E, DIMS);
    float *keys = (float *)(uintptr_t)span.k + i * wide, *values = (float *)(uintptr_t)span.v + i * wide;
    memcpy(keys, k, E * sizeof(float));
    memcpy(values, v, E * sizeof(float));
    memset(keys + E, 0, (wide - E) * sizeof(float));
    memset(values + E, 0, (wide - E) * sizeof(float));
}

int qwq_bias_arrays(qwq_array *arrays, const qwq_kv *kv)
{
    const qwq_key_bias *bias = &kv->bias;
    size_t pairs = kv->int8 ? bias->pairs : 0;
    if (pairs > kv->E / 2 ||
        (pairs && (bias->most < 1 || bias->chunks > QWQ_MOST_SIZE / CHUNK || bias->chunks * CHUNK < kv->capacity)))
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

int qwq_kv_append(const qwq_kv *kv, const float *k, const float *v, size_t pos, size_t T, int isa, int threads)
{
    const qwq_table *table = qwq_table_of(isa);
    if (!table)
        return QWQ_EISA;
    if (!kv)
        return QWQ_ENULL;
    if (!sizes_are_possible(kv->capacity, kv->K, kv->E) || pos > kv->capacity || T > kv->capacity - pos ||
        !qwq_threads_are_possible(threads))
        return QWQ_ESIZE;
    size_t heads = kv->K * kv->E * sizeof(float);
    qwq_array arrays[3 + QWQ_BIAS_ARRAYS] = {{kv->data, qwq_kv_bytes(kv), 64}, {k, T * heads, 4}, {v, T * heads, 4}};
    int code = qwq_bias_arrays(arrays + 3, kv);
    code = code ? code : qwq_check(arrays, 1, 3 + QWQ_BIAS_ARRAYS);
    code = code ? code : qwq_bias_dims(kv);
    if (!code)
        qwq_append_run(&(qwq_append_call){kv, k, v, pos, T, table, threads});
    return code;
}

static size_t spans_of(const qwq_append_call *c)
{
    return (c->pos + c->T - 1) / SPAN + 1 - c->pos / SPAN;
}

/* A piece is one span of one head: threads share no line of the cache. */
static void append_spans(const void *call, size_t first, size_t last, int worker)
{
    const qwq_append_call *c = call;
    const qwq_kv *kv = c->kv;
    size_t pos = c->pos, end = pos + c->T, E = kv->E, spans = spans_of(c);
    (void)worker;
    for (size_t n = first; n < last; n++) {
        size_t head = n / spans, start = (pos / SPAN + n % spans) * SPAN;
        qwq_chunk span = chunk_at(kv, head, start);
        const float *gain = of_head(kv->bias.key_gain, head, E), *center = of_head(kv->bias.center, head, E);
        for (size_t p = start > pos ? start : pos; p < end && p < start + SPAN; p++) {
            size_t from = ((p - pos) * kv->K + head) * E;
            if (kv->int8)
                place(&c->table->attention, span, p - start, c->k + from, c->v + from, gain, center, E);
            else
                place_fp32(span, p - start, c->k + from, c->v + from, E);
        }
    }
}

void qwq_append_run(const qwq_append_call *c)
{
    if (c->T)
        qwq_parallel_for(append_spans, c, c->kv->K * spans_of(c), c->T > 1 ? c->threads : 1);
}

/* What a thread works in: queries, scores, weights, the result of one chunk, and those of all before. */
typedef struct {
    uint8_t *q;
    int16_t *bias_q;
    float *scores, *p, *out, *state;
} workspace;

static size_t step_of(size_t E)
{
    return up(E, DIMS) + OUT_EXTRA;
}

static size_t workspace_bytes(size_t E)
{
    return sizeof(float) * ((PASS + ROWS) * up(E, DIMS) + 2 * ROWS * STRIDE + (ROWS + PASS) * step_of(E));
}

static workspace workspace_at(float *scratch, int thread, size_t E)
{
    float *at = scratch + (size_t)thread * (workspace_bytes(E) / sizeof(float));
    workspace w = {.q = (uint8_t *)at, .bias_q = (int16_t *)(void *)(at + PASS * up(E, DIMS))};
    w.scores = at + (PASS + ROWS) * up(E, DIMS);
    w.p = w.scores + ROWS * STRIDE;
    w.out = w.p + ROWS * STRIDE;
    w.state = w.out + ROWS * step_of(E);
    return w;
}

/* Few rows are shared among threads by chunk, and their results kept until all are there. */
static size_t kept_bytes(size_t S, size_t T, size_t H, size_t K, size_t E)
{
    return T * (H / K) <= PASS ? (S + CHUNK - 1) / CHUNK * T * H * step_of(E) * sizeof(float) : 0;
}

int qwq_attention_is_possible(const qwq_kv *kv, const qwq_queries *queries)
{
    const qwq_queries *q = queries;
    return sizes_are_possible(kv->capacity, kv->K, kv->E) && q->H && q->H <= QWQ_MOST_HEADS && q->H % kv->K == 0 &&
           q->pos <= kv->capacity && q->T <= kv->capacity - q->pos &&
           (q->p_bits == 0 || q->p_bits == 8 || q->p_bits == 16);
}

size_t qwq_attention_scratch(const qwq_kv *kv, const qwq_queries *queries, int threads)
{
    if (!kv || !queries || !qwq_threads_are_possible(threads) || !qwq_attention_is_possible(kv, queries))
        return 0;
    return kept_bytes(queries->pos + queries->T, queries->T, queries->H, kv->K, kv->E) +
           (size_t)threads * workspace_bytes(kv->E) + 64;
}

/* Rows of one KV head, row i being head i % G of token i / G: quantised, and laid out as tiles of up to six. */
typedef struct {
    size_t head, row, rows, tiles;
    int32_t begin[HALVES][PASS];
    float factor[HALVES][PASS];
    const uint8_t *q;
} pass;

static size_t tile_row(const pass *p, size_t tile)
{
    return tile * p->rows / p->tiles;
}

static const float *query(const job *j, size_t head, size_t row)
{
    return j->q + (row / j->G * j->queries.H + head * j->G + row % j->G) * j->kv.E;
}

static void prepare(pass *p, const job *j, size_t head, size_t row, size_t rows, uint8_t *q)
{
    *p = (pass){.head = head, .row = row, .rows = rows, .tiles = up(rows, j->kernels->rows) / j->kernels->rows, .q = q};
    for (size_t tile = 0; tile < p->tiles; tile++) {
        size_t first = tile_row(p, tile), n = tile_row(p, tile + 1) - first;
        for (size_t r = 0; r < n; r++) {
            const float *x = query(j, head, row + first + r);
            if (j->fp32) {
                float *to = (float *)(void *)q + (first + r) * j->wide;
                memcpy(to, x, j->kv.E * sizeof(float));
                memset(to + j->kv.E, 0, (j->wide - j->kv.E) * sizeof(float));
                p->factor[0][first + r] = j->over_root;
                continue;
            }
            int8_t codes[MOST];
            float scale[HALVES];
            quantise_halves(j->kernels, codes, scale, x, of_head(j->kv.bias.query_gain, head, j->kv.E), NULL, j->kv.E);
            for (size_t h = 0; h < HALVES; h++) {
                int32_t sum = 0;
                for (size_t e = h * j->wide / 2; e < (h + 1) * j->wide / 2; e++)
                    sum += codes[e];
                p->begin[h][first + r] = -KEY_OFFSET * sum;
                p->factor[h][first + r] = scale[h] * j->over_root;
            }
            for (size_t e = 0; e < j->wide; e += 4)
                memcpy(q + first * j->wide + (e / 4 * n + r) * 4, codes + e, 4);
        }
    }
}

/* The tokens from `from` to `to` - 1 that a query at `position` sees. */
static size_t seen_from(const job *j, size_t position)
{
    return j->queries.window && position >= j->queries.window ? position - j->queries.window + 1 : 0;
}

/* The pairs of row r of a tile, turned back by the angle of the chunk's first position; returns their scale. */
static float turn_back(int16_t *to, const float *q, const qwq_kv *kv, size_t head, size_t chunk, size_t r, size_t rows)
{
    const qwq_key_bias *bias = &kv->bias;
    const int32_t *dims = bias->first + head * bias->pairs;
    const float *turn = bias->turns + (chunk * kv->K + head) * bias->pairs * 2, most = (float)bias->most;
    float x[MOST], largest = 0;
    for (size_t n = 0; n < bias->pairs; n++) {
        float a = q[dims[n]], b = q[(size_t)dims[n] + kv->E / 2], c = turn[2 * n], s = turn[2 * n + 1];
        x[2 * n] = a * c + b * s;
        x[2 * n + 1] = b * c - a * s;
        largest = fmaxf(largest, fmaxf(fabsf(x[2 * n]), fabsf(x[2 * n + 1])));
    }
    largest = fminf(largest, ATTENTION_LARGEST);
    float inverse = largest >= ATTENTION_SMALLEST ? most / largest : 0;
    for (size_t i = 0; i < 2 * bias->pairs; i++)
        to[(i / 2 * rows + r) * 2 + i % 2] = (int16_t)lrintf(fminf(fmaxf(x[i] * inverse, -most), most));
    return largest * (1 / most);
}

/* One tile of rows on one chunk; 0 if no row sees any of it. */
static int attend(const job *j, const pass *p, size_t tile, size_t chunk, workspace w, float *out)
{
    size_t row = tile_row(p, tile), start = chunk * CHUNK, least = CHUNK, most = 0;
    qwq_rows rows = {.rows = tile_row(p, tile + 1) - row, .E = j->wide, .scores = w.scores, .p = w.p, .out = out};
    rows.streams = tile == 0 && j->queries.T * j->G <= PASS;
    rows.q = p->q + row * j->wide * (j->fp32 ? sizeof(float) : 1);
    for (size_t r = 0; r < rows.rows; r++) {
        size_t position = j->queries.pos + (p->row + row + r) / j->G, from = seen_from(j, position);
        for (size_t h = 0; h < HALVES; h++) {
            rows.begin[h][r] = p->begin[h][row + r];
            rows.factor[h][r] = p->factor[h][row + r];
        }
        if (position < start || from >= start + CHUNK)
            continue;
        rows.from[r] = from > start ? from - start : 0;
        rows.to[r] = position - start + 1 < CHUNK ? position - start + 1 : CHUNK;
        least = rows.from[r] < least ? rows.from[r] : least;
        most = rows.to[r] > most ? rows.to[r] : most;
    }
    if (!most)
        return 0;
    rows.pairs = j->fp32 ? 0 : j->kv.bias.pairs;
    rows.bias_q = w.bias_q;
    for (size_t r = 0; rows.pairs && r < rows.rows; r++) {
        float scale = turn_back(w.bias_q, query(j, p->head, p->row + row + r), &j->kv, p->head, chunk, r, rows.rows);
        rows.bias_factor[r] = scale * j->kv.bias.scale[p->head] * j->over_root;
    }
    size_t first = least / SPAN, last = (most + SPAN - 1) / SPAN;
    qwq_chunk kv = chunk_at(&j->kv, p->head, start);
    const qwq_attention_kernels *kernels = j->kernels;
    (j->fp32 ? kernels->scores_fp32 : kernels->scores_int8)(&rows, &kv, first, last);
    (j->fp32 ? kernels->weights_fp32 : kernels->weights_int8)(&rows, &kv, first, last, j->queries.p_bits);
    (j->fp32 ? kernels->values_fp32 : kernels->values_int8)(&rows, &kv, first, last);
    return 1;
}

static void empty(float *state, size_t E)
{
    memset(state, 0, E * sizeof(float));
    state[E + OUT_TOP] = ATTENTION_LOWEST;
    state[E + OUT_TOTAL] = 0;
}

static void finish(const job *j, size_t head, size_t row, const float *state)
{
    float *y = j->y + (query(j, head, row) - j->q), inverse = 1.0f / state[j->wide + OUT_TOTAL];
    for (size_t e = 0; e < j->kv.E; e++)
        y[e] = state[e] * inverse;
}

/* Few rows: a piece is a head's rows on one chunk. Its results are kept until all are there. */
static void attend_chunks(const void *of, size_t from, size_t end, int worker)
{
    const job *j = of;
    workspace w = workspace_at(j->scratch, worker, j->kv.E);
    pass p = {.head = j->kv.K}; /* of no head yet */
    for (size_t n = from; n < end && !stopped(j->queries.stop); n++) {
        float *out = j->kept + n * j->rows * j->step;
        if (p.head != n / j->chunks)
            prepare(&p, j, n / j->chunks, 0, j->rows, w.q);
        for (size_t tile = 0; tile < p.tiles; tile++) {
            float *part = out + tile_row(&p, tile) * j->step;
            if (!attend(j, &p, tile, j->first + n % j->chunks, w, part))
                for (size_t r = tile_row(&p, tile); r < tile_row(&p, tile + 1); r++)
                    empty(out + r * j->step, j->wide);
        }
    }
}

/* A piece is one row of a head: the results of all chunks, merged in order. */
static void merge_rows(const void *of, size_t from, size_t end, int worker)
{
    const job *j = of;
    workspace w = workspace_at(j->scratch, worker, j->kv.E);
    for (size_t n = from; n < end && !stopped(j->queries.stop); n++) {
        size_t head = n / j->rows, row = n % j->rows;
        empty(w.state, j->wide);
        for (size_t c = 0; c < j->chunks; c++)
            j->kernels->merge(w.state, j->kept + ((head * j->chunks + c) * j->rows + row) * j->step, j->wide);
        finish(j, head, row, w.state);
    }
}

/* Many rows: a piece is some rows of a head, which walk through the chunks in order. */
static void attend_rows(const void *of, size_t from, size_t end, int worker)
{
    const job *j = of;
    size_t passes = up(j->rows, PASS) / PASS;
    workspace w = workspace_at(j->scratch, worker, j->kv.E);
    for (size_t n = from; n < end && !stopped(j->queries.stop); n++) {
        size_t row = (passes - 1 - n % passes) * PASS; /* the last rows see most: they begin */
        size_t some = smaller(j->rows - row, PASS);
        size_t first = seen_from(j, j->queries.pos + row / j->G) / CHUNK;
        size_t last = (j->queries.pos + (row + some - 1) / j->G) / CHUNK;
        pass p;
        prepare(&p, j, n / passes, row, some, w.q);
        for (size_t r = 0; r < some; r++)
            empty(w.state + r * j->step, j->wide);
        for (size_t chunk = first; chunk <= last; chunk++)
            for (size_t tile = 0; tile < p.tiles; tile++) {
                size_t begin = tile_row(&p, tile), n_rows = tile_row(&p, tile + 1) - begin;
                if (attend(j, &p, tile, chunk, w, w.out))
                    for (size_t r = 0; r < n_rows; r++)
                        j->kernels->merge(w.state + (begin + r) * j->step, w.out + r * j->step, j->wide);
            }
        for (size_t r = 0; r < some; r++)
            finish(j, p.head, row + r, w.state + r * j->step);
    }
}

int qwq_attention(float *y, const qwq_kv *kv, const float *q, void *scratch, const qwq_queries *queries, int isa,
                  int threads)
{
    const qwq_table *table = qwq_table_of(isa);
    if (!table)
        return QWQ_EISA;
    if (!kv || !queries)
        return QWQ_ENULL;
    if (!qwq_threads_are_possible(threads) || !qwq_attention_is_possible(kv, queries))
        return QWQ_ESIZE;
    size_t bytes = queries->T * queries->H * kv->E * sizeof(float);
    const int32_t *stop = queries->stop;
    qwq_array arrays[5 + QWQ_BIAS_ARRAYS] = {{y, bytes, 4},
                                             {scratch, qwq_attention_scratch(kv, queries, threads), 1},
                                             {kv->data, qwq_kv_bytes(kv), 64},
                                             {q, bytes, 4},
                                             {stop, stop ? sizeof *stop : 0, sizeof *stop}};
    int code = qwq_bias_arrays(arrays + 5, kv);
    code = code ? code : qwq_check(arrays, 2, 5 + QWQ_BIAS_ARRAYS);
    code = code ? code : qwq_bias_dims(kv);
    return code ? code : qwq_attention_run(&(qwq_attention_call){y, kv, q, scratch, queries, table, threads});
}

int qwq_attention_run(const qwq_attention_call *c)
{
    const qwq_queries *q = c->queries;
    if (!q->T)
        return 0;
    size_t context = q->window && q->window < q->pos + q->T ? q->window : q->pos + q->T;
    int one = (double)q->T * (double)q->H * (double)context * (double)c->kv->E < LEAST_WORK;
    int threads = one ? 1 : c->threads;
    job j = {.kernels = &c->table->attention,
             .kv = *c->kv,
             .queries = *q,
             .q = c->q,
             .y = c->y,
             .fp32 = !c->kv->int8,
             .over_root = EXP_LOG2E / sqrtf((float)c->kv->E),
             .G = q->H / c->kv->K,
             .wide = up(c->kv->E, DIMS),
             .step = step_of(c->kv->E),
             .scratch = (float *)(((uintptr_t)c->scratch + 63) / 64 * 64)};
    j.rows = q->T * j.G;
    j.first = seen_from(&j, q->pos) / CHUNK;
    j.chunks = (q->pos + q->T - 1) / CHUNK + 1 - j.first;
    j.kept = j.scratch + (size_t)threads * (workspace_bytes(j.kv.E) / sizeof(float));
    if (j.rows <= PASS) {
        qwq_parallel_for(attend_chunks, &j, j.kv.K * j.chunks, threads);
        qwq_parallel_for(merge_rows, &j, j.kv.K * j.rows, threads);
    } else {
        qwq_parallel_for(attend_rows, &j, j.kv.K * (up(j.rows, PASS) / PASS), threads);
    }
    return stopped(q->stop) ? QWQ_ESTOP : 0;
}
