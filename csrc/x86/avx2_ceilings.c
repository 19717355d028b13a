/* The ceilings of AVX2, by what its kernels must do for bytes up to so much. */
#if defined(__x86_64__)
#include "x86/ceilings.h"

/* Sums 0 to 7, products 8 to 11, operands: 12 and 13 bytes, 15 words. */
__attribute__((target("avx2"))) static void begin_avx2(void)
{
    __asm__ volatile(EACH("0,1,2,3,4,5,6,7",
                          "vpxor %%ymm\\n, %%ymm\\n, %%ymm\\n\n\t") "vpcmpeqb %%ymm15, %%ymm15, %%ymm15\n\tvpabsb "
                                                                    "%%ymm15, %%ymm12\n\tvpabsb %%ymm15, %%ymm13\n\t"
                                                                    "vpabsw %%ymm15, %%ymm15" ::
                                                                        : YMM);
}

#define PAIRS "vpmaddubsw %%ymm13, %%ymm12, %%ymm8\n\t"
#define MORE_PAIRS "vpmaddubsw %%ymm13, %%ymm12, %%ymm9\n\tvpaddw %%ymm9, %%ymm8, %%ymm8\n\t"
#define FOURS "vpmaddwd %%ymm15, %%ymm8, %%ymm8\n\tvpaddd %%ymm8, %%ymm\\n, %%ymm\\n\n\t"

/* One line of bytes to each widening, which bytes up to 127 need; two for those up to 63; four for those up to 31. */
__attribute__((target("avx2"))) static void dots_127(size_t rounds)
{
    begin_avx2();
    LOOP(EACH("0,1,2,3,4,5,6,7", PAIRS FOURS), YMM);
}

__attribute__((target("avx2"))) static void dots_63(size_t rounds)
{
    begin_avx2();
    LOOP(EACH("0,1,2,3,4,5,6,7", PAIRS MORE_PAIRS FOURS), YMM);
}

__attribute__((target("avx2"))) static void dots_31(size_t rounds)
{
    begin_avx2();
    LOOP(EACH("0,1,2,3,4,5,6,7", PAIRS "vpmaddubsw %%ymm13, %%ymm12, %%ymm9\n\tvpmaddubsw %%ymm13, %%ymm12, %%ymm10\n\t"
                                       "vpmaddubsw %%ymm13, %%ymm12, %%ymm11\n\tvpaddw %%ymm9, %%ymm8, %%ymm8\n\t"
                                       "vpaddw %%ymm11, %%ymm10, %%ymm10\n\tvpaddw %%ymm10, %%ymm8, %%ymm8\n\t" FOURS),
         YMM);
}

/* Words, for bytes up to 255: weights of 8 bits, and attention. */
__attribute__((target("avx2"))) static void dots_words(size_t rounds)
{
    begin_avx2();
    LOOP(EACH("0,1,2,3,4,5,6,7", "vpmaddwd %%ymm15, %%ymm15, %%ymm8\n\tvpaddd %%ymm8, %%ymm\\n, %%ymm\\n\n\t"), YMM);
}

__attribute__((target("avx2"))) static void floats_avx2(size_t rounds)
{
    const float one = 1;
    __asm__ volatile(
        EACH("0,1,2,3,4,5,6,7,8,9", "vpxor %%ymm\\n, %%ymm\\n, %%ymm\\n\n\t") "vbroadcastss %0, %%ymm12" ::"m"(one)
        : YMM);
    LOOP(EACH("0,1,2,3,4,5,6,7,8,9", "vmulps %%ymm12, %%ymm12, %%ymm10\n\tvaddps %%ymm10, %%ymm\\n, %%ymm\\n\n\t"),
         YMM);
}

#define LOAD_256(AT) "vpxor " AT ", %%ymm0, %%ymm0\n\tvpxor 32" AT ", %%ymm1, %%ymm1\n\t"
READ(read_256, "avx2", LOAD_256)

void qwq_avx2_ceilings(qwq_ceilings *c)
{
    c->peak[QWQ_DOTS_31] = (qwq_peak_of){dots_31, 8 * 128, "4 vpmaddubsw + vpmaddwd"};
    c->peak[QWQ_DOTS_63] = (qwq_peak_of){dots_63, 8 * 64, "2 vpmaddubsw + vpmaddwd"};
    c->peak[QWQ_DOTS_127] = (qwq_peak_of){dots_127, 8 * 32, "vpmaddubsw + vpmaddwd"};
    c->peak[QWQ_DOTS_WORDS] = (qwq_peak_of){dots_words, 8 * 16, "vpmaddwd"};
    c->peak[QWQ_FLOATS] = (qwq_peak_of){floats_avx2, 10 * 8, "vmulps + vaddps"};
    c->read = read_256;
}

#else
typedef int qwq_no_avx2_ceilings; /* a file must hold something */
#endif
