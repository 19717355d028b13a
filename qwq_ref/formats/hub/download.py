"""Download a model from the Hugging Face hub: list what is read, check the disk, ask, fetch file by file.

The hub's own library transfers and stores each file. One file follows another, in the calling thread: Ctrl-C ends the
transfer at once, and loses at most the file that was being transferred.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config import Config
from ...errors import CheckpointError, ChoiceError, ConfigError, QwqError, did_you_mean
from ...files import StrPath, read_json
from ...footprint import human, weight_bytes
from ...forms import FileForm
from ...host import disk
from .. import recognise
from ..checkpoint import read_index
from ..generation_config import not_fetched
from ..gguf import GGUFSource
from ..names import CONFIG, GENERATION_CONFIG, INDEX, SINGLE, TOKENIZER_GGUF, packed_form
from ..quantisation import AWQ_CONFIG, GPTQ_CONFIG, quantised_method
from ..safetensors import DTYPES
from . import cache, heads
from .address import Address
from .choice import File, Offer, choose, size_of, suggested
from .reasons import UNKNOWN, reason

_LISTING_SECONDS = 15
_OF_SOME = (TOKENIZER_GGUF, AWQ_CONFIG, GPTQ_CONFIG)  # small files that only some kinds of models have
_SMALL_SECONDS = 5  # for files that a model can do without


@dataclass(frozen=True)
class Download:
    """A model that is to be downloaded.

    name       as the user gave it
    cache      the folder of the cache
    files      name -> bytes of each file that is read; None where the hub does not tell
    absent     the names of those that are not in the cache
    config     the model's Config
    dtypes     dtype -> bytes of the weights, as the hub or a GGUF header tells them; empty where it does not: `stored`
    quantised  whether the model is a quantised checkpoint, or a GGUF file
    kept       the form of a GGUF file; None for anything else
    """

    name: str
    cache: Path
    files: Mapping[str, int | None]
    absent: tuple[str, ...]
    config: Config
    dtypes: Mapping[str, int] = field(default_factory=dict)
    quantised: bool = False
    kept: FileForm | None = None

    @property
    def nbytes(self) -> int:
        """Return the bytes to download. Where the hub does not tell, weights count with 2 bytes for each parameter."""
        told = sum(self.files[name] or 0 for name in self.absent)
        unknown = {name for name in self.absent if self.files[name] is None}
        if self.forms or not any(name.endswith(".safetensors") for name in unknown):
            return told
        known = sum(size or 0 for name, size in self.files.items() if name.endswith(".safetensors"))
        return told + max(0, weight_bytes(self.config, "bf16") - known)

    @property
    def is_sized(self) -> bool:
        """Return whether the size of each file to download is known."""
        return all(self.files[name] is not None for name in self.absent)

    @property
    def amount(self) -> str:
        """Return the size of the download for people."""
        return human(self.nbytes) if self.is_sized else "of unknown size"

    @property
    def forms(self) -> tuple[str, ...]:
        """Return the forms of packed weights; empty for a checkpoint."""
        return tuple(form for form in map(packed_form, self.files) if form is not None)

    @property
    def stored(self) -> Mapping[str, int]:
        """Return the bytes of each dtype. Where the hub does not tell, BF16 is assumed, as Qwen2 models have it."""
        return self.dtypes or {"BF16": sum(size or 0 for size in self.files.values())}


Confirm = Callable[[Download], bool]
Inspect = Callable[[Path], object]


class _FaultError(Exception):
    """A request failed; `str` of it says why."""


class Fetcher:
    """The download of one model. `lacks` says what a snapshot in the cache lacks; empty where there is none."""

    def __init__(self, address: Address, cache_dir: StrPath | None, progress: Callable[[float], object] | None) -> None:
        self.address, self.lacks = address, ""
        self.name, self.repo, self.revision = address.name, address.repo, address.revision
        self.root = cache.root(cache_dir)
        self.repository = cache.repository(self.root, self.repo)
        self._progress = progress
        self._options: dict[str, Any] = {} if progress is None else _bar(progress)

    def fetch(self, weights: bool, confirm: Confirm | None, inspect: Inspect | None = None) -> Path:
        """Return the snapshot, downloaded. See `resolve`."""
        try:
            return self._fetch(weights, confirm, inspect)
        except _FaultError as fault:
            why = str(fault)
            if why.startswith(UNKNOWN) and not self.lacks:
                near = did_you_mean(self.name, cache.ids(self.root))
                raise CheckpointError(self.name, None, f"is not a folder, not a file, and {why}{near}") from fault
            raise CheckpointError(self.name, None, f"{self.lacks}cannot be downloaded: {why}") from fault

    def _fetch(self, weights: bool, confirm: Confirm | None, inspect: Inspect | None) -> Path:
        listed = self._listing(self.revision, _LISTING_SECONDS)
        names = {each.rfilename: each for each in listed.siblings or []}
        if self.address.is_gguf or not cache.has_checkpoint(names):
            path = self._fetch_gguf(listed.sha, names, weights, confirm, inspect)
            if path is not None:
                return path
        folder = self._first(CONFIG, self.revision) if CONFIG in names else None
        if folder is not None and folder.name != listed.sha:  # the branch moved between two requests
            listed = self._listing(folder.name, _LISTING_SECONDS)
            names = {each.rfilename: each for each in listed.siblings or []}
        problem = recognise.problem_of(names, lambda name: self._values(folder, name))
        if problem is not None and (weights or folder is None):
            raise CheckpointError(self.name, None, problem)
        assert folder is not None, "a list of files without a config is a problem"
        try:
            config = Config.from_file(folder / CONFIG)
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {CONFIG}", error.field, error.problem) from None
        if not weights:
            return folder
        small = [name for name in (*cache.SMALL, *_OF_SOME) if name in names]
        heavy = self._weights(folder, names)
        sizes = {name: self._size(names[name], folder) for name in (CONFIG, *small, *heavy)}
        absent = tuple(name for name in (*small, *heavy) if not self._is_here(folder, names[name]))
        quantised = quantised_method(names, lambda: self._values(folder, CONFIG)) is not None
        plan = Download(self.name, self.root, sizes, absent, config, _dtypes(listed), quantised)
        self._check_disk(plan)
        if any(name.endswith(".safetensors") for name in absent) and confirm is not None and not confirm(plan):
            raise CheckpointError(self.name, None, f"was not downloaded ({plan.amount})")
        cache.remember_absent(folder, (name for name in cache.SMALL if name not in names))
        self._fetch_all(plan, small, folder)
        if inspect is not None:
            inspect(folder)
        self._fetch_all(plan, heavy, folder)
        return folder

    def _fetch_gguf(
        self,
        commit: str,
        names: Mapping[str, Any],
        weights: bool,
        confirm: Confirm | None,
        inspect: Inspect | None,
    ) -> Path | None:
        """Return a GGUF model of the repository, downloaded, or its stand-in; None if the repository holds none.

        commit  that of the list
        names   name -> entry of the list
        """
        if not cache.is_commit(commit):
            raise _FaultError(f"{cache.constants().ENDPOINT} does not answer as a hub does: check HF_ENDPOINT")
        folder = self.repository / "snapshots" / commit
        files = {name: File(size_of(each.size), _digest(each)) for name, each in names.items()}
        try:
            offer = choose(self.address, files)
        except ChoiceError as choice:
            for each in (suggested(choice.offers),) if choice.offers else ():
                with contextlib.suppress(QwqError, _FaultError):  # the list says less then
                    choice.config = read_gguf_config(self._stand_in(each, files, commit))
            raise
        if offer is None:
            return None
        path = self._stand_in(offer, files, commit)
        with self._of_stand_ins(), GGUFSource.open(path) as source:
            config, dtypes, kept = source.config, source.dtypes, source.kept.form
        if not weights:
            return path
        sizes = {name: files[name].nbytes or path.with_name(Path(name).name).stat().st_size for name in offer.files}
        absent = tuple(name for name in offer.files if not self._is_here(folder, names[name]))
        plan = Download(self.name, self.root, sizes, absent, config, dtypes, quantised=True, kept=kept)
        self._check_disk(plan)
        if absent and confirm is not None and not confirm(plan):
            raise CheckpointError(self.name, None, f"was not downloaded ({plan.amount})")
        if inspect is not None:
            with self._of_stand_ins():
                inspect(path)
        cache.remember_commit(self.repository, self.revision or "main", commit)
        self._fetch_all(plan, list(offer.files), folder)
        return folder / offer.name

    def _stand_in(self, offer: Offer, files: Mapping[str, File], commit: str) -> Path:
        """Return the stand-in of a model's first file, beside those of its other shards."""

        def first(name: str, count: int) -> bytes:
            try:
                return heads.first_bytes(self.repo, commit, name, count)
            except Exception as failure:
                raise self._fault(failure) from failure

        place = self.repository.name + f"@{commit}"
        with self._of_stand_ins():
            paths = [heads.stand_in(place, name, files[name].nbytes, first) for name in offer.files]
        return paths[0]

    @contextlib.contextmanager
    def _of_stand_ins(self) -> Iterator[None]:
        """Name the file of the hub in an error about its stand-in."""
        try:
            yield
        except QwqError as error:
            name = heads.name_in(error.file or "")
            if name is None:
                raise
            raise type(error)(f"{self.repo}/{name}", error.field, error.problem) from None

    def add_small(self, folder: Path) -> None:
        """Fetch the small files that a complete snapshot lacks, if the hub has them and answers at once."""
        try:
            listed = self._listing(folder.name, _SMALL_SECONDS)
            names = {each.rfilename for each in listed.siblings or []}
            wanted = cache.unasked(folder)
            cache.remember_absent(folder, (name for name in wanted if name not in names))
            for name in wanted:
                if name in names:
                    self._one(name, folder.name)
        except _FaultError as fault:
            if GENERATION_CONFIG in cache.unasked(folder):  # without it, a model answers in another way
                not_fetched[folder] = str(fault)

    def _fetch_all(self, plan: Download, read: list[str], folder: Path) -> None:
        name = ""
        try:
            for name in read:  # those in the cache, too: a new commit links the files of an old one
                if self._progress is not None:
                    self._progress(0)  # a transfer that is slow from the start shows a bar, too
                self._one(name, folder.name)
        except _FaultError as fault:
            raise CheckpointError(self.name, name, f"{fault}; {_kept(plan, folder)}") from fault
        except KeyboardInterrupt as stop:
            stop.add_note(_kept(plan, folder))
            raise

    def _weights(self, folder: Path, names: Mapping[str, Any]) -> list[str]:
        """Return the files of weights that are read: one, or the shards of the index, or packed weights."""
        if SINGLE in names:
            return [SINGLE]
        if INDEX not in names:
            return sorted(filter(packed_form, names))
        self._one(INDEX, folder.name)
        shards = sorted(set(read_index(folder / INDEX).values()))
        lost = next((shard for shard in shards if shard not in names), None)
        if lost is not None:
            raise CheckpointError(self.name, INDEX, f"names {lost}, which the hub does not have")
        return [INDEX, *shards]

    def _is_here(self, folder: Path, listed: Any) -> bool:
        """Return whether a listed file is in the cache: in the snapshot, or as the blob of another one."""
        blob = _digest(listed)
        return (folder / listed.rfilename).exists() or (bool(blob) and (self.repository / "blobs" / blob).exists())

    def _size(self, listed: Any, folder: Path) -> int | None:
        """Return the bytes of a file: of the cache, of the list, or as the hub answers for it; None if nobody tells."""
        here = folder / listed.rfilename
        if listed.size is not None or here.exists():
            return here.stat().st_size if listed.size is None else int(listed.size)
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        try:
            address = hf_hub_url(self.repo, listed.rfilename, revision=folder.name)
            size = get_hf_file_metadata(address, timeout=_SMALL_SECONDS).size
        except Exception:  # the download itself will tell why
            return None
        return size or None

    def _check_disk(self, plan: Download) -> None:
        free = disk.free_bytes(plan.cache)
        if free is not None and plan.nbytes > free:
            problem = f"needs {human(plan.nbytes)} on the disk of {plan.cache}, which has {human(free)} left"
            raise CheckpointError(self.name, None, f"{problem}; HF_HOME names a folder on another disk")

    def _values(self, folder: Path | None, name: str) -> Mapping[str, Any]:
        """Return the object in a JSON file of the repository; empty if there is none."""
        try:
            return read_json((folder or self._first(name, self.revision)) / name, 1 << 20, CheckpointError)
        except (CheckpointError, _FaultError):
            return {}

    def _first(self, name: str, revision: str | None) -> Path:
        """Fetch a file of a branch or tag, which the cache remembers. Return the snapshot."""
        return Path(self._one(name, revision)).parent

    def _one(self, name: str, revision: str | None) -> str:
        from huggingface_hub import hf_hub_download

        options = self._options if "tqdm_class" in inspect.signature(hf_hub_download).parameters else {}
        try:
            return str(hf_hub_download(self.repo, name, revision=revision, cache_dir=str(self.root), **options))
        except Exception as failure:
            raise self._fault(failure) from failure

    def _listing(self, revision: str | None, seconds: float) -> Any:
        """Return the hub's answer with `sha` and `siblings`."""
        from huggingface_hub import HfApi

        try:
            return HfApi().model_info(self.repo, revision=revision, files_metadata=True, timeout=seconds)
        except Exception as failure:
            raise self._fault(failure) from failure

    def _fault(self, failure: Exception) -> _FaultError:
        return _FaultError(reason(failure, self.repo, self.revision, cache.constants().ENDPOINT))


def _kept(plan: Download, folder: Path) -> str:
    """Return how much of a download is in the cache."""
    here = [name for name in plan.absent if (folder / name).exists()]
    size = sum(plan.files[name] or 0 for name in here)
    whole = f" of {plan.amount}" if plan.is_sized else ""
    return (
        f"{len(here)} of {len(plan.absent)} files ({human(size)}{whole}) are in the cache, "
        "and the next run fetches the rest"
    )


def _digest(listed: Any) -> str:
    return (listed.lfs or {}).get("sha256") or listed.blob_id or ""


def read_gguf_config(path: Path) -> Config:
    """Return the config of a GGUF file. Raises ConfigError, CheckpointError."""
    with GGUFSource.open(path) as source:
        return source.config


def _dtypes(listed: Any) -> dict[str, int]:
    """Return the bytes of each dtype of the weights, as the hub counted them when they were uploaded."""
    counts = getattr(getattr(listed, "safetensors", None), "parameters", None)
    if not isinstance(counts, dict) or not all(type(count) is int and count > 0 for count in counts.values()):
        return {}
    return {name: count * DTYPES[name].itemsize for name, count in counts.items() if name in DTYPES}


def _bar(progress: Callable[[float], object]) -> dict[str, Any]:
    """Return the option of `hf_hub_download` that reports bytes to `progress`, and shows nothing."""
    from tqdm import tqdm

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **options | {"disable": True})
            self.update(options.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            progress(n or 0)

        def update_transfer(self, n: float | None = 1) -> None:
            """Take bytes of the network, which are not those of the file: nothing is shown."""

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
            """Take a speed: nothing is shown."""

    return {"tqdm_class": Silent}
