"""Where the reasoning ends and the answer begins, told by token id alone.

QwQ's template opens the reasoning inside the prompt, so the output holds only `</think>`. Plain tokens that spell
"</think>" are something the model wrote *about* the marker; they switch nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from .tokenizer import Tokenizer

Part = Literal["thinking", "answer", "marker"]


def prompt_is_thinking(prompt_ids: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether a prompt ends inside reasoning: its last turn has a <think> that is not closed.

    A special token, such as <|im_start|>, begins or ends a turn: reasoning left open before it is over.
    """
    for identity in reversed(prompt_ids):
        if identity == tokenizer.think_start:
            return True
        if identity == tokenizer.think_end or identity in tokenizer.special:
            return False
    return False


class ThinkingSplitter:
    """Says of each generated id whether it is reasoning, answer, or one of the two markers.

    thinking  the state before the first id, which is `prompt_is_thinking` of the prompt; afterwards the current one
    """

    def __init__(self, tokenizer: Tokenizer, thinking: bool) -> None:
        self._tokenizer = tokenizer
        self.thinking = thinking

    def feed(self, identity: int) -> Part:
        if identity == self._tokenizer.think_start:
            self.thinking = True
            return "marker"
        if identity == self._tokenizer.think_end:
            self.thinking = False
            return "marker"
        return "thinking" if self.thinking else "answer"


def split_thinking(ids: Iterable[int], tokenizer: Tokenizer, thinking: bool) -> tuple[list[int], list[int]]:
    """Generated ids -> (those of the reasoning, those of the answer), without the markers."""
    splitter = ThinkingSplitter(tokenizer, thinking)
    parts: dict[Part, list[int]] = {"thinking": [], "answer": [], "marker": []}
    for identity in ids:
        parts[splitter.feed(identity)].append(identity)
    return parts["thinking"], parts["answer"]
