"""A checkpoint: config.json and its safetensors files, checked against each other and read tensor by tensor."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from ..config import Config
from ..errors import CheckpointError, UsageError
from ..files import StrPath, is_gguf, read_json
from . import recognise
from .generation_config import GenerationConfig
from .names import CONFIG, INDEX, SINGLE
from .safetensors import (
    DROP_FROM,
    DTYPES,
    FLOATS,
    SIZES,
    SafetensorsFile,
    Tensor,
    equal_values,
    first_non_finite,
)

_INDEX_BYTES = 1 << 20  # as for a header: QwQ-32B's is 0.06 MB
_HEAD, _EMBEDDING, _NORM = "lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"
_QUANTISED = (".qweight", ".scales", ".weight_scale", ".weight_scale_inv", ".weight_packed", ".absmax", ".SCB")


class Checkpoint(Mapping[str, NDArray[np.float32]]):
    """A `Source` of floats, and a mapping: name -> float32 array, read from disk at each access.

    path       the folder or file that was opened
    config     the model's Config
    tokenizer  the folder of the tokenizer, and `template` that of the chat template
    floats     the checkpoint itself
    forms      empty: nothing is packed
    kept       None: nothing is quantised

    Names come in the order of `Config.tensors()`. Opening reads headers only and checks them. The files stay open: a
    file that is truncated meanwhile gives a CheckpointError, and a file that is replaced goes unnoticed. Close the
    checkpoint, or use it in a `with`.
    """

    forms: tuple[str, ...] = ()
    kept = None

    def __init__(self, path: Path, config: Config, homes: Mapping[str, SafetensorsFile], files: ExitStack) -> None:
        self.path = path
        self.config = config
        self.tokenizer = self.template = path if path.is_dir() else path.parent
        self._homes = {name: homes[name] for name in config.tensors()}
        self._files = files
        self._is_large = sum(self.dtypes.values()) >= DROP_FROM

    @classmethod
    def open(cls, path: StrPath) -> Checkpoint:
        """Open a folder, or one .safetensors file beside its config.json. Raises ConfigError, CheckpointError.

        If a folder holds a single file and an index, the single file is read, as in Hugging Face.
        """
        path = Path(path)
        if not os.path.lexists(path):
            raise CheckpointError(path, None, "no such file or folder")
        recognise.require(path)
        if is_gguf(recognise.gguf_of(path)):
            raise CheckpointError(path, None, "is a GGUF model, and no checkpoint in safetensors")
        config, is_folder = read_config(path), os.path.isdir(path)
        method = recognise.quantisation(path)
        if method:
            problem = f"holds quantised weights of {method.upper()}, and no floats: formats.open_source reads them"
            raise CheckpointError(path, None, problem)
        with ExitStack() as files:
            if is_folder and not os.path.lexists(path / SINGLE):
                listing = path / INDEX
                homes = _open_shards(listing, config, files)
            else:
                listing = path / SINGLE if is_folder else path
                file = open_file(listing, files)
                homes = dict.fromkeys(file.tensors, file)
            _share_head(homes, config)
            _check_names(homes, config, listing)
            _check_dtypes(homes, config)
            _check_shapes(homes, config)
            _check_tied_head(homes, config)
            return cls(path, config, homes, files.pop_all())

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def floats(self) -> Checkpoint:
        return self

    def generation_config(self) -> GenerationConfig:
        """Return the sampling defaults and end tokens. Raises ConfigError."""
        return GenerationConfig.from_folder(self.tokenizer, self.config)

    def open_packed(self, form: str, *_: object) -> NoReturn:
        """Raise UsageError: the tensors are floats."""
        raise UsageError(self.path, "weights", f"{form} are not here packed: the tensors are floats")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._homes[name].tensors[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the dtype in which a tensor is stored: float32, float16 or bfloat16."""
        return DTYPES[self._homes[name].tensors[name].dtype]

    def file(self, name: str) -> StrPath:
        """Return the file that holds a tensor."""
        return self._homes[name].path

    def rows(self, name: str, begin: int, end: int) -> NDArray[Any]:
        """Return rows [begin, end) of a tensor in its stored dtype."""
        result = np.empty((end - begin, *self.shape(name)[1:]), self.dtype(name))
        self.read_into(name, begin, [result])
        return result

    def read_into(self, name: str, begin: int, out: Sequence[NDArray[Any]]) -> None:
        """Fill contiguous arrays of the stored dtype, one after another, with the rows of a tensor from `begin` on."""
        self._homes[name].read_into(name, begin, out)

    def forget(self, name: str, begin: int, end: int) -> None:
        """Tell the system to drop its copy of these rows, if the checkpoint is large: see `DROP_FROM`."""
        if self._is_large:
            self._homes[name].forget(name, begin, end)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._homes[name].read(name)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._homes

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return name -> dtype, shape and place in its file."""
        return {name: file.tensors[name] for name, file in self._homes.items()}

    @property
    def parameters(self) -> int:
        """Return the number of parameters. A tied head is counted once."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def dtypes(self) -> dict[str, int]:
        """Return the number of bytes of each stored dtype."""
        totals: dict[str, int] = {}
        for tensor in self.tensors.values():
            totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.nbytes
        return totals

    def check_finite(self, progress: Callable[[int], object] | None = None) -> None:
        """Read everything once. Raises CheckpointError at the first NaN or infinity.

        progress  called with the number of bytes read since its last call, as for tqdm's `update`
        """
        for name, file in self._homes.items():
            for start, block in file.blocks(name):
                found = first_non_finite(block, file.tensors[name].dtype)
                if found is not None:
                    index = [int(n) for n in np.unravel_index(start + found[0], file.tensors[name].shape)]
                    raise CheckpointError(file.path, name, f"holds {found[1]} at {index}")
                if progress is not None:
                    progress(block.nbytes)


def read_config(path: Path) -> Config:
    """Read the config of a folder, or of the folder that a file of weights is in. Raises ConfigError."""
    return Config.from_file((path if path.is_dir() else path.parent) / CONFIG)


def read_index(path: Path) -> dict[str, str]:
    """Read a shard index -> tensor name -> the file that holds it, below the index's folder. Raises CheckpointError."""
    weight_map = read_json(path, _INDEX_BYTES, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(path, "weight_map", "must be an object that maps tensors to files")
    for name, shard in weight_map.items():
        parts = [part for part in shard.split("/") if part != "."] if isinstance(shard, str) else []
        if not parts or not {"", ".."}.isdisjoint(parts) or not set(shard).isdisjoint("\\\0"):
            problem = f"must be mapped to the name of a file in this folder or below, got {shard!r:.80}"
            raise CheckpointError(path, name, problem)
        weight_map[name] = "/".join(parts)
    return weight_map


def open_file(path: Path, files: ExitStack) -> SafetensorsFile:
    """Open a file whose tensors get the names of `Config.tensors`."""
    file = SafetensorsFile(path, SIZES)  # tensors that are not read may have any dtype
    files.callback(file.close)
    tensors = {_full_name(name): tensor for name, tensor in file.tensors.items()}
    if len(tensors) < len(file.tensors):
        twice = next(name for name in file.tensors if _full_name(name) != name and _full_name(name) in file.tensors)
        raise CheckpointError(path, twice, f"is here, and {_full_name(twice)} too: they are one tensor")
    file.tensors = tensors
    return file


def _full_name(name: str) -> str:
    """Return a tensor's name in the whole model: Qwen2Model, saved without a head, writes names without `model.`."""
    return f"model.{name}" if name.startswith(("embed_tokens.", "layers.", "norm.")) else name


def _open_shards(index: Path, config: Config, files: ExitStack) -> dict[str, SafetensorsFile]:
    """Open every shard of an index -> tensor -> the file that holds it.

    Shards may hold tensors that the index has elsewhere, or does not have. A tensor in two shards must have the same
    values in both: else the model has two meanings.
    """
    shards = read_index(index)
    wanted = config.tensors()
    listed = {_full_name(name): shard for name, shard in shards.items()}
    if any(not _expected(name, wanted, config) for name in listed):
        _check_names(listed, config, index)  # another model: no shard need be opened
    homes: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(shards.values())):
        file = open_file(index.parent / shard, files)
        for name in file.tensors:
            if not _expected(name, wanted, config):
                raise CheckpointError(file.path, name, f"unexpected: {CONFIG} and {INDEX} do not imply it")
            first = homes.setdefault(name, file)
            if first is not file and name in wanted:
                _check_dtypes({name: first}, config)
                _check_dtypes({name: file}, config)
                if not equal_values(first, file, name):
                    raise CheckpointError(file.path, name, f"differs from the tensor of this name in {first.path}")
    for name, shard in listed.items():
        if name not in homes:
            raise CheckpointError(index.parent / shard, name, f"is not here, but {INDEX} says so")
    return homes


def _share_head(homes: dict[str, SafetensorsFile], config: Config) -> None:
    """Let the head be the embedding of a tied model: some writers keep one name of a shared tensor, and it is this."""
    if config.tie_word_embeddings and _EMBEDDING not in homes and _HEAD in homes:
        homes[_EMBEDDING] = file = homes.pop(_HEAD)
        file.tensors[_EMBEDDING] = file.tensors[_HEAD]


def _check_names(found: Collection[str], config: Config, path: StrPath) -> None:
    wanted = config.tensors()
    missing = [name for name in wanted if name not in found]
    if missing:
        hint = _missing_hint(missing, found, path)
        raise CheckpointError(path, _first_three(missing), f"missing: {len(missing)} of the tensors of {CONFIG}{hint}")
    extra = [name for name in found if not _expected(name, wanted, config)]
    if extra:
        some = "1 tensor" if len(extra) == 1 else f"{len(extra)} tensors"
        raise CheckpointError(path, _first_three(extra), f"unexpected: {some} that {CONFIG} does not imply")


def _missing_hint(missing: list[str], found: Collection[str], path: StrPath) -> str:
    """Return a probable reason why tensors are missing, or an empty string."""
    if missing == [_HEAD]:
        return "; is tie_word_embeddings: true missing there? A Qwen2Model that was saved alone has no output head"
    if any(name.endswith(_QUANTISED) for name in found):
        return "; the tensors are quantised: use the fp32, fp16 or bf16 checkpoint that they were made from"
    longer = next((name for name in found if name.endswith(f".{_NORM}")), None)
    if longer is not None:
        return f"; names begin with {longer.removesuffix(_NORM)[:40]}: save the model inside of its wrapper"
    if Path(path).name not in (SINGLE, INDEX) and os.path.lexists(Path(path).parent / INDEX):
        return "; this is one of several files: open their folder"
    return ""


def _expected(name: str, wanted: Collection[str], config: Config) -> bool:
    """Accept the RoPE frequencies of old files, which the config implies, and a head that is tied to the embedding."""
    return name in wanted or name.endswith("rotary_emb.inv_freq") or (name == _HEAD and config.tie_word_embeddings)


def _check_dtypes(homes: Mapping[str, SafetensorsFile], config: Config) -> None:
    for name in [*config.tensors(), _HEAD]:
        compared_only = name == _HEAD and config.tie_word_embeddings
        read = (*FLOATS, "F64") if compared_only else FLOATS
        if name in homes and (dtype := homes[name].tensors[name].dtype) not in read:
            problem = f"dtype must be one of {', '.join(FLOATS)}, got {dtype}: save the model in one of these"
            raise CheckpointError(homes[name].path, name, problem)


def _check_shapes(homes: Mapping[str, SafetensorsFile], config: Config) -> None:
    shapes = config.tensors()
    wrong = [name for name, shape in shapes.items() if homes[name].tensors[name].shape != shape]
    if wrong:
        path, name = homes[wrong[0]].path, wrong[0]
        problem = f"shape {list(homes[name].tensors[name].shape)}, but {CONFIG} implies {list(shapes[name])}"
        raise CheckpointError(path, _first_three(wrong), f"{problem} ({len(wrong)} tensors of a wrong shape)")


def _check_tied_head(homes: Mapping[str, SafetensorsFile], config: Config) -> None:
    """Check that the saved head of a tied model has the values of the embedding: else one of them is wrong."""
    if config.tie_word_embeddings and _HEAD in homes:
        head = homes[_HEAD]
        if not equal_values(head, homes[_EMBEDDING], _HEAD, _EMBEDDING):
            problem = f"differs from {_EMBEDDING}, but {CONFIG} has tie_word_embeddings: true"
            raise CheckpointError(head.path, _HEAD, problem)


def _first_three(names: list[str]) -> str:
    return ", ".join(names[:3])
