"""llama.cpp as the peer of a benchmark: a model of a given shape, with random weights, timed in a process of its own.

`write_gguf` makes the file: how long a product takes depends on the format of its weights, not on their values.
`Peer` runs it through llama-cpp-python in a child process, which is this module's `main`; so llama.cpp's threads and
memory are its own, and so it can be killed. The two exchange lines of JSON over pipes. Time is taken in the child,
around llama_decode, as llama-bench does it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ...config import Config
from ...errors import ConfigError, QwqError, UsageError
from ...files import StrPath
from ...footprint import human
from ...formats.write import atomic_file
from ...host.memory import peak_bytes, require
from .bindings import (
    CACHE_TYPES,
    INSTALL,
    Library,
    Log,
)

QUANTS = {"Q4_0": "MOSTLY_Q4_0", "Q4_K": "MOSTLY_Q4_K_M"}  # what llama-quantize calls such a file
KVS = ("f16", "q8_0")
BATCH = 512  # tokens that llama.cpp computes at once by default, and so does llama-bench
_ALIGNMENT = 32  # of tensors in a GGUF file
_ROOM = 1 << 20  # for the header and what aligns, in bytes

# --- The file ------------------------------------------------------------------------------------------------------

_DEVIATION = 0.02  # of the weights; Hugging Face's initialisation
_POOL = (1 << 17) - 1  # blocks. It is a prime, so that the rows of a matrix begin at that many different ones


@dataclass(frozen=True)
class _Block:
    """A quantised format: so many weights in so many bytes.

    halves  where it holds a float16, in bytes -> what that is, as a multiple of the block's scale
    spread  the deviation of its weights from zero, in such scales, if all other bytes are random
    """

    weights: int
    nbytes: int
    halves: Mapping[int, float]
    spread: float


# Of n random bits: mean (2^n - 1) / 2, mean square (2^n - 1) (2^(n+1) - 1) / 6.
_BLOCKS = {
    # scale (q - 8), q of 4 bits
    "Q4_0": _Block(32, 18, {0: 1.0}, math.sqrt(21.5)),
    # scale s q - least m, of 6, 4 and 6 bits. With the least at 7.5 scales, the mean of q, that of the weights is zero.
    "Q4_K": _Block(256, 144, {0: 1.0, 2: 7.5}, math.sqrt(1333.5 * 77.5 + 7.5**2 * 1333.5 - 2 * (31.5 * 7.5) ** 2)),
    # scale s (q - 32), s a signed byte, q of 6 bits
    "Q6_K": _Block(256, 210, {208: 1.0}, math.sqrt(5461.5 * 341.5)),
}

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def require_packages() -> None:
    """Raise UsageError if llama-cpp-python or gguf is not installed."""
    for module, package in (("llama_cpp", "llama-cpp-python"), ("gguf", "gguf")):
        if importlib.util.find_spec(module) is None:
            raise UsageError(None, "peer", f"needs the package {package}: install it with {INSTALL}")


def gguf_bytes(config: Config, quant: str) -> int:
    """Bytes of all tensors of the file that `write_gguf` writes; the header adds less than 1 MiB. Raises as it does."""
    return sum(_nbytes(shape, kind) for shape, kind in _tensors(config, quant).values())


def write_gguf(
    path: StrPath, config: Config, quant: str, seed: int = 0, progress: Callable[[int], object] | None = None
) -> None:
    """A GGUF file of the config's shapes with random weights, written block by block: nothing is quantised.

    quant     Q4_0: every matrix is Q4_0. Q4_K: Q4_K, but attn_v and ffn_down are Q6_K in about half of the layers.
              In both the output is Q6_K; norms and biases are F32. So does llama-quantize, with Q4_0 and Q4_K_M.
    progress  called with how many more bytes were written, `gguf_bytes` in all

    131,071 random blocks of each format are made, up to 27 MB, and repeated in each matrix from a random one on. That
    is all that is held in memory. Weights are around 0 with a deviation of 0.02. There is no vocabulary, and no YaRN,
    which takes no time.

    ConfigError for a shape that llama.cpp or the formats cannot have: D must be H E and a multiple of 256, F one of 32,
    or 256 for Q4_K; no layer may have a sliding window. UsageError for another quant, or without the packages. QwqError
    if the disk is too small, or fails. The file is written whole or not at all.
    """
    require_packages()
    tensors = _tensors(config, quant)
    path = Path(path)
    rng = np.random.default_rng(seed)
    pools = _Pools(rng)
    try:
        free = shutil.disk_usage(path.parent).free
        needed = gguf_bytes(config, quant) + _ROOM
        if needed > free:
            raise QwqError(path, None, f"needs {human(needed)} of disk space, but {human(free)} are free")
        with atomic_file(path) as file:
            _write_header(file.name, config, quant, tensors)
            file.seek(0, os.SEEK_END)
            for name, (shape, kind) in tensors.items():
                file.write(bytes(-file.tell() % _ALIGNMENT))
                if kind == "F32":
                    values = rng.normal(1.0 if name.endswith("norm.weight") else 0.0, _DEVIATION, shape)
                    pieces: Iterable[memoryview] = [values.astype("<f4").data.cast("B")]
                else:
                    pieces = pools.pieces(kind, _nbytes(shape, kind))
                for piece in pieces:
                    file.write(piece)
                    if progress:
                        progress(len(piece))
            file.write(bytes(-file.tell() % _ALIGNMENT))
    except OSError as problem:
        raise QwqError(path, None, f"cannot be written ({problem.strerror})") from None


def _tensors(config: Config, quant: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """GGUF's name -> (shape, type), in the order of the computation. Raises ConfigError, UsageError."""
    if quant not in QUANTS:
        raise UsageError(None, "quant", f"must be one of {', '.join(QUANTS)}, got {quant[:40]}")
    if config.D != config.H * config.E:
        raise ConfigError(
            None, "hidden_size", f"must be heads x head_dim = {config.H * config.E} for llama.cpp, got {config.D}"
        )
    if any(config.window(layer) is not None for layer in range(config.L)):
        raise ConfigError(None, "sliding_window", "llama.cpp has none in this architecture")
    tensors = {}
    for name, shape in config.tensors().items():
        module, leaf = name.rsplit(".", 1)
        parts = module.split(".", 3)  # model.layers.7.mlp.up_proj
        layer = int(parts[2]) if len(parts) == 4 else None
        base = GGUF_NAMES[module if layer is None else parts[3]]
        kind = _kind(base, layer, config, quant) if len(shape) == 2 else "F32"
        if kind in _BLOCKS and shape[1] % _BLOCKS[kind].weights:
            raise ConfigError(
                None, name, f"has rows of {shape[1]}, which {kind} does not divide into {_BLOCKS[kind].weights}"
            )
        tensors[f"{base}.{leaf}" if layer is None else f"blk.{layer}.{base}.{leaf}"] = shape, kind
    return tensors


def _kind(base: str, layer: int | None, config: Config, quant: str) -> str:
    """The format that llama-quantize chooses for a matrix, without an importance matrix."""
    if base == "output" or (base == "token_embd" and config.tie_word_embeddings):
        return "Q6_K"
    if quant == "Q4_K" and layer is not None and base in ("attn_v", "ffn_down"):
        first, last = config.L // 8, 7 * config.L // 8
        if layer < first or layer >= last or (layer - first) % 3 == 2:  # both ends, and each third in between
            return "Q6_K"
    return quant


def _nbytes(shape: Sequence[int], kind: str) -> int:
    if kind == "F32":
        return 4 * math.prod(shape)
    block = _BLOCKS[kind]
    return math.prod(shape) // block.weights * block.nbytes


def _write_header(path: str, config: Config, quant: str, tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """All that stands before the tensors: the package `gguf` knows how."""
    gguf: Any = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(path, "qwen2")
    try:
        writer.add_file_type(gguf.LlamaFileType[QUANTS[quant]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.D)
        writer.add_block_count(config.L)
        writer.add_feed_forward_length(config.F)
        writer.add_head_count(config.H)
        writer.add_head_count_kv(config.K)
        writer.add_rope_freq_base(config.rope.theta)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.V)
        writer.add_tokenizer_model("no_vocab")  # then the size is all that is asked for
        for name, (shape, kind) in tensors.items():
            # A quantised tensor's shape is given in bytes.
            size = shape if kind == "F32" else (shape[0], _nbytes(shape[1:], kind))
            dtype = np.dtype(np.float32 if kind == "F32" else np.uint8)
            writer.add_tensor_info(name, size, dtype, _nbytes(shape, kind), gguf.GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


class _Pools:
    """Random blocks of each format, made when they are first asked for."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._pools: dict[str, memoryview] = {}

    def pieces(self, kind: str, nbytes: int) -> Iterator[memoryview]:
        """Blocks of so many bytes in all, from a random one on."""
        if kind not in self._pools:
            self._pools[kind] = self._made(_BLOCKS[kind])
        pool = self._pools[kind]
        begin = int(self._rng.integers(_POOL)) * _BLOCKS[kind].nbytes
        while nbytes:
            piece = pool[begin : begin + nbytes]
            nbytes -= len(piece)
            begin = 0
            yield piece

    def _made(self, block: _Block) -> memoryview:
        blocks = self._rng.integers(0, 256, (_POOL, block.nbytes), np.uint8)
        # Scales of either sign, around what makes the weights' deviation: 13/12 is the mean square of 0.5 to 1.5.
        scale = self._rng.uniform(0.5, 1.5, _POOL) * self._rng.choice([-1.0, 1.0], _POOL)
        scale *= _DEVIATION / block.spread / math.sqrt(13 / 12)
        for at, multiple in block.halves.items():
            blocks[:, at : at + 2] = (scale * multiple).astype("<f2").view(np.uint8).reshape(_POOL, 2)
        return blocks.data.cast("B")


# --- The process that computes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Configuration:
    """One way to run a model.

    quant            of the file that it is for: see `write_gguf`
    threads          of the computation
    context          positions that the cache has room for
    repack           whether weights may be packed anew for the processor when they are loaded; llama.cpp's default
    flash_attention  None: this version's default. Newer ones use it wherever they can; on a CPU, behind a long context,
                     it may be slower than attention without
    kv               of keys and values: f16, llama.cpp's default, or q8_0, which needs flash attention
    """

    name: str
    quant: str
    threads: int
    context: int
    repack: bool = True
    flash_attention: bool | None = None
    kv: str = "f16"

    def start(self, path: StrPath) -> Peer:
        """Load the file that `write_gguf` wrote for `quant`. Raises as `Peer` does."""
        return Peer(path, self.name, self.threads, self.context, self.repack, self.flash_attention, self.kv)


def configurations(
    threads: int, context: int, flash_attention: bool | None = None, kv: str = "f16"
) -> list[Configuration]:
    """Q4_0 and Q4_K, each as it comes, and without repacking."""
    return [
        Configuration(
            f"llama.cpp {quant}"
            + ("" if repack else ", no repacking")
            + (", no flash attention" if flash_attention is False else ""),
            quant,
            threads,
            context,
            repack,
            flash_attention,
            kv,
        )
        for quant in QUANTS
        for repack in (True, False)
    ]


class Peer:
    """llama.cpp in a child process, with a model loaded. A context manager; `close` ends the process.

    The arguments are a GGUF file, and the fields of `Configuration`. Token ids are random, and the same each time.

    version    "llama-cpp-python 0.3.36, repacking, flash attention auto (enabled), f16 cache, mmap": what is in effect
    system     llama.cpp's own line about the processor and how it was built
    buffers    where the weights lie, by llama.cpp's names -> MiB: CPU_Mapped is the file itself
    positions  how many the cache held before and after what was measured last

    QwqError if llama.cpp refuses the file, or if the process dies, with the last line that it wrote to stderr;
    UsageError for settings that cannot be, or that this version has not; MemoryLimitError if the weights do not fit.
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
        # -P: no module is taken from the current folder. The package is this one, wherever it was imported from.
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
        """Seconds that so many tokens take, 512 at once, behind `depth` others in the cache; logits of the last one.

        What is in the cache stays there: a depth is computed once, and a larger one adds to it. A smaller one drops
        what lies beyond. What has not been computed before, of that size, is computed once more without the clock.
        """
        return self._timed("prompt", tokens, depth)

    def decode(self, tokens: int, depth: int = 0) -> float:
        """Seconds that so many tokens take, one after the other, behind `depth` others in the cache."""
        return self._timed("decode", tokens, depth)

    def peak_bytes(self) -> int:
        """The most memory that the process has held so far, in bytes; what it has mapped of the file counts."""
        return int(self._ask(what="peak")["bytes"])

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # of what was not written any more
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
        """One line there, one line back. Whatever comes between ends the process: it would answer the last question."""
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
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return f"the process ended {how}" + (f": {lines[-1].strip()}" if lines else "")


_ERRORS = {kind.__name__: kind for kind in (QwqError, UsageError)}


def _environment() -> dict[str, str]:
    """Ours, but for what is meant for our own threads; and no debugger for a process that aborts."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [ours.get("PYTHONPATH")])]
    return ours | {"PYTHONPATH": os.pathsep.join(paths), "GGML_NO_BACKTRACE": "1"}


class _Session:
    """A context in the child, and how many positions its cache is filled with to measure behind them."""

    def __init__(self, path: str, library: Library, run: Any, vocabulary: int, positions: int, log: Log) -> None:
        self.path, self.library, self.run, self.log = path, library, run, log
        self.vocabulary = vocabulary
        self.ids: list[int] = np.random.default_rng(0).integers(0, vocabulary, positions).tolist()
        self.filled = 0
        self.warm: set[int] = set()  # sizes of the batches that have been computed

    def prompt(self, tokens: int, depth: int) -> dict[str, Any]:
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
        return {"bytes": peak_bytes()}

    def _fill(self, depth: int) -> None:
        """Leave so many positions in the cache. Those that have been there stay."""
        self.filled = min(self.filled, depth)
        self.library.remove(self.run, self.filled)
        while self.filled < depth:
            self.filled += self._compute(min(BATCH, depth - self.filled), self.filled, logits=False)

    def _warm_up(self, tokens: int, depth: int) -> None:
        """Memory that is touched for the first time, and weights that are read from the disk, are not measured."""
        if tokens not in self.warm:
            self._compute(tokens, depth, logits=True)
            self._fill(depth)

    def _compute(self, tokens: int, start: int, logits: bool) -> int:
        """A batch without the clock -> its tokens."""
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
        """The answer, if what was measured is what was asked for."""
        after = self.library.positions(self.run)
        if (before, after) != (depth, depth + tokens):
            problem = f"{before} and then {after} positions were in the cache, not {depth} and {depth + tokens}"
            raise QwqError(self.path, None, problem)
        logits = np.ctypeslib.as_array(self.library.api.llama_get_logits_ith(self.run, -1), (self.vocabulary,))
        if not np.all(np.isfinite(logits)):
            raise QwqError(self.path, None, "llama.cpp's logits are not finite")
        return {"seconds": seconds, "before": before, "after": after}


def _serve(requests: queue.SimpleQueue[dict[str, Any]], answer: Callable[[dict[str, Any]], None]) -> NoReturn:
    """Load what the first request says, then answer the others. Raises QwqError."""
    settings = requests.get()
    path, kv, flash_attention = settings["path"], settings["kv"], settings["flash_attention"]
    library = Library(QwqError)
    weights: dict[str, Any] = {"n_gpu_layers": 0}
    if not settings["repack"]:  # what llama.cpp's --no-repack sets
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
    """What was loaded, and how, as the log says."""
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
    """Lines of stdin. Its end means that our parent is gone: then so are we, in the midst of a computation, too."""
    with open(0, "rb", buffering=0) as lines:  # a buffer has a lock, which would be held when Python ends
        for line in lines:
            requests.put(json.loads(line))
    os._exit(0)


def main() -> int:
    """The child: requests from stdin, answers to stdout. What llama.cpp itself prints goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for our parent, which ends us
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
