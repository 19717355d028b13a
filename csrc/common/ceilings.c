/* How fast this processor can be at best: the instructions of the kernels and nothing else, and reading of memory. A
 * figure of `qwq bench` is a share of these. */
#include "common/ceilings.h"

#include "common/check.h"
#include "common/parallel.h"
#include "common/table.h"

static qwq_peak_of peak_of(int which, int isa)
{
    const qwq_table *table = qwq_table_of(isa);
    return table && which >= 0 && which < QWQ_PEAKS ? table->ceilings.peak[which] : (qwq_peak_of){0};
}

size_t qwq_peak_products(int which, int isa)
{
    return peak_of(which, isa).products;
}

const char *qwq_peak_instructions(int which, int isa)
{
    return peak_of(which, isa).instructions;
}

int qwq_peak(int which, size_t rounds, int isa, int threads)
{
    if (!qwq_isa_supported(isa))
        return QWQ_EISA;
    qwq_peak_of peak = peak_of(which, isa);
    if (!peak.run)
        return QWQ_EFORMAT;
    if (!rounds || !qwq_threads_are_possible(threads))
        return QWQ_ESIZE;
    OMP(parallel num_threads(threads) if (threads > 1))
    peak.run(rounds);
    return 0;
}

int qwq_read(const uint8_t *data, size_t bytes, int order, int isa, int threads)
{
    const qwq_table *table = qwq_table_of(isa);
    if (!table)
        return QWQ_EISA;
    if (!qwq_threads_are_possible(threads))
        return QWQ_ESIZE;
    size_t each = bytes / (size_t)threads / (LINE * STREAMS) * STREAMS; /* lines */
    if (!each || bytes % ((size_t)threads * LINE * STREAMS) || order < QWQ_ONE_STREAM || order > QWQ_FOUR_STREAMS)
        return QWQ_ESIZE;
    int error = qwq_check(&(qwq_array){data, bytes, LINE}, 0, 1);
    if (error)
        return error;
    OMP(parallel for schedule(static) num_threads(threads) if (threads > 1))
    for (int i = 0; i < threads; i++)
        table->ceilings.read(data + (size_t)i * each * LINE, each, order);
    return 0;
}
