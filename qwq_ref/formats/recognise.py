"""Say what a folder, a file or a repository is, where it is no checkpoint that this project reads, and what to do."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..config import QUANTISED
from ..errors import CheckpointError
from ..files import GGUF, START, StrPath, foreign, foreign_text, open_regular, read_json
from ..footprint import human
from .gguf.names import models_in
from .names import CONFIG, INDEX, ONLY_CONFIGS, SHARD, SHIPPED, SINGLE, UNFINISHED, packed_form
from .quantisation import AWQ_CONFIG, GPTQ_CONFIG, quantised_method, unread
from .unfinished import command_of, not_finished

Values = Callable[[str], Mapping[str, Any]]  # the name of a JSON file -> its object; empty if it cannot be read

_JSON_BYTES = 1 << 20
_MOST_NAMES, _MOST_INNER = 10_000, 100
_ORIGINAL = "take the checkpoint in safetensors that they were made from"
_UNFINISHED = ("*.incomplete", "*.part", "*.partial", "*.crdownload", "*.aria2", "*.download")

# Patterns of names -> what the files are, and what to do. The first row with a file decides.
_OTHERS = (
    (("*.gguf",), "GGUF files of llama.cpp", "download one of them, and give the file itself"),
    (("*/*.gguf",), "GGUF files in its folders", "give one of these files"),
    (("*.ggml",), "GGML files, an old format of llama.cpp", _ORIGINAL),
    (("zero_to_fp32.py",), "a checkpoint of DeepSpeed", "run its zero_to_fp32.py, and save the result as safetensors"),
    (
        ("pytorch_model*.bin", "pytorch_model.bin.index.json", "*.pth", "model*.pt"),
        "weights of PyTorch, which can run code when they are read",
        "save them as safetensors, with save_pretrained of transformers",
    ),
    (("vocabulary.json", "vocabulary.txt"), "a CTranslate2 model", _ORIGINAL),
    (("*.h5", "saved_model.pb", "*.tflite", "*.keras"), "weights of TensorFlow", _ORIGINAL),
    (("flax_model*.msgpack",), "weights of Flax", _ORIGINAL),
    (("*.onnx", "onnx/*.onnx"), "an ONNX model", _ORIGINAL),
    (("openvino_model*", "openvino/*"), "an OpenVINO model", _ORIGINAL),
    (("*.mlpackage/", "*.mlmodel", "coreml/"), "a Core ML model", _ORIGINAL),
    (("*.engine", "rank*.safetensors"), "an engine of TensorRT-LLM", _ORIGINAL),
    (("*.nemo",), "a NeMo model", _ORIGINAL),
    (("weights*.npz",), "an MLX model", _ORIGINAL),
    (("Modelfile", "manifests/"), "models of Ollama, which are GGUF files", _ORIGINAL),
    (("*.zip", "*.tar", "*.tar.*", "*.tgz", "*.7z", "*.rar", "*.zst"), "an archive", "unpack it"),
)


def require(path: Path, name: StrPath | None = None) -> None:
    """Raise CheckpointError if a folder or file cannot be a checkpoint or packed weights, by its names alone.

    name  what the user called it
    """
    found = folder_problem(path) if path.is_dir() else file_problem(path)
    if found is not None:
        raise CheckpointError(path if name is None else name, None, found)


def file_problem(path: Path) -> str | None:
    """Return what is wrong with a file that should hold weights: its kind, or no config beside it."""
    odd = "is neither a folder nor a .safetensors or .gguf file"
    try:
        descriptor = open_regular(path, CheckpointError)
    except CheckpointError as problem:
        return f"{odd}: {problem.problem}"
    with os.fdopen(descriptor, "rb") as file:
        start = file.read(START)
    if start.startswith(GGUF):
        return None
    if path.suffix == ".gguf":
        return f"is not a GGUF file, but {foreign(start) or foreign_text(start) or 'something else'}"
    kind = foreign(start) or (foreign_text(start) if path.suffix == ".safetensors" else None)
    if kind and not kind.startswith("a safetensors"):
        return f"is not a safetensors file, but {kind}"
    if path.suffix != ".safetensors":
        for patterns, what, advice in _OTHERS:
            if _first([path.name], patterns):
                return f"is no .safetensors file, but belongs to {what}: {advice}"
        return f"{odd}; give its folder, {path.parent}" if path.name in (CONFIG, INDEX) else odd
    if not (path.parent / CONFIG).is_file():
        adapter = (path.parent / "adapter_config.json").is_file()
        return folder_problem(path.parent) if adapter else f"there is no {CONFIG} in its folder"
    return None


def gguf_of(path: Path) -> Path:
    """Return the GGUF file to open of a folder that holds one model in this format; any other path as it is.

    Raises CheckpointError for a folder with several such models. Of a model in shards, it is the first shard.
    """
    if not path.is_dir():
        return path
    try:
        names = [entry.name for entry in itertools.islice(path.iterdir(), _MOST_NAMES)]
    except OSError:
        return path
    if any(name in (SINGLE, INDEX) or packed_form(name) for name in names):
        return path
    models = models_in(name for name in names if (path / name).is_file())
    if len(models) > 1:
        raise CheckpointError(
            path, None, f"holds {len(models)} GGUF models: name one of these files: {_list(path, models)}"
        )
    return path / next(iter(models)) if models else path


def quantisation(path: Path) -> str | None:
    """Return the method by which a folder's weights, or a file's in it, are quantised; None if they are floats."""
    folder = path if path.is_dir() else path.parent
    beside = [name for name in (AWQ_CONFIG, GPTQ_CONFIG) if (folder / name).is_file()]
    return quantised_method(beside, lambda: _values(folder / CONFIG))


def _values(path: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file; empty if it cannot be read."""
    try:
        return read_json(path, _JSON_BYTES, CheckpointError)
    except CheckpointError:
        return {}


def _list(folder: Path, models: Mapping[str, list[str]]) -> str:
    """Return the first files of models, each with the bytes of all its files."""
    sizes = {name: sum((folder / each).stat().st_size for each in files) for name, files in models.items()}
    shown = [f"{name} ({human(size)})" for name, size in itertools.islice(sizes.items(), 12)]
    return ", ".join(shown) + (", ..." if len(sizes) > 12 else "")


def folder_problem(folder: Path) -> str | None:
    """Return what a folder is, if it is neither a checkpoint nor packed weights."""

    def values(name: str) -> Mapping[str, Any]:
        return _values(folder / name)

    command = _unfinished_conversion(folder)
    if command is not None:
        return not_finished(command)
    if folder.parent == SHIPPED and folder.name in ONLY_CONFIGS:
        return f"is a config without {SINGLE}; the weights are in the Hugging Face hub: {ONLY_CONFIGS[folder.name]}"
    try:
        if gguf_of(folder) != folder:
            return None
    except CheckpointError as problem:
        return problem.problem
    try:
        names = _names(folder)
    except OSError as problem:
        return f"cannot be read ({problem.strerror})"
    return problem_of(names, values) or _unfinished(names)


def _unfinished_conversion(folder: Path) -> str | None:
    """Return the command that finishes the conversion in a folder, if no weights have appeared there yet."""
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    if any(name in (SINGLE, INDEX) or packed_form(name) for name in names):
        return None
    return command_of(folder) if any(name.startswith(UNFINISHED) for name in names) else None


def problem_of(names: Collection[str], values: Values) -> str | None:
    """Return what a list of files is, if it is neither a checkpoint nor packed weights.

    names   relative names of the files of a folder or a repository
    values  reads one of its JSON files
    """
    weights = [name for name in names if name in (SINGLE, INDEX) or packed_form(name)]
    if CONFIG in names and (weights or any(name.endswith(".safetensors") for name in names)):
        quantised = _quantised(values(CONFIG), names)
        if weights or quantised:
            return quantised
    if weights:
        return f"there is no {CONFIG} beside {weights[0]}: download it too"
    if "adapter_config.json" in names or "adapter_model.safetensors" in names:
        return _adapter(values("adapter_config.json"))
    absent = f"holds neither {SINGLE} nor {INDEX}"
    tensors = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if any(SHARD.fullmatch(name) for name in tensors):
        return f"holds shards, but no {INDEX}: download it too"
    if found := _place(names):
        return found
    for patterns, what, advice in _OTHERS:
        if match := _first(names, patterns):
            return f"{absent}, but {what} ({match}): {advice}"
    if "model_index.json" in names:
        return "holds a pipeline of Diffusers, which makes images and no text"
    if "modules.json" in names or "config_sentence_transformers.json" in names:
        return "holds an embedding model of Sentence Transformers, which writes no text"
    if _unfinished(names):
        return _unfinished(names)
    if tensors and CONFIG in names:
        return f"{absent}, but {tensors[0]}: name the file itself"
    if CONFIG in names:
        return f"{absent}: there are no weights beside the {CONFIG}"
    wrong = next((name for name in names if name.lower().removesuffix(".txt") == CONFIG), None)
    if wrong is not None:
        return f"holds {wrong}: the name must be {CONFIG}"
    if "tokenizer.json" in names or "tokenizer_config.json" in names:
        return "holds a tokenizer, and no model"
    return "is empty" if not names else f"holds no model: there is no {CONFIG}"


def _names(folder: Path) -> list[str]:
    """Return the names in a folder, and those in its folders: `file`, `folder/`, `folder/file`."""
    names = []
    with os.scandir(folder) as entries:
        found = list(itertools.islice(entries, _MOST_NAMES))
    for entry in sorted(found, key=lambda entry: entry.name):
        if not os.path.isdir(entry.path):  # `entry.is_dir` fails at a loop of links
            names.append(entry.name)
            continue
        names.append(entry.name if entry.name in (CONFIG, INDEX, SINGLE) else f"{entry.name}/")
        try:
            with os.scandir(entry.path) as inner:
                names += [f"{entry.name}/{each.name}" for each in itertools.islice(inner, _MOST_INNER)]
        except OSError:
            continue  # a folder that may not be read says nothing
    return names


def _place(names: Collection[str]) -> str | None:
    """Recognise folders that hold models at a deeper place: parts of the hub's cache, and runs of training."""
    folders = sorted(name.partition("/")[0] for name in names if "/" in name)
    if "refs" in folders and "blobs" in folders and "snapshots" not in folders:
        return "is the cache of a repository, without files of it: give its id, owner/name"
    if "snapshots" in folders and "blobs" in folders:  # `hub.resolve` finds the snapshot of a complete one
        inner = [name for name in names if name.startswith("snapshots/") and name != "snapshots/"]
        return f"is the cache of a repository: give a snapshot, such as {inner[0]}" if inner else "is an empty cache"
    cached = [name for name in folders if name.startswith("models--")]
    if cached:
        return f"is the Hugging Face cache: give an id, such as {'/'.join(cached[0].split('--')[1:])}"
    if any(name.startswith("hub/models--") for name in names):
        return "is the folder of the Hugging Face cache: give the id of a model"
    runs = [name for name in dict.fromkeys(folders) if re.fullmatch(r"checkpoint-\d+", name)]
    if runs and CONFIG not in names:
        return f"holds the checkpoints of a training run: give one of them, such as {runs[-1]}"
    inner = [name for name in names if name.endswith(f"/{CONFIG}")]
    if inner and CONFIG not in names and "model_index.json" not in names:
        return f"holds no model, but its folder {inner[0].partition('/')[0]} may: give that"
    return None


def _first(names: Iterable[str], patterns: Iterable[str]) -> str | None:
    """Return the first name that one of the patterns matches: a * does not match "/"."""
    for name in sorted(names):
        if any(name.count("/") == each.count("/") and fnmatchcase(name, each) for each in patterns):
            return name
    return None


def _unfinished(names: Iterable[str]) -> str | None:
    name = _first(names, _UNFINISHED)
    return name and f"holds an unfinished download, {name}: download it again"


def _adapter(values: Mapping[str, Any]) -> str:
    kind, base = values.get("peft_type"), values.get("base_model_name_or_path")
    what = f"an adapter ({kind})" if isinstance(kind, str) and kind != "LORA" else "a LoRA adapter"
    of = f" of {base}" if isinstance(base, str) and base else ""
    return f"holds {what}{of}, not a model: merge it into its base model with PEFT's merge_and_unload"


def _quantised(values: Mapping[str, Any], names: Collection[str]) -> str | None:
    """Return the problem of a checkpoint that is quantised in a format that is not read."""
    method = quantised_method(names, lambda: values)
    return None if method is None or method in QUANTISED else unread(method)
