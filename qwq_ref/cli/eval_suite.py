"""`qwq eval --suite`: measure a model on a suite of problems, with every answer kept in a file."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..tables import Table
from .ending import deferred, kept
from .options import engine_choices, refuse
from .progress import progress_bar
from .sampling import facts_of, tell_sampling
from .screen import show, tell
from .streams import print_json, require_output
from .values import count, integer, many, unless

if TYPE_CHECKING:
    from ..engine.model import Model
    from ..eval.suites.answers import Asked, ModelAnswerer
    from ..eval.suites.records import Record, Records
    from ..eval.suites.score import SuiteScore
    from ..eval.suites.suite import Suite

_OWN = ("data", "form", "samples", "out", "think_budget", "start", "end", "parallel", "lean")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of suites."""
    group = parser.add_argument_group("suites")
    group.add_argument(
        "--suite",
        metavar="NAME",
        help="ask the problems of a suite: humaneval, gsm8k, aime, livecodebench, livebench, ifeval, generated, or a "
        "file that ends in .jsonl; default: the recipe's categories",
    )
    group.add_argument(
        "--data", metavar="FILE", help="the problems of the suite; humaneval and generated have their own"
    )
    group.add_argument(
        "--form",
        metavar="NAME",
        help="the way to ask: evalplus, qwen, chat or raw for humaneval; default: evalplus, or chat for models that "
        "reason",
    )
    group.add_argument("-k", "--samples", type=count, metavar="N", help="answers to each problem (default 1)")
    group.add_argument(
        "-o", "--out", metavar="FILE", help="keep every answer in FILE. The same command goes on behind those there"
    )
    group.add_argument(
        "--think-budget",
        type=unless("-1", many(integer(0))),
        metavar="N,...",
        help="end the reasoning after N tokens; several numbers ask every problem under each",
    )
    group.add_argument("--from", dest="start", metavar="DATE", help="problems of DATE or later, such as 2024-10-01")
    group.add_argument("--to", dest="end", metavar="DATE", help="problems of DATE or earlier")
    group.add_argument(
        "--lean", metavar="FILE", help="JSON that names the programs of Lean, for the proofs of generated"
    )
    group.add_argument("-np", "--parallel", type=count, metavar="N", help="answers that share a pass (default 16)")


def refuse_own(options: argparse.Namespace) -> None:
    """Raise UsageError for an option of suites without a suite."""
    refuse(options, _OWN, "needs --suite")


def run(options: argparse.Namespace) -> int:
    refuse(options, ("categories", "against", "ray", "watts"), "does not go together with --suite")
    if options.out is None:
        require_output()
    from ..eval.suites import open_suite
    from ..eval.suites.records import Records
    from ..eval.suites.run import questions
    from ..eval.suites.run import run as ask

    own = {name: getattr(options, name) for name in ("form", "start", "end", "lean")}
    suite = open_suite(options.suite, options.data, **own)
    if suite.note:
        tell(f"qwq: {suite.note}")
    choices = engine_choices(options)
    model = _load(options, choices, chat=not suite.form.raw)
    if options.form is None and suite.form.begun and _reasons(model):
        suite = open_suite(options.suite, options.data, form="chat")
    tell_sampling(options, model, temperature=options.temperature)
    budgets = options.think_budget or [None]
    asked = questions(suite, options.samples or 1, budgets, options.seed, options.problems)
    answerer = _answerer(options, model, suite, asked)
    with Records(options.out, _facts(options, model, suite, answerer)) as records:
        earlier = sum(one.key in records.all for one in asked)
        with progress_bar("answering", len(asked), "answers") as bar:
            bar.begin(earlier)
            told = _Told(records, asked, bar)
            with kept(lambda: f"{told.done} of {len(asked)} answers are kept" if options.out else "nothing is kept"):
                found = ask(suite, answerer, asked, records, told)
    _print(options, suite, model, found, earlier, _facts(options, model, suite, answerer))
    return 0


class _Told:
    """Counts answers as they come, and shows the score so far beside the bar."""

    def __init__(self, records: Records, asked: Sequence[Asked], bar: Any) -> None:
        there = [records.all[one.key].values["correct"] for one in asked if one.key in records.all]
        self.done, self.correct, self._bar = len(there), sum(there), bar

    def __call__(self, one: Record) -> None:
        with deferred():
            self.done += 1
            self.correct += one.values["correct"]
            self._bar.note = f"{self.correct / self.done:.1%} correct"
        self._bar(1)


def _load(options: argparse.Namespace, choices: dict[str, Any], chat: bool) -> Model:
    """Load the model with as much context as fits. The scheduler runs as many answers at a time as fit, too."""
    from .loading import load_model

    running, options.parallel = options.parallel, None
    options.rope_scaling = options.max_memory = None
    model = load_model(options, choices, None, chat=chat)
    options.parallel = running
    return model


def _answerer(options: argparse.Namespace, model: Model, suite: Suite, asked: Sequence[Asked]) -> ModelAnswerer:
    """Check that every prompt fits, and return what answers them.

    Without --max-tokens, the limit of an answer is the suite's, or what the model has behind the longest prompt if that
    is less.
    """
    from ..eval.suites.answers import RUNNING, ModelAnswerer

    made = functools.partial(
        ModelAnswerer,
        model,
        suite.form,
        sampling={"temperature": options.temperature},
        running=options.parallel or RUNNING,
    )
    least = made(options.max_tokens or 1)
    longest = max(len(least.prepare(one).run.prompt) for one in asked if one.sample == 0)
    return made(options.max_tokens or min(suite.max_tokens, model.config.positions - longest))


def _reasons(model: Model) -> bool:
    """Return whether the template opens reasoning: then the model begins its answers itself."""
    from ..text import prompt_is_thinking

    return prompt_is_thinking(model.prompt_ids("?"), model.tokenizer)


def _facts(options: argparse.Namespace, model: Model, suite: Suite, answerer: ModelAnswerer) -> dict[str, Any]:
    """Return whatever decides the answers, beside the tasks, samples and budgets: a file of answers keeps to it."""
    sampling = facts_of(options, model, temperature=options.temperature)
    sampling.pop("from")
    return {
        "suite": suite.name,
        **suite.facts,
        "model": model.backend.identity(),
        "max_tokens": answerer.max_tokens,
        "seed": options.seed,
        "sampling": sampling,
    }


_SCORES = Table(
    ("suite", "budget", "n", "pass@1", "95% interval", "tokens", "reasoning", "cut"),
    "<>>>>>>>",
    (14, 6, 5, 7, 15, 7, 9, 5),
)


def _print(
    options: argparse.Namespace,
    suite: Suite,
    model: Model,
    found: Sequence[Record],
    earlier: int,
    facts: dict[str, Any],
) -> None:
    from ..eval.suites.score import scores

    rows = scores(suite.name, found)
    if options.json:
        print_json(
            {
                "model": options.model,
                "path": str(model.path),
                "backend": model.backend.description,
                "run": facts,
                "earlier": earlier,
                "scores": [row.row() for row in rows],
            },
            indent=2,
        )
        return
    print(_SCORES.text([_row(row) for row in rows]))
    for row in rows:
        further = [f"pass@{k} {share:.1%}" for k, share in row.passed.items() if k > 1]
        further += [f"{name} {share:.1%}" for name, share in row.parts.items()]
        if row.by_group is not None:
            further.append(f"mean over categories {row.by_group:.1%}")
        if further:
            show(f"{row.name}{'' if row.budget is None else f', {row.budget} tokens'}: {', '.join(further)}")


def _row(row: SuiteScore) -> tuple[str, ...]:
    return (
        row.name,
        "" if row.budget is None else str(row.budget),
        str(row.n),
        f"{row.passed[1]:.1%}",
        f"{row.low:.1%} - {row.high:.1%}",
        f"{row.tokens:.1f}",
        f"{row.reasoning_tokens:.1f}",
        f"{row.cut:.1%}",
    )
