"""Tool calls in the text of an answer: every cut gives the same events, and text that is no call stays text."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.text import ChatTemplate
from qwq_ref.text.tools import Arguments, CallBegins, CallEnds, Content, ToolParser
from tests.support.small_tokenizer import TEMPLATE

SPACE = " \t\n\r"


def call(name="f", arguments='{"x": 1}'):
    return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>'


def read(text, cuts=(), sure=False):
    """(content, calls, events) of a text that is fed in pieces; a call is [name, arguments, complete]."""
    parser = ToolParser(sure=sure)
    events = []
    ends = [*sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    at = 0
    for end in ends:
        events += parser.feed(text[at:end])
        at = end
    events += parser.finish()
    content, calls = "", []
    for event in events:
        match event:
            case Content(words):
                assert words
                content += words
            case CallBegins(index, name):
                assert index == len(calls)
                calls.append([name, "", False])
            case Arguments(index, words):
                assert index == len(calls) - 1
                assert words
                calls[index][1] += words
            case CallEnds(index):
                assert index == len(calls) - 1
                calls[index][2] = True
    return content, calls, events


def reference(text):
    """(content, calls) of a whole text, by Python's own JSON reader."""
    content, calls, at, gap, trim = "", [], 0, "", False

    def say(words):
        nonlocal content, gap, trim
        words = words.lstrip(SPACE) if trim else words
        if words:
            content, gap, trim = content + gap + words, "", False

    while (start := text.find("<tool_call>", at)) >= 0:
        body = text[start + 11 :]
        found = whole_call(body)
        if found is None:
            say(text[at : start + 11])
            at = start + 11
        else:
            before = text[at:start].rstrip(SPACE)
            say(before)
            gap = gap or (text[at + len(before) : start] if content else "")
            calls.append([*found[:2], True])
            at, trim = start + 11 + found[2], True
    say(text[at:])
    return content, calls


def whole_call(body):
    def pairs(items):
        names = [name for name, _ in items]
        return {"twice" if names.count(name) > 1 and name in ("name", "arguments") else name: v for name, v in items}

    def refuse(word):
        raise ValueError(word)

    reader = json.JSONDecoder(object_pairs_hook=pairs, parse_constant=refuse)
    begin = len(body) - len(body.lstrip(SPACE))
    try:
        value, end = reader.raw_decode(body, begin)
    except ValueError:
        return None
    rest = body[end:].lstrip(SPACE)
    if not isinstance(value, dict) or "twice" in value or not rest.startswith("</tool_call>"):
        return None
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or not name or not isinstance(arguments, dict | str | None):
        return None
    if isinstance(arguments, str):
        try:
            if not isinstance(reader.decode(arguments), dict):
                return None
        except ValueError:
            return None
        given_as = arguments
    elif arguments is None:
        given_as = "{}"
    else:
        given_as = None  # the exact text: compared by value
    return name, given_as or json.dumps(arguments), len(body) - len(rest) + 12


def same(calls):
    return [[name, json.loads(arguments), whole] for name, arguments, whole in calls]


# --- what is a call ---------------------------------------------------------------------------------------------------


def test_text_before_between_and_after_calls():
    text = f"First.\n{call('a')}\n{call('b', '{}')}\nThen {call('c')} last."
    content, calls, events = read(text)
    assert content == "First.\nThen last."
    assert calls == [["a", '{"x": 1}', True], ["b", "{}", True], ["c", '{"x": 1}', True]]
    assert events[:4] == [Content("First."), CallBegins(0, "a"), Arguments(0, '{"x": 1}'), CallEnds(0)]


@pytest.mark.parametrize(
    "arguments",
    [
        "{}",
        '{ "a" :[1, {"b": "}"}],\n"c": -1.5e+3}',
        r'{"quote": "a \" } </tool_call> \\"}',
        '{"marker": "</tool_call> and <tool_call>"}',
        r'{"unicode": "\u00e9\ud83d\ude00 é😀"}',
        '{"twice": 1, "twice": 2}',
    ],
)
def test_arguments_are_the_exact_text_of_the_model(arguments):
    assert read(call("f", arguments))[:2] == ("", [["f", arguments, True]])


def test_arguments_as_json_text_before_the_name_or_missing():
    def only(body):
        return read(f"<tool_call>{body}</tool_call>")[:2]

    assert only(json.dumps({"name": "f", "arguments": '{"a": "é\\n"}'})) == ("", [["f", '{"a": "é\\n"}', True]])
    assert only('{"arguments": {"a": 1}, "id": [null], "name": "f"}') == ("", [["f", '{"a": 1}', True]])
    assert only('{"name": "f"}') == only('{"name": "f", "arguments": null}') == ("", [["f", "{}", True]])
    assert only(r'{"n\u0061me": "\u0066", "arguments": {}}') == ("", [["f", "{}", True]])


@pytest.mark.parametrize(
    "body",
    [
        "",
        "no JSON",
        "[]",
        '"f"',
        '{"name": "f", "arguments": {}',
        '{"name": "f", "arguments": {"a": 1,}}',
        "{'name': 'f'}",
        '{"name": "f", "arguments": {"a": NaN}}',
        '{"name": "f", "arguments": {"a": 01}}',
        '{"name": "f", "arguments": {"a": "\n"}}',
        '{"name": "f", "arguments": {"a": "\\x"}}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": 1}',
        '{"name": "f", "arguments": "no JSON"}',
        '{"name": "f", "arguments": "[1]"}',
        '{"name": 1, "arguments": {}}',
        '{"name": "", "arguments": {}}',
        '{"name": "\\ud800", "arguments": {}}',
        '{"name": "f", "arguments": "{\\"a\\": \\"\\ud800\\"}"}',
        '{"arguments": {}}',
        '{"name": "f", "name": "g", "arguments": {}}',
        '{"name": "f", "arguments": {}} more',
        '{"name": "f", "arguments": ' + '{"a": ' * 200 + "1" + "}" * 201,
    ],
)
def test_malformed_calls_are_content_unchanged(body):
    text = f"Before \n<tool_call>\n{body}\n</tool_call>\n after"
    assert read(text)[:2] == (text, [])
    content, calls, _ = read(text + call("g"))
    assert (content, [name for name, _, _ in calls]) == (text, ["g"])


def test_a_call_without_its_end_is_content():
    text = f"Now: {call()}"
    for end in range(len("Now: "), len(text)):
        assert read(text[:end])[:2] == (text[:end], [])


def test_a_second_marker_begins_a_call_where_the_first_is_text():
    assert read("Use <tool_call> so: " + call())[:2] == ("Use <tool_call> so:", [["f", '{"x": 1}', True]])
    assert read("<tool_call><tool_call" + call())[:2] == ("<tool_call><tool_call", [["f", '{"x": 1}', True]])


def test_the_calls_that_a_template_writes_are_read_back():
    wanted = [["weather", {"place": 'Ulm "</tool_call>"', "days": [1, 2]}], ["now", {}]]
    calls = [{"type": "function", "function": {"name": name, "arguments": values}} for name, values in wanted]
    template = ChatTemplate(TEMPLATE)
    spoken = {"role": "assistant", "content": "Let me see.", "tool_calls": calls}
    text = template.render([{"role": "user", "content": "x"}, spoken], add_generation_prompt=False)
    said = text.rpartition("<|im_start|>assistant\n")[2].partition("<|im_end|>")[0]
    assert said.count("<tool_call>") == 2
    content, found, _ = read(said)
    assert content == "Let me see."
    assert [[name, json.loads(arguments)] for name, arguments, _ in found] == wanted


# --- any cut ----------------------------------------------------------------------------------------------------------

PARTS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                "<tool_",
                "<",
                "\n",
                " ",
                "{",
                "}",
                '"',
                "\\",
                ":",
                ",",
                "text",
                "é",
                "[",
                "1",
            ]
        ),
        st.sampled_from(
            ['{"name": "f", "arguments": {"a": "', '"}}', '{"name": "g"', '"arguments": ', '"{\\"b\\": 1}"']
        ),
        st.builds(
            call,
            st.text(st.characters(codec="utf-8"), min_size=1, max_size=3),
            st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=2).map(json.dumps),
        ),
        st.text(st.sampled_from('<>/tool_call{}"\\ \nname:arguments,0'), max_size=20),
    ),
    max_size=8,
).map("".join)


@given(PARTS, st.lists(st.integers(0, 500), max_size=12))
def test_any_cut_gives_the_content_and_the_calls_of_the_whole_text(text, cuts):
    content, calls, _ = read(text)
    assert read(text, cuts)[:2] == (content, calls)
    assert read(text, range(len(text)))[:2] == (content, calls)
    wanted, wanted_calls = reference(text)
    assert content == wanted
    assert same(calls) == same(wanted_calls)


@given(PARTS, st.lists(st.integers(0, 500), max_size=12))
def test_any_cut_of_an_answer_that_is_sure_to_be_calls(text, cuts):
    whole = read(text, sure=True)[:2]
    assert read(text, cuts, sure=True)[:2] == whole
    assert read(text, range(len(text)), sure=True)[:2] == whole
    content, calls, _ = read(text)
    if len(calls) == text.count("<tool_call>"):  # nothing broke: both agree
        assert whole == (content, calls)


# --- as early as it is safe -------------------------------------------------------------------------------------------


def test_content_is_given_out_at_once_unless_it_may_begin_a_call():
    parser = ToolParser()
    assert parser.feed("Hello <b") == [Content("Hello <b")]
    assert parser.feed(" \n") == []
    assert parser.feed("<tool") == []
    assert parser.feed("box>") == [Content(" \n<toolbox>")]
    assert parser.feed('<tool_call>{"name": f') == []  # the word may still be a number: its end tells
    assert parser.feed(",") == [Content('<tool_call>{"name": f,')]


def test_a_call_is_sure_at_its_end_marker():
    parser = ToolParser()
    assert parser.feed(call()[:-1]) == []
    assert parser.feed(">") == [CallBegins(0, "f"), Arguments(0, '{"x": 1}'), CallEnds(0)]


def test_arguments_of_an_answer_that_is_sure_come_as_they_are_written():
    parser = ToolParser(sure=True)
    assert parser.feed('<tool_call>\n{"name": "f') == []
    assert parser.feed('", "argum') == [CallBegins(0, "f")]
    assert parser.feed('ents": {"te') == [Arguments(0, '{"te')]
    assert parser.feed('xt": "}') == [Arguments(0, 'xt": "}')]
    assert parser.feed('"} ') == [Arguments(0, '"}')]
    assert parser.feed("}\n</tool_call") == []
    assert parser.feed(">") == [CallEnds(0)]
    assert parser.finish() == []
    parser = ToolParser(sure=True)
    assert parser.feed('<tool_call>{"arguments": {"a": 1}, "name": "f"') == [
        CallBegins(0, "f"),
        Arguments(0, '{"a": 1}'),
    ]
    assert parser.feed("}</tool_call>") == [CallEnds(0)]


def test_a_sure_call_that_is_cut_off_has_no_end():
    assert read('<tool_call>{"name": "f", "arguments": {"a": "b', sure=True)[:2] == ("", [["f", '{"a": "b', False]])
    assert read('<tool_call>{"name": "f', sure=True)[:2] == ('<tool_call>{"name": "f', [])
