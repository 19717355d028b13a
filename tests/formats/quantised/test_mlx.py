"""Checkpoints of MLX: all bits, both types of scales, modules of their own, and bad files."""

import functools
import json

import ml_dtypes
import numpy as np
import pytest

from qwq_ref.config import Config
from qwq_ref.core import CODES
from qwq_ref.errors import CheckpointError
from qwq_ref.formats import open_floats, open_source
from tests.support import quantised_models as made

CONFIG = Config.from_dict(made.values_of())
SETTINGS = {"group_size": 64, "bits": 4}
UP = "model.layers.1.mlp.up_proj"
BF16 = ml_dtypes.bfloat16
BITS = [bits for bits in (2, 3, 4, 5, 6, 8) if bits < 8 or "u8" in CODES]


def mlx(folder, settings=SETTINGS, config=CONFIG, change=None, matrix=None, key="quantization", **options):
    """Write a checkpoint whose embedding and head are quantised, too -> its folder and its float32 values."""
    options = {"group": settings["group_size"], "bits": settings["bits"]} | options
    matrix = matrix or functools.partial(made.mlx_matrix, **options)
    tensors, values = made.model(config, matrix, lambda name: True, dtype=options.get("dtype", np.float16))
    if change is not None:
        change(tensors)
    return made.write(folder, config, tensors, settings, key=key), values


def assert_same(folder, values):
    with open_floats(folder) as source:
        for name, wanted in values.items():
            assert source[name].tobytes() == wanted.tobytes(), name
            assert source.rows(name, 3, 10).astype(np.float32).tobytes() == wanted[3:10].tobytes()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [np.float16, BF16])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_tensors_to_the_bit(tmp_path, bits, dtype, group):
    assert_same(*mlx(tmp_path, {"group_size": group, "bits": bits}, dtype=dtype))


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
@pytest.mark.parametrize("mode", [{}, {"mode": "affine"}])
def test_spellings(tmp_path, key, mode):
    assert_same(*mlx(tmp_path, SETTINGS | mode, key=key))


def test_both_keys_and_a_tied_head(tmp_path):
    config = Config.from_dict(made.values_of(tie_word_embeddings=True))
    folder, values = mlx(tmp_path, config=config)
    config_file = folder / "config.json"
    given = json.loads(config_file.read_text())
    config_file.write_text(json.dumps(given | {"quantization_config": given["quantization"]}))
    assert_same(folder, values)


def test_modules_of_their_own(tmp_path):
    """A mixed recipe: some modules with more bits, other groups, or none."""
    own = {"model.embed_tokens": {"bits": 6, "group_size": 32}, UP: {"bits": 5}, "lm_head": False}
    own["model.layers.0.mlp.down_proj"] = True
    settings = SETTINGS | own
    order = [name.rpartition(".")[0] for name, shape in CONFIG.tensors().items() if len(shape) == 2]
    of_module = iter(order)

    def matrix(rng, N, K):
        entry = own.get(next(of_module))
        return made.mlx_matrix(rng, N, K, **{"bits": 4, "group": 64} | _arguments(entry))

    tensors, values = made.model(CONFIG, matrix, lambda name: not name.startswith("lm_head"))
    assert_same(made.write(tmp_path, CONFIG, tensors, settings, key="quantization"), values)


def _arguments(entry):
    names = {"bits": "bits", "group_size": "group"}
    return {names[key]: value for key, value in entry.items()} if isinstance(entry, dict) else {}


UNREAD = {
    "a mode": ({"mode": "mxfp4"}, "mode", "mxfp4 is not read: take a file of the mode affine, or GGUF"),
    "bits": ({"bits": 7}, "bits", "must be 2, 3, 4, 5, 6, 8 for MLX, got 7"),
    "a module's bits": ({UP: {"bits": 1}}, f"{UP}.bits", "must be 2, 3"),
    "a module's mode": ({UP: {"mode": "nvfp4"}}, f"{UP}.mode", "is not read"),
    "a module that is odd": ({UP: 4}, UP, "must be an object, true or false"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_settings_that_are_not_read(tmp_path, name):
    changes, field, words = UNREAD[name]
    folder, _ = mlx(tmp_path)
    made.refuses_settings(folder, "quantization", changes, field, words)


TENSORS = {
    "words": ("weight", np.zeros((256, 8), np.uint32), "shape [256, 8], but the config implies [256, 16]"),
    "signed words": ("weight", np.zeros((256, 16), np.int32), "dtype must be U32, got I32"),
    "scales": ("scales", np.zeros((256, 4), np.float16), "shape [256, 4], but the config implies [256, 2]"),
    "wide scales": ("scales", np.zeros((256, 2), np.float32), "dtype must be F16 or BF16, got F32"),
    "offsets": ("biases", np.zeros((256, 2), BF16), "dtype must be F16, got BF16"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_bad_tensors(tmp_path, name):
    leaf, value, words = TENSORS[name]
    folder, _ = mlx(tmp_path, change=lambda tensors: tensors.update({f"{UP}.{leaf}": value}))
    with pytest.raises(CheckpointError) as caught:
        open_source(folder)
    assert caught.value.field == f"{UP}.{leaf}"
    assert words in caught.value.problem


def test_a_module_that_should_be_floats(tmp_path):
    folder, _ = mlx(tmp_path, SETTINGS | {UP: False})
    with pytest.raises(CheckpointError, match=r"up_proj\.scales: unexpected: .*config\.json says that it is not quant"):
        open_source(folder)
