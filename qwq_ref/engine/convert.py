"""Convert a checkpoint to a folder of packed weights, which `load` reads at the speed of the disk."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UsageError
from ..files import is_gguf, read_file
from ..formats import Download, GGUFSource, Source, open_source, read_config, recognise, resolve, write
from ..formats.gguf import metadata_only
from ..formats.names import CONFIG, GENERATION_CONFIG, TOKENIZER_GGUF, packed_name
from ..formats.packed import packed_layout
from ..forms import FILE, FORMS, AnyForm
from ..host.limits import cpus
from ..text import FILES
from .ahead import check_forms, check_room, file_bytes
from .conversion import Conversion, Observer, Small, Stage, carry_out, check_contents, check_small_files
from .pieces import Progress
from .plan import plan
from .reading import packer
from .tokens import find_tokenizer

# The files that a folder holds beside its weights.
SMALL = (CONFIG, GENERATION_CONFIG, *FILES)


def convert(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    weights: str,
    *,
    threads: int | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    resumed: Progress | None = None,
    stage: Stage | None = None,
) -> Path:
    """Pack a model's weights into a file, and copy its small files beside it. Return the path of the file.

    model     as for `load`
    folder    a new folder, or one that holds other forms of the same model
    weights   one of `FORMS`, or "file", the types of a quantised file without loss
    progress  called with the number of weights read since its last call, of `footprint.parameters`
    resumed   called with the number of weights that an earlier run, which was killed, has packed already
    stage     see `conversion.Observer`

    Each thread holds a few MB of a matrix. The file appears when it is complete. A run that was killed, or ended by
    Ctrl-C, leaves a hidden folder: the same call goes on there. An error leaves nothing behind.

    Raises a QwqError before anything is written. The reasons are a model that cannot be read or is packed already, a
    folder that holds something else, and a disk that is too small. Raises CheckpointError for a weight that is not
    finite, or too large for the form, with its tensor and its place. Raises FileError where the system refuses to
    write, and where another conversion writes to the folder.
    """
    if weights not in (*FORMS, FILE):
        raise UsageError(None, "weights", f"must be one of {', '.join((*FORMS, FILE))}, got {weights[:40]}")
    folder = Path(folder)
    check_folder(folder)

    def judge(download: Download) -> None:
        check_download(download, folder, weights)

    with opened(model, offline, judge, lambda small: check_small(small, folder)) as (path, source):
        kept = None if source.kept is None else source.kept.form
        check_forms(source.config, (), weights, "core", path, kept is not None)
        form: AnyForm = kept if weights == FILE and kept is not None else weights
        find_tokenizer(source.tokenizer, source.config.vocab_size)
        small = _small_files(source)
        check_small_files(small, folder)
        planned, count = plan(source.config, form), threads or cpus()
        conversion = Conversion(
            name=weights,
            model=model,
            folder=folder,
            options=["--weights", weights],
            parameters={"weights": weights},
            layouts={packed_name(weights): packed_layout(planned)},
            planned=planned,
            small=small,
            pool=lambda target: packer(source, form, count, target),
        )
        carry_out(conversion, source, count, Observer(progress, resumed, stage))
    return folder / packed_name(weights)


@contextmanager
def opened(
    model: str | os.PathLike[str],
    offline: bool,
    judge: Callable[[Download], None],
    inspect: Callable[[Path], object],
) -> Iterator[tuple[Path, Source]]:
    """Find a model and open it -> its path and its source, which has floats.

    judge    raises a QwqError for a model that should not be downloaded
    inspect  as for `resolve`

    Raises UsageError for packed weights, and as `resolve` and `open_source`.
    """

    def confirm(download: Download) -> bool:
        judge(download)
        return True

    path = resolve(model, offline=offline, confirm=confirm, inspect=inspect)
    recognise.require(path, model)
    with open_source(path) as source:
        if source.floats is None:
            raise is_packed(path)
        yield path, source


def _small_files(source: Source) -> Small:
    """Return the files beside the weights: name -> a function that returns the contents.

    A GGUF file holds all in its metadata. Those are kept as a GGUF file without tensors, for tokenizer and template.
    """
    if isinstance(source, GGUFSource):
        values = {CONFIG: source.config.to_dict(), GENERATION_CONFIG: source.generation_config().to_dict()}
        small: dict[str, Callable[[], bytes]] = {name: json_file(each) for name, each in values.items()}
        return small | {TOKENIZER_GGUF: functools.partial(metadata_only, source.path)}
    return copies(source.tokenizer)


def json_file(values: Any) -> Callable[[], bytes]:
    """Return a function that returns a value as the contents of a JSON file."""
    return functools.partial(bytes, json.dumps(values, indent=2, ensure_ascii=False).encode() + b"\n")


def copies(folder: Path) -> dict[str, Callable[[], bytes]]:
    """Return the small files in a folder, as `_small_files` does."""

    def read(path: Path) -> bytes:
        return read_file(path, path.stat().st_size, CheckpointError)

    return {name: functools.partial(read, folder / name) for name in SMALL if (folder / name).is_file()}


def check_folder(folder: Path) -> None:
    """Check a folder for packed weights, before anything is known of the model. Raises UsageError, FileError."""
    check_contents(folder, (*SMALL, TOKENIZER_GGUF))
    write.check_folder(folder)


def check_download(download: Download, folder: Path, weights: str) -> None:
    """Check a model that is not downloaded yet, and the disks for it and for the result. Raises a QwqError."""
    if download.forms:
        raise is_packed(download.name)
    check_forms(download.config, (), weights, "core", download.name, download.quantised)
    if weights == FILE:
        check_room(folder, file_bytes(download), download)
        return
    check_room(folder, sum(stored.nbytes for stored in plan(download.config, weights).values()), download)


def check_small(source: Path, folder: Path) -> None:
    """Check the small files of a download, whose weights are not there yet, and those in the folder for its conversion.

    source  as `resolve` gives it to `inspect`

    Raises a QwqError.
    """
    find_tokenizer(source, read_config(source).vocab_size)
    of_gguf = {TOKENIZER_GGUF: functools.partial(metadata_only, source)}
    check_small_files(of_gguf if is_gguf(source) else copies(source), folder)


def is_packed(model: str | Path) -> UsageError:
    return UsageError(model, None, "is packed already: convert the checkpoint that it was made from")
