"""Find an output that repeats itself without end.

The rule: the last `period` tokens, at most 1,024, came `times` times in a row, token for token. If fewer than 16
different tokens are in the period, the repetition must also be 1,024 tokens long. Rows of zeros, spaces, digits or
equal lines of a table are ordinary. A sentence that comes eight times in a row is not.

Reasoning models repeat themselves most often without randomness: see Holtzman et al. 2019, arXiv:1904.09751.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TIMES = 8  # of a repetition, unless another number is asked for
LONGEST = 1024  # tokens of a period that is looked for
DIFFERENT = 16  # tokens in the period of a repetition that is no row of a few signs
PLAIN = 1024  # tokens of a repetition of fewer different ones


@dataclass(frozen=True)
class Loop:
    """A repetition: its last `period` tokens came `times` times in a row."""

    period: int
    times: int


class LoopGuard:
    """Takes an output token by token. A token costs a few passes over arrays of `LONGEST` numbers.

    times  a repetition is found once its period came so often
    loop   the repetition at the end of the output, if there is one
    """

    def __init__(self, times: int = TIMES) -> None:
        self.loop: Loop | None = None
        self._count = 0
        self._last: dict[int, int] = {}  # token -> how many tokens there were when it came last
        self._recent = np.full(LONGEST, -1, np.int64)  # the last tokens, the newest first
        # Of the period i + 1: how many last tokens equal the one a period earlier, and different tokens in the period.
        self._equal = np.zeros(LONGEST, np.int32)
        self._different = np.zeros(LONGEST, np.int32)
        self._periods = np.arange(1, LONGEST + 1)
        self._enough = (times - 1) * self._periods

    def feed(self, token: int) -> Loop | None:
        """Take the next token, and return the repetition that it completes, if there is one."""
        same = self._recent == token
        self._equal += 1
        self._equal *= same
        self._recent[1:] = self._recent[:-1]
        self._recent[0] = token
        # A period has one different token more than the shorter one before it, if the token came not in between.
        self._different[1:] = self._different[:-1]
        self._different[0] = 0
        self._different[: self._count - self._last.get(token, self._count - LONGEST)] += 1
        self._last[token] = self._count
        self._count += 1
        self.loop = None
        often = self._equal >= self._enough
        if often.any():
            rich = self._different >= DIFFERENT
            found = np.flatnonzero(often & (rich | (self._equal + self._periods >= PLAIN)))
            if len(found):
                period = int(found[0]) + 1
                self.loop = Loop(period, int(self._equal[found[0]]) // period + 1)
        return self.loop
