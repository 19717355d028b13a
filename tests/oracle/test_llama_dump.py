"""Recordings of llama.cpp in a folder: what is read, and what is refused. These tests need no llama.cpp."""

import json
import sys

import numpy as np
import pytest

from qwq_ref.errors import GoldenError, UsageError
from qwq_ref.oracle.adapters import llama_cpp
from qwq_ref.oracle.adapters.llama_cpp import capture, read_dump
from qwq_ref.oracle.graph import phases_of
from tests.support.llama_graphs import T, graph, tap_values, values_of


@pytest.fixture
def dump(tmp_path):
    """The folder that `capture` writes, of a recorded graph."""
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
