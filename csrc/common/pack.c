/* Packing: from the arrays of a weight to panels of 32 rows. */
#include <string.h>

#include "common/check.h"
#include "common/formats.h"
#include "common/parallel.h"

/* Codes of up to 32 rows and 64 columns, K apart, in the order of qwq_wide.code: four columns of 16 rows in a line. */
static void gather(uint8_t (*lines)[2][LINE], const uint8_t *code, size_t rows, size_t columns, size_t K)
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

/* The codes of a panel's block: of `rows` rows from n0 on, and columns from k0 on. */
static void pack_codes(uint8_t *block, const qwq_format *f, const qwq_layout *l, const qwq_weight *w, size_t n0,
                       size_t rows, size_t k0, size_t K)
{
    const uint8_t *code = (const uint8_t *)w->code + n0 * K;
    for (size_t k = k0; k < k0 + l->columns; k += GROUP, block += l->code_bytes) {
        uint8_t lines[LINES][2][LINE];
        if (rows < PANEL || k + GROUP > K)
            memset(lines, f->codes == QWQ_Q8 ? Q8_EXCESS : 0, sizeof lines); /* packed, these are zero bytes */
        if (k < K)
            gather(lines, code + k, rows, smaller(GROUP, K - k), K);
        qwq_code_types[f->codes].put(block, (const uint8_t(*)[2][LINE])lines, l);
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

typedef struct {
    uint8_t *packed;
    const qwq_format *format;
    const qwq_layout *layout;
    const qwq_weight *w;
    size_t N, K;
} pack_job;

static void pack_panels(const void *job, size_t first, size_t end, int worker)
{
    const pack_job *j = job;
    const qwq_layout *l = j->layout;
    size_t blocks = up(j->K, l->columns) / l->columns;
    (void)worker;
    for (size_t p = first; p < end; p++) {
        uint8_t *panel = j->packed + p * blocks * l->bytes;
        if (l->floats) {
            size_t element = qwq_code_types[j->format->codes].element;
            const uint8_t *rows = (const uint8_t *)j->w->code + p * PANEL * j->K * element;
            qwq_pack_floats(panel, rows, smaller(j->N - p * PANEL, PANEL), j->K, element);
            continue;
        }
        size_t n0 = p * PANEL, rows = smaller(PANEL, j->N - n0);
        for (size_t b = 0; b < blocks; b++, panel += l->bytes) {
            pack_codes(panel, j->format, l, j->w, n0, rows, b * l->columns, j->K);
            memset(panel + l->scales_at, 0, l->bytes - l->scales_at);
            for (size_t n = n0; n < n0 + rows; n++)
                pack_scales(panel, j->format, l, j->w, n, b * l->columns, j->K);
        }
    }
}

int qwq_pack(uint8_t *packed, const qwq_format *format, const qwq_weight *w, size_t N, size_t K, int threads)
{
    qwq_layout l;
    if (!format || !w)
        return QWQ_ENULL;
    if (!qwq_layout_of(&l, format))
        return QWQ_EFORMAT;
    size_t bytes = qwq_packed_bytes(format, N, K), panels = up(N, PANEL) / PANEL;
    if (!bytes || !qwq_threads_are_possible(threads))
        return QWQ_ESIZE;
    int32_t kind = format->scales;
    int super = qwq_scale_kinds[kind].super;
    size_t element = qwq_code_types[format->codes].element;
    size_t groups = l.floats ? 0 : N * (up(K, (size_t)format->group) / (size_t)format->group); /* of the whole weight */
    size_t scales = (super ? N * (up(K, 256) / 256) : groups) * 2;
    const qwq_array arrays[] = {{packed, bytes, LINE},
                                {w->code, N * K * element, element},
                                {w->scale, scales, 2},
                                {w->zero_point, kind == QWQ_ZERO ? groups : 0, 1},
                                {w->offset, l.offset ? scales : 0, 2},
                                {w->sub_scale, super ? groups : 0, 1},
                                {w->sub_min, kind == QWQ_SUPER_MIN ? groups : 0, 1}};
    int error = qwq_check(arrays, 1, 7);
    if (error)
        return error;
    if (kind == QWQ_ZERO && !l.row_zeros) /* more would not fit the bytes that are multiplied */
        for (size_t i = 0; i < groups; i++)
            if (w->zero_point[i] > ZERO_EXCESS)
                return QWQ_EFORMAT;
    qwq_parallel_for(pack_panels, &(pack_job){packed, format, &l, w, N, K}, panels, threads);
    return 0;
}
