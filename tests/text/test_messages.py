"""Refuse what is not a conversation, and accept the forms that clients send."""

import json

import pytest

from qwq_ref.errors import TemplateError
from tests.support.conversations import CALLING, REPLY, USER


@pytest.mark.parametrize(
    ("messages", "tools", "wanted"),
    [
        ("hello", None, "messages: must be a list"),
        ([], None, "messages: must be a list"),
        ([USER, "hello"], None, "messages[1]: must be an object"),
        ([USER, USER, USER, {**USER, "role": "root"}], None, "messages[3].role: must be one of system, user"),
        ([{"content": "x"}], None, "messages[0].role"),
        ([{**USER, "role": ["user"]}], None, "messages[0].role"),
        ([{"role": "user"}], None, "messages[0].content: must be a string"),
        ([{"role": "user", "content": None}], None, "messages[0].content: must be a string"),
        ([{"role": "assistant", "content": None}], None, "messages[0].content: must be a string"),
        ([{"role": "user", "content": 5}], None, "messages[0].content: must be a string"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], None, "messages[0].content[0]: is not text"),
        ([{"role": "user", "content": ["x"]}], None, "messages[0].content[0]: is not text"),
        ([{**USER, "x": object()}], None, "messages[0].x: is a object, which JSON does not have"),
        ([{**USER, "x": {1: 2}}], None, "messages[0].x: has a key that is not a string"),
        ([{**USER, "tool_calls": "f"}], None, "messages[0].tool_calls: must be a list"),
        ([{**USER, "tool_calls": ["f"]}], None, "messages[0].tool_calls: must be a list"),
        ([USER], {"f": 1}, "tools: must be a list"),
        ([USER], ["f"], "tools[0]: must be an object"),
        ([{**USER, "x": json.loads("[" * 500 + "]" * 500)}], None, "is nested too deeply"),
    ],
)
def test_bad_messages(template, small, messages, tools, wanted):
    for use in (template.render, lambda *arguments: template.encode(small, *arguments)):
        with pytest.raises(TemplateError) as caught:
            use(messages, tools)
        assert wanted in str(caught.value)
        assert str(caught.value).isprintable()


def test_null_content_beside_tool_calls_and_text_parts(template):
    silent = {**CALLING, "content": None}
    assert template.render([USER, silent, REPLY]) == template.render([USER, {**CALLING, "content": ""}, REPLY])
    parts = [{"type": "text", "text": "a<"}, {"type": "text", "text": "b"}]
    assert template.render([{"role": "user", "content": parts}]) == template.render(
        [{"role": "user", "content": "a<b"}]
    )
