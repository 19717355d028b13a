"""The options of one answer, for every command that answers prompts: its end, its reasoning, its system prompt."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from .sampling_options import add_sampling_arguments, sampling_of
from .streams import argument_text
from .values import context_size, count, integer, one_of, seed, unless

_EFFORTS = ("none", "minimal", "low", "medium", "high")
_SETTINGS = (
    *("system", "raw", "suffix", "response_format", "max_tokens", "seed", "think_budget", "reasoning_effort"),
    *("stop", "logprobs", "loop_guard"),
)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the system prompt, and what limits or ends an output."""
    parser.add_argument("--system", metavar="TEXT", help="a system prompt")
    parser.add_argument(
        "-n",
        "--max-tokens",
        type=unless("-1", count),
        metavar="N",
        help="largest number of output tokens, reasoning included; default: until the model ends its answer",
    )
    parser.add_argument(
        "-r",
        "--stop",
        action="append",
        metavar="TEXT",
        help="end the answer where it contains TEXT, and leave TEXT out; reasoning may contain it; may be repeated",
    )
    parser.add_argument(
        "--loop-guard",
        type=lambda text: 0 if text == "off" else integer(2)(text),
        metavar="N",
        help="end an output whose last tokens came N times in a row; off: let it go on; default: 8",
    )


def add_context_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--ctx-size`."""
    parser.add_argument(
        "-c",
        "--ctx-size",
        type=unless("0", context_size),
        metavar="N",
        help="room for prompt and output, in tokens, such as 8192 or 8K; default: the model's whole context, or the "
        "largest half, quarter or smaller part that fits in memory",
    )


def add_template_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--chat-template-file`."""
    parser.add_argument("--chat-template-file", metavar="FILE", help="a Jinja template instead of the model's own")


def add_draw_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of sampling, and the seed."""
    sampling = add_sampling_arguments(parser)
    sampling.add_argument(
        "-s",
        "--seed",
        type=unless("-1", seed),
        metavar="N",
        help="the same seed gives the same answer; default: a random seed",
    )


def add_thinking_arguments(parser: argparse.ArgumentParser, shown: Iterable[str], what: str) -> None:
    """Add the options of reasoning.

    shown  the values of --think
    what   the help of --think
    """
    thinking = parser.add_argument_group("reasoning")
    thinking.add_argument("--think", **one_of(shown), default="show", help=what)
    thinking.add_argument(
        "--think-budget",
        type=unless("-1", integer(0)),
        metavar="N",
        help="end the reasoning after N tokens; 0: answer without reasoning; default: no limit",
    )
    thinking.add_argument(
        "--reasoning-effort",
        **one_of(_EFFORTS),
        help="a budget by name: none and minimal 0 tokens, low 1024, medium 4096, but at most a quarter or a half of "
        "the room for the output; high: no limit",
    )


def decode_texts(options: argparse.Namespace) -> None:
    """Decode the texts among the options: see `streams.argument_text`. Raises UsageError."""
    if options.system is not None:
        options.system = argument_text(options.system, "system")
    options.stop = options.stop and [argument_text(text, "stop") for text in options.stop]


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of `Model.prepare` that were asked for; None where a default counts."""
    return {name: getattr(options, name, None) for name in _SETTINGS} | sampling_of(options)
