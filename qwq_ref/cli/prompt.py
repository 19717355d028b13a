"""The text of a prompt: from the arguments, a file or standard input. The same bytes give the same text from each."""

from __future__ import annotations

import argparse
import sys

from ..errors import UsageError
from .options import given_once
from .streams import STDIN, argument_text, read_input, read_stream
from .text_input import HYPHEN, open_input, whole


def read_prompt(options: argparse.Namespace) -> str:
    """Return the prompt: the argument and the file, or standard input without either.

    Raises as `read_text`, and UsageError for a prompt of white space.
    """
    prompt = read_text(options)
    if not prompt.strip():
        raise UsageError(None, "prompt", "is empty")
    return prompt


def read_text(options: argparse.Namespace) -> str:
    """Return the text that `options.add_prompt_arguments` asks for, which may be empty.

    A hyphen as PROMPT or as the file is standard input. Raises UsageError, and FileError for text that cannot be read.
    """
    text = given_once(options, "prompt")
    parts = [] if text is None else [argument_text(text, "prompt")]
    if options.positional == HYPHEN:
        if options.file == HYPHEN:
            raise UsageError(None, "file", f"{HYPHEN} is standard input, which is the prompt already")
        parts = [whole(read_input(), STDIN)]
    if options.file == HYPHEN:
        parts.append(whole(read_input(), STDIN))
    elif options.file is not None:
        with open_input(options.file) as stream:
            parts.append(whole(read_stream(stream, options.file), options.file))
    if not parts:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError(None, "prompt", "is missing: give it as an argument, with -f, or on standard input")
        parts.append(whole(read_input(), STDIN))
    return "\n\n".join(parts)
