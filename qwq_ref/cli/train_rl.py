"""The options of `qwq train rl`, and the recipe that they make."""

from __future__ import annotations

import argparse
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import UsageError, did_you_mean
from .options import refuse
from .values import count, number, one_of

if TYPE_CHECKING:
    from ..train.rl import Recipe

_SETTINGS = ("advantages", "prompts", "group", "epochs", "minibatch", "clip", "kl", "entropy", "rate")
_OTHERS = ("categories", "reward", "max_tokens")


def add_rl_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reinforcement learning (rl)")
    group.add_argument(
        "--advantages", **one_of(["gae", "group"]), help="baseline: a value head, or the group's mean (GRPO)"
    )
    group.add_argument("--prompts", type=count, metavar="N", help="answers of an iteration")
    group.add_argument("--group", type=count, metavar="N", help="answers to each prompt")
    group.add_argument("--epochs", type=count, metavar="N", help="times that an iteration's answers are learnt")
    group.add_argument("--minibatch", type=count, metavar="N", help="answers of a step")
    group.add_argument("--clip", type=number(0), metavar="X", help="how far the ratio of probabilities moves from 1")
    group.add_argument("--kl", type=number(0), metavar="X", help="reward taken for each nat above the reference")
    group.add_argument("--entropy", type=number(0), metavar="X", help="weight of the entropy bonus")
    group.add_argument("--rate", type=number(0), metavar="X", help="learning rate")
    group.add_argument(
        "--categories", type=pairs(0), metavar="NAME:X,...", help="how often each category of problems is asked"
    )
    group.add_argument(
        "--reward", type=pairs(), metavar="NAME:X,...", help="what parts add: correct:1,format:0.1,...; 0 leaves out"
    )
    group.add_argument("--max-tokens", type=count, metavar="N", help="most tokens of an answer")


def pairs(least: float | None = None) -> Callable[[str], dict[str, float]]:
    """Return the type of lists such as `add3:1,gcd:2`. A name alone has the number 1."""
    value = number(least)

    def convert(text: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for each in text.split(","):
            name, colon, amount = each.partition(":")
            if not name or name in found:
                raise ArgumentTypeError(f"names {name!r} twice" if name else "has an empty name")
            found[name] = value(amount) if colon else 1.0
        return found

    return convert


def refuse_rl_arguments(options: argparse.Namespace) -> None:
    """Raise UsageError if an option of reinforcement learning was typed for another stage."""
    refuse(options, [*_SETTINGS, *_OTHERS], "is of rl alone")


def rl_recipe(options: argparse.Namespace) -> Recipe:
    """Return the recipe with the options that were typed. Raises UsageError."""
    from ..train.reward import PARTS
    from ..train.rl import Recipe, check

    recipe = Recipe()
    for name in options.reward or ():
        if name not in PARTS:
            problem = f"there is no part {name!r}{did_you_mean(name, PARTS)}; there are {', '.join(PARTS)}"
            raise UsageError(None, "reward", problem)
    typed = {name: getattr(options, name) for name in _SETTINGS if getattr(options, name) is not None}
    if options.steps is not None:
        typed["iterations"] = options.steps
    if options.advantages == "group":
        typed = {"group": 8, "warmup": 0} | typed
    recipe = replace(
        recipe,
        settings=replace(recipe.settings, **typed),
        reward=replace(recipe.reward, **(options.reward or {})),
        shares=options.categories or recipe.shares,
        max_tokens=options.max_tokens or recipe.max_tokens,
    )
    check(recipe)
    return recipe
