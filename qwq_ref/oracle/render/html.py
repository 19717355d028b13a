"""A report as one HTML page, drawn from what `Report.to_dict` tells, so that a stored one can be drawn too.

The page loads nothing and runs nothing. All that comes from files passes `_text`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ..graph import (
    BEFORE,
    LAYER,
    LOGITS,
    NORM,
    absolute,
    split_name,
)

Facts = dict[str, Any]
Place = tuple[str, str]  # phase, tap

MOST = 50  # rows of the table of wrong taps
_LEVELS, _STRONG = 6, 4  # of colour; from which on they need marks in the colour of the page
_STATUS = {  # in words: of one tap, of many
    "ok": ("right", "right"),
    "introduced": ("wrong by itself", "wrong by themselves"),
    "propagated": ("wrong only from its inputs", "wrong only from their inputs"),
    "beyond": ("wrong, its inputs unknown", "wrong, their inputs unknown"),
    "nan": ("NaN or infinity", "with NaN or infinity"),
    "shape": ("unusable", "unusable"),
    "missing": ("not compared", "not compared"),
}
_SEVERITY = ("ok", "propagated", "beyond", "introduced", "shape", "nan")
_UNUSABLE = ("nan", "shape")
_SCALES = {"introduced": "i", "propagated": "p", "beyond": "b"}  # status: the class of its colours
_INSIDE = [op.tap for op in LAYER]
_BEFORE = [op.tap for op in BEFORE]
_AFTER = [NORM, LOGITS]


def page(facts: Facts) -> str:
    """`Report.to_dict()` -> a page that stands for itself."""
    verdict = "PASS" if facts["passed"] else "FAIL"
    title = f"{verdict}: {_text(facts['theirs'])} against {_text(facts['golden'])}"
    parts = [_header(facts), _verdict(facts)]
    if not facts["mismatch"]:
        parts += [_logits(facts), _pictures(facts), _wrong_taps(facts), _hidden(facts), _missing(facts)]
    parts += [_notes(facts), _about(facts)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>\n{_style()}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


# The words


def _header(facts: Facts) -> str:
    tokens = f"{facts['phases'][0]['tokens']} tokens"
    if len(facts["phases"]) > 1:
        tokens += f" and {_count(facts['phases'][1:], 'step')} of decoding"
    theirs = f"{_count(facts['taps'], 'tap')} in {facts['precision']}" if facts["taps"] else ""
    pairs = [
        ("golden", f"{_code(facts['golden'])}: " + _text(", ".join(filter(None, [facts["model"], tokens])))),
        ("theirs", _code(facts["theirs"]) + (f": {_text(theirs)}" if theirs else "")),
    ]
    return f"<header>\n<h1>Golden report</h1>\n{_pairs(pairs)}</header>"


def _verdict(facts: Facts) -> str:
    first = facts["first"]
    if facts["mismatch"]:
        said = _badge(False, f"{_text(facts['mismatch'])}; nothing was compared")
        return _section("Verdict", said)
    if first is None:
        said = _badge(facts["passed"], _text(_nearest_to_allowed(facts["taps"])))
        if facts["drift"]:
            wrong = [tap for tap in facts["taps"] if tap["status"] != "ok"]
            said += (
                "<p><b>Drift</b>: every operation is right on its own inputs, but the roundings add up to more than in "
                f"our runs: {_count(wrong, 'tap')}.</p>\n"
            )
        return _section("Verdict", said + _counts(facts))
    said = _badge(False, f"first divergence at {_code(first['tap'])}, {_text(_in_phase(first['phase']))}")
    said += _pairs(_first(first))
    for i, cause in enumerate(facts["causes"]):
        leads = i == 0 and [first["phase"], first["tap"]] in cause["explains"]
        said += _cause("Cause" if leads else "Also", cause)
    return _section("Verdict", said + _unexplained(facts) + _counts(facts))


def _first(first: Facts) -> Iterable[tuple[str, str]]:
    """What is wrong at the first divergence."""
    status = first["status"]
    yield "what", _STATUS[status][0]
    correct = f"a correct {_text(first['precision'])} may have"
    if status == "introduced":
        allowed = f"{_number(first['own_allowed'])} ({_excess_words(first)})"
        yield "on its own inputs", f"error {_own_error(first)}, where {correct} {allowed}"
    if first["allowed"] is not None:
        yield "from the golden value", f"error {_error(first)}, where {correct} {_number(first['allowed'])}"
    for key in ("where", "note"):
        if first[key]:
            yield key, _text(first[key])


def _cause(label: str, cause: Facts) -> str:
    share = "" if cause["share"] is None else f" ({cause['share']:.3%} of the error)"
    pairs = [
        ("scope", _text(cause["scope"])),
        ("reproduces", f"{_count(cause['explains'], 'wrong tap')} to within rounding{share}"),
    ]
    if cause["equals"]:
        pairs.append(("cannot be told from", ", ".join(map(_code, cause["equals"])) + " here"))
    if cause["against"]:
        pairs.append(("against it", f"{cause['against']} other taps, which it would move, are right"))
    name, says = _code(cause["name"]), _text(cause["says"])
    return f'<div class="cause">\n<h3>{label}: {name}</h3>\n<p>{says}</p>\n{_pairs(pairs)}</div>\n'


def _unexplained(facts: Facts) -> str:
    if facts["unexplained"]:
        nearest = facts["nearest"]
        near = ""
        if nearest is not None:
            share = "" if nearest["share"] is None else f", with {nearest['share']:.0%} of the error"
            near = f" The nearest is {_code(nearest['name'])}{share}."
        return (
            f'<div class="cause">\n<h3>Unexplained: {_count(facts["unexplained"], "tap")}</h3>\n'
            f"<p>None of {facts['tried']} known mistakes reproduces them.{near}</p>\n"
            f"{_places(facts['unexplained'], facts)}</div>\n"
        )
    if not facts["causes"] and facts["first"]["status"] in _SCALES:
        more = "" if facts["with_weights"] else "; with the model's weights it may be"
        return f"<p><b>Cause</b>: not known{more}.</p>\n"
    return ""


def _counts(facts: Facts) -> str:
    items = "".join(
        f"<li><b>{count:,}</b> {_status_mark(status)}{_STATUS[status][count > 1]}</li>\n"
        for status, count in facts["counts"].items()
        if count
    )
    return f'<ul class="counts" aria-label="taps by what became of them">\n{items}</ul>\n' if items else ""


def _logits(facts: Facts) -> str:
    m = facts["logits"]
    if m is None:
        return ""
    decided = f"{_percent(m['top1_decided'])} of the {m['decided']} tokens that rounding cannot turn"
    return _section(
        "Logits",
        _pairs(
            [
                ("tokens", f"{m['tokens']:,}"),
                ("KL divergence", f"{_number(m['kl'])} nats in the mean, {_number(m['kl_max'])} at most"),
                ("same top 1", f"{_percent(m['top1'])}; {decided}"),
                ("overlap of top 5", _percent(m["top5"])),
            ]
        ),
    )


def _wrong_taps(facts: Facts) -> str:
    """The wrong taps, the worst of them if they are many, in the order of the computation."""
    wrong = [(i, tap) for i, tap in enumerate(facts["taps"], 1) if tap["status"] != "ok"]
    if not wrong:
        return ""
    first = None if facts["first"] is None else _place(facts["first"])
    shown = sorted(wrong, key=lambda item: (_place(item[1]) == first, _badness(item[1])), reverse=True)[:MOST]
    shown.sort(key=lambda item: item[0])
    cause_of = {(phase, tap): cause["name"] for cause in facts["causes"] for phase, tap in cause["explains"]}
    rows = "".join(_row(i, tap, _place(tap) == first, cause_of.get(_place(tap))) for i, tap in shown)
    which = f"The {MOST} worst of {len(wrong):,}" if len(wrong) > MOST else f"All {len(wrong)}"
    caption = (
        f"{which}, in the order of the computation. Errors are relative, √(Σ(theirs − golden)² / Σ golden²); "
        "the largest difference and the 99th percentile are not."
    )
    table = f"<table>\n<caption>{caption}</caption>\n{_WRONG_HEAD}<tbody>\n{rows}</tbody>\n</table>\n"
    return _section(
        "Wrong taps", f'<div class="scroll" role="region" aria-label="wrong taps" tabindex="0">\n{table}</div>\n'
    )


_WRONG_HEAD = """\
<thead>
<tr><th scope="col" rowspan="2">#</th><th scope="col" rowspan="2">phase</th><th scope="col" rowspan="2">tap</th>
<th scope="col" rowspan="2">what</th><th scope="colgroup" colspan="2">from golden</th>
<th scope="colgroup" colspan="2">on its own inputs</th><th scope="col" rowspan="2">cosine</th>
<th scope="col" rowspan="2">largest, at</th><th scope="col" rowspan="2">p99</th><th scope="col" rowspan="2">where</th>
<th scope="col" rowspan="2">note</th></tr>
<tr><th scope="col">error</th><th scope="col">allowed</th>
<th scope="col">introduced</th><th scope="col">allowed</th></tr>
</thead>
"""


def _row(i: int, tap: Facts, is_first: bool, cause: str | None) -> str:
    status = tap["status"]
    cosine = "" if tap["cosine"] is None else f"{tap['cosine']:.6f}"
    largest = "" if tap["at"] is None else f"{_number(tap['max_abs'], 'infinite')} at {_text(tap['at'])}"
    notes = [tap["note"], cause and f"cause: {cause}"]
    numbers = (
        _error(tap),
        _number(tap["allowed"], ""),
        _own_error(tap),
        _number(tap["own_allowed"], ""),
        cosine,
        largest,
        "" if tap["at"] is None else _number(tap["p99"], "infinite"),
    )
    name = _code(tap["tap"]) + ("<b>← first divergence</b>" if is_first else "")
    return (
        f'<tr{" class=first" if is_first else ""}><td>{i}</td><td class="k">{_text(tap["phase"])}</td>'
        f'<th scope="row">{name}</th><td class="w">{_status_mark(status)}{_STATUS[status][0]}</td>'
        + "".join(f'<td class="n">{number}</td>' for number in numbers)
        + f'<td class="w">{_text(tap["where"])}</td><td>{_text("; ".join(filter(None, notes)))}</td></tr>\n'
    )


def _hidden(facts: Facts) -> str:
    hidden, title = facts["hidden"], "What could not be told from these tensors"
    if hidden is None:
        return _section(title, "<p>Which mistakes these tensors would not show was not looked into.</p>\n")
    if not hidden:
        return _section(title, "<p>Nothing: each known mistake that concerns this model would have shown.</p>\n")
    rows = "".join(
        f'<tr><th scope="row">{_code(item["name"])}</th><td>{_text(item["needs"])}</td></tr>\n' for item in hidden
    )
    head = '<thead><tr><th scope="col">mistake</th><th scope="col">would need</th></tr></thead>'
    return _section(title, f"<table>\n{head}\n<tbody>\n{rows}</tbody>\n</table>\n")


def _missing(facts: Facts) -> str:
    if not facts["missing"] and not facts["unknown"]:
        return ""
    said = _places(facts["missing"], facts) if facts["missing"] else ""
    if facts["unknown"]:
        names = facts["unknown"]
        more = f" and {len(names) - MOST:,} more" if len(names) > MOST else ""
        said += f"<p>Not understood: {', '.join(map(_code, names[:MOST]))}{more}.</p>\n"
    return _section("Not compared", said)


def _notes(facts: Facts) -> str:
    items = "".join(f"<li>{_text(note)}</li>\n" for note in facts["notes"])
    return _section("Notes", f"<ul>\n{items}</ul>\n") if items else ""


def _about(facts: Facts) -> str:
    phases = ", ".join(f"{_text(p['name'])} ({p['tokens']} from {p['start']})" for p in facts["phases"])
    pairs = [
        ("made by", _text(facts["made_by"])),
        ("format", f"{_text(facts['format'])} {_text(facts['version'])}"),
        ("precision", _text(facts["precision"])),
        ("allowed", f"{facts['margin']:g} times the rounding of correct implementations"),
        ("layers", f"{facts['layers']:,}"),
        ("phases (tokens from position)", phases),
        ("weights", "known" if facts["with_weights"] else "not known"),
    ]
    return f"<footer>\n<h2>Versions</h2>\n{_pairs([pair for pair in pairs if pair[1]])}</footer>"


def _places(places: Collection[Sequence[str]], facts: Facts) -> str:
    """Places as a table: one line for a tap, with its layers and phases."""
    layers: dict[tuple[str, str], list[int]] = {}  # (name, phase)
    for phase, tap in places:
        layer, name = split_name(tap)
        found = layers.setdefault((name, phase), [])
        if layer is not None:
            found.append(layer)
    lines: dict[tuple[str, str], list[str]] = {}  # (name, layers): phases
    for (name, phase), numbers in layers.items():
        lines.setdefault((name, _spans(sorted(numbers))), []).append(phase)
    everywhere = [phase["name"] for phase in facts["phases"]]
    rows = "".join(
        f'<tr><th scope="row">{_code(name)}</th><td>{spans}</td>'
        f"<td>{'all' if phases == everywhere and len(phases) > 1 else _text(', '.join(phases))}</td></tr>\n"
        for (name, spans), phases in lines.items()
    )
    head = '<thead><tr><th scope="col">tap</th><th scope="col">layers</th><th scope="col">phases</th></tr></thead>'
    return f"<table>\n{head}\n<tbody>\n{rows}</tbody>\n</table>\n"


# The numbers


def _badness(tap: Facts) -> tuple[int, float]:
    """For comparison: the worse, the larger."""
    return _SEVERITY.index(tap["status"]), _excess(tap) or 0


def _excess(tap: Facts) -> float | None:
    """How many times the allowed error a tap has: its own if that is what is wrong. None if it was not measured."""
    own, whole = _ratio(tap["introduced"], tap["own_allowed"]), _ratio(tap["error"], tap["allowed"])
    if tap["status"] == "introduced":
        return own
    if tap["status"] in ("propagated", "beyond"):
        return whole
    return max((ratio for ratio in (own, whole) if ratio is not None), default=None)


def _ratio(error: float | None, allowed: float | None) -> float | None:
    """An error that is null although something is allowed is infinite."""
    if allowed is None:
        return None
    if error is None:
        return math.inf
    return error / allowed if allowed else math.inf if error else 0.0


def _nearest_to_allowed(taps: Sequence[Facts]) -> str:
    measured = [(ratio, tap) for tap in taps if (ratio := _excess(tap)) is not None]
    if not measured:
        return "nothing could be measured"
    ratio, tap = max(measured, key=lambda item: item[0])
    how = "on its own inputs" if ratio == _ratio(tap["introduced"], tap["own_allowed"]) else "in all"
    return f"no error above {ratio:.0%} of what is allowed ({tap['tap']}, {_in_phase(tap['phase'])}, {how})"


def _error(tap: Facts) -> str:
    return _number(tap["error"], "infinite" if tap["allowed"] is not None else "")


def _own_error(tap: Facts) -> str:
    return _number(tap["introduced"], "infinite" if tap["own_allowed"] is not None else "")


def _excess_words(tap: Facts) -> str:
    ratio = _excess(tap)
    if ratio is None:
        return "not measured"
    if math.isinf(ratio):
        return "infinitely far off"
    return (f"{ratio:.3g}" if ratio < 1000 else f"{float(f'{ratio:.3g}'):,.0f}") + " × allowed"


def _number(x: float | None, otherwise: str = "unknown") -> str:
    return otherwise if x is None else f"{x:.3g}"


def _percent(x: float | None) -> str:
    return "unknown" if x is None else f"{x:.1%}"


def _count(things: Collection[Any], name: str) -> str:
    return f"{len(things):,} {name}{'' if len(things) == 1 else 's'}"


def _spans(numbers: Sequence[int]) -> str:
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in _runs(numbers))


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending numbers as the (first, last) of each run without a gap."""
    starts = [n for i, n in enumerate(numbers) if i == 0 or numbers[i - 1] != n - 1]
    ends = [n for i, n in enumerate(numbers) if i == len(numbers) - 1 or numbers[i + 1] != n + 1]
    return list(zip(starts, ends, strict=True))


def _place(tap: Facts) -> Place:
    return tap["phase"], tap["tap"]


@dataclass(frozen=True)
class _Scale:
    """Colours by how many times the allowed error: level n begins at factor ** n."""

    factor: int

    @classmethod
    def of(cls, taps: Iterable[Facts]) -> _Scale:
        """The finest that tells the worst of these taps from the others."""
        ratios = [_excess(tap) for tap in taps if tap["status"] in _SCALES]
        most = max((ratio for ratio in ratios if ratio is not None and math.isfinite(ratio)), default=1.0)
        return cls(next((f for f in (2, 4, 10, 100, 1000) if f**_LEVELS >= most), 10_000))

    def level(self, ratio: float | None) -> int:
        if ratio is None or ratio <= 1:
            return 0
        return _LEVELS - 1 if math.isinf(ratio) else min(_LEVELS - 1, int(math.log(ratio, self.factor) + 1e-9))

    def edge(self, level: int) -> str:
        x = self.factor**level
        return f"{x:,}" if x < 100_000 else _power(round(math.log10(x)))

    def css(self, tap: Facts) -> str:
        """The class of a tap's cell."""
        kind = _SCALES.get(tap["status"])
        return f"{kind}{self.level(_excess(tap))}" if kind else "o" if tap["status"] == "ok" else "x"


# The maps

_LABELS, _ROW = 190, 15  # width of the names of rows, height of a row


def _pictures(facts: Facts) -> str:
    taps, first, layers = facts["taps"], facts["first"], range(facts["layers"])
    if not taps:
        return ""
    start = facts["phases"][0]["name"]
    steps = len(facts["phases"]) - 1
    decoding = f"In decoding, the worst of {steps} steps" if steps > 1 else "In decoding"
    scale = _Scale.of(taps)
    maps = ""
    for name, title in (("prompt", "In the prompt"), ("decoding", decoding)):
        cells = _worst_of_steps(tap for tap in taps if (tap["phase"] == start) == (name == "prompt"))
        if cells:
            here = first is not None and (first["phase"] == start) == (name == "prompt")
            maps += _map(name, title, cells, layers, scale, first["tap"] if here else None)
    legend = _legend(facts, scale, 'class="h"' in maps)
    return _section("Error by tap and layer", f'{legend}<div class="maps">\n{maps}</div>\n{_depth(facts)}')


def _worst_of_steps(taps: Iterable[Facts]) -> dict[str, Facts]:
    worst: dict[str, Facts] = {}
    for tap in taps:
        if tap["tap"] not in worst or _badness(tap) > _badness(worst[tap["tap"]]):
            worst[tap["tap"]] = tap
    return worst


@dataclass(frozen=True)
class _Row:
    """A line of a map. It has these columns; those without a cell are hatched."""

    label: str
    columns: range
    cells: dict[int, Facts]

    @property
    def group(self) -> str:
        return self.label.rpartition(".")[0]

    @property
    def missing(self) -> list[int]:
        return [column for column in self.columns if column not in self.cells]


def _map(name: str, title: str, cells: dict[str, Facts], layers: range, scale: _Scale, first: str | None) -> str:
    """The computation from top to bottom: what comes before the layers, a layer's taps by layer, what comes after."""
    inside = [
        _Row(tap, layers, {n: cells[full] for n in layers if (full := absolute(n, tap)) in cells}) for tap in _INSIDE
    ]
    if not any(row.cells for row in inside):
        inside = []
    before = [_outside_row(tap, layers[:1], cells) for tap in _BEFORE]
    after = [_outside_row(tap, layers[-1:] if inside else layers[:1], cells) for tap in _AFTER]

    width = max(5, min(40, 768 // len(layers)))
    drawing = _Drawing(scale, first)
    y = _draw_rows(drawing, before, width, 2)
    if inside:
        y = _draw_layer_numbers(drawing, len(layers), width, y + 4)
        y = _draw_rows(drawing, inside, width, y) + 4
    y = _draw_rows(drawing, after, width, y)
    summary = _summary([*before, *inside, *after])
    return _figure(f"map-{name}", title, summary, f"{title}: {summary}", drawing.width, y + 2, drawing.markup())


def _outside_row(tap: str, columns: range, cells: dict[str, Facts]) -> _Row:
    return _Row(tap.rpartition(".")[2], columns, {columns[0]: cells[tap]} if tap in cells else {})


def _draw_rows(drawing: _Drawing, rows: Sequence[_Row], width: int, y: int) -> int:
    """Cells so wide, from `y` down -> where they end."""
    for i, row in enumerate(rows):
        y += 4 * (i > 0 and row.group != rows[i - 1].group)
        drawing.text(_LABELS - 6, y + 11, row.label, "end")
        for first, last in _runs(row.missing):
            drawing.rect(_LABELS + first * width, y, (last - first + 1) * width - 1, "h", "not compared")
        for column, cell in row.cells.items():
            drawing.cell(_LABELS + column * width, y, width - 1, cell)
        y += _ROW
    return y


def _draw_layer_numbers(drawing: _Drawing, layers: int, width: int, y: int) -> int:
    drawing.text(_LABELS - 6, y + 11, "layer", "end")
    for layer in _labelled(layers, width):
        drawing.text(_LABELS + (layer + 0.5) * width, y + 11, str(layer), "mid")
    return y + _ROW


def _labelled(layers: int, width: float) -> range:
    """The layers that have room for their number."""
    step = 1
    while step * width < 20:
        step *= 2
    return range(0, layers, step)


def _summary(rows: Sequence[_Row]) -> str:
    counts = Counter(cell["status"] for row in rows for cell in row.cells.values())
    counts["missing"] = sum(len(row.missing) for row in rows)
    return ", ".join(f"{n:,} {words[n > 1]}" for status, words in _STATUS.items() if (n := counts[status]))


class _Drawing:
    """Cells, with their marks on top in one path for each kind: colour is not the only sign."""

    def __init__(self, scale: _Scale, first: str | None = None) -> None:
        self.scale = scale
        self.first = first
        self.width = 0.0
        self.parts: list[str] = []
        self.marks: dict[str, str] = {}
        self.outline = ""

    def rect(self, x: float, y: float, width: float, css: str, title: str = "") -> None:
        self.parts.append(_rect(x, y, width, _ROW - 1, css, title))
        self.width = max(self.width, x + width + 2)

    def text(self, x: float, y: float, words: str, css: str = "") -> None:
        self.parts.append(_words(x, y, words, css))
        if css != "end":
            self.width = max(self.width, x + len(words) * _CHAR)

    def cell(self, x: float, y: float, width: float, tap: Facts) -> None:
        status, step = tap["status"], "" if tap["phase"] == "prompt" else f" in {tap['phase']}"
        title = f"{tap['tap']}{step}: {_STATUS[status][0]}" + ("" if status in _UNUSABLE else f", {_excess_words(tap)}")
        self.rect(x, y, width, self.scale.css(tap), title)
        self.mark(x, y, width, status, self.scale.level(_excess(tap)) >= _STRONG)
        if tap["tap"] == self.first:
            halo = _rect(x - 0.5, y - 0.5, width + 1, _ROW, "halo")
            self.outline = halo + _rect(x - 2, y - 2, width + 4, _ROW + 3, "f", f"first divergence: {title}")

    def mark(self, x: float, y: float, width: float, status: str, strong: bool = False) -> None:
        """In the middle of a cell, what tells its status; `strong` on strong colours."""
        x, y, r = x + width / 2, y + (_ROW - 1) / 2, max(1.5, min(3.5, width / 4))
        path = {
            "introduced": f"M{x:g} {y:g}h0",
            "propagated": f"M{x - r:g} {y:g}h{2 * r:g}",
            "beyond": f"M{x - r:g} {y + r:g}l{2 * r:g}-{2 * r:g}",
        }
        for unusable in _UNUSABLE:
            path[unusable] = f"M{x - r:g} {y - r:g}l{2 * r:g} {2 * r:g}m0-{2 * r:g}l-{2 * r:g} {2 * r:g}"
        if status in path:
            css = f"m {status}" + (" strong" if strong or status in _UNUSABLE else "")
            self.marks[css] = self.marks.get(css, "") + path[status]

    def markup(self) -> str:
        marks = [f'<path class="{css}" d="{path}"/>' for css, path in self.marks.items()]
        return "\n".join([*self.parts, *marks, self.outline])


def _legend(facts: Facts, scale: _Scale, hatched: bool) -> str:
    """What colours and marks mean, of those that occur."""
    found = {tap["status"] for tap in facts["taps"]}
    drawing, y, width = _Drawing(scale), 2, 52
    scales = [status for status in _SCALES if status in found]
    if scales:
        drawing.text(_LABELS - 6, y + 11, "times what is allowed", "end")
        for level in range(_LEVELS):
            drawing.text(_LABELS + level * width, y + 11, scale.edge(level))
        drawing.text(_LABELS + _LEVELS * width, y + 11, "and more")
        y += _ROW
    for status in scales:
        drawing.text(_LABELS - 6, y + 11, _STATUS[status][0], "end")
        for level in range(_LEVELS):
            drawing.rect(_LABELS + level * width, y, width - 1, f"{_SCALES[status]}{level}")
            drawing.mark(_LABELS + level * width, y, width - 1, status, level >= _STRONG)
        y += _ROW
    y, x = y + 4 * bool(scales), float(_LABELS)
    others = [("o", "ok", "right", "ok" in found), ("x", "nan", "NaN, infinity or unusable", found & {*_UNUSABLE})]
    others += [("h", "", "not compared", hatched), ("f", "", "first divergence", facts["first"])]
    for css, status, words, occurs in others:
        if occurs:
            drawing.rect(x, y, 20, css)
            drawing.mark(x, y, 20, status)
            drawing.text(x + 25, y + 11, words)
            x += 25 + len(words) * _CHAR + 14
    about = "What the colours and marks of the maps mean"
    return _figure("legend", "Legend", about, "", drawing.width, y + _ROW + 2, _HATCH + drawing.markup())


_HATCH = (
    '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<path d="M0 0v5" class="hatch"/></pattern></defs>\n'
)


# Error over depth

_LEFT, _TOP, _HEIGHT = 64, 24, 220  # of the plot in its figure


@dataclass(frozen=True)
class _Series:
    """Error and allowed error of one tap by layer, the worst of its phases; an error that is infinite is None."""

    name: str
    points: dict[int, tuple[float | None, float]]


@dataclass(frozen=True)
class _Axes:
    """Layers from left to right, errors upwards, in the logarithm."""

    layers: int
    low: float
    high: float

    @classmethod
    def of(cls, layers: int, series: Iterable[_Series]) -> _Axes:
        values = [math.log10(x) for one in series for point in one.points.values() for x in point if x] or [0.0]
        span = max(values) - min(values)
        room = max(0.15, 0.06 * span, (1 - span) / 2)  # a decade at least, so that there are ticks
        return cls(layers, min(values) - room, max(values) + room)

    @property
    def width(self) -> int:
        return max(320, min(768, 40 * self.layers))

    def x(self, layer: int) -> float:
        return round(_LEFT + (layer + 0.5) * self.width / self.layers, 1)

    def y(self, error: float | None) -> float:
        """Zero is drawn at the bottom, infinity at the top."""
        share = 1.0 if error is None else 0.0
        if error:
            share = (math.log10(error) - self.low) / (self.high - self.low)
        return round(_TOP + _HEIGHT * (1 - share), 1)

    def ticks(self) -> list[float]:
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        step = 1 + int(self.high - self.low) // 8
        within = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
        ticks = [m * 10.0**n for n in decades if n % step == 0 for m in within]
        return [tick for tick in ticks if self.low <= math.log10(tick) <= self.high]


def _depth(facts: Facts) -> str:
    taps = [tap for tap in facts["taps"] if tap["allowed"] is not None and split_name(tap["tap"])[0] is not None]
    if not taps:
        return "<p>No tap of a layer was compared with its golden value: there is no line to draw over depth.</p>\n"
    name = _most_frequent(split_name(tap["tap"])[1] for tap in taps)
    taps = [tap for tap in taps if split_name(tap["tap"])[1] == name]
    start = facts["phases"][0]["name"]
    parts = {
        "prompt": [tap for tap in taps if tap["phase"] == start],
        "decoding": [tap for tap in taps if tap["phase"] != start],
    }
    series = [_Series(words, _points(some)) for words, some in parts.items() if some]
    axes = _Axes.of(facts["layers"], series)
    first_layer = None if facts["first"] is None else split_name(facts["first"]["tap"])[0]
    drawn = [*_frame(axes), *_marker(axes, first_layer), *_keys(axes, series)]
    for n, one in enumerate(series):
        drawn += _lines(axes, n, one)
    caption = f"Error of {_code(name)} by layer, against what is allowed"
    summary = "; ".join(map(_in_words, series))
    size = (_LEFT + axes.width + 180, _TOP + _HEIGHT + 40)
    return _figure("depth", f"Error of {name} by layer", summary, caption, *size, "\n".join(drawn))


def _most_frequent(names: Iterable[str]) -> str:
    """Of the taps of a layer; the last in the layer, if several are."""
    counts = Counter(names)
    return max(reversed(_INSIDE), key=lambda name: counts[name])


def _points(taps: Iterable[Facts]) -> dict[int, tuple[float | None, float]]:
    points: dict[int, tuple[float, Facts]] = {}
    for tap in taps:
        layer, ratio = split_name(tap["tap"])[0], _ratio(tap["error"], tap["allowed"])
        assert layer is not None
        assert ratio is not None
        if layer not in points or ratio > points[layer][0]:
            points[layer] = ratio, tap
    return {layer: (tap["error"], tap["allowed"]) for layer, (_, tap) in sorted(points.items())}


def _frame(axes: _Axes) -> Iterable[str]:
    yield f'<rect class="plot" x="{_LEFT}" y="{_TOP}" width="{axes.width}" height="{_HEIGHT}"/>'
    for tick in axes.ticks():
        yield f'<path class="grid" d="M{_LEFT} {axes.y(tick):g}h{axes.width}"/>'
        yield _words(_LEFT - 6, axes.y(tick) + 4, _tick(tick), "end")
    bottom = _TOP + _HEIGHT
    for layer in _labelled(axes.layers, axes.width / axes.layers):
        yield _words(axes.x(layer), bottom + 16, str(layer), "mid")
    yield _words(_LEFT + axes.width / 2, bottom + 34, "layer", "mid")


def _marker(axes: _Axes, layer: int | None) -> Iterable[str]:
    """Where the first divergence is."""
    if layer is not None:
        x, css = axes.x(layer), "end" if layer > axes.layers / 2 else ""
        yield f'<path class="at" d="M{x:g} {_TOP}v{_HEIGHT}"/>'
        yield _words(x, _TOP - 5, "first divergence", css)


def _lines(axes: _Axes, n: int, series: _Series) -> Iterable[str]:
    """A line of errors with a point at each, and one of what is allowed; broken where layers are missing."""
    for css, which in (("l", 1), ("s", 0)):
        path = ""
        for first, last in _runs(list(series.points)):
            spots = [f"{axes.x(i):g} {axes.y(series.points[i][which]):g}" for i in range(first, last + 1)]
            path += f"M{'L'.join(spots)}" + "m-9 0h18" * (first == last)
        yield f'<path class="{css}{n}" d="{path}"/>'
    for layer, (error, allowed) in series.points.items():
        words = f"layer {layer}, {series.name}: error {_number(error, 'infinite')}, allowed {_number(allowed)}"
        yield _point(n, axes.x(layer), axes.y(error), words)


def _point(n: int, x: float, y: float, title: str = "") -> str:
    if n:
        return _rect(x - 3, y - 3, 6, 6, f"d{n}", title)
    return f'<circle class="d0" cx="{x:g}" cy="{y:g}" r="3">{_title(title)}</circle>'


def _keys(axes: _Axes, series: Sequence[_Series]) -> Iterable[str]:
    x, y = _LEFT + axes.width + 12, _TOP + 8
    for n, one in enumerate(series):
        yield f'<path class="s{n}" d="M{x} {y}h28"/>' + _point(n, x + 14, y)
        yield _words(x + 34, y + 4, f"error, {one.name}")
        yield f'<path class="l{n}" d="M{x} {y + 18}h28"/>'
        yield _words(x + 34, y + 22, f"allowed, {one.name}")
        y += 36


def _in_words(series: _Series) -> str:
    over = [layer for layer, (error, allowed) in series.points.items() if error is None or error > allowed]
    if not over:
        return f"{series.name}: within what is allowed in each layer"
    return f"{series.name}: more than allowed in layer {_spans(over)}"


def _tick(x: float) -> str:
    n = math.floor(math.log10(x) + 1e-9)
    if -4 < n < 5:
        return f"{x:g}"
    m = round(x / 10.0**n)
    return _power(n) if m == 1 else f"{m}·{_power(n)}"


def _power(n: int) -> str:
    return "10" + str(n).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


# The markup

_CHAR = 6.7  # width of a character of a figure


def _figure(key: str, title: str, summary: str, caption: str, width: float, height: float, inner: str) -> str:
    """`title` and `summary` are text, `caption` is markup."""
    w, h = math.ceil(width), math.ceil(height)
    above = f"<figcaption>{caption}</figcaption>\n" if caption else ""
    return (
        f'<figure>\n{above}<div class="scroll">\n'
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" viewBox="0 0 {w} {h}" role="img" '
        f'aria-labelledby="{key}-t {key}-d">\n'
        f'<title id="{key}-t">{_text(title)}</title>\n<desc id="{key}-d">{_text(summary)}</desc>\n'
        f"{inner}\n</svg>\n</div>\n</figure>\n"
    )


def _rect(x: float, y: float, width: float, height: float, css: str, title: str = "") -> str:
    head = f'<rect class="{css}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f"{head}>{_title(title)}</rect>" if title else f"{head}/>"


def _title(words: str) -> str:
    return f"<title>{_text(words)}</title>" if words else ""


def _words(x: float, y: float, words: str, css: str = "") -> str:
    head = f'<text class="{css}"' if css else "<text"
    return f'{head} x="{x:g}" y="{y:g}">{_text(words)}</text>'


def _text(value: object) -> str:
    """As text of the page or value of an attribute; what cannot be printed is a question mark."""
    return escape("".join(c if c.isprintable() else "?" for c in str(value)))


def _code(value: object) -> str:
    """A name; it may be broken behind a dot or a slash."""
    return "<code>" + re.sub(r"([./])(?=[^./]{3})", r"\1<wbr>", _text(value)) + "</code>"


def _section(title: str, inner: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{inner}</section>"


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>\n" + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>\n" for name, value in pairs) + "</dl>\n"


def _badge(passed: bool, inner: str) -> str:
    css, word = ("pass", "✓ PASS") if passed else ("fail", "✗ FAIL")
    return f'<p class="verdict"><strong class="{css}">{word}</strong> {inner}</p>\n'


def _in_phase(phase: str) -> str:
    return "in the prompt" if phase == "prompt" else f"in {phase}"


def _status_mark(status: str) -> str:
    mark = {"introduced": "●", "propagated": "–", "beyond": "/", "nan": "✗", "shape": "✗"}.get(status)
    return f'<span class="mark" aria-hidden="true">{mark}</span> ' if mark else ""


_LIGHT = {
    "bg": "#ffffff", "ink": "#1b1f24", "dim": "#57606a", "edge": "#d0d7de", "soft": "#f6f8fa", "ok": "#e4e8ec",
    "pass": "#0a6640", "fail": "#a11d12", "on": "#ffffff", "second": "#00795a", "hatch": "#aab2bb",
    "i": "#fdd0a2 #fdae6b #fd8d3c #f16913 #d94801 #8c2d04",
    "p": "#c6dbef #9ecae1 #6baed6 #4292c6 #2171b5 #084594",
    "b": "#dadaeb #bcbddc #9e9ac8 #807dba #6a51a3 #4a1486",
}  # fmt: skip
_DARK = {
    "bg": "#14171b", "ink": "#e6e9ed", "dim": "#a3adb8", "edge": "#3d444d", "soft": "#1d2126", "ok": "#2c323a",
    "pass": "#5fd39b", "fail": "#ff9387", "on": "#14171b", "second": "#4fd1a5", "hatch": "#59626d",
    "i": "#4d2609 #6e3a0c #94500f #bd6a14 #f0a04b #fee0b6",
    "p": "#12365c #1c4a7c #2a63a0 #3a7fc4 #86b9ea #d6e8fa",
    "b": "#332456 #4a3380 #6547a6 #8263c4 #b49ee2 #e2d9f6",
}  # fmt: skip


def _variables(theme: dict[str, str]) -> str:
    colours = []
    for name, value in theme.items():
        ramp = value.split()
        colours += [f"--{name}{n if len(ramp) > 1 else ''}:{colour}" for n, colour in enumerate(ramp)]
    return ";".join(colours)


def _style() -> str:
    ramps = "".join(f".{k}{n}{{fill:var(--{k}{n})}}" for k in _SCALES.values() for n in range(_LEVELS))
    return (
        f":root{{color-scheme:light dark;{_variables(_LIGHT)}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(_DARK)}}}}}\n"
        f"{_CSS}{ramps}\n"
    )


_CSS = """\
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem 1.25rem 2rem;max-width:80rem;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.35rem;margin:.5rem 0}
h2{font-size:1.15rem;margin:1.8rem 0 .5rem;border-bottom:1px solid var(--edge);padding-bottom:.2rem}
h3{font-size:1rem;margin:0 0 .3rem}
p{margin:.4rem 0;max-width:60rem}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
code,dd,li,p{overflow-wrap:anywhere}
dl{margin:.4rem 0}
dl div{display:flex;gap:1rem}
dt{flex:0 0 11rem;color:var(--dim)}
dd{margin:0;min-width:0}
.verdict{font-size:1.1rem}
.verdict strong{display:inline-block;padding:.05rem .55rem;margin-right:.4rem;border-radius:.25rem;color:var(--on)}
.pass{background:var(--pass)}
.fail{background:var(--fail)}
.cause{margin:.8rem 0;padding:.6rem .9rem;border-left:4px solid var(--fail);background:var(--soft)}
.counts{list-style:none;display:flex;flex-wrap:wrap;gap:.3rem 1.5rem;padding:0;margin:.8rem 0}
.mark{display:inline-block;min-width:.8em;text-align:center}
.scroll{overflow-x:auto}
.maps{display:flex;flex-wrap:wrap;align-items:end;gap:0 4rem}
.maps figure{width:min-content;max-width:100%}
table{border-collapse:collapse;margin:.4rem 0;font-size:.85rem}
caption{text-align:left;color:var(--dim);padding-bottom:.4rem}
th,td{padding:.2rem .5rem;border-bottom:1px solid var(--edge);text-align:left;vertical-align:top;max-width:24rem}
th,td,table code{overflow-wrap:break-word}
thead th{background:var(--soft);vertical-align:bottom}
tbody th{font-weight:normal}
td.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
td.w{min-width:7.6rem}td.k{white-space:nowrap}
tr.first b{display:block}
tr.first{background:var(--soft);box-shadow:inset 4px 0 var(--fail)}
figure{margin:1rem 0}
figcaption{margin-bottom:.4rem}
svg{display:block;font:11px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
svg text{fill:var(--ink)}
.end{text-anchor:end}.mid{text-anchor:middle}
.o{fill:var(--ok)}.x{fill:var(--ink)}.h{fill:url(#hatch)}
.hatch{stroke:var(--hatch);stroke-width:1.5}
.f,.halo{fill:none;stroke:var(--ink);stroke-width:2}.halo{stroke:var(--bg)}
.m{fill:none;stroke:var(--ink);stroke-width:1.2}
.introduced{stroke-width:5;stroke-linecap:round}
.strong{stroke:var(--bg)}.nan,.shape{stroke-width:1.5}
.plot{fill:none;stroke:var(--edge)}.grid{stroke:var(--edge)}
.at{stroke:var(--ink);stroke-dasharray:2 3}
.s0,.s1,.l0,.l1{fill:none;stroke-width:1.5}
.s0,.l0{stroke:var(--ink)}.s1,.l1{stroke:var(--second)}
.l0,.l1{stroke-dasharray:6 4}
.d0{fill:var(--ink)}.d1{fill:var(--second)}
footer{margin-top:1rem;color:var(--dim)}
@media (max-width:40rem){dl div{display:block;margin-bottom:.3rem}}
@media print{
@page{margin:12mm}
body{max-width:none;padding:0;font-size:10pt}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.scroll{overflow:visible}svg{max-width:100%;height:auto}
.maps{display:block}.maps figure{width:auto}
figure,.cause,tr{break-inside:avoid}h2,h3,figcaption{break-after:avoid}
table{font-size:6.5pt}th,td{padding:.1rem .25rem}td.w{min-width:0}
}
"""
