/* The ceilings of AVX-VNNI: one instruction multiplies all integers. */
#include "common/cpu.h"
#if defined(__x86_64__) && defined(TARGET_VNNI)
#include "x86/ceilings.h"

__attribute__((target(TARGET_VNNI))) static void dots(size_t rounds)
{
    __asm__ volatile(
        EACH(
            "0,1,2,3,4,5,6,7,8,9,10,11",
            "vpxor %%ymm\\n, %%ymm\\n, %%ymm\\n\n\t") "vpcmpeqb %%ymm15, %%ymm15, %%ymm15\n\tvpabsb %%ymm15, %%ymm15" ::
            : YMM);
    LOOP(EACH("0,1,2,3,4,5,6,7,8,9,10,11", VNNI_FORM "vpdpbusd %%ymm15, %%ymm15, %%ymm\\n\n\t"), YMM);
}

void qwq_avx2_vnni_ceilings(qwq_ceilings *c)
{
    for (int which = QWQ_DOTS_31; which <= QWQ_DOTS_WORDS; which++)
        c->peak[which] = (qwq_peak_of){.run = dots, .products = 12 * 32, .instructions = "vpdpbusd"};
}

#else
typedef int qwq_no_avx2_vnni_ceilings; /* a file must hold something */
#endif
