"""Graphs of llama.cpp, recorded from three versions, and made-up values for them."""

import numpy as np

from qwq_ref import spec
from qwq_ref.interop.llama_cpp.graph import Node, taps_of
from qwq_ref.oracle.adapters.llama_cpp import NO_TAP
from qwq_ref.oracle.graph import tap_names
from tests.support.gguf_models import small_config

# One line for a tensor: its name, op, ne, its type unless f32, a view's offset, and what it is made from: a line of the
# same graph, counted from 0, or a weight or input. A prompt of 5 tokens, of which the last one's logits were asked for.
# llama-cpp-python 0.3.36
NOW = """
embd = GET_ROWS 128x5 <- token_embd.weight, inp_tokens
norm-0 = RMS_NORM 128x5 <- 0
attn_norm-0 = MUL 128x5 <- 1, blk.0.attn_norm.weight
Qcur-0 = MUL_MAT 128x5 <- blk.0.attn_q.weight, 2
Qcur-0 = ADD 128x5 <- 3, blk.0.attn_q.bias
Qcur-0 = RESHAPE 32x4x5 <- 4
Qcur-0 = ROPE 32x4x5 <- 5, inp_pos
Vcur-0 = MUL_MAT 64x5 <- blk.0.attn_v.weight, 2
Vcur-0 = ADD 64x5 <- 7, blk.0.attn_v.bias
Vcur-0 = RESHAPE 32x2x5 <- 8
Kcur-0 = MUL_MAT 64x5 <- blk.0.attn_k.weight, 2
Kcur-0 = ADD 64x5 <- 10, blk.0.attn_k.bias
Kcur-0 = RESHAPE 32x2x5 <- 11
Kcur-0 = ROPE 32x2x5 <- 12, inp_pos
Kcur-0 (view) = VIEW 64x5 <- 13
cache_k_l0 (view) = SET_ROWS 64x256 <- 14, attn_inp_k_idxs, cache_k_l0
Vcur-0 (reshaped) = RESHAPE 64x5 <- 9
Vcur-0 (reshaped) (reshaped) = RESHAPE 1x320 <- 16
cache_v_l0 (reshaped) = RESHAPE 1x16384 <- cache_v_l0
cache_v_l0 (reshaped) (view) = SET_ROWS 1x16384 <- 17, attn_inp_v_idxs, 18
cache_v_l0 (view) = VIEW 256x2x32 <- cache_v_l0
cache_v_l0 (view) (permuted) = PERMUTE 256x32x2 <- 20
cache_k_l0 (view) = VIEW 32x2x256 <- cache_k_l0
cache_k_l0 (view) (permuted) = PERMUTE 32x256x2 <- 22
Qcur-0 (view) = VIEW 32x4x5 <- 6
Qcur-0 (view) (permuted) = PERMUTE 32x5x4 <- 24
kq-0 = MUL_MAT 256x5x4 <- 23, 25
attn_inp_kq_mask = LEAF 256x5
kq_soft_max-0 = SOFT_MAX 256x5x4 <- 26, 27
kqv-0 = MUL_MAT 32x5x4 <- 21, 28
kqv-0 (permuted) = PERMUTE 32x4x5 <- 29
kqv_out-0 = CONT 128x5 <- 30
node_31 = MUL_MAT 128x5 <- blk.0.attn_output.weight, 31
ffn_inp-0 = ADD 128x5 <- 32, 0
norm-0 = RMS_NORM 128x5 <- 33
ffn_norm-0 = MUL 128x5 <- 34, blk.0.ffn_norm.weight
ffn_gate-0 = MUL_MAT 96x5 <- blk.0.ffn_gate.weight, 35
ffn_up-0 = MUL_MAT 96x5 <- blk.0.ffn_up.weight, 35
ffn_swiglu-0 = SWIGLU 96x5 <- 36, 37
ffn_out-0 = MUL_MAT 128x5 <- blk.0.ffn_down.weight, 38
l_out-0 = ADD 128x5 <- 39, 33
norm-1 = RMS_NORM 128x5 <- 40
attn_norm-1 = MUL 128x5 <- 41, blk.1.attn_norm.weight
Qcur-1 = MUL_MAT 128x5 <- blk.1.attn_q.weight, 42
Qcur-1 = ADD 128x5 <- 43, blk.1.attn_q.bias
Qcur-1 = RESHAPE 32x4x5 <- 44
Qcur-1 = ROPE 32x4x5 <- 45, inp_pos
Vcur-1 = MUL_MAT 64x5 <- blk.1.attn_v.weight, 42
Vcur-1 = ADD 64x5 <- 47, blk.1.attn_v.bias
Vcur-1 = RESHAPE 32x2x5 <- 48
Kcur-1 = MUL_MAT 64x5 <- blk.1.attn_k.weight, 42
Kcur-1 = ADD 64x5 <- 50, blk.1.attn_k.bias
Kcur-1 = RESHAPE 32x2x5 <- 51
Kcur-1 = ROPE 32x2x5 <- 52, inp_pos
Kcur-1 (view) = VIEW 64x5 <- 53
cache_k_l1 (view) = SET_ROWS 64x256 <- 54, attn_inp_k_idxs, cache_k_l1
Vcur-1 (reshaped) = RESHAPE 64x5 <- 49
Vcur-1 (reshaped) (reshaped) = RESHAPE 1x320 <- 56
cache_v_l1 (reshaped) = RESHAPE 1x16384 <- cache_v_l1
cache_v_l1 (reshaped) (view) = SET_ROWS 1x16384 <- 57, attn_inp_v_idxs, 58
cache_v_l1 (view) = VIEW 256x2x32 <- cache_v_l1
cache_v_l1 (view) (permuted) = PERMUTE 256x32x2 <- 60
cache_k_l1 (view) = VIEW 32x2x256 <- cache_k_l1
cache_k_l1 (view) (permuted) = PERMUTE 32x256x2 <- 62
Qcur-1 (view) = VIEW 32x4x5 <- 46
Qcur-1 (view) (permuted) = PERMUTE 32x5x4 <- 64
kq-1 = MUL_MAT 256x5x4 <- 63, 65
kq_soft_max-1 = SOFT_MAX 256x5x4 <- 66, 27
kqv-1 = MUL_MAT 32x5x4 <- 61, 67
kqv-1 (permuted) = PERMUTE 32x4x5 <- 68
kqv_out-1 = CONT 128x5 <- 69
node_70 = MUL_MAT 128x5 <- blk.1.attn_output.weight, 70
node_71 = GET_ROWS 128 <- 71, out_ids
node_72 = GET_ROWS 128 <- 40, out_ids
ffn_inp-1 = ADD 128 <- 72, 73
norm-1 = RMS_NORM 128 <- 74
ffn_norm-1 = MUL 128 <- 75, blk.1.ffn_norm.weight
ffn_gate-1 = MUL_MAT 96 <- blk.1.ffn_gate.weight, 76
ffn_up-1 = MUL_MAT 96 <- blk.1.ffn_up.weight, 76
ffn_swiglu-1 = SWIGLU 96 <- 77, 78
ffn_out-1 = MUL_MAT 128 <- blk.1.ffn_down.weight, 79
l_out-1 = ADD 128 <- 80, 74
norm = RMS_NORM 128 <- 81
result_norm = MUL 128 <- 82, output_norm.weight
result_output = MUL_MAT 61 <- output.weight, 83
"""
# The same with flash attention and an f16 cache
FLASH = """
embd = GET_ROWS 128x5 <- token_embd.weight, inp_tokens
norm-0 = RMS_NORM 128x5 <- 0
attn_norm-0 = MUL 128x5 <- 1, blk.0.attn_norm.weight
Qcur-0 = MUL_MAT 128x5 <- blk.0.attn_q.weight, 2
Qcur-0 = ADD 128x5 <- 3, blk.0.attn_q.bias
Qcur-0 = RESHAPE 32x4x5 <- 4
Qcur-0 = ROPE 32x4x5 <- 5, inp_pos
Vcur-0 = MUL_MAT 64x5 <- blk.0.attn_v.weight, 2
Vcur-0 = ADD 64x5 <- 7, blk.0.attn_v.bias
Vcur-0 = RESHAPE 32x2x5 <- 8
Kcur-0 = MUL_MAT 64x5 <- blk.0.attn_k.weight, 2
Kcur-0 = ADD 64x5 <- 10, blk.0.attn_k.bias
Kcur-0 = RESHAPE 32x2x5 <- 11
Kcur-0 = ROPE 32x2x5 <- 12, inp_pos
Kcur-0 (view) = VIEW 64x5 <- 13
cache_k_l0 (view) = SET_ROWS 64x256 f16 <- 14, attn_inp_k_idxs, cache_k_l0
Vcur-0 (view) = VIEW 64x5 <- 9
cache_v_l0 (view) = SET_ROWS 64x256 f16 <- 16, attn_inp_v_idxs, cache_v_l0
Qcur-0 (view) = VIEW 32x4x5 <- 6
Qcur-0 (view) (permuted) = PERMUTE 32x5x4 <- 18
cache_k_l0 (view) = VIEW 32x2x256 f16 <- cache_k_l0
cache_k_l0 (view) (permuted) = PERMUTE 32x256x2 f16 <- 20
cache_v_l0 (view) = VIEW 32x2x256 f16 <- cache_v_l0
cache_v_l0 (view) (permuted) = PERMUTE 32x256x2 f16 <- 22
node_24 = FLASH_ATTN_EXT 32x4x5 <- 19, 21, 23, attn_inp_kq_mask
kqv_out-0 = RESHAPE 128x5 <- 24
node_26 = MUL_MAT 128x5 <- blk.0.attn_output.weight, 25
node_27 = GET_ROWS 128 <- 26, out_ids
node_28 = GET_ROWS 128 <- 0, out_ids
ffn_inp-0 = ADD 128 <- 27, 28
norm-0 = RMS_NORM 128 <- 29
ffn_norm-0 = MUL 128 <- 30, blk.0.ffn_norm.weight
ffn_gate-0 = MUL_MAT 96 <- blk.0.ffn_gate.weight, 31
ffn_up-0 = MUL_MAT 96 <- blk.0.ffn_up.weight, 31
ffn_swiglu-0 = SWIGLU 96 <- 32, 33
ffn_out-0 = MUL_MAT 128 <- blk.0.ffn_down.weight, 34
l_out-0 = ADD 128 <- 35, 29
norm = RMS_NORM 128 <- 36
result_norm = MUL 128 <- 37, output_norm.weight
result_output = MUL_MAT 61 <- output.weight, 38
"""
# The same from a file that holds query, key and value as one tensor
FUSED = """
embd = GET_ROWS 128x5 <- token_embd.weight, inp_tokens
norm-0 = RMS_NORM 128x5 <- 0
attn_norm-0 = MUL 128x5 <- 1, blk.0.attn_norm.weight
wqkv-0 = MUL_MAT 256x5 <- blk.0.attn_qkv.weight, 2
wqkv_b-0 = ADD 256x5 <- 3, blk.0.attn_qkv.bias
Qcur-0 = VIEW 32x4x5 <- 4
Qcur-0 = ROPE 32x4x5 <- 5, inp_pos
Vcur-0 = VIEW 32x2x5 +768 <- 4
Kcur-0 = VIEW 32x2x5 +512 <- 4
Kcur-0 = ROPE 32x2x5 <- 8, inp_pos
Kcur-0 (view) = VIEW 64x5 <- 9
cache_k_l0 (view) = SET_ROWS 64x256 <- 10, attn_inp_k_idxs, cache_k_l0
Vcur-0 (cont) = CONT 64x5 <- 7
Vcur-0 (cont) (reshaped) = RESHAPE 1x320 <- 12
cache_v_l0 (reshaped) = RESHAPE 1x16384 <- cache_v_l0
cache_v_l0 (reshaped) (view) = SET_ROWS 1x16384 <- 13, attn_inp_v_idxs, 14
cache_v_l0 (view) = VIEW 256x2x32 <- cache_v_l0
cache_v_l0 (view) (permuted) = PERMUTE 256x32x2 <- 16
cache_k_l0 (view) = VIEW 32x2x256 <- cache_k_l0
cache_k_l0 (view) (permuted) = PERMUTE 32x256x2 <- 18
Qcur-0 (view) = VIEW 32x4x5 <- 6
Qcur-0 (view) (permuted) = PERMUTE 32x5x4 <- 20
kq-0 = MUL_MAT 256x5x4 <- 19, 21
attn_inp_kq_mask = LEAF 256x5
kq_soft_max-0 = SOFT_MAX 256x5x4 <- 22, 23
kqv-0 = MUL_MAT 32x5x4 <- 17, 24
kqv-0 (permuted) = PERMUTE 32x4x5 <- 25
kqv_out-0 = CONT 128x5 <- 26
node_27 = MUL_MAT 128x5 <- blk.0.attn_output.weight, 27
node_28 = GET_ROWS 128 <- 28, out_ids
node_29 = GET_ROWS 128 <- 0, out_ids
ffn_inp-0 = ADD 128 <- 29, 30
norm-0 = RMS_NORM 128 <- 31
ffn_norm-0 = MUL 128 <- 32, blk.0.ffn_norm.weight
ffn_gate-0 = MUL_MAT 96 <- blk.0.ffn_gate.weight, 33
ffn_up-0 = MUL_MAT 96 <- blk.0.ffn_up.weight, 33
ffn_swiglu-0 = SWIGLU 96 <- 34, 35
ffn_out-0 = MUL_MAT 128 <- blk.0.ffn_down.weight, 36
l_out-0 = ADD 128 <- 37, 31
norm = RMS_NORM 128 <- 38
result_norm = MUL 128 <- 39, output_norm.weight
result_output = MUL_MAT 61 <- output.weight, 40
"""
# llama-cpp-python 0.3.9, of May 2025
MIDDLE = """
inp_embd = GET_ROWS 128x5 <- token_embd.weight, leaf_2
norm-0 = RMS_NORM 128x5 <- 0
attn_norm-0 = MUL 128x5 <- 1, blk.0.attn_norm.weight
node_3 = MUL_MAT 128x5 <- blk.0.attn_q.weight, 2
Qcur-0 = ADD 128x5 <- 3, blk.0.attn_q.bias
Qcur-0 (reshaped) = RESHAPE 32x4x5 <- 4
Qcur-0 = ROPE 32x4x5 <- 5, leaf_5
node_7 = MUL_MAT 64x5 <- blk.0.attn_k.weight, 2
Kcur-0 = ADD 64x5 <- 7, blk.0.attn_k.bias
Kcur-0 (reshaped) = RESHAPE 32x2x5 <- 8
Kcur-0 = ROPE 32x2x5 <- 9, leaf_5
node_11 = MUL_MAT 64x5 <- blk.0.attn_v.weight, 2
Vcur-0 = ADD 64x5 <- 11, blk.0.attn_v.bias
Vcur-0 = RESHAPE 32x2x5 <- 12
cache_k_l0 (view) = VIEW 320 <- cache_k_l0
cache_k_l0 (view) (copy of Kcur-0) = CPY 320 <- 10, 14
Vcur-0 (reshaped) = RESHAPE 64x5 <- 13
Vcur-0 (reshaped) (transposed) = TRANSPOSE 5x64 <- 16
cache_v_l0 (view) = VIEW 5x64 <- cache_v_l0
cache_v_l0 (view) (copy of Vcur-0 (reshaped) (transposed)) = CPY 5x64 <- 17, 18
cache_v_l0 (view) = VIEW 32x32x2 <- cache_v_l0
cache_k_l0 (view) = VIEW 32x32x2 <- cache_k_l0
Qcur-0 (permuted) = PERMUTE 32x5x4 <- 6
node_23 = MUL_MAT 32x5x4 <- 21, 22
leaf_12 = LEAF 32x64
node_24 = SOFT_MAX 32x5x4 <- 23, 24
node_25 = MUL_MAT 32x5x4 <- 20, 25
 (permuted) = PERMUTE 32x4x5 <- 26
kqv_out-0 = CONT 128x5 <- 27
node_28 = MUL_MAT 128x5 <- blk.0.attn_output.weight, 28
node_29 = GET_ROWS 128 <- 29, leaf_17
node_30 = GET_ROWS 128 <- 0, leaf_17
ffn_inp-0 = ADD 128 <- 30, 31
norm-0 = RMS_NORM 128 <- 32
ffn_norm-0 = MUL 128 <- 33, blk.0.ffn_norm.weight
ffn_gate-0 = MUL_MAT 96 <- blk.0.ffn_gate.weight, 34
ffn_silu-0 = SILU 96 <- 35
ffn_up-0 = MUL_MAT 96 <- blk.0.ffn_up.weight, 34
ffn_gate_par-0 = MUL 96 <- 36, 37
ffn_out-0 = MUL_MAT 128 <- blk.0.ffn_down.weight, 38
l_out-0 = ADD 128 <- 39, 32
norm = RMS_NORM 128 <- 40
result_norm = MUL 128 <- 41, output_norm.weight
result_output = MUL_MAT 61 <- output.weight, 42
"""
# llama-cpp-python 0.3.2, of November 2024
OLD = """
inp_embd = GET_ROWS 128x5 <- token_embd.weight, inp_tokens
norm-0 = RMS_NORM 128x5 <- 0
attn_norm-0 = MUL 128x5 <- 1, blk.0.attn_norm.weight
Qcur-0 = MUL_MAT 128x5 <- blk.0.attn_q.weight, 2
Qcur-0 = ADD 128x5 <- 3, blk.0.attn_q.bias
Qcur-0 (reshaped) = RESHAPE 32x4x5 <- 4
Qcur-0 = ROPE 32x4x5 <- 5, inp_pos
Kcur-0 = MUL_MAT 64x5 <- blk.0.attn_k.weight, 2
Kcur-0 = ADD 64x5 <- 7, blk.0.attn_k.bias
Kcur-0 (reshaped) = RESHAPE 32x2x5 <- 8
Kcur-0 = ROPE 32x2x5 <- 9, inp_pos
Vcur-0 = MUL_MAT 64x5 <- blk.0.attn_v.weight, 2
Vcur-0 = ADD 64x5 <- 11, blk.0.attn_v.bias
k_cache_view-0 = VIEW 320 <- cache_k_l0
k_cache_view-0 (copy of Kcur-0) = CPY 320 <- 10, 13
Vcur-0 (transposed) = TRANSPOSE 5x64 <- 12
v_cache_view-0 = VIEW 5x64 <- cache_v_l0
v_cache_view-0 (copy of Vcur-0 (transposed)) = CPY 5x64 <- 15, 16
v-0 = VIEW 32x32x2 <- cache_v_l0
k-0 = VIEW 32x32x2 <- cache_k_l0
q-0 = PERMUTE 32x5x4 <- 6
kq-0 = MUL_MAT 32x5x4 <- 19, 20
KQ_mask = LEAF 32x32
kq_soft_max_ext-0 = SOFT_MAX 32x5x4 <- 21, 22
kqv-0 = MUL_MAT 32x5x4 <- 18, 23
kqv_merged-0 = PERMUTE 32x4x5 <- 24
kqv_merged_cont-0 = CONT 128x5 <- 25
kqv_out-0 = MUL_MAT 128x5 <- blk.0.attn_output.weight, 26
node_27 = GET_ROWS 128 <- 27, inp_out_ids
node_28 = GET_ROWS 128 <- 0, inp_out_ids
ffn_inp-0 = ADD 128 <- 28, 29
norm-0 = RMS_NORM 128 <- 30
ffn_norm-0 = MUL 128 <- 31, blk.0.ffn_norm.weight
ffn_gate-0 = MUL_MAT 96 <- blk.0.ffn_gate.weight, 32
ffn_silu-0 = SILU 96 <- 33
ffn_up-0 = MUL_MAT 96 <- blk.0.ffn_up.weight, 32
ffn_gate_par-0 = MUL 96 <- 34, 35
ffn_out-0 = MUL_MAT 128 <- blk.0.ffn_down.weight, 36
l_out-0 = ADD 128 <- 37, 30
norm = RMS_NORM 128 <- 38
result_norm = MUL 128 <- 39, output_norm.weight
result_output = MUL_MAT 61 <- output.weight, 40
"""
OLD_FLASH = """
inp_embd = GET_ROWS 128x5 <- token_embd.weight, inp_tokens
norm-0 = RMS_NORM 128x5 <- 0
attn_norm-0 = MUL 128x5 <- 1, blk.0.attn_norm.weight
Qcur-0 = MUL_MAT 128x5 <- blk.0.attn_q.weight, 2
Qcur-0 = ADD 128x5 <- 3, blk.0.attn_q.bias
Qcur-0 (reshaped) = RESHAPE 32x4x5 <- 4
Qcur-0 = ROPE 32x4x5 <- 5, inp_pos
Kcur-0 = MUL_MAT 64x5 <- blk.0.attn_k.weight, 2
Kcur-0 = ADD 64x5 <- 7, blk.0.attn_k.bias
Kcur-0 (reshaped) = RESHAPE 32x2x5 <- 8
Kcur-0 = ROPE 32x2x5 <- 9, inp_pos
Vcur-0 = MUL_MAT 64x5 <- blk.0.attn_v.weight, 2
Vcur-0 = ADD 64x5 <- 11, blk.0.attn_v.bias
k_cache_view-0 = VIEW 320 f16 <- cache_k_l0
k_cache_view-0 (copy of Kcur-0) = CPY 320 f16 <- 10, 13
v_cache_view-0 = VIEW 320 f16 <- cache_v_l0
v_cache_view-0 (copy of Vcur-0) = CPY 320 f16 <- 12, 15
q-0 = PERMUTE 32x5x4 <- 6
k-0 = VIEW 32x256x2 f16 <- cache_k_l0
v-0 = VIEW 32x256x2 f16 <- cache_v_l0
KQ_mask (copy) = CPY 256x32 f16 <- KQ_mask
node_21 = FLASH_ATTN_EXT 32x4x5 <- 17, 18, 19, 20
 (reshaped) = RESHAPE 128x5 <- 21
kqv_out-0 = MUL_MAT 128x5 <- blk.0.attn_output.weight, 22
node_24 = GET_ROWS 128 <- 23, inp_out_ids
node_25 = GET_ROWS 128 <- 0, inp_out_ids
ffn_inp-0 = ADD 128 <- 24, 25
norm-0 = RMS_NORM 128 <- 26
ffn_norm-0 = MUL 128 <- 27, blk.0.ffn_norm.weight
ffn_gate-0 = MUL_MAT 96 <- blk.0.ffn_gate.weight, 28
ffn_silu-0 = SILU 96 <- 29
ffn_up-0 = MUL_MAT 96 <- blk.0.ffn_up.weight, 28
ffn_gate_par-0 = MUL 96 <- 30, 31
ffn_out-0 = MUL_MAT 128 <- blk.0.ffn_down.weight, 32
l_out-0 = ADD 128 <- 33, 26
norm = RMS_NORM 128 <- 34
result_norm = MUL 128 <- 35, output_norm.weight
result_output = MUL_MAT 61 <- output.weight, 36
"""
GRAPHS = {"now": NOW, "flash": FLASH, "fused": FUSED, "middle": MIDDLE, "old": OLD, "old flash": OLD_FLASH}
FLASHES = ("flash", "old flash")
T = 5
SCALE = 0.125


def graph(name, weights="f32", cache=None):
    """A recorded graph, as if its weights (norms and biases aside) and its cache had been of a type."""
    nodes = []
    for line in GRAPHS[name].strip().split("\n"):
        made, _, sources = line.partition(" <- ")
        called, _, what = made.partition(" = ")
        op, ne, *rest = what.split(" ")
        ne = [int(n) for n in ne.split("x")]
        inputs = [int(source) if source.isdigit() else source for source in sources.split(", ") if source]
        kind = next((word for word in rest if word[0] != "+"), "f32")
        if cache and ("cache" in called or called in ("k-0", "v-0")):
            kind = cache
        types = [
            nodes[source].type
            if isinstance(source, int)
            else weights
            if source.endswith(".weight") and "norm" not in source
            else "f32"
            for source in inputs
        ]
        nodes.append(
            Node(
                called,
                op,
                kind,
                (*ne, *[1] * (4 - len(ne))),
                tuple(inputs),
                tuple(types),
                offset=sum(int(word) for word in rest if word[0] == "+"),
                scale=SCALE if op == "SOFT_MAX" else 1.0,
                stored=op not in ("VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE", "SET_ROWS", "CPY"),
            )
        )
    return nodes


def config_of(name):
    layers = 2 if name == "now" else 1
    return small_config(hidden_size=128, num_attention_heads=4, num_hidden_layers=layers)


def values_of(nodes):
    """Each tensor filled with its own place in the graph; the mask is a mask, and probabilities end where it does."""
    arrays = []
    for i, node in enumerate(nodes):
        array = np.full(node.ne[::-1], i, np.float32)
        if node.op == "LEAF":
            array[...] = -np.inf
            array[..., :T, :T] = np.where(spec.causal_mask(T, T), 0, -np.inf)
        if node.op == "SOFT_MAX":
            array[..., T:] = 0
        arrays.append(array)
    return arrays


def tap_values(name, nodes=None):
    """tap -> its value, of `values_of` a graph."""
    nodes = nodes or graph(name)
    arrays = values_of(nodes)
    return {tap: how(*(arrays[i] for i in sources)) for tap, (sources, how) in taps_of(nodes, T, T).recipes.items()}


def expected_taps(config, flash):
    left_out = (".scores", ".probs") if flash else ()
    return [tap for tap in tap_names(config) if tap not in NO_TAP and not tap.endswith((*left_out, "rotary"))]
