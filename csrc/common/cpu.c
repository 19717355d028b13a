/* What this processor can run, and which registers its operating system saves: CPUID and XCR0. */
#include "common/cpu.h"

#include <stddef.h>
#include <stdint.h>

#include "qwq.h"

#define NAME(id, name, ...) name,
static const char *const names[FEATURES] = {QWQ_FEATURES(NAME, NAME)};

const char *qwq_feature_name(int feature)
{
    return feature >= 0 && feature < FEATURES ? names[feature] : NULL;
}

#if defined(__x86_64__)
#include <cpuid.h>

enum { EAX, EBX, ECX, EDX };

static uint64_t xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static int has(unsigned leaf, unsigned subleaf, int reg, int bit)
{
    uint32_t r[4];
    return __get_cpuid_count(leaf, subleaf, r + EAX, r + EBX, r + ECX, r + EDX) && r[reg] >> bit & 1;
}

static int saves(uint64_t state)
{
    return has(1, 0, ECX, 27) && (xcr0() & state) == state; /* OSXSAVE: XCR0 can be read */
}

static int find_features(void)
{
    int found = 0;
#define FIND(id, name, leaf, subleaf, reg, bit) found |= has(leaf, subleaf, reg, bit) ? HAS(id) : 0;
#define SAVES(id, name, state) found |= saves(state) ? HAS(id) : 0;
    QWQ_FEATURES(FIND, SAVES)
    return found;
}

#else

static int find_features(void)
{
    return 0;
}

#endif

int qwq_cpu_features(void)
{
    /* Asked once: in a virtual machine each CPUID takes 20 us. Threads that ask at the same time get the same answer.
     */
    static int features = -1;
    int known = __atomic_load_n(&features, __ATOMIC_RELAXED);
    if (known < 0) {
        known = find_features();
        __atomic_store_n(&features, known, __ATOMIC_RELAXED);
    }
    return known;
}
