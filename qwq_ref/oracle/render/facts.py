"""Facts of a report, as `Report.to_dict` tells them: the words and the size of each verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .words import in_phase

Facts = dict[str, Any]
Place = tuple[str, str]  # phase, tap

STATUS = {  # in words: of one tap, of many
    "ok": ("right", "right"),
    "introduced": ("wrong by itself", "wrong by themselves"),
    "propagated": ("wrong only from its inputs", "wrong only from their inputs"),
    "beyond": ("wrong, its inputs unknown", "wrong, their inputs unknown"),
    "nan": ("NaN or infinity", "with NaN or infinity"),
    "shape": ("unusable", "unusable"),
    "missing": ("not compared", "not compared"),
}
UNUSABLE = ("nan", "shape")
MEASURED = ("introduced", "propagated", "beyond")  # wrong by a known factor
_SEVERITY = ("ok", "propagated", "beyond", "introduced", "shape", "nan")


def place(tap: Facts) -> Place:
    """Return (phase, tap) of a result."""
    return tap["phase"], tap["tap"]


def badness(tap: Facts) -> tuple[int, float]:
    """Return a key for comparisons: the worse the result, the larger the key."""
    return _SEVERITY.index(tap["status"]), excess(tap) or 0


def excess(tap: Facts) -> float | None:
    """Return the error in units of the allowed error; None if it was not measured.

    For a tap that is wrong by itself, this is the error on its own inputs.
    """
    own, whole = ratio(tap["introduced"], tap["own_allowed"]), ratio(tap["error"], tap["allowed"])
    if tap["status"] == "introduced":
        return own
    if tap["status"] in ("propagated", "beyond"):
        return whole
    return max((share for share in (own, whole) if share is not None), default=None)


def ratio(error: float | None, allowed: float | None) -> float | None:
    """Divide an error by the allowed one. An error of null beside an allowed error is infinite."""
    if allowed is None:
        return None
    if error is None:
        return math.inf
    return error / allowed if allowed else math.inf if error else 0.0


def excess_words(tap: Facts) -> str:
    """Write the excess: "3.2 × allowed" """
    share = excess(tap)
    if share is None:
        return "not measured"
    if math.isinf(share):
        return "infinitely far off"
    return (f"{share:.3g}" if share < 1000 else f"{float(f'{share:.3g}'):,.0f}") + " × allowed"


def nearest_to_allowed(taps: Sequence[Facts]) -> str:
    """Write the largest excess of all taps, for a report that passes."""
    measured = [(share, tap) for tap in taps if (share := excess(tap)) is not None]
    if not measured:
        return "nothing could be measured"
    share, tap = max(measured, key=lambda item: item[0])
    how = "on its own inputs" if share == ratio(tap["introduced"], tap["own_allowed"]) else "in all"
    return f"no error above {share:.0%} of what is allowed ({tap['tap']}, {in_phase(tap['phase'])}, {how})"


def number(x: float | None, otherwise: str = "unknown") -> str:
    """Write a number of three digits; `otherwise` for null."""
    return otherwise if x is None else f"{x:.3g}"


def error_words(tap: Facts) -> str:
    """Write the error of a tap; empty if it was not measured."""
    return number(tap["error"], "infinite" if tap["allowed"] is not None else "")


def own_error_words(tap: Facts) -> str:
    """Write the error on the tap's own inputs; empty if it was not measured."""
    return number(tap["introduced"], "infinite" if tap["own_allowed"] is not None else "")
