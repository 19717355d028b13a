/* Quantising weights and activations: the entry points. */
#include "common/activations.h"
#include "common/check.h"
#include "common/parallel.h"
#include "common/table.h"

/* Group g of a weight as floats: where it is, or converted into `own`. */
static const float *group_of(float *own, const void *w, size_t g, int dtype)
{
    if (dtype == QWQ_FP32)
        return (const float *)w + g * GROUP;
    const uint16_t *bits = (const uint16_t *)w + g * GROUP;
    for (size_t k = 0; k < GROUP; k++)
        own[k] = dtype == QWQ_BF16 ? bf16_to_float(bits[k]) : half_to_float(bits[k]);
    return own;
}

/* The groups of a weight. */
typedef struct {
    void *code;
    uint16_t *scale;
    const void *w;
    int dtype;
    int32_t codes;
    const qwq_matmul_kernels *kernels;
} groups_job;

static void quantise_groups(const void *job, size_t first, size_t end, int worker)
{
    const groups_job *j = job;
    (void)worker;
    for (size_t g = first; g < end; g++) {
        float own[GROUP];
        const float *group = group_of(own, j->w, g, j->dtype);
        j->scale[g] = j->codes == QWQ_Q4 ? j->kernels->quantise_q4((uint8_t *)j->code + g * GROUP, group)
                                         : j->kernels->quantise_q8((int8_t *)j->code + g * GROUP, group);
    }
}

/* w [N, K] -> codes of q4 or q8, and scales. */
static int quantise(void *code, uint16_t *scale, const void *w, size_t N, size_t K, int dtype, int isa, int threads,
                    int32_t codes)
{
    const qwq_table *table = qwq_table_of(isa);
    if (!table)
        return QWQ_EISA;
    if (dtype != QWQ_FP32 && dtype != QWQ_BF16 && dtype != QWQ_FP16)
        return QWQ_EFORMAT;
    if (K % GROUP || !K || K > QWQ_MOST_SIZE || N > QWQ_MOST_SIZE || !qwq_threads_are_possible(threads))
        return QWQ_ESIZE;
    size_t element = dtype == QWQ_FP32 ? 4 : 2;
    const qwq_array arrays[] = {{code, N * K, 1}, {scale, N * (K / GROUP) * 2, 2}, {w, N * K * element, element}};
    int error = qwq_check(arrays, 2, 3);
    if (error)
        return error;
    const groups_job job = {code, scale, w, dtype, codes, &table->matmul};
    qwq_parallel_for(quantise_groups, &job, N * (K / GROUP), threads);
    return 0;
}

int qwq_quantise_q4(uint8_t *code, uint16_t *scale, const void *w, size_t N, size_t K, int dtype, int isa, int threads)
{
    return quantise(code, scale, w, N, K, dtype, isa, threads, QWQ_Q4);
}

int qwq_quantise_q8(int8_t *q, uint16_t *scale, const void *w, size_t N, size_t K, int dtype, int isa, int threads)
{
    return quantise(q, scale, w, N, K, dtype, isa, threads, QWQ_Q8);
}

int qwq_quantise_activations(int8_t *q, uint8_t *step, float *scale, const float *x, size_t T, size_t K, int isa)
{
    const qwq_table *table = qwq_table_of(isa);
    if (!table)
        return QWQ_EISA;
    const qwq_matmul_kernels *kernels = &table->matmul;
    if (K % GROUP || !K || K > QWQ_MOST_SIZE || T > QWQ_MOST_SIZE)
        return QWQ_ESIZE;
    const qwq_array arrays[] = {
        {q, T * K, 1}, {step, T * (K / GROUP), 1}, {scale, T * sizeof(float), 4}, {x, T * K * sizeof(float), 4}};
    int error = qwq_check(arrays, 3, 4);
    if (error)
        return error;
    for (size_t t = 0; t < T; t++) {
        float top = 0, largest;
        for (size_t g = 0; g < K / GROUP; g++) {
            kernels->largest(&largest, x + t * K + g * GROUP, 1);
            top = largest > top || largest != largest ? largest : top;
        }
        scale[t] = scale_of(top);
        for (size_t g = 0; g < K / GROUP; g++, step++, q += GROUP) {
            kernels->largest(&largest, x + t * K + g * GROUP, 1);
            *step = (uint8_t)step_of(largest, top);
            quantise_group(kernels, q, x + t * K + g * GROUP, *step, top);
        }
    }
    return 0;
}
