"""A run's figures for people, as a table or in Markdown, and for programs, as JSON with nothing rounded."""

from __future__ import annotations

from typing import Any

from ..footprint import human
from .measure import Row

COLUMNS = ("op", "shape", "isa", "threads", "T", "median ms", "rate", "GB/s", "ceiling", "share", "data")
_LEFT = {"op", "shape", "isa", "rate", "ceiling", "data"}
_UNITS = {"MAC": "GMAC/s", "weight": "Gweight/s", "element": "Gelement/s"}


def to_dict(rows: list[Row], ceilings: list[dict[str, Any]], machine: dict[str, Any]) -> dict[str, Any]:
    """What `-o json` prints."""
    return {"machine": machine, "ceilings": ceilings, "rows": [row.to_dict() for row in rows]}


def table(facts: dict[str, Any]) -> str:
    """Columns under their names, then the ceilings."""
    lines = [COLUMNS, *(_cells(row) for row in facts["rows"])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if name in _LEFT else cell.rjust(width)
            for name, cell, width in zip(COLUMNS, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*text, "", *_notes(facts)])


def markdown(facts: dict[str, Any]) -> str:
    """The same as a table of Markdown."""
    lines = [COLUMNS, ["---" if name in _LEFT else "---:" for name in COLUMNS], *(_cells(row) for row in facts["rows"])]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", *(f"- {n}" for n in _notes(facts))])


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["op"],
        row["shape"],
        row["isa"],
        str(row["threads"]),
        "-" if row["T"] is None else str(row["T"]),
        _number(row["seconds"] * 1e3),
        f"{_number(row['operations_per_second'] / 1e9)} {_UNITS[row['unit']]}",
        _number(row["bytes_per_second"] / 1e9),
        row["ceiling"] or "-",
        "-" if row["share"] is None else f"{row['share']:.0%}",
        "cache" if row["cached"] else "memory",
    ]


def _number(value: float) -> str:
    """Three digits or more."""
    return f"{value:.{0 if value >= 1000 else 1 if value >= 10 else 3}f}"


def _notes(facts: dict[str, Any]) -> list[str]:
    machine = facts["machine"]
    notes = [f"{machine['cpu']}, last cache {human(machine['last_cache_bytes'])}"]
    if machine["huge_pages"] is not None:
        notes[0] += f", {machine['huge_pages']:.0%} of what is read on huge pages"
    for c in facts["ceilings"]:
        unit = "GMAC/s" if c["unit"] == "MAC" else "GB/s"
        threads = "1 thread" if c["threads"] == 1 else f"{c['threads']} threads"
        notes.append(f"ceiling: {c['name']}, {c['isa']}, {threads}: {_number(c['per_second'] / 1e9)} {unit}")
    if any(row["cached"] for row in facts["rows"]):
        notes.append("data in the cache: reading from memory is no limit there")
    return notes
