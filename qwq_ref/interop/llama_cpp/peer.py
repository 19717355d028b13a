"""llama.cpp as the peer of a benchmark: a model in a process of its own.

`Peer` runs a file of `gguf.write_gguf` through llama-cpp-python in a child process, which is this module's `main`. So
llama.cpp has its own threads and memory, and the parent can end it at any time. The two exchange lines of JSON over
pipes. The child measures the time, around llama_decode, as llama-bench does.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ...errors import QwqError, UsageError
from ...files import StrPath
from ...host.memory import peak_bytes, require
from .bindings import CACHE_TYPES, Library, Log, require_packages
from .gguf import QUANTS

KVS = ("f16", "q8_0")
BATCH = 512  # tokens that llama.cpp and llama-bench compute at once by default


@dataclass(frozen=True)
class Configuration:
    """One way to run a model.

    quant            the formats of the file; see `gguf.write_gguf`. "" for any file
    threads          the number of threads
    context          the number of positions in the cache
    repack           whether llama.cpp may repack weights for the processor when it loads them; its default
    flash_attention  None: this version's default. Newer versions use it wherever they can. On a CPU, behind a long
                     context, attention without it can be faster
    kv               the type of keys and values: f16, llama.cpp's default, or q8_0, which needs flash attention
    """

    name: str
    quant: str
    threads: int
    context: int
    repack: bool = True
    flash_attention: bool | None = None
    kv: str = "f16"

    def start(self, path: StrPath) -> Peer:
        """Load a file, which `write_gguf` wrote for `quant` if there is one. Raises the errors of `Peer`."""
        return Peer(path, self.name, self.threads, self.context, self.repack, self.flash_attention, self.kv)


def configurations(
    threads: int,
    context: int,
    flash_attention: bool | None = None,
    kv: str = "f16",
    quants: Iterable[str] = QUANTS,
) -> list[Configuration]:
    """Return the configurations of a benchmark: Q4_0 and Q4_K, each with and without repacking.

    quants  other formats of the file; "" for a file that has its own
    """
    return [
        Configuration(
            f"llama.cpp {quant}".rstrip()
            + ("" if repack else ", no repacking")
            + (", no flash attention" if flash_attention is False else ""),
            quant,
            threads,
            context,
            repack,
            flash_attention,
            kv,
        )
        for quant in quants
        for repack in (True, False)
    ]


class Peer:
    """llama.cpp in a child process, with a model loaded. A context manager; `close` ends the process.

    The arguments are a GGUF file and the fields of `Configuration`. Token ids are random, and the same in each process.

    version    the settings in effect, such as "llama-cpp-python 0.3.36, repacking, flash attention auto (enabled),
               f16 cache, mmap"
    system     llama.cpp's own line about the processor and its build
    buffers    name of a buffer in llama.cpp -> MiB of weights in it; CPU_Mapped is the file itself
    positions  the length of the cache before and after the last measurement

    Raises QwqError if llama.cpp refuses the file or the process dies, with the last line of its stderr. Raises
    UsageError for settings that are impossible or unknown to this version, and MemoryLimitError if the weights do not
    fit.
    """

    def __init__(
        self,
        path: StrPath,
        name: str,
        threads: int,
        context: int,
        repack: bool = True,
        flash_attention: bool | None = None,
        kv: str = "f16",
    ) -> None:
        self.path, self.name, self.context = path, name, context
        self.positions = 0, 0
        for option, value in (("threads", threads), ("context", context)):
            if value < 1:
                raise UsageError(None, option, f"must be at least 1, got {value}")
        if kv not in KVS:
            raise UsageError(None, "kv", f"must be one of {', '.join(KVS)}, got {kv[:40]}")
        require_packages()
        try:
            require({"weights": os.path.getsize(path)}, path)
        except OSError as problem:
            raise QwqError(path, None, f"cannot be opened ({problem.strerror})") from None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        # -P: import nothing from the current folder. `_environment` leads to this very package.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(),
        )
        facts = self._ask(
            path=os.fspath(path),
            threads=threads,
            context=context,
            repack=repack,
            flash_attention=flash_attention,
            kv=kv,
        )
        self.version: str = facts["version"]
        self.system: str = facts["system"]
        self.buffers: dict[str, float] = facts["buffers"]

    def prompt(self, tokens: int, depth: int = 0) -> float:
        """Return the seconds for a prompt behind `depth` positions: 512 tokens at once, logits of the last token.

        The cache is kept between calls. A larger depth is computed in addition; a smaller depth removes the positions
        beyond it. A batch of a new size is computed once before the measurement.
        """
        return self._timed("prompt", tokens, depth)

    def decode(self, tokens: int, depth: int = 0) -> float:
        """Return the seconds for tokens one after another, behind `depth` positions."""
        return self._timed("decode", tokens, depth)

    def peak_bytes(self) -> int:
        """Return the peak memory of the process in bytes, mapped parts of the file included."""
        return int(self._ask(what="peak")["bytes"])

    def close(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # unwritten data
                if pipe:
                    pipe.close()
        self._errors.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _timed(self, what: str, tokens: int, depth: int) -> float:
        if tokens < 1 or depth < 0 or tokens + depth > self.context:
            problem = f"{tokens} behind {depth} others do not fit a context of {self.context}"
            raise UsageError(None, "tokens", problem)
        answer = self._ask(what=what, tokens=tokens, depth=depth)
        self.positions = answer["before"], answer["after"]
        return float(answer["seconds"])

    def _ask(self, **request: Any) -> dict[str, Any]:
        """Send a line, return the answer. Any exception ends the process, whose answer would belong to this request."""
        if self._errors.closed:
            raise QwqError(self.path, self.name, "has been closed")
        assert self._process.stdin
        assert self._process.stdout
        try:
            try:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = b""
            if not line:
                raise QwqError(self.path, self.name, self._last_words())
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                kind, file, place, problem = answer["error"]
                raise _ERRORS[kind](file, place, problem)
            return answer
        except BaseException:
            self.close()
            raise

    def _last_words(self) -> str:
        """Describe the end of the process, with the last line of its stderr."""
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return f"the process ended {how}" + (f": {lines[-1].strip()}" if lines else "")


_ERRORS = {kind.__name__: kind for kind in (QwqError, UsageError)}


def _environment() -> dict[str, str]:
    """Return the environment of the child: without settings for this process's threads, without a debugger."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    paths = [str(Path(__file__).resolve().parents[3]), *filter(None, [ours.get("PYTHONPATH")])]
    return ours | {"PYTHONPATH": os.pathsep.join(paths), "GGML_NO_BACKTRACE": "1"}


class _Session:
    """The child's context. `filled` positions of its cache are computed, to measure behind them."""

    def __init__(self, path: str, library: Library, run: Any, vocabulary: int, positions: int, log: Log) -> None:
        self.path, self.library, self.run, self.log = path, library, run, log
        self.vocabulary = vocabulary
        self.ids: list[int] = np.random.default_rng(0).integers(0, vocabulary, positions).tolist()
        self.filled = 0
        self.warm: set[int] = set()  # sizes of batches that were computed before

    def prompt(self, tokens: int, depth: int) -> dict[str, Any]:
        """Answer `Peer.prompt`."""
        self._fill(depth)
        self._warm_up(min(tokens, BATCH), depth)
        ids = self.ids[depth : depth + tokens]
        with contextlib.ExitStack() as stack:
            batches = []
            for i in range(0, tokens, BATCH):
                part = ids[i : i + BATCH]
                wanted = [i + k == tokens - 1 for k in range(len(part))]
                batches.append(stack.enter_context(self.library.batch(part, depth + i, wanted)))
            before = self.library.positions(self.run)
            start = perf_counter()
            for batch in batches:
                self._decode(batch)
            self.library.api.llama_synchronize(self.run)
            seconds = perf_counter() - start
        return self._checked(seconds, before, depth, tokens)

    def decode(self, tokens: int, depth: int) -> dict[str, Any]:
        """Answer `Peer.decode`."""
        self._fill(depth)
        self._warm_up(1, depth)
        ids = self.ids[depth : depth + tokens]
        with self.library.batch(ids[:1], depth, [True]) as batch:
            before = self.library.positions(self.run)
            start = perf_counter()
            for i, token in enumerate(ids):
                batch.token[0] = token
                batch.pos[0] = depth + i
                self._decode(batch)
                self.library.api.llama_synchronize(self.run)
            seconds = perf_counter() - start
        return self._checked(seconds, before, depth, tokens)

    def peak(self) -> dict[str, Any]:
        """Answer `Peer.peak_bytes`."""
        return {"bytes": peak_bytes()}

    def _fill(self, depth: int) -> None:
        """Bring the cache to `depth` positions; keep those that are computed already."""
        self.filled = min(self.filled, depth)
        self.library.remove(self.run, self.filled)
        while self.filled < depth:
            self.filled += self._compute(min(BATCH, depth - self.filled), self.filled, logits=False)

    def _warm_up(self, tokens: int, depth: int) -> None:
        """Compute a batch of a new size once: first touches of memory and reads from the disk are not measured."""
        if tokens not in self.warm:
            self._compute(tokens, depth, logits=True)
            self._fill(depth)

    def _compute(self, tokens: int, start: int, logits: bool) -> int:
        """Compute a batch without a measurement; return its number of tokens."""
        wanted = [logits and i == tokens - 1 for i in range(tokens)]
        with self.library.batch(self.ids[start : start + tokens], start, wanted) as batch:
            self._decode(batch)
        self.library.api.llama_synchronize(self.run)
        self.warm.add(tokens)
        return tokens

    def _decode(self, batch: Any) -> None:
        status = self.library.decode(self.run, batch)
        if status:
            raise QwqError(self.path, None, f"llama.cpp cannot decode it: status {status} ({self.log.problem()})")

    def _checked(self, seconds: float, before: int, depth: int, tokens: int) -> dict[str, Any]:
        """Return the answer. QwqError if the cache or the logits are not those of the request."""
        after = self.library.positions(self.run)
        if (before, after) != (depth, depth + tokens):
            problem = f"{before} and then {after} positions were in the cache, not {depth} and {depth + tokens}"
            raise QwqError(self.path, None, problem)
        logits = np.ctypeslib.as_array(self.library.api.llama_get_logits_ith(self.run, -1), (self.vocabulary,))
        if not np.all(np.isfinite(logits)):
            raise QwqError(self.path, None, "llama.cpp's logits are not finite")
        return {"seconds": seconds, "before": before, "after": after}


def _serve(requests: queue.SimpleQueue[dict[str, Any]], answer: Callable[[dict[str, Any]], None]) -> NoReturn:
    """Load the file that the first request names, then answer the others. Raises QwqError."""
    settings = requests.get()
    path, kv, flash_attention = settings["path"], settings["kv"], settings["flash_attention"]
    library = Library(QwqError)
    weights: dict[str, Any] = {"n_gpu_layers": 0}
    if not settings["repack"]:  # as llama.cpp's --no-repack does
        weights["use_extra_bufts"] = False
    context = {
        "n_ctx": settings["context"],
        "n_batch": BATCH,
        "n_ubatch": BATCH,
        "n_threads": settings["threads"],
        "n_threads_batch": settings["threads"],
        "type_k": CACHE_TYPES[kv],
        "type_v": CACHE_TYPES[kv],
    }
    with (
        library.log() as log,
        library.model(path, weights, log) as model,
        library.context(path, model, context, flash_attention, log) as run,
    ):
        answer(_facts(library, settings, log))
        session = _Session(path, library, run, library.vocabulary(model), settings["context"], log)
        while True:
            request = requests.get()
            answer(getattr(session, request.pop("what"))(**request))


def _facts(library: Library, settings: Mapping[str, Any], log: Log) -> dict[str, Any]:
    """Return the settings in effect, as the log reports them."""
    text = "\n".join(log.lines)
    buffers = {name: float(size) for name, size in re.findall(r"(\S+) model buffer size = +([\d.]+) MiB", text)}
    repacked = [name for name in buffers if name not in ("CPU", "CPU_Mapped")]
    default = "auto" if hasattr(library.api, "LLAMA_FLASH_ATTN_TYPE_AUTO") else "off"  # until August 2025
    flash = {None: default, True: "on", False: "off"}[settings["flash_attention"]]
    resolved = re.findall(r"Flash Attention.*\b(enabled|disabled)\b", text)
    parts = [
        library.version,
        "repacking" if repacked else "no repacking",
        f"flash attention {flash}" + (f" ({resolved[-1]})" if resolved else ""),
        f"{settings['kv']} cache",
        "mmap" if "CPU_Mapped" in buffers else "no mmap",
    ]
    return {
        "version": ", ".join(parts),
        "system": library.api.llama_print_system_info().decode("utf-8", "replace").strip(" |\n"),
        "buffers": buffers,
    }


def _read(requests: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Read requests from stdin. Its end means that the parent is gone: end this process, even during a computation."""
    with open(0, "rb", buffering=0) as lines:  # a buffer's lock would be held when Python ends
        for line in lines:
            requests.put(json.loads(line))
    os._exit(0)


def main() -> int:
    """Run the child: requests from stdin, answers to stdout. Output of llama.cpp itself goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
    answers: BinaryIO = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def answer(values: dict[str, Any]) -> None:
        answers.write(json.dumps(values).encode() + b"\n")
        answers.flush()

    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    try:
        _serve(requests, answer)
    except QwqError as error:
        answer({"error": [type(error).__name__, error.file, error.field, error.problem]})
        return 1


if __name__ == "__main__":
    sys.exit(main())
