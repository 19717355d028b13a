"""The options of sampling, for every command that answers: they are the fields of `spec.Sampling`."""

from __future__ import annotations

import argparse
import re
from typing import Any

from .values import fraction, integer, number, unless

_FIELDS = (
    *("temperature", "top_k", "top_p", "min_p", "presence_penalty", "repetition_penalty", "steps"),
    *("frequency_penalty", "penalty_window", "typical_p", "top_n_sigma", "logit_bias"),
)
# Names of llama.cpp -> the step.
_STEPS = {
    **dict.fromkeys(("typ_p", "typ", "typical"), "typical_p"),
    **{"nucleus": "top_p", "temp": "temperature", "top_nsigma": "top_n_sigma"},
}
_BIAS = re.compile(r"([0-9]{1,18})(?:=(?=[-+0-9.])|(?=[-+]))([^=]*)")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options, and return their group in the help."""
    group = parser.add_argument_group("sampling", "Defaults come from the model's generation_config.json.")
    group.add_argument(
        "--temp", dest="temperature", type=number(0), metavar="X", help="temperature; 0 takes the likeliest token"
    )
    group.add_argument("--top-k", type=integer(0), metavar="N", help="keep the N likeliest tokens; 0 keeps all")
    group.add_argument(
        "--top-p",
        type=fraction,
        metavar="X",
        help="keep the fewest likeliest tokens whose probabilities sum to at least X; 1 keeps all",
    )
    group.add_argument(
        "--min-p",
        type=fraction,
        metavar="X",
        help="keep tokens whose probability is at least X times that of the likeliest; 0 keeps all",
    )
    group.add_argument(
        "--typical-p",
        type=fraction,
        metavar="X",
        help="keep the tokens of most typical surprise whose probabilities sum to at least X; 1 keeps all",
    )
    group.add_argument(
        "--top-n-sigma",
        type=unless("-1", number(0)),
        metavar="X",
        help="keep tokens whose logits are at most X standard deviations below the largest; 0 keeps all",
    )
    group.add_argument(
        "--presence-penalty",
        type=number(),
        metavar="X",
        help="subtract X from the logit of each token that the output contains: usually 0 to 2",
    )
    group.add_argument(
        "--frequency-penalty",
        type=number(),
        metavar="X",
        help="subtract X from the logit of each token as often as the output contains it: usually 0 to 2",
    )
    group.add_argument(
        "--repeat-penalty",
        dest="repetition_penalty",
        type=number(0),
        metavar="X",
        help="make the tokens of prompt and output less likely: divide positive logits by X, and multiply negative "
        "ones; 1 has no effect",
    )
    group.add_argument(
        "--repeat-last-n",
        dest="penalty_window",
        type=unless("-1", integer(1)),
        metavar="N",
        help="the three penalties see the last N tokens of prompt and output; default: all",
    )
    group.add_argument(
        "--logit-bias",
        type=bias,
        action="append",
        metavar="ID=X",
        help="add X to the logit of token ID, before all else; -inf excludes the token; may be repeated",
    )
    group.add_argument(
        "--samplers",
        dest="steps",
        type=steps,
        metavar="A,B,...",
        help="the steps and their order; default: penalties,temperature,top_n_sigma,top_k,top_p,min_p,typical_p",
    )
    return group


def sampling_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the sampling that was asked for; None where the model's own counts."""
    asked = {name: getattr(options, name) for name in _FIELDS}
    if asked["logit_bias"] is not None:
        asked["logit_bias"] = dict(asked["logit_bias"])
    return asked


def steps(text: str) -> tuple[str, ...]:
    """Return the names of steps between commas or semicolons, in their spelling here."""
    names = filter(None, re.split("[;,]", text.replace("-", "_")))
    return tuple(_STEPS.get(name, name) for name in names)


def bias(text: str) -> tuple[int, float]:
    """Return the id and the number of ID=X, or of ID+X or ID-X as llama.cpp writes it."""
    match = _BIAS.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be ID=X, such as 15043=-1.5, got {text[:60]}")
    return int(match[1]), float("-inf") if match[2] == "-inf" else number()(match[2])
