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
from ..files import StrPath, read_json
from .generation_config import GenerationConfig
from .names import CONFIG, INDEX, SINGLE
from .safetensors import (
    DROP_FROM,
    DTYPES,
    SafetensorsFile,
    Tensor,
    first_non_finite,
)

_INDEX_BYTES = 1 << 20  # as for a header: QwQ-32B's is 0.06 MB
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class Checkpoint(Mapping[str, NDArray[np.float32]]):
    """A `Source` of floats, and a mapping: name -> float32 array, read from disk at each access.

    path       the folder or file that was opened
    config     the model's Config
    tokenizer  the folder of the tokenizer, and `template` that of the chat template
    floats     the checkpoint itself
    forms      empty: nothing is packed

    Names come in the order of `Config.tensors()`. Opening reads headers only and checks them. The files stay open: a
    file that is truncated meanwhile gives a CheckpointError, and a file that is replaced goes unnoticed. Close the
    checkpoint, or use it in a `with`.
    """

    forms: tuple[str, ...] = ()

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
        config, is_folder = read_config(path), os.path.isdir(path)
        with ExitStack() as files:
            if is_folder and not os.path.lexists(path / SINGLE):
                if not os.path.lexists(path / INDEX):
                    raise CheckpointError(path, None, f"holds neither {SINGLE} nor {INDEX}; other formats are not read")
                homes = _open_shards(path / INDEX, config, files)
            else:
                file = _open_file(path / SINGLE if is_folder else path, files)
                _check_names(file.tensors, config, file.path)
                homes = dict.fromkeys(file.tensors, file)
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

    def read_packed(self, form: str, *_: object) -> NoReturn:
        """Raise UsageError: the tensors are floats."""
        raise UsageError(self.path, "weights", f"{form} are not here packed: the tensors are floats")

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._homes[name].tensors[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the dtype in which a tensor is stored: float32, float16 or bfloat16."""
        return DTYPES[self._homes[name].tensors[name].dtype]

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
    """Read a shard index -> tensor name -> base name of the file that holds it. Raises CheckpointError."""
    weight_map = read_json(path, _INDEX_BYTES, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(path, "weight_map", "must be an object that maps tensors to files")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or shard in ("", ".", "..") or not set(shard).isdisjoint("/\\\0"):
            raise CheckpointError(path, name, f"must be mapped to the name of a file in this folder, got {shard!r:.80}")
    return weight_map


def _open_file(path: Path, files: ExitStack) -> SafetensorsFile:
    file = SafetensorsFile(path)
    files.callback(file.close)
    return file


def _open_shards(index: Path, config: Config, files: ExitStack) -> dict[str, SafetensorsFile]:
    """Open every shard. Index and headers must agree both ways, so that no tensor can be in two files."""
    weight_map = read_index(index)
    _check_names(weight_map, config, index)
    homes: dict[str, SafetensorsFile] = {}
    for shard in sorted(set(weight_map.values())):
        file = _open_file(index.parent / shard, files)
        for name in file.tensors:
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    file.path, name, f"is here, but {INDEX} has it in {weight_map.get(name, 'no file')}"
                )
            homes[name] = file
    for name, shard in weight_map.items():
        if name not in homes:
            raise CheckpointError(index.parent / shard, name, f"is not here, but {INDEX} says so")
    return homes


def _check_names(found: Collection[str], config: Config, path: StrPath) -> None:
    wanted = config.tensors()
    missing = [name for name in wanted if name not in found]
    if missing:
        hint = "; is tie_word_embeddings: true missing there?" if missing == [_HEAD] else ""
        raise CheckpointError(path, _first_three(missing), f"missing: {len(missing)} of the tensors of {CONFIG}{hint}")
    extra = [name for name in found if name not in wanted and not _tolerated(name, config)]
    if extra:
        raise CheckpointError(
            path, _first_three(extra), f"unexpected: {len(extra)} tensors that {CONFIG} does not imply"
        )


def _tolerated(name: str, config: Config) -> bool:
    """Accept the RoPE frequencies of old files, which the config implies, and a head that is tied to the embedding."""
    return name.endswith("rotary_emb.inv_freq") or (name == _HEAD and config.tie_word_embeddings)


def _check_shapes(homes: Mapping[str, SafetensorsFile], config: Config) -> None:
    shapes = config.tensors()
    wrong = [name for name, shape in shapes.items() if homes[name].tensors[name].shape != shape]
    if wrong:
        path, name = homes[wrong[0]].path, wrong[0]
        problem = f"shape {list(homes[name].tensors[name].shape)}, but {CONFIG} implies {list(shapes[name])}"
        raise CheckpointError(path, _first_three(wrong), f"{problem} ({len(wrong)} tensors of a wrong shape)")


def _check_tied_head(homes: Mapping[str, SafetensorsFile], config: Config) -> None:
    """Check that the saved head of a tied model equals the embedding to the bit: else one of them is wrong."""
    if not config.tie_word_embeddings or _HEAD not in homes:
        return
    head, embedding = homes[_HEAD], homes[_EMBEDDING]
    ours, theirs = head.tensors[_HEAD], embedding.tensors[_EMBEDDING]
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape) or any(
        not np.array_equal(a, b)
        for (_, a), (_, b) in zip(head.blocks(_HEAD), embedding.blocks(_EMBEDDING), strict=True)
    ):
        raise CheckpointError(
            head.path, _HEAD, f"differs from {_EMBEDDING}, but {CONFIG} has tie_word_embeddings: true"
        )


def _first_three(names: list[str]) -> str:
    return ", ".join(names[:3])
