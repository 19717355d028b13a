"""List the GGUF models of a repository of the hub, and tell which fit in memory and how to name one."""

from __future__ import annotations

import math
import shlex
import sys

from ..engine.fit import packed_needs
from ..errors import ChoiceError
from ..footprint import human, parameters
from ..formats.gguf.blocks import NATIVE
from ..formats.gguf.kept import REPACKED
from ..formats.gguf.types import TYPES
from ..formats.hub.choice import Offer, suggested
from ..formats.packed import Stored
from ..host import memory
from ..tables import Table

_CONTEXT = 4096
_MOST = 50  # rows
_OTHERS = 5.5  # bits of a weight whose type is not that of the file's name
_SHAPE = (32, 1024)  # of a matrix, to measure a format
_PAGE = "docs/models.md"


def show(choice: ChoiceError, line: str) -> None:
    """Print the models on stderr, and the user's own command with one of them.

    line  the command as the user typed it
    """
    if not choice.offers:
        return
    print(page(choice, line, memory.available_bytes()), file=sys.stderr)


def page(choice: ChoiceError, line: str, available: int) -> str:
    """Return a table of the models, and a command.

    available  bytes of memory
    """
    needs = {offer: _needs(choice, offer) for offer in choice.offers}
    rows = []
    for offer in choice.offers[:_MOST]:
        need = needs[offer]
        size = "unknown" if offer.nbytes is None else human(offer.nbytes)
        fits = "no" if (need or offer.nbytes or 0) > available else "?" if need is None else "yes"
        rows.append((offer.spelled, str(len(offer.files)), size, "?" if need is None else human(need), fits))
    more = len(choice.offers) - _MOST
    fitting = [offer for offer in choice.offers if (needs[offer] or offer.nbytes or 0) <= available]
    best = suggested(fitting[::-1] or choice.offers)  # without the usual type, the largest that fits
    given, name = shlex.quote(choice.file or ""), shlex.quote(best.spelled)
    return "\n".join(
        [
            f"{choice.file}: GGUF models, and about the memory that each needs with {_CONTEXT:,} tokens of context, of "
            f"{human(available)} available",
            Table(["model", "files", "size", "memory", "fits"], "<>>>>").text(rows),
            *([f"... and {more} more"] if more > 0 else []),
            f"{_PAGE} tells which to take. The command for one of them:",
            f"  {line.replace(given, name, 1)}",
        ]
    )


def _needs(choice: ChoiceError, offer: Offer) -> int | None:
    """Return about the memory that a model needs, by its type and the size of its files; None if that is unknown."""
    if choice.config is None or offer.nbytes is None:
        return None
    weights = offer.nbytes + _growth(offer, offer.nbytes, parameters(choice.config))
    context = min(_CONTEXT, choice.config.positions)
    return sum(packed_needs(choice.config, weights, "int8")(context).values())


def _growth(offer: Offer, nbytes: int, count: int) -> int:
    """Return the bytes by which packed weights are larger than a file: the core has no codes of 2 and 3 bits.

    nbytes  of the file
    count   of its weights

    The header alone would tell which matrices have the type of the name. All others are taken to have 5.5 bits.
    """
    label = offer.type.removeprefix("UD-")
    kinds = [kind for kind in TYPES.values() if label.startswith(kind.name)]
    kinds = kinds or [kind for kind in TYPES.values() if kind.name[:3] == label[:3]]  # IQ3_M is of IQ3_S and others
    if not kinds:
        return 0
    kind = max(kinds, key=lambda kind: len(kind.name))
    own = 8 * kind.nbytes / kind.block
    packed = 8 * Stored(_SHAPE, NATIVE.get(kind.name, REPACKED)).nbytes / math.prod(_SHAPE)
    share = (_OTHERS - 8 * nbytes / count) / (_OTHERS - own) if own < _OTHERS else 1.0
    return int(count * min(1.0, max(0.0, share)) * (packed - own) / 8)
