/* Packing ggml's blocks: a file's own bytes go into panels in one pass. */
#include "common/blocks.h"
#include "common/check.h"
#include "common/packing.h"
#include "common/parallel.h"

typedef struct {
    uint8_t *packed;
    const uint8_t *data;
    const qwq_block_type *type;
    const qwq_layout *layout;
    size_t N, K, step;
    int *infinite;
} blocks_job;

/* Decoded rows of one block of a panel. */
typedef struct {
    uint8_t code[PANEL][MOST_COLUMNS];
} panel_codes;

static int is_infinite(const uint8_t *half)
{
    return (half[1] & 0x7C) == 0x7C; /* or NaN */
}

/* The scales of row r, from a decoded block. i: which group of the panel's block it begins with. */
static void put_scales(uint8_t *scales, const qwq_block_scales *from, const qwq_block_type *type, const qwq_layout *l,
                       size_t r, size_t i)
{
    int super = qwq_scale_kinds[type->format.scales].super;
    if (!super) {
        memcpy(scales + (i * PANEL + r) * 2, from->scale, 2);
        if (l->offset)
            memcpy(scales + ((l->in_block + i) * PANEL + r) * 2, from->offset, 2);
        return;
    }
    memcpy(scales + 2 * r, from->scale, 2);
    scales += 2 * PANEL;
    if (l->offset) {
        memcpy(scales + 2 * r, from->offset, 2);
        scales += 2 * PANEL;
    }
    for (size_t g = 0; g < l->in_block; g++)
        scales[g * PANEL + r] = from->sub_scale[g];
    if (l->offset)
        for (size_t g = 0; g < l->in_block; g++)
            scales[(l->in_block + g) * PANEL + r] = from->sub_min[g];
}

/* One block of a panel, from `count` blocks of each row; the rows are `ld` bytes apart. */
static int pack_block(uint8_t *block, const blocks_job *j, const uint8_t *data, size_t rows, size_t count, size_t ld)
{
    const qwq_block_type *type = j->type;
    const qwq_layout *l = j->layout;
    panel_codes codes;
    int infinite = 0;
    memset(block + l->scales_at, 0, l->bytes - l->scales_at);
    for (size_t r = 0; r < rows; r++, data += ld)
        for (size_t i = 0; i < count; i++) {
            qwq_block_scales made;
            type->decode(codes.code[r] + i * type->columns, &made, data + i * type->bytes);
            put_scales(block + l->scales_at, &made, type, l, r, i);
            infinite |= is_infinite(made.scale) | (l->offset && is_infinite(made.offset));
        }
    size_t columns = count * type->columns;
    for (size_t k = 0; k < l->columns; k += GROUP, block += l->code_bytes) {
        qwq_lines lines;
        qwq_lines_begin(lines, &type->format, rows < PANEL || k + GROUP > columns);
        if (k < columns)
            qwq_gather_bytes(lines, codes.code[0] + k, rows, smaller(GROUP, columns - k), MOST_COLUMNS);
        qwq_lines_put(block, lines, &type->format, l);
    }
    return infinite;
}

static void pack_panels(const void *job, size_t first, size_t end, int worker)
{
    const blocks_job *j = job;
    const qwq_layout *l = j->layout;
    size_t of_row = j->K / j->type->columns, per_block = l->columns / j->type->columns;
    size_t ld = of_row * j->type->bytes, blocks = up(of_row, per_block) / per_block;
    int infinite = 0;
    (void)worker;
    for (size_t p = first; p < end; p++) {
        uint8_t *panel = j->packed + p * j->step * blocks * l->bytes;
        const uint8_t *data = j->data + p * PANEL * ld;
        for (size_t i = 0; i < of_row; i += per_block, panel += l->bytes)
            infinite |= pack_block(panel, j, data + i * j->type->bytes, smaller(PANEL, j->N - p * PANEL),
                                   smaller(per_block, of_row - i), ld);
    }
    if (infinite)
        __atomic_store_n(j->infinite, 1, __ATOMIC_RELAXED);
}

int qwq_pack_blocks(uint8_t *packed, const uint8_t *data, int type, size_t N, size_t K, size_t step, int threads)
{
    qwq_layout l;
    if (type < 0 || type >= QWQ_BLOCK_TYPES)
        return QWQ_EFORMAT;
    const qwq_block_type *of = &qwq_block_types[type];
    size_t bytes = qwq_bytes_of_panels(&of->format, N, K, step);
    if (!qwq_layout_of(&l, &of->format) || !bytes || K % of->columns || !qwq_threads_are_possible(threads))
        return QWQ_ESIZE;
    const qwq_array arrays[] = {{packed, bytes, LINE}, {data, N * (K / of->columns * of->bytes), 1}};
    int error = qwq_check(arrays, 1, 2), infinite = 0;
    if (error)
        return error;
    const blocks_job job = {packed, data, of, &l, N, K, step, &infinite};
    qwq_parallel_for(pack_panels, &job, up(N, PANEL) / PANEL, threads);
    return infinite ? QWQ_ERANGE : 0;
}
