/* Reading of memory in plain C. Scalar code has no peak of instructions. */
#include "common/ceilings.h"
#include "common/kernels.h"

static void read_words(const uint8_t *from, size_t lines, int order)
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

void qwq_scalar_ceilings(qwq_ceilings *c)
{
    *c = (qwq_ceilings){.read = read_words};
}
