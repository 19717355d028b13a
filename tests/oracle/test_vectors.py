"""Test vectors of single operations: written, read, judged."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from qwq_ref import spec
from qwq_ref.errors import (
    FileError,
    GoldenError,
    UsageError,
)
from qwq_ref.oracle.graph import (
    UNIT,
)
from qwq_ref.oracle.judge import vectors as judge_vectors
from qwq_ref.oracle.packs import vectors
from qwq_ref.spec.ops import to_bf16, to_fp16
from tests.support import hf
from tests.support.packs import (
    GONE,
    OPS,
    PRECISIONS,
    all_cases,
    changed,
    contents,
    interrupt,
    refused,
    replace,
    rewrite,
    set_value,
    validator,
)


def test_the_specs_own_operations_pass():
    assert set(OPS) == {case.op for case in all_cases()}
    for op, function in OPS.items():
        outcomes = judge_vectors.check_op(op, function)
        assert len(outcomes) == sum(case.op == op and "fp32" in case.rounding for case in all_cases()) > 0


def repeat(x, heads):
    """[S, K, E] -> [H, S, E]"""
    return x.repeat_interleave(heads // x.shape[1], dim=1).transpose(0, 1)


def torch_attention(q, k, v, visible):
    H = q.shape[1]
    return F.scaled_dot_product_attention(q.transpose(0, 1), repeat(k, H), repeat(v, H), visible).transpose(0, 1)


def torch_scores(q, k, visible):
    scores = q.transpose(0, 1) @ repeat(k, q.shape[1]).transpose(1, 2) * q.shape[-1] ** -0.5
    return scores.masked_fill(~visible, torch.finfo(q.dtype).min)


def torch_tables(inv_freq, scaling, positions):
    angles = positions[:, None].float() * inv_freq
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos() * scaling, angles.sin() * scaling


def torch_rope(x, cos, sin):
    x = x.transpose(0, 1)[None]
    return hf.modeling_qwen2.apply_rotary_pos_emb(x, x, cos[None], sin[None])[0][0].transpose(0, 1)


TORCH = {
    "embed": lambda ids, w: F.embedding(ids, w),
    "linear": lambda x, w, b=None: F.linear(x, w, b),
    "rmsnorm": lambda x, w, eps: F.rms_norm(x, w.shape, w, eps),
    "rope": torch_rope,
    "rope_tables": torch_tables,
    "softmax": lambda x: torch.softmax(x, dim=-1),
    "attention_scores": torch_scores,
    "attention_heads": lambda probs, v: (probs @ repeat(v, len(probs))).transpose(0, 1),
    "attention": torch_attention,
    "swiglu": lambda gate, up: F.silu(gate) * up,
}


def in_torch(function, dtype):
    """Turn a function of tensors into a function of the arrays of a case."""

    def tensor(name, x):
        if not isinstance(x, np.ndarray):
            return x
        t = torch.from_numpy(np.array(x))
        return t.to(dtype) if t.is_floating_point() and name != "inv_freq" else t

    def run(**inputs):
        y = function(**{name: tensor(name, x) for name, x in inputs.items()})
        return tuple(part.to(dtype).float().numpy() for part in y) if isinstance(y, tuple) else y.float().numpy()

    return run


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("op", TORCH)
def test_torch_passes(op, precision):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert judge_vectors.check_op(op, in_torch(TORCH[op], dtype), precision)


WRONG = {
    "embed": lambda ids, w: w[(ids + 1) % len(w)],
    "linear": lambda x, w, b=None: x @ w.T,
    "rmsnorm": lambda x, w, eps: spec.rmsnorm(x, w, 1e-6),
    "rope": lambda x, cos, sin: spec.rope(x, cos, -sin),
    "rope_tables": lambda inv_freq, scaling, positions: spec.rope_tables(inv_freq, 1.0, positions, np.float32),
    "softmax": lambda x: np.exp(np.minimum(x, 80)) / np.exp(np.minimum(x, 80)).sum(axis=-1, keepdims=True),
    "attention_scores": lambda q, k, visible: spec.ops.attention_scores(q, k, np.ones_like(visible)),
    "attention_heads": lambda probs, v: spec.ops.attention_heads(probs, v[:, ::-1]),
    "attention": lambda q, k, v, visible: spec.attention(q, np.tile(k, (1, 2, 1))[:, : k.shape[1]] * 1.01, v, visible),
    "swiglu": lambda gate, up: spec.swiglu(up, gate),
}
# Of which cases are all right: a mistake that they do not show.
SHOWN = {"linear": {"bias"}, "rope_tables": {"from-0-yarn", "from-32765-yarn", "at-131071-yarn"}}


@pytest.mark.parametrize("op", WRONG)
def test_wrong_operations_fail(op):
    with np.errstate(all="ignore"), pytest.raises(AssertionError) as caught:
        judge_vectors.check_op(op, WRONG[op])
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{op}, ") for line in lines)
    named = {line.partition(": ")[0].removeprefix(f"{op}, ") for line in lines}
    assert named <= {case.name for case in all_cases() if case.op == op}
    if op in SHOWN:
        assert named == SHOWN[op]


def test_results_that_are_none():
    case = next(case for case in all_cases() if (case.op, case.name) == ("linear", "bias"))
    tables = next(case for case in all_cases() if case.op == "rope_tables")
    for result, words in (
        (np.full(case.y.shape, np.nan), "NaN at [0, 0]"),
        (np.full(case.y.shape, np.inf), "error inf"),
        (np.full(case.y.shape, 1e300), "error inf"),
        (case.y[:-1], "shape [4, 29], not [5, 29]"),
        (case.y.T, "shape [29, 5]"),
        (None, "is of type object, not numbers"),
        (case.y.astype(complex), "is of type complex128"),
        (case.y.astype(str), "is of type"),
        ((case.y, case.y[1:]), "shapes [5, 29], [4, 29], in one pair"),
        (1.01 * case.y, "the largest difference is"),
    ):
        assert words in judge_vectors.judge(case, result, "fp32").problem
    assert not judge_vectors.judge(tables, tuple(tables.y), "fp32").problem
    assert judge_vectors.judge(tables, tuple(tables.y[::-1]), "fp32").problem
    for call in (
        lambda: judge_vectors.check_op("gelu", spec.swiglu),
        lambda: judge_vectors.check_op("swiglu", lambda gate, up: 0, "float32"),
    ):
        with pytest.raises(UsageError, match="must be one of"):
            call()


def test_hidden_scores_may_be_any_large_negative_number():
    case = next(case for case in all_cases() if case.op == "attention_scores")
    for hidden in (-np.inf, -65504.0, float(np.finfo(np.float32).min)):
        y = np.where(np.isneginf(case.y), hidden, case.y)
        assert not judge_vectors.judge(case, y, "fp32").problem
        shown = np.where(np.isneginf(case.y), 0.0, case.y)
        assert judge_vectors.judge(case, shown, "fp32").problem


def test_vectors_are_read_as_they_were_written(written):
    read = vectors.read_vectors(written)
    assert len(read) == len(all_cases()) == len({(case.op, case.name) for case in read})
    for ours, case in zip(read, all_cases(), strict=True):
        assert (ours.op, ours.name, ours.attributes, ours.rounding) == (
            case.op,
            case.name,
            case.attributes,
            case.rounding,
        )
        assert list(ours.arrays) == list(case.arrays)
        for name, array in case.arrays.items():
            assert np.array_equal(ours.arrays[name], array), (case.name, name)
        assert ours.y.tobytes() == case.y.tobytes()
        for precision, rnd in (("bf16", to_bf16), ("fp16", to_fp16)):
            held = [
                np.array_equal(rnd(x), x) for k, x in case.arrays.items() if x.dtype == np.float32 and k != "inv_freq"
            ]
            assert all(held) or precision not in case.rounding
        for precision, value in case.rounding.items():
            assert 0.999 * UNIT[precision] < value < 0.1, (case.name, precision)


def test_vectors_fit_their_schema(written):
    validator("golden-vectors.schema.json").validate(json.loads((written / "manifest.json").read_text()))


def test_two_writings_of_vectors_are_equal(written, tmp_path):
    vectors.write_vectors(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(written)


def test_where_vectors_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    for out, error, words in (("file", UsageError, "exists already"), ("file/x", FileError, "cannot be written")):
        with pytest.raises(error, match=words):
            vectors.write_vectors(tmp_path / out)
    for error_type, caught in ((KeyboardInterrupt, KeyboardInterrupt), (OSError, FileError)):
        monkeypatch.setattr(
            vectors, "write_safetensors", interrupt(error_type, 3, errno.ENOSPC, "No space left on device")
        )
        with pytest.raises(caught):
            vectors.write_vectors(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_outputs_in_files(written, outputs, precision):
    outcomes = judge_vectors.compare_vectors(written, outputs, precision)
    assert len(outcomes) == sum(precision in case.rounding for case in all_cases())
    assert not [outcome.problem for outcome in outcomes if outcome.problem]


def test_wrong_outputs_in_files(written, outputs, tmp_path):
    theirs = Path(shutil.copytree(outputs, tmp_path / "theirs"))
    case = next(case for case in all_cases() if case.op == "embed")
    np.save(theirs / "embed" / f"{case.name}.npy", 1.01 * case.y)
    (theirs / "linear.safetensors").unlink()
    outcomes = judge_vectors.compare_vectors(written, theirs)
    assert [(o.case.op, o.case.name) for o in outcomes if o.problem] == [("embed", case.name)]
    assert not any(o.case.op == "linear" for o in outcomes)
    np.save(theirs / "embed" / f"{case.name}.npy", case.y.astype(int))
    with pytest.raises(GoldenError, match="is of type"):
        judge_vectors.compare_vectors(written, theirs)
    (theirs / "rope.safetensors").write_bytes(b"broken")
    (theirs / "embed" / f"{case.name}.npy").unlink()
    shutil.rmtree(theirs / "rope", ignore_errors=True)
    with pytest.raises(GoldenError, match="is not a safetensors file"):
        judge_vectors.compare_vectors(written, theirs)
    (tmp_path / "none").mkdir()
    refused(
        lambda: judge_vectors.compare_vectors(written, tmp_path / "none"), tmp_path / "none", None, "holds no outputs"
    )
    with pytest.raises(UsageError, match="must be one of fp32, bf16, fp16, got fp8"):
        judge_vectors.compare_vectors(written, outputs, "fp8")


C0 = ("cases", 0)
VECTORS = {
    "another format": (("format",), "qwq-golden", "both", "format", "must be qwq-vectors"),
    "version 2.0": (("version",), "2.0", "both", "version", "this reader knows 1.x"),
    "version 1": (("version",), 1, "both", "version", "must be MAJOR.MINOR"),
    "no cases": (("cases",), GONE, "both", "cases", "must be a list"),
    "cases are an object": (("cases",), {}, "both", "cases", "must be a list"),
    "a case is a name": (C0, "x", "both", "cases[0]", "must be an object"),
    "no operation": ((*C0, "op"), GONE, "both", "cases[0].op", "must be letters"),
    "an unknown operation": ((*C0, "op"), "gelu", "reader", "cases[0].op", "gelu is no operation"),
    "an operation that climbs": ((*C0, "op"), "../embed", "both", "cases[0].op", "must be letters"),
    "a case that climbs": ((*C0, "case"), "../../x", "both", "cases[0].case", "must be letters"),
    "a case without a name": ((*C0, "case"), "", "both", "cases[0].case", "must be letters"),
    "a case of a list": ((*C0, "case"), ["x"], "both", "cases[0].case", "must be letters"),
    "a case twice": (("cases", 2, "case"), "bias", "reader", "cases[2].case", "bias of linear is there twice"),
    "inputs are a name": ((*C0, "inputs"), "x", "both", "cases[0].inputs", "a list of different names"),
    "an input twice": ((*C0, "inputs"), ["w", "w"], "both", "cases[0].inputs", "a list of different names"),
    "an input called y": ((*C0, "inputs"), ["w", "y"], "both", "cases[0].inputs", "a list of different names, not y"),
    "an input of a number": ((*C0, "inputs"), [1], "both", "cases[0].inputs", "a list of different names"),
    "attributes of text": ((*C0, "attributes"), {"eps": "1"}, "both", "cases[0].attributes", "an object of numbers"),
    "attributes are null": ((*C0, "attributes"), None, "both", "cases[0].attributes", "an object of numbers"),
    "rounding is a number": ((*C0, "rounding"), 1e-7, "both", "cases[0].rounding", "an object of numbers"),
    "rounding is null": ((*C0, "rounding", "fp32"), None, "both", "cases[0].rounding", "an object of numbers"),
    "rounding of text": ((*C0, "rounding", "fp32"), "x", "both", "cases[0].rounding.fp32", "must be a number >= 0"),
    "negative rounding": ((*C0, "rounding", "bf16"), -1, "both", "cases[0].rounding.bf16", "must be a number >= 0"),
    "huge rounding": ((*C0, "rounding", "bf16"), 1e99, "both", "cases[0].rounding.bf16", "must be a number >= 0"),
}


@pytest.mark.parametrize("case", VECTORS)
def test_broken_vectors(written, tmp_path, case):
    where, value, who, field, words = VECTORS[case]
    folder = Path(shutil.copytree(written, tmp_path / "v"))
    values = changed(json.loads((folder / "manifest.json").read_text()), where, value)
    (folder / "manifest.json").write_text(json.dumps(values))
    assert validator("golden-vectors.schema.json").is_valid(values) == (who == "reader")
    refused(lambda: vectors.read_vectors(folder), folder / "manifest.json", field, words)


def test_broken_files_of_vectors(written, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "v"))
    file = folder / "embed.safetensors"
    name = "first-last-repeated"
    for change, field, words in (
        (lambda tensors: tensors.pop(f"{name}/y"), f"{name}/y", "is missing"),
        (replace(f"{name}/w", lambda x: x.astype(np.float16)), f"{name}/w", "must be F32, is F16"),
        (set_value(f"{name}/y", (0, 0), np.nan), f"{name}/y", "holds a NaN"),
    ):
        shutil.copy(written / "embed.safetensors", file)
        rewrite(file, change)
        refused(lambda: vectors.read_vectors(folder), file, field, words)
    file.unlink()
    refused(lambda: vectors.read_vectors(folder), file, None, "cannot be opened")
    refused(lambda: vectors.read_vectors(tmp_path / "no"), tmp_path / "no" / "manifest.json", None, "cannot be opened")


def test_later_vectors_are_read(written, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "v"))
    values = json.loads((folder / "manifest.json").read_text())
    new = {"op": "gelu", "case": "x", "inputs": ["x"], "attributes": {}, "rounding": {"fp8": 0.1}, "more": 1}
    values |= {"version": "1.3", "more": 1, "cases": [*values["cases"], new]}
    (folder / "manifest.json").write_text(json.dumps(values))
    validator("golden-vectors.schema.json").validate(values)
    assert len(vectors.read_vectors(folder)) == len(all_cases())
