/* The features of a processor that instruction sets need: THE list, one line a feature. */
#ifndef QWQ_CPU_H
#define QWQ_CPU_H

/* F(identifier, name in /proc/cpuinfo, CPUID leaf, subleaf, register, bit)
 * S(identifier, name, bits of XCR0): registers that the operating system saves. */
#define QWQ_FEATURES(F, S)                                                                                             \
    F(AVX2, "avx2", 7, 0, EBX, 5)                                                                                      \
    F(FMA, "fma", 1, 0, ECX, 12)                                                                                       \
    F(F16C, "f16c", 1, 0, ECX, 29)                                                                                     \
    F(AVX_VNNI, "avx_vnni", 7, 1, EAX, 4)                                                                              \
    F(AVX512F, "avx512f", 7, 0, EBX, 16)                                                                               \
    F(AVX512DQ, "avx512dq", 7, 0, EBX, 17)                                                                             \
    F(AVX512BW, "avx512bw", 7, 0, EBX, 30)                                                                             \
    F(AVX512VL, "avx512vl", 7, 0, EBX, 31)                                                                             \
    F(AVX512_VNNI, "avx512_vnni", 7, 0, ECX, 11)                                                                       \
    S(YMM, "ymm", 0x06)                                                                                                \
    S(ZMM, "zmm", 0xE6)

/* Whether the compiler knows AVX-VNNI. A test build takes the same code in the form of AVX-512 instead, with registers
 * of 256 bits: it runs on processors that have AVX-512 VNNI and no AVX-VNNI. */
#if defined(QWQ_EVEX_VNNI)
#define TARGET_VNNI "avx2,f16c,fma,avx512f,avx512vl,avx512vnni"
#define VNNI_FORM ""
#elif defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define TARGET_VNNI "avx2,f16c,fma,avxvnni"
#define VNNI_FORM "%{vex%} " /* GCC takes AVX-512's form for the same name otherwise */
#endif

#define QWQ_FEATURE(id, ...) FEATURE_##id,
enum { QWQ_FEATURES(QWQ_FEATURE, QWQ_FEATURE) FEATURES };
#undef QWQ_FEATURE

/* The bit of a feature in what qwq_cpu_features returns. */
#define HAS(id) (1 << FEATURE_##id)

#endif
