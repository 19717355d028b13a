/* The entry points: they check, lay out, share the work among threads, and call a variant. */
#include <math.h>
#include <string.h>

#include "kernels.h"
#include "qwq.h"

static const qwq_kernels *variant(int isa)
{
    if (!qwq_isa_supported(isa))
        return NULL;
#if defined(__x86_64__)
    if (isa == QWQ_AVX512)
        return &qwq_avx512_kernels;
    if (isa == QWQ_AVX2)
        return &qwq_avx2_kernels;
#endif
    return &qwq_ref_kernels;
}

int qwq_quantise_activations(int8_t *q, float *scale, int32_t *sum, const float *x, size_t T, size_t K, int isa)
{
    const qwq_kernels *kernels = variant(isa);
    if (!kernels)
        return QWQ_EISA;
    if (K % GROUP || !K)
        return QWQ_ESIZE;
    for (size_t t = 0; t < T; t++)
        kernels->quantise(q + t * K, scale + t * (K / GROUP), sum + t * (K / GROUP), x + t * K, K);
    return 0;
}

int qwq_quantise_q4(uint8_t *code, uint16_t *scale, const float *w, size_t N, size_t K, int isa, int threads)
{
    const qwq_kernels *kernels = variant(isa);
    if (!kernels)
        return QWQ_EISA;
    if (K % GROUP || !K || threads < 1)
        return QWQ_ESIZE;
    size_t groups = N * (K / GROUP);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4096) if (threads > 1)
    for (size_t g = 0; g < groups; g++)
        scale[g] = kernels->quantise_q4(code + g * GROUP, w + g * GROUP);
    return 0;
}

int qwq_quantise_q8(int8_t *q, uint16_t *scale, const float *w, size_t N, size_t K, int isa, int threads)
{
    const qwq_kernels *kernels = variant(isa);
    if (!kernels)
        return QWQ_EISA;
    if (K % GROUP || !K || threads < 1)
        return QWQ_ESIZE;
    size_t groups = N * (K / GROUP);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4096) if (threads > 1)
    for (size_t g = 0; g < groups; g++)
        scale[g] = kernels->quantise_q8(q + g * GROUP, w + g * GROUP);
    return 0;
}

static size_t packed_bytes(size_t N, size_t K, size_t block)
{
    return (N + PANEL - 1) / PANEL * (K / GROUP) * block;
}

size_t qwq_q4_bytes(size_t N, size_t K)
{
    return packed_bytes(N, K, Q4_BLOCK);
}

size_t qwq_q8_bytes(size_t N, size_t K)
{
    return packed_bytes(N, K, Q8_BLOCK);
}

/* One row's group of values into its block. */
typedef void put_fn(uint8_t *block, size_t r, const void *values);

static void put_q4(uint8_t *block, size_t r, const void *values)
{
    const uint8_t *code = values;
    for (size_t k = 0; k < GROUP; k++)
        block[k / 4 * LINE + r % 16 * 4 + k % 4] |= (uint8_t)(r < 16 ? code[k] & 15 : (code[k] & 15) << 4);
}

static void put_q8(uint8_t *block, size_t r, const void *values)
{
    const int8_t *q = values;
    for (size_t k = 0; k < GROUP; k++)
        block[(k / 4 * 2 + r / 16) * LINE + r % 16 * 4 + k % 4] = (uint8_t)(q[k] + Q8_OFFSET);
}

/* Values are bytes in either format. */
static int pack(uint8_t *packed, const uint8_t *values, const uint16_t *scale, size_t N, size_t K, size_t bytes,
                put_fn *put)
{
    if (K % GROUP || !K || !N)
        return QWQ_ESIZE;
    size_t groups = K / GROUP;
    memset(packed, 0, packed_bytes(N, K, bytes));
    for (size_t n = 0; n < N; n++)
        for (size_t g = 0; g < groups; g++) {
            uint8_t *block = packed + (n / PANEL * groups + g) * bytes;
            put(block, n % PANEL, values + n * K + g * GROUP);
            memcpy(block + bytes - 2 * PANEL + 2 * (n % PANEL), &scale[n * groups + g], 2);
        }
    return 0;
}

int qwq_pack_q4(uint8_t *packed, const uint8_t *code, const uint16_t *scale, size_t N, size_t K)
{
    return pack(packed, code, scale, N, K, Q4_BLOCK, put_q4);
}

int qwq_pack_q8(uint8_t *packed, const int8_t *q, const uint16_t *scale, size_t N, size_t K)
{
    return pack(packed, (const uint8_t *)q, scale, N, K, Q8_BLOCK, put_q8);
}

/* Scratch: all tiles' q, then all scales, then all beginnings. */
size_t qwq_matmul_scratch(size_t T, size_t K)
{
    return T * K + T * (K / GROUP) * (sizeof(float) + sizeof(int32_t)) + 64;
}

/* Token t's groups, from a row as it was quantised to the tile's interleaved order. */
static void place(int8_t *q, float *scale, int32_t *begin, const int8_t *row, const float *row_scale,
                  const int32_t *row_sum, size_t t, size_t tokens, size_t groups, int32_t offset)
{
    for (size_t g = 0; g < groups; g++) {
        for (size_t l = 0; l < LINES; l++)
            memcpy(q + ((g * LINES + l) * tokens + t) * 4, row + (g * LINES + l) * 4, 4);
        scale[g * tokens + t] = row_scale[g];
        begin[g * tokens + t] = -offset * row_sum[g];
    }
}

static void tile_activations(const qwq_kernels *kernels, int8_t *q, float *scale, int32_t *begin, const float *x,
                             size_t tokens, size_t K, int32_t offset)
{
    int8_t row[64 * GROUP];
    float row_scale[64];
    int32_t row_sum[64];
    size_t groups = K / GROUP;
    for (size_t t = 0; t < tokens; t++)
        for (size_t g = 0; g < groups; g += 64) {
            size_t some = groups - g < 64 ? groups - g : 64;
            kernels->quantise(row, row_scale, row_sum, x + t * K + g * GROUP, some * GROUP);
            place(q + g * GROUP * tokens, scale + g * tokens, begin + g * tokens, row, row_scale, row_sum, t, tokens,
                  some, offset);
        }
}

static int matmul(float *y, const uint8_t *w, const float *x, void *scratch, size_t T, size_t N, size_t K,
                  const qwq_kernels *kernels, panel_fn *panel_of, size_t block, int32_t offset, int threads)
{
    if (K % GROUP || !K || !N || threads < 1)
        return QWQ_ESIZE;
    size_t groups = K / GROUP, tiles = (T + TILE - 1) / TILE, panels = (N + PANEL - 1) / PANEL;
    int8_t *q = scratch;
    float *scale = (float *)(void *)(q + (T * K + 63) / 64 * 64);
    int32_t *begin = (int32_t *)(void *)(scale + T * groups);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
        for (size_t i = 0; i < tiles; i++) {
            size_t t = i * TILE, tokens = T - t < TILE ? T - t : TILE;
            tile_activations(kernels, q + t * K, scale + t * groups, begin + t * groups, x + t * K, tokens, K, offset);
        }
#pragma omp for schedule(dynamic, 4)
        for (size_t p = 0; p < panels; p++) {
            size_t rows = N - p * PANEL < PANEL ? N - p * PANEL : PANEL;
            for (size_t t = 0; t < T; t += TILE) {
                qwq_tile tile = {q + t * K, scale + t * groups, begin + t * groups};
                size_t tokens = T - t < TILE ? T - t : TILE;
                panel_of(y + t * N + p * PANEL, N, rows, w + p * groups * block, tile, tokens, groups);
            }
        }
    }
    return 0;
}

int qwq_matmul_q4(float *y, const uint8_t *w, const float *x, void *scratch, size_t T, size_t N, size_t K, int isa,
                  int threads)
{
    const qwq_kernels *kernels = variant(isa);
    if (!kernels)
        return QWQ_EISA;
    return matmul(y, w, x, scratch, T, N, K, kernels, kernels->q4_panel, Q4_BLOCK, LEVEL_OFFSET, threads);
}

int qwq_matmul_q8(float *y, const uint8_t *w, const float *x, void *scratch, size_t T, size_t N, size_t K, int isa,
                  int threads)
{
    const qwq_kernels *kernels = variant(isa);
    if (!kernels)
        return QWQ_EISA;
    return matmul(y, w, x, scratch, T, N, K, kernels, kernels->q8_panel, Q8_BLOCK, Q8_OFFSET, threads);
}
