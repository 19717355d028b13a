"""llama.cpp through llama-cpp-python's low-level bindings, 0.3.2 or later: what its versions name differently.

The oracle looks at what it computes, the benchmark at how long it takes.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...errors import QwqError, UsageError
from ...files import StrPath

INSTALL = "pip install 'qwq_ref[bench]'"
CACHE_TYPES = {"f32": 0, "f16": 1, "q8_0": 8, "bf16": 30}  # enum ggml_type, which only ever grows


class Log:
    """What llama.cpp logged: of a large model that is loaded, some ten thousand lines."""

    def __init__(self) -> None:
        self.lines: collections.deque[str] = collections.deque(maxlen=1 << 16)

    def problem(self) -> str:
        """What it complained about last."""
        recent = list(self.lines)[-4:]
        return "; ".join([line for line in recent if re.search("error|invalid|fail", line)] or recent[-1:])


class Library:
    """The bindings. `refusal` is the error for a file that llama.cpp does not take; UsageError without the package."""

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
        """Keep llama.cpp's log from the screen."""
        log = Log()

        def logged(level: int, text: bytes, _: object) -> None:
            log.lines.append(text.decode("utf-8", "replace").strip())

        callback = self.api.llama_log_callback(logged)
        self.api.llama_log_set(callback, None)
        try:
            yield log
        finally:  # back to the one that llama-cpp-python installs
            self.api.llama_log_set(importlib.import_module("llama_cpp._logger").llama_log_callback, None)

    @contextlib.contextmanager
    def model(self, path: StrPath, settings: Mapping[str, Any], log: Log) -> Iterator[Any]:
        """A loaded file. `settings` are fields of llama_model_params; UsageError for one that this version lacks."""
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
        """How many tokens a model has."""
        if hasattr(self.api, "llama_model_get_vocab"):  # since 2025
            return int(self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(model)))
        return int(self.api.llama_n_vocab(model))

    @contextlib.contextmanager
    def context(
        self, path: StrPath, model: Any, settings: Mapping[str, Any], flash_attention: bool | None, log: Log
    ) -> Iterator[Any]:
        """A context. `settings` are fields of llama_context_params; flash attention None is this version's default."""
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
        """Tokens at the positions from `start` on, and whose logits are wanted."""
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
        """Compute a batch -> 0, or llama.cpp's status."""
        return int(self.api.llama_decode(run, batch))

    def positions(self, run: Any) -> int:
        """How many positions the cache of a context holds."""
        if hasattr(self.api, "llama_memory_seq_pos_max"):  # since June 2025
            return int(self.api.llama_memory_seq_pos_max(self.api.llama_get_memory(run), 0)) + 1
        return int(self._first("llama_kv_self_used_cells", "llama_get_kv_cache_used_cells")(run))

    def remove(self, run: Any, start: int) -> None:
        """Take the positions from `start` on out of the cache."""
        if hasattr(self.api, "llama_memory_seq_rm"):
            self.api.llama_memory_seq_rm(self.api.llama_get_memory(run), 0, start, -1)
        else:
            self._first("llama_kv_self_seq_rm", "llama_kv_cache_seq_rm")(run, 0, start, -1)

    def _first(self, *names: str) -> Any:
        """The function by the first name that this version knows it by."""
        return next(getattr(self.api, name) for name in names if hasattr(self.api, name))
