"""Convert a checkpoint to a folder of packed weights, which `load` reads at the speed of the disk."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import CheckpointError, UsageError
from ..files import read_file, writes
from ..formats import Download, GGUFSource, Source, open_source, recognise, resolve, write
from ..formats.checkpoint import read_config
from ..formats.gguf import metadata_only
from ..formats.names import CONFIG, GENERATION_CONFIG, TOKENIZER_GGUF, packed_name
from ..formats.packed import writing
from ..formats.packed_folder import packed_files
from ..formats.write import write_atomically
from ..forms import FILE, FORMS, AnyForm, FileForm
from ..host.limits import cpus
from ..text import FILES
from .ahead import check_forms, check_room, file_bytes
from .plan import plan
from .reading import packed_source
from .tokens import find_tokenizer

# The files that a folder holds beside its weights.
_SMALL = (CONFIG, GENERATION_CONFIG, *FILES)


def convert(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    weights: str,
    *,
    threads: int | None = None,
    offline: bool = False,
    progress: Callable[[float], object] | None = None,
) -> Path:
    """Pack a model's weights into a file, and copy its small files beside it. Return the path of the file.

    model     as for `load`
    folder    a new folder, or one that holds other forms of the same model
    weights   one of `FORMS`, or "file", the types of a quantised file without loss
    progress  called with the number of weights read since its last call, of `footprint.parameters`

    One matrix is held in memory at a time, or two where a tied head and its embedding differ in format. The file
    appears when it is complete; a run that is interrupted or fails leaves nothing behind.

    Raises a QwqError before anything is written. The reasons are a model that cannot be read or is packed already, a
    folder that holds something else, and a disk that is too small. Raises CheckpointError for a weight that is not
    finite, or too large for the form, with its tensor and its place; FileError where the system refuses to write.
    """
    if weights not in (*FORMS, FILE):
        raise UsageError(None, "weights", f"must be one of {', '.join((*FORMS, FILE))}, got {weights[:40]}")
    folder = Path(folder)
    check_folder(folder)

    def confirm(download: Download) -> bool:
        check_download(download, folder, weights)
        return True

    path = resolve(model, offline=offline, confirm=confirm, inspect=lambda small: check_small(small, folder))
    recognise.require(path, model)
    with open_source(path) as source:
        if source.floats is None:
            raise _packed(path)
        kept = None if source.kept is None else source.kept.form
        check_forms(source.config, (), weights, "core", path, kept is not None)
        form: AnyForm = kept if weights == FILE and kept is not None else weights
        if isinstance(form, FileForm) and form.columns:
            problem = "file: the columns are in an order of their own (desc_act), which no packed file has: take q8"
            raise UsageError(path, "weights", problem)
        find_tokenizer(source.tokenizer, source.config.vocab_size)
        small = _small_files(source)
        _check_small(small, folder)
        planned = plan(source.config, form)
        check_room(folder, sum(stored.nbytes for stored in planned.values()))
        with writes(folder), _all_or_nothing([folder / name for name in small]):
            folder.mkdir(parents=True, exist_ok=True)
            for name, contents in small.items():
                (folder / name).parent.mkdir(exist_ok=True)
                if not (folder / name).exists():
                    _write(folder / name, contents())
            with writing(folder / packed_name(weights), planned) as append:
                for name, tensor in packed_source(source, form, threads or cpus(), progress):
                    append(name, tensor)
    return folder / packed_name(weights)


def _small_files(source: Source) -> dict[str, Callable[[], bytes]]:
    """Return the files beside the weights: name -> a function that returns the contents.

    A GGUF file holds all in its metadata. Those are kept as a GGUF file without tensors, for tokenizer and template.
    """
    if isinstance(source, GGUFSource):
        values = {CONFIG: source.config.to_dict(), GENERATION_CONFIG: source.generation_config().to_dict()}
        texts = {name: json.dumps(each, indent=2).encode() + b"\n" for name, each in values.items()}
        small: dict[str, Callable[[], bytes]] = {name: functools.partial(bytes, text) for name, text in texts.items()}
        return small | {TOKENIZER_GGUF: functools.partial(metadata_only, source.path)}
    return _copies(source.tokenizer)


def _copies(folder: Path) -> dict[str, Callable[[], bytes]]:
    """Return the small files in a folder, as `_small_files` does."""

    def read(path: Path) -> bytes:
        return read_file(path, path.stat().st_size, CheckpointError)

    return {name: functools.partial(read, folder / name) for name in _SMALL if (folder / name).is_file()}


def _write(path: Path, data: bytes) -> None:
    write_atomically(path, lambda file: file.write(data))


@contextmanager
def _all_or_nothing(files: list[Path]) -> Iterator[None]:
    """After an error or Ctrl-C, remove those of the files, and of the folders above them, that were not there before.

    A file that was there already keeps its contents: `_check_folder` compared it.
    """
    parents = sorted({path for file in files for path in file.parents}, key=lambda path: -len(path.parts))
    made = [path for path in (*files, *parents) if not os.path.lexists(path)]
    try:
        yield
    except BaseException:
        for path in made:
            with suppress(OSError):  # such as a folder that something else was put into meanwhile
                path.rmdir() if path in parents else path.unlink()
        raise


def check_folder(folder: Path) -> None:
    """Check a folder for a conversion, before anything is known of the model. Raises UsageError, FileError."""
    _check_contents(folder, (*_SMALL, TOKENIZER_GGUF))
    write.check_folder(folder)


def check_download(download: Download, folder: Path, weights: str) -> None:
    """Check a model that is not downloaded yet, and the disks for it and for the result. Raises a QwqError."""
    if download.forms:
        raise _packed(download.name)
    check_forms(download.config, (), weights, "core", download.name, download.quantised)
    if weights == FILE:
        check_room(folder, file_bytes(download), download)
        return
    check_room(folder, sum(stored.nbytes for stored in plan(download.config, weights).values()), download)


def check_small(source: Path, folder: Path) -> None:
    """Check the small files of a download, whose weights are not there yet, and those in the folder for its conversion.

    Raises a QwqError.
    """
    find_tokenizer(source, read_config(source).vocab_size)
    _check_small(_copies(source), folder)


def _check_small(small: Mapping[str, Callable[[], bytes]], folder: Path) -> None:
    _check_contents(folder, small)
    for name, contents in small.items():
        if (folder / name).exists() and (folder / name).read_bytes() != contents():
            raise UsageError(folder / name, None, "is of another model: take a new folder")


def _check_contents(folder: Path, small: Collection[str]) -> None:
    """Check that a folder is new, is empty, or holds packed weights, or these files alone.

    The small files alone, and hidden unfinished files, are what an earlier version or a killed conversion left.
    """
    with writes(folder):
        if not os.path.isdir(folder):
            if os.path.lexists(folder):
                raise UsageError(folder, None, "is not a folder")
            return
        left = {path.name for path in folder.iterdir() if not (path.name[0] == "." and path.suffix == ".tmp")}
        if left - {Path(name).parts[0] for name in small} and not packed_files(folder):
            raise UsageError(folder, None, "holds something else: take a new folder")


def _packed(model: str | Path) -> UsageError:
    return UsageError(model, None, "is packed already: convert the checkpoint that it was made from")
