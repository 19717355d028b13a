"""A folder of packed weights, as `qwq convert` makes it: a source whose tensors are ready for the core."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from ..config import Config
from ..core import Format, Packed
from ..errors import CheckpointError, UsageError
from ..files import StrPath
from ..forms import FILE, FileForm
from .generation_config import GenerationConfig
from .names import CONFIG, INDEX, SINGLE, TOKENIZER_GGUF, packed_form
from .packed import PackedFile, Stored


def packed_files(path: Path) -> dict[str, Path]:
    """Return the packed weights in a folder without a checkpoint, or those that one file is: form -> file.

    Packed weights beside a checkpoint could be older than it: none are looked for there.
    """
    if not path.is_dir():
        form = packed_form(path.name)
        return {} if form is None else {form: path}
    if any((path / name).exists() for name in (SINGLE, INDEX)):
        return {}
    forms = {packed_form(file.name): file for file in path.iterdir()}
    return {form: file for form, file in forms.items() if form is not None}


def text_of(folder: Path) -> Path:
    """Return what holds the tokenizer and the template of a folder: the metadata of a GGUF file, or the folder."""
    of_gguf = folder / TOKENIZER_GGUF
    return of_gguf if of_gguf.is_file() else folder


@dataclass(frozen=True)
class PackedKept:
    """The form of packed weights that keep the types of a quantised file: see `source.Kept`."""

    form: FileForm
    repacked: Mapping[str, int] = field(default_factory=dict)

    def parts(self, name: str, begin: int, end: int) -> NoReturn:
        """Raise UsageError: the rows are in panels."""
        raise UsageError(None, name, "is packed already")

    def pack(self, name: str, begin: int, end: int, out: Packed, step: int = 1) -> NoReturn:
        """Raise UsageError, as `parts`."""
        self.parts(name, begin, end)

    @property
    def held(self) -> int:
        """Return 0: the rows are read into their places."""
        return 0

    def loss(self) -> float:
        """Return 0: it was told when the weights were packed."""
        return 0.0


def _names(packed: Mapping[str, Format], config: Config, path: Path) -> dict[str, str]:
    """Return the packed weight that holds each matrix of a config. Raises CheckpointError for one that is missing."""
    joined = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj", "gate_proj": "gate_up_proj"}
    joined |= {"up_proj": "gate_up_proj"}
    homes = {}
    for name, shape in config.tensors().items():
        if len(shape) != 2:
            continue
        module = name.split(".")[-2]
        names = [name, name.replace(module, joined.get(module, module))]
        if name == config.head_name:
            names.append("lm_head.weight")
        found = next((each for each in names if each in packed), None)
        if found is None:
            raise CheckpointError(path, name, f"missing, or not packed, but {CONFIG} implies it")
        homes[name] = found
    return homes


def _cache(formats: Iterable[Format]) -> str:
    return "int8" if any(format.group for format in formats) else "fp32"


class PackedFolder:
    """A `Source` of packed weights, in one weight form or more."""

    floats = None

    def __init__(self, path: Path, config: Config, files: Mapping[str, Path]) -> None:
        self.path = path
        self.config = config
        self.folder = path if path.is_dir() else path.parent
        self.tokenizer = self.template = text_of(self.folder)
        self._files = files

    @classmethod
    def open(cls, path: StrPath) -> PackedFolder:
        """Open a folder, or one file of packed weights beside its config.json. Raises ConfigError."""
        path = Path(path)
        folder = path if path.is_dir() else path.parent
        return cls(path, Config.from_file(folder / CONFIG), packed_files(path))

    def close(self) -> None:
        """Do nothing: a file is open only while it is read."""

    def __enter__(self) -> PackedFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def forms(self) -> tuple[str, ...]:
        return tuple(self._files)

    @property
    def dtypes(self) -> dict[str, int]:
        return {}

    def generation_config(self) -> GenerationConfig:
        return GenerationConfig.from_folder(self.folder, self.config)

    @functools.cached_property
    def kept(self) -> PackedKept | None:
        """Return the form of weights that keep the types of a quantised file. Raises CheckpointError."""
        if FILE not in self._files:
            return None
        path = self._files[FILE]
        with PackedFile(path) as file:
            packed = {name: stored.format for name, stored in file.weights.items() if stored.format is not None}
            orders = file.orders()
        homes, shapes = _names(packed, self.config, path), self.config.tensors()
        formats = {name: packed[home] for name, home in homes.items()}
        # Of down, without the columns that the padding of the MLP adds.
        columns = {name: orders[home][: shapes[name][1]] for name, home in homes.items() if home in orders}
        return PackedKept(FileForm(formats, _cache(packed.values()), columns))

    def open_packed(self, form: str, planned: Mapping[str, Stored]) -> PackedFile:
        """Return the open file of a form. Raises CheckpointError for a file that is not what is planned."""
        path = self._files[form]
        file = PackedFile(path)
        try:
            for name, stored in {**planned, **file.weights}.items():
                if name not in planned:
                    problem = f"must be absent from {form} by {CONFIG}: convert the checkpoint again"
                    raise CheckpointError(path, name, problem)
                if stored != planned[name] or name not in file.weights:
                    found = file.weights.get(name, "missing")
                    raise CheckpointError(path, name, f"must be {planned[name]} by {CONFIG}, but is {found}")
        except BaseException:
            file.close()
            raise
        return file
