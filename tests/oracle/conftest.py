"""Fixtures of several files."""

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from qwq_ref.cli import main
from qwq_ref.formats.write import write_safetensors
from qwq_ref.oracle.packs import vectors
from qwq_ref.oracle.packs.record import record
from qwq_ref.oracle.packs.sizes import SIZES
from tests.support.packs import (
    CONFIG,
    DECODE,
    IDS,
    LAST,
    OPS,
    PHASES,
    QROPE,
    WEIGHTS,
    all_cases,
    spec_run,
    validator,
)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """A pack of the small model, with the model in it. Tests do not change it."""
    return record(CONFIG, WEIGHTS, tmp_path_factory.mktemp("recorded") / "pack", IDS, DECODE, include_weights=True)


@pytest.fixture
def pack(recorded, tmp_path):
    """A copy of `recorded` that tests may break."""
    return Path(shutil.copytree(recorded, tmp_path / "pack"))


@pytest.fixture(scope="session")
def reduced(tmp_path_factory):
    """Size -> a pack without its model, so that only golden values judge."""
    folder = tmp_path_factory.mktemp("reduced")
    return {size: record(CONFIG, WEIGHTS, folder / size, IDS, DECODE, sizes=size) for size in SIZES}


@pytest.fixture(scope="session")
def schema():
    return validator("golden-pack.schema.json")


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors") / "vectors"
    assert vectors.write_vectors(folder) == len(all_cases())
    return folder


@pytest.fixture(scope="session")
def outputs(tmp_path_factory):
    """Outputs that are right in all precisions: half of the operations as .npy, half as safetensors."""
    folder = tmp_path_factory.mktemp("outputs")
    for i, op in enumerate(OPS):
        results = {case.name: case.y for case in all_cases() if case.op == op}
        if i % 2:
            write_safetensors(
                folder / f"{op}.safetensors", {n + "/y" * (i % 4 == 1): y for n, y in results.items()}, "F32"
            )
        else:
            (folder / op).mkdir()
            for name, y in results.items():
                np.save(folder / op / f"{name}.npy", y)
    return folder


@pytest.fixture
def qwq(capsys, monkeypatch):
    """qwq golden ... -> (exit status, stdout, stderr)"""
    for library in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM"):
        monkeypatch.setenv(f"{library}_NUM_THREADS", "1")  # -t sets them; they are restored

    def run(*arguments, text=None):
        if text is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        capsys.readouterr()
        try:
            status = main(["golden", *(str(argument) for argument in arguments)])
        except SystemExit as stop:
            status = stop.code
        return (status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def wrong(tmp_path_factory):
    """Two .npz files of the small model: right.npz, and wrong.npz with ReLU instead of SiLU."""
    folder = tmp_path_factory.mktemp("wrong")
    seen = spec_run(CONFIG, WEIGHTS, PHASES)
    right = {f"{phase}/{tap}": value for phase, taps in seen.items() for tap, value in taps.items()}
    np.savez(folder / "right.npz", **right)
    act = f"{LAST}mlp.act"
    for phase in seen:
        gate, up = (seen[phase][f"{LAST}mlp.{name}_proj"] for name in ("gate", "up"))
        right[f"{phase}/{act}"] = np.maximum(gate, 0) * up
    del right[f"prompt/{QROPE}"]
    np.savez(folder / "wrong.npz", **right)
    return folder
