"""Checkpoints as other programs write them: those with one meaning are read as Hugging Face reads them."""

import functools
import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from qwq_ref.errors import CheckpointError
from qwq_ref.formats import Checkpoint
from tests.support import refusals
from tests.support.models import config_values
from tests.support.safetensors_files import EMBEDDING, HEAD, INDEX, NORM, entry, pack

refused = functools.partial(refusals.refused, CheckpointError, 500)
SINGLE = "model.safetensors"
INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"


def model(tied=False, dtype=torch.float32):
    torch.manual_seed(1)
    return Qwen2ForCausalLM._from_config(Qwen2Config(**config_values(tie_word_embeddings=tied)), dtype=dtype)


def saved(folder, tied=False, dtype=torch.float32, shards=False):
    model(tied, dtype).save_pretrained(folder, max_shard_size="9KB" if shards else "1GB")
    return folder


def changed(folder, change, file=SINGLE):
    """Let `change` alter {name: array} of one file."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})
    return folder


def remapped(folder, change):
    """Let `change` alter the weight_map of an index."""
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def map_of(folder):
    return json.loads((folder / INDEX).read_text())["weight_map"]


def assert_reads(folder, reference=None):
    """Our tensors are those that Hugging Face's class loads from the same folder, or those of `reference`."""
    theirs = (reference or Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)).state_dict()
    with Checkpoint.open(folder) as checkpoint:
        assert set(checkpoint) == set(checkpoint.config.tensors())
        for name, ours in checkpoint.items():
            assert np.array_equal(ours, theirs[name].float().numpy()), name


# --- one file ---


@pytest.mark.parametrize("tied", [True, False])
def test_the_body_saved_alone(tmp_path, tied):
    """Qwen2Model writes names without `model.`. A tied model needs no more; an untied one has lost its head."""
    whole = model(tied)
    whole.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Qwen2Model"]
    if tied:
        assert_reads(tmp_path)
        assert_reads(tmp_path, whole)
    else:
        words = "A Qwen2Model that was saved alone has no output head"
        refused(lambda: Checkpoint.open(tmp_path), tmp_path / SINGLE, HEAD, words)


def test_the_body_in_shards(tmp_path):
    body = Qwen2Model._from_config(Qwen2Config(**config_values(tie_word_embeddings=True)), dtype=torch.float32)
    body.save_pretrained(tmp_path, max_shard_size="9KB")
    assert_reads(tmp_path)


def test_a_tensor_with_and_without_its_prefix(tmp_path):
    folder = changed(saved(tmp_path), lambda t: t.update({"norm.weight": t[NORM] + 1}))
    refused(lambda: Checkpoint.open(folder), folder / SINGLE, "norm.weight", f"is here, and {NORM} too")


@pytest.mark.parametrize(
    ("dtype", "head"),
    [
        (torch.bfloat16, np.float32),
        (torch.float16, np.float32),
        (torch.float32, np.float32),
        (torch.bfloat16, ml_dtypes.bfloat16),
        (torch.float32, np.float64),
    ],
    ids=str,
)
def test_a_tied_head_in_another_dtype(tmp_path, dtype, head):
    """The head is not read; it must only have the values of the embedding."""
    folder = saved(tmp_path, tied=True, dtype=dtype)
    changed(folder, lambda t: t.update({HEAD: t[EMBEDDING].astype(head)}))
    assert_reads(folder)
    with Checkpoint.open(folder) as checkpoint:
        assert HEAD not in checkpoint


def test_a_tied_embedding_in_a_wider_dtype_than_its_head(tmp_path):
    folder = saved(tmp_path, tied=True, dtype=torch.bfloat16)
    changed(folder, lambda t: t.update({HEAD: t[EMBEDDING], EMBEDDING: t[EMBEDDING].astype(np.float32)}))
    assert_reads(folder)


@pytest.mark.parametrize("change", ["bfloat16 of float32", "one value", "the sign of a value", "double precision"])
def test_a_tied_head_of_other_values(tmp_path, change):
    folder = saved(tmp_path, tied=True)

    def put(tensors):
        head = tensors[EMBEDDING].copy()
        if change == "bfloat16 of float32":
            head = head.astype(ml_dtypes.bfloat16)
        elif change == "one value":
            head[-1, -1] = np.nextafter(head[-1, -1], np.float32(9))
        elif change == "double precision":
            head = np.nextafter(head.astype(np.float64), 9)
        else:
            head[0, 0] = -head[0, 0]
        tensors[HEAD] = head

    changed(folder, put)
    refused(lambda: Checkpoint.open(folder), folder / SINGLE, HEAD, f"differs from {EMBEDDING}")


def test_zeros_of_both_signs_are_equal(tmp_path):
    folder = saved(tmp_path, tied=True)

    def put(tensors):
        tensors[EMBEDDING][:, 0] = 0
        tensors[HEAD] = tensors[EMBEDDING].copy()
        tensors[HEAD][:, 0] = -0.0

    assert_reads(changed(folder, put))


@pytest.mark.parametrize("shards", [False, True])
def test_a_tied_model_with_its_head_alone(tmp_path, shards):
    """safetensors.torch.save_model keeps one name of a shared tensor: the first in the alphabet is the head."""
    folder = saved(tmp_path, tied=True, shards=shards)
    if shards:
        file = map_of(folder)[EMBEDDING]
        remapped(folder, lambda m: m.update({HEAD: m.pop(EMBEDDING)}))
        changed(folder, lambda t: t.update({HEAD: t.pop(EMBEDDING)}), file)
    else:
        changed(folder, lambda t: t.update({HEAD: t.pop(EMBEDDING)}))
    assert_reads(folder, model(tied=True))


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.float32, np.uint8, np.bool_])
def test_frequencies_of_old_files_may_have_any_dtype(tmp_path, dtype):
    assert_reads(changed(saved(tmp_path), lambda t: t.update({INV_FREQ: np.ones(4, dtype)})))


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(np.float64, "F64"), (np.int32, "I32"), (ml_dtypes.float8_e4m3fn, "F8_E4M3"), (ml_dtypes.float8_e5m2, "F8_E5M2")],
)
def test_dtypes_that_are_named_and_refused(tmp_path, dtype, name):
    folder = changed(saved(tmp_path), lambda t: t.update({NORM: t[NORM].astype(dtype)}))
    words = f"dtype must be one of F32, F16, BF16, got {name}: save the model in one of these"
    refused(lambda: Checkpoint.open(folder), folder / SINGLE, NORM, words)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "language_model."])
def test_names_of_a_wrapper(tmp_path, prefix):
    folder = saved(tmp_path)
    changed(folder, lambda t: [t.update({prefix + name: t.pop(name)}) for name in list(t)])
    with pytest.raises(CheckpointError, match=f"missing: 27 of .*; names begin with {prefix}: save the model inside"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("suffix", ["qweight", "scales", "weight_scale_inv", "weight.absmax"])
def test_quantised_tensors_without_a_word_in_the_config(tmp_path, suffix):
    name = "model.layers.0.mlp.up_proj"
    folder = saved(tmp_path)
    changed(folder, lambda t: t.update({f"{name}.{suffix}": t.pop(f"{name}.weight")}))
    with pytest.raises(CheckpointError, match="the tensors are quantised: use the fp32, fp16 or bf16 checkpoint"):
        Checkpoint.open(folder)


def test_metadata_that_is_null_or_absent(tmp_path):
    folder = saved(tmp_path)
    blob = (folder / SINGLE).read_bytes()
    end = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:end])
    for metadata in ({"__metadata__": None}, {}, {"__metadata__": {}}):
        del header["__metadata__"]
        header |= metadata
        (folder / SINGLE).write_bytes(pack(header, blob[end:]))
        assert_reads(folder, model())
        header.setdefault("__metadata__", None)


def test_tensors_in_any_order_of_header_and_data(tmp_path):
    folder = saved(tmp_path)
    tensors = load_file(folder / SINGLE)
    header, data = {}, b""
    for name in sorted(tensors, key=lambda name: name[::-1]):
        header[name] = entry("F32", list(tensors[name].shape), len(data), len(data) + tensors[name].nbytes)
        data += tensors[name].tobytes()
    (folder / SINGLE).write_bytes(pack(dict(sorted(header.items())), data))
    assert_reads(folder)


@pytest.mark.parametrize(
    "name", ["Modell größer.safetensors", "模型.safetensors", "a b/c d.safetensors", "💡.safetensors"]
)
def test_names_of_files(tmp_path, name):
    folder = saved(tmp_path)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / SINGLE).rename(folder / name)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(load_file(folder / name), name)}))
    assert_reads(folder, model())


# --- several files ---


def test_shards_in_a_subfolder(tmp_path):
    folder = saved(tmp_path, shards=True)
    (folder / "parts" / "more").mkdir(parents=True)
    for number, file in enumerate(sorted(folder.glob("*.safetensors"))):
        place = ("parts", "parts/more", ".")[number % 3]
        file.rename(folder / place / file.name)
    places = {file.name: str(file.relative_to(folder)) for file in folder.rglob("*.safetensors")}
    remapped(folder, lambda m: m.update({name: places[file] for name, file in m.items()}))
    assert_reads(folder)
    remapped(folder, lambda m: m.update({name: f"./{file}" for name, file in m.items()}))
    assert_reads(folder)


def test_a_subfolder_that_is_a_link(tmp_path):
    folder = saved(tmp_path / "m", shards=True)
    (tmp_path / "disk").mkdir()
    for file in folder.glob("*.safetensors"):
        file.rename(tmp_path / "disk" / file.name)
    (folder / "parts").symlink_to(tmp_path / "disk")
    remapped(folder, lambda m: m.update({name: f"parts/{file}" for name, file in m.items()}))
    assert_reads(folder)


@pytest.mark.parametrize("to_first", [True, False])
def test_an_index_that_has_a_tensor_elsewhere(tmp_path, to_first):
    folder = saved(tmp_path, shards=True)
    files = sorted(set(map_of(folder).values()))
    remapped(folder, lambda m: m.update({NORM: next(f for f in files[:: 1 if to_first else -1] if f != m[NORM])}))
    assert_reads(folder)


def test_an_index_that_lacks_a_tensor(tmp_path):
    folder = remapped(saved(tmp_path, shards=True), lambda m: m.pop(NORM))
    assert_reads(folder)


def test_frequencies_that_the_index_lacks(tmp_path):
    folder = saved(tmp_path, shards=True)
    assert_reads(changed(folder, lambda t: t.update({INV_FREQ: np.ones(4)}), map_of(folder)[NORM]))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_tensor_in_two_shards(tmp_path, dtype):
    """Of equal values, in one dtype or two: it has one meaning."""
    folder = saved(tmp_path, shards=True)
    home = map_of(folder)[NORM]  # ones
    other = next(file for file in sorted(set(map_of(folder).values())) if file != home)
    changed(folder, lambda t: t.update({NORM: np.ones(24, dtype)}), other)
    assert_reads(folder)
    changed(folder, lambda t: t.update({NORM: np.full(24, 2, dtype)}), other)
    first, second = sorted([home, other])
    words = f"differs from the tensor of this name in {folder / first}"
    refused(lambda: Checkpoint.open(folder), folder / second, NORM, words)
    changed(folder, lambda t: t.update({NORM: np.ones(23, dtype)}), other)
    refused(lambda: Checkpoint.open(folder), folder / second, NORM, words)


def test_one_of_several_files(tmp_path):
    folder = saved(tmp_path, shards=True)
    file = folder / map_of(folder)[NORM]
    with pytest.raises(CheckpointError, match="this is one of several files: open their folder"):
        Checkpoint.open(file)


def test_files_that_nothing_names_are_not_read(tmp_path):
    folder = saved(tmp_path, shards=True)
    for name in ("consolidated.safetensors", "model-00013-of-00012.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes(b"broken")
    assert_reads(folder)
