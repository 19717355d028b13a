"""llama.cpp as a candidate: which of its tensors is which, and that the real one computes what the spec does.

The graphs below were recorded from three versions; the tests that read them need nothing. Those that run llama.cpp
need llama-cpp-python and gguf, which the test dependencies do not include, and are skipped without.
"""

import dataclasses
import json
import sys

import numpy as np
import pytest

from qwq_ref import spec
from qwq_ref.config import Config
from qwq_ref.errors import GoldenError, UsageError
from qwq_ref.interop.llama_cpp.bindings import Library
from qwq_ref.interop.llama_cpp.peer import GGUF_NAMES
from qwq_ref.oracle.adapters import llama_cpp
from qwq_ref.oracle.adapters.candidate import fit
from qwq_ref.oracle.adapters.llama_cpp import (
    Node,
    capture,
    read_dump,
    taps_of,
)
from qwq_ref.oracle.graph import (
    Phase,
    letters,
    phases_of,
    shape_of,
    tap_names,
)
from tests.support.models import config_values, random_weights, yarn

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


def small_config(**changes):
    """llama.cpp takes no model whose heads together are not as wide as the residual stream."""
    values = {"hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}
    return Config.from_dict(config_values(intermediate_size=96, vocab_size=61, **values | changes))


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
    return [tap for tap in tap_names(config) if tap not in llama_cpp.NO_TAP and not tap.endswith((*left_out, "rotary"))]


# ------------------------------------------------------------------------------------ names, without llama.cpp


@pytest.mark.parametrize("name", GRAPHS)
def test_every_tap_is_found(name):
    config = config_of(name)
    found = tap_values(name)
    assert sorted(found) == sorted(expected_taps(config, name in FLASHES))
    for tap, value in found.items():
        value, last = fit(value, shape_of(tap, config, Phase("prompt", 0, (0,) * T)))
        behind_the_last_attention = tap.startswith(f"model.layers.{config.L - 1}.") and tap.split(".", 3)[3].startswith(
            ("resid_mid", "resid_post", "post_", "mlp")
        )
        assert last == (behind_the_last_attention or tap in ("model.norm", "lm_head")), tap
        assert value.shape[letters(tap).index("T")] == (1 if last else T)


@pytest.mark.parametrize("name", GRAPHS)
def test_nothing_is_unknown(name):
    taps = taps_of(graph(name), T, T)
    assert taps.unknown == ()
    assert [note for note in taps.notes if "rows" in note]


@pytest.mark.parametrize(
    ("name", "places"),
    [
        (
            "now",
            "embed_tokens 0, 0.resid_pre 0, 0.input_layernorm 2, 0.self_attn.q_matmul 3, 0.self_attn.q_proj 4, "
            "0.self_attn.q_rope 6, 0.self_attn.v_matmul 7, 0.self_attn.v_proj 8, 0.self_attn.k_matmul 10, "
            "0.self_attn.k_proj 11, 0.self_attn.k_rope 13, 0.self_attn.heads 31, 0.self_attn.o_proj 32, "
            "0.resid_mid 33, 0.post_attention_layernorm 35, 0.mlp.gate_proj 36, 0.mlp.up_proj 37, 0.mlp.act 38, "
            "0.mlp.down_proj 39, 0.resid_post 40, 1.resid_pre 40, 1.self_attn.k_rope 53, 1.self_attn.o_proj 71, "
            "1.resid_mid 74, 1.resid_post 81, model.norm 83, lm_head 84",
        ),
        ("flash", "0.self_attn.heads 24, 0.self_attn.o_proj 26"),
        ("fused", "0.self_attn.q_matmul 3, 0.self_attn.v_proj 4, 0.self_attn.q_rope 6, 0.self_attn.k_rope 9"),
        ("middle", "0.self_attn.q_matmul 3, 0.self_attn.heads 28, 0.self_attn.o_proj 29, 0.mlp.act 38"),
        ("old", "0.self_attn.heads 26, 0.self_attn.o_proj 27, 0.mlp.up_proj 35, 0.mlp.act 36"),
        ("old flash", "0.self_attn.heads 21, 0.self_attn.o_proj 23"),
    ],
)
def test_each_is_the_right_one(name, places):
    found = tap_values(name)
    for item in places.split(", "):
        end, place = item.split(" ")
        tap = next(tap for tap in found if tap.endswith(end))
        np.testing.assert_array_equal(found[tap], int(place), err_msg=tap)


@pytest.mark.parametrize("name", ["now", "middle", "old", "fused"])
def test_scores_are_scaled_and_masked_and_cropped(name):
    nodes = graph(name)
    softmax = next(node for node in nodes if node.op == "SOFT_MAX")
    found = tap_values(name)
    wanted = np.where(spec.causal_mask(T, T), softmax.inputs[0] * SCALE, -np.inf)
    np.testing.assert_array_equal(found["model.layers.0.self_attn.scores"], np.broadcast_to(wanted, (4, T, T)))
    assert found["model.layers.0.self_attn.probs"].shape == (4, T, T)


def test_a_fused_product_is_cut_in_three():
    nodes = graph("fused")
    arrays = values_of(nodes)
    arrays[3][...] = np.arange(256)
    recipes = taps_of(nodes, T, T).recipes
    for letter, start, stop in (("q", 0, 128), ("k", 128, 192), ("v", 192, 256)):
        sources, how = recipes[f"model.layers.0.self_attn.{letter}_matmul"]
        np.testing.assert_array_equal(how(*(arrays[i] for i in sources)), np.tile(np.arange(start, stop), (T, 1)))


def test_a_tensor_copied_to_another_device_is_the_same_tensor():
    """The scheduler renames copies: "CUDA0#ffn_inp-0#0". Of the three that are called Qcur-0 the last one is copied."""
    nodes = graph("now")

    def copied(node):
        names = (source if isinstance(source, str) else nodes[source].name for source in node.inputs)
        return dataclasses.replace(node, inputs=tuple(f"CUDA0#{name}#0" for name in names))

    far = [
        copied(node) if node.op in ("MUL_MAT", "MUL", "SWIGLU") and node.name[:2] != "kq" else node for node in nodes
    ]
    here, there = tap_values("now"), tap_values("now", far)
    assert here.keys() == there.keys()
    for tap, value in here.items():
        np.testing.assert_array_equal(there[tap], value, err_msg=tap)


@pytest.mark.parametrize(
    ("name", "weights", "cache", "before", "after"),
    [
        ("now", "f32", "f32", "fp32", "fp32"),
        ("now", "f32", "f16", "fp32", "fp16"),
        ("now", "f16", "f32", "fp16", "fp16"),
        ("now", "bf16", "f16", "bf16", "bf16"),
        ("now", "q4_K", "f16", "bf16", "bf16"),
        ("flash", "f32", "f16", "fp32", "fp16"),
        ("old", "f32", "f16", "fp32", "fp16"),
    ],
)
def test_precision_is_that_of_the_coarsest_product_so_far(name, weights, cache, before, after):
    taps = taps_of(graph(name, weights, cache), T, T)
    assert taps.precision["model.layers.0.input_layernorm"] == "fp32"
    assert taps.precision["model.layers.0.self_attn.k_rope"] == before
    assert taps.precision["model.layers.0.self_attn.heads"] == after
    assert taps.precision["lm_head"] == after
    assert any(cache in note for note in taps.notes) == (cache != "f32")
    assert any(f"weights are {weights}" in note for note in taps.notes) == (weights != "f32")


def test_two_batches_are_not_one():
    with pytest.raises(GoldenError, match=r"here: model.*computed twice.*n_ubatch"):
        taps_of([*graph("now"), *graph("now")], T, T, "here")


def test_what_is_not_of_the_model_is_named():
    extra = Node(
        "adapter-0", "MUL_MAT", "f32", (128, 5, 1, 1), ("blk.0.adapter.weight", 2), ("f32", "f32"), stored=True
    )
    assert taps_of([*graph("now"), extra], T, T).unknown == ("adapter-0",)


# ------------------------------------------------------------------------------------ dumps, without llama.cpp


@pytest.fixture
def dump(tmp_path):
    """What `capture` leaves behind, of a recorded graph."""
    phases, nodes = phases_of(range(T), 0), graph("now")
    folder = tmp_path / "dump"
    (folder / "prompt").mkdir(parents=True)
    for i, (node, value) in enumerate(zip(nodes, values_of(nodes), strict=True)):
        if node.stored:
            np.save(llama_cpp._file(folder, "prompt", i, node), value)
    llama_cpp._write_index(folder, {"model": "m.gguf"}, phases, [nodes])
    return folder


def test_a_dump_is_read(dump):
    candidate = read_dump(dump)
    assert candidate.token_ids == list(range(T))
    assert candidate.precision[""] == "fp32"
    assert candidate.unknown == ()
    assert "model m.gguf" in candidate.notes
    wanted = tap_values("now")
    assert {tap for _, tap in candidate.tensors} == set(wanted)
    for (_, tap), load in candidate.tensors.items():
        np.testing.assert_array_equal(load(), wanted[tap])


def spoil_index(dump, change):
    path = dump / "dump.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def spoil_node(i, **fields):
    return lambda values: values["phases"][0]["nodes"][i].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(format="other"), "format"),
        (lambda values: values.pop("phases"), "phases"),
        (lambda values: values.update(phases=[3]), "not a dump"),
        (lambda values: values["phases"][0].update(name="../../up"), "prompt, decode-0"),
        (lambda values: values["phases"][0].update(ids=[]), "have tokens"),
        (lambda values: values["phases"][0].update(ids="x"), "not a dump"),
        (lambda values: values["phases"][0].update(nodes=[]), "no tensor of a Qwen2"),
        (spoil_node(4, inputs=[4, "x"]), "later one"),
        (spoil_node(4, inputs=[-1, "x"]), "later one"),
        (spoil_node(4, inputs=[3]), "inputs of"),
        (spoil_node(4, ne=[1, 2]), "ne"),
        (spoil_node(4, type="q4_K"), "not recorded"),
        (spoil_node(4, ne=[1 << 60, 1 << 60, 1, 1]), "must hold"),
        (spoil_node(4, ne=[128, 4, 1, 1]), "must hold"),
        (spoil_node(4, type="f16"), "must hold"),
        (spoil_node(28, ne=[4, 5, 4, 1]), "must hold"),
    ],
)
def test_a_spoiled_index_is_refused(dump, change, message):
    spoil_index(dump, change)
    with pytest.raises(GoldenError, match=message):
        [load() for load in read_dump(dump).tensors.values()]


@pytest.mark.parametrize(
    "data",
    [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((", b"PK\x03\x04", b"\x93NUMPY\x09\x09" + b"x" * 99],
)
def test_a_spoiled_file_is_refused(dump, data):
    path = next((dump / "prompt").glob("00004-ADD-Qcur-0.npy"))
    whole = path.read_bytes()
    for bad in (data, whole[:-1], whole + b"\0", whole.replace(b"<f4", b"|O ")):
        path.write_bytes(bad)
        with pytest.raises(GoldenError, match="Qcur-0"):
            read_dump(dump).tensors["prompt", "model.layers.0.self_attn.q_proj"]()
    path.unlink()
    with pytest.raises(GoldenError, match="cannot be opened"):
        read_dump(dump).tensors["prompt", "model.layers.0.self_attn.q_proj"]()


def test_attention_beyond_the_positions_is_refused(dump):
    path = next((dump / "prompt").glob("*kq_soft_max-0.npy"))
    probs = np.load(path)
    probs[..., T] = 0.1
    np.save(path, probs)
    with pytest.raises(GoldenError, match=r"probs: looks at other cells than the first 5"):
        read_dump(dump).tensors["prompt", "model.layers.0.self_attn.probs"]()


def test_settings_that_cannot_be(tmp_path):
    with pytest.raises(UsageError, match="cache_type"):
        capture("m.gguf", phases_of([1, 2], 0), cache_type="f64")
    with pytest.raises(UsageError, match="phases"):
        capture("m.gguf", ())


def test_without_the_package(monkeypatch):
    for name in ("llama_cpp", "llama_cpp.llama_cpp"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"pip install 'qwq_ref\[bench\]'"):
        capture("m.gguf", phases_of([1, 2], 0))


# ------------------------------------------------------------------------------------ the real one


@pytest.fixture
def gguf():
    pytest.importorskip("llama_cpp", reason="runs the real llama.cpp: pip install llama-cpp-python gguf")
    return pytest.importorskip("gguf", reason="writes models for the real llama.cpp: pip install gguf")


def write_gguf(gguf, path, config, weights, kind="F32", fused=False, metadata=()):
    """A model without a vocabulary. Matrices are of the type `kind`, vectors float32, as in every GGUF file."""
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.D)
    writer.add_block_count(config.L)
    writer.add_feed_forward_length(config.F)
    writer.add_head_count(config.H)
    writer.add_head_count_kv(config.K)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.V)
    writer.add_tokenizer_model("no_vocab")
    if config.rope.type == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.rope.factor)
        writer.add_rope_scaling_orig_ctx_len(config.rope.original_max_position_embeddings)
    for key, value in metadata:
        writer.add_float32(f"qwen2.{key}", value)
    tensors = {}
    for name in config.tensors():
        module, leaf = name.rsplit(".", 1)
        parts = module.split(".", 3)
        layer = f"blk.{parts[2]}." if len(parts) == 4 else ""
        tensors[f"{layer}{GGUF_NAMES[parts[3] if layer else module]}.{leaf}"] = np.asarray(weights[name], np.float32)
    if fused:
        for layer in range(config.L):
            for leaf in ("weight", "bias"):
                parts = [tensors.pop(f"blk.{layer}.attn_{letter}.{leaf}") for letter in "qkv"]
                tensors[f"blk.{layer}.attn_qkv.{leaf}"] = np.concatenate(parts)
    for name, value in tensors.items():
        of = gguf.GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(value, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def stored_as(weights, kind):
    """The weights that the file holds."""
    rounded = {"F32": spec.ops.exact, "F16": spec.ops.to_fp16, "BF16": spec.ops.to_bf16}[kind]
    return {name: rounded(value) if value.ndim == 2 else value for name, value in weights.items()}


def golden(config, weights, phases):
    """(phase, tap) -> the value in float64."""
    values, cache = {}, None
    for phase in phases:
        tap = lambda name, value, phase=phase: values.update({(phase.name, name): value})  # noqa: E731
        _, cache = spec.forward(config, weights, phase.ids, cache, tap, np.float64)
    return values


def relative_errors(config, candidate, right, phases):
    """(phase, tap) -> root mean square of the difference over that of the golden value, where that is finite."""
    errors = {}
    for phase in phases:
        for tap in tap_names(config):
            if (phase.name, tap) not in candidate.tensors:
                continue
            value, last = fit(candidate.tensors[phase.name, tap](), shape_of(tap, config, phase))
            wanted = right[phase.name, tap]
            if last:
                wanted = np.take(wanted, [-1], letters(tap).index("T"))
            finite = np.isfinite(wanted)
            np.testing.assert_array_equal(np.isfinite(value), finite, err_msg=tap)
            off = value[finite].astype(np.float64) - wanted[finite]
            errors[phase.name, tap] = np.sqrt(np.sum(off**2) / np.sum(wanted[finite] ** 2))
    return errors


PHASES = phases_of([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], 2)


def errors_of(gguf, tmp_path, config, kind="F32", phases=PHASES, harsh=False, fused=False, metadata=(), **settings):
    """-> candidate, `relative_errors` of a random model."""
    weights = stored_as(random_weights(config, 0, harsh), kind)
    path = tmp_path / "m.gguf"
    write_gguf(gguf, path, config, weights, kind, fused, metadata)
    try:
        candidate = capture(path, phases, threads=1, **settings)
    except GoldenError as problem:
        if fused and "does not load" in str(problem):
            pytest.skip("this llama.cpp is older than files with a fused product")
        raise
    return candidate, relative_errors(config, candidate, golden(config, weights, phases), phases)


@pytest.mark.parametrize(
    ("changes", "settings", "limit"),
    [
        ({}, {}, 1e-6),
        ({}, {"all_logits": False}, 1e-6),
        ({}, {"fused": True}, 1e-6),
        ({}, {"harsh": True}, 1e-5),
        ({"tie_word_embeddings": True}, {}, 1e-6),
        ({"num_key_value_heads": 6}, {}, 1e-6),
        ({"num_key_value_heads": 1, "num_hidden_layers": 11}, {}, 1e-6),
        ({"num_hidden_layers": 1}, {"all_logits": False}, 1e-6),
        ({"rope_scaling": yarn()}, {}, 1e-6),
        ({"rope_scaling": yarn(factor=40.0, original_max_position_embeddings=8)}, {}, 1e-6),
        ({}, {"cache_type": "f16"}, 1e-3),
        ({}, {"kind": "F16"}, 1e-3),
        ({}, {"kind": "F16", "cache_type": "f16"}, 2e-3),
        ({}, {"kind": "BF16"}, 1e-2),
        ({}, {"flash_attention": True}, 2e-3),
        ({}, {"flash_attention": True, "cache_type": "f16", "kind": "BF16"}, 1e-2),
        ({}, {"flash_attention": True, "fused": True, "all_logits": False}, 2e-3),
    ],
    ids=str,
)
def test_it_computes_what_the_spec_does(gguf, tmp_path, changes, settings, limit):
    config = small_config(**changes)
    candidate, errors = errors_of(gguf, tmp_path, config, **settings)
    taps = expected_taps(config, settings.get("flash_attention"))
    assert set(candidate.tensors) == {(phase.name, tap) for phase in PHASES for tap in taps}
    assert candidate.unknown == ()
    worst = max(errors, key=errors.get)
    assert errors[worst] < limit, f"{worst}: {errors[worst]:.1e}"
    exact = "model.embed_tokens", "model.layers.0.resid_pre"
    assert all(errors[phase.name, tap] == 0 for phase in PHASES for tap in exact)
    if limit < 1e-4:
        assert candidate.precision == dict.fromkeys(candidate.precision, "fp32")
    else:  # what came before the first rounding is exact to float32, and says so
        fine = [tap for tap, kind in candidate.precision.items() if kind == "fp32"]
        assert "model.layers.0.input_layernorm" in fine
        assert all(errors[phase.name, tap] < 1e-6 for phase in PHASES for tap in fine)


def test_a_dump_holds_what_was_captured(gguf, tmp_path):
    config = small_config()
    weights = random_weights(config, 0)
    write_gguf(gguf, tmp_path / "m.gguf", config, weights)
    here = capture(tmp_path / "m.gguf", PHASES, threads=1, cache_type="bf16")
    there = capture(tmp_path / "m.gguf", PHASES, tmp_path / "dump", threads=1, cache_type="bf16")
    assert set(here.tensors) == set(there.tensors)
    assert (here.precision, here.token_ids) == (there.precision, there.token_ids)
    for key, load in here.tensors.items():
        np.testing.assert_array_equal(load(), there.tensors[key](), err_msg=str(key))
    with pytest.raises(UsageError, match="exists already"):
        capture(tmp_path / "m.gguf", PHASES, tmp_path / "dump")


def test_watching_changes_nothing(gguf, tmp_path):
    """The logits are those of a run without the callback, to the bit; on a CPU there is nothing to fuse."""
    config = small_config()
    write_gguf(gguf, tmp_path / "m.gguf", config, random_weights(config, 0))
    phase = PHASES[0]
    seen = capture(tmp_path / "m.gguf", [phase], threads=1).tensors["prompt", "lm_head"]()

    library = Library(GoldenError)
    settings = {"n_ctx": 32, "n_batch": 32, "n_ubatch": 32, "type_k": 0, "type_v": 0}
    path = tmp_path / "m.gguf"
    with (
        library.log() as log,
        library.model(path, {"n_gpu_layers": 0}, log) as model,
        library.context(path, model, settings, False, log) as context,
        library.batch(phase.ids, 0, [True] * phase.T) as batch,
    ):
        assert library.decode(context, batch) == 0
        unseen = np.ctypeslib.as_array(library.api.llama_get_logits(context), (phase.T, config.V)).copy()
    np.testing.assert_array_equal(seen, unseen)


def test_yarn_of_a_gguf_file(gguf, tmp_path):
    """`attn_factor` multiplies 0.1 ln(factor) + 1, and the betas of a Qwen2 file are not read: they are a setting."""
    short = {"original_max_position_embeddings": 64}
    config = small_config(rope_scaling=yarn(attention_factor=0.7, **short))
    by_file = ("rope.scaling.attn_factor", 0.7 / (0.1 * np.log(4) + 1))
    _, errors = errors_of(gguf, tmp_path, config, metadata=[by_file])
    assert max(errors.values()) < 1e-6
    config = small_config(rope_scaling=yarn(beta_fast=8.0, beta_slow=2.0, **short))
    _, errors = errors_of(gguf, tmp_path, config, context={"yarn_beta_fast": 8.0, "yarn_beta_slow": 2.0})
    assert max(errors.values()) < 1e-6


def test_what_llama_cpp_refuses(gguf, tmp_path):
    path = tmp_path / "m.gguf"
    phases = phases_of([1, 2], 0)
    with pytest.raises(GoldenError, match=r"m\.gguf: llama\.cpp does not load it"):
        capture(path, phases)
    config = small_config(hidden_size=64)  # not H E
    write_gguf(gguf, path, config, random_weights(config, 0), metadata=())
    with pytest.raises(GoldenError, match="does not load it"):
        capture(path, phases)
    config = small_config()
    write_gguf(gguf, path, config, random_weights(config, 0))
    with pytest.raises(GoldenError, match="prompt: has tokens that are not among the model's 61"):
        capture(path, phases_of([1, 61], 0), tmp_path / "dump")
    assert not list(tmp_path.glob("*dump*"))
    with pytest.raises(GoldenError, match=r"decode-0: llama\.cpp cannot decode it: status 1"):
        capture(path, phases_of([1] * 257, 1), context={"n_ctx": 256})
    with pytest.raises(GoldenError, match="makes no context for it"):
        capture(path, phases, cache_type="q8_0")  # V only with flash attention
    with pytest.raises(GoldenError, match="n_ubatch"):
        capture(path, phases_of([1] * 80, 0), context={"n_ubatch": 32})
    for context in ({"n_nothing": 1}, {"n_batch": "many"}):
        with pytest.raises(UsageError, match="context"):
            capture(path, phases, context=context)


def test_an_interrupt_in_the_callback_is_raised(gguf, tmp_path, monkeypatch):
    config = small_config()
    write_gguf(gguf, tmp_path / "m.gguf", config, random_weights(config, 0))

    def interrupted(self, address):
        raise KeyboardInterrupt

    monkeypatch.setattr(llama_cpp._Library, "values", interrupted)
    with pytest.raises(KeyboardInterrupt):
        capture(tmp_path / "m.gguf", PHASES, tmp_path / "dump")
    assert not list(tmp_path.glob("*dump*"))
