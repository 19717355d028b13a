"""`qwq train`: run one stage of the recipe from a seed. An interrupted run resumes to the same bits."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ..errors import UsageError
from .ending import kept
from .options import set_threads
from .progress import Bar, progress_bar
from .screen import screen
from .values import count, one_of, seed, threads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "stage", **one_of(["base", "cold-start"]), help="train a new model, or continue from a base model"
    )
    parser.add_argument(
        "-o", "--out", required=True, metavar="DIR", help="the folder of the run; a run that is there resumes"
    )
    parser.add_argument("-m", "--model", metavar="DIR", help="the base model to start from (cold-start)")
    parser.add_argument(
        "-s", "--seed", type=seed, default=0, metavar="N", help="seed of weights and problems (default 0)"
    )
    parser.add_argument("--steps", type=count, metavar="N", help="number of steps; default: the recipe's")
    parser.add_argument("--chat-template-file", metavar="FILE", help="a template to store with a new model (base)")
    parser.add_argument(
        "-t", "--threads", type=threads, default=2, metavar="N", help="threads that share a batch (default 2)"
    )
    parser.add_argument(
        "--checkpointing",
        **one_of(["none", "selective", "full"]),
        default="none",
        help="activations that a backward pass recomputes (default none)",
    )


def run(options: argparse.Namespace) -> int:
    if (options.stage == "cold-start") != (options.model is not None):
        raise UsageError(None, "model", "names the base model: cold-start needs it, and base takes none")
    set_threads(1)  # the worker threads use the cores
    from ..text.template import load_chat_template
    from ..train.sft import STAGES, train

    template = None
    if options.chat_template_file is not None:
        chat = load_chat_template(Path(options.chat_template_file).parent, options.chat_template_file)
        template = chat.source if chat else None
    total = options.steps or STAGES[options.stage].steps
    with kept(lambda: _resumes(options)), progress_bar(options.stage, total, "steps") as bar:
        train(
            options.stage,
            options.out,
            base=options.model,
            template=template,
            seed=options.seed,
            steps=options.steps,
            workers=options.threads,
            checkpointing=options.checkpointing,
            progress=_Progress(bar),
        )
    return 0


def _resumes(options: argparse.Namespace) -> str:
    """Return what an interrupted run keeps, and the command that goes on."""
    from ..train.sft import saved_step

    step = saved_step(options.out)
    return f"the same command resumes at step {step + 1}: {options.line}" if step else "no step was done"


class _Progress:
    """A bar on a terminal; elsewhere a line every fifty steps."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.first: int | None = None
        self.since = self.started = time.perf_counter()

    def __call__(self, done: int, total: int, loss: float) -> None:
        if self.first is None:
            self.first = done
            self.bar.begin(done)
        self.bar.note = f"loss {loss:.3f}"
        self.bar(done - self.bar.done)
        if not screen.shows_bars and (done % 50 == 0 or done == total):
            now = time.perf_counter()
            took, rest = now - self.since, (now - self.started) / (done - self.first + 1) * (total - done)
            line = f"step {done} of {total}: loss {loss:.4f}, {took:.0f} s"
            print(line + (f", {rest:.0f} s left" if rest else ""), file=sys.stderr, flush=True)
            self.since = now
