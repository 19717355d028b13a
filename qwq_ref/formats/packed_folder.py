"""A folder of packed weights, as `qwq convert` makes it: a source whose tensors are ready for the core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ..config import Config
from ..core import Array, Packed
from ..core.magnitude import check_finite
from ..errors import CheckpointError
from ..files import StrPath
from .generation_config import GenerationConfig
from .names import CONFIG, INDEX, SINGLE, packed_form
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


class PackedFolder:
    """A `Source` of packed weights, in one weight form or more."""

    floats = None
    kept = None

    def __init__(self, path: Path, config: Config, files: Mapping[str, Path]) -> None:
        self.path = path
        self.config = config
        self.tokenizer = self.template = path if path.is_dir() else path.parent
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
        return GenerationConfig.from_folder(self.tokenizer, self.config)

    def read_packed(
        self,
        form: str,
        planned: Mapping[str, Stored],
        threads: int,
        progress: Callable[[float], object] | None = None,
    ) -> dict[str, Packed | Array]:
        """Return the weights of a form. Raises CheckpointError for a file that is not what is planned.

        Norms and biases are checked for numbers that are not finite. `convert` has checked the others, which are many.
        """
        path = self._files[form]
        with PackedFile(path) as file:
            for name, stored in {**planned, **file.weights}.items():
                if name not in planned:
                    problem = f"must be absent from {form} by {CONFIG}: convert the checkpoint again"
                    raise CheckpointError(path, name, problem)
                if stored != planned[name] or name not in file.weights:
                    found = file.weights.get(name, "missing")
                    raise CheckpointError(path, name, f"must be {planned[name]} by {CONFIG}, but is {found}")
            tensors = file.read(threads, progress=progress)
        for name, tensor in tensors.items():
            if not isinstance(tensor, Packed) and tensor.ndim == 1:
                check_finite(tensor, path, name)
        return tensors
