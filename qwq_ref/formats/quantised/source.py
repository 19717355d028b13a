"""A checkpoint of AWQ, GPTQ or MLX as a `Source`."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ...config import Config
from ...core import Array, Format
from ...errors import CheckpointError
from ...files import StrPath
from .. import recognise
from ..checkpoint import read_config
from ..decoded import DecodedSource
from ..generation_config import GenerationConfig
from ..names import CONFIG
from ..parts import Parts
from ..quantisation import Settings, settings_of
from ..safetensors import FLOATS, equal_values
from . import awq, gptq, mlx
from .awq import AWQMatrix
from .gptq import GPTQMatrix
from .kept import QuantisedKept
from .mlx import MLXMatrix
from .stripes import Recent
from .tensors import Floats, Matrix, TensorFiles

# The tensors of a quantised matrix: the first tells that it is one.
_LEAVES = {"awq": awq.LEAVES, "gptq": (*gptq.LEAVES, gptq.GROUPS), "mlx": mlx.LEAVES}
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class QuantisedSource(DecodedSource):
    """See `DecodedSource`. `settings` are those of the checkpoint's config."""

    def __init__(
        self, path: Path, config: Config, places: dict[str, Matrix], settings: Settings, files: ExitStack
    ) -> None:
        super().__init__(path, path if path.is_dir() else path.parent, config, places, files)
        self.settings, self.kind = settings, settings.method
        self._what = f"a checkpoint of {settings.name}"
        self._places = places

    @classmethod
    def open(cls, path: StrPath) -> QuantisedSource:
        """Open a folder, or one .safetensors file beside its config.json. Raises ConfigError, CheckpointError."""
        path = Path(path)
        recognise.require(path)
        folder = path if path.is_dir() else path.parent
        settings, config = settings_of(folder), read_config(path)
        if settings is None:
            raise CheckpointError(path, None, "is not quantised")
        with ExitStack() as files:
            tensors = TensorFiles.open(path, files)
            places = _places(tensors, config, settings)
            return cls(path, config, places, settings, files.pop_all())

    @functools.cached_property
    def kept(self) -> QuantisedKept:
        return QuantisedKept(self._places)

    def stored(self, name: str) -> tuple[str, Format, Parts, Array | None] | None:
        place = self._places[name]
        if place.type in FLOATS:
            return None
        return place.type, place.format, place.parts(0, place.shape[0]), place.columns

    def generation_config(self) -> GenerationConfig:
        """Return the sampling defaults and end tokens. Raises ConfigError."""
        return GenerationConfig.from_folder(self.tokenizer, self.config)


def _places(files: TensorFiles, config: Config, settings: Settings) -> dict[str, Matrix]:
    """Return the place of each tensor of a config. Raises CheckpointError for missing, extra or misshapen ones."""
    places: dict[str, Matrix] = {}
    recent, missing, used = Recent(), [], set[str]()
    for name, shape in config.tensors().items():
        module = name.rpartition(".")[0]
        leaves = _LEAVES[settings.method]
        if len(shape) == 2 and f"{module}.{leaves[0]}" in files:
            places[name] = _matrix(files, module, shape, settings, recent)
            used |= {f"{module}.{leaf}" for leaf in leaves}
            _check_bias(files, f"{module}.bias", config, used)
        elif name in files:
            places[name] = Floats(files, name, shape)
            used.add(name)
        else:
            missing.append(name)
    if missing:
        problem = f"missing: {len(missing)} of the tensors of {CONFIG}, as floats or quantised"
        raise CheckpointError(files.path, ", ".join(missing[:3]), problem)
    _check_rest(files, config, used)
    return places


def _matrix(files: TensorFiles, module: str, shape: tuple[int, ...], settings: Settings, recent: Recent) -> Matrix:
    if settings.method == "mlx":
        return MLXMatrix(files, module, shape, settings)
    return (AWQMatrix if settings.method == "awq" else GPTQMatrix)(files, module, shape, settings, recent)


def _check_bias(files: TensorFiles, name: str, config: Config, used: set[str]) -> None:
    """Accept a bias that the model does not have, if it is zero: some writers add one to every quantised module."""
    if name in files and name not in config.tensors():
        files.expect(name, FLOATS, files[name].shape)
        if np.any(files.read(name)):
            raise files.error(name, f"unexpected: {CONFIG} does not imply it, and it is not zero")
        used.add(name)


def _check_rest(files: TensorFiles, config: Config, used: set[str]) -> None:
    """Check the tensors that are not read. Raises CheckpointError for one that would change the model."""
    rest = [name for name in files if name not in used and not name.endswith("rotary_emb.inv_freq")]
    extra = []
    for name in rest:
        if name == _HEAD and config.tie_word_embeddings and _EMBEDDING in files:
            head, embedding = files.homes[_HEAD], files.homes[_EMBEDDING]
            Floats(files, name, (config.V, config.D))
            if not equal_values(head, embedding, _HEAD, _EMBEDDING):
                problem = f"differs from {_EMBEDDING}, but {CONFIG} has tie_word_embeddings: true"
                raise CheckpointError(head.path, _HEAD, problem)
            continue
        extra.append(name)
    if extra:
        some = "1 tensor" if len(extra) == 1 else f"{len(extra)} tensors"
        raise CheckpointError(files.path, ", ".join(extra[:3]), f"unexpected: {some} that {CONFIG} does not imply")
