"""A report as one HTML page, made from the facts of `Report.to_dict`, so that a stored report can be drawn, too.

The page loads nothing and runs nothing. Its markup is in templates/, where Jinja escapes every value.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..graph import split_name
from ..judge.localise import spans
from .depth import draw_depth
from .facts import (
    MEASURED,
    STATUS,
    Facts,
    badness,
    error_words,
    excess_words,
    nearest_to_allowed,
    number,
    own_error_words,
    place,
)
from .maps import draw_maps
from .words import count, in_phase, printable

if TYPE_CHECKING:
    import jinja2
    import markupsafe

MOST = 50  # rows of the table of wrong taps


def page(facts: Facts) -> str:
    """Write a report as a self-contained page.

    facts  the values of `Report.to_dict()`
    """
    template = _environment().get_template("page.html.jinja")
    compared = bool(facts["taps"]) and not facts["mismatch"]
    return template.render(
        facts=facts,
        figures=draw_maps(facts) if compared else [],
        depth=draw_depth(facts) if compared else None,
        wrong=_wrong(facts),
        cause_of={(phase, tap): cause["name"] for cause in facts["causes"] for phase, tap in cause["explains"]},
        most=MOST,
    )


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": _code,
        "count": count,
        "error": error_words,
        "excess": excess_words,
        "g": lambda x: f"{x:g}",
        "in_phase": in_phase,
        "lines": _lines,
        "nearest": nearest_to_allowed,
        "number": number,
        "own_error": own_error_words,
        "percent": lambda x: "unknown" if x is None else f"{x:.1%}",
        "place": place,
    }
    environment.globals |= {"status_words": STATUS, "measured": MEASURED}
    return environment


def _printable(value: Any) -> Any:
    """Replace characters that cannot be printed by question marks; markup is kept."""
    if hasattr(value, "__html__"):
        return value
    return printable(str(value))


def _code(value: object) -> markupsafe.Markup:
    """Write a name, which may be broken behind a dot or a slash."""
    from markupsafe import Markup, escape

    broken = re.sub(r"([./])(?=[^./]{3})", r"\1<wbr>", str(escape(_printable(value))))
    return Markup("<code>{}</code>").format(Markup(broken))


def _wrong(facts: Facts) -> tuple[int, list[tuple[int, Facts]]]:
    """-> (number of wrong taps, [(number, tap)] of the worst and the first one, in the order of the computation)"""
    wrong = [(i, tap) for i, tap in enumerate(facts["taps"], 1) if tap["status"] != "ok"]
    first = None if facts["first"] is None else place(facts["first"])
    shown = sorted(wrong, key=lambda item: (place(item[1]) == first, badness(item[1])), reverse=True)[:MOST]
    return len(wrong), sorted(shown, key=lambda item: item[0])


def _lines(places: Collection[Sequence[str]], facts: Facts) -> list[tuple[str, str, str]]:
    """Join places that differ only by layer or phase -> [(name within a layer, layers, phases)]"""
    layers: dict[tuple[str, str], list[int]] = {}  # (name, phase)
    for phase, tap in places:
        layer, name = split_name(tap)
        found = layers.setdefault((name, phase), [])
        if layer is not None:
            found.append(layer)
    lines: dict[tuple[str, str], list[str]] = {}  # (name, layers): phases
    for (name, phase), numbers in layers.items():
        lines.setdefault((name, spans(sorted(numbers))), []).append(phase)
    everywhere = [phase["name"] for phase in facts["phases"]]
    return [
        (name, where, "all" if phases == everywhere and len(phases) > 1 else ", ".join(phases))
        for (name, where), phases in lines.items()
    ]
