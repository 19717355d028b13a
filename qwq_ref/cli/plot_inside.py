"""The subjects of `qwq plot` that look inside a model: attention, residual, lens."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Config
from ..errors import UsageError
from ..host.limits import cpus
from .ending import kept
from .options import (
    add_download_arguments,
    add_model_argument,
    add_prompt_arguments,
    add_threads_argument,
    refuse,
    set_threads,
)
from .progress import progress_bar
from .prompt import read_prompt
from .values import count, integer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..formats import Download
    from ..plots.sheet import View
    from ..text import Tokenizer

_ANSWER = 100  # tokens of an answer without -n
_TOP = 5  # tokens that the lens lists
# Subject -> what it shows, in a few words and in a sentence or two.
SUBJECTS = {
    "attention": (
        "how much each head looks at each token",
        "Draw how much a token looks at the text before it: one row for each layer, or with --layer for each head. "
        "With --layer and --head, draw the whole matrix of one head.",
    ),
    "residual": (
        "how the residual stream grows from layer to layer",
        "Draw the root mean square of the residual stream after each layer, and what attention and the MLP add to it.",
    ),
    "lens": (
        "the likeliest next tokens after each layer",
        "Draw the logit lens: the next tokens that the model would say if it ended after each layer. With --token, "
        "list the five likeliest of one token.",
    ),
}


def add_arguments(parser: argparse.ArgumentParser, subject: str) -> None:
    add_prompt_arguments(parser)
    add_model_argument(parser)
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--chat", action="store_true", help="format the prompt with the chat template; default: if the model has one"
    )
    group.add_argument("--raw", action="store_true", help="take the prompt as plain text, without chat template")
    parser.add_argument(
        "--answer", action="store_true", help="add the model's answer to the text, of likeliest tokens (see -n)"
    )
    parser.add_argument(
        "-n", "--max-tokens", type=count, metavar="N", help=f"largest number of tokens of --answer (default {_ANSWER})"
    )
    if subject == "attention":
        parser.add_argument("--layer", type=integer(), metavar="N", help="the layer, from 0; -1 is the last")
        parser.add_argument("--head", type=integer(), metavar="N", help="the head, from 0; needs --layer")
    default = "all" if subject == "lens" else "the last one"
    parser.add_argument(
        "--token", type=integer(), metavar="N", help=f"the token, from 0; -1 is the last. Default: {default}"
    )
    add_threads_argument(parser)
    add_download_arguments(parser)


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """Return the data of a subject, as docs/inside.md describes them, and the model and the prompt."""
    set_threads(options.threads or cpus())
    layer, head = getattr(options, "layer", None), getattr(options, "head", None)
    if head is not None and layer is None:
        raise UsageError(None, "head", "needs --layer")
    if not options.answer:
        refuse(options, ["max_tokens"], "needs --answer")
    text = read_prompt(options)

    from ..formats import open_floats
    from ..inside import look
    from ..inside.look import steps
    from .models import locate

    def judge(download: Download) -> tuple[str, int]:
        if download.forms:
            raise UsageError(options.model, None, "is packed: take the model that it was made from")
        return _check(options, download.config)

    path = locate(options, judge)
    with open_floats(path) as weights:
        config = weights.config
        _check(options, config)
        tokenizer, ids = _prompt(options, weights.tokenizer, config, text)
        prompt = len(ids)
        if options.answer:
            ids = ids + _answer(options, path, config, text, ids)
        total = steps(config, [options.subject])
        with kept(lambda: "nothing was drawn"), progress_bar("looking", total, "steps") as progress:
            found = look(
                config,
                weights,
                ids,
                [options.subject],
                layers=None if layer is None else [layer],
                head=head,
                token=-1 if options.token is None else options.token,
                top=min(_TOP, config.V),
                prompt=prompt,
                model=path,
                progress=progress,
            )
    return {"model": options.model, "prompt": text, **found.to_dict(tokenizer)}


def words(facts: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the title of a picture, and all other texts that it may show."""
    texts = [token["text"] for token in facts["tokens"]] + [*facts.get("lens", {}).get("texts", {}).values()]
    return f"{Path(facts['model']).name}: {facts['prompt'].strip()}", texts


def draw(options: argparse.Namespace, facts: dict[str, Any], view: View) -> Figure:
    from ..plots import attention, lens, residual

    if options.subject == "attention":
        return attention.draw(facts, view)
    if options.subject == "residual":
        return residual.draw(facts, view)
    return lens.draw(facts, view, None if options.token is None else facts["token"])


def _check(options: argparse.Namespace, config: Config) -> tuple[str, int]:
    """Check options with a config, before a download -> the line and the bytes of memory. Raises a QwqError."""
    from ..host.memory import require, terms
    from ..inside import needs
    from ..inside.look import index

    for name, number in (("layer", config.L), ("head", config.H)):
        if getattr(options, name, None) is not None:
            index(name, getattr(options, name), number)
    parts = needs(config, 1, [options.subject])
    require(parts, options.model)
    return terms(parts), sum(parts.values())


def _prompt(options: argparse.Namespace, folder: Path, config: Config, text: str) -> tuple[Tokenizer, list[int]]:
    """Return the tokenizer of a model, and the ids of the prompt. Raises a QwqError."""
    from ..engine.ahead import no_template
    from ..engine.tokens import find_tokenizer, no_tokenizer
    from ..inside import MOST_TOKENS
    from ..text.template import load_chat_template

    tokenizer = find_tokenizer(folder, config.vocab_size)
    if tokenizer is None:
        raise no_tokenizer(folder)
    template = None if options.raw else load_chat_template(folder, None)
    if template is None:
        if options.chat:
            raise no_template(folder)
        ids = tokenizer.begin(tokenizer.encode(text))
    else:
        ids = template.encode(tokenizer, [{"role": "user", "content": text}])
    room = min(MOST_TOKENS, config.positions) - len(ids)
    if options.answer and room < (options.max_tokens or 1):
        problem = f"is too many behind a prompt of {len(ids)} tokens: {max(0, room)} more fit"
        raise UsageError(None, "max_tokens", problem)
    return tokenizer, ids


def _answer(options: argparse.Namespace, path: Path, config: Config, text: str, ids: list[int]) -> list[int]:
    """Return the ids with which the engine answers a prompt. Its memory is free again afterwards."""
    from ..engine.loader import load
    from ..footprint import parameters
    from ..inside import MOST_TOKENS

    most = min(options.max_tokens or _ANSWER, min(MOST_TOKENS, config.positions) - len(ids))
    with kept(lambda: "the model was not loaded yet"), progress_bar("loading", parameters(config), "weights") as told:
        model = load(path, threads=options.threads, context=len(ids) + most, progress=told)
    raw = options.raw or model.template is None
    generation = model.generate(text, raw=raw, max_tokens=most, temperature=0, seed=0)
    with kept(lambda: "nothing was drawn"), progress_bar("answering", most, "tokens") as told:
        before = 0
        for _ in generation:
            told(len(generation.run.output) - before)
            before = len(generation.run.output)
    return generation.run.output
