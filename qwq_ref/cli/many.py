"""Many prompts of `qwq generate`: they share each pass over the weights, and each gets a line of JSON."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import FileError, QwqError, UsageError
from .ending import deferred
from .energy import accounted, line_of_all
from .progress import progress_bar
from .report import report
from .screen import tell
from .streams import print_json, read_input, read_stream
from .text_input import HYPHEN, open_input, whole

if TYPE_CHECKING:
    from ..engine.generation import Generation
    from ..engine.model import Model

PARALLEL = 4  # prompts that share a pass where nobody asks for a number: each takes memory for its KV cache
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON's escapes can name half a character


def read_prompts(path: str) -> dict[int, str]:
    """Return the prompts in a file, one a line: number of the line -> prompt.

    Raises FileError, and UsageError for a file without any.
    """
    if path == HYPHEN:
        data = read_input()
    else:
        with open_input(path) as stream:
            data = read_stream(stream, path)
    lines = enumerate(whole(data, path).split("\n"), 1)
    prompts = {number: _prompt(line, number, path) for number, line in lines if line.strip()}
    if not prompts:
        raise UsageError(path, "prompts", "holds none: write one a line")
    return prompts


def _prompt(line: str, number: int, path: str) -> str:
    if not path.endswith(".jsonl"):
        return line
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise FileError(path, f"line {number}", "is not JSON") from None
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str) or not prompt.strip():
        raise FileError(path, f"line {number}", "must be a string, or an object with a prompt that is one")
    surrogate = _SURROGATE.search(prompt)
    if surrogate:
        raise FileError(path, f"line {number}", f"character {surrogate.start()} is a lone surrogate, not text")
    return prompt


def answer_all(options: argparse.Namespace, model: Model, lines: dict[int, str], settings: dict[str, Any]) -> int:
    """Print an object for each prompt, in their order, as soon as it and those before it are complete.

    lines  as `read_prompts` returns them
    """
    with accounted(options, options.verbose) as account:
        tokens = _answer_each(options, model, lines, settings)
        tell(f"{len(lines)} prompt{'' if len(lines) == 1 else 's'}, {tokens} output tokens")
        if account.asked:
            tell(line_of_all(account, account.total(), tokens))
    return 0


def _answer_each(options: argparse.Namespace, model: Model, lines: dict[int, str], settings: dict[str, Any]) -> int:
    """Print the answers -> the number of output tokens."""
    done: dict[int, Generation] = {}
    prompts = [*lines.values()]
    answers = _checked(options, model, lines, settings)
    printed, tokens = 0, 0
    with progress_bar("answering", len(prompts), "prompts") as bar:
        try:
            for number, generation in answers:
                done[number] = generation
                tokens += len(generation.run.output)
                bar(1)
                while printed in done:
                    with deferred():  # Ctrl-C in between would lose the answer, or print it twice
                        _print(options.model, model, printed, prompts[printed], done.pop(printed))
                        printed += 1
        except (KeyboardInterrupt, QwqError) as problem:
            for number, generation in sorted(done.items()):  # complete ones behind one that is not
                _print(options.model, model, number, prompts[number], generation)
            if isinstance(problem, KeyboardInterrupt):
                problem.add_note(f"{printed + len(done)} of {len(prompts)} prompts were answered")
            raise
    return tokens


def _checked(
    options: argparse.Namespace, model: Model, lines: dict[int, str], settings: dict[str, Any]
) -> Iterator[tuple[int, Generation]]:
    """Return the answers to come. Raises UsageError for a prompt that does not fit, with its line."""
    try:
        return model.generate_all(lines.values(), parallel=options.parallel, **settings)
    except UsageError as problem:
        found = re.fullmatch(r"prompt (\d+)", problem.field or "")
        if found is None:
            raise
        raise UsageError(options.prompts, f"line {[*lines][int(found[1])]}", problem.problem) from None


def _print(name: str, model: Model, number: int, prompt: str, generation: Generation) -> None:
    print_json(
        {"number": number, "prompt": prompt, "model": name} | report(model, generation, generation.run.finish_reason)
    )
    sys.stdout.flush()
