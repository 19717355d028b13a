"""Folders and files that are no checkpoint are named for what they are, with what to do."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

import qwq_ref
from qwq_ref.engine.convert import convert
from qwq_ref.errors import CheckpointError, ConfigError, QwqError, TemplateError, TokenizerError
from qwq_ref.formats import Checkpoint, open_source, recognise, resolve
from qwq_ref.formats.names import CONFIG, INDEX, SINGLE
from qwq_ref.text import load_chat_template, load_tokenizer
from tests.support.safetensors_files import VALUES, WEIGHTS, write

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4567\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>\n"


def packed_in_tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    return file.getvalue()


def packed_in_zip():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", "x")
    return file.getvalue()


def numpy_file():
    file = io.BytesIO()
    np.save(file, np.zeros(9))
    return file.getvalue()


# contents -> what they are called
CONTENTS = {
    "a pointer": (POINTER, "a git-lfs pointer to it: run `git lfs pull`"),
    "a pointer of git-xet": (b"# xet version 0\nfilesize = 9\nhash = 'x'\n", "a git-xet pointer"),
    "a page": (PAGE, "a web page, such as a login or an error page"),
    "a page in capitals": (PAGE.upper(), "a web page"),
    "a page without a type": (b"<html lang=en>" + b"x" * 9000, "a web page"),
    "a page with a byte order mark": (b"\xef\xbb\xbf" + PAGE, "a web page"),
    "an error of a store": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML document"),
    "GGML": (b"lmgg\3\0\0\0" + bytes(600), "a GGML file of llama.cpp"),
    "zip": (packed_in_zip(), "a zip archive, such as a .bin file of PyTorch"),
    "pickle": (pickle.dumps({"x": list(range(300))}, protocol=2), "a pickle"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(600), "an HDF5 file"),
    "NumPy": (numpy_file(), "a NumPy array"),
    "gzip": (gzip.compress(bytes(range(200))), "a gzip archive: unpack it"),
    "tar": (packed_in_tar(), "a tar archive: unpack it"),
    "zeros": (bytes(4096), "zeros, such as an interrupted download leaves"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_weights_that_are_something_else(tmp_path, name):
    contents, words = CONTENTS[name]
    folder = write(tmp_path, {SINGLE: contents})
    for call in (
        lambda: open_source(folder),
        lambda: Checkpoint.open(folder / SINGLE),
        lambda: resolve(folder / SINGLE),
    ):
        with pytest.raises(CheckpointError) as caught:
            call()
        assert caught.value.file == str(folder / SINGLE)
        assert caught.value.problem.startswith("is not a safetensors file, but ")
        assert words in caught.value.problem


@pytest.mark.parametrize("text", ["Entry not found", "Invalid username or password.\n", '{"error":"not found"}'])
def test_weights_that_are_the_answer_of_a_server(tmp_path, text):
    folder = write(tmp_path, {SINGLE: text.encode()})
    with pytest.raises(CheckpointError, match="but the text") as caught:
        open_source(folder)
    assert text.strip() in str(caught.value)


@pytest.mark.parametrize("name", CONTENTS)
def test_json_that_is_something_else(tmp_path, name):
    contents, words = CONTENTS[name]
    folder = write(tmp_path, {SINGLE: WEIGHTS})
    (folder / CONFIG).write_bytes(contents)
    (folder / "tokenizer.json").write_bytes(contents)
    calls = {ConfigError: lambda: open_source(folder), TokenizerError: lambda: load_tokenizer(folder)}
    for error, call in calls.items():
        with pytest.raises(error) as caught:
            call()
        assert caught.value.problem.startswith("is not JSON, but ")
        assert words in caught.value.problem


def test_json_that_is_a_safetensors_file(tmp_path):
    folder = write(tmp_path, {SINGLE: WEIGHTS})
    (folder / CONFIG).write_bytes((folder / SINGLE).read_bytes())
    with pytest.raises(ConfigError, match="is not JSON, but a safetensors file"):
        open_source(folder)


def test_a_damaged_safetensors_file_is_still_called_one(tmp_path):
    folder = write(tmp_path, {SINGLE: WEIGHTS})
    file = folder / SINGLE
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="past the end of the file"):
        open_source(folder)


AWQ = VALUES | {"quantization_config": {"quant_method": "awq", "bits": 4}}
MLX = VALUES | {"quantization": {"group_size": 64, "bits": 4}, "quantization_config": {"group_size": 64, "bits": 4}}
ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}
# name -> (files with their contents, what the folder is called)
FOLDERS = {
    "nothing": ({}, "is empty"),
    "LoRA": ({"adapter_config.json": ADAPTER, "adapter_model.safetensors": b""}, "a LoRA adapter of Qwen/Qwen2.5-0.5B"),
    "LoRA with a config": ({"adapter_config.json": ADAPTER, CONFIG: VALUES}, "merge_and_unload"),
    "another adapter": ({"adapter_config.json": {"peft_type": "IA3"}}, "an adapter (IA3), not a model"),
    "an adapter that cannot be read": ({"adapter_config.json": POINTER}, "a LoRA adapter, not a model"),
    "GGUF": ({"x-q4_k_m.gguf": b"GGUF"}, "is a GGUF model, and no checkpoint in safetensors"),
    "GGUF and a config": ({"x.gguf": b"GGUF", CONFIG: VALUES}, "is a GGUF model, and no checkpoint in safetensors"),
    "two of GGUF": ({"x.gguf": b"GGUF", "y.gguf": bytes(1024)}, "x.gguf (0.00 KiB), y.gguf (1.00 KiB)"),
    "GGUF in folders": ({"BF16/x.gguf": b"GGUF"}, "GGUF files in its folders (BF16/x.gguf): give one of these files"),
    "PyTorch": ({CONFIG: VALUES, "pytorch_model.bin": b""}, "weights of PyTorch, which can run code"),
    "PyTorch shards": ({"pytorch_model-00001-of-00002.bin": b""}, "weights of PyTorch"),
    "original": ({"consolidated.00.pth": b"", "params.json": {}}, "weights of PyTorch"),
    "TensorFlow": ({CONFIG: VALUES, "tf_model.h5": b""}, "weights of TensorFlow"),
    "Flax": ({CONFIG: VALUES, "flax_model.msgpack": b""}, "weights of Flax"),
    "ONNX": ({CONFIG: VALUES, "onnx/model.onnx": b""}, "an ONNX model (onnx/model.onnx)"),
    "OpenVINO": ({CONFIG: VALUES, "openvino_model.xml": b""}, "an OpenVINO model"),
    "DeepSpeed": ({CONFIG: VALUES, "zero_to_fp32.py": b"", "global_step9/x.pt": b""}, "run its zero_to_fp32.py"),
    "Diffusers": ({"model_index.json": {}, "unet/config.json": {}}, "a pipeline of Diffusers"),
    "Sentence Transformers": ({"modules.json": b"[]", CONFIG: VALUES}, "an embedding model"),
    "Ollama": ({"manifests/x": b"", "blobs/sha256-0": b""}, "models of Ollama"),
    "a config alone": ({CONFIG: VALUES}, "holds neither model.safetensors nor model.safetensors.index.json"),
    "a tokenizer": ({"tokenizer.json": {}}, "a tokenizer, and no model"),
    "no config": ({SINGLE: WEIGHTS}, "there is no config.json beside model.safetensors"),
    "no config beside packed weights": ({"packed-q4.safetensors": b""}, "no config.json beside packed-q4.safetensors"),
    "shards without an index": ({CONFIG: VALUES, "model-00001-of-00002.safetensors": b""}, f"but no {INDEX}"),
    "another name": (
        {CONFIG: VALUES, "consolidated.safetensors": b""},
        "but consolidated.safetensors: name the file itself",
    ),
    "a training run": ({"checkpoint-500/config.json": VALUES, "checkpoint-90/x": b""}, "a training run"),
    "one folder too high": ({"qwen/config.json": VALUES, "README.md": b""}, "its folder qwen may"),
    "half a download": ({CONFIG: VALUES, "model.safetensors.part": b""}, "an unfinished download, model.safetensors"),
    "the cache": ({"models--Qwen--QwQ-32B/refs/main": b""}, "give an id, such as Qwen/QwQ-32B"),
    "the folder of the cache": ({"hub/models--a--b/x": b"", "token": b""}, "the folder of the Hugging Face cache"),
    "AWQ": (
        {CONFIG: AWQ, SINGLE: WEIGHTS},
        "holds quantised weights of AWQ, and no floats: formats.open_source reads them",
    ),
    "MLX": ({CONFIG: MLX, SINGLE: WEIGHTS}, "holds quantised weights of MLX"),
    "quantised without a method": ({CONFIG: VALUES | {"quantization_config": {}}, SINGLE: WEIGHTS}, "of its own"),
    "AWQ without a key": ({CONFIG: VALUES, SINGLE: WEIGHTS, "quant_config.json": {}}, "quantised weights of AWQ"),
    "GPTQ without a key": ({CONFIG: VALUES, SINGLE: WEIGHTS, "quantize_config.json": {}}, "quantised weights of GPTQ"),
    **{
        f"another method, {method}": (
            {CONFIG: VALUES | {"quantization_config": {"quant_method": method}}, SINGLE: WEIGHTS},
            f"in the format {shown}, which are not read: take the AWQ, GPTQ, MLX or GGUF files of this model",
        )
        for method, shown in {
            **{"fp8": "FP8", "fbgemm_fp8": "fbgemm_fp8", "bitsandbytes": "bitsandbytes", "exl3": "EXL3"},
            **{"compressed-tensors": "compressed-tensors", "aqlm": "AQLM", "eetq": "EETQ", "hqq": "HQQ"},
            **{"quanto": "quanto", "torchao": "torchao", "auto-round": "auto-round", "vptq": "VPTQ", "spqr": "SPQR"},
        }.items()
    },
    "EXL2": ({CONFIG: AWQ | {"quantization_config": {"quant_method": "exl2"}}, "output.safetensors": b""}, "EXL2"),
    "bitsandbytes": (
        {CONFIG: AWQ | {"quantization_config": {"quant_method": "bitsandbytes"}}, SINGLE: WEIGHTS},
        "in the format bitsandbytes",
    ),
    "compressed": ({CONFIG: VALUES | {"compression_config": {}}, SINGLE: WEIGHTS}, "quantised weights"),
    "CTranslate2": ({CONFIG: {}, "model.bin": b"", "vocabulary.json": b"[]"}, "a CTranslate2 model"),
    "Keras": ({CONFIG: {}, "model.weights.h5": b""}, "weights of TensorFlow"),
    "an archive": ({"qwq.zip": b""}, "an archive (qwq.zip): unpack it"),
    "a name in capitals": ({"Config.json": VALUES}, "holds Config.json: the name must be config.json"),
    "a name with an ending": ({"config.json.txt": VALUES}, "the name must be config.json"),
    "a repository without files": ({"refs/main": b"x", "blobs/x": b""}, "without files of it: give its id"),
    "something else": ({"README.md": b"text"}, "holds no model: there is no config.json"),
}


def make(folder, files):
    for name, contents in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name == SINGLE and isinstance(contents, dict):
            write(folder, {SINGLE: contents})
            if CONFIG not in files:
                (folder / CONFIG).unlink()
        else:
            file.write_bytes(contents if isinstance(contents, bytes) else json.dumps(contents).encode())
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_something_else(tmp_path, name):
    files, words = FOLDERS[name]
    folder = make(tmp_path, {key: value for key, value in files.items() if value is not WEIGHTS})
    folder = make(tmp_path, {key: value for key, value in files.items() if value is WEIGHTS} | files)
    with pytest.raises(QwqError) as caught:
        Checkpoint.open(folder)
    assert words in str(caught.value)
    assert caught.value.file == str(folder)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_has_no_problem(tmp_path):
    """Files of other formats beside it make no difference."""
    folder = make(tmp_path, {"x.gguf": b"", "pytorch_model.bin": b"", "onnx/model.onnx": b"", SINGLE: WEIGHTS})
    (folder / CONFIG).write_text(json.dumps(VALUES))
    assert recognise.folder_problem(folder) is None
    assert recognise.file_problem(folder / SINGLE) is None


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "y.gguf").write_bytes(b"GGML")
    (tmp_path / CONFIG).write_text(json.dumps(VALUES))
    (tmp_path / INDEX).write_text("{}")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "pytorch_model.bin").write_bytes(b"odd")
    adapter = make(tmp_path / "adapter", {"adapter_config.json": b"{}", "adapter_model.safetensors": bytes(16)})
    for name, words in {
        "pytorch_model.bin": "is no .safetensors file, but belongs to weights of PyTorch",
        f"{adapter.name}/adapter_model.safetensors": "holds a LoRA adapter, not a model",
        "x.gguf": "is not a GGUF file, but a git-lfs pointer to it",
        "y.gguf": 'is not a GGUF file, but the text "GGML"',
        CONFIG: f"is neither a folder nor a .safetensors or .gguf file; give its folder, {tmp_path}",
        INDEX: "give its folder",
        "notes.txt": "is neither a folder nor a .safetensors or .gguf file",
    }.items():
        with pytest.raises(CheckpointError) as caught:
            resolve(tmp_path / name)
        assert words in caught.value.problem


@pytest.mark.parametrize("call", [qwq_ref.load, lambda model: convert(model, "never", "q4")])
def test_a_shipped_config_names_its_weights(call):
    with pytest.raises(CheckpointError, match=r"^qwq-32b: is a config without .*: Qwen/QwQ-32B$"):
        call("qwq-32b")


def test_a_folder_of_many_files_is_looked_at_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(recognise, "_MOST_NAMES", 50)
    for number in range(99):
        (tmp_path / f"{number}.txt").touch()
    assert recognise.folder_problem(tmp_path) == "holds no model: there is no config.json"


@pytest.mark.parametrize("name", CONTENTS)
def test_a_template_that_is_something_else(tmp_path, name):
    contents, words = CONTENTS[name]
    (tmp_path / "chat_template.jinja").write_bytes(contents)
    with pytest.raises(TemplateError) as caught:
        load_chat_template(tmp_path)
    assert caught.value.problem.startswith("is not a template, but ")
    assert words in caught.value.problem
