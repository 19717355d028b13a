"""The hub's cache on disk: repositories, their snapshots, and the files that a snapshot lacks.

A repository is a folder `models--owner--name`. Its `refs/main` holds a commit, `snapshots/COMMIT` holds the files of
that commit, and `.no_exist/COMMIT` holds an empty file for each name that the commit is known to lack.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...files import StrPath
from ...text_files import FILES
from ..checkpoint import read_index
from ..gguf.names import models_in
from ..names import CONFIG, GENERATION_CONFIG, INDEX, SHARD, SINGLE, packed_form
from .choice import File

SMALL = (GENERATION_CONFIG, *FILES)  # files beside the weights and the config; a model can lack any

_COMMIT = re.compile(r"\w[\w.-]{0,99}", re.ASCII)
_MOST_IDS = 1000
_MOST_FILES, _MOST_DEPTH = 10_000, 4


def root(cache_dir: StrPath | None) -> Path:
    """Return the folder of the cache."""
    return Path(constants().HF_HUB_CACHE if cache_dir is None else cache_dir).expanduser()


def constants() -> Any:
    """Return the constants of the hub's library, which reads the environment once. The whole library takes 0.3 s.

    Raises UsageError for a variable that it cannot read.
    """
    try:
        from huggingface_hub import constants
    except ValueError as problem:
        for name, value in os.environ.items():
            if name.startswith("HF_HUB_") and name.endswith("_TIMEOUT") and not value.strip().isdecimal():
                raise UsageError(None, name, f"must be a whole number of seconds, got {value[:40]!r}") from None
        if "HF_ENDPOINT" in os.environ:
            raise UsageError(None, "HF_ENDPOINT", "is not an address that the library of the hub can read") from None
        raise UsageError(None, None, f"a variable of the library of the hub cannot be read ({problem})") from None
    return constants


def repository(root: Path, repo: str) -> Path:
    """Return the folder of a repository `owner/name`, which may not exist."""
    return root / f"models--{repo.replace('/', '--')}"


def is_repository(folder: Path) -> bool:
    """Return whether a folder is a repository in the cache."""
    return (folder / "snapshots").is_dir() and ((folder / "refs").is_dir() or (folder / "blobs").is_dir())


def ids(root: Path) -> list[str]:
    """Return the ids of the repositories in a cache."""
    start = "models--"
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in itertools.islice(entries, _MOST_IDS)]
    except OSError:
        return []
    return sorted(name.removeprefix(start).replace("--", "/", 1) for name in names if name.startswith(start))


def snapshot(repository: Path, revision: str | None) -> Path | None:
    """Return the snapshot of a revision: its folder, or None.

    revision  a branch, a tag or a commit; None: main, or else the only snapshot that is there
    """
    name = revision or "main"
    try:
        commit = (repository / "refs" / name).read_text("utf-8").strip()
    except (OSError, ValueError):
        commit = name
    folder = repository / "snapshots" / commit
    if _COMMIT.fullmatch(commit) and folder.is_dir():
        return folder
    if revision is None and (repository / "snapshots").is_dir():
        folders = [each for each in (repository / "snapshots").iterdir() if each.is_dir()]
        return folders[0] if len(folders) == 1 else None
    return None


def is_commit(name: object) -> bool:
    """Return whether a name can be that of a snapshot."""
    return isinstance(name, str) and _COMMIT.fullmatch(name) is not None


def remember_commit(repository: Path, revision: str, commit: str) -> None:
    """Remember the commit of a branch or a tag, as the hub's library does. Failure has no effect."""
    if revision == commit:
        return
    file = repository / "refs" / revision
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(commit, "utf-8")


def commits(repository: Path) -> list[str]:
    """Return the commits whose snapshots are there, for a repository of which no branch is known."""
    if os.path.lexists(repository / "refs" / "main"):
        return []
    with contextlib.suppress(OSError):
        return sorted(each.name for each in (repository / "snapshots").iterdir() if _COMMIT.fullmatch(each.name))
    return []


def absent(folder: Path, weights: bool) -> str | None:
    """Return a file that a snapshot lacks, of those that are read; None if it is complete.

    A program that loads only a tokenizer leaves such a snapshot, and so does an interrupted download.
    """
    if is_of_gguf(folder):
        return None  # `recognise` says what is wrong with them
    names = [CONFIG]
    if weights:
        if (folder / SINGLE).exists():
            names.append(SINGLE)
        elif (folder / INDEX).exists():
            names += sorted(set(read_index(folder / INDEX).values()))
        elif any(SHARD.fullmatch(file.name) for file in folder.iterdir()):
            names.append(INDEX)
        elif not any(packed_form(file.name) and file.exists() for file in folder.iterdir()):
            names.append(SINGLE)
    return next((name for name in names if not (folder / name).exists()), None)


def has_checkpoint(names: Iterable[str]) -> bool:
    """Return whether there are weights in safetensors, which come before GGUF files, among the names of a folder."""
    return any(name in (SINGLE, INDEX) or packed_form(name) for name in names)


def is_of_gguf(folder: Path) -> bool:
    """Return whether a snapshot holds GGUF files of models, and no checkpoint."""
    return bool(models_in(_gguf_names(folder))) and not has_checkpoint(file.name for file in folder.iterdir())


def gguf_files(folder: Path) -> dict[str, File]:
    """Return the GGUF files of a snapshot, by their relative names."""
    return {name: File((folder / name).stat().st_size) for name in _gguf_names(folder)}


def _gguf_names(folder: Path) -> list[str]:
    """Return the names of the GGUF files of a snapshot that are there, and not only links to lost ones."""
    names = []
    for at, folders, files in os.walk(folder):
        place = Path(at).relative_to(folder)
        if len(place.parts) >= _MOST_DEPTH:
            folders.clear()
        found = [place / name for name in files if name.endswith(".gguf")]
        names += [path.as_posix() for path in found if (folder / path).exists()]
        if len(names) > _MOST_FILES:
            break
    return names


def unasked(folder: Path) -> list[str]:
    """Return the small files that a snapshot lacks, and that its commit is not known to lack."""
    known = _known_absent(folder)
    return [name for name in SMALL if not (folder / name).exists() and not (known / name).exists()]


def remember_absent(folder: Path, names: Iterable[str]) -> None:
    """Remember that the commit of a snapshot lacks these files, as the hub's library does. Failure has no effect."""
    known = _known_absent(folder)
    with contextlib.suppress(OSError):
        for name in names:
            (known / name).parent.mkdir(parents=True, exist_ok=True)
            (known / name).touch()


def _known_absent(folder: Path) -> Path:
    return folder.parents[1] / ".no_exist" / folder.name
