"""Checkpoints of GPTQ: both versions, all bits, orders of columns, and bad files."""

import functools
import json

import numpy as np
import pytest

from qwq_ref.config import Config
from qwq_ref.core import CODES
from qwq_ref.errors import CheckpointError
from qwq_ref.formats import open_floats, open_source
from tests.support import quantised_models as made
from tests.support.quantised_models import shuffled

CONFIG = Config.from_dict(made.values_of())
SETTINGS = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False}
UP = "model.layers.1.mlp.up_proj"
BITS = [bits for bits in (2, 3, 4, 8) if bits < 8 or "u8" in CODES]


def gptq(folder, settings=SETTINGS, config=CONFIG, change=None, key="quantization_config", file=None, **matrix):
    """Write a checkpoint -> its folder and its float32 values."""
    matrix = {"group": settings["group_size"], "bits": settings["bits"]} | matrix
    tensors, values = made.model(config, functools.partial(made.gptq_matrix, **matrix))
    if change is not None:
        change(tensors)
    return made.write(folder, config, tensors, settings, key=key, file=file), values


def assert_same(folder, values):
    with open_floats(folder) as source:
        for name, wanted in values.items():
            assert source[name].tobytes() == wanted.tobytes(), name
            assert source.rows(name, 3, 10).astype(np.float32).tobytes() == wanted[3:10].tobytes()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("group", [32, 128, -1])
def test_tensors_to_the_bit(tmp_path, bits, version, group):
    settings = SETTINGS | {"bits": bits, "group_size": group}
    settings |= {"checkpoint_format": "gptq_v2"} if version == 2 else {}
    assert_same(*gptq(tmp_path, settings, version=version))


@pytest.mark.parametrize("bits", BITS)
def test_an_order_of_columns(tmp_path, bits):
    settings = SETTINGS | {"bits": bits, "desc_act": True, "group_size": 64}
    assert_same(*gptq(tmp_path, settings, order=shuffled))


def test_no_groups_of_columns(tmp_path):
    assert_same(*gptq(tmp_path, groups=False))


@pytest.mark.parametrize("stored", [1, 2])
def test_symmetric_codes_tell_the_version(tmp_path, stored):
    """Some writers name the first version, and store the zero points of the second."""
    settings = SETTINGS | {"sym": True, "checkpoint_format": "gptq"}
    assert_same(*gptq(tmp_path, settings, symmetric=True, version=stored))


SPELLINGS = {
    "no format": ({}, {}),
    "GPTQModel": ({"checkpoint_format": "gptq", "format": "gptq", "meta": {"quantizer": ["gptqmodel:1.0"]}}, {}),
    "an older key": ({"quant_method": None, "damp_percent": 0.01}, {"file": "quantize_config.json"}),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(tmp_path, name):
    changes, options = SPELLINGS[name]
    assert_same(*gptq(tmp_path, {k: v for k, v in (SETTINGS | changes).items() if v is not None}, **options))


def test_a_padded_model(tmp_path):
    """Qwen pads the MLP of some releases with zeros: the config says the padded size."""
    config = Config.from_dict(made.values_of(intermediate_size=320))
    assert_same(*gptq(tmp_path, SETTINGS | {"group_size": 128}, config))


def test_biases_that_are_zero(tmp_path):
    """AutoGPTQ writes one for each quantised module, whether the model has it or not."""

    def change(tensors):
        tensors |= {f"{UP}.bias": np.zeros(256, np.float16)}

    assert_same(*gptq(tmp_path / "a", change=change))

    def other(tensors):
        tensors |= {f"{UP}.bias": np.full(256, 1e-3, np.float16)}

    folder, _ = gptq(tmp_path / "b", change=other)
    with pytest.raises(CheckpointError, match=r"up_proj\.bias: unexpected: config\.json does not imply it, and it is"):
        open_source(folder)


UNREAD = {
    "dynamic": ({"dynamic": {"-:.*down.*": {}}}, "dynamic", "is not read: take a file whose modules all have the same"),
    "a format": (
        {"checkpoint_format": "marlin"},
        "checkpoint_format",
        "marlin is not read: take a file in gptq or",
    ),
    "marlin": ({"is_marlin_format": True}, "is_marlin_format", "is not read"),
    "bits": ({"bits": 5}, "bits", "must be 2, 3, 4, 8 for GPTQ, got 5"),
    "sym": ({"sym": 1}, "sym", "must be true or false"),
    "groups": ({"group_size": 0}, "group_size", "must be a multiple of 16"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_settings_that_are_not_read(tmp_path, name):
    changes, field, words = UNREAD[name]
    folder, _ = gptq(tmp_path)
    made.refuses_settings(folder, "quantization_config", changes, field, words)


GROUPS = {
    "a group that is not there": (lambda g: g.put(5, 4), "must name groups 0 to 3"),
    "a negative group": (lambda g: g.put(5, -1), "must name groups 0 to 3"),
    "a large group": (lambda g: g.put(5, 1 << 30), "must name groups 0 to 3"),
    "groups of other sizes": (lambda g: g.put(5, 1), "has groups of other sizes than 32"),
}


@pytest.mark.parametrize("name", GROUPS)
def test_bad_groups_of_columns(tmp_path, name):
    act, words = GROUPS[name]
    folder, _ = gptq(tmp_path, change=lambda tensors: act(tensors[f"{UP}.g_idx"]))
    with open_source(folder) as source, pytest.raises(CheckpointError) as caught:
        source.floats[f"{UP}.weight"]
    assert (caught.value.field, caught.value.problem) == (f"{UP}.g_idx", words)


TENSORS = {
    "words": ("qweight", np.zeros((128, 32), np.int32), "shape [128, 32], but the config implies [16, 256]"),
    "zeros": ("qzeros", np.zeros((4, 256), np.int32), "shape [4, 256], but the config implies [4, 32]"),
    "scales": ("scales", np.zeros((4, 256), np.float32), "dtype must be F16, got F32"),
    "groups": ("g_idx", np.zeros(64, np.int32), "shape [64], but the config implies [128]"),
    "groups of 64 bits": ("g_idx", np.zeros(128, np.int64), "dtype must be I32, got I64"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_bad_tensors(tmp_path, name):
    leaf, value, words = TENSORS[name]
    folder, _ = gptq(tmp_path, change=lambda tensors: tensors.update({f"{UP}.{leaf}": value}))
    with pytest.raises(CheckpointError) as caught:
        open_source(folder)
    assert caught.value.field == f"{UP}.{leaf}"
    assert words in caught.value.problem


def test_codes_that_fill_no_words(tmp_path):
    config = Config.from_dict(made.values_of(intermediate_size=272))
    settings = SETTINGS | {"bits": 3}
    folder, _ = gptq(tmp_path, settings)
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"quantization_config": settings}))
    with pytest.raises(CheckpointError, match=r"qzeros: holds whole words of 32 bits, and 272 codes of 3 bits"):
        open_source(folder)


ZEROS = {  # zero points of neighbouring rows, the first in the lowest bits of a word
    2: [0, 3, 0, 0, 1, 2, 0, 1] * 2,
    3: [0, 7, 0, 0, 1, 5, 0, 4] * 4,
    4: [0, 15, 0, 0, 1, 8, 0, 7],
    8: [0, 255, 0, 128],
}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("version", [1, 2])
def test_zero_points_of_zero(tmp_path, bits, version):
    """Version 1 stores them as all ones, and borrows from the row above where codes fill words."""
    zeros = np.array(ZEROS[bits])
    of_row, K = np.tile(zeros, 256 // len(zeros)), 128
    stored = made.words_of(of_row[None], bits)
    if version == 1 and bits == 3:
        stored = made.words_of((of_row[None] + 7) % 8, 3)
    elif version == 1:
        number = sum(int(zero) << bits * place for place, zero in enumerate(zeros))
        less = number - sum(1 << bits * place for place in range(len(zeros)))
        stored[:] = less % (1 << 32)

    def change(tensors):
        tensors[f"{UP}.qzeros"] = np.repeat(stored, 4, axis=0).view(np.int32)
        tensors[f"{UP}.qweight"][:] = 0
        tensors[f"{UP}.scales"][:] = 1

    settings = SETTINGS | {"bits": bits} | ({"checkpoint_format": "gptq_v2"} if version == 2 else {})
    folder, _ = gptq(tmp_path, settings, change=change)
    with open_source(folder) as source:
        assert np.array_equal(source.floats[f"{UP}.weight"], -np.repeat(of_row[:, None], K, axis=1))
