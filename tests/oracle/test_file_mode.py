"""The oracle judges the engine on a quantised file in its own types, by its bits: `qwq:file`."""

import functools

import numpy as np
import pytest

from qwq_ref import core, oracle
from qwq_ref.cli import main
from qwq_ref.config import Config
from qwq_ref.engine.backends.core import CoreBackend
from qwq_ref.engine.reading import read_model
from qwq_ref.errors import UsageError
from qwq_ref.formats import open_floats
from qwq_ref.oracle.graph import phases_of
from tests.support import gguf_models, quantised_models
from tests.support.models import random_weights

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
IDS, DECODE = [3, 1, 4, 1, 5, 9, 2], 2
ALL = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
ALL += ["IQ4_NL", "IQ4_XS", "IQ3_S"]


def _gguf(folder, types):
    config = gguf_models.peer_config(num_hidden_layers=3)
    gguf_models.write_types(folder / "model.gguf", config, gguf_models.mixture(types))
    return folder / "model.gguf"


def _checkpoint(folder, settings, matrix, key="quantization_config"):
    config = Config.from_dict(quantised_models.values_of())
    tensors, _ = quantised_models.model(config, matrix)
    return quantised_models.write(folder / "model", config, tensors, settings, key=key)


def _gptq(bits, order=None):
    settings = {"quant_method": "gptq", "bits": bits, "group_size": 32, "desc_act": order is not None}
    matrix = functools.partial(quantised_models.gptq_matrix, bits=bits, order=order)
    return lambda folder: _checkpoint(folder, settings, matrix)


def _mlx(bits, dtype=np.float16):
    matrix = functools.partial(quantised_models.mlx_matrix, bits=bits, dtype=dtype)
    return lambda folder: _checkpoint(folder, {"bits": bits, "group_size": 64}, matrix, "quantization")


FILES = {
    **{f"gguf {i}": functools.partial(_gguf, types=ALL[i : i + 4]) for i in range(0, len(ALL), 4)},
    "awq": lambda folder: _checkpoint(folder, quantised_models.CONFIG, quantised_models.awq_matrix),
    "gptq": _gptq(4),
    "gptq 8": _gptq(8),
    "gptq 3, ordered": _gptq(3, quantised_models.shuffled),
    "mlx": _mlx(4, quantised_models.BF16),
    "mlx 6": _mlx(6),
}


@pytest.fixture(scope="module", params=FILES)
def made(request, tmp_path_factory):
    """-> the file, and the folder of a pack of it"""
    folder = tmp_path_factory.mktemp("file")
    path = FILES[request.param](folder)
    with open_floats(path) as source:
        return path, oracle.record(source.config, source, folder / "pack", IDS, DECODE)


@pytest.mark.parametrize("mode", ["file", "file+int8", "file+fp32"])
def test_the_engine_passes_by_its_bits(made, mode):
    path, pack = made
    report = oracle.compare(pack, f"qwq:{mode}", model=path)
    full = mode if "+" in mode else f"{mode}+int8"
    assert report.comparison.precision == f"{full}, by its bits"
    assert {result.status for result in report.comparison.results} == {"ok"}
    assert report.comparison.logits["kl"] < 0.1


@pytest.mark.parametrize("name", ["self_attn.k_proj.bias", "mlp.down_proj.weight"])
def test_a_wrong_number_in_a_layer_is_found(made, name):
    """The engine computes with another bias of keys, or a flipped bit of a packed matrix, in layer 1."""
    path, pack = made
    with open_floats(path) as source:
        weights = read_model(source, source.kept.form, 1)
        layer = weights.layers[1]
        if name.endswith("bias"):
            layer.qkv_bias[-40] += 1
        else:
            layer.down.packed[5] ^= 1
        backend = CoreBackend(source.config, weights, 64, "int8")
        candidate = oracle.engine_taps(backend, phases_of(IDS, DECODE))
        report = oracle.compare(pack, candidate, model=source)
    wrong = [result for result in report.comparison.results if result.status == "introduced"]
    assert {result.tap for result in wrong} == {"model.layers.1.resid_post"}


def test_the_command(made, capsys):
    path, pack = made
    assert main(["golden", "compare", str(pack), "qwq:file", "-m", str(path)]) == 0
    assert "every bit" in capsys.readouterr().out


def test_floats_have_no_file_form(tmp_path):
    config = Config.from_dict(quantised_models.values_of())
    weights = random_weights(config, 0)
    pack = oracle.record(config, weights, tmp_path / "pack", IDS, DECODE)
    with pytest.raises(
        UsageError, match="model: must be a GGUF file, or a checkpoint of AWQ, GPTQ or MLX, for qwq:file"
    ):
        oracle.compare(pack, "qwq:file", model=weights)
