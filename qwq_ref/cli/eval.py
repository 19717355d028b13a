"""`qwq eval`: measure the accuracy of a model on the recipe's 23 categories, with problems that no training saw."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..config import Config
from ..errors import NonFiniteError, QwqError, UsageError, did_you_mean
from ..forms import FILE, FORMS, KV_FORMS
from ..tables import Table
from . import eval_suite
from .cluster import add_ray_argument, check_ray, single_thread, wishes_of, workers_of
from .ending import kept
from .energy import Account, accounted, add_watts_argument, energy_of, line_of_all
from .options import (
    add_download_arguments,
    add_engine_arguments,
    add_model_argument,
    engine_choices,
    refuse,
    set_threads,
)
from .progress import Bar, progress_bar
from .sampling import facts_of, tell_sampling
from .screen import show, tell
from .streams import print_json, require_output
from .values import count, number, one_of, seed

if TYPE_CHECKING:
    from ..engine.model import Model
    from ..eval.accuracy import Answerer, Score
    from ..eval.pairs import Pairs
    from ..formats import Download
    from ..tasks import Problem

_PROMPT = 512  # tokens that a prompt may have; qwq-nano's have about 30

Row = TypeVar("Row")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "-n",
        "--problems",
        type=count,
        metavar="N",
        help="number of problems in each category (default 2000), or of a suite (default: all)",
    )
    parser.add_argument(
        "--categories", metavar="NAME,...", help="trained: the 23 of the recipe; default: these and harder ones"
    )
    parser.add_argument(
        "--against",
        type=_mode,
        metavar="WEIGHTS[+KV]",
        help="measure the accuracy lost against another mode, such as fp32, on the same problems",
    )
    parser.add_argument(
        "-s", "--seed", type=seed, default=0, metavar="N", help="seed of the problems and the answers (default 0)"
    )
    parser.add_argument(
        "--temp",
        dest="temperature",
        type=number(0),
        metavar="X",
        help="temperature; 0 takes the likeliest token; default: the model's",
    )
    parser.add_argument(
        "--max-tokens",
        type=count,
        metavar="N",
        help="most tokens of an answer (default 400; a suite has its own)",
    )
    eval_suite.add_arguments(parser)
    add_download_arguments(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_watts_argument(parser)
    add_ray_argument(parser, "share out the problems over machines")
    add_engine_arguments(parser)


def run(options: argparse.Namespace) -> int:
    if options.suite is not None:
        return eval_suite.run(options)
    require_output()
    eval_suite.refuse_own(options)
    options.problems, options.max_tokens = options.problems or 2000, options.max_tokens or 400
    set_threads(1)  # the worker threads use the cores
    choices = engine_choices(options)
    from ..tasks import CATEGORIES, FURTHER, HARDER

    named = {None: [*CATEGORIES, *HARDER], "trained": list(CATEGORIES)}
    chosen = named[options.categories] if options.categories in named else options.categories.split(",")
    there = (*CATEGORIES, *HARDER, *FURTHER)
    for name in chosen:
        if name not in there:
            near = did_you_mean(name, (*there, "trained"))
            raise UsageError(None, "categories", f"there is no {name!r}{near}; there are {', '.join(there)}")
    both = [choices]
    if options.against is not None:
        weights, kv = options.against
        both.append(choices | {"weights": weights, "kv": kv})
    check_ray(options)
    if options.ray is not None:
        return _over_machines(options, chosen)
    path = _located(options, both)
    model, *others = [_load(options, path, each) for each in both]
    tell_sampling(options, model, temperature=options.temperature)
    for other in others:
        other.told = True
    if others:
        return _pairs(options, model, others[0], chosen)
    with accounted(options) as account:
        return _scores(options, model, chosen, account)


def _over_machines(options: argparse.Namespace, chosen: Sequence[str]) -> int:
    """Measure with a process on each machine."""
    from ..cluster.load import whole_elsewhere
    from ..formats import read_config

    refuse(options, ["against"], "has no effect with --ray")
    wishes = wishes_of(options, None)
    wishes = dataclasses.replace(wishes, context=_context(options, read_config(wishes.path)))
    model, there = whole_elsewhere(wishes)
    tell_sampling(options, model, temperature=options.temperature)
    with workers_of(options, single_thread, there) as workers, accounted(options, False) as account:
        return _scores(options, model, chosen, account, workers)


def _mode(text: str) -> tuple[str, str | None]:
    """Return the weight form and the cache form of WEIGHTS[+KV]."""
    weights, plus, kv = text.partition("+")
    return one_of((*FORMS, FILE))["type"](weights), one_of(KV_FORMS)["type"](kv) if plus else None


def _scores(
    options: argparse.Namespace, model: Model, chosen: Sequence[str], account: Account, workers: Any = None
) -> int:
    from ..eval.accuracy import evaluate
    from ..tasks import CATEGORIES

    scores: list[Score] = []
    started = account.total()

    def measure(name: str, bar: Bar) -> Score:
        return evaluate(_answerer(model, options, bar, workers), model.tokenizer, name, options.problems, options.seed)

    stopped = _each(options, chosen, options.problems, measure, _SCORES, _row, scores)
    ended, tokens = account.total(), round(sum(score.tokens * score.n for score in scores))
    used = None if started is None or ended is None else ended - started
    main = [score for score in scores if score.category in CATEGORIES]
    mean = sum(score.accuracy for score in main) / max(1, len(main))
    above = sum(score.accuracy >= 0.9 for score in main)
    if options.json:
        energy = account.facts(**energy_of(used, tokens, "output_token"))
        _print_json(options, model, {"mean": mean, "at_least_90": above, "energy": energy}, scores, stopped)
    elif main:
        categories = "1 category" if len(main) == 1 else f"{len(main)} categories"
        show(f"mean of {categories} {mean:.1%}; {above} of them at 90% or more")
    if account.asked and stopped is None and not options.json:
        tell(line_of_all(account, used, tokens))
    return _ended(stopped)


def _pairs(options: argparse.Namespace, model: Model, other: Model, chosen: Sequence[str]) -> int:
    from ..eval.pairs import compare, pooled

    pairs: list[Pairs] = []

    def measure(name: str, bar: Bar) -> Pairs:
        first, second = _answerer(model, options, bar), _answerer(other, options, bar)
        return compare(first, second, model.tokenizer, name, options.problems, options.seed)

    stopped = _each(options, chosen, 2 * options.problems, measure, _PAIRS, _pairs_row, pairs)
    if options.json:
        whole = pooled(pairs, "all").row() if pairs else None
        _print_json(options, model, {"against": other.backend.description, "all": whole}, pairs, stopped)
    elif pairs:
        print(_pairs_row(pooled(pairs, "all")))
    return _ended(stopped)


def _each(
    options: argparse.Namespace,
    chosen: Sequence[str],
    answers: int,
    measure: Callable[[str, Bar], Row],
    table: Table,
    line: Callable[[Row], str],
    rows: list[Row],
) -> KeyboardInterrupt | QwqError | None:
    """Measure each category into `rows`, and print its line unless JSON is wanted.

    Returns the interruption or the error that ended it before the last category: the finished ones are kept.
    """
    with progress_bar("answers", answers * len(chosen), "answers") as bar:
        try:
            for number, name in enumerate(chosen):
                bar.says(name, number * answers)
                rows.append(measure(name, bar))
                if not options.json:
                    if len(rows) == 1:
                        print(table.line(table.headings))
                    print(line(rows[-1]), flush=True)
        except KeyboardInterrupt as stop:
            stop.add_note(f"{len(rows)} of {len(chosen)} categories were measured")
            return stop
        except QwqError as problem:
            return problem
    return None


def _ended(stopped: KeyboardInterrupt | QwqError | None) -> int:
    if stopped is not None:
        raise stopped
    return 0


class _HasRow(Protocol):
    def row(self) -> dict[str, Any]: ...


def _print_json(
    options: argparse.Namespace,
    model: Model,
    facts: dict[str, Any],
    categories: Sequence[_HasRow],
    stopped: KeyboardInterrupt | QwqError | None,
) -> None:
    asked = {
        "model": options.model,
        "path": str(model.path),
        "backend": model.backend.description,
        "n": options.problems,
        "seed": options.seed,
    }
    asked["sampling"] = facts_of(options, model, temperature=options.temperature)
    whole = {"complete": stopped is None, "categories": [one.row() for one in categories]}
    print_json(asked | facts | whole, indent=2)


_SCORES = Table(
    ("category", "n", "accuracy", "95% interval", "format", "loops", "switch", "tokens"),
    "<>>>>>>>",
    (15, 4, 8, 15, 6, 6, 6, 6),  # 80 columns
)
_PAIRS = Table(
    ("category", "n", "accuracy", "against", "lost", "gained", "loss", "95% interval"),
    "<>>>>>>>",
    (15, 4, 8, 7, 4, 6, 6, 16),  # 80 columns
)


def _row(score: Score) -> str:
    return _SCORES.line(
        (
            score.category,
            str(score.n),
            f"{score.accuracy:.1%}",
            f"{score.low:.1%} - {score.high:.1%}",
            f"{score.format:.1%}",
            f"{score.loops:.1%}",
            f"{score.switches:.1%}",
            f"{score.tokens:.1f}",
        )
    )


def _pairs_row(pairs: Pairs) -> str:
    return _PAIRS.line(
        (
            pairs.category,
            str(pairs.n),
            f"{pairs.accuracy:.1%}",
            f"{pairs.against:.1%}",
            str(pairs.lost),
            str(pairs.gained),
            f"{(pairs.lost - pairs.gained) / pairs.n:+.2%}",
            f"{pairs.low:+.1%} to {pairs.high:+.1%}",
        )
    )


def _context(options: argparse.Namespace, config: Config) -> int:
    most: int = _PROMPT + options.max_tokens
    return min(config.positions, most)


def _located(options: argparse.Namespace, both: Sequence[dict[str, Any]]) -> Path:
    """Return the folder or file of the model, which is downloaded only if all modes of it fit in memory together."""
    from ..engine.ahead import check_choices, check_small, default_backend, expected_memory
    from ..host.memory import require
    from .models import locate

    for choices in both:
        check_choices(**choices)

    def judge(download: Download) -> tuple[str, int]:
        context = _context(options, download.config)
        needs = [
            expected_memory(download, context=context, **{name: each[name] for name in ("backend", "weights", "kv")})
            for each in both
        ]
        require(dict(zip(("the model", "the other mode"), (size for _, size in needs), strict=False)), download.name)
        windowed = download.config.sliding_window is not None
        if windowed and any((each["backend"] or default_backend()) == "numpy" for each in both):
            raise _no_window(options)
        return needs[0][0], sum(size for _, size in needs)

    return locate(options, judge, lambda folder: check_small(folder, text=True, chat=True))


def _load(options: argparse.Namespace, path: Path, choices: dict[str, Any]) -> Model:
    from ..engine.loader import load
    from ..footprint import parameters
    from ..formats import read_config

    config = read_config(path)
    context = _context(options, config)
    # Each worker has a sequence of its own, on one thread.
    how = choices | {"threads": 1, "context": context, "offline": options.offline, "text": True}
    not_loaded = kept(lambda: "the model was not loaded yet")
    with not_loaded, progress_bar("loading", parameters(config), "weights") as progress:
        model = load(path, **how, progress=progress)
    if model.backend.tensors is not None and model.config.sliding_window is not None:
        raise _no_window(options)
    return model


def _no_window(options: argparse.Namespace) -> UsageError:
    return UsageError(options.model, "sliding_window", "is not supported by the batched sampler")


def _answerer(model: Model, options: argparse.Namespace, bar: Bar, workers: Any = None) -> Answerer:
    """Return a function that answers problems: NumPy all of a category at once, the core one a thread.

    workers  processes on other machines that answer; None: this one does

    The random draws are the same.
    """
    from ..host.limits import cpus
    from ..train.rollout import answers, answers_each, answers_over

    sampling = model.sampling(temperature=options.temperature)

    def answer(problems: Sequence[Problem]) -> list[tuple[list[int], bool]]:
        prompts = [model.prompt_ids(problem.prompt) for problem in problems]
        if (longest := max(map(len, prompts))) + options.max_tokens > model.context:
            raise UsageError(
                None, "max-tokens", f"{options.max_tokens} and a prompt of {longest} do not fit in {model.context}"
            )
        how = {
            "end_ids": [*model.end_tokens],
            "vocabulary": min(model.tokenizer.size, model.config.V),
            "never": model.tokenizer.holes,
            "max_tokens": options.max_tokens,
            "seed": options.seed,
            "workers": options.threads or cpus(),
            "progress": bar,
        }
        try:
            if workers is not None:
                said = answers_over(workers, prompts, sampling, **how | {"workers": 1})
            elif (tensors := model.backend.tensors) is not None:
                said = answers(model.config, tensors, prompts, sampling, **how)
            else:
                said = answers_each(model.backend, prompts, sampling, **how)
        except NonFiniteError as problem:
            where = f"{problems[0].category}, {problem.field}"
            raise NonFiniteError(model.path, where, problem.problem) from None
        return [(one.ids, one.ended) for one in said]

    return answer
