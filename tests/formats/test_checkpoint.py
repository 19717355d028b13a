"""Checkpoints that Hugging Face wrote, read back to the bit."""

import json
import math
import os
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from transformers import GenerationConfig as TheirGenerationConfig
from transformers import Qwen2Config, Qwen2ForCausalLM

from qwq_ref.config import Config
from qwq_ref.formats import (
    Checkpoint,
    GenerationConfig,
    safetensors,
)
from tests.support.models import config_values

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def random_model(dtype, tied=False, seed=0):
    """Weights of every magnitude that the dtype has, subnormal and signed zero included, but finite."""
    model = Qwen2ForCausalLM._from_config(Qwen2Config(**config_values(tie_word_embeddings=tied)), dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    info = torch.iinfo(integer)
    with torch.no_grad():
        for weight in model.parameters():
            bits = torch.randint(info.min, info.max, weight.shape, generator=generator, dtype=integer)
            weight.copy_(torch.where(bits.view(dtype).isfinite(), bits, bits & 0xFF).view(dtype))
    return model


def save(folder, dtype=torch.bfloat16, shard_size="1GB", **kwargs):
    model = random_model(dtype, **kwargs)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def assert_holds(checkpoint, model):
    """The checkpoint is the model, bit by bit."""
    theirs = model.state_dict()
    assert list(checkpoint) == list(checkpoint.config.tensors())
    assert set(checkpoint) == set(theirs) - ({HEAD} if checkpoint.config.tie_word_embeddings else set())
    for name, ours in checkpoint.items():
        assert ours.dtype == np.float32
        assert ours.flags.owndata
        assert ours.shape == tuple(theirs[name].shape)
        assert np.array_equal(ours.view(np.uint32), theirs[name].float().numpy().view(np.uint32)), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_size", ["1GB", "9KB"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_hugging_face(tmp_path, monkeypatch, dtype, shard_size, tied):
    monkeypatch.setattr(safetensors, "_BLOCK_BYTES", 1000)  # most tensors take several, the last one shorter
    model = save(tmp_path, DTYPES[dtype], shard_size, tied=tied)
    shards = len(list(tmp_path.glob("*.safetensors")))
    assert (shards == 1) == (shard_size == "1GB")
    assert shards == 1 or shards > 3
    with Checkpoint.open(tmp_path) as checkpoint:
        assert_holds(checkpoint, model)
        assert checkpoint.path == tmp_path
        assert checkpoint.config == Config.from_file(tmp_path / "config.json")
        assert checkpoint.parameters == model.num_parameters()
        assert checkpoint.dtypes == {dtype: model.num_parameters() * DTYPES[dtype].itemsize}
        assert checkpoint.tensors[EMBEDDING].shape == (53, 24)
        seen = []
        checkpoint.check_finite(seen.append)
        assert sum(seen) == sum(checkpoint.dtypes.values())


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_16_bit_pattern(tmp_path, dtype):
    path = tmp_path / "x"
    patterns = np.arange(1 << 16, dtype=np.uint16)
    header = json.dumps({"x": {"dtype": dtype, "shape": [256, 256], "data_offsets": [0, 1 << 17]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + patterns.tobytes())
    file = safetensors.SafetensorsFile(path)
    ours = file.read("x").reshape(-1)
    file.close()
    theirs = torch.from_numpy(patterns.view(np.int16)).view(DTYPES[dtype]).float().numpy()
    assert np.array_equal(ours, theirs, equal_nan=True)
    bits = np.isfinite(theirs) if dtype == "F16" else slice(None)  # bfloat16 keeps a NaN's bits, too
    assert np.array_equal(ours[bits].view(np.uint32), theirs[bits].view(np.uint32))


def test_reading_holds_the_result_and_one_block(tmp_path):
    path = tmp_path / "x"
    header = json.dumps({"x": {"dtype": "BF16", "shape": [3, 1 << 23], "data_offsets": [0, 3 << 24]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + (3 << 24))  # 48 MiB of zeros
    file = safetensors.SafetensorsFile(path)
    tracemalloc.start()
    assert file.read("x").shape == (3, 1 << 23)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    file.close()
    assert peak < (96 << 20) + (8 << 20) + (1 << 20)


def test_headers_of_qwq_32b_fit(tmp_path):
    """65 GB, in a sparse file: only the header is there, and only it is read."""
    heads = {"num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "num_hidden_layers": 64}
    values = config_values(vocab_size=152064, hidden_size=5120, intermediate_size=27648, **heads)
    header, end = {}, 0
    for name, shape in Config.from_dict(values).tensors().items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(tmp_path / "model.safetensors", 8 + len(text) + end)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert (len(checkpoint), checkpoint.parameters) == (771, 32_763_876_352)
        assert checkpoint.dtypes == {"BF16": 65_527_752_704}
        assert np.array_equal(checkpoint["model.norm.weight"], np.zeros(5120))


def test_a_file_alone(tmp_path):
    """Its folder's config.json applies; what else is there is not read."""
    model = save(tmp_path, torch.float16)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with Checkpoint.open(tmp_path / "other.safetensors") as checkpoint:
        assert_holds(checkpoint, model)


def test_single_file_wins_over_an_index(tmp_path):
    """As in Hugging Face, which is asked, too."""
    sharded = save(tmp_path / "sharded", torch.float32, "9KB", seed=1)
    single = save(tmp_path / "single", torch.float32)
    both = shutil.copytree(tmp_path / "sharded", tmp_path / "both")
    shutil.copy(tmp_path / "single/model.safetensors", both)
    assert not torch.equal(single.lm_head.weight, sharded.lm_head.weight)
    with Checkpoint.open(both) as checkpoint:
        assert_holds(checkpoint, single)
        assert_holds(checkpoint, Qwen2ForCausalLM.from_pretrained(both, dtype=torch.float32))


def test_mixed_dtypes_and_inv_freq(tmp_path):
    """The safetensors package writes; a norm stays float32; old files carry RoPE's frequencies."""
    from safetensors.torch import save_file

    state = random_model(torch.bfloat16).state_dict()
    state["model.norm.weight"] = torch.arange(24.0)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.full((4,), torch.nan)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(config_values()))
    with Checkpoint.open(tmp_path) as checkpoint:
        assert np.array_equal(checkpoint["model.norm.weight"], np.arange(24))
        assert checkpoint.dtypes["F32"] == 96
        assert not any("inv_freq" in name for name in checkpoint)
        checkpoint.check_finite()


def test_mapping(tmp_path):
    save(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 0)
    assert HEAD in checkpoint  # without reading it
    assert "x" not in checkpoint
    assert len(checkpoint) == 27
    with pytest.raises(KeyError):
        checkpoint["x"]
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(ValueError, match="closed"):
        checkpoint[HEAD]


def test_generation_config_of_hugging_face(tmp_path):
    save(tmp_path)
    config = Config.from_file(tmp_path / "config.json")
    theirs = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
    }
    TheirGenerationConfig(eos_token_id=[5, 3], **theirs).save_pretrained(tmp_path)
    assert GenerationConfig.from_folder(tmp_path, config) == GenerationConfig(eos_token_ids=(5, 3), **theirs)
    TheirGenerationConfig(eos_token_id=5).save_pretrained(tmp_path)
    assert GenerationConfig.from_folder(tmp_path, config) == GenerationConfig((5,))
