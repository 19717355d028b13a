"""A source: the files of one model, in any format that the project reads.

Every format is one module with one class that has the attributes and methods of `Source`. `open_source` chooses the
class by looking at the files. A new format needs such a module, a line in `open_source`, and its names in `hub.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from ..config import Config
from ..core import Array, Packed
from ..files import StrPath, is_gguf
from ..forms import FileForm
from . import checkpoint, recognise
from .checkpoint import Checkpoint
from .decoded import DecodedSource
from .generation_config import GenerationConfig
from .gguf import GGUFSource
from .packed import PackedFile, Stored
from .packed_folder import PackedFolder, packed_files
from .parts import Parts
from .quantised import QuantisedSource

Progress = Callable[[float], object]


@runtime_checkable
class Tensors(Protocol):
    """Tensors of floats by the names of `Config.tensors`, read some rows at a time. Threads may read together."""

    def __getitem__(self, name: str, /) -> Array:
        """Return a whole tensor, widened to float32."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the dtype in which a tensor is stored: float32, float16, or bfloat16 of `ml_dtypes`."""

    def file(self, name: str) -> StrPath | None:
        """Return the file that holds a tensor, for errors; None where there is none."""

    def rows(self, name: str, begin: int, end: int) -> Array:
        """Return rows [begin, end) of a tensor in its stored dtype."""

    def read_into(self, name: str, begin: int, out: Sequence[Array]) -> None:
        """Fill contiguous arrays of the stored dtype, one after another, with the rows of a tensor from `begin` on."""

    def check_finite(self, progress: Callable[[int], object] | None = None) -> None:
        """Read everything once. Raises CheckpointError at the first NaN or infinity.

        progress  called with the number of bytes read since its last call, as for tqdm's `update`
        """

    def forget(self, name: str, begin: int, end: int) -> None:
        """Tell the system that these rows will not be read again."""


@runtime_checkable
class Kept(Protocol):
    """The matrices of a quantised file as it stores them, in the formats of the core. Threads may read together.

    form      the format of each matrix
    repacked  the file's types that no format holds without loss -> the number of matrices
    held      bytes of memory that reading takes at most, beside the rows that are asked for
    """

    @property
    def form(self) -> FileForm: ...

    @property
    def repacked(self) -> Mapping[str, int]: ...

    @property
    def held(self) -> int: ...

    def parts(self, name: str, begin: int, end: int) -> Parts:
        """Return rows [begin, end) of a matrix in its format. NaN and infinity pass."""

    def pack(self, name: str, begin: int, end: int, out: Packed, step: int = 1) -> bool:
        """Pack rows [begin, end) of a matrix, as `parts` returns them -> whether all scales, or floats, are finite.

        begin      a multiple of 32
        out, step  see `core.pack`
        """

    def loss(self) -> float:
        """Return the relative error of the repacked matrices, of a sample; 0 if there are none."""


class Source(Protocol):
    """One model's files, open for reading. Opening reads and checks headers only.

    path       the folder or the file that was opened
    config     the model's Config
    tokenizer  the folder or the file that `text.load_tokenizer` reads
    template   the folder or the GGUF file that `text.load_chat_template` reads
    floats     the tensors as floats; None if the source holds packed weights only
    dtypes     bytes of each dtype in which `floats` are stored
    forms      the weight forms that the source holds packed, ready for the core: those that `open_packed` takes
    kept       the matrices of a quantised file, to be packed as they are stored; None for another source
    """

    path: Path
    config: Config
    tokenizer: Path
    template: Path

    @property
    def floats(self) -> Tensors | None: ...

    @property
    def dtypes(self) -> Mapping[str, int]: ...

    @property
    def forms(self) -> tuple[str, ...]: ...

    @property
    def kept(self) -> Kept | None: ...

    def generation_config(self) -> GenerationConfig:
        """Return the sampling defaults and end tokens. Raises ConfigError."""

    def open_packed(self, form: str, planned: Mapping[str, Stored]) -> PackedFile:
        """Return the open file of one of `forms`.

        planned  the names, shapes and formats that the model consists of

        Raises CheckpointError for a file that holds something else, UsageError for another form.
        """

    def close(self) -> None:
        """Close the files."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_source(path: StrPath) -> Source:
    """Open a model's folder or file, as `hub.resolve` returns it. Raises ConfigError, CheckpointError.

    A folder that holds a checkpoint is read as one. Packed weights beside it could be older, and are ignored, and so
    are GGUF files.
    """
    path = recognise.gguf_of(Path(path))
    if is_gguf(path):
        return GGUFSource.open(path)
    return PackedFolder.open(path) if packed_files(path) else _checkpoint(path)


def _checkpoint(path: Path) -> Checkpoint | QuantisedSource:
    return QuantisedSource.open(path) if recognise.quantisation(path) else Checkpoint.open(path)


def read_config(path: StrPath) -> Config:
    """Return the config of a model, by the path that `hub.resolve` returns. Raises ConfigError, CheckpointError."""
    path = recognise.gguf_of(Path(path))
    if not is_gguf(path):
        return checkpoint.read_config(path)
    with GGUFSource.open(path) as source:
        return source.config


def read_generation_config(path: StrPath) -> GenerationConfig:
    """Return the sampling defaults and end tokens of a model, by the path that `hub.resolve` returns.

    Raises ConfigError, CheckpointError.
    """
    with open_source(path) as source:
        return source.generation_config()


def open_floats(path: StrPath) -> Checkpoint | DecodedSource:
    """Open a model whose tensors are to be read as floats: a mapping name -> float32 array, with a config.

    Raises ConfigError, CheckpointError.
    """
    path = recognise.gguf_of(Path(path))
    return GGUFSource.open(path) if is_gguf(path) else _checkpoint(path)
