"""One answer on the screen, from the scheduler's events: progress, reasoning, text, and how it ended."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...engine.generation import Generation, Piece
from ...engine.scheduler import Ended, Job, Progress, Scheduler
from ..ending import ctrl_c
from ..progress import Bar, shown
from ..report import rate
from ..screen import screen, tell
from ..writer import Writer

if TYPE_CHECKING:
    from ...engine.model import PreparedPrompt

STOPPED = "stopped"  # the ending of an answer that Ctrl-C ended
_LONG = 64  # prompt tokens from which their progress is shown
_PRESSES = 3  # of Ctrl-C, after which a step that does not end is left alone


class AnswerView:
    """Shows the answers of a scheduler.

    thinking     whether the reasoning is shown; else its length is
    interactive  whether a person waits: Ctrl-C then ends the answer, and not the command
    """

    def __init__(self, scheduler: Scheduler, thinking: bool, interactive: bool) -> None:
        self._scheduler = scheduler
        self.thinking, self.interactive = thinking, interactive
        self._job: Job | None = None
        self._presses = 0

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """Let Ctrl-C in the block stop the answer of `show`, and nothing else, if a person waits."""
        self._job, self._presses = None, 0
        with ctrl_c(self._press if self.interactive else None):
            yield

    def _press(self) -> None:
        self._presses += 1
        if self._job is not None:
            self._scheduler.cancel(self._job)
        if self._presses >= _PRESSES:
            raise KeyboardInterrupt

    def show(self, prepared: PreparedPrompt) -> tuple[Generation, str | None]:
        """Answer a prompt, in a block of `stoppable` -> the answer, and why it is not whole.

        Raises KeyboardInterrupt, and an error that ends the answer.
        """
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        screen_of = _Answer(self.thinking)
        self._job = job = self._scheduler.submit(prepared, events.put)
        try:
            if self._presses:  # before there was anything to stop
                self._scheduler.cancel(job)
            while not isinstance(event := events.get(), Ended):
                screen_of.take(event, job.generation)
        except BaseException:
            self._scheduler.cancel(job)
            raise
        finally:
            screen_of.close()
        if event.problem is not None:
            raise event.problem
        stopped = job.generation.run.finish_reason == "cancelled"
        return job.generation, STOPPED if stopped else job.generation.ending

    def tell_end(self, generation: Generation, ending: str | None, context: int) -> None:
        """Print how an answer ended, and on a terminal its length, its speed, and the room that is left."""
        run = generation.run
        if ending == STOPPED:
            tell(f"[stopped; {len(run.output)} tokens stay in the conversation]", dim=True)
        elif ending is not None:
            tell(f"qwq: {ending}")
        if self.interactive:
            speed = f", {rate(len(run.output), run.output_seconds):.1f} tokens/s" if run.output_seconds else ""
            used = len(run.prompt) + len(run.output)
            tell(
                f"[{len(run.output)} tokens{speed}; prompt {len(run.prompt)}, {run.cached} cached; "
                f"context {used:,} of {context:,}]",
                dim=True,
            )


class _Answer:
    """The screen while an answer comes."""

    def __init__(self, thinking: bool) -> None:
        self._writer = Writer(("thinking", "answer") if thinking else ("answer",))
        self._folds = not thinking
        self._folded = False
        self._bar: Bar | None = None
        self._bars = contextlib.ExitStack()

    def take(self, event: Progress | Piece, generation: Generation) -> None:
        if isinstance(event, Progress):
            self._progress(event)
            return
        self._bars.close()
        if event.kind == "thinking" and self._folds:
            self._folded = True
            screen.draw(f"thinking: {generation.thinking_tokens} tokens")
            return
        self._unfold(generation)
        self._writer.write(event.text, event.kind)

    def close(self) -> None:
        self._bars.close()
        screen.draw("")
        self._writer.close()

    def _progress(self, event: Progress) -> None:
        if self._bar is None:
            self._bar = Bar("prompt", event.total, "tokens")
            self._bars.enter_context(shown(self._bar, at_least=_LONG))
        self._bar(event.done - self._bar.done)

    def _unfold(self, generation: Generation) -> None:
        if self._folded:
            screen.draw("")
            tell(f"[thought for {generation.thinking_tokens} tokens]", dim=True)
            self._folded = False
