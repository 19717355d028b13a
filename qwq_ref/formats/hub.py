"""Find a model by the name that a user gives: a folder, a file, a shipped model, or an id in the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import CheckpointError
from ..files import StrPath
from . import recognise
from .checkpoint import read_index
from .names import CONFIG, INDEX, SHIPPED, SINGLE

# Narrower than the hub's own rules: an id that passes cannot leave the cache folder in any version of the hub's code.
_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt"]


def resolve(model: StrPath, *, offline: bool = False, cache_dir: StrPath | None = None) -> Path:
    """Return the folder or file of a folder, a .safetensors file, a shipped name, or `owner/name[@revision]`.

    A local path takes precedence over a shipped name, and a shipped name over the hub. Of the shipped `qwq-32b` only
    the config is there. A complete snapshot in the cache is used as it is. Otherwise it is downloaded, unless
    `offline` or HF_HUB_OFFLINE is set. `cache_dir` replaces the folder of HF_HUB_CACHE or HF_HOME.
    Raises CheckpointError.
    """
    name = os.fspath(model)
    if os.path.isdir(name):
        return Path(name)
    if os.path.lexists(name):
        recognise.require(Path(name), name)
        return Path(name)
    if re.fullmatch(r"[a-z0-9-]+", name) and (SHIPPED / name).is_dir():
        return SHIPPED / name
    match = _HUB_ID.fullmatch(name)
    if match is None or ".." in name:
        raise CheckpointError(
            name, None, "is not a folder, not a file, and not a hub id (owner/name or owner/name@revision)"
        )
    return _snapshot(name, match["repo"], match["revision"], offline, cache_dir)


def _snapshot(name: str, repo: str, revision: str | None, offline: bool, cache_dir: StrPath | None) -> Path:
    from huggingface_hub import constants, snapshot_download  # takes 0.3 s, and a local folder does not need it

    def fetch(local: bool) -> Path:
        # The hub's * matches "/" as well, and subfolders hold other formats of the same weights.
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                cache_dir=None if cache_dir is None else os.fspath(cache_dir),
                local_files_only=local,
                allow_patterns=_PATTERNS,
                ignore_patterns=["*/*"],
            )
        )

    cache = f"the Hugging Face cache ({cache_dir or constants.HF_HUB_CACHE})"
    try:
        folder = fetch(local=True)
        absent = _absent(folder)
        if absent is None:
            return folder
        problem = f"is in {cache}, but without its {absent}"
    except (OSError, ValueError):  # not in the cache, or no id by the hub's own rules
        problem = f"is not a folder, not a file, and not complete in {cache}"
    if offline or constants.HF_HUB_OFFLINE:
        raise CheckpointError(name, None, f"{problem}; offline, so it was not downloaded")
    try:
        return fetch(local=False)
    except Exception as failure:  # the errors differ between versions of the hub's library
        reason = next(iter(str(failure).strip().splitlines()), "")
        raise CheckpointError(
            name, None, f"{problem}; the download failed ({type(failure).__name__}: {reason})"
        ) from failure


def _absent(folder: Path) -> str | None:
    """Return a file that a snapshot lacks, or None. A program that loads only a tokenizer leaves such a snapshot."""
    whole = (folder / SINGLE).exists() or not (folder / INDEX).exists()
    names = [SINGLE] if whole else sorted(set(read_index(folder / INDEX).values()))
    return next((name for name in (CONFIG, *names) if not (folder / name).exists()), None)
