/* Attention's entry points: they check a call, lay out its arrays, share the work among threads, and call a rung. */
#include "common/attention.h"

#include <math.h>
#include <string.h>

#include "common/cache.h"
#include "common/calls.h"
#include "common/check.h"
#include "common/fixed.h"
#include "common/parallel.h"

enum {
    PASS = 48,           /* rows that walk through the context together, so that a chunk is read from cache */
    LEAST_WORK = 1 << 20 /* multiplications below which one thread is as fast */
};

/* The loops over the pieces of a call, whose numbers go through all jobs. */
enum { BY_CHUNK, OF_RESULTS, BY_ROWS, LOOPS };

/* One sequence of a call, in the letters of qwq.h; `wide` is E as the cache holds it, `step` the floats of a row's
 * result. */
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
    size_t end[LOOPS];          /* of its pieces: they begin at the end of the job before */
    float *scratch, *kept;
} job;

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
    return T * (H / K) <= PASS && S > CHUNK ? (S + CHUNK - 1) / CHUNK * T * H * step_of(E) * sizeof(float) : 0;
}

int qwq_attention_is_possible(const qwq_kv *kv, const qwq_queries *queries)
{
    const qwq_queries *q = queries;
    return qwq_cache_is_possible(kv->K, kv->E) && q->H && q->H <= QWQ_MOST_HEADS && q->H % kv->K == 0 &&
           (q->p_bits == 0 || q->p_bits == 8 || q->p_bits == 16);
}

/* The tokens of a part that ask. */
static size_t asking(const qwq_part *part)
{
    return part->T - part->first;
}

size_t qwq_attention_room(const qwq_attention_call *c)
{
    size_t bytes = (size_t)c->threads * workspace_bytes(c->kv->E) + 64 + up(c->count * sizeof(job), 64);
    for (size_t i = 0; i < c->count; i++)
        bytes += kept_bytes(c->parts[i].pos + c->parts[i].T, asking(&c->parts[i]), c->queries->H, c->kv->K, c->kv->E);
    return bytes;
}

static qwq_part part_of(const qwq_kv *kv, const qwq_queries *queries)
{
    return (qwq_part){kv->pages, kv->capacity, queries->pos, queries->T, 0};
}

size_t qwq_attention_scratch(const qwq_kv *kv, const qwq_queries *queries, int threads)
{
    if (!kv || !queries || !qwq_threads_are_possible(threads) || !qwq_attention_is_possible(kv, queries))
        return 0;
    const qwq_part part = part_of(kv, queries);
    if (!qwq_part_is_possible(&part))
        return 0;
    return qwq_attention_room(
        &(qwq_attention_call){.kv = kv, .parts = &part, .count = 1, .queries = queries, .threads = threads});
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
            int8_t codes[MOST_DIMS];
            float scale[HALVES];
            qwq_quantise_halves(j->kernels, codes, scale, x, qwq_of_head(j->kv.bias.query_gain, head, j->kv.E), NULL,
                                j->kv.E);
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
    float x[MOST_DIMS], largest = 0;
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
    qwq_chunk kv;
    for (size_t span = first; span < last; span++)
        kv.spans[span] = qwq_span_at(&j->kv, p->head, start / SPAN + span);
    const size_t end = j->queries.pos + j->queries.T;
    kv.then = start + CHUNK < end ? qwq_span_at(&j->kv, p->head, start / SPAN + SPANS).k : NULL;
    kv.bias = j->kv.bias.codes + p->head * CHUNK * j->kv.bias.pairs * 2;
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

/* All sequences of a call. */
typedef struct {
    const job *jobs;
    size_t count;
} jobs;

/* The job that has piece n of a loop; from: the one of a piece before. */
static const job *job_with(const job *from, int loop, size_t n)
{
    while (n >= from->end[loop])
        from++;
    return from;
}

/* The number of piece n among those of its job. */
static size_t own(const jobs *all, const job *j, int loop, size_t n)
{
    return j == all->jobs ? n : n - j[-1].end[loop];
}

/* Few rows: a piece is a head's rows on one chunk. Its results are kept until all are there. */
static void attend_chunks(const void *of, size_t from, size_t end, int worker)
{
    const jobs *all = of;
    const job *j = all->jobs, *before = NULL;
    workspace w = workspace_at(j->scratch, worker, j->kv.E);
    pass p = {0};
    for (size_t n = from; n < end && !stopped(j->queries.stop); n++) {
        j = job_with(j, BY_CHUNK, n);
        size_t piece = own(all, j, BY_CHUNK, n), head = piece / j->chunks;
        if (before != j || p.head != head)
            prepare(&p, j, head, 0, j->rows, w.q);
        before = j;
        for (size_t tile = 0; tile < p.tiles; tile++) {
            size_t begin = tile_row(&p, tile), rows = tile_row(&p, tile + 1) - begin;
            float *out = j->chunks == 1 ? w.out : j->kept + (piece * j->rows + begin) * j->step;
            if (!attend(j, &p, tile, j->first + piece % j->chunks, w, out))
                for (size_t r = 0; r < rows; r++)
                    empty(out + r * j->step, j->wide);
            for (size_t r = 0; j->chunks == 1 && r < rows; r++) {
                empty(w.state, j->wide);
                j->kernels->merge(w.state, out + r * j->step, j->wide);
                finish(j, head, begin + r, w.state);
            }
        }
    }
}

/* A piece is one row of a head: the results of all chunks, merged in order. */
static void merge_rows(const void *of, size_t from, size_t end, int worker)
{
    const jobs *all = of;
    const job *j = all->jobs;
    workspace w = workspace_at(j->scratch, worker, j->kv.E);
    for (size_t n = from; n < end && !stopped(j->queries.stop); n++) {
        j = job_with(j, OF_RESULTS, n);
        size_t piece = own(all, j, OF_RESULTS, n), head = piece / j->rows, row = piece % j->rows;
        empty(w.state, j->wide);
        for (size_t c = 0; c < j->chunks; c++)
            j->kernels->merge(w.state, j->kept + ((head * j->chunks + c) * j->rows + row) * j->step, j->wide);
        finish(j, head, row, w.state);
    }
}

/* Many rows: a piece is some rows of a head, which walk through the chunks in order. */
static void attend_rows(const void *of, size_t from, size_t end, int worker)
{
    const jobs *all = of;
    const job *j = all->jobs;
    workspace w = workspace_at(j->scratch, worker, j->kv.E);
    for (size_t n = from; n < end && !stopped(j->queries.stop); n++) {
        j = job_with(j, BY_ROWS, n);
        size_t piece = own(all, j, BY_ROWS, n), passes = up(j->rows, PASS) / PASS;
        size_t row = (passes - 1 - piece % passes) * PASS; /* the last rows see most: they begin */
        size_t some = smaller(j->rows - row, PASS);
        size_t first = seen_from(j, j->queries.pos + row / j->G) / CHUNK;
        size_t last = (j->queries.pos + (row + some - 1) / j->G) / CHUNK;
        pass p;
        prepare(&p, j, piece / passes, row, some, w.q);
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
    const qwq_part part = part_of(kv, queries);
    if (!qwq_threads_are_possible(threads) || !qwq_attention_is_possible(kv, queries) || !qwq_part_is_possible(&part))
        return QWQ_ESIZE;
    size_t bytes = queries->T * queries->H * kv->E * sizeof(float);
    const int32_t *stop = queries->stop;
    qwq_array arrays[4 + QWQ_BIAS_ARRAYS] = {{y, bytes, 4},
                                             {scratch, qwq_attention_scratch(kv, queries, threads), 1},
                                             {q, bytes, 4},
                                             {stop, stop ? sizeof *stop : 0, sizeof *stop}};
    int code = qwq_bias_arrays(arrays + 4, kv, kv->capacity);
    code = code ? code : qwq_check(arrays, 2, 4 + QWQ_BIAS_ARRAYS);
    code = code ? code : qwq_check_pages(kv, &part, 1, arrays, 2, 4 + QWQ_BIAS_ARRAYS);
    code = code ? code : qwq_bias_dims(kv);
    return code ? code : qwq_attention_run(&(qwq_attention_call){y, kv, &part, 1, q, scratch, queries, table, threads});
}

/* A part as a job: its place among the results, and its pieces after those of the job before. */
static void plan(job *j, const qwq_attention_call *c, const qwq_part *part, const size_t begin[LOOPS])
{
    const size_t T = asking(part), K = c->kv->K;
    j->kernels = &c->table->attention;
    j->kv = *c->kv;
    j->kv.pages = part->pages;
    j->kv.capacity = part->capacity;
    j->queries = *c->queries;
    j->queries.pos = part->pos + part->first;
    j->queries.T = T;
    j->fp32 = !c->kv->int8;
    j->over_root = EXP_LOG2E / sqrtf((float)c->kv->E);
    j->G = c->queries->H / K;
    j->wide = up(c->kv->E, DIMS);
    j->step = step_of(c->kv->E);
    j->rows = T * j->G;
    j->first = seen_from(j, j->queries.pos) / CHUNK;
    j->chunks = T ? (j->queries.pos + T - 1) / CHUNK + 1 - j->first : 0;
    size_t pieces[LOOPS] = {0};
    if (j->rows > PASS) {
        pieces[BY_ROWS] = K * (up(j->rows, PASS) / PASS);
    } else {
        pieces[BY_CHUNK] = K * j->chunks;
        pieces[OF_RESULTS] = j->chunks > 1 ? K * j->rows : 0;
    }
    for (int loop = 0; loop < LOOPS; loop++)
        j->end[loop] = begin[loop] + pieces[loop];
}

int qwq_attention_run(const qwq_attention_call *c)
{
    const size_t E = c->kv->E, H = c->queries->H, window = c->queries->window;
    uintptr_t at = ((uintptr_t)c->scratch + 63) / 64 * 64;
    job *list = (job *)at;
    float *scratch = (float *)(at + up(c->count * sizeof(job), 64));
    float *kept = scratch + (size_t)c->threads * (workspace_bytes(E) / sizeof(float));
    size_t begin[LOOPS] = {0}, row = 0;
    double work = 0;
    for (size_t i = 0; i < c->count; i++) {
        const qwq_part *part = &c->parts[i];
        size_t end = part->pos + part->T;
        job *j = &list[i];
        plan(j, c, part, begin);
        j->q = c->q + row * H * E;
        j->y = c->y + row * H * E;
        j->scratch = scratch;
        j->kept = kept;
        kept += kept_bytes(end, asking(part), H, c->kv->K, E) / sizeof(float);
        row += asking(part);
        memcpy(begin, j->end, sizeof begin);
        work += (double)asking(part) * (double)H * (double)(window && window < end ? window : end) * (double)E;
    }
    const jobs all = {list, c->count};
    int threads = work < LEAST_WORK ? 1 : c->threads;
    qwq_parallel_for(attend_chunks, &all, begin[BY_CHUNK], threads);
    qwq_parallel_for(merge_rows, &all, begin[OF_RESULTS], threads);
    qwq_parallel_for(attend_rows, &all, begin[BY_ROWS], threads);
    return stopped(c->queries->stop) ? QWQ_ESTOP : 0;
}
