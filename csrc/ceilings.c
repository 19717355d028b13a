/* How fast this processor can be at best: the instructions of the kernels and nothing else, and reading of memory. A
 * figure of `qwq bench` is a share of these. Instructions are volatile, so that the compiler leaves all of them. */
#include "check.h"
#include "qwq.h"

/* Instructions with operands in registers, as many sums beside each other as hide their latencies. 32 registers of 64
 * bytes for AVX-512, 16 of 32 for AVX2. Operands are ones: no sum overflows into subnormals or infinities. */
#define LOOP(BODY, ...) \
    __asm__ volatile("1:\n\t" BODY "dec %0\n\tjnz 1b" : "+r"(rounds) : : "cc", "memory", __VA_ARGS__)
/* TEXT for each n of LIST. */
#define EACH(LIST, TEXT) ".irp n," LIST "\n\t" TEXT ".endr\n\t"
#define YMM                                                                                                     \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
        "xmm13", "xmm14", "xmm15"
#define ZMM                                                                                                            \
    YMM, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", \
        "xmm28", "xmm29", "xmm30", "xmm31"

enum { LINE = 64, STREAMS = 4, PAGE = 4096 };

#if defined(__x86_64__)

/* --- Products: `rounds` times what products_of says ------------------------------------------------------------- */

__attribute__((target("avx512f,avx512bw,avx512vnni"))) static void dots_avx512(size_t rounds)
{
    __asm__ volatile(EACH("0,1,2,3,4,5,6,7,8,9,10,11", "vpxord %%zmm\\n, %%zmm\\n, %%zmm\\n\n\t")
                     "vpternlogd $255, %%zmm30, %%zmm30, %%zmm30\n\tvpabsb %%zmm30, %%zmm30" ::: ZMM);
    LOOP(EACH("0,1,2,3,4,5,6,7,8,9,10,11", "vpdpbusd %%zmm30, %%zmm30, %%zmm\\n\n\t"), ZMM);
}

__attribute__((target("avx512f"))) static void floats_avx512(size_t rounds)
{
    const float one = 1;
    __asm__ volatile(EACH("0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
                          "vpxord %%zmm\\n, %%zmm\\n, %%zmm\\n\n\t") "vbroadcastss %0, %%zmm30" ::"m"(one) : ZMM);
    LOOP(EACH("0,1,2,3,4,5,6,7,8,9,10,11",
              "vmulps %%zmm30, %%zmm30, %%zmm24\n\tvaddps %%zmm24, %%zmm\\n, %%zmm\\n\n\t"), ZMM);
}

/* Sums 0 to 7, products 8 to 11, operands: 12 and 13 bytes, 15 words. */
__attribute__((target("avx2"))) static void begin_avx2(void)
{
    __asm__ volatile(EACH("0,1,2,3,4,5,6,7", "vpxor %%ymm\\n, %%ymm\\n, %%ymm\\n\n\t")
                     "vpcmpeqb %%ymm15, %%ymm15, %%ymm15\n\tvpabsb %%ymm15, %%ymm12\n\tvpabsb %%ymm15, %%ymm13\n\t"
                     "vpabsw %%ymm15, %%ymm15" ::: YMM);
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
    LOOP(EACH("0,1,2,3,4,5,6,7",
              PAIRS "vpmaddubsw %%ymm13, %%ymm12, %%ymm9\n\tvpmaddubsw %%ymm13, %%ymm12, %%ymm10\n\t"
                    "vpmaddubsw %%ymm13, %%ymm12, %%ymm11\n\tvpaddw %%ymm9, %%ymm8, %%ymm8\n\t"
                    "vpaddw %%ymm11, %%ymm10, %%ymm10\n\tvpaddw %%ymm10, %%ymm8, %%ymm8\n\t" FOURS), YMM);
}

/* Signed bytes: the sign goes to the other factor; a magnitude serves the four registers of a panel. */
__attribute__((target("avx2"))) static void dots_signed(size_t rounds)
{
    begin_avx2();
    LOOP(EACH("0,4", "vpabsb %%ymm13, %%ymm10\n\t"
                     ".irp m,0,1,2,3\n\t"
                     "vpsignb %%ymm13, %%ymm12, %%ymm8\n\tvpmaddubsw %%ymm8, %%ymm10, %%ymm8\n\t"
                     "vpmaddwd %%ymm15, %%ymm8, %%ymm8\n\tvpaddd %%ymm8, %%ymm\\m, %%ymm\\m\n\t"
                     ".endr\n\t"), YMM);
}

/* Words, for bytes up to 255 on both sides: attention. */
__attribute__((target("avx2"))) static void dots_words(size_t rounds)
{
    begin_avx2();
    LOOP(EACH("0,1,2,3,4,5,6,7", "vpmaddwd %%ymm15, %%ymm15, %%ymm8\n\tvpaddd %%ymm8, %%ymm\\n, %%ymm\\n\n\t"), YMM);
}

__attribute__((target("avx2"))) static void floats_avx2(size_t rounds)
{
    const float one = 1;
    __asm__ volatile(EACH("0,1,2,3,4,5,6,7,8,9", "vpxor %%ymm\\n, %%ymm\\n, %%ymm\\n\n\t")
                     "vbroadcastss %0, %%ymm12" ::"m"(one) : YMM);
    LOOP(EACH("0,1,2,3,4,5,6,7,8,9",
              "vmulps %%ymm12, %%ymm12, %%ymm10\n\tvaddps %%ymm10, %%ymm\\n, %%ymm\\n\n\t"), YMM);
}

typedef struct {
    void (*run)(size_t rounds);
    size_t products; /* of one round */
} qwq_peak_of;

static qwq_peak_of peak_of(int which, int isa)
{
    static const qwq_peak_of avx512[] = {
        [QWQ_DOTS_31] = {dots_avx512, 12 * 64},     [QWQ_DOTS_63] = {dots_avx512, 12 * 64},
        [QWQ_DOTS_127] = {dots_avx512, 12 * 64},    [QWQ_DOTS_SIGNED] = {dots_avx512, 12 * 64},
        [QWQ_DOTS_WORDS] = {dots_avx512, 12 * 64},  [QWQ_FLOATS] = {floats_avx512, 12 * 16}};
    static const qwq_peak_of avx2[] = {
        [QWQ_DOTS_31] = {dots_31, 8 * 128},         [QWQ_DOTS_63] = {dots_63, 8 * 64},
        [QWQ_DOTS_127] = {dots_127, 8 * 32},        [QWQ_DOTS_SIGNED] = {dots_signed, 8 * 32},
        [QWQ_DOTS_WORDS] = {dots_words, 8 * 16},    [QWQ_FLOATS] = {floats_avx2, 10 * 8}};
    const qwq_peak_of none = {0};
    if (which < QWQ_DOTS_31 || which > QWQ_FLOATS || !qwq_isa_supported(isa) || isa == QWQ_SCALAR)
        return none;
    return isa == QWQ_AVX512 ? avx512[which] : avx2[which];
}

/* --- Reading: all bytes, in one of the orders that may be the fastest -------------------------------------------- */

#define LOAD_512(AT) "vpxord " AT ", %%zmm0, %%zmm0\n\t"
#define LOAD_256(AT) "vpxor " AT ", %%ymm0, %%ymm0\n\tvpxor 32" AT ", %%ymm1, %%ymm1\n\t"

/* One stream; the same, with the next page's first lines fetched, since the processor's own fetching ends with a page;
 * or four streams. */
#define READ(NAME, TARGET, LOAD)                                                                                     \
    __attribute__((target(TARGET))) static void NAME(const uint8_t *from, size_t lines, int order)                   \
    {                                                                                                                \
        if (order == QWQ_ONE_STREAM)                                                                                 \
            for (size_t i = 0; i < lines; i++, from += LINE)                                                         \
                __asm__ volatile(LOAD("(%0)")::"r"(from) : "xmm0", "xmm1");                                          \
        else if (order == QWQ_FETCHED)                                                                               \
            for (size_t i = 0; i < lines; i++, from += LINE) {                                                       \
                if (i % (PAGE / LINE) == 0)                                                                          \
                    __asm__ volatile("prefetcht1 %c1(%0)\n\tprefetcht1 %c1+64(%0)" ::"r"(from), "i"(PAGE));          \
                __asm__ volatile(LOAD("(%0)")::"r"(from) : "xmm0", "xmm1");                                          \
            }                                                                                                        \
        else                                                                                                         \
            for (size_t i = 0, apart = lines / STREAMS * LINE; i < lines / STREAMS; i++, from += LINE)               \
                __asm__ volatile(LOAD("(%0)") LOAD("(%0,%1)") LOAD("(%0,%1,2)") LOAD("(%0,%2)")::"r"(from),          \
                                 "r"(apart), "r"(3 * apart)                                                          \
                                 : "xmm0", "xmm1");                                                                  \
    }

READ(read_avx512, "avx512f", LOAD_512)
READ(read_avx2, "avx2", LOAD_256)

#else

typedef struct {
    void (*run)(size_t rounds);
    size_t products;
} qwq_peak_of;

static qwq_peak_of peak_of(int which, int isa)
{
    const qwq_peak_of none = {0};
    (void)which, (void)isa;
    return none;
}

#endif

static void read_scalar(const uint8_t *from, size_t lines, int order)
{
    size_t streams = order == QWQ_FOUR_STREAMS ? STREAMS : 1, apart = lines / streams * LINE;
    uint64_t all = 0;
    for (size_t i = 0; i < lines / streams; i++)
        for (size_t s = 0; s < streams; s++) {
            const uint64_t *eight = (const uint64_t *)(const void *)(from + s * apart + i * LINE);
            if (order == QWQ_FETCHED && i % (PAGE / LINE) == 0)
                __builtin_prefetch(from + i * LINE + PAGE, 0, 2);
            for (size_t k = 0; k < LINE / sizeof *eight; k++)
                all ^= eight[k];
        }
    __asm__ volatile("" ::"r"(all));
}

size_t qwq_peak_products(int which, int isa)
{
    return peak_of(which, isa).products;
}

int qwq_peak(int which, size_t rounds, int isa, int threads)
{
    if (!qwq_isa_supported(isa))
        return QWQ_EISA;
    qwq_peak_of peak = peak_of(which, isa);
    if (!peak.run)
        return QWQ_EFORMAT;
    if (!rounds || threads < 1 || threads > QWQ_MOST_THREADS)
        return QWQ_ESIZE;
    qwq_ran(isa);
#pragma omp parallel num_threads(threads) if (threads > 1)
    peak.run(rounds);
    return 0;
}

int qwq_read(const uint8_t *data, size_t bytes, int order, int isa, int threads)
{
    if (!qwq_isa_supported(isa))
        return QWQ_EISA;
    if (!qwq_threads_are_possible(threads))
        return QWQ_ESIZE;
    size_t each = bytes / (size_t)threads / (LINE * STREAMS) * STREAMS; /* lines */
    if (!each || bytes % ((size_t)threads * LINE * STREAMS) || order < QWQ_ONE_STREAM || order > QWQ_FOUR_STREAMS)
        return QWQ_ESIZE;
    int error = qwq_check(&(qwq_array){data, bytes, LINE}, 0, 1);
    if (error)
        return error;
    void (*read)(const uint8_t *, size_t, int) = read_scalar;
#if defined(__x86_64__)
    if (isa != QWQ_SCALAR)
        read = isa == QWQ_AVX512 ? read_avx512 : read_avx2;
#endif
    qwq_ran(isa);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int i = 0; i < threads; i++)
        read(data + (size_t)i * each * LINE, each, order);
    return 0;
}
