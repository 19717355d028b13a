/* The ladder of instruction sets. A rung's table begins as a copy of that of a rung below, and its own functions
 * replace single entries. THE list of rungs is here: names, needs, order. */
#include "common/cpu.h"
#include "common/table.h"
#include "qwq.h"

/* A rung. needs: all features that its own functions and inherited ones use. Each function replaces entries of one part
 * of the table; it is NULL where the rung inherits all of that part. */
typedef struct {
    const char *name;
    int needs;
    void (*quantise)(qwq_matmul_kernels *);
    void (*matmul)(qwq_matmul_kernels *);
    void (*attention)(qwq_attention_kernels *);
    void (*ops)(qwq_ops *);
    void (*ceilings)(qwq_ceilings *);
} qwq_rung;

/* Each in a file of scalar/ or x86/. */
void qwq_scalar_matmul(qwq_matmul_kernels *), qwq_scalar_attention(qwq_attention_kernels *), qwq_scalar_ops(qwq_ops *),
    qwq_scalar_ceilings(qwq_ceilings *);
#if defined(__x86_64__)
void qwq_avx2_quantise(qwq_matmul_kernels *), qwq_avx2_matmul(qwq_matmul_kernels *),
    qwq_avx2_attention(qwq_attention_kernels *), qwq_avx2_ops(qwq_ops *), qwq_avx2_ceilings(qwq_ceilings *);
void qwq_avx2_vnni_matmul(qwq_matmul_kernels *), qwq_avx2_vnni_attention(qwq_attention_kernels *),
    qwq_avx2_vnni_ceilings(qwq_ceilings *);
void qwq_avx512_quantise(qwq_matmul_kernels *), qwq_avx512_matmul(qwq_matmul_kernels *),
    qwq_avx512_attention(qwq_attention_kernels *), qwq_avx512_ops(qwq_ops *), qwq_avx512_ceilings(qwq_ceilings *);

enum {
    NEEDS_AVX2 = HAS(AVX2) | HAS(FMA) | HAS(F16C) | HAS(YMM),
#if defined(QWQ_EVEX_VNNI) /* a test build: see cpu.h */
    NEEDS_AVX2_VNNI = NEEDS_AVX2 | HAS(AVX512F) | HAS(AVX512VL) | HAS(AVX512_VNNI) | HAS(ZMM),
#else
    NEEDS_AVX2_VNNI = NEEDS_AVX2 | HAS(AVX_VNNI),
#endif
    NEEDS_AVX512 = NEEDS_AVX2 | HAS(AVX512F) | HAS(AVX512DQ) | HAS(AVX512BW) | HAS(AVX512VL) | HAS(AVX512_VNNI) |
        HAS(ZMM)
};
#endif

/* From the slowest to the fastest. */
static const qwq_rung rungs[] = {
    {.name = "scalar",
     .matmul = qwq_scalar_matmul,
     .attention = qwq_scalar_attention,
     .ops = qwq_scalar_ops,
     .ceilings = qwq_scalar_ceilings},
#if defined(__x86_64__)
    {.name = "avx2",
     .needs = NEEDS_AVX2,
     .quantise = qwq_avx2_quantise,
     .matmul = qwq_avx2_matmul,
     .attention = qwq_avx2_attention,
     .ops = qwq_avx2_ops,
     .ceilings = qwq_avx2_ceilings},
#if defined(TARGET_VNNI)
    {.name = "avx2-vnni",
     .needs = NEEDS_AVX2_VNNI,
     .matmul = qwq_avx2_vnni_matmul,
     .attention = qwq_avx2_vnni_attention,
     .ceilings = qwq_avx2_vnni_ceilings},
#endif
    {.name = "avx512",
     .needs = NEEDS_AVX512,
     .quantise = qwq_avx512_quantise,
     .matmul = qwq_avx512_matmul,
     .attention = qwq_avx512_attention,
     .ops = qwq_avx512_ops,
     .ceilings = qwq_avx512_ceilings},
#endif
};
enum { RUNGS = sizeof rungs / sizeof *rungs };

static qwq_table tables[RUNGS];

/* The rung that rung i inherits from: the highest below whose needs it has, too. */
static int base_of(int i)
{
    int base = i - 1;
    while (base > 0 && rungs[base].needs & ~rungs[i].needs)
        base--;
    return base;
}

/* When the library is loaded, so that a call only looks up a table. */
__attribute__((constructor)) static void fill_tables(void)
{
    for (int i = 0; i < RUNGS; i++) {
        qwq_table *t = &tables[i];
        if (i > 0)
            *t = tables[base_of(i)];
        if (rungs[i].quantise)
            rungs[i].quantise(&t->matmul);
        if (rungs[i].matmul)
            rungs[i].matmul(&t->matmul);
        if (rungs[i].attention)
            rungs[i].attention(&t->attention);
        if (rungs[i].ops)
            rungs[i].ops(&t->ops);
        if (rungs[i].ceilings)
            rungs[i].ceilings(&t->ceilings);
    }
}

const char *qwq_isa_name(int isa)
{
    return isa >= 0 && isa < RUNGS ? rungs[isa].name : NULL;
}

int qwq_isa_needs(int isa)
{
    return isa >= 0 && isa < RUNGS ? rungs[isa].needs : -1;
}

int qwq_isa_supported(int isa)
{
    return !(qwq_isa_needs(isa) & ~qwq_cpu_features()); /* -1 needs more than there can be */
}

static _Thread_local int ran;

const qwq_table *qwq_table_of(int isa)
{
    if (!qwq_isa_supported(isa))
        return NULL;
    ran |= 1 << isa;
    return &tables[isa];
}

int qwq_isas_ran(void)
{
    int isas = ran;
    ran = 0;
    return isas;
}

const void *qwq_isa_table(int isa)
{
    return isa >= 0 && isa < RUNGS ? &tables[isa] : NULL;
}
