/* Packing: from a file's own bytes, or from bytes of codes, to the lines of a panel's group. */
#ifndef QWQ_PACKING_H
#define QWQ_PACKING_H

#include "common/formats.h"

/* A group of a panel before it is packed, in the order of qwq_wide.code: four columns of 16 rows in a line. */
typedef uint8_t qwq_lines[LINES][2][LINE];

/* Fills the lines with the codes of rows n to n + rows - 1, and of columns k to k + columns - 1. rows: up to 32; n: a
 * multiple of 32. columns: up to 64; k: a multiple of 64. What is beyond both stays as it is. K: columns of the weight.
 */
typedef void gather_fn(qwq_lines lines, const qwq_weight *w, size_t n, size_t rows, size_t k, size_t columns, size_t K);

/* The same from bytes, K apart. */
void qwq_gather_bytes(qwq_lines lines, const uint8_t *code, size_t rows, size_t columns, size_t K);

/* Codes in words: 0, or an error. */
int qwq_check_words(const qwq_words *words, const qwq_format *format, size_t N, size_t K);
/* How such codes are gathered; how many words there are, from the first to the last. */
gather_fn *qwq_gather_words(const qwq_words *words);
size_t qwq_count_words(const qwq_words *words, size_t N, size_t K);

/* Packs the lines of one group of a block. missing: rows or columns are missing; they are packed as zero bytes. */
static inline void qwq_lines_begin(qwq_lines lines, const qwq_format *f, int missing)
{
    if (missing)
        memset(lines, f->codes == QWQ_Q8 ? Q8_EXCESS : 0, sizeof(qwq_lines));
}

static inline void qwq_lines_put(uint8_t *to, qwq_lines lines, const qwq_format *f, const qwq_layout *l)
{
    qwq_code_types[f->codes].put(to, (const uint8_t (*)[2][LINE])lines, l);
}

/* The bytes of panels that are `step` panels apart, from the first to the last. */
static inline size_t qwq_bytes_of_panels(const qwq_format *f, size_t N, size_t K, size_t step)
{
    size_t bytes = qwq_packed_bytes(f, N, K), panels = (N + PANEL - 1) / PANEL;
    return bytes && (step == 1 || step == 2) ? bytes / panels * ((panels - 1) * step + 1) : 0;
}

#endif
