"""`qwq train`: run one stage of the recipe from a seed. An interrupted run resumes to the same bits."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ..errors import UsageError
from .ending import kept
from .options import refuse, set_threads
from .progress import Bar, progress_bar
from .screen import screen
from .train_rl import add_rl_arguments, refuse_rl_arguments, rl_recipe
from .values import count, one_of, seed, threads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "stage",
        **one_of(["base", "cold-start", "control", "rl"]),
        help="train a new model; go on from a model with solutions (cold-start, control), or with rewards (rl)",
    )
    parser.add_argument(
        "-o", "--out", required=True, metavar="DIR", help="the folder of the run; a run that is there resumes"
    )
    parser.add_argument("-m", "--model", metavar="DIR", help="the model to start from (all but base)")
    parser.add_argument(
        "-s", "--seed", type=seed, default=0, metavar="N", help="seed of weights and problems (default 0)"
    )
    parser.add_argument("--steps", type=count, metavar="N", help="steps, or iterations of rl; default: the recipe's")
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
    add_rl_arguments(parser)


def run(options: argparse.Namespace) -> int:
    if (options.stage == "base") != (options.model is None):
        raise UsageError(None, "model", "names the model to start from: base takes none, and the other stages need it")
    set_threads(1)  # the worker threads use the cores
    if options.stage == "rl":
        return _reinforce(options)
    refuse_rl_arguments(options)
    from ..text.template import load_chat_template
    from ..train.sft import STAGES, train

    template = None
    if options.chat_template_file is not None:
        chat = load_chat_template(Path(options.chat_template_file).parent, options.chat_template_file)
        template = chat.source if chat else None
    total = options.steps or STAGES[options.stage].steps
    with kept(lambda: _resumes(options)), progress_bar(options.stage, total, "steps") as bar:
        show = _Progress(bar)
        train(
            options.stage,
            options.out,
            base=options.model,
            template=template,
            seed=options.seed,
            steps=options.steps,
            workers=options.threads,
            checkpointing=options.checkpointing,
            progress=lambda done, total, loss: show(done, total, f"loss {loss:.4f}"),
        )
    return 0


def _reinforce(options: argparse.Namespace) -> int:
    from ..train.rl import train

    refuse(options, ["chat_template_file"], "is of base alone")
    refuse(options, ["checkpointing"], "has no effect in rl")
    recipe = rl_recipe(options)
    with kept(lambda: _resumes(options)), progress_bar("rl", recipe.settings.iterations, "iterations") as bar:
        show = _Progress(bar, "iteration", every=1)

        def progress(done: int, total: int, measured: Mapping[str, float]) -> None:
            facts = ", ".join(f"{name} {measured[name]:.{digits}f}" for name, digits in _SHOWN.items())
            show(done, total, facts)

        train(options.out, options.model, recipe, seed=options.seed, workers=options.threads, progress=progress)
    return 0


_SHOWN = {"reward": 3, "correct": 3, "length": 1, "kl": 3}


def _resumes(options: argparse.Namespace) -> str:
    """Return what an interrupted run keeps, and the command that goes on."""
    from ..train.folder import saved_step

    step = saved_step(options.out, "iteration" if options.stage == "rl" else "step")
    unit = "iteration" if options.stage == "rl" else "step"
    return f"the same command resumes at {unit} {step + 1}: {options.line}" if step else f"no {unit} was done"


class _Progress:
    """A bar on a terminal; elsewhere a line every fifty steps, or as many as `every` says."""

    def __init__(self, bar: Bar, unit: str = "step", every: int = 50) -> None:
        self.bar, self.unit, self.every = bar, unit, every
        self.first: int | None = None
        self.since = self.started = time.perf_counter()

    def __call__(self, done: int, total: int, facts: str) -> None:
        if self.first is None:
            self.first = done
            self.bar.begin(done)
        self.bar.note = facts
        self.bar(done - self.bar.done)
        if not screen.shows_bars and (done % self.every == 0 or done == total):
            now = time.perf_counter()
            took, rest = now - self.since, (now - self.started) / (done - self.first + 1) * (total - done)
            line = f"{self.unit} {done} of {total}: {facts}, {took:.0f} s"
            print(line + (f", {rest:.0f} s left" if rest else ""), file=sys.stderr, flush=True)
            self.since = now
