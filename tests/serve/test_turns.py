"""The turns of a chat: deltas from the pieces of an answer, wherever these are cut."""

import asyncio

import pytest

from qwq_ref.engine.generation import Piece
from qwq_ref.serve.answers import TextPart
from qwq_ref.serve.turns import Said, Turn
from qwq_ref.text.tools import Arguments, CallBegins, CallEnds

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


class Answer:
    """An answer that says a text in pieces of some size, and notes that it is cancelled."""

    cut, cancelled = False, False

    def __init__(self, text, size):
        self._texts = [text[at : at + size] for at in range(0, len(text), size)]

    async def parts(self):
        for number, text in enumerate(self._texts):
            yield TextPart(Piece(text, "answer"), number, number + 1)

    def cancel(self):
        self.cancelled = True


def deltas(turn):
    async def collect():
        return [delta async for delta in turn.deltas()]

    return asyncio.run(collect())


@pytest.mark.parametrize("sure", [True, False])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_one_call_comes_whole_and_ends_the_answer(size, sure):
    """A call that is not sure comes all at once, with its end."""
    answer = Answer(f"{CALL}\n{CALL}", size)
    turn = Turn(answer, tools=True, sure=sure, one_call=True)
    found = deltas(turn)
    assert [each for each in found if not isinstance(each, Arguments)] == [CallBegins(0, "add"), CallEnds(0)]
    assert "".join(each.text for each in found if isinstance(each, Arguments)) == '{"a": 1}'
    assert answer.cancelled
    assert turn.finish_reason == "tool_calls"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_several_calls_and_text(size):
    answer = Answer(f"First {CALL}\n{CALL}", size)
    found = deltas(Turn(answer, tools=True))
    assert "".join(each.text for each in found if isinstance(each, Said)) == "First"
    assert [each.index for each in found if isinstance(each, CallEnds)] == [0, 1]
    assert not answer.cancelled
