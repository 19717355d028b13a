/* Packing floats: a panel holds, for each column, the numbers of its 32 rows side by side. */
#include <string.h>

#include "common/check.h"
#include "common/formats.h"

typedef uint16_t eight_halves __attribute__((vector_size(16)));

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (eight_halves){__VA_ARGS__})
#endif

/* Transposes 8 rows of 8 numbers, in registers. Each of three rounds interleaves row i with row i + 4. */
static void transpose_8x8(uint16_t *columns, const uint16_t *w, size_t K)
{
    eight_halves x[8], y[8];
    for (size_t i = 0; i < 8; i++)
        memcpy(&x[i], w + i * K, sizeof x[i]);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < 4; i++) {
            y[2 * i] = SHUFFLE(x[i], x[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            y[2 * i + 1] = SHUFFLE(x[i], x[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        memcpy(x, y, sizeof x);
    }
    for (size_t i = 0; i < 8; i++)
        memcpy(columns + i * PANEL, &x[i], sizeof x[i]);
}

/* Takes 32 columns at a time: these are one cache line of each row. */
static void pack_halves(uint16_t *panel, const uint16_t *w, size_t rows, size_t K)
{
    size_t whole_rows = rows / 8 * 8, whole_columns = K / 8 * 8;
    for (size_t k0 = 0; k0 < whole_columns; k0 += 32)
        for (size_t r = 0; r < whole_rows; r += 8)
            for (size_t k = k0; k < smaller(k0 + 32, whole_columns); k += 8)
                transpose_8x8(panel + k * PANEL + r, w + r * K + k, K);
    for (size_t r = 0; r < rows; r++)
        for (size_t k = r < whole_rows ? whole_columns : 0; k < K; k++)
            panel[k * PANEL + r] = w[r * K + k];
}

/* Takes 64 columns at a time: their part of the panel stays in the first-level cache. */
static void pack_singles(uint32_t *panel, const uint32_t *w, size_t rows, size_t K)
{
    for (size_t k0 = 0; k0 < K; k0 += GROUP)
        for (size_t r = 0; r < rows; r++)
            for (size_t k = k0; k < smaller(K, k0 + GROUP); k++)
                panel[k * PANEL + r] = w[r * K + k];
}

void qwq_pack_floats(uint8_t *panel, const uint8_t *w, size_t rows, size_t K, size_t element)
{
    if (rows < PANEL || K % GROUP)
        memset(panel, 0, up(K, GROUP) * PANEL * element);
    if (element == 2)
        pack_halves((uint16_t *)panel, (const uint16_t *)w, rows, K);
    else
        pack_singles((uint32_t *)panel, (const uint32_t *)w, rows, K);
}
