"""The quantisation that the files of a checkpoint tell: its method, bits and groups, in all spellings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import QUANTISED, FieldReader, quantisation_of
from ..core import CODES
from ..errors import CheckpointError, ConfigError
from ..files import StrPath, read_json
from .names import CONFIG

AWQ_CONFIG, GPTQ_CONFIG = "quant_config.json", "quantize_config.json"  # older than the key in config.json
_JSON_BYTES = 1 << 20
_BITS = {"awq": (4,), "gptq": (2, 3, 4, 8), "mlx": (2, 3, 4, 5, 6, 8)}
_CORE_GROUPS = (128, 64, 32, 16)
_MOST_MODULES = 100_000  # that may differ from the rest


@dataclass(frozen=True)
class Settings:
    """The way in which the matrices of a checkpoint are quantised.

    method     "awq", "gptq" or "mlx"
    file       the JSON file that says so
    bits       of a code
    group      columns that share a scale; 0: all of a row
    symmetric  whether every zero point is the middle of the codes
    one_less   whether the file holds each zero point minus 1: the first version of GPTQ
    modules    module -> its own bits and group, or None if it is not quantised; MLX only
    """

    method: str
    file: StrPath
    bits: int
    group: int
    symmetric: bool = False
    one_less: bool = False
    modules: Mapping[str, tuple[int, int] | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.method.upper()


def core_group(group: int) -> int:
    """Return the columns of a group of the core that divides a file's group; 0 if there is none."""
    return next((size for size in _CORE_GROUPS if group % size == 0), 0)


def settings_of(folder: Path) -> Settings | None:
    """Return the settings of a checkpoint's folder; None if it is not quantised. Raises ConfigError."""
    if not (folder / CONFIG).is_file():
        return None
    values = read_json(folder / CONFIG, _JSON_BYTES, ConfigError)
    found = quantisation_of(values)
    if found is not None:
        key, method = found
        if method not in QUANTISED or not isinstance(values[key], dict):
            raise ConfigError(folder / CONFIG, key, unread(method))
        return _settings(method, FieldReader(values[key], folder / CONFIG, f"{key}."))
    for name in (AWQ_CONFIG, GPTQ_CONFIG):
        if (folder / name).is_file():
            own = read_json(folder / name, _JSON_BYTES, ConfigError)
            return _settings(_method_of_file(name, own), FieldReader(own, folder / name))
    return None


def _method_of_file(name: str, values: Mapping[str, Any]) -> str:
    """Return the method of an older file. AutoGPTQ writes AWQ's settings into its own file, too."""
    given = str(values.get("quant_method") or "").lower()
    if given in QUANTISED:
        return given
    return "awq" if name == AWQ_CONFIG or "w_bit" in values or values.get("checkpoint_format") == "awq" else "gptq"


def quantised_method(names: Collection[str], config: Callable[[], Mapping[str, Any]]) -> str | None:
    """Return the method that a list of files tells; None for a checkpoint of floats, "" for a method without a name.

    names   relative names of the files
    config  reads config.json
    """
    found = quantisation_of(config())
    if found is not None:
        return found[1]
    return next((method for file, method in ((AWQ_CONFIG, "awq"), (GPTQ_CONFIG, "gptq")) if file in names), None)


def unread(method: str) -> str:
    """Return the problem of a checkpoint in a format that is not read."""
    name = method[:40].upper() if len(method) <= 5 else method[:40]
    kind = f"in the format {name}" if method else "in a format of its own"
    instead = "take the AWQ, GPTQ, MLX or GGUF files of this model, or its checkpoint in bfloat16 or float16"
    return f"holds quantised weights {kind}, which are not read: {instead}"


def _settings(method: str, read: FieldReader) -> Settings:
    """Return checked settings. Raises ConfigError."""
    bits, group = _bits(method, read), _group(read)
    if method == "awq":
        version = str(read.values.get("version") or "gemm").lower()
        if version != "gemm":
            raise read.error("version", f"{version[:40]} is not read: take a file of the version gemm, or GGUF")
        if not read.boolean("zero_point", default=True):
            raise read.error("zero_point", "must be true: files without zero points are not read")
    if method == "gptq":
        return _gptq(read, bits, group)
    modules = {}
    if method == "mlx":
        mode = read.values.get("mode")
        if mode not in (None, "affine"):
            raise read.error("mode", f"{str(mode)[:40]} is not read: take a file of the mode affine, or GGUF")
        modules = _modules(read, bits, group)
    return Settings(method, read.source, bits, group, modules=modules)


def _gptq(read: FieldReader, bits: int, group: int) -> Settings:
    version = str(read.values.get("checkpoint_format") or read.values.get("format") or "gptq").lower()
    if version not in ("gptq", "gptq_v2"):
        raise read.error("checkpoint_format", f"{version[:40]} is not read: take a file in gptq or gptq_v2, or GGUF")
    if read.values.get("dynamic"):
        raise read.error("dynamic", "is not read: take a file whose modules all have the same bits and groups")
    if read.values.get("is_marlin_format"):
        raise read.error("is_marlin_format", "is not read: take a file in gptq or gptq_v2, or GGUF")
    symmetric = read.boolean("sym", default=False)
    return Settings("gptq", read.source, bits, group, symmetric, one_less=version == "gptq")


def _bits(method: str, read: FieldReader) -> int:
    name = "bits" if read.values.get("bits") is not None or "w_bit" not in read.values else "w_bit"
    bits = read.integer(name)
    if bits not in _BITS[method]:
        known = ", ".join(map(str, _BITS[method]))
        raise read.error(name, f"must be {known} for {method.upper()}, got {bits}")
    if bits == 8 and "u8" not in CODES:
        raise read.error(name, "8 is not read by this version: take a file of fewer bits, or Q8_0 of GGUF")
    return bits


def _group(read: FieldReader) -> int:
    """Return the columns of a group; 0 for all of a row."""
    name = "group_size" if read.values.get("group_size") is not None else "q_group_size"
    if read.values.get(name) is None:
        raise read.error("group_size", "is missing")
    group = read.integer(name, smallest=-1)
    if group == 0 or (group > 0 and not core_group(group)):
        raise read.error(name, f"must be a multiple of 16, or -1 for whole rows, got {group}")
    return max(group, 0)


def _modules(read: FieldReader, bits: int, group: int) -> dict[str, tuple[int, int] | None]:
    """Return the modules of MLX that have settings of their own."""
    modules: dict[str, tuple[int, int] | None] = {}
    for name, value in read.values.items():
        if "." not in name and name != "lm_head":
            continue
        if len(modules) >= _MOST_MODULES:
            raise CheckpointError(read.source, read.prefix + name, f"is one of more than {_MOST_MODULES:,} modules")
        if value is False:
            modules[name] = None
        elif isinstance(value, dict):
            inner = FieldReader({"bits": bits, "group_size": group or -1} | value, read.source, f"{read.prefix}{name}.")
            if inner.values.get("mode") not in (None, "affine"):
                raise inner.error("mode", "is not read: take a file of the mode affine, or GGUF")
            modules[name] = _bits("mlx", inner), _group(inner)
        elif value is not True:
            raise read.error(name, "must be an object, true or false")
    return modules
