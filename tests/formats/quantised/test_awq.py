"""Checkpoints of AWQ: their tensors to the bit, all spellings of their settings, and bad files."""

import dataclasses
import json

import numpy as np
import pytest

from qwq_ref.config import Config
from qwq_ref.errors import CheckpointError
from qwq_ref.formats import Source, Tensors, open_floats, open_source
from qwq_ref.formats.quantised import QuantisedSource
from tests.formats.test_source import public
from tests.support import quantised_models as made
from tests.support.safetensors_files import peak_memory

CONFIG = Config.from_dict(made.values_of())
UP = "model.layers.1.mlp.up_proj"


def awq(folder, settings=made.CONFIG, config=CONFIG, change=None, quantised=lambda name: ".layers." in name, **options):
    """Write a checkpoint -> its folder and its float32 values."""
    group = settings.get("group_size", settings.get("q_group_size"))
    tensors, values = made.model(config, lambda rng, N, K: made.awq_matrix(rng, N, K, group), quantised)
    if change is not None:
        change(tensors)
    return made.write(folder, config, tensors, settings, **options), values


def test_it_has_what_the_protocol_says(tmp_path):
    folder, _ = awq(tmp_path)
    with open_source(folder) as source:
        assert type(source) is QuantisedSource
        assert all(hasattr(source, name) for name in public(Source))
        assert isinstance(source.floats, Tensors)
        assert (source.path, source.tokenizer, source.template, source.config) == (folder, folder, folder, CONFIG)
        assert set(source.dtypes) == {"AWQ 4-bit", "F16"}
        assert sum(source.dtypes.values()) < (folder / "model.safetensors").stat().st_size
    with open_source(folder / "model.safetensors") as source:
        assert source.tokenizer == folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("group", [16, 32, 64, 128, -1, 256])
def test_tensors_to_the_bit(tmp_path, group, shards):
    folder, values = awq(tmp_path, made.CONFIG | {"group_size": group}, shards=shards)
    with open_floats(folder) as source:
        assert list(source) == list(CONFIG.tensors())
        for name, wanted in values.items():
            assert source[name].tobytes() == wanted.tobytes(), name
            assert source.rows(name, 1, 11).astype(np.float32).tobytes() == wanted[1:11].tobytes()
        steps = []
        source.check_finite(steps.append)
        assert sum(steps) == sum(source.dtypes.values())


SPELLINGS = {
    "config.json": (made.CONFIG, {}),
    "transformers without a version": ({"quant_method": "awq", "bits": 4, "group_size": 32}, {}),
    "capitals": (made.CONFIG | {"version": "GEMM"}, {}),
    "AutoAWQ": ({"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"}, {"file": "quant_config.json"}),
    "AutoGPTQ": ({"bits": 4, "group_size": 32, "checkpoint_format": "awq"}, {"file": "quantize_config.json"}),
    "AutoGPTQ with a method": ({"bits": 4, "group_size": 32, "quant_method": "awq"}, {"file": "quantize_config.json"}),
    "its own key in AutoGPTQ's file": ({"w_bit": 4, "q_group_size": 32}, {"file": "quantize_config.json"}),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(tmp_path, name):
    settings, options = SPELLINGS[name]
    folder, values = awq(tmp_path, settings, **options)
    with open_source(folder) as source:
        assert source.floats[f"{UP}.weight"].tobytes() == values[f"{UP}.weight"].tobytes()


def test_modules_that_are_not_converted(tmp_path):
    """The tensors themselves tell which modules are quantised."""
    settings = made.CONFIG | {"modules_to_not_convert": ["mlp.down_proj"]}
    folder, values = awq(tmp_path, settings, quantised=lambda name: ".layers." in name and "down" not in name)
    with open_source(folder) as source:
        for name, wanted in values.items():
            assert source.floats[name].tobytes() == wanted.tobytes(), name


@pytest.mark.parametrize("head", [False, True])
def test_a_tied_model(tmp_path, head):
    config = dataclasses.replace(CONFIG, tie_word_embeddings=True)

    def change(tensors):
        if head:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    folder, values = awq(tmp_path, config=config, change=change)
    with open_source(folder) as source:
        assert set(source.floats) == set(values)


SETTINGS = {
    "a version": ({"version": "gemv"}, "version", "gemv is not read: take a file of the version gemm, or GGUF"),
    "a fast version": ({"version": "gemv_fast"}, "version", "gemv_fast is not read"),
    "no zero points": ({"zero_point": False}, "zero_point", "must be true"),
    "bits": ({"bits": 3}, "bits", "must be 4 for AWQ, got 3"),
    "no bits": ({"bits": None}, "bits", "is missing"),
    "a bool": ({"bits": True}, "bits", "must be an integer"),
    "a group": ({"group_size": 24}, "group_size", "must be a multiple of 16, or -1 for whole rows, got 24"),
    "no group": ({"group_size": None}, "group_size", "is missing"),
    "a large group": ({"group_size": 1 << 40}, "group_size", "must be -1 to"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_are_not_read(tmp_path, name):
    changes, field, words = SETTINGS[name]
    folder, _ = awq(tmp_path)
    made.refuses_settings(folder, "quantization_config", changes, field, words)


def without(name):
    return lambda tensors: tensors.pop(name) is None


def other(name, value):
    return lambda tensors: tensors.update({name: value})


TENSORS = {
    "no scales": (without(f"{UP}.scales"), f"{UP}.scales", "missing"),
    "no zeros": (without(f"{UP}.qzeros"), f"{UP}.qzeros", "missing"),
    "no words": (without(f"{UP}.qweight"), f"{UP}.weight", "missing: 1 of the tensors of config.json"),
    "words of another type": (other(f"{UP}.qweight", np.zeros((128, 32), np.float32)), f"{UP}.qweight", "must be I32"),
    "the layout of GPTQ": (
        other(f"{UP}.qweight", np.zeros((16, 256), np.int32)),
        f"{UP}.qweight",
        "shape [16, 256], but the config implies [128, 32]",
    ),
    "scales of another type": (other(f"{UP}.scales", np.zeros((4, 256), np.float32)), f"{UP}.scales", "must be F16"),
    "another group": (other(f"{UP}.scales", np.zeros((2, 256), np.float16)), f"{UP}.scales", "shape [2, 256]"),
    "both": (other(f"{UP}.weight", np.zeros((256, 128), np.float16)), f"{UP}.weight", "unexpected: 1 tensor"),
    "an unknown tensor": (other("x", np.zeros(3, np.float32)), "x", "unexpected: 1 tensor"),
    "no norm": (without("model.norm.weight"), "model.norm.weight", "missing"),
    "a norm of integers": (other("model.norm.weight", np.zeros(128, np.int32)), "model.norm.weight", "dtype must be"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_bad_tensors(tmp_path, name):
    change, field, words = TENSORS[name]
    folder, _ = awq(tmp_path, change=change)
    with pytest.raises(CheckpointError) as caught:
        open_source(folder)
    assert (caught.value.file, caught.value.field) == (str(folder / "model.safetensors"), field)
    assert words in caught.value.problem


def test_outputs_that_are_no_whole_words(tmp_path):
    config = Config.from_dict(made.values_of(intermediate_size=132))
    folder, _ = awq(tmp_path, change=without(f"{UP}.qweight"))
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"quantization_config": made.CONFIG}))
    with pytest.raises(CheckpointError, match=r"mlp\.gate_proj\.qweight: holds whole words of 8 outputs, and 132"):
        open_source(folder)


def test_a_lying_header_costs_no_memory(tmp_path):
    """Nothing is allocated for a tensor before its size is known to be right."""
    folder, _ = awq(tmp_path)
    file = folder / "model.safetensors"
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header[f"{UP}.qweight"]["shape"] = [1 << 30, 1 << 5]
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    with peak_memory(5 << 20), pytest.raises(CheckpointError, match="qweight: data_offsets: spans"):
        open_source(folder)


def test_a_tensor_in_two_shards(tmp_path):
    folder, _ = awq(tmp_path, shards=2)
    first, second = (folder / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    second.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match=r"is in .*model-00001-of-00002\.safetensors, too"):
        open_source(folder)


def test_a_file_that_shrinks(tmp_path):
    folder, _ = awq(tmp_path)
    with open_source(folder) as source:
        with (folder / "model.safetensors").open("r+b") as file:
            file.truncate(5000)
        with pytest.raises(CheckpointError, match="it is shorter"):
            source.floats[f"{UP}.weight"]


def test_the_checkpoint_of_floats_names_it(tmp_path):
    from qwq_ref.formats import Checkpoint

    folder, _ = awq(tmp_path)
    with pytest.raises(CheckpointError, match="holds quantised weights of AWQ, and no floats"):
        Checkpoint.open(folder)
