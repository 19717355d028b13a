"""The oracle: whether an implementation's numbers are right, and if not, where and why.

    from qwq_ref import oracle

    def test_my_model():
        oracle.check("gqa", my_taps)          # {"model.layers.0.self_attn.q_proj": array, ...}

`check` raises `DivergenceError`, an AssertionError that names the first divergence and the mistake behind it. `compare`
returns the same as a `Report`. `record` makes a golden pack of any model.

Its packages, each of which imports only those before it:

    matrix, distance        a matrix as floats and as a quantised file stores it, the distance of two tensors
    graph, walk             the model as a table of operations, one pass over it
    packs                   golden packs and test vectors: written, read, and shipped
    adapters                the candidate's tensors, from files, from torch, from llama.cpp
    judge                   which taps are wrong
    explain                 which known mistake makes them wrong
    render                  the report as text, JSON, JUnit and HTML
"""

from __future__ import annotations

from .adapters.candidate import Candidate
from .adapters.torch_hooks import torch_taps
from .api import check, compare
from .judge.engine import engine_taps
from .judge.vectors import check_op
from .packs.pack import Golden
from .packs.record import record
from .packs.shipped import conformance, open_golden, path
from .render.report import DivergenceError, Report

__all__ = [
    "Candidate",
    "DivergenceError",
    "Golden",
    "Report",
    "check",
    "check_op",
    "compare",
    "conformance",
    "engine_taps",
    "open_golden",
    "path",
    "record",
    "torch_taps",
]
