/* The dispatch table: every function that a rung, an instruction set, may have of its own. dispatch.c fills the tables.
 */
#ifndef QWQ_TABLE_H
#define QWQ_TABLE_H

#include "common/attention.h"
#include "common/ceilings.h"
#include "common/kernels.h"
#include "common/ops.h"
#include "qwq.h"

/* <cdef> */
typedef struct {
    qwq_matmul_kernels matmul;       /* kernels.h: quantising, unpacking, products */
    qwq_attention_kernels attention; /* attention.h */
    qwq_ops ops;                     /* ops.h: norm, RoPE, softmax, SwiGLU, the largest of many */
    qwq_ceilings ceilings;           /* ceilings.h: what `qwq bench` compares with */
} qwq_table;
/* </cdef> */

/* The table of an instruction set; NULL if it cannot run here. Notes it for qwq_isas_ran. */
const qwq_table *qwq_table_of(int isa);

#endif
