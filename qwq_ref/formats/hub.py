"""What a user calls a model: a folder, a .safetensors file, a shipped name, or an id in the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import CheckpointError
from ..files import StrPath
from .checkpoint import (
    CONFIG,
    INDEX,
    SINGLE,
    read_index,
)

# Narrower than the hub's own rules: what passes can't leave the cache folder, whatever version joins the paths.
_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)
_SHIPPED = Path(__file__).parents[1] / "models"
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.txt"]


def resolve(model: StrPath, *, offline: bool = False, cache_dir: StrPath | None = None) -> Path:
    """A folder, a .safetensors file, a shipped name or `owner/name[@revision]` -> the folder or file it names.

    A local path wins over a name, and a shipped name (`qwq-32b`, of which only the config is shipped) over the hub.
    A complete snapshot in the cache is used as it is; else it is downloaded, unless `offline` or HF_HUB_OFFLINE is
    set. `cache_dir` replaces the place that HF_HUB_CACHE or HF_HOME give.
    Raises CheckpointError.
    """
    name = os.fspath(model)
    if os.path.isdir(name):
        return Path(name)
    if os.path.lexists(name):
        if not name.endswith(".safetensors") or not os.path.isfile(name):
            raise CheckpointError(name, None, "is neither a folder nor a .safetensors file")
        if not os.path.isfile(Path(name).parent / CONFIG):
            raise CheckpointError(name, None, f"there is no {CONFIG} in its folder")
        return Path(name)
    if re.fullmatch(r"[a-z0-9-]+", name) and (_SHIPPED / name).is_dir():
        return _SHIPPED / name
    match = _HUB_ID.fullmatch(name)
    if match is None or ".." in name:
        raise CheckpointError(
            name, None, "is not a folder, not a file, and not a hub id (owner/name or owner/name@revision)"
        )
    return _snapshot(name, match["repo"], match["revision"], offline, cache_dir)


def _snapshot(name: str, repo: str, revision: str | None, offline: bool, cache_dir: StrPath | None) -> Path:
    from huggingface_hub import constants, snapshot_download  # 0.3 s, which nobody with a local folder should wait for

    def fetch(local: bool) -> Path:
        # The hub's * also matches "/": subfolders hold other formats of the same weights.
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
    except (OSError, ValueError):  # the hub's "not in the cache", and its own idea of an id
        problem = f"is not a folder, not a file, and not complete in {cache}"
    if offline or constants.HF_HUB_OFFLINE:
        raise CheckpointError(name, None, f"{problem}; offline, so it was not downloaded")
    try:
        return fetch(local=False)
    except Exception as failure:  # the HTTP library and its errors differ between versions of the hub's
        reason = next(iter(str(failure).strip().splitlines()), "")
        raise CheckpointError(
            name, None, f"{problem}; the download failed ({type(failure).__name__}: {reason})"
        ) from failure


def _absent(folder: Path) -> str | None:
    """A file that a snapshot lacks, if any: whoever loaded only a tokenizer has a snapshot without weights."""
    whole = (folder / SINGLE).exists() or not (folder / INDEX).exists()
    names = [SINGLE] if whole else sorted(set(read_index(folder / INDEX).values()))
    return next((name for name in (CONFIG, *names) if not (folder / name).exists()), None)
