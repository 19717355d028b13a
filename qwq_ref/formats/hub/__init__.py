"""Find a model by the name that a user gives: a folder, a file, a shipped model, or an id in the Hugging Face hub."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from ...errors import CheckpointError, ChoiceError, QwqError, did_you_mean
from ...files import StrPath
from .. import recognise
from ..generation_config import not_fetched
from ..names import GENERATION_CONFIG, SHIPPED
from . import cache
from .address import Address, meant, parse
from .choice import choose
from .download import Confirm, Download, Fetcher, Inspect, read_gguf_config

__all__ = ["Confirm", "Download", "Inspect", "resolve"]


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

    `owner/name[@revision]:TYPE` and `owner/name[@revision]/FILE.gguf` are a GGUF model of the hub.

    offline    ask the hub for nothing, as with HF_HUB_OFFLINE
    cache_dir  replaces the folder of HF_HUB_CACHE or HF_HOME
    weights    False: the config is enough
    confirm    called with a `Download` before weights are downloaded; a false result refuses. None: download them
    inspect    called with the folder of a download when all its files are there but the weights: an error that it
               raises comes before these. Of a GGUF model, called with a file that has its header, and no weights
    progress   called with the number of bytes since its last call, negative for bytes that are read again. None: the
               hub's library shows bars of its own on a terminal

    A folder that holds one GGUF model and no checkpoint stands for that file, and so does a repository of the hub. Of
    several, the only one in the cache is meant. With `weights=False`, a file that is not in the cache is one that has
    its header, and no weights: `heads`.

    Offline, the only snapshot of a model stands for its branch main, if the cache does not know that branch.

    A local path takes precedence over a shipped name, and a shipped name over the hub. Of the shipped `qwq-32b` only
    the config is there. A snapshot in the cache with all files that are read is used as it is. Small files that it
    lacks are asked for once: a snapshot of another program can lack the tokenizer or the sampling parameters.

    Anything else is downloaded, if the disk has room: only files that are read. A note of the KeyboardInterrupt of
    Ctrl-C tells what is kept. Raises CheckpointError, and ConfigError for the config of another architecture. Raises
    ChoiceError for a repository with several GGUF models, or without the one that is named.
    """
    name = os.fspath(model)
    if os.path.isdir(name):
        return recognise.gguf_of(_local(Path(name), weights))
    if os.path.lexists(name):
        recognise.require(Path(name), name)
        return Path(name)
    if re.fullmatch(r"[a-z0-9-]+", name) and (SHIPPED / name).is_dir():
        return SHIPPED / name
    address = parse(name)
    if address is None:
        problem = "is not a folder, not a file, and not a hub id (owner/name, owner/name@revision or owner/name:type)"
        raise CheckpointError(name, None, problem + _hint(name))
    fetcher = Fetcher(address, cache_dir, progress)
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
    absent: str | None = ""
    if folder is not None and (fetcher.address.is_gguf or cache.is_of_gguf(folder)):
        found = _gguf_in(folder, fetcher.address, offline)
        if found is not None:
            return found
        named = fetcher.address.file or fetcher.address.type
        absent = f"GGUF model {named}" if named else "GGUF model"
    elif folder is not None:
        absent = cache.absent(folder, weights)
    if folder is not None and absent is None:
        unasked = cache.unasked(folder) if weights else []
        if unasked and not offline:
            fetcher.add_small(folder)
        elif GENERATION_CONFIG in unasked:
            not_fetched[folder] = "offline"
        return folder
    where = f"the Hugging Face cache ({fetcher.root})"
    if folder is None and others:
        names = " or ".join(f"{fetcher.address.repo}@{commit}" for commit in others[:3])
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


def _gguf_in(folder: Path, address: Address, offline: bool) -> Path | None:
    """Return the GGUF model in a snapshot that a name means; None if it is not there, with all of its shards.

    Raises ChoiceError for several. If the hub can be asked, its list is longer.
    """
    try:
        offer = choose(address, cache.gguf_files(folder), " in the cache", "it")
        return None if offer is None else folder / offer.name
    except ChoiceError as several:
        if offline and several.suit:
            with contextlib.suppress(QwqError):
                several.config = read_gguf_config(folder / several.offers[0].name)
            raise
    except CheckpointError:  # a model without some of its shards
        pass
    return None


def _hint(name: str) -> str:
    """Return what a user may have meant with a name that is nothing: "" if nothing is near."""
    if name.startswith("~"):
        return ". The shell did not replace the ~"
    if (address := meant(name)) is not None:
        return f" (did you mean {address}?)"
    cached = cache.ids(cache.root(None))
    if owned := [repo for repo in cached if repo.partition("/")[2].casefold() == name.casefold()]:
        return f" (did you mean {' or '.join(owned[:3])}?)"
    return did_you_mean(name, [*sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir()), *cached])
