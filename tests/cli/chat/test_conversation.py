"""A conversation as messages, as a file and as a page; and what a user has typed."""

import json

import pytest

from qwq_ref.cli.chat.conversation import ChatTurn, Dialogue, is_conversation, read_conversation
from qwq_ref.cli.chat.typed import command, is_whole, message, read_message
from qwq_ref.errors import FileError

TALK = Dialogue(
    [ChatTurn("1+1?", "2", "one and one", None, 7), ChatTurn("and\n你好", "", "", "stopped", 8)], "Be brief."
)


def test_the_messages():
    assert TALK.messages("next") == [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2", "reasoning_content": "one and one"},
        {"role": "user", "content": "and\n你好"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "next"},
    ]


def test_a_file_holds_all_of_it():
    data = json.dumps(TALK.to_json("m"), ensure_ascii=False).encode()
    assert read_conversation(data, "f") == TALK
    assert is_conversation(data)
    assert not is_conversation(b'{"model": 1}')


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"qwq_chat": 2}, "f: qwq_chat: must be 1"),
        ({"qwq_chat": True}, "f: qwq_chat: must be 1"),
        ({"system": 3}, "f: system: "),
        ({"turns": {}}, "f: turns: must be a list"),
        ({"turns": [3]}, "f: turns[0]: must be an object"),
        ({"turns": [{"answer": "x"}]}, "f: turns[0].user: is missing"),
        ({"turns": [{"user": "x", "answers": "x"}]}, "f: turns[0].answers: is not a field"),
        ({"turns": [{"user": None}]}, "f: turns[0].user: has a value of another kind"),
        ({"turns": [{"user": "x", "seed": -1}]}, "f: turns[0].seed: "),
        ({"turns": [{"user": "x", "seed": True}]}, "f: turns[0].seed: "),
        ({"turns": [{"user": "\ud800"}]}, "f: turns[0].user: "),
    ],
)
def test_a_file_that_is_wrong(change, problem):
    with pytest.raises(FileError) as caught:
        read_conversation(json.dumps(TALK.to_json("m") | change).encode(), "f")
    assert str(caught.value).startswith(problem)


def test_a_file_that_is_no_json():
    with pytest.raises(FileError, match="is not JSON"):
        read_conversation(b"hello", "f")


def test_the_page():
    page = TALK.markdown("m")
    assert page.startswith(
        "# A conversation with m\n\n## System\n\nBe brief.\n\n## User\n\n1+1?\n\n## Assistant\n\n<det"
    )
    assert page.endswith("and\n你好\n\n## Assistant\n\n*(stopped)*\n")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/help", ("help", "")),
        ("/SET temp  0.5 ", ("set", "temp  0.5")),
        ("/system a\nb", ("system", "a\nb")),
        ("/?", ("?", "")),
        ("/usr/bin is a folder", None),
        ("/ help", None),
        (" /help", None),
        ("what is /help?", None),
        ("/", None),
        ("//", None),
    ],
)
def test_commands_and_messages(text, found):
    assert command(text) == found


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        (["a", "", "b"], ["a", "", "b"]),
        (["a\\", "b\\", "c", "d"], ["a\nb\nc", "d"]),
        (['"""a', "b\\", 'c"""', "d"], ["a\nb\\\nc", "d"]),
        (['"""', "a", "", "b", '"""', "d"], ["a\n\nb", "d"]),
        (['"""a"""'], ["a"]),
        (['"""'], [""]),
        (['"""a'], ["a"]),
        (["a\\"], ["a"]),
        (['say """x', "b"], ['say """x', "b"]),
    ],
)
def test_lines_become_messages(lines, messages):
    left = iter(lines)
    found = []
    while (text := read_message(lambda goes_on: next(left, None))) is not None:
        found.append(text)
    assert found == messages


def test_a_block_is_whole_at_its_second_quotes():
    assert not is_whole('"""')
    assert not is_whole('"""""')
    assert is_whole('""""""')
    assert is_whole('"""a\n"""\n')
    assert is_whole('a"""')
    assert message('"""\na\n"""') == "a"
