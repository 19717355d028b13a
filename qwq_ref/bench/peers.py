"""llama.cpp beside the engine: its configurations, and the files that they load."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType

from ..config import Config
from ..files import StrPath
from ..host.memory import require
from ..interop.llama_cpp.bindings import require_packages
from ..interop.llama_cpp.gguf import QUANTS, gguf_bytes, write_gguf
from ..interop.llama_cpp.peer import Configuration, Peer, configurations

Progress = Callable[[str, int, str], AbstractContextManager[Callable[[float], object]]]


class Peers:
    """The peers of a benchmark. A context manager: it owns the folder of their GGUF files, which it removes at the end.

    config    the shape of the model
    context   positions that the peers need
    deep      whether the engine is measured behind a context: then each configuration also runs without flash
              attention, which is faster there
    progress  shows how far a file is written: (title, total, unit) -> a context manager of a callback
    file      a GGUF file to run, instead of files of random weights

    Raises UsageError without the packages, ConfigError for a shape that llama.cpp cannot have, and MemoryLimitError if
    the weights do not fit.
    """

    def __init__(
        self,
        config: Config,
        context: int,
        deep: bool,
        source: StrPath,
        progress: Progress,
        file: Path | None = None,
    ) -> None:
        require_packages()
        self.config, self.context, self.deep, self.progress, self.file = config, context, deep, progress, file
        for quant in {configuration.quant for configuration in self._configurations(1)}:
            size = gguf_bytes(config, quant) if file is None else file.stat().st_size
            require({"the peer's weights": size}, source)
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        return len(self._configurations(1))

    def __enter__(self) -> Peers:
        self._folder = tempfile.TemporaryDirectory(prefix="qwq-bench-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._folder is not None
        self._folder.cleanup()

    @contextmanager
    def start(self, number: int, threads: int) -> Iterator[tuple[str, Peer]]:
        """Run one configuration: a context manager of (its name, the peer)."""
        configuration = self._configurations(threads)[number]
        with configuration.start(self._file(configuration.quant)) as peer:
            yield configuration.name, peer

    def _configurations(self, threads: int) -> list[Configuration]:
        quants = QUANTS if self.file is None else [""]
        found = configurations(threads, self.context, quants=quants)
        deep = configurations(threads, self.context, flash_attention=False, quants=quants) if self.deep else []
        return found + deep

    def _file(self, quant: str) -> Path:
        """Return the given file, or that of a quant, which is written on first use."""
        if self.file is not None:
            return self.file
        assert self._folder is not None
        path = Path(self._folder.name) / f"{quant}.gguf"
        if not path.exists():
            with self.progress(f"writing {quant}", gguf_bytes(self.config, quant), "B") as progress:
                write_gguf(path, self.config, quant, progress=progress)
        return path
