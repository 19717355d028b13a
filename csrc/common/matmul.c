/* The products of activations and packed weights: quantising the former, scratch, the work of threads, and what is done
 * with results. */
#include <string.h>

#include "common/activations.h"
#include "common/calls.h"
#include "common/check.h"
#include "common/fetch.h"
#include "common/formats.h"
#include "common/parallel.h"
#include "common/results.h"
#include "common/table.h"

enum {
    GROUP_CHUNK = 8,  /* groups that are unpacked at a time: they stay in the first cache for all tokens */
    FEW = 2,          /* tiles: so many tokens wait for memory; */
    SOME = 6,         /* tiles: so many cost less to decode a panel for, each time from the first two caches, than to */
    CACHED = 1 << 19, /* unpack and scale it for, while their activations, in bytes, stay in the second cache */
    FLOATS_CHUNK = 2, /* the same for floats, which take as much */
    PANELS = 4,       /* that a thread takes at a time: pairs, for gate and up; */
    MOST_TOKENS = 516, /* with as many tokens their results stay in the second cache */
    SLICE = 8,         /* groups that a thread quantises at a time, where there are few tokens: */
    EVEN = 4           /* fewer tiles a thread than this could leave one of them idle */
};
static const double SMALL_WORK = 1 << 18; /* products below which threads cost more than they bring */
static const size_t SMALL_ROWS = 1 << 13; /* activations below which one thread quantises them */

/* T tokens as tiles, of as many tokens at most as a rung's kernels take. */
typedef struct {
    size_t T, count, tokens;
} qwq_tiles;

static qwq_tiles tiles_of(size_t T, size_t tokens)
{
    return (qwq_tiles){T, up(T, tokens) / tokens, tokens};
}

/* Where tile i begins; for i = count, where the last ends. The last two share what would leave a tile of 1 or 2. */
static size_t tile_at(const qwq_tiles *tiles, size_t i)
{
    if (i + 1 < tiles->count)
        return i * tiles->tokens;
    if (i == tiles->count)
        return tiles->T;
    size_t last = tiles->T - i * tiles->tokens;
    return tiles->count > 1 && last <= 2 ? tiles->T - (tiles->tokens + last) / 2 : i * tiles->tokens;
}

/* Where things are in the scratch. */
typedef struct {
    int8_t *q;
    float *scale;   /* [T] */
    float *largest; /* [T][groups] */
    uint64_t *used; /* [groups]: the ratios that some token needs */
    float *ratio;   /* this and the following in the order of tiles */
    uint16_t *scaled;
    int32_t *begin;
    float *sum, *x;
    float *normed; /* [T][K] */
    uint8_t *threads;
    size_t bytes_of_thread, bytes;
    size_t groups; /* of K, to whole blocks */
    size_t chunk;  /* groups that all tokens are multiplied with in turn */
} qwq_scratch;

/* few: whether there are only few tokens. The size is the same. */
static qwq_scratch scratch_of(uint8_t *at, const qwq_layout *l, size_t T, size_t K, int few, int threads)
{
    qwq_scratch s;
    uint8_t *start = at;
    size_t columns = up(K, l->columns), groups = columns / GROUP, subgroups = groups * l->subgroups;
    s.groups = groups;
    s.chunk = few ? groups : l->floats ? FLOATS_CHUNK : GROUP_CHUNK;
    s.q = (int8_t *)at;
    s.x = (float *)(void *)at;
    at += up(T * columns * (l->floats ? sizeof(float) : 1), LINE);
    s.scale = (float *)(void *)at;
    at += up(T * sizeof(float), LINE);
    s.largest = (float *)(void *)at;
    at += up(T * groups * sizeof(float), LINE);
    s.used = (uint64_t *)(void *)at;
    at += up(groups * sizeof(uint64_t), LINE);
    s.ratio = (float *)(void *)at;
    at += up(T * groups * sizeof(float), LINE);
    s.scaled = (uint16_t *)(void *)at;
    at += up(T * groups * sizeof(uint16_t), LINE);
    s.begin = (int32_t *)(void *)at;
    at += up(T * subgroups * sizeof(int32_t), LINE);
    s.sum = (float *)(void *)at;
    at += up(T * subgroups * sizeof(float), LINE);
    s.normed = (float *)(void *)at;
    at += up(T * K * sizeof(float), LINE);
    s.threads = at;
    s.bytes_of_thread =
        GROUP_CHUNK * sizeof(qwq_wide) + up(PANELS * smaller(T, MOST_TOKENS) * PANEL * sizeof(float), LINE);
    s.bytes = (size_t)(at - start) + (size_t)threads * s.bytes_of_thread;
    return s;
}

size_t qwq_matmul_scratch(const qwq_format *format, size_t T, size_t K, int threads)
{
    qwq_layout l;
    if (!format || !qwq_layout_of(&l, format) || !qwq_threads_are_possible(threads) || !K || T > QWQ_MOST_SIZE ||
        K > QWQ_MOST_SIZE)
        return 0;
    return scratch_of(NULL, &l, T, K, 0, threads).bytes;
}

/* Activations lie in the order in which a panel's kernels read them: chunks of groups, in these tiles, in these groups.
 * Where group g of the tile that begins with token t is, in groups of one token: */
static size_t place_of(const qwq_scratch *s, size_t T, size_t t, size_t tokens, size_t g)
{
    size_t chunk = g / s->chunk * s->chunk;
    return chunk * T + smaller(s->chunk, s->groups - chunk) * t + (g - chunk) * tokens;
}

static qwq_tile tile_in(const qwq_scratch *s, const qwq_layout *l, size_t T, size_t t, size_t tokens, size_t g)
{
    size_t first = place_of(s, T, t, tokens, g);
    qwq_tile tile = {
        s->q + first * GROUP,          s->ratio + first,    s->scaled + first, s->begin + first * l->subgroups,
        s->sum + first * l->subgroups, s->x + first * GROUP};
    return tile;
}

/* Group g of a row, in an order of columns if there is one; columns beyond K are zero. */
static const float *group_in(float *own, const float *row, const int32_t *columns, size_t g, size_t K)
{
    if (!columns && (g + 1) * GROUP <= K)
        return row + g * GROUP;
    for (size_t i = 0, k = g * GROUP; i < GROUP; i++, k++)
        own[i] = k < K ? row[columns ? (size_t)columns[k] : k] : 0;
    return own;
}

/* Groups g0 to g1 of a row: the largest magnitudes. */
static void find_largest(float *largest, const qwq_matmul_kernels *kernels, const float *row, const int32_t *columns,
                         size_t g0, size_t g1, size_t K)
{
    size_t whole = columns ? 0 : smaller(g1, K / GROUP);
    float own[GROUP];
    if (whole > g0)
        kernels->largest(largest + g0, row + g0 * GROUP, whole - g0);
    for (size_t g = whole > g0 ? whole : g0; g < g1; g++)
        kernels->largest(largest + g, group_in(own, row, columns, g, K), 1);
}

/* What the threads share. */
typedef struct {
    const qwq_matmul_call *call;
    const uint8_t *w;
    const qwq_format *format;
    const qwq_layout *layout;
    const qwq_matmul_kernels *kernels;
    qwq_scratch scratch;
    qwq_tiles tiles;
    size_t panel_bytes;
    const float *rows;    /* activations, normalised if that is asked for */
    size_t slice, slices; /* groups that are quantised at a time, and how often in a token */
    size_t panels;        /* of a piece */
    int few, direct;      /* whether there are few tokens; whether they are multiplied with blocks as they lie */
} qwq_job;

/* Groups g0 to g1 of token t of the tile that begins with token `first`, from its row to the order of tiles. */
static void place(const qwq_job *j, size_t first, size_t tokens, size_t t, size_t g0, size_t g1)
{
    const qwq_scratch *s = &j->scratch;
    const qwq_layout *l = j->layout;
    const size_t T = j->call->T, K = j->call->K;
    const float *row = j->rows + (first + t) * K;
    const int32_t *order = j->call->w->columns;
    float own[GROUP], top = 0;
    if (l->floats) {
        for (size_t g = g0; g < g1; g++) {
            const float *x = group_in(own, row, order, g, K);
            float *to = s->x + place_of(s, T, first, tokens, g) * GROUP + t;
            for (size_t k = 0; k < GROUP; k++)
                to[k * tokens] = x[k];
        }
        return;
    }
    const float *largest = s->largest + (first + t) * s->groups;
    for (size_t g = 0; g < s->groups; g++)
        top = largest[g] > top || largest[g] != largest[g] ? largest[g] : top;
    s->scale[first + t] = scale_of(top); /* the same from every slice */
    for (size_t g = g0; g < g1; g++) {
        int8_t q[GROUP];
        size_t step = step_of(largest[g], top), at = place_of(s, T, first, tokens, g), columns = GROUP / l->subgroups;
        int32_t sum = quantise_group(j->kernels, q, group_in(own, row, order, g, K), step, top);
        for (size_t i = 0; i < LINES; i++)
            memcpy(s->q + at * GROUP + (i * tokens + t) * 4, q + 4 * i, 4);
        s->ratio[at + t] = QWQ_RATIO[step];
        s->scaled[at + t] = (uint16_t)(step * PANEL * sizeof(float));
        if (!(__atomic_load_n(s->used + g, __ATOMIC_RELAXED) >> step & 1))
            __atomic_fetch_or(s->used + g, (uint64_t)1 << step, __ATOMIC_RELAXED);
        for (size_t i = 0; i < l->subgroups; i++) {
            if (l->subgroups > 1) {
                sum = 0;
                for (size_t k = i * columns; k < (i + 1) * columns; k++)
                    sum += q[k];
            }
            size_t to = at * l->subgroups + i * tokens + t;
            s->begin[to] = -l->excess * sum;
            s->sum[to] = QWQ_RATIO[step] * (float)sum;
        }
    }
}

/* Groups g to g + groups of a panel, unpacked. */
static void unpack(qwq_wide *wide, const qwq_job *j, const uint8_t *panel, size_t g, size_t groups)
{
    const qwq_layout *l = j->layout;
    size_t per_block = l->columns / GROUP, part = g % per_block;
    for (panel += g / per_block * l->bytes; groups--; wide++, g++) {
        j->kernels->unpack[j->format->codes](wide, panel, part, j->format, l);
        if (j->kernels->scale && l->subgroups == 1)
            j->kernels->scale(wide, j->scratch.used[g]);
        if (++part == per_block) {
            part = 0;
            panel += l->bytes;
        }
    }
}

static void advance(qwq_tile *tile, size_t tokens, size_t groups, const qwq_layout *l)
{
    tile->q += groups * tokens * GROUP;
    tile->ratio += groups * tokens;
    tile->scaled += groups * tokens;
    tile->begin += groups * tokens * l->subgroups;
    tile->sum += groups * tokens * l->subgroups;
}

/* Of few tokens: y [T][PANEL] = one panel times all. A group is multiplied as soon as it is unpacked: meanwhile the
 * next comes from memory, which is what takes the time. */
static void few_times(float *y, qwq_wide *wide, const qwq_job *j, const uint8_t *panel)
{
    const qwq_layout *l = j->layout;
    size_t groups = j->scratch.groups, tokens[SOME];
    qwq_tile tile[SOME];
    for (size_t i = 0; i < j->tiles.count; i++) {
        size_t t = tile_at(&j->tiles, i);
        tokens[i] = tile_at(&j->tiles, i + 1) - t;
        tile[i] = tile_in(&j->scratch, l, j->tiles.T, t, tokens[i], 0);
    }
    if (!wide) {
        blocks_fn *times = j->kernels->blocks[j->format->codes];
        if (j->tiles.count <= FEW) {
            for (size_t i = 0; i < j->tiles.count; y += tokens[i++] * PANEL)
                times(y, panel, &tile[i], tokens[i], groups, j->format, l);
            return;
        }
        /* Some groups for all tiles in turn. Only the first tile would wait for memory: each fetches a part of what
         * comes two turns later. Panels follow one another. */
        const size_t some = up(GROUP_CHUNK, l->columns / GROUP), bytes = some * GROUP / l->columns * l->bytes;
        const size_t part = up(bytes / j->tiles.count, LINE);
        for (size_t g = 0; g < groups; g += some, panel += bytes) {
            const size_t n = smaller(some, groups - g);
            float *to = y;
            for (size_t i = 0; i < j->tiles.count; to += tokens[i++] * PANEL) {
                fetch(panel + 2 * bytes + i * part, part);
                times(to, panel, &tile[i], tokens[i], n, j->format, l);
                advance(&tile[i], tokens[i], n, l);
            }
        }
        return;
    }
    for (size_t g = 0; g < groups; g++) {
        if (l->columns > 2 * GROUP && g * GROUP % l->columns == 0)
            read_in_order(panel + g * GROUP / l->columns * l->bytes, l->bytes);
        unpack(wide, j, panel, g, 1);
        float *to = y;
        for (size_t i = 0; i < j->tiles.count; to += tokens[i++] * PANEL) {
            j->kernels->wide(to, wide, &tile[i], tokens[i], 1, l);
            advance(&tile[i], tokens[i], 1, l);
        }
    }
}

/* Of many tokens: results [panel][token][PANEL] of panels p0 to p1 and some tiles. A chunk's activations stay in the
 * second cache for all of these panels, a panel's unpacked chunk in the first for all tiles. */
static void many_times(float *results, qwq_wide *wide, const qwq_job *j, size_t p0, size_t p1, size_t tile0,
                       size_t tile1)
{
    const qwq_scratch *s = &j->scratch;
    const qwq_layout *l = j->layout;
    size_t first = tile_at(&j->tiles, tile0);
    for (size_t g = 0; g < s->groups; g += s->chunk)
        for (size_t p = p0; p < p1; p++) {
            size_t groups = smaller(s->chunk, s->groups - g), bytes = groups * GROUP / l->columns * l->bytes;
            const uint8_t *panel = j->w + p * j->panel_bytes, *blocks = panel + g * GROUP / l->columns * l->bytes;
            float *y = results + (p - p0) * (tile_at(&j->tiles, tile1) - first) * PANEL;
            int32_t codes = j->format->codes;
            if (!l->floats) {
                unpack(wide, j, panel, g, groups);
            } else if (codes != QWQ_FP32) {
                j->kernels->widen[codes]((float *)(void *)wide, blocks, groups);
                blocks = (const uint8_t *)wide;
                codes = QWQ_FP32;
            }
            /* Of the next chunk, each tile fetches its part of this panel, and this panel its part of each tile. */
            const uint8_t *block = blocks + bytes, *end = g + groups < s->groups ? block + bytes : block;
            size_t part = up(bytes / (tile1 - tile0) + 1, LINE);
            qwq_tile tile = tile_in(s, l, j->tiles.T, first, j->tiles.tokens, g);
            qwq_tile next = tile_in(s, l, j->tiles.T, first, j->tiles.tokens, g + groups);
            for (size_t i = tile0, t = first; i < tile1; i++) {
                size_t tokens = tile_at(&j->tiles, i + 1) - t, some = tokens * groups * GROUP / PANELS;
                if (l->floats) {
                    j->kernels->blocks[codes](y, blocks, &tile, tokens, groups, j->format, l);
                    tile.x += tokens * groups * GROUP;
                } else {
                    if (block < end) {
                        fetch(block, smaller(part, (size_t)(end - block)));
                        fetch(next.q + (p - p0) * some, some);
                        block += part;
                    }
                    j->kernels->wide(y, wide, &tile, tokens, groups, l);
                    advance(&tile, tokens, groups, l);
                    advance(&next, tokens, groups, l);
                }
                y += tokens * PANEL;
                t += tokens;
            }
        }
}

int qwq_matmul(float *y, const qwq_linear *w, const float *x, const qwq_fusion *fusion, void *scratch, size_t T,
               size_t N, size_t K, int isa, int threads)
{
    static const qwq_fusion none;
    const qwq_fusion *f = fusion ? fusion : &none;
    qwq_layout l;
    const qwq_table *table = qwq_table_of(isa);
    if (!table)
        return QWQ_EISA;
    if (!w)
        return QWQ_ENULL;
    if (!qwq_layout_of(&l, &w->format))
        return QWQ_EFORMAT;
    size_t w_bytes = qwq_packed_bytes(&w->format, N, K);
    if (!w_bytes || !qwq_threads_are_possible(threads) || T > QWQ_MOST_SIZE)
        return QWQ_ESIZE;
    if (f->swiglu && (N % (2 * PANEL) || f->residual))
        return QWQ_ESIZE;
    size_t y_bytes = T * N * sizeof(float) / (f->swiglu ? 2 : 1);
    const qwq_array arrays[] = {{y, y_bytes, 4},
                                {scratch, scratch_of(NULL, &l, T, K, 0, threads).bytes, LINE},
                                {x, T * K * sizeof(float), 4},
                                {w->packed, w_bytes, LINE},
                                {w->columns, w->columns ? K * sizeof *w->columns : 0, sizeof *w->columns},
                                {f->bias, f->bias ? N * sizeof(float) : 0, 4},
                                {f->norm, f->norm ? K * sizeof(float) : 0, 4},
                                {f->residual, f->residual && f->residual != y ? y_bytes : 0, 4},
                                {f->stop, f->stop ? sizeof *f->stop : 0, sizeof *f->stop}};
    int error = qwq_check(arrays, 2, 9);
    if (error || !qwq_are_columns(w->columns, K))
        return error ? error : QWQ_EFORMAT;
    return qwq_matmul_run(&(qwq_matmul_call){y, w, x, f, scratch, T, N, K, table, threads});
}

/* Tokens, normalised. */
static void normalise(const void *job, size_t first, size_t end, int worker)
{
    const qwq_job *j = job;
    const qwq_matmul_call *c = j->call;
    (void)worker;
    for (size_t t = first; t < end; t++)
        c->table->ops.rmsnorm(j->scratch.normed + t * c->K, c->x + t * c->K, c->fusion->norm, c->fusion->eps, c->K);
}

/* The largest magnitudes of all groups. A piece is a slice of a token's groups. */
static void find_all_largest(const void *job, size_t first, size_t last, int worker)
{
    const qwq_job *j = job;
    const qwq_scratch *s = &j->scratch;
    (void)worker;
    for (size_t i = first; i < last; i++) {
        size_t t = i / j->slices, g = i % j->slices * j->slice, end = smaller(g + j->slice, s->groups);
        const qwq_matmul_call *c = j->call;
        find_largest(s->largest + t * s->groups, j->kernels, j->rows + t * c->K, c->w->columns, g, end, c->K);
        if (t == 0)
            memset(s->used + g, 0, (end - g) * sizeof(uint64_t));
    }
}

/* All tokens, quantised and in the order of tiles. A piece is a slice of a tile's groups. */
static void place_all(const void *job, size_t from, size_t last, int worker)
{
    const qwq_job *j = job;
    (void)worker;
    for (size_t i = from; i < last; i++) {
        size_t tile = i / j->slices, first = tile_at(&j->tiles, tile), tokens = tile_at(&j->tiles, tile + 1) - first;
        size_t g = i % j->slices * j->slice, end = smaller(g + j->slice, j->scratch.groups);
        for (size_t t = 0; t < tokens; t++)
            place(j, first, tokens, t, g, end);
    }
}

/* The activations of all tokens: normalised, quantised, and in the order of tiles. */
static void prepare(qwq_job *j, int threads)
{
    const qwq_matmul_call *c = j->call;
    if (c->T * c->K < SMALL_ROWS)
        threads = 1;
    j->slice = j->tiles.count < EVEN * (size_t)threads ? SLICE : j->scratch.groups;
    j->slices = up(j->scratch.groups, j->slice) / j->slice;
    j->rows = c->fusion->norm ? j->scratch.normed : c->x;
    if (c->fusion->norm)
        qwq_parallel_for(normalise, j, c->T, threads);
    if (!j->layout->floats)
        qwq_parallel_for(find_all_largest, j, c->T * j->slices, threads);
    qwq_parallel_for(place_all, j, j->tiles.count * j->slices, threads);
}

/* Panels p0 to p1, for all tokens. */
static void multiply(const qwq_job *j, size_t p0, size_t p1, qwq_wide *wide, float *results)
{
    const qwq_matmul_call *c = j->call;
    const size_t most = MOST_TOKENS / j->tiles.tokens; /* tiles */
    for (size_t i = 0; i < j->tiles.count && !stopped(c->fusion->stop); i += most) {
        size_t end = smaller(i + most, j->tiles.count), t0 = tile_at(&j->tiles, i), t1 = tile_at(&j->tiles, end);
        memset(results, 0, (p1 - p0) * (t1 - t0) * PANEL * sizeof(float));
        if (!j->few)
            many_times(results, wide, j, p0, p1, i, end);
        for (size_t p = p0; j->few && p < p1; p++)
            few_times(results + (p - p0) * c->T * PANEL, wide, j, j->w + p * j->panel_bytes);
        qwq_end out = {c->y, j->layout->floats ? NULL : j->scratch.scale, c->fusion, &c->table->ops, c->N, t0, t1};
        size_t each = (t1 - t0) * PANEL;
        for (size_t p = p0; p < p1; p++, results += each)
            if (!c->fusion->swiglu)
                store(results, &out, p * PANEL);
            else if ((p - p0) % 2 == 0)
                store_swiglu(results, results + each, &out, p * PANEL);
        results -= (p1 - p0) * each;
    }
}

/* A piece is some panels. */
static void multiply_pieces(const void *job, size_t first, size_t end, int worker)
{
    const qwq_job *j = job;
    size_t panels = up(j->call->N, PANEL) / PANEL;
    uint8_t *own = j->scratch.threads + (size_t)worker * j->scratch.bytes_of_thread;
    qwq_wide *wide = j->direct ? NULL : (qwq_wide *)(void *)own;
    float *results = (float *)(void *)(own + GROUP_CHUNK * sizeof(qwq_wide));
    for (size_t p = first * j->panels; p < smaller(end * j->panels, panels); p += j->panels)
        multiply(j, p, smaller(p + j->panels, panels), wide, results);
}

int qwq_matmul_run(const qwq_matmul_call *c)
{
    const qwq_matmul_kernels *k = &c->table->matmul;
    const qwq_format *format = &c->w->format;
    qwq_layout l;
    qwq_layout_of(&l, format);
    const int decodes = !l.floats && k->blocks[format->codes];
    const int some = decodes && c->T <= SOME * k->tile && c->T * c->K <= CACHED;
    int few = c->T <= FEW * k->tile || some;
    int threads = (double)c->T * (double)c->K * (double)c->N < SMALL_WORK ? 1 : c->threads;
    qwq_job job = {.call = c,
                   .w = c->w->packed,
                   .format = format,
                   .layout = &l,
                   .kernels = k,
                   .scratch = scratch_of(c->scratch, &l, c->T, c->K, few, threads),
                   .tiles = tiles_of(c->T, k->tile),
                   .panel_bytes = up(c->K, l.columns) / l.columns * l.bytes,
                   .few = few,
                   .panels = some ? (c->fusion->swiglu ? 2 : 1) : PANELS,
                   .direct = few && k->blocks[format->codes]};
    prepare(&job, threads);
    qwq_parallel_for(multiply_pieces, &job, up(c->N, PANEL * job.panels) / (PANEL * job.panels), threads);
    return stopped(c->fusion->stop) ? QWQ_ESTOP : 0;
}
