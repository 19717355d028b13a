"""Packs of quantised models: GGUF, AWQ, GPTQ and MLX, recorded from the values that independent decoders give."""

import re
import subprocess
import sys

import numpy as np
import pytest

from qwq_ref.config import Config
from qwq_ref.formats import open_floats
from qwq_ref.formats.decoded import DecodedSource
from qwq_ref.oracle import Golden, compare, record
from qwq_ref.oracle.graph import phases_of
from tests.oracle.test_golden_cli import fails
from tests.support import gguf_models, quantised_models
from tests.support.packs import manifest_of, spec_run, validator
from tests.support.real_models import QWEN_05B, real_model

IDS, DECODE = [3, 1, 4, 1, 5, 9, 2], 2
PHASES = phases_of(IDS, DECODE)
MIXED = ("Q4_K", "Q6_K", "Q5_0", "IQ3_S")  # of the last, the core has no format


def _gguf(folder):
    config = gguf_models.peer_config(num_hidden_layers=2)
    decoded = gguf_models.write_types(folder / "model.gguf", config, gguf_models.mixture(MIXED))
    values = {name: decoded[gguf_models.gguf_tensor_name(name)] for name in config.tensors()}
    return folder / "model.gguf", config, values


def _checkpoint(folder, settings, matrix, **where):
    config = Config.from_dict(quantised_models.values_of())
    tensors, values = quantised_models.model(config, matrix)
    return quantised_models.write(folder / "model", config, tensors, settings, **where), config, values


def _gptq_matrix(rng, N, K):
    return quantised_models.gptq_matrix(rng, N, K, order=quantised_models.shuffled)


SOURCES = {
    "gguf": _gguf,
    "awq": lambda folder: _checkpoint(folder, quantised_models.CONFIG, quantised_models.awq_matrix),
    "gptq": lambda folder: _checkpoint(
        folder, {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}, _gptq_matrix
    ),
    "mlx": lambda folder: _checkpoint(
        folder, {"bits": 4, "group_size": 64}, quantised_models.mlx_matrix, key="quantization"
    ),
}
TYPES = {
    "gguf": dict(zip(MIXED, (4, 4, 4, 4), strict=True)) | {"F32": 11},
    "awq": {"AWQ 4-bit": 14, "F16": 13},
    "gptq": {"GPTQ 4-bit": 14, "F16": 13},
    "mlx": {"MLX 4-bit": 14, "F16": 13},
}


@pytest.fixture(scope="module", params=SOURCES)
def made(request, tmp_path_factory):
    """-> kind, path, config, the values of an independent decoder"""
    return request.param, *SOURCES[request.param](tmp_path_factory.mktemp(request.param))


def test_a_pack_of_a_quantised_model(qwq, made, tmp_path, monkeypatch):
    """It is that of the decoded values, says what it was made from, and is read a block of rows at a time."""
    kind, path, config, values = made
    record(config, values, tmp_path / "floats", IDS, DECODE)
    monkeypatch.setattr(DecodedSource, "__getitem__", lambda *_: pytest.fail("a tensor was read whole"))
    out = tmp_path / "pack"
    status, stdout, stderr = qwq("record", "-m", path, "--ids", "3,1,4,1,5,9,2", "--decode", DECODE, "-o", out)
    assert (status, stdout) == (0, "")
    first, second = stderr.splitlines()
    assert first.startswith(f"{out}: 5 tokens and 2 steps of decoding, ")
    assert second == f"next: qwq golden compare {out} TAPS -m {path}"
    mine, wanted = manifest_of(out), manifest_of(tmp_path / "floats")
    assert (mine.files, mine.weights, mine.rounding) == (wanted.files, wanted.weights, wanted.rounding)
    assert (mine.source.kind, mine.source.types) == (kind, TYPES[kind])
    assert wanted.source is None
    validator("golden-pack.schema.json").validate(mine.to_dict())


def test_a_comparison_with_a_quantised_model(qwq, made, tmp_path):
    """The model's file gives the weights with which causes are named, and the report says what the pack is from."""
    kind, path, config, values = made
    with open_floats(path) as source:
        record(config, source, tmp_path / "pack", IDS, DECODE, name="small")
    taps = spec_run(config, values, PHASES)
    np.savez(tmp_path / "right.npz", **{f"{phase}/{tap}": x for phase, of in taps.items() for tap, x in of.items()})
    status, stdout, stderr = qwq("compare", tmp_path / "pack", tmp_path / "right.npz", "-m", path)
    assert (status, stderr) == (0, "")
    names = re.escape(", ".join(list(TYPES[kind])[:-1]))
    assert re.search(rf"\(small, from {kind} with {names}, 5 tokens \+ 2 steps of decoding\)", stdout)
    changed = {phase: {tap: x for tap, x in of.items() if tap == "lm_head"} for phase, of in taps.items()}
    biased = {name: np.zeros_like(w) if name.endswith("v_proj.bias") else w for name, w in values.items()}
    for phase, of in spec_run(config, biased, PHASES).items():
        changed[phase]["lm_head"] = of["lm_head"]
    report = compare(tmp_path / "pack", changed, model=path)
    assert (report.first.tap, report.cause) == ("lm_head", "v-bias-missing"), report
    assert report.to_dict()["source"] == {"kind": kind, "types": TYPES[kind]}


def test_a_pack_with_the_model_holds_the_decoded_values(qwq, made, tmp_path):
    kind, path, _, values = made
    out = tmp_path / "pack"
    status, _, stderr = qwq("record", "-m", path, "--ids", "3,1,4", "-o", out, "--include-weights")
    assert (status, stderr.splitlines()[1]) == (0, f"next: qwq golden compare {out} TAPS")
    assert manifest_of(out).source.kind == kind
    with Golden.open(out) as golden, open_floats(golden.model_path) as copy:
        assert all(np.array_equal(copy[name], value) for name, value in values.items())


def test_without_a_tokenizer_the_file_is_named(qwq, made, tmp_path):
    _, path, *_ = made
    status, stdout, stderr = qwq("record", "-m", path, "-p", "a", "-o", tmp_path / "pack")
    fails((status, stdout, stderr), 2, str(path), "give token ids with --ids")


SCRIPT = """
import sys
from qwq_ref.cli import main
from qwq_ref.host.memory import peak_bytes
status = main(sys.argv[1:])
print(peak_bytes())
raise SystemExit(status)
"""


@pytest.mark.real
def test_a_pack_of_a_real_file(tmp_path):
    """The logits are those of the engine in fp32 on the decoded weights. The decoded embedding alone takes 545 MB."""
    path, out = real_model(QWEN_05B), tmp_path / "pack"
    command = ["golden", "record", "-m", path, "-p", "def is_prime(n):", "-o", out, "--decode", 1, "--taps", "lm_head"]
    command += ["--max-memory", "300M", "-t", 1]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300 << 20
    manifest = manifest_of(out)
    assert manifest.token_ids == [750, 374, 38217, 1445, 1648]
    assert manifest.source.types == {"Q5_0": 133, "F32": 121, "Q8_0": 13, "Q6_K": 12, "Q4_K": 12}
    report = compare(out, "qwq:fp32", model=path, explain=False, coverage=False)
    assert report.passed, report
