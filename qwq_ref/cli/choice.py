"""List the GGUF models of a repository of the hub, and tell which fit in memory and how to name one."""

from __future__ import annotations

import shlex
import sys

from ..engine.fit import packed_needs
from ..errors import ChoiceError
from ..footprint import human
from ..formats.hub.choice import Offer, suggested
from ..host import memory
from ..tables import Table

_CONTEXT = 4096
_MOST = 50  # rows
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
        fits = "?" if need is None else "yes" if need <= available else "no"
        rows.append((offer.spelled, str(len(offer.files)), size, "?" if need is None else human(need), fits))
    more = len(choice.offers) - _MOST
    fitting = [offer for offer in choice.offers if (needs[offer] or 0) <= available]
    best = suggested(fitting[::-1] or choice.offers)  # without the usual type, the largest that fits
    given, name = shlex.quote(choice.file or ""), shlex.quote(best.spelled)
    return "\n".join(
        [
            f"{choice.file}: GGUF models, and the memory that each needs with {_CONTEXT:,} tokens of context, of "
            f"{human(available)} available",
            Table(["model", "files", "size", "memory", "fits"], "<>>>>").text(rows),
            *([f"... and {more} more"] if more > 0 else []),
            f"{_PAGE} tells which to take. The command for one of them:",
            f"  {line.replace(given, name, 1)}",
        ]
    )


def _needs(choice: ChoiceError, offer: Offer) -> int | None:
    """Return the memory that a model needs, by the size of its files; None if that is unknown."""
    if choice.config is None or offer.nbytes is None:
        return offer.nbytes
    context = min(_CONTEXT, choice.config.positions)
    return sum(packed_needs(choice.config, offer.nbytes, "int8")(context).values())
