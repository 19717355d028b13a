"""`qwq plot`: draw a picture of one subject, as SVG or PNG, or print its data.

A family of subjects is a module with `SUBJECTS`, `add_arguments` and `facts`. Each subject has a module of its name in
`qwq_ref.plots`, which draws the facts.
"""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UsageError
from . import plot_budget, plot_inside, plot_run
from .options import refuse
from .streams import print_json, require_output

_FAMILIES = (plot_inside, plot_run, plot_budget)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subjects = parser.add_subparsers(dest="subject", metavar="SUBJECT", required=True)
    for family in _FAMILIES:
        for subject, (summary, description) in family.SUBJECTS.items():
            command = subjects.add_parser(subject, help=summary, description=description)
            command.add_argument("-o", "--out", metavar="FILE", help="the picture: its name ends in .svg or .png")
            command.add_argument("--dark", action="store_true", help="light letters on dark paper")
            command.add_argument("--json", action="store_true", help="print the data as JSON")
            family.add_arguments(command, subject)
            command.set_defaults(family=family)


def run(options: argparse.Namespace) -> int:
    if options.out is None:
        if not options.json:
            raise UsageError(None, "out", "is missing: name a file for the picture, or print the data with --json")
        refuse(options, ["dark"], "has no effect without -o")
    else:
        _check_out(options.out)
    if options.json:
        require_output()
    facts: dict[str, Any] = options.family.facts(options)
    if options.out is not None:
        _draw(options, facts)
    if options.json:
        print_json(facts)
    return 0


def _check_out(out: str) -> None:
    """Raise UsageError or FileError for a picture that cannot be drawn or written: the computation may take long."""
    from ..plots.sheet import kind_of, require_matplotlib

    kind_of(out)
    require_matplotlib()
    from ..formats.write import check_file

    check_file(out)


def _draw(options: argparse.Namespace, facts: dict[str, Any]) -> None:
    from ..formats.write import write_atomically
    from ..plots.letters import lacking
    from ..plots.sheet import View, drawing, kind_of, rendered
    from .screen import tell

    kind = kind_of(options.out)
    title, texts = options.family.words(facts)
    view = View.of(kind, title, texts, options.dark)
    with drawing(view):
        picture = rendered(options.family.draw(options, facts, view), kind)
    write_atomically(options.out, lambda file: file.write(picture))
    if kind == "svg":
        letters, what = lacking(view.letters.seen), "whoever opens the picture needs a font with these characters"
    else:
        letters = view.letters.seen & view.letters.missing
        what = "no installed font has these characters, so escapes stand for them"
    if letters:
        tell(f"qwq: {what}: {' '.join(sorted(letters)[:8])}{' ...' * (len(letters) > 8)}")
