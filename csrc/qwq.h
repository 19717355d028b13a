/* The contract of the C core. cffi reads the part between the two marks.
 *
 * Letters: T tokens, N rows of a weight (outputs), K its columns (inputs); all are counts of elements.
 * Functions return 0, or a negative QWQ_E... code; nothing is written then. Outputs come first, sizes last.
 * An `isa` is one of QWQ_SCALAR, QWQ_AVX2, QWQ_AVX512: every variant gives the same bits.
 */
#ifndef QWQ_H
#define QWQ_H

#include <stddef.h>
#include <stdint.h>

/* <cdef> */
enum { QWQ_SCALAR = 0, QWQ_AVX2 = 1, QWQ_AVX512 = 2 };
enum { QWQ_GROUP = 64 }; /* weights and activations that share a scale */
enum { QWQ_EISA = -1, QWQ_ESIZE = -2, QWQ_EALIGN = -3 };

/* 1 if this processor, and its operating system, can run it. */
int qwq_isa_supported(int isa);

/* x [T, K] -> q [T, K] int8, scale [T, K/64], sum [T, K/64]: one scale for each token and group of 64.
 * scale = max|x| / 127, q = round(x / scale), sum of the group's q. NumPy: spec.quant.quantise_activations. */
int qwq_quantise_activations(int8_t *q, float *scale, int32_t *sum, const float *x, size_t T, size_t K, int isa);

/* w [N, K] -> q4 weights: code [N, K] in 0..15, scale [N, K/64] as fp16 bits. NumPy: spec.quant.quantise_q4. */
int qwq_quantise_q4(uint8_t *code, uint16_t *scale, const float *w, size_t N, size_t K, int isa, int threads);

/* w [N, K] -> q8 weights: q [N, K] in -127..127, scale [N, K/64] as fp16 bits. NumPy: spec.quant.quantise_q8. */
int qwq_quantise_q8(int8_t *q, uint16_t *scale, const float *w, size_t N, size_t K, int isa, int threads);

/* code [N, K], scale [N, K/64] -> packed panels of 32 rows; rows beyond N are zero. Bytes: qwq_q4_bytes. */
size_t qwq_q4_bytes(size_t N, size_t K);
int qwq_pack_q4(uint8_t *packed, const uint8_t *code, const uint16_t *scale, size_t N, size_t K);

size_t qwq_q8_bytes(size_t N, size_t K);
int qwq_pack_q8(uint8_t *packed, const int8_t *q, const uint16_t *scale, size_t N, size_t K);

/* y [T, N] = x w^T, from quantised activations and packed weights. NumPy: spec.quant.matmul_q4 and _q8, to the bit.
 * scratch holds qwq_matmul_scratch(T, K) bytes. */
size_t qwq_matmul_scratch(size_t T, size_t K);
int qwq_matmul_q4(float *y, const uint8_t *w, const float *x, void *scratch, size_t T, size_t N, size_t K, int isa,
                  int threads);
int qwq_matmul_q8(float *y, const uint8_t *w, const float *x, void *scratch, size_t T, size_t N, size_t K, int isa,
                  int threads);

/* A KV-cache of one layer: a buffer that begins at a multiple of 64 bytes, for `capacity` tokens, K heads of E. What is
 * not yet appended may hold anything. Letters from here on: T new tokens, at positions pos to pos + T - 1; H query
 * heads; K key-value heads, H a multiple of them; E head dimension. attention.h: how it lies in memory. */
size_t qwq_kv_int8_bytes(size_t capacity, size_t K, size_t E);
size_t qwq_kv_fp32_bytes(size_t capacity, size_t K, size_t E);
/* k, v [T, K, E] -> the cache, over what was at these positions. center [K, E] is taken off int8 keys, or is NULL.
 * NumPy: spec.kv.quantise_kv. */
int qwq_kv_int8_append(uint8_t *kv, const float *k, const float *v, const float *center, size_t pos, size_t T,
                       size_t capacity, size_t K, size_t E, int isa, int threads);
int qwq_kv_fp32_append(uint8_t *kv, const float *k, const float *v, size_t pos, size_t T, size_t capacity, size_t K,
                       size_t E, int isa, int threads);

/* y [T, H, E] from q [T, H, E] and a cache that holds pos + T tokens: each query sees itself and what is before, or of
 * these the last `window` unless that is 0. p_bits: 8, 16, or 0, where each block of weights decides.
 * scratch holds qwq_attention_scratch(...) bytes. NumPy: spec.kv.attention_int8 and attention_fp32, to the bit. */
size_t qwq_attention_scratch(size_t pos, size_t T, size_t H, size_t K, size_t E, int threads);
int qwq_attention_int8(float *y, const uint8_t *kv, const float *q, void *scratch, size_t pos, size_t T,
                       size_t capacity, size_t H, size_t K, size_t E, size_t window, int p_bits, int isa, int threads);
int qwq_attention_fp32(float *y, const uint8_t *kv, const float *q, void *scratch, size_t pos, size_t T,
                       size_t capacity, size_t H, size_t K, size_t E, size_t window, int isa, int threads);
/* </cdef> */

#endif
