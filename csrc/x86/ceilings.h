/* What the ceilings of x86-64 share. Instructions are volatile, so that the compiler leaves all of them. */
#ifndef QWQ_X86_CEILINGS_H
#define QWQ_X86_CEILINGS_H

#include "common/ceilings.h"
#include "common/kernels.h"

/* Instructions with operands in registers, as many sums beside each other as hide their latencies. 32 registers of 64
 * bytes for AVX-512, 16 of 32 for AVX2. Operands are ones: no sum overflows into subnormals or infinities. */
#define LOOP(BODY, ...)                                                                                                \
    __asm__ volatile("1:\n\t" BODY "dec %0\n\tjnz 1b" : "+r"(rounds) : : "cc", "memory", __VA_ARGS__)
/* TEXT for each n of LIST. */
#define EACH(LIST, TEXT) ".irp n," LIST "\n\t" TEXT ".endr\n\t"
#define YMM                                                                                                            \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",         \
        "xmm13", "xmm14", "xmm15"
#define ZMM                                                                                                            \
    YMM, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27",   \
        "xmm28", "xmm29", "xmm30", "xmm31"

/* One stream; the same, with the next page's first lines fetched, since the processor's own fetching ends with a page;
 * or four streams. */
#define READ(NAME, TARGET, LOAD)                                                                                       \
    __attribute__((target(TARGET))) static void NAME(const uint8_t *from, size_t lines, int order)                     \
    {                                                                                                                  \
        if (order == QWQ_ONE_STREAM)                                                                                   \
            for (size_t i = 0; i < lines; i++, from += LINE)                                                           \
                __asm__ volatile(LOAD("(%0)")::"r"(from) : "xmm0", "xmm1");                                            \
        else if (order == QWQ_FETCHED)                                                                                 \
            for (size_t i = 0; i < lines; i++, from += LINE) {                                                         \
                if (i % (PAGE / LINE) == 0)                                                                            \
                    __asm__ volatile("prefetcht1 %c1(%0)\n\tprefetcht1 %c1+64(%0)" ::"r"(from), "i"(PAGE));            \
                __asm__ volatile(LOAD("(%0)")::"r"(from) : "xmm0", "xmm1");                                            \
            }                                                                                                          \
        else                                                                                                           \
            for (size_t i = 0, apart = lines / STREAMS * LINE; i < lines / STREAMS; i++, from += LINE)                 \
                __asm__ volatile(LOAD("(%0)") LOAD("(%0,%1)") LOAD("(%0,%1,2)") LOAD("(%0,%2)")::"r"(from),            \
                                 "r"(apart), "r"(3 * apart)                                                            \
                                 : "xmm0", "xmm1");                                                                    \
    }

#endif
