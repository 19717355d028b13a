"""`qwq eval`: how good a model is at the recipe's 23 categories, on problems that no training has seen."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .options import add_model_argument, progress_bar, set_threads

if TYPE_CHECKING:
    from ..engine.model import Model
    from ..train.evaluate import Score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument("-n", type=int, default=2000, metavar="N", help="problems a category (default 2000)")
    parser.add_argument("--categories", metavar="A,B,...", help="default: the 23, then the harder variants")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the problems and of the answers")
    parser.add_argument("--temp", type=float, metavar="X", help="default: the model's own; 0 takes the likeliest token")
    parser.add_argument("--max-tokens", type=int, default=400, metavar="N", help="longest answer (default 400)")
    parser.add_argument("-t", "--threads", type=int, default=2, metavar="N", help="threads that share the problems")
    parser.add_argument("--offline", action="store_true", help="download nothing")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    set_threads(1)  # the workers own the cores
    for name in ("n", "max_tokens", "threads"):
        if getattr(options, name) < 1:
            raise UsageError(None, name.replace("_", "-"), f"must be at least 1, got {getattr(options, name)}")
    from ..engine.model import load
    from ..train.evaluate import evaluate
    from ..train.tasks import CATEGORIES, HARDER

    chosen = options.categories.split(",") if options.categories else [*CATEGORIES, *HARDER]
    for name in chosen:
        if name not in (*CATEGORIES, *HARDER):
            raise UsageError(None, "categories", f"there is no {name!r}; there are {', '.join((*CATEGORIES, *HARDER))}")
    model = load(options.model, backend="numpy", offline=options.offline)  # the sampler is batched, in NumPy
    if model.config.sliding_window is not None:
        raise UsageError(options.model, "sliding_window", "is not supported by the batched sampler")
    answerer = _answerer(model, options)
    scores = []
    with progress_bar("categories", len(chosen), "category") as bar:
        for name in chosen:
            scores.append(evaluate(answerer, model.tokenizer, name, options.n, options.seed))
            bar(1)
            if not options.json:
                if len(scores) == 1:
                    print(_HEADER)
                print(_row(scores[-1]), flush=True)
    main = [score for score in scores if score.category in CATEGORIES]
    mean = sum(score.accuracy for score in main) / max(1, len(main))
    above = sum(score.accuracy >= 0.9 for score in main)
    if options.json:
        report = {"model": options.model, "n": options.n, "seed": options.seed, "mean": mean, "at_least_90": above}
        print(json.dumps(report | {"categories": [score.row() for score in scores]}, indent=2))
    elif main:
        print(f"mean of {len(main)} categories {mean:.1%}; {above} of them at 90% or more")
    return 0


_HEADER = (
    f"{'category':<18}{'n':>6}{'accuracy':>10}{'95% interval':>18}{'format':>9}{'loops':>8}{'switch':>8}{'tokens':>8}"
)


def _row(score: Score) -> str:
    interval = f"{score.low:.1%} - {score.high:.1%}"
    return (
        f"{score.category:<18}{score.n:>6}{score.accuracy:>10.1%}{interval:>18}{score.format:>9.1%}"
        f"{score.loops:>8.1%}{score.switches:>8.1%}{score.tokens:>8.1f}"
    )


def _answerer(model: Model, options: argparse.Namespace) -> Any:
    """All problems of a category at once, through the batched sampler."""
    from ..engine.model import NumpyBackend
    from ..train.rollout import answers
    from ..train.tasks import Problem

    how = model.sampling(temperature=options.temp)
    assert isinstance(model.backend, NumpyBackend)
    weights = model.backend.weights

    def answer(problems: Sequence[Problem]) -> list[tuple[list[int], bool]]:
        said = answers(
            model.config,
            weights,
            [model.prompt_ids(problem.prompt) for problem in problems],
            how,
            end_ids=model.defaults.eos_token_ids,
            vocabulary=min(model.tokenizer.size, model.config.V),
            max_tokens=options.max_tokens,
            seed=options.seed,
            workers=options.threads,
        )
        return [(one.ids, one.ended) for one in said]

    return answer
