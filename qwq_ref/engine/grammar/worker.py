"""The child process that compiles a grammar before the caller does. `check.py` starts this file as a script.

Some short schemas need gigabytes or minutes: an intersection of patterns, a large `multipleOf`. llguidance limits each
step of an answer, but not all of this work, and it aborts its process where memory ends. So the operating system limits
this process. It reads grammars as a JSON list from stdin, and writes the number and the error of the first bad one.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from typing import Any

SECONDS, BYTES = 2, 1 << 29  # of the processor; of address space


class _Bytes:
    """A vocabulary of 256 bytes and an end token, as llguidance takes it."""

    is_tokenizer_wrapper = True
    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


def main() -> None:
    for what, limit in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, BYTES), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # the system has no such limit, or a lower one already
            resource.setrlimit(what, (limit, limit))
    sys.path += sys.argv[2:]  # the folder of llguidance: Python runs without site-packages here
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    grammars: list[str] = json.loads(sys.stdin.buffer.read())
    tokenizer: Any = LLTokenizer(_Bytes(), slices=[])  # type: ignore[arg-type]
    limits = LLParserLimits(**json.loads(sys.argv[1]))
    for number, grammar in enumerate(grammars):
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        problem = matcher.get_error()
        if not problem:
            matcher.compute_bitmask()
            problem = "no text fits it" if matcher.is_error() else ""
        if problem:
            print(json.dumps([number, problem]))
            return
    print("null")


if __name__ == "__main__":
    main()
