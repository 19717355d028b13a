"""Paths that lead to a GGUF model: a file, a folder with one, and a folder to choose from."""

import dataclasses
import json
import os

import numpy as np
import pytest

import qwq_ref
from qwq_ref import core
from qwq_ref.cli import main
from qwq_ref.errors import CheckpointError, QwqError
from qwq_ref.formats import GGUFSource, open_floats, open_source, read_config, resolve
from tests.support.gguf_models import gguf_tensor_name, mixture, peer_config, write_types
from tests.support.safetensors_files import WEIGHTS, weights_file

pytest.importorskip("gguf")
CONFIG = peer_config(num_hidden_layers=1)
needs_core = pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")


@pytest.fixture
def path(tmp_path):
    write_types(tmp_path / "m-q4_k_m.gguf", CONFIG, lambda _: "Q4_K")
    return tmp_path / "m-q4_k_m.gguf"


def test_a_file_and_its_folder(path):
    for name in (path, path.parent, str(path)):
        assert resolve(name) == path
        assert read_config(name) == CONFIG
        for call in (open_source, open_floats):
            with call(name) as source:
                assert isinstance(source, GGUFSource)
                assert source.path == path


def test_a_file_of_another_name(path):
    """A blob of a cache has a digest as its name."""
    blob = path.rename(path.with_name("sha256-0123"))
    assert resolve(blob) == blob
    with open_source(blob) as source:
        assert source.path == blob


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for call in (resolve, open_source, read_config):
        with pytest.raises(QwqError):
            call(tmp_path / "pipe")


def test_a_folder_to_choose_from(path):
    for i in (1, 2):
        (path.parent / f"m-bf16-0000{i}-of-00002.gguf").write_bytes(bytes(1024))
    (path.parent / "mmproj-f16.gguf").write_bytes(b"")
    for call in (resolve, open_source, read_config, qwq_ref.load):
        with pytest.raises(CheckpointError) as caught:
            call(path.parent)
        assert caught.value.problem.startswith(
            "holds 2 GGUF models: name one of these files: m-bf16-00001-of-00002.gguf "
        )
        assert "gguf (2.00 KiB), m-q4_k_m.gguf (0.4" in caught.value.problem
    path.unlink()
    assert resolve(path.parent).name == "m-bf16-00001-of-00002.gguf"


def test_a_checkpoint_takes_precedence(path):
    folder = path.parent
    (folder / "model.safetensors").write_bytes(weights_file(WEIGHTS))
    assert resolve(folder) == folder
    with pytest.raises(CheckpointError, match=r"there is no config\.json beside model\.safetensors"):
        qwq_ref.load(folder)


def test_the_spec_computes_with_the_floats(tmp_path):
    path = tmp_path / "m.gguf"
    wanted = write_types(path, CONFIG, mixture(("Q6_K", "Q4_0", "F16")))
    logits = qwq_ref.load(path, backend="numpy").logits([3, 1, 4])
    weights = {name: wanted[gguf_tensor_name(name)].astype(np.float32) for name in CONFIG.tensors()}
    from qwq_ref import spec

    expected = spec.forward(CONFIG, weights, np.array([3, 1, 4]))
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert np.array_equal(logits, expected)


@needs_core
@pytest.mark.parametrize("weights", ["fp32", "q8", "q4"])
def test_the_floats_are_packed(path, weights):
    exact = qwq_ref.load(path, backend="numpy").logits([3, 1, 4])
    logits = qwq_ref.load(path, weights=weights).logits([3, 1, 4])
    assert np.abs(logits - exact).max() < {"fp32": 1e-4, "q8": 0.1, "q4": 1.0}[weights] * np.abs(exact).max()


def test_info_and_golden(path, tmp_path, capsys):
    assert main(["info", "-m", str(path), "--check", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["checked"]
    assert set(facts["stored_bytes"]) == {"Q4_K", "F32"}
    assert main(["info", "-m", str(path.parent)]) == 0
    assert " of Q4_K, " in capsys.readouterr().out
    pack = tmp_path / "pack"
    assert main(["golden", "record", "-m", str(path), "-o", str(pack), "--ids", "3,1,4"]) == 0
    from qwq_ref.oracle import Golden

    with Golden.open(pack) as golden:
        assert golden.manifest.config == dataclasses.replace(CONFIG)


def test_a_broken_file_is_one_line(path, capsys):
    path.write_bytes(path.read_bytes()[:-5000])
    assert main(["generate", "-m", str(path), "x"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "which is cut off: download it again" in error
