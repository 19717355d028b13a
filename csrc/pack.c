/* Packed weights: their formats, quantising, and packing. */
#include <string.h>

#include "check.h"
#include "kernels.h"
#include "qwq.h"

const qwq_kernels *qwq_kernels_of(int isa)
{
    if (!qwq_isa_supported(isa))
        return NULL;
    const qwq_kernels *table = &qwq_ref_kernels;
#if defined(__x86_64__)
    if (isa == QWQ_AVX512)
        table = &qwq_avx512_kernels;
    if (isa == QWQ_AVX2)
        table = &qwq_avx2_kernels;
#endif
    qwq_ran(table->isa);
    return table;
}

int qwq_layout_of(qwq_layout *l, const qwq_format *f)
{
    static const uint16_t code_bytes[] = {NIBBLES,     NIBBLES,   NIBBLES * 5 / 4, NIBBLES * 6 / 4,
                                          2 * NIBBLES, GROUP * PANEL * 2, GROUP * PANEL * 2, GROUP * PANEL * 4};
    static const uint8_t most[] = {127, 15, 31, 63, 255};
    if (f->codes < QWQ_Q4 || f->codes > QWQ_FP32)
        return 0;
    memset(l, 0, sizeof *l);
    l->codes = code_bytes[f->codes];
    l->columns = GROUP;
    l->bytes = l->codes;
    l->subgroups = 1;
    if (f->codes >= QWQ_BF16) {
        l->floats = 1;
        return !f->group && !f->scales && !f->zero_point;
    }
    int affine = f->codes == QWQ_U4 || f->codes == QWQ_U5 || f->codes == QWQ_U6;
    if ((f->group != 16 && f->group != 32 && f->group != 64 && f->group != 128) ||
        (!affine && (f->scales != QWQ_PLAIN || f->zero_point)) || (f->codes == QWQ_Q4 && f->group != GROUP) ||
        f->scales < QWQ_PLAIN || f->scales > QWQ_SUPER_MIN || f->zero_point < 0 || f->zero_point > 63 ||
        (f->zero_point && f->scales != QWQ_PLAIN && f->scales != QWQ_SUPER))
        return 0;
    size_t group = (size_t)f->group;
    l->columns = f->scales >= QWQ_SUPER ? 256 : group > GROUP ? group : GROUP;
    l->subgroups = group >= GROUP ? 1 : GROUP / group;
    size_t n = l->columns / group;
    const size_t scale_bytes[] = {2 * n, 3 * n, 4 * n, 2 + n, 4 + 2 * n}; /* of a row, by kind */
    l->scales = l->columns / GROUP * l->codes;
    l->bytes = up(l->scales + scale_bytes[f->scales] * PANEL, LINE);
    l->in_block = n;
    l->group_bits = __builtin_ctzll(group);
    l->offset = f->scales == QWQ_OFFSET || f->scales == QWQ_SUPER_MIN;
    l->excess = f->scales == QWQ_ZERO ? ZERO_EXCESS : f->zero_point;
    if (f->codes == QWQ_Q4 || f->codes == QWQ_Q8)
        l->excess = f->codes == QWQ_Q4 ? Q4_EXCESS : Q8_EXCESS;
    l->most = most[f->codes] + (f->scales == QWQ_ZERO ? ZERO_EXCESS : 0);
    return 1;
}

/* Group g of a weight as floats: where it is, or converted into `own`. */
static const float *group_of(float *own, const void *w, size_t g, int dtype)
{
    if (dtype == QWQ_FP32)
        return (const float *)w + g * GROUP;
    const uint16_t *bits = (const uint16_t *)w + g * GROUP;
    for (size_t k = 0; k < GROUP; k++)
        own[k] = dtype == QWQ_BF16 ? bf16_to_float(bits[k]) : half_to_float(bits[k]);
    return own;
}

/* w [N, K] -> codes of q4 or q8, and scales. */
static int quantise(void *code, uint16_t *scale, const void *w, size_t N, size_t K, int dtype, int isa, int threads,
                    int32_t codes)
{
    if (!qwq_isa_supported(isa))
        return QWQ_EISA;
    if (dtype != QWQ_FP32 && dtype != QWQ_BF16 && dtype != QWQ_FP16)
        return QWQ_EFORMAT;
    if (K % GROUP || !K || K > QWQ_MOST_SIZE || N > QWQ_MOST_SIZE || !qwq_threads_are_possible(threads))
        return QWQ_ESIZE;
    size_t element = dtype == QWQ_FP32 ? 4 : 2;
    const qwq_array arrays[] = {{code, N * K, 1}, {scale, N * (K / GROUP) * 2, 2}, {w, N * K * element, element}};
    int error = qwq_check(arrays, 2, 3);
    if (error)
        return error;
    const qwq_kernels *kernels = qwq_kernels_of(isa);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4096) if (threads > 1)
    for (size_t g = 0; g < N * (K / GROUP); g++) {
        float own[GROUP];
        const float *group = group_of(own, w, g, dtype);
        scale[g] = codes == QWQ_Q4 ? kernels->quantise_q4((uint8_t *)code + g * GROUP, group)
                                   : kernels->quantise_q8((int8_t *)code + g * GROUP, group);
    }
    return 0;
}

int qwq_quantise_q4(uint8_t *code, uint16_t *scale, const void *w, size_t N, size_t K, int dtype, int isa, int threads)
{
    return quantise(code, scale, w, N, K, dtype, isa, threads, QWQ_Q4);
}

int qwq_quantise_q8(int8_t *q, uint16_t *scale, const void *w, size_t N, size_t K, int dtype, int isa, int threads)
{
    return quantise(q, scale, w, N, K, dtype, isa, threads, QWQ_Q8);
}

size_t qwq_packed_bytes(const qwq_format *format, size_t N, size_t K)
{
    qwq_layout l;
    if (!format || !qwq_layout_of(&l, format) || !N || !K || N > QWQ_MOST_SIZE || K > QWQ_MOST_SIZE)
        return 0;
    return up(N, PANEL) / PANEL * (up(K, l.columns) / l.columns) * l.bytes;
}

/* Up to 64 codes of row r into a group's codes. */
static void put(uint8_t *to, size_t r, const uint8_t *code, size_t columns, int32_t codes)
{
    for (size_t k = 0; k < columns; k++) {
        size_t at = r % 16 * 4 + k % 4;
        if (codes == QWQ_Q8) {
            to[(k / 4 * 2 + r / 16) * LINE + at] = (uint8_t)(code[k] + Q8_EXCESS);
            continue;
        }
        uint8_t *byte = to + k / 4 * LINE + at;
        *byte = (uint8_t)(*byte | (r < 16 ? code[k] & 15 : (code[k] & 15) << 4));
        if (codes == QWQ_U5 || codes == QWQ_U6) {
            size_t bits = codes == QWQ_U5 ? 1 : 2, line = k / 4 * 2 + r / 16;
            byte = to + NIBBLES + line / (8 / bits) * LINE + at;
            *byte = (uint8_t)(*byte | (code[k] >> 4 & ((1 << bits) - 1)) << line % (8 / bits) * bits);
        }
    }
}

static void put_floats(uint8_t *to, size_t r, const uint8_t *code, size_t columns, size_t bytes)
{
    for (size_t k = 0; k < columns; k++)
        memcpy(to + (k * PANEL + r) * bytes, code + k * bytes, bytes);
}

/* Row n of a panel's block, which begins with column k0. */
static void pack_row(uint8_t *block, const qwq_format *f, const qwq_layout *l, const qwq_weight *w, size_t n, size_t k0,
                     size_t K)
{
    size_t r = n % PANEL, bytes = f->codes == QWQ_FP32 ? 4 : l->floats ? 2 : 1;
    const uint8_t *code = (const uint8_t *)w->code + (n * K + k0) * bytes;
    for (size_t k = 0; k < l->columns && k0 + k < K; k += GROUP) {
        uint8_t *to = block + k / GROUP * l->codes;
        if (l->floats)
            put_floats(to, r, code + k * bytes, smaller(GROUP, K - k0 - k), bytes);
        else
            put(to, r, code + k, smaller(GROUP, K - k0 - k), f->codes);
    }
    if (l->floats)
        return;
    size_t group = (size_t)f->group, in_row = up(K, group) / group, per_block = l->columns / group;
    uint8_t *scales = block + l->scales;
    if (f->scales >= QWQ_SUPER) {
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
        if (f->scales >= QWQ_SUPER) {
            scales[i * PANEL + r] = w->sub_scale[at];
            if (f->scales == QWQ_SUPER_MIN)
                scales[(per_block + i) * PANEL + r] = w->sub_min[at];
            continue;
        }
        memcpy(scales + (i * PANEL + r) * 2, &w->scale[at], 2);
        if (f->scales == QWQ_OFFSET)
            memcpy(scales + ((per_block + i) * PANEL + r) * 2, &w->offset[at], 2);
        if (f->scales == QWQ_ZERO)
            scales[(2 * per_block + i) * PANEL + r] = w->zero_point[at];
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
    size_t element = format->codes == QWQ_FP32 ? 4 : l.floats ? 2 : 1;
    size_t groups = l.floats ? 0 : N * (up(K, (size_t)format->group) / (size_t)format->group); /* of the whole weight */
    size_t scales = (kind >= QWQ_SUPER ? N * (up(K, 256) / 256) : groups) * 2;
    const qwq_array arrays[] = {{packed, bytes, LINE}, {w->code, N * K * element, element}, {w->scale, scales, 2},
                                {w->zero_point, kind == QWQ_ZERO ? groups : 0, 1}, {w->offset, l.offset ? scales : 0, 2},
                                {w->sub_scale, kind >= QWQ_SUPER ? groups : 0, 1},
                                {w->sub_min, kind == QWQ_SUPER_MIN ? groups : 0, 1}};
    int error = qwq_check(arrays, 1, 7);
    if (error)
        return error;
    if (kind == QWQ_ZERO) /* more would not fit the bytes that are multiplied */
        for (size_t i = 0; i < groups; i++)
            if (w->zero_point[i] > ZERO_EXCESS)
                return QWQ_EFORMAT;
    size_t blocks = up(K, l.columns) / l.columns;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (size_t p = 0; p < panels; p++) {
        uint8_t *panel = packed + p * blocks * l.bytes;
        memset(panel, 0, blocks * l.bytes);
        for (size_t b = 0; b < blocks; b++)
            for (size_t n = p * PANEL; n < smaller(N, (p + 1) * PANEL); n++)
                pack_row(panel + b * l.bytes, format, &l, w, n, b * l.columns, K);
    }
    return 0;
}
