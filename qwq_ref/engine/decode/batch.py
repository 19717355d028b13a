"""A batch: works that share each pass over the weights. Each gets the ids that it gets alone.

Two rules make a batch fair. A pass takes one token of each work that decodes, and a piece of the prompts of the others:
so a long prompt delays no output for long. And all prompts advance in equal shares: so a short one does not wait for a
long one.

Where memory runs out, the youngest work gives its cache back, and computes it again once there is room. No bit of its
answer changes, so nobody notices more than a delay. The oldest work is never put aside, so it ends at some time.
"""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ...errors import MemoryLimitError, NonFiniteError
from ...spec.ops import Array
from ..backends import Backend
from ..faults import run_together
from ..session import Asking, Request, Session

E = TypeVar("E", bound=BaseException)
Item = int | None | Exception  # an id, the end of a work, or its failure

_LEAST = 16  # prompt tokens in a pass: fewer leave the kernels idle
_PATIENCE = 0.25  # seconds that a piece of prompts may delay the outputs of others
_ALONE = 2.0  # seconds of a piece where no output waits for it: another work, or its end, can come meanwhile


@dataclass
class _Work:
    """A work in a batch.

    background  it takes part only in passes that no other work needs
    request     the one that it waits for; None: it must be asked for its next one
    left        ids of the request that no pass has taken yet; those of the whole session, after it was put aside
    aside       it waits for memory
    logits      what answers its last request
    """

    asking: Asking[int]
    background: bool
    request: Request | None = None
    left: list[int] = field(default_factory=list)
    aside: bool = False
    logits: Array | None = None

    @property
    def decodes(self) -> bool:
        return len(self.left) == 1

    def put_aside(self) -> None:
        """Give back the memory of the session that asks."""
        assert self.request is not None
        assert self.request.session is not None
        self.left = [*self.request.session.forget(), *self.request.step.ids]
        self.aside = True


class Pace:
    """The number of prompt tokens that a pass takes, from the speed of the passes before.

    chunk  the largest number
    """

    def __init__(self, chunk: int) -> None:
        self._chunk, self._rate, self._step = chunk, 0.0, 0.0

    def tokens(self, decoding: int) -> int:
        """Return the prompt tokens to take in a pass with so many works that decode."""
        if not self._rate:
            return min(self._chunk, 4 * _LEAST)
        seconds = max(_PATIENCE, 2 * self._step) if decoding else _ALONE
        return max(_LEAST, min(self._chunk, int(self._rate * seconds) // _LEAST * _LEAST))

    def took(self, prompt_tokens: int, decoding: int, seconds: float) -> None:
        """Note the duration of a pass."""
        if not prompt_tokens:
            self._step = seconds
        elif prompt_tokens >= _LEAST:
            rate = prompt_tokens / max(1e-6, seconds - (self._step if decoding else 0))
            self._rate = (self._rate + rate) / 2 if self._rate else rate


class Batch:
    """Works such as `plain.decoding`, by their numbers. One thread uses it.

    backend  what computes
    model    where its weights came from, for errors
    live     whether someone waits for each token: passes then are short
    spare    called when memory runs out; returns whether it has given some back
    """

    def __init__(
        self,
        backend: Backend,
        model: str | os.PathLike[str] | None = None,
        live: bool = True,
        spare: Callable[[], bool] = lambda: False,
    ) -> None:
        self.backend, self.model, self._spare = backend, model, spare
        self._works: dict[int, _Work] = {}
        self._pace = Pace(backend.chunk) if live and not backend.streams else None

    def __len__(self) -> int:
        return len(self._works)

    def __contains__(self, number: object) -> bool:
        return number in self._works

    def add(self, number: int, work: Asking[int], background: bool = False) -> None:
        """Add a work, under a number that no other one has."""
        self._works[number] = _Work(work, background)

    def clear(self) -> None:
        """Close all works, whatever state a pass has left them in."""
        while self._works:
            with contextlib.suppress(Exception):
                self._works.popitem()[1].asking.close()

    def remove(self, number: int) -> None:
        """Close a work. Its session keeps the tokens that were computed for it."""
        self._works.pop(number).asking.close()

    def items(self) -> Iterator[tuple[int, Item]]:
        """Advance each work to its next request -> pairs of its number and an item. A work that ended is removed.

        The caller may add and remove works between items; `run` then answers all requests.
        """
        for number in [*self._works]:
            while (work := self._works.get(number)) is not None and work.request is None:
                item: Item
                try:
                    found = work.asking.send(work.logits)
                except StopIteration:
                    item = None
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as problem:  # a panic in Rust is no Exception
                    item = as_exception(problem)
                else:
                    work.logits = None
                    if isinstance(found, Request):
                        work.request, work.left = found, [*found.step.ids]
                        continue
                    item = found
                if not isinstance(item, int):
                    del self._works[number]
                yield number, item

    def run(self) -> Iterator[tuple[int, Exception]]:
        """Run one pass for the requests -> the numbers and errors of works that failed in it; they are removed."""
        self._bring_back()
        counts = self._shares({n: w for n, w in self._works.items() if w.request is not None and not w.aside})
        yield from self._make_room(counts)
        if not counts:
            return
        pieces = [_piece(self._works[number], count) for number, count in counts.items()]
        decoding = sum(self._works[number].decodes for number in counts)
        started = time.perf_counter()
        found = run_together(self.backend, pieces, self.model)
        if self._pace is not None:
            self._pace.took(sum(counts.values()) - decoding, decoding, time.perf_counter() - started)
        for (number, count), logits in zip(counts.items(), found, strict=True):
            work = self._works[number]
            if isinstance(logits, NonFiniteError):
                self.remove(number)
                yield number, logits
                continue
            del work.left[:count]
            if not work.left:
                work.request, work.logits = None, logits

    def has_room(self, session: Session, ids: Ids[int]) -> bool:
        """Return whether there is memory for more tokens of a session beside the next ones of all works."""
        steps = [_piece(work, 1).step for work in self._works.values() if work.request is not None and not work.aside]
        while self.backend.missing([*steps, session.step(ids)]):
            if not self._spare():
                return False
        return True

    def _bring_back(self) -> None:
        """Let works that were put aside go on, the oldest first, while there is room for all that they had."""
        for work in self._works.values():
            if work.aside and work.request is not None and work.request.session is not None:
                work.aside = not self.has_room(work.request.session, work.left)
                if work.aside:
                    return

    def _make_room(self, counts: dict[int, int]) -> Iterator[tuple[int, Exception]]:
        """Put works aside until there is memory for a pass. One that has not enough alone fails, and is removed."""
        while self.backend.missing([_piece(self._works[n], count).step for n, count in counts.items()]):
            if self._spare():
                continue
            active = [n for n, work in self._works.items() if work.request is not None and not work.aside]
            oldest, *others = sorted(active, key=lambda n: self._works[n].background)
            if not others:
                self.remove(oldest)
                counts.clear()
                yield oldest, MemoryLimitError(self.model, "KV cache", "has no memory for more tokens")
                return
            self._works[others[-1]].put_aside()
            counts.pop(others[-1], None)

    def _shares(self, works: dict[int, _Work]) -> dict[int, int]:
        """Return the number of tokens that a pass takes of each work that takes part."""
        works = {n: work for n, work in works.items() if not work.background} or works
        counts = {n: 1 for n, work in works.items() if work.decodes}
        prompts = {n: len(work.left) for n, work in works.items() if not work.decodes}
        if self.backend.streams:  # reading the weights takes longer than many tokens
            return counts | prompts
        room = self.backend.chunk if self._pace is None else self._pace.tokens(len(counts))
        for i, (n, left) in enumerate(sorted(prompts.items(), key=lambda pair: pair[1])):
            counts[n] = min(left, max(1, room // (len(prompts) - i)))  # the short ones leave room for the others
            room -= counts[n]
        return counts


def as_exception(problem: BaseException) -> Exception:
    """Return an error as an Exception without frames: of another one, only the kind is known."""
    if not isinstance(problem, Exception):
        problem = RuntimeError(f"{type(problem).__name__} in a library").with_traceback(problem.__traceback__)
    return without_frames(problem)


def without_frames(problem: E) -> E:
    """Return an error with its place as a note: its frames would hold sessions for as long as a caller keeps it."""
    for place in traceback.extract_tb(problem.__traceback__)[-1:]:
        problem.add_note(f"at {place.filename}:{place.lineno} in {place.name}")
    problem.__cause__ = problem.__context__ = None
    return problem.with_traceback(None)


def _piece(work: _Work, count: int) -> Request:
    """Return the first tokens that are left of a request as one of its own."""
    request = work.request
    assert request is not None
    return replace(request, step=replace(request.step, ids=work.left[:count]))
