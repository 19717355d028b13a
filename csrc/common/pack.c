/* Packing: from the arrays of a weight to panels of 32 rows. */
#include <string.h>

#include "common/check.h"
#include "common/packing.h"
#include "common/parallel.h"

void qwq_gather_bytes(qwq_lines lines, const uint8_t *code, size_t rows, size_t columns, size_t K)
{
    for (size_t r = 0; r < rows; r++, code += K) {
        uint8_t *to = lines[0][r / 16] + r % 16 * 4;
        if (columns == GROUP) {
            for (size_t k = 0; k < GROUP; k += 4)
                memcpy(to + k / 4 * 2 * LINE, code + k, 4);
            continue;
        }
        for (size_t k = 0; k + 4 <= columns; k += 4, to += 2 * LINE)
            memcpy(to, code + k, 4);
        memcpy(to, code + columns / 4 * 4, columns % 4);
    }
}

static void gather_code(qwq_lines lines, const qwq_weight *w, size_t n, size_t rows, size_t k, size_t columns, size_t K)
{
    qwq_gather_bytes(lines, (const uint8_t *)w->code + n * K + k, rows, columns, K);
}

typedef struct {
    uint8_t *packed;
    const qwq_format *format;
    const qwq_layout *layout;
    const qwq_weight *w;
    gather_fn *gather;
    size_t N, K, step;
} pack_job;

/* The codes of a panel's block: of `rows` rows from n0 on, and columns from k0 on. */
static void pack_codes(uint8_t *block, const pack_job *j, size_t n0, size_t rows, size_t k0)
{
    const qwq_layout *l = j->layout;
    for (size_t k = k0; k < k0 + l->columns; k += GROUP, block += l->code_bytes) {
        qwq_lines lines;
        qwq_lines_begin(lines, j->format, rows < PANEL || k + GROUP > j->K);
        if (k < j->K)
            j->gather(lines, j->w, n0, rows, k, smaller(GROUP, j->K - k), j->K);
        qwq_lines_put(block, lines, j->format, l);
    }
}

/* The scales of row n of a panel's block, which begins with column k0. */
static void pack_scales(uint8_t *block, const qwq_format *f, const qwq_layout *l, const qwq_weight *w, size_t n,
                        size_t k0, size_t K)
{
    size_t r = n % PANEL;
    size_t group = (size_t)f->group, in_row = up(K, group) / group, per_block = l->columns / group;
    uint8_t *scales = block + l->scales_at;
    int super = qwq_scale_kinds[f->scales].super;
    if (super) {
        size_t at = n * (up(K, 256) / 256) + k0 / 256;
        memcpy(scales + 2 * r, &w->scale[at], 2);
        scales += 2 * PANEL;
        if (f->scales == QWQ_SUPER_MIN) {
            memcpy(scales + 2 * r, &w->offset[at], 2);
            scales += 2 * PANEL;
        }
    }
    for (size_t i = 0; i < per_block && k0 / group + i < in_row; i++) {
        size_t at = n * in_row + k0 / group + i;
        if (super) {
            scales[i * PANEL + r] = w->sub_scale[at];
            if (f->scales == QWQ_SUPER_MIN)
                scales[(per_block + i) * PANEL + r] = w->sub_min[at];
            continue;
        }
        memcpy(scales + (i * PANEL + r) * 2, &w->scale[at], 2);
        if (l->offset)
            memcpy(scales + ((per_block + i) * PANEL + r) * 2, &w->offset[at], 2);
        if (f->scales == QWQ_ZERO)
            scales[(2 * per_block + i) * PANEL + r] = w->zero_point[at];
    }
}

static void pack_panels(const void *job, size_t first, size_t end, int worker)
{
    const pack_job *j = job;
    const qwq_layout *l = j->layout;
    size_t blocks = up(j->K, l->columns) / l->columns;
    (void)worker;
    for (size_t p = first; p < end; p++) {
        uint8_t *panel = j->packed + p * j->step * blocks * l->bytes;
        if (l->floats) {
            size_t element = qwq_code_types[j->format->codes].element;
            const uint8_t *rows = (const uint8_t *)j->w->code + p * PANEL * j->K * element;
            qwq_pack_floats(panel, rows, smaller(j->N - p * PANEL, PANEL), j->K, element);
            continue;
        }
        size_t n0 = p * PANEL, rows = smaller(PANEL, j->N - n0);
        for (size_t b = 0; b < blocks; b++, panel += l->bytes) {
            pack_codes(panel, j, n0, rows, b * l->columns);
            memset(panel + l->scales_at, 0, l->bytes - l->scales_at);
            for (size_t n = n0; n < n0 + rows; n++)
                pack_scales(panel, j->format, l, j->w, n, b * l->columns, j->K);
        }
    }
}

int qwq_pack(uint8_t *packed, const qwq_format *format, const qwq_weight *w, size_t N, size_t K, size_t step,
             int threads)
{
    qwq_layout l;
    if (!format || !w)
        return QWQ_ENULL;
    if (!qwq_layout_of(&l, format))
        return QWQ_EFORMAT;
    size_t bytes = qwq_bytes_of_panels(format, N, K, step);
    if (!bytes || !qwq_threads_are_possible(threads))
        return QWQ_ESIZE;
    const qwq_words *words = w->words;
    int error = words ? qwq_check_words(words, format, N, K) : 0;
    if (error)
        return error;
    const int32_t *order = words ? words->order : NULL;
    int32_t kind = format->scales;
    int super = qwq_scale_kinds[kind].super;
    size_t element = qwq_code_types[format->codes].element;
    size_t groups = l.floats ? 0 : N * (up(K, (size_t)format->group) / (size_t)format->group); /* of the whole weight */
    size_t scales = (super ? N * (up(K, 256) / 256) : groups) * 2;
    const qwq_array arrays[] = {{packed, bytes, LINE},
                                {w->code, words ? 0 : N * K * element, element},
                                {w->scale, scales, 2},
                                {w->zero_point, kind == QWQ_ZERO ? groups : 0, 1},
                                {w->offset, l.offset ? scales : 0, 2},
                                {w->sub_scale, super ? groups : 0, 1},
                                {w->sub_min, kind == QWQ_SUPER_MIN ? groups : 0, 1},
                                {words ? words->words : NULL, words ? qwq_count_words(words, N, K) * 4 : 0, 4},
                                {order, order ? K * 4 : 0, 4}};
    error = qwq_check(arrays, 1, 9);
    if (error)
        return error;
    if (!qwq_are_columns(order, K))
        return QWQ_EFORMAT;
    if (kind == QWQ_ZERO && !l.row_zeros) /* more would not fit the bytes that are multiplied */
        for (size_t i = 0; i < groups; i++)
            if (w->zero_point[i] > ZERO_EXCESS)
                return QWQ_EFORMAT;
    const pack_job job = {packed, format, &l, w, words ? qwq_gather_words(words) : gather_code, N, K, step};
    qwq_parallel_for(pack_panels, &job, up(N, PANEL) / PANEL, threads);
    return 0;
}
