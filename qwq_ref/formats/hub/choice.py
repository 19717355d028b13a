"""The GGUF models in a repository of the hub, and the one that a name means.

A repository holds a model in many types, one file or some shards for each. Names and sizes are those of a listing that
anybody may have written: a name that leads out of its folder is no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError, ChoiceError
from ..gguf.names import models_in, shard_of
from .address import Address

_TYPE = re.compile(r"(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|FP?16|FP?32))(?=$|[-._/])", re.IGNORECASE)
_USUAL = "q4_k_m"  # the type that most people take
_MOST_BYTES = 1 << 42  # of a file; QwQ-32B has 66e9 in bfloat16
_MOST_DEPTH = 4
_MOST_PART = 200  # bytes of a name, so that a temporary one beside it is no longer than the system allows
_MOST_NAMED = 12


@dataclass(frozen=True)
class File:
    """A file of a listing.

    nbytes  None where nobody tells
    digest  of its contents; "" where nobody tells
    """

    nbytes: int | None
    digest: str = ""


@dataclass(frozen=True)
class Offer:
    """One GGUF model.

    spelled  the shortest name of it, for `resolve`
    name     the file to open
    files    all its files, in order
    type     such as Q4_K_M; "" if the name tells none
    nbytes   of all files; None where nobody tells
    """

    spelled: str
    name: str
    files: tuple[str, ...]
    type: str
    nbytes: int | None


def size_of(value: Any) -> int | None:
    """Return a size in a listing; None if it cannot be one."""
    return value if type(value) is int and 0 < value <= _MOST_BYTES else None


def choose(address: Address, files: Mapping[str, File], where: str = "", lacks: str = "the hub") -> Offer | None:
    """Return the model that a name means; None if there is none, and none is named.

    files  the files of the repository, by their relative names
    where  where they are, for an error
    lacks  who has them

    Raises ChoiceError if there are several, or others. Raises CheckpointError for a model without some of its shards.
    """
    models = models_in(name for name in files if name.endswith(".gguf") and _is_safe(name))
    whole = {name: inner for name, inner in models.items() if _is_whole(name, inner)}
    wanted = _wanted(address, whole)
    if not wanted and (broken := _wanted(address, {n: inner for n, inner in models.items() if n not in whole})):
        name, count = broken[0], shard_of(broken[0])
        assert count is not None, "a model of one file is whole"
        problem = f"{name} is one of {count[2]} shards, of which {lacks} has {len(models[name])}"
        raise CheckpointError(address.name, None, problem)
    wanted = _distinct(wanted, whole, files)
    if not wanted and not address.is_gguf:
        return None
    offers = _offers(address, wanted or _distinct(whole, whole, files), whole, files)
    if wanted and len(offers) == 1:
        return offers[0]
    named = [offer.type if offer.spelled.endswith(f":{offer.type}") else offer.name for offer in offers]
    listed = ", ".join(named[:_MOST_NAMED]) + (f" and {len(named) - _MOST_NAMED} more" if named[_MOST_NAMED:] else "")
    if wanted:
        usual = suggested(offers).spelled
        problem = f"holds {len(offers)} GGUF models{where}: name one, such as {usual}; there are {listed}"
    else:
        problem = f"holds no {f'file {address.file}' if address.file else f'GGUF model {address.type}'}{where}"
        problem += f"; there are {listed}" if offers else ""
    raise ChoiceError(address.name, problem, offers, suit=bool(wanted))


def suggested(offers: Sequence[Offer]) -> Offer:
    """Return the model of the usual type, or else the first."""
    return next((offer for offer in offers if offer.type.casefold() == _USUAL), offers[0])


def _is_safe(name: str) -> bool:
    """Return whether a name stays in its folder, and is one that people can type."""
    parts = name.split("/")
    return (
        len(parts) <= _MOST_DEPTH
        and name.isprintable()
        and "\\" not in name
        and all(part.strip(".") and len(part.encode()) <= _MOST_PART for part in parts)
    )


def _is_whole(name: str, files: Sequence[str]) -> bool:
    shard = shard_of(name)
    return shard is None or (len(files) == shard[2] and name == files[0])


def _wanted(address: Address, models: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the models that a name can mean, by their types or else by a part of their names."""
    if address.file is not None:
        return [name for name, files in models.items() if address.file in files]
    if address.type is None:
        return list(models)
    wanted = _plain(address.type)
    part = re.compile(rf"(?:^|[-._/]){re.escape(address.type)}(?:$|[-._/])", re.IGNORECASE)
    same = [name for name in models if _plain(_type(name)) == wanted]
    return same or [name for name in models if part.search(_stem(name))]


def _plain(kind: str) -> str:
    return kind.casefold().replace("fp", "f")


def _stem(name: str) -> str:
    """Return a file's name without the numbers of a shard and without the suffix."""
    shard = shard_of(name)
    return shard[0] if shard else name.removesuffix(".gguf")


def _type(name: str) -> str:
    found = _TYPE.findall(_stem(name))
    return str(found[-1]).upper() if found else ""


def _distinct(names: Iterable[str], models: Mapping[str, Sequence[str]], files: Mapping[str, File]) -> list[str]:
    """Leave out a model that is there a second time: under another spelling, or by the digests of its files."""
    seen: set[object] = set()
    kept = []
    for name in names:
        digests = tuple(files[each].digest for each in models[name])
        keys: list[object] = [re.sub(r"[-._]+", "-", name.casefold())] + ([digests] if all(digests) else [])
        if seen.isdisjoint(keys):
            kept.append(name)
        seen.update(keys)
    return kept


def _offers(
    address: Address, names: Sequence[str], models: Mapping[str, Sequence[str]], files: Mapping[str, File]
) -> list[Offer]:
    """Return models, the smallest first."""
    types = [_plain(_type(name)) for name in _distinct(models, models, files)]
    offers = []
    for name in names:
        kind, sizes = _type(name), [files[each].nbytes for each in models[name]]
        spelled = f"{address.base}:{kind}" if kind and types.count(_plain(kind)) == 1 else f"{address.base}/{name}"
        total = None if None in sizes else sum(size or 0 for size in sizes)
        offers.append(Offer(spelled, name, tuple(models[name]), kind, total))
    return sorted(offers, key=lambda offer: (offer.nbytes or 0, offer.name))
