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

/* Each thread's share in 64 parts: one that comes late leaves parts to the others. */
enum { PARTS = 64 };
typedef struct {
    peak_fn *run;
    read_fn *read;
    size_t rounds;
    const uint8_t *data;
    size_t lines, parts;
    int order;
} ceiling_job;

static void compute(const void *job, size_t first, size_t end, int worker)
{
    const ceiling_job *j = job;
    size_t rounds = j->rounds * end / PARTS - j->rounds * first / PARTS;
    (void)worker;
    if (rounds)
        j->run(rounds);
}

static void read(const void *job, size_t first, size_t end, int worker)
{
    const ceiling_job *j = job;
    size_t blocks = j->lines / STREAMS, from = blocks * first / j->parts * STREAMS;
    size_t to = blocks * end / j->parts * STREAMS;
    (void)worker;
    if (to > from)
        j->read(j->data + from * LINE, to - from, j->order);
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
    const ceiling_job job = {.run = peak.run, .rounds = rounds};
    qwq_parallel_for(compute, &job, (size_t)threads * PARTS, threads);
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
    const ceiling_job job = {.read = table->ceilings.read,
                             .data = data,
                             .lines = each * (size_t)threads,
                             .parts = threads > 1 ? (size_t)threads * PARTS : 1,
                             .order = order};
    qwq_parallel_for(read, &job, job.parts, threads);
    return 0;
}
