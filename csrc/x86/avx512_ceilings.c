/* The ceilings of AVX-512 with VNNI: one instruction multiplies all integers. */
#if defined(__x86_64__)
#include "x86/ceilings.h"

__attribute__((target("avx512f,avx512bw,avx512vnni"))) static void dots_avx512(size_t rounds)
{
    __asm__ volatile(EACH("0,1,2,3,4,5,6,7,8,9,10,11",
                          "vpxord %%zmm\\n, %%zmm\\n, %%zmm\\n\n\t") "vpternlogd $255, %%zmm30, %%zmm30, "
                                                                     "%%zmm30\n\tvpabsb %%zmm30, %%zmm30" ::
                                                                         : ZMM);
    LOOP(EACH("0,1,2,3,4,5,6,7,8,9,10,11", "vpdpbusd %%zmm30, %%zmm30, %%zmm\\n\n\t"), ZMM);
}

__attribute__((target("avx512f"))) static void floats_avx512(size_t rounds)
{
    const float one = 1;
    __asm__ volatile(EACH("0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
                          "vpxord %%zmm\\n, %%zmm\\n, %%zmm\\n\n\t") "vbroadcastss %0, %%zmm30" ::"m"(one)
                     : ZMM);
    LOOP(
        EACH("0,1,2,3,4,5,6,7,8,9,10,11", "vmulps %%zmm30, %%zmm30, %%zmm24\n\tvaddps %%zmm24, %%zmm\\n, %%zmm\\n\n\t"),
        ZMM);
}

#define LOAD_512(AT) "vpxord " AT ", %%zmm0, %%zmm0\n\t"
READ(read_512, "avx512f", LOAD_512)

void qwq_avx512_ceilings(qwq_ceilings *c)
{
    for (int which = QWQ_DOTS_31; which <= QWQ_DOTS_WORDS; which++)
        c->peak[which] = (qwq_peak_of){.run = dots_avx512, .products = 12 * 64, .instructions = "vpdpbusd"};
    c->peak[QWQ_FLOATS] = (qwq_peak_of){.run = floats_avx512, .products = 12 * 16, .instructions = "vmulps + vaddps"};
    c->read = read_512;
}

#else
typedef int qwq_no_avx512_ceilings; /* a file must hold something */
#endif
