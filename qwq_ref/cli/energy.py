"""The energy of a command's work: per prompt token and per output token, where a meter tells it."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from ..host.energy import Energy, find_meter
from .values import number


def add_watts_argument(parser: Any) -> None:
    """Add `--watts` to a parser or a group of options."""
    parser.add_argument(
        "--watts",
        type=number(0),
        metavar="X",
        help="joules are X watts, which you read from a meter, times seconds; default: the processor's counters",
    )


class Account:
    """A meter, if there is one, from the start of the work.

    asked  whether the energy is wanted; otherwise nothing looks for a meter
    words  its source, or why there is none
    """

    def __init__(self, options: argparse.Namespace, asked: bool) -> None:
        self.asked = asked or options.watts is not None
        self.meter, self.words = None, "not measured"
        if getattr(options, "ray", None) is not None:
            self.words = "not measured: other machines compute"
        elif self.asked:
            self.meter, self.words = find_meter(options.watts)

    def total(self) -> Energy | None:
        """Return the energy so far; None where nothing is measured."""
        return None if self.meter is None else self.meter.total()

    def facts(self, **parts: Any) -> dict[str, Any]:
        """Return the field of JSON: the source, or why nothing was measured, and the figures of parts."""
        measured = self.meter is not None
        return {"source": self.words if measured else None, "problem": None if measured else self.words, **parts}

    def close(self) -> None:
        if self.meter is not None:
            self.meter.close()


@contextlib.contextmanager
def accounted(options: argparse.Namespace, asked: bool = True) -> Iterator[Account]:
    """Open an account for a block."""
    account = Account(options, asked)
    try:
        yield account
    finally:
        account.close()


class Parts:
    """The energy of one answer: of its prompt, up to the first token of the output, and of the output."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._marks: list[Energy | None] = []

    def watch(self, tokens: Iterable[int]) -> Iterator[int]:
        """Yield the ids of the output, and note when the first one comes."""
        self._mark()
        for number_of, token in enumerate(tokens):
            if not number_of:
                self._mark()
            yield token

    def ended(self, prompt: int, output: int) -> None:
        """End the count. `prompt`, `output`: tokens that were computed."""
        self._mark()
        self._tokens = {"prompt": prompt, "output": output}

    def _mark(self) -> None:
        self._marks.append(self._account.total())

    @property
    def used(self) -> dict[str, Energy]:
        """The energy of each part, where it was measured."""
        pairs = zip(("prompt", "output"), self._marks, self._marks[1:], strict=False)
        return {name: after - before for name, before, after in pairs if before is not None and after is not None}

    def facts(self) -> dict[str, Any]:
        """Return the field of JSON."""
        used = self.used
        return self._account.facts(**{name: energy_of(used.get(name), n) for name, n in self._tokens.items()})

    def line(self) -> str:
        """Return the line for people."""
        shares = [
            f"{name}: {energy.joules:.3g} J, {energy.joules / self._tokens[name]:.3g} J a token"
            for name, energy in self.used.items()
            if self._tokens[name]
        ]
        return "energy: " + "; ".join([*shares, self._account.words])


def energy_of(used: Energy | None, tokens: int, kind: str = "token") -> dict[str, Any]:
    """Return the fields of JSON of a part whose joules so many tokens of a kind share."""
    joules, seconds = (None, None) if used is None else (used.joules, used.seconds)
    shared = joules / tokens if joules is not None and tokens else None
    return {"joules": joules, "seconds": seconds, f"joules_per_{kind}": shared}


def line_of_all(account: Account, used: Energy | None, output: int) -> str:
    """Return the line for people about answers that share passes: `output` tokens in all, their prompts included."""
    if used is None or not output:
        return f"energy: {account.words}"
    share = f"{used.joules / output:.3g} J an output token, prompts included"
    return f"energy: {used.joules:.3g} J in {used.seconds:.1f} s, {share}; {account.words}"
