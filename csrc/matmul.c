/* The products of activations and packed weights: quantising the former, scratch, the work of threads, and what is done
 * with results. */
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "check.h"
#include "kernels.h"
#include "ops.h"
#include "qwq.h"

enum {
    CHUNK = 8,          /* groups that are unpacked at a time: they stay in the first cache for all tokens */
    FEW = 12,           /* tokens, which wait for memory: two tiles */
    FLOATS_CHUNK = 2,   /* the same for floats, which take as much */
    PANELS = 4,         /* that a thread takes at a time: pairs, for gate and up; */
    TILES = 86,         /* with as many tiles their results stay in the second cache */
    SLICE = 32          /* groups that a thread quantises at a time, where there are few tokens */
};
static const double SMALL_WORK = 1 << 18; /* products below which threads cost more than they bring */

/* Whether anything is left of a token of this largest |x|: not of one too small for 127 / x, or not finite. */
static int has_scale(float top)
{
    return top >= 0x1p-100f && top < __builtin_inff();
}

/* The scale of a token; NaN where anything is not finite, which so comes to its results. */
static float scale_of(float top)
{
    return top < __builtin_inff() ? top * (1.0f / 127.0f) : __builtin_nanf("");
}

/* The smallest ratio with which a group of this largest |x| is within 127 steps of the scale. */
static size_t step_of(float largest, float top)
{
    if (!has_scale(top))
        return 0;
    float r = largest / top;
    size_t n = 0;
    for (size_t half = QWQ_RATIOS / 2; half >= 1; half /= 2)
        if (QWQ_RATIO[n + half] >= r)
            n += half;
    return n;
}

/* One group of a token; x * 0 would be NaN for what is not finite, and no integer. */
static int32_t quantise_group(const qwq_kernels *kernels, int8_t *q, const float *x, size_t step, float top)
{
    if (has_scale(top))
        return kernels->quantise(q, x, 127.0f / (top * QWQ_RATIO[step]));
    memset(q, 0, GROUP);
    return 0;
}

int qwq_quantise_activations(int8_t *q, uint8_t *step, float *scale, const float *x, size_t T, size_t K, int isa)
{
    const qwq_kernels *kernels = qwq_kernels_of(isa);
    if (!kernels)
        return QWQ_EISA;
    if (K % GROUP || !K || K > QWQ_MOST_SIZE || T > QWQ_MOST_SIZE)
        return QWQ_ESIZE;
    const qwq_array arrays[] = {{q, T * K, 1}, {step, T * (K / GROUP), 1}, {scale, T * sizeof(float), 4},
                                {x, T * K * sizeof(float), 4}};
    int error = qwq_check(arrays, 3, 4);
    if (error)
        return error;
    for (size_t t = 0; t < T; t++) {
        float top = 0, largest;
        for (size_t g = 0; g < K / GROUP; g++) {
            kernels->largest(&largest, x + t * K + g * GROUP, 1);
            top = largest > top || largest != largest ? largest : top;
        }
        scale[t] = scale_of(top);
        for (size_t g = 0; g < K / GROUP; g++, step++, q += GROUP) {
            kernels->largest(&largest, x + t * K + g * GROUP, 1);
            *step = (uint8_t)step_of(largest, top);
            quantise_group(kernels, q, x + t * K + g * GROUP, *step, top);
        }
    }
    return 0;
}

/* T tokens as tiles of at most 6; the last two share what would leave a tile of 1 or 2. */
static size_t tiles_of(size_t T)
{
    return up(T, TILE) / TILE;
}

/* Where tile i begins; for i = tiles, where the last ends. */
static size_t tile_at(size_t T, size_t tiles, size_t i)
{
    if (i + 1 < tiles)
        return i * TILE;
    if (i == tiles)
        return T;
    size_t last = T - i * TILE;
    return tiles > 1 && last <= 2 ? T - (TILE + last) / 2 : i * TILE;
}

/* Where things are in the scratch. */
typedef struct {
    int8_t *q;
    float *scale;    /* [T] */
    float *largest;  /* [T][groups] */
    uint64_t *used;  /* [groups]: the ratios that some token needs */
    float *ratio;    /* this and the following in the order of tiles */
    uint16_t *scaled;
    int32_t *begin;
    float *sum, *x;
    float *normed;   /* [T][K] */
    uint8_t *threads;
    size_t bytes_of_thread, bytes;
    size_t groups; /* of K, to whole blocks */
    size_t chunk;  /* groups that all tokens are multiplied with in turn */
} qwq_scratch;

static qwq_scratch scratch_of(uint8_t *at, const qwq_layout *l, size_t T, size_t K, int threads)
{
    qwq_scratch s;
    uint8_t *start = at;
    size_t columns = up(K, l->columns), groups = columns / GROUP, subgroups = groups * l->subgroups;
    s.groups = groups;
    s.chunk = T <= FEW ? groups : l->floats ? FLOATS_CHUNK : CHUNK;
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
    s.bytes_of_thread = CHUNK * sizeof(qwq_wide) + up(PANELS * smaller(T, TILES * TILE) * PANEL * sizeof(float), LINE);
    s.bytes = (size_t)(at - start) + (size_t)threads * s.bytes_of_thread;
    return s;
}

size_t qwq_matmul_scratch(const qwq_format *format, size_t T, size_t K, int threads)
{
    qwq_layout l;
    if (!format || !qwq_layout_of(&l, format) || !qwq_threads_are_possible(threads) || !K || T > QWQ_MOST_SIZE ||
        K > QWQ_MOST_SIZE)
        return 0;
    return scratch_of(NULL, &l, T, K, threads).bytes;
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
    qwq_tile tile = {s->q + first * GROUP, s->ratio + first, s->scaled + first, s->begin + first * l->subgroups,
                     s->sum + first * l->subgroups, s->x + first * GROUP};
    return tile;
}

/* Group g of a row; columns beyond K are zero. */
static const float *group_in(float *own, const float *row, size_t g, size_t K)
{
    if ((g + 1) * GROUP <= K)
        return row + g * GROUP;
    memset(own, 0, GROUP * sizeof(float));
    if (g * GROUP < K)
        memcpy(own, row + g * GROUP, (K - g * GROUP) * sizeof(float));
    return own;
}

/* Groups g0 to g1 of a row: the largest magnitudes. */
static void find_largest(float *largest, const qwq_kernels *kernels, const float *row, size_t g0, size_t g1, size_t K)
{
    size_t whole = smaller(g1, K / GROUP);
    float own[GROUP];
    if (whole > g0)
        kernels->largest(largest + g0, row + g0 * GROUP, whole - g0);
    for (size_t g = whole > g0 ? whole : g0; g < g1; g++)
        kernels->largest(largest + g, group_in(own, row, g, K), 1);
}

/* Groups g0 to g1 of token t of the tile that begins with token `first`, from its row to the order of tiles. */
static void place(const qwq_scratch *s, const qwq_layout *l, const qwq_kernels *kernels, const float *row, size_t T,
                  size_t first, size_t tokens, size_t t, size_t g0, size_t g1, size_t K)
{
    float own[GROUP], top = 0;
    if (l->floats) {
        for (size_t g = g0; g < g1; g++) {
            const float *x = group_in(own, row, g, K);
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
        int32_t sum = quantise_group(kernels, q, group_in(own, row, g, K), step, top);
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

/* What the threads share. */
typedef struct {
    const uint8_t *w;
    const qwq_format *format;
    const qwq_layout *layout;
    const qwq_kernels *kernels;
    qwq_scratch scratch;
    size_t T, tiles, panel_bytes;
} qwq_job;

/* Groups g to g + groups of a panel, unpacked. */
static void unpack(qwq_wide *wide, const qwq_job *j, const uint8_t *panel, size_t g, size_t groups)
{
    const qwq_layout *l = j->layout;
    size_t per_block = l->columns / GROUP, part = g % per_block;
    for (panel += g / per_block * l->bytes; groups--; wide++, g++) {
        j->kernels->unpack(wide, panel, part, j->format, l);
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
    size_t groups = j->scratch.groups, tokens[2];
    qwq_tile tile[2];
    for (size_t i = 0; i < j->tiles; i++) {
        size_t t = tile_at(j->T, j->tiles, i);
        tokens[i] = tile_at(j->T, j->tiles, i + 1) - t;
        tile[i] = tile_in(&j->scratch, l, j->T, t, tokens[i], 0);
    }
    if (!wide) {
        j->kernels->blocks[j->format->codes](y, panel, tile, tokens[0], groups, j->format, l);
        if (j->tiles == 2)
            j->kernels->blocks[j->format->codes](y + tokens[0] * PANEL, panel, tile + 1, tokens[1], groups, j->format,
                                                 l);
        return;
    }
    for (size_t g = 0; g < groups; g++) {
        unpack(wide, j, panel, g, 1);
        j->kernels->wide(y, wide, tile, tokens[0], 1, l);
        advance(tile, tokens[0], 1, l);
        if (j->tiles == 2) {
            j->kernels->wide(y + tokens[0] * PANEL, wide, tile + 1, tokens[1], 1, l);
            advance(tile + 1, tokens[1], 1, l);
        }
    }
}

/* Some bytes into the second cache: what comes next is fetched while this is multiplied. */
static void fetch(const void *from, size_t bytes)
{
    for (size_t b = 0; b < bytes; b += LINE)
        __builtin_prefetch((const char *)from + b, 0, 2);
}

/* Of many tokens: results [panel][token][PANEL] of panels p0 to p1 and some tiles. A chunk's activations stay in the
 * second cache for all of these panels, a panel's unpacked chunk in the first for all tiles. */
static void many_times(float *results, qwq_wide *wide, const qwq_job *j, size_t p0, size_t p1, size_t tile0,
                       size_t tile1)
{
    const qwq_scratch *s = &j->scratch;
    const qwq_layout *l = j->layout;
    size_t first = tile_at(j->T, j->tiles, tile0);
    for (size_t g = 0; g < s->groups; g += s->chunk)
        for (size_t p = p0; p < p1; p++) {
            size_t groups = smaller(s->chunk, s->groups - g), bytes = groups * GROUP / l->columns * l->bytes;
            const uint8_t *panel = j->w + p * j->panel_bytes, *blocks = panel + g * GROUP / l->columns * l->bytes;
            float *y = results + (p - p0) * (tile_at(j->T, j->tiles, tile1) - first) * PANEL;
            int32_t codes = j->format->codes;
            if (!l->floats) {
                unpack(wide, j, panel, g, groups);
            } else if (codes != QWQ_FP32) {
                j->kernels->widen((float *)(void *)wide, blocks, groups, codes);
                blocks = (const uint8_t *)wide;
                codes = QWQ_FP32;
            }
            /* Of the next chunk, each tile fetches its part of this panel, and this panel its part of each tile. */
            const uint8_t *block = blocks + bytes, *end = g + groups < s->groups ? block + bytes : block;
            size_t part = up(bytes / (tile1 - tile0) + 1, LINE);
            qwq_tile tile = tile_in(s, l, j->T, first, TILE, g), next = tile_in(s, l, j->T, first, TILE, g + groups);
            for (size_t i = tile0, t = first; i < tile1; i++) {
                size_t tokens = tile_at(j->T, j->tiles, i + 1) - t, some = tokens * groups * GROUP / PANELS;
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

/* What is done with results, for some tokens and the panels of a thread. */
typedef struct {
    float *y;
    const float *scale; /* of tokens; NULL for floats */
    const qwq_fusion *fusion;
    swiglu_fn *swiglu;
    size_t N, t0, t1;
} qwq_end;

/* One row of a panel: times the token's scale, plus the bias. */
static void finish(float *row, const float *results, const qwq_end *e, size_t t, size_t n0, size_t n)
{
    for (size_t i = 0; i < PANEL; i++)
        row[i] = e->scale ? results[i] * e->scale[t] : results[i];
    for (size_t i = 0; e->fusion->bias && i < n; i++)
        row[i] = row[i] + e->fusion->bias[n0 + i];
}

/* One panel's results, rows from n0, to where they belong. */
static void store(const float *results, const qwq_end *e, size_t n0)
{
    size_t n = smaller(PANEL, e->N - n0);
    for (size_t t = e->t0; t < e->t1; t++, results += PANEL) {
        float row[PANEL], *to = e->y + t * e->N + n0;
        finish(row, results, e, t, n0, n);
        const float *residual = e->fusion->residual + t * e->N + n0;
        for (size_t i = 0; e->fusion->residual && i < n; i++)
            row[i] = residual[i] + row[i];
        memcpy(to, row, n * sizeof(float));
    }
}

/* Two panels' results, gate and up, to the 32 columns that they make. */
static void store_swiglu(const float *gates, const float *ups, const qwq_end *e, size_t n0)
{
    for (size_t t = e->t0; t < e->t1; t++, gates += PANEL, ups += PANEL) {
        float gate[PANEL], one[PANEL];
        finish(gate, gates, e, t, n0, PANEL);
        finish(one, ups, e, t, n0 + PANEL, PANEL);
        e->swiglu(e->y + t * (e->N / 2) + n0 / 2, gate, one, 1.0f, PANEL);
    }
}

int qwq_matmul(float *y, const qwq_format *format, const uint8_t *w, const float *x, const qwq_fusion *fusion,
               void *scratch, size_t T, size_t N, size_t K, int isa, int threads)
{
    static const qwq_fusion none;
    const qwq_fusion *f = fusion ? fusion : &none;
    qwq_layout l;
    if (!qwq_isa_supported(isa))
        return QWQ_EISA;
    if (!format)
        return QWQ_ENULL;
    if (!qwq_layout_of(&l, format))
        return QWQ_EFORMAT;
    size_t w_bytes = qwq_packed_bytes(format, N, K);
    if (!w_bytes || !qwq_threads_are_possible(threads) || T > QWQ_MOST_SIZE)
        return QWQ_ESIZE;
    if (f->swiglu && (N % (2 * PANEL) || f->residual))
        return QWQ_ESIZE;
    const qwq_kernels *kernels = qwq_kernels_of(isa);
    int direct = T <= FEW && kernels->blocks[format->codes] && !(format->codes == QWQ_Q8 && format->group != GROUP);
    size_t y_bytes = T * N * sizeof(float) / (f->swiglu ? 2 : 1);
    const qwq_array arrays[] = {{y, y_bytes, 4},
                                {scratch, qwq_matmul_scratch(format, T, K, threads), LINE},
                                {x, T * K * sizeof(float), 4},
                                {w, w_bytes, LINE},
                                {f->bias, f->bias ? N * sizeof(float) : 0, 4},
                                {f->norm, f->norm ? K * sizeof(float) : 0, 4},
                                {f->residual, f->residual && f->residual != y ? y_bytes : 0, 4},
                                {f->stop, f->stop ? sizeof *f->stop : 0, sizeof *f->stop}};
    int error = qwq_check(arrays, 2, 8);
    if (error)
        return error;
    qwq_scratch s = scratch_of(scratch, &l, T, K, threads);
    if ((double)T * (double)K * (double)N < SMALL_WORK)
        threads = 1;
    size_t tiles = tiles_of(T), panels = up(N, PANEL) / PANEL;
    size_t slice = tiles < (size_t)threads ? SLICE : s.groups, slices = up(s.groups, slice) / slice;
    const qwq_ops *ops = qwq_ops_of(isa);
    qwq_job job = {w, format, &l, kernels, s, T, tiles, w_bytes / panels};
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        if (f->norm) {
#pragma omp for schedule(static)
            for (size_t t = 0; t < T; t++)
                ops->rmsnorm(s.normed + t * K, x + t * K, f->norm, f->eps, K);
        }
        const float *rows = f->norm ? s.normed : x;
#pragma omp for schedule(static)
        for (size_t i = 0; i < (l.floats ? 0 : T * slices); i++) {
            size_t t = i / slices, g = i % slices * slice;
            find_largest(s.largest + t * s.groups, kernels, rows + t * K, g, smaller(g + slice, s.groups), K);
            if (t == 0)
                memset(s.used + g, 0, (smaller(g + slice, s.groups) - g) * sizeof(uint64_t));
        }
#pragma omp for schedule(static)
        for (size_t i = 0; i < tiles * slices; i++) {
            size_t first = tile_at(T, tiles, i / slices), tokens = tile_at(T, tiles, i / slices + 1) - first;
            size_t g = i % slices * slice;
            for (size_t t = 0; t < tokens; t++)
                place(&s, &l, kernels, rows + (first + t) * K, T, first, tokens, t, g, smaller(g + slice, s.groups), K);
        }
#ifdef _OPENMP
        uint8_t *own = s.threads + (size_t)omp_get_thread_num() * s.bytes_of_thread;
#else
        uint8_t *own = s.threads;
#endif
        qwq_wide *wide = direct ? NULL : (qwq_wide *)(void *)own;
        float *results = (float *)(void *)(own + CHUNK * sizeof(qwq_wide));
#pragma omp for schedule(dynamic)
        for (size_t p = 0; p < panels; p += PANELS)
            for (size_t i = 0; i < tiles && !stopped(f->stop); i += TILES) {
                size_t end = smaller(i + TILES, tiles), t0 = tile_at(T, tiles, i), t1 = tile_at(T, tiles, end);
                memset(results, 0, (smaller(p + PANELS, panels) - p) * (t1 - t0) * PANEL * sizeof(float));
                if (T > FEW)
                    many_times(results, wide, &job, p, smaller(p + PANELS, panels), i, end);
                for (size_t k = 0; T <= FEW && k < smaller(PANELS, panels - p); k++)
                    few_times(results + k * T * PANEL, wide, &job, w + (p + k) * job.panel_bytes);
                qwq_end out = {y, l.floats ? NULL : s.scale, f, ops->swiglu, N, t0, t1};
                size_t each = (t1 - t0) * PANEL;
                for (size_t k = 0; k < smaller(PANELS, panels - p); k++)
                    if (!f->swiglu)
                        store(results + k * each, &out, (p + k) * PANEL);
                    else if (k % 2 == 0)
                        store_swiglu(results + k * each, results + (k + 1) * each, &out, (p + k) * PANEL);
            }
    }
    return stopped(f->stop) ? QWQ_ESTOP : 0;
}
