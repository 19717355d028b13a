/* AVX2: as avx512.c, with registers of eight rows and tiles of three tokens. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "common/formats.h"
#include "x86/target.h"

TARGET("avx2,f16c,fma")

#include "x86/avx2.h"

UNPACK(u4, planes_to_bytes, 0, 0)
UNPACK(u5, planes_to_bytes, 1, 0)
UNPACK(u6, planes_to_bytes, 2, 0)

/* Products of bytes are added in pairs to 16 bits, which saturate, and these then to 32. How much may be added in 16
 * bits before depends on the largest byte of w: beside |x| <= 127, four lines where it is 31, two where it is 63, one
 * where it is 127. Larger bytes become words first, see dots_words. The instructions are volatile,
 * so that they stay in this order. */
INLINE __m256i pairs_of(__m256i w, __m256i x)
{
    __m256i p;
    __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(p) : "x"(w), "x"(x));
    return p;
}

INLINE void add_pairs(__m256i *pairs, __m256i more)
{
    __asm__ volatile("vpaddw %1, %0, %0" : "+x"(*pairs) : "x"(more));
}

INLINE void add_fours(__m256i *sum, __m256i pairs)
{
    const __m256i ones = _mm256_set1_epi16(1);
    __asm__ volatile("vpmaddwd %2, %1, %1\n\tvpaddd %1, %0, %0" : "+x"(*sum), "+x"(pairs) : "x"(ones));
}

INLINE void add_words(__m256i *sum, __m256i w, __m256i x)
{
    __m256i p;
    __asm__ volatile("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(*sum), "=&x"(p) : "x"(w), "x"(x));
}

/* `added`: lines whose pairs are added in 16 bits. A broadcast of x takes an arithmetic unit, too: it serves all four
 * registers of rows. */
INLINE void dots_of(__m256i (*sum)[ROWS], const uint8_t *code, const int8_t *q, size_t lines, size_t step,
                    const int added, const int T)
{
    UNROLL_BY(4) for (size_t l = 0; l < lines; l += (size_t)added) {
        __m256i pairs[2][ROWS], x[2];
        UNROLL_BY(4) for (int i = 0; i < added; i++, code += 2 * LINE, q += step) {
            UNROLL for (int t = 0; t < T; t++)
                x[t] = four_of(q + 4 * t);
            UNROLL for (int r = 0; r < ROWS; r++) {
                const __m256i levels = load(code + 32 * r);
                UNROLL for (int t = 0; t < T; t++) {
                    if (i == 0)
                        pairs[t][r] = pairs_of(levels, x[t]);
                    else
                        add_pairs(&pairs[t][r], pairs_of(levels, x[t]));
                    if (i == added - 1)
                        add_fours(&sum[t][r], pairs[t][r]);
                }
            }
        }
    }
}

/* Bytes of any size as 16 bits: columns 0 and 2 of a line, and columns 1 and 3. */
INLINE void dots_words(__m256i (*sum)[ROWS], const uint8_t *code, const int8_t *q, size_t lines, size_t step,
                       const int T)
{
    const __m256i low = _mm256_set1_epi16(255);
    for (size_t l = 0; l < lines; l++, code += 2 * LINE, q += step) {
        __m256i even[2], odd[2];
        UNROLL for (int t = 0; t < T; t++) {
            const __m256i x = four_of(q + 4 * t);
            even[t] = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8);
            odd[t] = _mm256_srai_epi16(x, 8);
        }
        UNROLL for (int r = 0; r < ROWS; r++) {
            const __m256i w8 = load(code + 32 * r);
            const __m256i w0 = _mm256_and_si256(w8, low), w1 = _mm256_srli_epi16(w8, 8);
            UNROLL for (int t = 0; t < T; t++) {
                add_words(&sum[t][r], w0, even[t]);
                add_words(&sum[t][r], w1, odd[t]);
            }
        }
    }
}

/* DOTS_n_T: a dots_fn for bytes up to n and T tokens. */
#define DOTS(MOST, T, BODY, ...)                                                                                   \
    INLINE void dots_##MOST##_##T(__m256i (*sum)[ROWS], const uint8_t *code, const int8_t *q, size_t lines,        \
                                  size_t step)                                                                     \
    {                                                                                                              \
        BODY(sum, code, q, lines, step, ##__VA_ARGS__, T);                                                         \
    }
/* wide_n: for bytes up to n. */
#define WIDE(MOST, BODY, ...)                                                                                      \
    DOTS(MOST, 1, BODY, ##__VA_ARGS__)                                                                             \
    DOTS(MOST, 2, BODY, ##__VA_ARGS__)                                                                             \
    static void wide_##MOST(float *y, const qwq_wide *w, const qwq_tile *tile, size_t tokens, size_t groups,       \
                            const qwq_layout *layout)                                                              \
    {                                                                                                              \
        size_t t = 0;                                                                                              \
        for (; t + 2 <= tokens; t += 2)                                                                            \
            wide_tokens(y, w, tile, t, tokens, groups, layout, dots_##MOST##_2, 2);                                \
        if (t < tokens)                                                                                            \
            wide_tokens(y, w, tile, t, tokens, groups, layout, dots_##MOST##_1, 1);                                \
    }

WIDE(31, dots_of, 4)
WIDE(63, dots_of, 2)
WIDE(127, dots_of, 1)
WIDE(255, dots_words)

static void wide(float *y, const qwq_wide *w, const qwq_tile *tile, size_t tokens, size_t groups,
                 const qwq_layout *layout)
{
    if (layout->most <= 31)
        wide_31(y, w, tile, tokens, groups, layout);
    else if (layout->most <= 63)
        wide_63(y, w, tile, tokens, groups, layout);
    else if (layout->most <= 127)
        wide_127(y, w, tile, tokens, groups, layout);
    else
        wide_255(y, w, tile, tokens, groups, layout);
}

static void scale(qwq_wide *w, uint64_t used)
{
    for (; used; used &= used - 1) {
        int i = __builtin_ctzll(used);
        UNROLL for (int r = 0; r < ROWS; r++) {
            __m256 product = _mm256_mul_ps(_mm256_loadu_ps(w->scale[0] + 8 * r), _mm256_set1_ps(QWQ_RATIO[i]));
            _mm256_storeu_ps(w->scaled[i] + 8 * r, product);
        }
    }
}

INLINE __m256i dot(__m256i sum, __m256i w, __m256i x)
{
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}

static void q4(float *y, const uint8_t *blocks, const qwq_tile *tile, size_t tokens, size_t groups,
               const qwq_format *format, const qwq_layout *layout)
{
    (void)format, (void)layout;
    q4_any(y, blocks, tile, tokens, groups, dot);
}

/* Floats: a column of a panel is four registers. A group's products are summed first, then added to y. */
typedef __m256 eight_fn(const uint8_t *w);

INLINE __m256 eight_fp32(const uint8_t *w)
{
    return _mm256_loadu_ps((const float *)(const void *)w);
}

INLINE __m256 eight_bf16(const uint8_t *w)
{
    __m128i bits = _mm_loadu_si128((const __m128i *)(const void *)w);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

INLINE void floats_tokens(float *y, const uint8_t *w, const qwq_tile *tile, size_t t0, size_t tokens, size_t groups,
                          eight_fn *eight, const size_t bytes, const int T)
{
    const float *x = tile->x + t0;
    y += t0 * PANEL;
    for (size_t g = 0; g < groups; g++) {
        __m256 sum[2][ROWS];
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int r = 0; r < ROWS; r++)
                sum[t][r] = _mm256_setzero_ps();
        UNROLL_BY(4) for (size_t k = 0; k < GROUP; k++, x += tokens, w += PANEL * bytes) {
            __m256 one[2];
            UNROLL for (int t = 0; t < T; t++)
                __asm__ volatile("vbroadcastss %1, %0" : "=x"(one[t]) : "m"(x[t]));
            UNROLL for (int r = 0; r < ROWS; r++) {
                const __m256 some = eight(w + 8 * bytes * (size_t)r);
                UNROLL for (int t = 0; t < T; t++)
                    sum[t][r] = _mm256_add_ps(sum[t][r], _mm256_mul_ps(one[t], some));
            }
        }
        UNROLL for (int t = 0; t < T; t++)
            UNROLL for (int r = 0; r < ROWS; r++) {
                float *to = y + t * PANEL + 8 * r;
                _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), sum[t][r]));
            }
    }
}

INLINE void floats(float *y, const uint8_t *blocks, const qwq_tile *tile, size_t tokens, size_t groups,
                   eight_fn *eight, const size_t bytes)
{
    size_t t = 0;
    for (; t + 2 <= tokens; t += 2)
        floats_tokens(y, blocks, tile, t, tokens, groups, eight, bytes, 2);
    if (t < tokens)
        floats_tokens(y, blocks, tile, t, tokens, groups, eight, bytes, 1);
}

#define FLOATS(NAME, EIGHT, BYTES)                                                                                 \
    static void NAME(float *y, const uint8_t *blocks, const qwq_tile *tile, size_t tokens, size_t groups,          \
                     const qwq_format *format, const qwq_layout *layout)                                           \
    {                                                                                                              \
        (void)format, (void)layout;                                                                                \
        floats(y, blocks, tile, tokens, groups, EIGHT, BYTES);                                                     \
    }

FLOATS(bf16, eight_bf16, 2)
FLOATS(fp16, eight_halves, 2)
FLOATS(fp32, eight_fp32, 4)

TARGET_END

void qwq_avx2_matmul(qwq_matmul_kernels *k)
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
    k->blocks[QWQ_BF16] = bf16;
    k->blocks[QWQ_FP16] = fp16;
    k->blocks[QWQ_FP32] = fp32;
    k->tile = MOST_TILE;
}

#else
typedef int qwq_no_avx2; /* a file must hold something */
#endif
