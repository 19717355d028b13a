"""`qwq tokenize`: the token ids of a text with their pieces, or the text of ids. No weights, and no network."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import TemplateError, UsageError
from ..text_files import TOKENIZER
from .options import add_model_argument, add_prompt_arguments, refuse
from .prompt import read_text
from .screen import DIM, PLAIN, styles
from .spellings import NEUTRAL
from .streams import print_json, require_output
from .text_input import HYPHEN, LongText

if TYPE_CHECKING:
    from ..text import Tokenizer

_ADDED = "\x1b[36m"  # colour of added tokens: cyan
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", "'": "\\'"}
_IDS = re.compile(r"\s*\[?\s*(\d+(?:(?:\s*,\s*|\s+)\d+)*)?\s*,?\s*\]?\s*", re.ASCII)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_prompt_arguments(parser, "the text")
    parser.add_argument("--stdin", action="store_true", help="read the text from standard input, as without a text")
    add_model_argument(parser)
    what = parser.add_argument_group("what to print")
    what.add_argument("--ids", action="store_true", help="print the ids alone, as a list")
    what.add_argument("--show-count", action="store_true", help="print the number of tokens at the end")
    what.add_argument("--json", action="store_true", help="print one JSON object: ids, pieces, count")
    what.add_argument("--decode", action="store_true", help="the text is a list of ids: print what they spell")
    how = parser.add_argument_group("how to read the text")
    how.add_argument("--chat", action="store_true", help="put the text into the chat template, as a user's message")
    how.add_argument("--no-bos", action="store_true", help="without the token that begins a text, if the model has one")
    how.add_argument(
        "--parse-special",
        action="store_true",
        help="read added tokens in the text, such as <|im_end|>, as tokens; default: they are plain characters",
    )
    how.add_argument("--no-parse-special", action="store_false", dest="parse_special", help=argparse.SUPPRESS)
    parser.add_argument("--offline", action="store_true", help=argparse.SUPPRESS)  # it always is
    parser.add_argument(*NEUTRAL, dest="neutral", action="store_true", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    require_output()
    if options.decode:
        refuse(options, ["ids", "chat", "no_bos", "parse_special"], "has no effect with --decode")
    if options.chat:
        refuse(options, ["no_bos", "parse_special"], "has no effect with --chat")
    if options.stdin:
        if options.positional is not None or options.prompt is not None or options.file is not None:
            raise UsageError(None, "stdin", "does not go together with another text")
        options.positional = HYPHEN
    if options.chat:
        from ..text import start_templates

        start_templates()
    path = find_text(options.model)
    from ..engine.tokens import no_tokenizer
    from ..files import is_gguf
    from ..text import load_tokenizer

    if not is_gguf(path) and not os.path.lexists(path / TOKENIZER):
        raise no_tokenizer(path)
    tokenizer = load_tokenizer(path)
    if options.decode:
        _decode(options, tokenizer)
    else:
        _show(options, tokenizer, _pieces(options, tokenizer, path))
    return 0


def find_text(model: str) -> Path:
    """Return the folder or the GGUF file that holds the tokenizer of a model. Raises CheckpointError.

    Nothing is downloaded, and a folder needs neither weights nor a config.
    """
    from ..formats import resolve
    from ..formats.packed_folder import text_of

    folder = Path(model)
    if not (folder / TOKENIZER).is_file():
        folder = resolve(model, offline=True, weights=False)
    if folder.suffix == ".safetensors" and folder.is_file():
        folder = folder.parent
    return text_of(folder) if folder.is_dir() else folder


def _pieces(options: argparse.Namespace, tokenizer: Tokenizer, path: Path) -> Iterator[list[int]]:
    """Yield the ids of the text: those of a long one in several lists, of which one is held at a time."""
    if options.chat:
        from ..text import load_chat_template

        template = load_chat_template(path)
        if template is None:
            raise TemplateError(path, None, "has no chat template")
        yield template.encode(tokenizer, [{"role": "user", "content": read_text(options)}])
        return
    if not options.no_bos:
        yield tokenizer.begin([])
    if options.parse_special:
        yield tokenizer.encode(read_text(options), special=True)
        return
    from ..text.pieces import encode_pieces

    if options.file is not None and options.positional is None and options.prompt is None:
        with LongText(options.file) as text:
            yield from encode_pieces(tokenizer, text)
    else:
        yield from encode_pieces(tokenizer, [read_text(options)])


def _show(options: argparse.Namespace, tokenizer: Tokenizer, pieces: Iterable[list[int]]) -> None:
    total = 0
    if options.json:
        ids = [identity for piece in pieces for identity in piece]
        texts = [tokenizer.token_bytes(identity).decode("utf-8", errors="replace") for identity in ids]
        print_json({"model": options.model, "ids": ids, "pieces": texts, "count": len(ids)})
        return
    if options.ids:
        sys.stdout.write("[")
    width = len(str(tokenizer.size - 1))
    styled = styles(sys.stdout)
    added = {*tokenizer.added.values()} if styled else set()
    for piece in pieces:
        if options.ids:
            text = ", ".join(map(str, piece))
            sys.stdout.write(f", {text}" if text and total else text)
        else:
            for identity in piece:
                text = quoted(tokenizer.token_bytes(identity))
                if styled:
                    text = f"{_ADDED}{text}{PLAIN}" if identity in added else text
                    print(f"{DIM}{identity:>{width}}{PLAIN}  {text}")
                else:
                    print(f"{identity:>{width}}  {text}")
        total += len(piece)
    if options.ids:
        print("]")
    if options.show_count:
        print(f"{total} token{'' if total == 1 else 's'}")


def _decode(options: argparse.Namespace, tokenizer: Tokenizer) -> None:
    given = read_text(options)
    match = _IDS.fullmatch(given)
    if match is None or given.count("[") != given.count("]"):
        raise UsageError(None, "decode", "needs token ids, such as 1, 2, 3 or [1, 2, 3]")
    words = re.findall(r"\d+", match[1] or "")
    if any(len(word) > 10 for word in words):
        raise UsageError(None, "decode", f"id {max(words, key=len):.20} is not one of {tokenizer.size}")
    ids = [int(word) for word in words]
    text = tokenizer.decode(ids, skip_special=False)
    if options.json:
        print_json({"model": options.model, "ids": ids, "text": text, "count": len(ids)})
        return
    print(text)
    if options.show_count:
        print(f"{len(ids)} token{'' if len(ids) == 1 else 's'}")


def quoted(data: bytes) -> str:
    """Return the bytes of a token in quotes, on one line.

    Control characters are escaped, and so are other characters that print nothing, as \\u00a0. A byte that is only a
    part of a character is \\xe4.
    """
    return "'" + "".join(map(_escaped, data.decode("utf-8", errors="surrogateescape"))) + "'"


def _escaped(character: str) -> str:
    code = ord(character)
    if character in _NAMED:
        return _NAMED[character]
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if character.isprintable():
        return character
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
