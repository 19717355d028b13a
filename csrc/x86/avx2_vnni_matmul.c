/* AVX-VNNI: AVX2 with vpdpbusd, which multiplies unsigned by signed bytes and adds fours to 32 bits. It replaces the
 * products of integers, and leaves the rest to AVX2. */
#include "common/cpu.h"
#if defined(__x86_64__) && defined(TARGET_VNNI)
#include <immintrin.h>

#include "common/kernels.h"
#include "x86/target.h"

TARGET(TARGET_VNNI)

#include "x86/avx2.h"

/* Volatile, as four_of is, so that the order stays. */
INLINE __m256i dot(__m256i sum, __m256i w, __m256i x)
{
    __asm__ volatile(VNNI_FORM "vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(x));
    return sum;
}

/* T tokens: 4 T sums, T broadcasts and a register of rows are 16 registers for three tokens. */
INLINE void dots_of(__m256i (*sum)[ROWS], const uint8_t *code, const int8_t *q, size_t lines, size_t step, const int T)
{
    UNROLL_BY(4) for (size_t l = 0; l < lines; l++, code += 2 * LINE, q += step) {
        __m256i x[MOST_AT_ONCE];
        UNROLL for (int t = 0; t < T; t++)
            x[t] = four_of(q + 4 * t);
        UNROLL for (int r = 0; r < ROWS; r++) {
            const __m256i levels = load(code + 32 * r);
            UNROLL for (int t = 0; t < T; t++)
                sum[t][r] = dot(sum[t][r], levels, x[t]);
        }
    }
}

#define DOTS(T)                                                                                                   \
    INLINE void dots_##T(__m256i (*sum)[ROWS], const uint8_t *code, const int8_t *q, size_t lines, size_t step)   \
    {                                                                                                             \
        dots_of(sum, code, q, lines, step, T);                                                                    \
    }
DOTS(1)
DOTS(2)
DOTS(3)

static void wide(float *y, const qwq_wide *w, const qwq_tile *tile, size_t tokens, size_t groups,
                 const qwq_layout *layout)
{
    for (size_t t = 0; t < tokens; t += 3)
        switch (tokens - t) {
        case 1: wide_tokens(y, w, tile, t, tokens, groups, layout, dots_1, 1); break;
        case 2: wide_tokens(y, w, tile, t, tokens, groups, layout, dots_2, 2); break;
        default: wide_tokens(y, w, tile, t, tokens, groups, layout, dots_3, 3); break;
        }
}

static void q4(float *y, const uint8_t *blocks, const qwq_tile *tile, size_t tokens, size_t groups,
               const qwq_format *format, const qwq_layout *layout)
{
    (void)format, (void)layout;
    q4_any(y, blocks, tile, tokens, groups, dot);
}

TARGET_END

void qwq_avx2_vnni_matmul(qwq_matmul_kernels *k)
{
    k->wide = wide;
    k->blocks[QWQ_Q4] = q4;
}

#else
typedef int qwq_no_avx2_vnni; /* a file must hold something */
#endif
