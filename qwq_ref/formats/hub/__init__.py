"""Find a model by the name that a user gives: a folder, a file, a shipped model, or an id in the Hugging Face hub."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from ...errors import CheckpointError, did_you_mean
from ...files import StrPath
from .. import recognise
from ..generation_config import not_fetched
from ..names import GENERATION_CONFIG, SHIPPED
from . import cache
from .download import Confirm, Download, Fetcher, Inspect

__all__ = ["Confirm", "Download", "Inspect", "resolve"]

# Narrower than the hub's own rules: an id that passes cannot leave the cache folder in any version of the hub's code.
_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII)
_ADDRESSES = (  # of web pages, of the hub's library, and with a slash or a tag of another program behind the id
    re.compile(r"(?:https?://)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/.*)?", re.ASCII),
    re.compile(r"hf://(?:models/)?([\w.-]+/[\w.-]+)(?:[/@].*)?", re.ASCII),
    re.compile(r"([\w.-]+/[\w.-]+)(?:/|:[\w.-]+)", re.ASCII),
)


def resolve(
    model: StrPath,
    *,
    offline: bool = False,
    cache_dir: StrPath | None = None,
    weights: bool = True,
    confirm: Confirm | None = None,
    inspect: Inspect | None = None,
    progress: Callable[[float], object] | None = None,
) -> Path:
    """Return the path of a folder, a .safetensors or .gguf file, a shipped name, or `owner/name[@revision]`.

    offline    ask the hub for nothing, as with HF_HUB_OFFLINE
    cache_dir  replaces the folder of HF_HUB_CACHE or HF_HOME
    weights    False: the config is enough
    confirm    called with a `Download` before weights are downloaded; a false result refuses. None: download them
    inspect    called with the folder of a download when all its files are there but the weights: an error that it
               raises comes before these
    progress   called with the number of bytes since its last call, negative for bytes that are read again. None: the
               hub's library shows bars of its own on a terminal

    A folder that holds one GGUF model and no checkpoint stands for that file.

    Offline, the only snapshot of a model stands for its branch main, if the cache does not know that branch.

    A local path takes precedence over a shipped name, and a shipped name over the hub. Of the shipped `qwq-32b` only
    the config is there. A snapshot in the cache with all files that are read is used as it is. Small files that it
    lacks are asked for once: a snapshot of another program can lack the tokenizer or the sampling parameters.

    Anything else is downloaded, if the disk has room: only files that are read. A note of the KeyboardInterrupt of
    Ctrl-C tells what is kept. Raises CheckpointError, and ConfigError for the config of another architecture.
    """
    name = os.fspath(model)
    if os.path.isdir(name):
        return recognise.gguf_of(_local(Path(name), weights))
    if os.path.lexists(name):
        recognise.require(Path(name), name)
        return Path(name)
    if re.fullmatch(r"[a-z0-9-]+", name) and (SHIPPED / name).is_dir():
        return SHIPPED / name
    match = _HUB_ID.fullmatch(name)
    if match is None or ".." in name:
        raise CheckpointError(
            name,
            None,
            "is not a folder, not a file, and not a hub id (owner/name or owner/name@revision)" + _hint(name),
        )
    fetcher = Fetcher(name, match["repo"], match["revision"], cache_dir, progress)
    return _from_hub(fetcher, offline, weights, confirm, inspect)


def _local(folder: Path, weights: bool) -> Path:
    """Return a folder, or the snapshot in it, if it is the folder of a repository in the hub's cache."""
    if not cache.is_repository(folder):
        return folder
    snapshot = cache.snapshot(folder, None)
    if snapshot is None:
        return folder  # `recognise` says what it is
    if folder.name.startswith(("datasets--", "spaces--")):
        raise CheckpointError(folder, None, "is the cache of a data set or a space, not of a model")
    if (absent := cache.absent(snapshot, weights)) is not None:
        repo = "/".join(folder.name.split("--")[1:])
        raise CheckpointError(folder, None, f"is the cache of a repository, without its {absent}: give the id {repo}")
    return snapshot


def _from_hub(fetcher: Fetcher, offline: bool, weights: bool, confirm: Confirm | None, inspect: Inspect | None) -> Path:
    offline = offline or cache.constants().HF_HUB_OFFLINE
    folder = cache.snapshot(fetcher.repository, fetcher.revision or "main")
    others = cache.commits(fetcher.repository) if offline and folder is None and fetcher.revision is None else []
    if len(others) == 1:  # another program fetched a commit by its name, so that no branch is known
        folder = cache.snapshot(fetcher.repository, others[0])
    absent = "" if folder is None else cache.absent(folder, weights)
    if folder is not None and absent is None:
        unasked = cache.unasked(folder) if weights else []
        if unasked and not offline:
            fetcher.add_small(folder)
        elif GENERATION_CONFIG in unasked:
            not_fetched[folder] = "offline"
        return folder
    where = f"the Hugging Face cache ({fetcher.root})"
    if folder is None and others:
        names = " or ".join(f"{fetcher.name}@{commit}" for commit in others[:3])
        problem = f"is in {where} with {len(others)} snapshots, and none is main: name one, {names}"
    elif folder is None:
        problem = f"is not a folder, not a file, and not complete in {where}"
        problem += did_you_mean(fetcher.name, cache.ids(fetcher.root))
    else:
        problem = f"is in {where}, but without its {absent}"
        fetcher.lacks = f"{problem}; "
    if offline:
        raise CheckpointError(fetcher.name, None, f"{problem}; offline, so it was not downloaded")
    return fetcher.fetch(weights, confirm, inspect)


def _hint(name: str) -> str:
    """Return what a user may have meant with a name that is nothing: "" if nothing is near."""
    if name.startswith("~"):
        return ". The shell did not replace the ~"
    if match := next(filter(None, (address.fullmatch(name) for address in _ADDRESSES)), None):
        return f" (did you mean {match[1]}?)"
    cached = cache.ids(cache.root(None))
    if owned := [repo for repo in cached if repo.partition("/")[2].casefold() == name.casefold()]:
        return f" (did you mean {' or '.join(owned[:3])}?)"
    return did_you_mean(name, [*sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir()), *cached])
