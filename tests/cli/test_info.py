"""`qwq info`: costs by arithmetic, and the contents of a checkpoint."""

import json

import numpy as np
import pytest

from qwq_ref.cli import main
from qwq_ref.config import Config
from tests.support import gguf_models, quantised_models
from tests.support.checkpoints import write_checkpoint


def test_info_of_the_real_model(capsys):
    assert main(["info", "qwq-32b"]) == 0
    out = capsys.readouterr().out
    assert "32,763,876,352 parameters in 771 tensors" in out
    assert "512.0 KiB   256.0 KiB   134.0 KiB" in out
    assert main(["info", "qwq-32b", "--json", "-c", "32768"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["checkpoint_bytes"]["bf16"] == 65_527_752_704
    assert report["contexts"][0]["kv_bytes"]["bf16"] == 8 << 30
    assert report["contexts"][0]["memory_bytes"]["bf16+fp32"] == report["weight_bytes"]["bf16"] + (16 << 30)


def test_info_of_a_checkpoint(random_folder, capsys):
    assert main(["info", str(random_folder), "--check"]) == 0
    assert "of F32; every weight is finite" in capsys.readouterr().out
    assert main(["info", str(random_folder / "config.json")]) == 0
    assert "stored" not in capsys.readouterr().out


def _gguf(folder):
    gguf_models.write_types(folder / "m.gguf", gguf_models.peer_config(), gguf_models.mixture(("Q4_K", "Q6_K", "F16")))
    return folder / "m.gguf"


def _awq(folder):
    config = Config.from_dict(quantised_models.values_of())
    tensors, _ = quantised_models.model(config, quantised_models.awq_matrix)
    return quantised_models.write(folder, config, tensors, quantised_models.CONFIG)


@pytest.mark.parametrize("write", [_gguf, _awq])
def test_info_of_a_quantised_file(write, tmp_path, capsys):
    """Its own form is the last column of weights, and the first of memory, beside the smaller ones."""
    path = write(tmp_path)
    assert main(["info", "-m", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[3:])) <= 80
    weights, _, _, bits = (line.split() for line in lines[4:8])
    assert weights == ["weights", "fp32", "bf16", "q8", "q4", "file"]
    (modes,) = (line.split() for line in lines if line.startswith("context "))
    assert modes[1:4] == ["file+int8", "q8+int8", "q4+int8"]
    assert main(["info", "-m", str(path), "--json", "-c", "128"]) == 0
    facts = json.loads(capsys.readouterr().out)
    size = facts["weight_bytes"]["file"]
    assert bits[-1] == f"{facts['bits_per_weight']['file']:.2f}"
    assert facts["bits_per_weight"] == {
        form: 8 * nbytes / facts["parameters"] for form, nbytes in facts["weight_bytes"].items()
    }
    assert facts["read_bytes_per_token"]["file"] < size
    assert facts["contexts"][0]["memory_bytes"]["file+int8"] == size + facts["contexts"][0]["kv_bytes"]["int8"]


def test_info_finds_a_nan(random_folder, tmp_path, capsys):
    from safetensors.numpy import load_file

    weights = load_file(random_folder / "model.safetensors")
    weights["model.norm.weight"][3] = np.nan
    values = json.loads((random_folder / "config.json").read_text())
    folder = write_checkpoint(tmp_path, values, weights)
    assert main(["info", str(folder)]) == 0
    capsys.readouterr()
    assert main(["info", str(folder), "--check"]) == 1
    assert "model.norm.weight: holds NaN at [3]" in capsys.readouterr().err


def test_info_of_shards_in_a_subfolder(random_folder, tmp_path, capsys):
    from safetensors.numpy import load_file

    names = load_file(random_folder / "model.safetensors")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "all.safetensors").symlink_to(random_folder / "model.safetensors")
    (tmp_path / "config.json").symlink_to(random_folder / "config.json")
    index = {"weight_map": dict.fromkeys(names, "parts/all.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert main(["info", str(tmp_path), "--check"]) == 0
    assert "of F32; every weight is finite" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["info", "doctor"])
def test_a_folder_without_a_config_is_named_for_what_it_is(command, tmp_path, capsys):
    (tmp_path / "x.onnx").write_bytes(b"x")
    assert main([command, "-m", str(tmp_path)]) == 1
    assert "but an ONNX model (x.onnx)" in capsys.readouterr().err
