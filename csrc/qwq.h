/* The contract of the C core. cffi reads the part between the two marks.
 *
 * Letters: T tokens, N rows of a weight (outputs), K its columns (inputs); all are counts of elements.
 * Functions return 0, or a negative QWQ_E... code; nothing is written then. Outputs come first, sizes last.
 *   EISA      the instruction set cannot run here
 *   ESIZE     a size, a number of threads or another number is impossible, or an array would end beyond memory
 *   EALIGN    a pointer is not a multiple of its element's size, or of what is asked for
 *   EFORMAT   there is no such format, or an array's numbers do not fit it
 *   EOVERLAP  an output overlaps another array; where one may, it says so
 *   ENULL     an array that is needed, and has at least one element, is NULL
 *   ESTOP     what `stop` points to was not 0: outputs, and a cache from `pos` on, may hold anything
 *   ERANGE    a query, key or value of a layer is not finite, or beyond 2^56; scratch may hold anything
 * Limits keep every product of sizes below 2^63: T, N, K, ld, n and tokens of a cache are at most QWQ_MOST_SIZE, heads
 * QWQ_MOST_HEADS, threads QWQ_MOST_THREADS. Beyond is ESIZE, or 0 bytes. That arrays are as large as the sizes
 * say is for the caller to see to.
 * stop: NULL, or what another thread sets, to have a long call return within some milliseconds.
 * An `isa` is the number of an instruction set, see qwq_isa_name: every one gives the same bits.
 */
#ifndef QWQ_H
#define QWQ_H

#include <stddef.h>
#include <stdint.h>

/* <cdef> */
enum { QWQ_GROUP = 64 };  /* activations that share a scale */
enum { QWQ_RATIOS = 64 }; /* what it can be, beside the token's largest */
enum {
    QWQ_EISA = -1,
    QWQ_ESIZE = -2,
    QWQ_EALIGN = -3,
    QWQ_EFORMAT = -4,
    QWQ_EOVERLAP = -5,
    QWQ_ENULL = -6,
    QWQ_ESTOP = -7,
    QWQ_ERANGE = -8
};
enum { QWQ_MOST_SIZE = 1 << 30, QWQ_MOST_HEADS = 1 << 16, QWQ_MOST_THREADS = 1024 };

/* Instruction sets are numbered from 0, the scalar code, upwards: a later one is faster where it runs. dispatch.c has
 * the list, common/cpu.h that of features. */
/* The name of an instruction set, or of bit `feature` of those below; NULL beyond the last. */
const char *qwq_isa_name(int isa);
const char *qwq_feature_name(int feature);
/* What CPUID says that this processor has, and XCR0 of the registers that its operating system saves; 0 for other
 * processors than x86-64. */
int qwq_cpu_features(void);
/* Those that an instruction set needs; -1 for none that there is. */
int qwq_isa_needs(int isa);
/* 1 if this processor, and its operating system, can run it. */
int qwq_isa_supported(int isa);
/* The sets whose tables this thread's calls were given since it last asked: bit `isa` of each. For tests, which so see
 * that what they force is what runs. */
int qwq_isas_ran(void);
/* The table of an instruction set, whether it can run or not: a qwq_table of common/table.h. For tests. */
const void *qwq_isa_table(int isa);

/* What the numbers of a packed weight are: common/formats.c has the table. */
enum { QWQ_Q4, QWQ_U4, QWQ_U5, QWQ_U6, QWQ_U8, QWQ_Q8, QWQ_BF16, QWQ_FP16, QWQ_FP32, QWQ_CODE_TYPES };
/* How a group's scale, and what is added or taken away, are stored. All but the last two: one float16 scale a group.
 * PLAIN      w = scale * (code - zero_point), zero_point the same for all
 * ZERO       w = scale * (code - zero_point[n, g]), uint8, 0 to 16; for u8 0 to 255
 * OFFSET     w = scale * code + offset[n, g], float16
 * OFFSET_BF16  the same, with scales and offsets in bfloat16
 * SUPER      w = d * sub_scale[n, g] * (code - zero_point): one float16 d for 256 columns, int8 sub_scale
 * SUPER_MIN  w = d * sub_scale[n, g] * code - dmin * sub_min[n, g]: d and dmin for 256 columns, uint8 sub_scale and
 * sub_min */
enum { QWQ_PLAIN, QWQ_ZERO, QWQ_OFFSET, QWQ_OFFSET_BF16, QWQ_SUPER, QWQ_SUPER_MIN, QWQ_SCALE_KINDS };
/* The name of a type of codes, or of a kind of scales; NULL beyond the last. */
const char *qwq_code_name(int codes);
const char *qwq_scales_name(int scales);

/* A format of packed weights. codes, scales: of the enumerations. group: columns that share a scale (16, 32, 64, 128).
 * zero_point: see PLAIN. For q4: 64, PLAIN and 0; for q8: PLAIN or SUPER and 0, codes then are int8. bf16, fp16 and
 * fp32: all 0. */
typedef struct {
    int32_t codes, group, scales, zero_point;
} qwq_format;
/* What a format is in memory: a qwq_layout of common/kernels.h. 0 if there is no such format. For tests. */
int qwq_format_layout(void *layout, const qwq_format *format);

/* Codes in words of 32 bits, as files store them. A stream is the codes one after another, the lowest bits of a word
 * first, and a code may lie in two words.
 * ROWS     words [N, K * bits / 32]: each row is a stream, as in MLX
 * COLUMNS  words [K * bits / 32, N]: each row of the weight is a column of words, which is a stream, as in GPTQ
 * EIGHTS   words [K, N / 8]: nibbles 0 to 7 of a word are rows 0, 2, 4, 6, 1, 3, 5, 7 of eight, as in AWQ */
enum { QWQ_ROWS, QWQ_COLUMNS, QWQ_EIGHTS, QWQ_WORD_LAYOUTS };
/* ld: words from one row of words to the next. bits: of a code, 2 to 8. order: NULL, or for COLUMNS [K]: column k of
 * the weight is column order[k] of the words; 0 to K - 1, else EFORMAT. */
typedef struct {
    const uint32_t *words;
    size_t ld;
    const int32_t *order;
    int32_t layout, bits;
} qwq_words;

/* The arrays of a weight [N, K] before packing; those that the format has not are NULL.
 * words   NULL, or where the codes are instead of `code`: for u4, u5, u6 and u8
 * code    uint8 [N, K], or int8 for q8; for bf16 and fp16 the 16 bits, for fp32 the floats
 * scale   fp16 or bfloat16 bits [N, K/group] of a group, or of 256 columns (d)
 * zero_point  uint8 [N, K/group]
 * offset  bits as of scale [N, K/group], or of 256 columns (dmin)
 * sub_scale, sub_min: bytes [N, K/group] */
typedef struct {
    const void *code;
    const uint16_t *scale;
    const uint8_t *zero_point;
    const uint16_t *offset;
    const uint8_t *sub_scale;
    const uint8_t *sub_min;
    const qwq_words *words;
} qwq_weight;

/* What is done with a product before it is stored, NULL or 0 for what is not. NumPy: core.matmul says it.
 * norm      [K]: x is RMS-normalised with these weights and eps first
 * bias      [N]: added
 * residual  [T, N]: added; may be y
 * swiglu    rows are taken in pairs of 32, gate and up: y [T, N/2] = silu(gate) * up
 * stop      see above */
typedef struct {
    const float *norm;
    const float *bias;
    const float *residual;
    const int32_t *stop;
    float eps;
    int32_t swiglu;
} qwq_fusion;

/* x [T, K] -> q [T, K] int8, step [T, K/64] in 0..63, scale [T]: a group of 64 has the scale 2^(-step/8) * scale.
 * NumPy: numerics.quant.quantise_activations. */
int qwq_quantise_activations(int8_t *q, uint8_t *step, float *scale, const float *x, size_t T, size_t K, int isa);

/* w [N, K] -> q4 weights: code [N, K] in 0..15, scale [N, K/64] as fp16 bits. NumPy: numerics.quant.quantise_q4.
 * dtype: of w, QWQ_FP32, QWQ_BF16 or QWQ_FP16. */
int qwq_quantise_q4(uint8_t *code, uint16_t *scale, const void *w, size_t N, size_t K, int dtype, int isa, int threads);

/* w [N, K] -> q8 weights: q [N, K] in -127..127, scale [N, K/64] as fp16 bits. NumPy: numerics.quant.quantise_q8. */
int qwq_quantise_q8(int8_t *q, uint16_t *scale, const void *w, size_t N, size_t K, int dtype, int isa, int threads);

/* A weight -> panels of 32 rows, 64-byte aligned; rows beyond N and columns beyond K are zero. 0 bytes: no such
 * format, or impossible sizes. */
size_t qwq_packed_bytes(const qwq_format *format, size_t N, size_t K);
/* step: 1, or 2, to write every second panel, as those of gate and up in one weight. */
int qwq_pack(uint8_t *packed, const qwq_format *format, const qwq_weight *weight, size_t N, size_t K, size_t step,
             int threads);

/* The types of ggml whose blocks the core packs: common/blocks.c has the table. */
enum { QWQ_BLOCK_TYPES = 12 };
/* The name of a type; NULL beyond the last. */
const char *qwq_block_name(int type);
/* The bytes of a block, its columns, and the format that holds its numbers; 0 beyond the last type. */
size_t qwq_block_of(qwq_format *format, size_t *columns, int type);
/* data [N, K / columns, bytes of a block] -> panels in that format. NumPy: formats.gguf.blocks. ERANGE: a scale is not
 * finite; all is packed nevertheless. */
int qwq_pack_blocks(uint8_t *packed, const uint8_t *data, int type, size_t N, size_t K, size_t step, int threads);

/* A packed weight [N, K], 64-byte aligned.
 * columns  NULL, or [K]: column k of the weight is multiplied with column columns[k] of x; 0 to K - 1, else EFORMAT */
typedef struct {
    qwq_format format;
    const uint8_t *packed;
    const int32_t *columns;
} qwq_linear;

/* y [T, N] = x w^T: from int8 activations and packed integers, NumPy: numerics.quant.matmul_integers, or from floats,
 * numerics.quant.matmul_floats; to the bit. scratch: qwq_matmul_scratch bytes, 64-byte aligned. */
size_t qwq_matmul_scratch(const qwq_format *format, size_t T, size_t K, int threads);
int qwq_matmul(float *y, const qwq_linear *w, const float *x, const qwq_fusion *fusion, void *scratch, size_t T,
               size_t N, size_t K, int isa, int threads);

/* The small operations; NumPy in numerics/fixed.py, to the bit, for any isa and number of threads. `ld` is the distance
 * of rows in elements. Outputs may not overlap inputs, but where it says so. */

/* y [n] = e^x. */
int qwq_exp(float *y, const float *x, size_t n, int isa);
/* y [T, D] = x / sqrt(mean(x^2) + eps) * w. */
int qwq_rmsnorm(float *y, const float *x, const float *w, float eps, size_t T, size_t D, int isa, int threads);
/* inv_freq [E/2]: spec.ops.rope_frequencies. Without yarn, all between it and E is ignored. */
int qwq_rope_frequencies(float *inv_freq, double theta, int yarn, double factor, double original, double beta_fast,
                         double beta_slow, int truncate, size_t E);
/* cos [T, E/2], sin [T, E/2] of position * inv_freq, times scaling; frequencies are at most 1, positions 2^26. */
int qwq_rope_tables(float *cos, float *sin, const float *inv_freq, float scaling, const int32_t *positions, size_t T,
                    size_t E);
/* x [T, N, E] in place: spec.ops.rope, with one half of its tables. */
int qwq_rope(float *x, const float *cos, const float *sin, size_t T, size_t N, size_t E, size_t ld, int isa,
             int threads);
/* y [T, n]; y may be x. */
int qwq_softmax(float *y, const float *x, size_t T, size_t n, int isa, int threads);
/* y [T, F] = gate / (1 + e^(-beta gate)) * up; gate and up have rows ld apart. */
int qwq_swiglu(float *y, const float *gate, const float *up, float beta, size_t T, size_t F, size_t ld, int isa,
               int threads);
/* The index of the largest, the first of equals; the first NaN, if there is one. */
int qwq_argmax(int32_t *index, const float *x, size_t n, int isa);
/* index [k], value [k] of the largest of n, in descending order, of equals the first; NaN is above all numbers. */
int qwq_top_k(int32_t *index, float *value, const float *x, size_t n, size_t k, int isa);
/* Uniform in [0, 1): 53 bits of Philox4x64-10 with this key and counter. */
double qwq_uniform(uint64_t seed, uint64_t i);

/* Letters from here on: T new tokens, at positions pos to pos + T - 1; H query heads; K key-value heads, H a multiple
 * of them; E head dimension.
 *
 * The part of a bias that int8 keys leave out, and its share of the scores: numerics.key_bias.KeyBias has the meaning.
 * key_gain, query_gain, center  [K, E]: before they are rounded, keys become k * key_gain - center, and queries
 *         q * query_gain; any of them may be NULL
 * pairs   of dimensions that keys leave out; 0: none, and the rest may be NULL
 * most    the largest code of a query's pair
 * first   [K, pairs]: the first dimension of a pair; the second is E / 2 further on
 * codes   [K, 1024 / 16, pairs, 16, 2]: the bias at 16 positions of a chunk, divided by scale [K]
 * turns   [chunks, K, pairs, 2]: cos and sin at the first position of each chunk */
typedef struct {
    const float *key_gain, *query_gain, *center;
    size_t pairs, chunks;
    int32_t most;
    const int32_t *first;
    const int16_t *codes;
    const float *scale, *turns;
} qwq_key_bias;

/* A KV cache of one layer, for `capacity` tokens, in pages of 128 tokens. Caches may share pages that no call writes
 * to. pages   [capacity / 128, rounded up]: where each begins, at a multiple of 64. Those of the tokens that a call
 * reads or writes must be there. attention.h has their layout; what is not yet appended may hold anything offset  from
 * the beginning of a page to the layer's part of it, a multiple of 64 bias    of int8 keys int8    1 for int8, 0 for
 * float32 */
typedef struct {
    uint8_t *const *pages;
    size_t offset;
    qwq_key_bias bias;
    size_t capacity, K, E;
    int32_t int8;
} qwq_kv;

/* The bytes of a layer's part of a page. 0 for impossible sizes. */
size_t qwq_kv_page_bytes(const qwq_kv *kv);
/* k, v [T, K, E] -> the cache, over what was at these positions. NumPy: numerics.kv.quantise_kv. */
int qwq_kv_append(const qwq_kv *kv, const float *k, const float *v, size_t pos, size_t T, int isa, int threads);

/* T queries at positions pos to pos + T - 1. Each sees itself and what is before, or of these the last `window` unless
 * that is 0. p_bits: of the weights of int8 values, 8, 16, or 0, where each block of weights decides. */
typedef struct {
    size_t pos, T, H, window;
    int32_t p_bits;
    const int32_t *stop;
} qwq_queries;

/* y [T, H, E] from q [T, H, E] and a cache that holds pos + T tokens. scratch: qwq_attention_scratch bytes.
 * NumPy: numerics.kv.attention_int8 and attention_fp32, to the bit. */
size_t qwq_attention_scratch(const qwq_kv *kv, const qwq_queries *queries, int threads);
int qwq_attention(float *y, const qwq_kv *kv, const float *q, void *scratch, const qwq_queries *queries, int isa,
                  int threads);

/* The projections of queries, keys and values: `fused`, whose rows are those of q, k and v after one another, or, where
 * its `packed` is NULL, three weights, each of its own format. */
typedef struct {
    qwq_linear fused, q, k, v;
} qwq_qkv;

/* A decoder layer: D hidden size, F MLP size to a multiple of 32, H query heads; E and K are those of the cache.
 * qkv_bias: for the rows of q, k and v after one another; gate_up: as qwq_fusion.swiglu wants them. kv: pages and
 * capacity are those of each sequence, and not used here. */
typedef struct {
    size_t D, F, H, window;
    qwq_qkv qkv;
    qwq_linear o, gate_up, down;
    const float *input_norm, *qkv_bias, *post_norm;
    qwq_kv kv;
    float eps;
} qwq_layer;

/* T tokens of one sequence, at positions pos to pos + T - 1. Of those before `first` only keys and values are wanted.
 * pages, capacity: of the sequence's cache, see qwq_kv. */
typedef struct {
    uint8_t *const *pages;
    size_t capacity, pos, T, first;
} qwq_part;

/* x [T, D] in place, through one layer: the tokens of `count` sequences after one another, T in all; cos, sin [T, E/2].
 * At the end the wanted rows lie at the beginning of x, after one another. Each sequence gets the bits that it gets
 * alone. scratch: so many bytes (0: the sizes cannot be), at a multiple of 64. It is these calls: qwq_matmul (norm,
 * bias), qwq_rope, for each sequence qwq_kv_append and qwq_attention, qwq_matmul (residual), qwq_matmul (norm, swiglu),
 * qwq_matmul (residual). spec.model.block says what it means. */
size_t qwq_layer_scratch(const qwq_layer *layer, const qwq_part *parts, size_t count, int threads);
int qwq_layer_step(float *x, const qwq_layer *layer, const qwq_part *parts, size_t count, const float *cos,
                   const float *sin, void *scratch, const int32_t *stop, int isa, int threads);

/* What `qwq bench` holds a figure against. Products of integers, by what the AVX2 kernels must do for bytes up to so
 * much (AVX-512 has one instruction for all of them), and of floats, a multiplication and an addition each: no kernel
 * may fuse them. */
enum { QWQ_DOTS_31, QWQ_DOTS_63, QWQ_DOTS_127, QWQ_DOTS_WORDS, QWQ_FLOATS, QWQ_PEAKS };
/* The products of one round; 0 where there is no such ceiling, as for scalar code. */
size_t qwq_peak_products(int which, int isa);
/* The instructions that multiply in it; NULL where there is no such ceiling. */
const char *qwq_peak_instructions(int which, int isa);
/* Each of the threads computes so many rounds, in registers. */
int qwq_peak(int which, size_t rounds, int isa, int threads);
/* data, 64-byte aligned: read once, each thread its part, in an order. bytes: a multiple of 256 for each thread. */
enum { QWQ_ONE_STREAM = 0, QWQ_FETCHED = 1, QWQ_FOUR_STREAMS = 2 };
int qwq_read(const uint8_t *data, size_t bytes, int order, int isa, int threads);
/* </cdef> */

#endif
