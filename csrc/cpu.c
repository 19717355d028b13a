/* What this processor can run, and what its operating system lets it keep: CPUID and XCR0. */
#include "check.h"
#include "qwq.h"

static _Thread_local int ran;

void qwq_ran(int isa)
{
    ran |= 1 << isa;
}

int qwq_isas_ran(void)
{
    int isas = ran;
    ran = 0;
    return isas;
}

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static int best_isa(void)
{
    enum { OSXSAVE = 1 << 27, FMA = 1 << 12, F16C = 1 << 29 };
    enum { AVX2 = 1 << 5, F = 1 << 16, DQ = 1 << 17, BW = 1 << 30, VNNI = 1 << 11 };
    const uint32_t VL = 1u << 31;
    const uint64_t YMM = 0x06, ZMM = 0xE6;
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (OSXSAVE | FMA | F16C)) != (OSXSAVE | FMA | F16C))
        return QWQ_SCALAR;
    uint64_t state = xcr0();
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & AVX2) || (state & YMM) != YMM)
        return QWQ_SCALAR;
    if ((b & F) && (b & DQ) && (b & BW) && (b & VL) && (c & VNNI) && (state & ZMM) == ZMM)
        return QWQ_AVX512;
    return QWQ_AVX2;
}

int qwq_isa_supported(int isa)
{
    /* Asked once: in a virtual machine each CPUID leaves it, which takes 20 us. Threads that ask at the same time get
     * the same answer. */
    static int best = -1;
    int known = __atomic_load_n(&best, __ATOMIC_RELAXED);
    if (known < 0) {
        known = best_isa();
        __atomic_store_n(&best, known, __ATOMIC_RELAXED);
    }
    return isa >= QWQ_SCALAR && isa <= known;
}

#else

int qwq_isa_supported(int isa)
{
    return isa == QWQ_SCALAR;
}

#endif
