"""The figures of a run: as a table or Markdown for people, as JSON or CSV for programs, with nothing rounded."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from ..footprint import human
from ..tables import Table

Cells = dict[str, str]  # column -> text
_LEFT = {"op", "shape", "model", "isa", "rate", "ceiling", "data", "weights", "KV", "test", "bound", "peer"}
_OF_ALL = ("model", "isa", "threads")  # above a table of models, if all rows share them: it must fit 80 columns
_UNITS = {"MAC": "GMAC/s", "weight": "Gweight/s", "element": "Gelement/s"}


def render(facts: dict[str, Any], form: str, cells: Callable[[dict[str, Any]], Cells]) -> str:
    """Return {"machine", "ceilings", "rows"} as text.

    form   "table", "md", "json" or "csv"
    cells  row -> the cells of a table; a column of dashes alone is left out
    """
    if form == "json":
        return json.dumps(facts, indent=1, allow_nan=False)
    if form == "csv":
        return _csv(facts["rows"])
    shown = [cells(row) for row in facts["rows"]]
    columns = [name for name in (shown[0] if shown else {}) if any(row[name] != "-" for row in shown)]
    same = []
    if form == "table" and "model" in columns:
        same = [name for name in _OF_ALL if len({row[name] for row in shown}) == 1]
    columns = [name for name in columns if name not in same]
    table = Table(columns, "".join("<" if name in _LEFT else ">" for name in columns))
    lines, notes = [[row[name] for name in columns] for row in shown], _notes(facts)
    if form == "md":
        return "\n".join([table.markdown(lines), "", *(f"- {note}" for note in notes)])
    heading = [", ".join(f"{name} {shown[0][name]}" for name in same)] if same else []
    return "\n".join([*heading, table.text(lines), "", *notes])


def of_operation(row: dict[str, Any]) -> Cells:
    """Return the cells of a row of `op_rows`."""
    return {
        "op": row["op"],
        "shape": row["shape"],
        "isa": row["isa"],
        "threads": str(row["threads"]),
        "T": "-" if row["T"] is None else str(row["T"]),
        "median ms": _number(row["seconds"] * 1e3),
        "rate": f"{_number(row['operations_per_second'] / 1e9)} {_UNITS[row['unit']]}",
        "GB/s": _number(row["bytes_per_second"] / 1e9),
        "ceiling": row["ceiling"] or "-",
        "share": _share(row["share"]),
        "data": "cache" if row["cached"] else "memory",
    }


def of_model(row: dict[str, Any]) -> Cells:
    """Return the cells of a row of `model`."""
    return {
        "model": row["model"],
        "weights": row["weights"],
        "KV": row["kv"],
        "isa": row["isa"],
        "threads": str(row["threads"]),
        "test": row["test"],
        "tokens/s": f"{_number(row['tok_s'])} ± {_number(row['tok_s_stddev'])}",
        "GMAC/s": _number(row["tok_s"] / row["tokens"] * (row["products"] + row["scores"]) / 1e9),
        "GB/s": _number(row["tok_s"] / row["tokens"] * row["bytes"] / 1e9),
        "bound": row["bound"] or "-",
        "ceiling": "-" if row["ceiling_tok_s"] is None else _number(row["ceiling_tok_s"]),
        "share": _share(row["share"]),
        "peer": row["peer"] or "-",
        "its tokens/s": "-" if row["peer_tok_s"] is None else _number(row["peer_tok_s"]),
        "ratio": "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
        "J/token": "-" if row["joules_per_token"] is None else _number(row["joules_per_token"]),
    }


def _csv(rows: list[dict[str, Any]]) -> str:
    """Return a line for each row, without the samples."""
    text = io.StringIO()
    columns = [name for name, value in (rows[0] if rows else {}).items() if not isinstance(value, list)]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().removesuffix("\n")


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _number(value: float) -> str:
    """Return a number with three digits or more."""
    return f"{value:.{0 if value >= 1000 else 1 if value >= 10 else 3}f}"


def _notes(facts: dict[str, Any]) -> list[str]:
    machine = facts["machine"]
    notes = [f"{machine['cpu']}, last cache {human(machine['last_cache_bytes'])}"]
    if machine["huge_pages"] is not None:
        notes[0] += f", {machine['huge_pages']:.0%} of what is read on huge pages"
    notes[0] += f"; peak memory {human(machine['peak_bytes'])}"
    for c in facts["ceilings"]:
        unit = "GMAC/s" if c["unit"] == "MAC" else "GB/s"
        threads = "1 thread" if c["threads"] == 1 else f"{c['threads']} threads"
        notes.append(f"ceiling: {c['name']}, {c['isa']}, {threads}: {_number(c['per_second'] / 1e9)} {unit}")
    if any(row.get("cached") for row in facts["rows"]):
        notes.append("data in the cache: reading from memory is no limit there")
    if "energy" in facts:
        notes.append(f"energy: {facts['energy']['source'] or facts['energy']['problem']}")
    return notes
