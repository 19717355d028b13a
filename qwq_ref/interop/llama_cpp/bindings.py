"""llama.cpp through the low-level API of llama-cpp-python 0.3.2 or later.

Functions and fields have other names in other versions. `Library` hides these differences, and `Ggml` adds the few
functions of ggml that llama-cpp-python lacks. The oracle records what llama.cpp computes; the benchmark measures how
long that takes.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import QwqError, UsageError
from ...files import StrPath
from ...spec.ops import Array

INSTALL = "pip install 'qwq_ref[bench]'"
CACHE_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}  # enum ggml_type, whose values never change
# The NumPy type in which a tensor of a ggml type is kept. NumPy has no bfloat16: it becomes float32, without loss.
STORED = {"f32": "<f4", "f16": "<f2", "bf16": "<f4", "i32": "<i4", "i64": "<i8"}


def require_packages() -> None:
    """Raise UsageError if llama-cpp-python or gguf is not installed."""
    for module, package in (("llama_cpp", "llama-cpp-python"), ("gguf", "gguf")):
        if importlib.util.find_spec(module) is None:
            raise UsageError(None, "peer", f"needs the package {package}: install it with {INSTALL}")


class Log:
    """The lines that llama.cpp logged. Loading a large model logs about ten thousand."""

    def __init__(self) -> None:
        self.lines: collections.deque[str] = collections.deque(maxlen=1 << 16)

    def problem(self) -> str:
        """Return the last complaint."""
        recent = list(self.lines)[-4:]
        return "; ".join([line for line in recent if re.search("error|invalid|fail", line)] or recent[-1:])


class Library:
    """The functions of llama.cpp, under one name for all versions.

    refusal  the error to raise for a file that llama.cpp does not load
    version  such as "llama-cpp-python 0.3.36"

    Raises UsageError if llama-cpp-python is not installed.
    """

    def __init__(self, refusal: type[QwqError]) -> None:
        try:
            self.api: Any = importlib.import_module("llama_cpp.llama_cpp")
            package: Any = importlib.import_module("llama_cpp")
        except ImportError as problem:
            raise UsageError(
                None, "llama.cpp", f"needs the package llama-cpp-python: install it with {INSTALL} ({problem})"
            ) from None
        self.refusal = refusal
        self.version = f"llama-cpp-python {package.__version__}"
        self.api.llama_backend_init()

    @contextlib.contextmanager
    def log(self) -> Iterator[Log]:
        """Collect llama.cpp's log instead of printing it."""
        log = Log()

        def logged(level: int, text: bytes, _: object) -> None:
            log.lines.append(text.decode("utf-8", "replace").strip())

        callback = self.api.llama_log_callback(logged)
        self.api.llama_log_set(callback, None)
        try:
            yield log
        finally:  # the callback that llama-cpp-python installs
            self.api.llama_log_set(importlib.import_module("llama_cpp._logger").llama_log_callback, None)

    @contextlib.contextmanager
    def model(self, path: StrPath, settings: Mapping[str, Any], log: Log) -> Iterator[Any]:
        """Load a file. `settings` are fields of llama_model_params; UsageError for a field that this version lacks."""
        parameters = self.api.llama_model_default_params()
        self._set(parameters, "model", settings)
        load = self._first("llama_model_load_from_file", "llama_load_model_from_file")
        free = self._first("llama_model_free", "llama_free_model")
        model = load(str(path).encode(), parameters)
        if not model:
            raise self.refusal(path, None, f"llama.cpp does not load it ({log.problem()})")
        try:
            yield model
        finally:
            free(model)

    def vocabulary(self, model: Any) -> int:
        """Return the number of tokens that a model knows."""
        if hasattr(self.api, "llama_model_get_vocab"):  # since 2025
            return int(self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(model)))
        return int(self.api.llama_n_vocab(model))

    @contextlib.contextmanager
    def context(
        self, path: StrPath, model: Any, settings: Mapping[str, Any], flash_attention: bool | None, log: Log
    ) -> Iterator[Any]:
        """Make a context. `settings` are fields of llama_context_params.

        With flash_attention None the version's own default holds.
        """
        parameters = self.api.llama_context_default_params()
        if flash_attention is not None:
            name = "flash_attn_type" if hasattr(parameters, "flash_attn_type") else "flash_attn"
            settings = {name: int(flash_attention), **settings}
        self._set(parameters, "context", settings)
        create = self._first("llama_init_from_model", "llama_new_context_with_model")
        run = create(model, parameters)
        if not run:
            raise self.refusal(path, None, f"llama.cpp makes no context for it ({log.problem()})")
        try:
            yield run
        finally:
            self.api.llama_free(run)

    def _set(self, parameters: Any, what: str, settings: Mapping[str, Any]) -> None:
        for name, value in settings.items():
            if not hasattr(parameters, name):
                raise UsageError(None, f"{what}.{name}", f"llama_{what}_params has no such field ({self.version})")
            try:
                setattr(parameters, name, value)
            except TypeError as problem:
                raise UsageError(None, f"{what}.{name}", str(problem)) from None

    @contextlib.contextmanager
    def batch(self, ids: Sequence[int], start: int, wanted: Sequence[bool]) -> Iterator[Any]:
        """Make a batch of tokens at the positions from `start` on; `wanted` says whose logits are computed."""
        batch = self.api.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, (token, logits) in enumerate(zip(ids, wanted, strict=True)):
                batch.token[i] = token
                batch.pos[i] = start + i
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = logits
            yield batch
        finally:
            self.api.llama_batch_free(batch)

    def decode(self, run: Any, batch: Any) -> int:
        """Compute a batch; return llama.cpp's status, 0 if all went well."""
        return int(self.api.llama_decode(run, batch))

    def positions(self, run: Any) -> int:
        """Return the number of positions in the cache of a context."""
        if hasattr(self.api, "llama_memory_seq_pos_max"):  # since June 2025
            return int(self.api.llama_memory_seq_pos_max(self.api.llama_get_memory(run), 0)) + 1
        return int(self._first("llama_kv_self_used_cells", "llama_get_kv_cache_used_cells")(run))

    def remove(self, run: Any, start: int) -> None:
        """Remove the positions from `start` on from the cache."""
        if hasattr(self.api, "llama_memory_seq_rm"):
            self.api.llama_memory_seq_rm(self.api.llama_get_memory(run), 0, start, -1)
        else:
            self._first("llama_kv_self_seq_rm", "llama_kv_cache_seq_rm")(run, 0, start, -1)

    def _first(self, *names: str) -> Any:
        """Return the function under the first of these names that this version has."""
        return next(getattr(self.api, name) for name in names if hasattr(self.api, name))


def _layout(*between: tuple[str, Any]) -> type[ctypes.Structure]:
    """Return struct ggml_tensor up to its name; `between` are the fields in front of its sources."""

    class Tensor(ctypes.Structure):
        _fields_ = (
            ("type", ctypes.c_int),
            ("buffer", ctypes.c_void_p),
            ("ne", ctypes.c_int64 * 4),
            ("nb", ctypes.c_size_t * 4),
            ("op", ctypes.c_int),
            ("op_params", ctypes.c_int32 * 16),
            ("flags", ctypes.c_int32),
            *between,
            ("src", ctypes.c_void_p * 10),
            ("view_src", ctypes.c_void_p),
            ("view_offs", ctypes.c_size_t),
            ("data", ctypes.c_void_p),
            ("name", ctypes.c_char * 64),
        )

    return Tensor


_LAYOUTS = (_layout(), _layout(("grad", ctypes.c_void_p)))  # with a gradient until November 2024


class Ggml(Library):
    """`Library`, and the functions of ggml that read a tensor at an address."""

    def __init__(self, refusal: type[QwqError]) -> None:
        super().__init__(refusal)
        pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
        self._name_at = self._function("ggml_get_name", pointer, pointer)
        self._op = self._function("ggml_op_desc", text, pointer)
        self._type = self._function("ggml_type_name", text, ctypes.c_int)
        self._bytes = self._function("ggml_nbytes", size, pointer)
        self._get = self._function("ggml_backend_tensor_get", None, pointer, pointer, size, size)
        self._layout: type[ctypes.Structure] | None = None

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        """Return a function of ggml. Its library is linked to libllama, or lies beside it."""
        try:
            function = getattr(self.api._lib, name)
        except AttributeError:
            extension = importlib.import_module("llama_cpp._ctypes_extensions")
            function = getattr(extension.load_shared_library("ggml-base", self.api._base_path), name)
        function.restype, function.argtypes = result, list(arguments)
        return function

    def tensor(self, address: int) -> Any:
        """Return the tensor at an address. UsageError if this version has an unknown layout.

        ggml_get_name returns the address of the name, which tells the layouts apart.
        """
        if self._layout is None:
            place = self._name_at(address) - address
            fitting = [layout for layout in _LAYOUTS if layout.name.offset == place]
            if not fitting:
                raise UsageError(None, "llama.cpp", f"this version's tensors are laid out differently ({self.version})")
            self._layout = fitting[0]
        return self._layout.from_address(address)

    def name(self, address: int) -> str:
        """Return the name of a tensor."""
        return ctypes.string_at(self._name_at(address)).decode("utf-8", "replace")

    def op(self, address: int) -> str:
        """Return the operation that computes a tensor, such as MUL_MAT."""
        return str(self._op(address).decode())

    def type(self, number: int) -> str:
        """Return the name of a ggml type, such as f16."""
        return str(self._type(number).decode())

    def values(self, address: int) -> Array:
        """Return a copy of a tensor's values [ne3, ne2, ne1, ne0], from any device."""
        tensor = self.tensor(address)
        kind = self.type(tensor.type)
        data: Array = np.empty(self._bytes(address), np.uint8)
        self._get(address, data.ctypes.data, 0, len(data))
        raw = "<u2" if kind == "bf16" else STORED[kind]
        strided: Array = np.ndarray(tuple(tensor.ne)[::-1], raw, data, 0, tuple(tensor.nb)[::-1])
        if kind == "bf16":  # the upper half of a float32
            return (strided.astype(np.uint32) << 16).view(np.float32)
        return strided.copy()
