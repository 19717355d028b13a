/* AVX-512 with VNNI: a panel's 32 rows are two registers, a tile's tokens are broadcast from memory. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "common/kernels.h"
#include "x86/inline.h"
#include "x86/target.h"

TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c,fma")

/* The levels of q4 with their excess, in every quarter. */
INLINE __m512i q4_levels(void)
{
    __m128i codebook = _mm_loadu_si128((const __m128i *)(const void *)QWQ_CODEBOOK);
    return _mm512_add_epi8(_mm512_broadcast_i32x4(codebook), _mm512_set1_epi8(Q4_EXCESS));
}

INLINE void q4_line(uint8_t *first, uint8_t *second, const uint8_t *line)
{
    const __m512i low = _mm512_set1_epi8(15), levels = q4_levels(), codes = _mm512_loadu_si512(line);
    _mm512_storeu_si512(first, _mm512_shuffle_epi8(levels, _mm512_and_si512(codes, low)));
    _mm512_storeu_si512(second, _mm512_shuffle_epi8(levels, _mm512_and_si512(_mm512_srli_epi16(codes, 4), low)));
}

INLINE __m512 sixteen_halves(const uint8_t *from)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)from));
}

INLINE void halves(float *to, const uint8_t *from)
{
    _mm512_storeu_ps(to, sixteen_halves(from));
    _mm512_storeu_ps(to + 16, sixteen_halves(from + 32));
}

static inline void bytes_times(float *to, const uint8_t *bytes, const float *d)
{
    for (int r = 0; r < PANEL; r += 16) {
        __m512i sixteen = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(bytes + r)));
        _mm512_storeu_ps(to + r, _mm512_mul_ps(_mm512_loadu_ps(d + r), _mm512_cvtepi32_ps(sixteen)));
    }
}

static inline void signed_bytes_times(float *to, const uint8_t *bytes, const float *d)
{
    for (int r = 0; r < PANEL; r += 16) {
        __m512i sixteen = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(bytes + r)));
        _mm512_storeu_ps(to + r, _mm512_mul_ps(_mm512_loadu_ps(d + r), _mm512_cvtepi32_ps(sixteen)));
    }
}

#include "common/unpack.h"

UNPACK(u4, planes_to_bytes, 0, 0)
UNPACK(u5, planes_to_bytes, 1, 0)
UNPACK(u6, planes_to_bytes, 2, 0)

/* GCC 12 would load the broadcast first, and run out of registers: the operand stays in memory. */
INLINE void dot(__m512i *sum, __m512i levels, const int8_t *four)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(*sum) : "v"(levels), "m"(*(const int32_t *)(const void *)four));
}

/* A tile's results are registers while its groups are added. */
typedef struct {
    __m512 y0[MOST_TILE], y1[MOST_TILE];
} results;

INLINE void read_results(results *to, const float *y, const int T)
{
    UNROLL for (int t = 0; t < T; t++) {
        to->y0[t] = _mm512_loadu_ps(y + t * PANEL);
        to->y1[t] = _mm512_loadu_ps(y + t * PANEL + 16);
    }
}

INLINE void write_results(float *y, const results *from, const int T)
{
    UNROLL for (int t = 0; t < T; t++) {
        _mm512_storeu_ps(y + t * PANEL, from->y0[t]);
        _mm512_storeu_ps(y + t * PANEL + 16, from->y1[t]);
    }
}

/* The sums of a tile's products, rows 0-15 and 16-31. */
typedef struct {
    __m512i s0[MOST_TILE], s1[MOST_TILE];
} sums;

INLINE void begin_sums(sums *s, const int32_t *begin, const int T)
{
    UNROLL for (int t = 0; t < T; t++)
        s->s0[t] = s->s1[t] = _mm512_set1_epi32(begin[t]);
}

/* What sums begin with, times the zero points of their rows. */
INLINE void times_zeros(sums *s, const int32_t *zero, const int T)
{
    const __m512i zero0 = _mm512_loadu_si512(zero), zero1 = _mm512_loadu_si512(zero + 16);
    UNROLL for (int t = 0; t < T; t++) {
        s->s0[t] = _mm512_mullo_epi32(s->s0[t], zero0);
        s->s1[t] = _mm512_mullo_epi32(s->s1[t], zero1);
    }
}

/* Both halves of a line times four columns of each token. */
INLINE void dots(sums *s, __m512i first, __m512i second, const int8_t *q, const int T)
{
    UNROLL for (int t = 0; t < T; t++) {
        dot(&s->s0[t], first, q + t * 4);
        dot(&s->s1[t], second, q + t * 4);
    }
}

/* y += sum * scale */
INLINE void add_product(__m512 *y, __m512i sum, __m512 scale)
{
    *y = _mm512_add_ps(*y, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale));
}

/* y += sum * (scale of x * scale of w), in registers. */
INLINE void add_scaled(results *y, const sums *s, const float *ratio, __m512 w0, __m512 w1, const int T)
{
    UNROLL for (int t = 0; t < T; t++) {
        __m512 x = _mm512_set1_ps(ratio[t]);
        add_product(&y->y0[t], s->s0[t], _mm512_mul_ps(x, w0));
        add_product(&y->y1[t], s->s1[t], _mm512_mul_ps(x, w1));
    }
}

/* y += offset * sum of x */
INLINE void add_offset(results *y, const float *offset, const float *total, const int T)
{
    const __m512 o0 = _mm512_loadu_ps(offset), o1 = _mm512_loadu_ps(offset + 16);
    UNROLL for (int t = 0; t < T; t++) {
        __m512 x = _mm512_set1_ps(total[t]);
        y->y0[t] = _mm512_add_ps(y->y0[t], _mm512_mul_ps(o0, x));
        y->y1[t] = _mm512_add_ps(y->y1[t], _mm512_mul_ps(o1, x));
    }
}

static void scale(qwq_wide *w, uint64_t used)
{
    const __m512 w0 = _mm512_loadu_ps(w->scale[0]), w1 = _mm512_loadu_ps(w->scale[0] + 16);
    for (; used; used &= used - 1) {
        int i = __builtin_ctzll(used);
        const __m512 x = _mm512_set1_ps(QWQ_RATIO[i]);
        _mm512_storeu_ps(w->scaled[i], _mm512_mul_ps(x, w0));
        _mm512_storeu_ps(w->scaled[i] + 16, _mm512_mul_ps(x, w1));
    }
}

/* T tokens and one panel from memory that stays in the cache, `each` lines to a subgroup. */
INLINE void wide_tile(float *y, const qwq_wide *w, const qwq_tile *tile, size_t groups, const qwq_layout *layout,
                      const size_t each, const int T)
{
    const int8_t *q = tile->q;
    const float *ratio = tile->ratio, *total = tile->sum;
    const uint16_t *scaled = tile->scaled;
    const int32_t *begin = tile->begin;
    results to;
    read_results(&to, y, T);
    for (size_t g = 0; g < groups; g++, w++, ratio += T, scaled += T)
        for (size_t s = 0; s < LINES / each; s++, begin += T) {
            sums sum;
            begin_sums(&sum, begin, T);
            if (layout->row_zeros)
                times_zeros(&sum, w->zero[s], T);
            const uint8_t *code = w->code[s * each][0];
            UNROLL_BY(16) for (size_t l = 0; l < each; l++) {
                __m512i first = _mm512_loadu_si512(code + 2 * l * LINE);
                __m512i second = _mm512_loadu_si512(code + (2 * l + 1) * LINE);
                dots(&sum, first, second, q + l * (size_t)T * 4, T);
            }
            q += each * (size_t)T * 4;
            if (each == LINES) { /* the product of both scales is read: one multiplication less is 4 % */
                UNROLL for (int t = 0; t < T; t++) {
                    const float *both = (const float *)(const void *)((const char *)w->scaled + scaled[t]);
                    add_product(&to.y0[t], sum.s0[t], _mm512_loadu_ps(both));
                    add_product(&to.y1[t], sum.s1[t], _mm512_loadu_ps(both + 16));
                }
            } else {
                const __m512 w0 = _mm512_loadu_ps(w->scale[s]), w1 = _mm512_loadu_ps(w->scale[s] + 16);
                add_scaled(&to, &sum, ratio, w0, w1, T);
            }
            if (layout->offset) {
                add_offset(&to, w->offset[s], total, T);
                total += T;
            }
        }
    write_results(y, &to, T);
}

/* A function for each number of tokens and of lines to a subgroup: in one large function, some lose 1 % or more. */
#define WIDE_OF(T, EACH)                                                                                              \
    static void wide_##T##_##EACH(float *y, const qwq_wide *w, const qwq_tile *tile, size_t groups,                   \
                               const qwq_layout *layout)                                                              \
    {                                                                                                                  \
        wide_tile(y, w, tile, groups, layout, EACH, T);                                                                \
    }
#define WIDE(EACH) WIDE_OF(1, EACH) WIDE_OF(2, EACH) WIDE_OF(3, EACH) WIDE_OF(4, EACH) WIDE_OF(5, EACH) WIDE_OF(6, EACH)
WIDE(16)
WIDE(8)
WIDE(4)

static void wide(float *y, const qwq_wide *w, const qwq_tile *tile, size_t tokens, size_t groups,
                 const qwq_layout *layout)
{
    static void (*const tiles[3][MOST_TILE])(float *, const qwq_wide *, const qwq_tile *, size_t,
                                                     const qwq_layout *) = {
        {wide_1_16, wide_2_16, wide_3_16, wide_4_16, wide_5_16, wide_6_16},
        {wide_1_8, wide_2_8, wide_3_8, wide_4_8, wide_5_8, wide_6_8},
        {wide_1_4, wide_2_4, wide_3_4, wide_4_4, wide_5_4, wide_6_4}};
    tiles[layout->subgroups / 2][tokens - 1](y, w, tile, groups, layout);
}

enum { PAGE = 4096 };

/* The processor's own fetching ends with a page: the first two lines of the next start it there in time. */
INLINE void start_next_page(const uint8_t *w)
{
    const char *page = (const char *)(((uintptr_t)w / PAGE + 1) * PAGE);
    _mm_prefetch(page, _MM_HINT_T1);
    _mm_prefetch(page + LINE, _MM_HINT_T1);
}

/* q4 straight from its blocks: a line holds both halves of the panel as nibbles, which look up their levels. Fetching
 * each line helps where there is work to hide it behind: one or two tokens are slower with it, and so is q8. */
INLINE void q4_tile(float *y, const uint8_t *w, const qwq_tile *tile, size_t groups, const int T)
{
    const __m512i low = _mm512_set1_epi8(15), levels = q4_levels();
    const int8_t *q = tile->q;
    results to;
    read_results(&to, y, T);
    for (size_t g = 0; g < groups; g++, w += Q4_BLOCK, q += GROUP * T) {
        sums sum;
        begin_sums(&sum, tile->begin + g * (size_t)T, T);
        UNROLL_BY(4) for (size_t l = 0; l < LINES; l++) {
            if (T > 2)
                _mm_prefetch((const char *)w + l * LINE + 4 * Q4_BLOCK, _MM_HINT_T0);
            else if (l == 0)
                start_next_page(w);
            __m512i codes = _mm512_loadu_si512(w + l * LINE);
            __m512i first = _mm512_shuffle_epi8(levels, _mm512_and_si512(codes, low));
            __m512i second = _mm512_shuffle_epi8(levels, _mm512_and_si512(_mm512_srli_epi16(codes, 4), low));
            dots(&sum, first, second, q + l * (size_t)T * 4, T);
        }
        const uint8_t *scales = w + NIBBLES;
        add_scaled(&to, &sum, tile->ratio + g * (size_t)T, sixteen_halves(scales), sixteen_halves(scales + PANEL), T);
    }
    write_results(y, &to, T);
}

/* q8 or u8 with one scale for 64 columns: a line for each half, of bytes as they are multiplied. */
INLINE void plain_bytes_tile(float *y, const uint8_t *w, const qwq_tile *tile, size_t groups, const int T)
{
    const int8_t *q = tile->q;
    results to;
    read_results(&to, y, T);
    for (size_t g = 0; g < groups; g++, w += Q8_BLOCK, q += GROUP * T) {
        sums sum;
        begin_sums(&sum, tile->begin + g * (size_t)T, T);
        UNROLL_BY(4) for (size_t l = 0; l < LINES; l++) {
            if (T > 2) {
                _mm_prefetch((const char *)w + 2 * l * LINE + 4 * Q8_BLOCK, _MM_HINT_T0);
                _mm_prefetch((const char *)w + (2 * l + 1) * LINE + 4 * Q8_BLOCK, _MM_HINT_T0);
            } else if (l == 0) {
                start_next_page(w);
            }
            __m512i first = _mm512_loadu_si512(w + 2 * l * LINE);
            __m512i second = _mm512_loadu_si512(w + (2 * l + 1) * LINE);
            dots(&sum, first, second, q + l * (size_t)T * 4, T);
        }
        const uint8_t *scales = w + 2 * NIBBLES;
        add_scaled(&to, &sum, tile->ratio + g * (size_t)T, sixteen_halves(scales), sixteen_halves(scales + PANEL), T);
    }
    write_results(y, &to, T);
}

#include "x86/avx512_affine.h"

/* w * x. A broadcast of its own takes an arithmetic unit, and a third of the speed: here, too, it stays an operand. */
INLINE __m512 times(__m512 w, const float *x)
{
    __m512 product;
    __asm__("vmulps %2%{1to16%}, %1, %0" : "=v"(product) : "v"(w), "m"(*x));
    return product;
}

typedef __m512 sixteen_fn(const uint8_t *w);

INLINE __m512 sixteen_fp32(const uint8_t *w)
{
    return _mm512_loadu_ps(w);
}

/* Floats: a column of a panel is two registers. A group's products are summed first, then added to y. */
INLINE void floats_tile(float *y, const uint8_t *w, const qwq_tile *tile, size_t groups, sixteen_fn *sixteen,
                        const size_t bytes, const int T)
{
    const float *x = tile->x;
    for (size_t g = 0; g < groups; g++) {
        __m512 s0[MOST_TILE], s1[MOST_TILE];
        UNROLL for (int t = 0; t < T; t++)
            s0[t] = s1[t] = _mm512_setzero_ps();
        UNROLL_BY(4) for (size_t k = 0; k < GROUP; k++, x += T, w += PANEL * bytes) {
            const __m512 w0 = sixteen(w), w1 = sixteen(w + PANEL / 2 * bytes);
            UNROLL for (int t = 0; t < T; t++) {
                s0[t] = _mm512_add_ps(s0[t], times(w0, x + t));
                s1[t] = _mm512_add_ps(s1[t], times(w1, x + t));
            }
        }
        UNROLL for (int t = 0; t < T; t++) {
            float *to = y + t * PANEL;
            _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), s0[t]));
            _mm512_storeu_ps(to + 16, _mm512_add_ps(_mm512_loadu_ps(to + 16), s1[t]));
        }
    }
}

/* A blocks_fn, by a function for each number of tokens. */
#define BLOCKS_OF(NAME, T, BODY, ...)                                                                        \
    static void NAME##_##T(float *y, const uint8_t *blocks, const qwq_tile *tile, size_t groups,             \
                           const qwq_format *format, const qwq_layout *layout)                               \
    {                                                                                                        \
        (void)format, (void)layout;                                                                          \
        BODY(y, blocks, tile, groups, ##__VA_ARGS__, T);                                                     \
    }
#define BLOCKS(NAME, ...)                                                                                    \
    BLOCKS_OF(NAME, 1, __VA_ARGS__)                                                                          \
    BLOCKS_OF(NAME, 2, __VA_ARGS__)                                                                          \
    BLOCKS_OF(NAME, 3, __VA_ARGS__)                                                                          \
    BLOCKS_OF(NAME, 4, __VA_ARGS__)                                                                          \
    BLOCKS_OF(NAME, 5, __VA_ARGS__)                                                                          \
    BLOCKS_OF(NAME, 6, __VA_ARGS__)                                                                          \
    static void NAME(float *y, const uint8_t *blocks, const qwq_tile *tile, size_t tokens, size_t groups,    \
                     const qwq_format *format, const qwq_layout *layout)                                     \
    {                                                                                                        \
        static void (*const tiles[MOST_TILE])(float *, const uint8_t *, const qwq_tile *, size_t,            \
                                              const qwq_format *, const qwq_layout *) = {                    \
            NAME##_1, NAME##_2, NAME##_3, NAME##_4, NAME##_5, NAME##_6};                                     \
        tiles[tokens - 1](y, blocks, tile, groups, format, layout);                                          \
    }

BLOCKS(q4, q4_tile)
BLOCKS(u4, affine_tile, format, layout, NO_PLANE)
BLOCKS(u5, affine_tile, format, layout, ONE_BIT)
BLOCKS(u6, affine_tile, format, layout, TWO_BITS)
BLOCKS(plain_bytes, plain_bytes_tile)
BLOCKS(affine_bytes, affine_tile, format, layout, BYTES)
BLOCKS(bf16, floats_tile, sixteen_bf16, 2)
BLOCKS(fp16, floats_tile, sixteen_halves, 2)
BLOCKS(fp32, floats_tile, sixteen_fp32, 4)

static void bytes(float *y, const uint8_t *blocks, const qwq_tile *tile, size_t tokens, size_t groups,
                  const qwq_format *format, const qwq_layout *layout)
{
    blocks_fn *of = format->group == GROUP && format->scales == QWQ_PLAIN ? plain_bytes : affine_bytes;
    of(y, blocks, tile, tokens, groups, format, layout);
}

TARGET_END

void qwq_avx512_matmul(qwq_matmul_kernels *k)
{
    k->unpack[QWQ_Q4] = unpack_q4;
    k->unpack[QWQ_U4] = unpack_u4;
    k->unpack[QWQ_U5] = unpack_u5;
    k->unpack[QWQ_U6] = unpack_u6;
    k->unpack[QWQ_U8] = unpack_bytes;
    k->unpack[QWQ_Q8] = unpack_bytes;
    k->widen[QWQ_BF16] = widen_bf16;
    k->widen[QWQ_FP16] = widen_fp16;
    k->scale = scale;
    k->wide = wide;
    k->blocks[QWQ_Q4] = q4;
    k->blocks[QWQ_U4] = u4;
    k->blocks[QWQ_U5] = u5;
    k->blocks[QWQ_U6] = u6;
    k->blocks[QWQ_U8] = bytes;
    k->blocks[QWQ_Q8] = bytes;
    k->blocks[QWQ_BF16] = bf16;
    k->blocks[QWQ_FP16] = fp16;
    k->blocks[QWQ_FP32] = fp32;
    k->tile = MOST_TILE;
}

#else
typedef int qwq_no_avx512; /* a file must hold something */
#endif
