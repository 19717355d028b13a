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

static int find_features(void)
{
    enum { OSXSAVE = 1 << 27, FMA = 1 << 12, F16C = 1 << 29 };
    enum { AVX2 = 1 << 5, F = 1 << 16, DQ = 1 << 17, BW = 1 << 30, VNNI = 1 << 11 };
    const uint32_t VL = 1u << 31;
    const uint64_t YMM = 0x06, ZMM = 0xE6;
    uint32_t a, b, c, d;
    int found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return 0;
    if (c & OSXSAVE) {
        uint64_t state = xcr0();
        found |= ((state & YMM) == YMM ? QWQ_KEEPS_YMM : 0) | ((state & ZMM) == ZMM ? QWQ_KEEPS_ZMM : 0);
    }
    found |= (c & FMA ? QWQ_HAS_FMA : 0) | (c & F16C ? QWQ_HAS_F16C : 0);
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return found;
    found |= (b & AVX2 ? QWQ_HAS_AVX2 : 0) | (b & F ? QWQ_HAS_AVX512F : 0) | (b & DQ ? QWQ_HAS_AVX512DQ : 0);
    return found | (b & BW ? QWQ_HAS_AVX512BW : 0) | (b & VL ? QWQ_HAS_AVX512VL : 0) | (c & VNNI ? QWQ_HAS_VNNI : 0);
}

#else

static int find_features(void)
{
    return 0;
}

#endif

int qwq_cpu_features(void)
{
    /* Asked once: in a virtual machine each CPUID leaves it, which takes 20 us. Threads that ask at the same time get
     * the same answer. */
    static int features = -1;
    int known = __atomic_load_n(&features, __ATOMIC_RELAXED);
    if (known < 0) {
        known = find_features();
        __atomic_store_n(&features, known, __ATOMIC_RELAXED);
    }
    return known;
}

int qwq_isa_needs(int isa)
{
    enum { BASE = QWQ_HAS_AVX2 | QWQ_HAS_FMA | QWQ_HAS_F16C | QWQ_KEEPS_YMM };
    enum { MORE = QWQ_HAS_AVX512F | QWQ_HAS_AVX512DQ | QWQ_HAS_AVX512BW | QWQ_HAS_AVX512VL | QWQ_HAS_VNNI };
    static const int needs[] = {[QWQ_SCALAR] = 0, [QWQ_AVX2] = BASE, [QWQ_AVX512] = BASE | MORE | QWQ_KEEPS_ZMM};
    return isa >= QWQ_SCALAR && isa <= QWQ_AVX512 ? needs[isa] : -1;
}

int qwq_isa_supported(int isa)
{
    return !(qwq_isa_needs(isa) & ~qwq_cpu_features()); /* -1 needs more than there can be */
}
