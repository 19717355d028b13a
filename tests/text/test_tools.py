"""What clients send beside tool calls: content null, arguments as JSON text, reasoning in a field of its own."""

import json

import pytest

from qwq_ref.errors import TemplateError
from qwq_ref.text import ChatTemplate
from tests.support.conversations import CALLING, USER
from tests.support.small_tokenizer import TEMPLATE

# In outline, the first templates of DeepSeek-R1-Distill: they ask for null, and expect arguments as text.
ASKS = """\
{%- for message in messages %}
    {%- if message['role'] == 'user' %}{{ '<|im_start|>' + message['content'] }}{% endif %}
    {%- if message['role'] == 'assistant' and message['content'] is none %}
        {%- for tool in message['tool_calls'] %}
            {{- '<tool_call>' + tool['function']['name'] + '\\n' + tool['function']['arguments'] + '</tool_call>' }}
        {%- endfor %}
    {%- endif %}
    {%- if message['role'] == 'assistant' and message['content'] is not none %}
        {%- set content = message['content'] %}
        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
        {{- content + '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
"""


def calling(arguments, **more):
    return {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}], **more}


# --- content: null ----------------------------------------------------------------------------------------------------


def test_a_template_that_asks_for_null_finds_it():
    template = ChatTemplate(ASKS)
    wanted = '<|im_start|>x<tool_call>f\n{"a":1}</tool_call>'
    for silent in ({"content": None}, {}):  # some clients leave the field out
        assert template.render([{"role": "user", "content": "x"}, calling('{"a":1}', **silent)]) == wanted
    assert template.render([{"role": "user", "content": "x"}, calling('{"a":1}', content="said")]) == (
        "<|im_start|>xsaid<|im_end|>"
    )


NULL = {
    "{{ c is none }}{{ c is not none }}{{ none is none }}": "TrueFalseTrue",
    "{{ c == none }}{{ none == c }}{{ c != none }}{{ c in [none] }}": "TrueTrueFalseTrue",
    "{{ c is string }}{{ c is iterable }}{{ c is sequence }}{{ c is mapping }}": "FalseFalseFalseFalse",
    "{{ c is defined }}{{ 'content' in messages[0] }}{{ messages[0].get('content') is none }}": "TrueTrueTrue",
    "{{ 'yes' if c }}{{ not c }}{{ c or 'x' }}{{ c | default('d', true) }}{{ c | default('d') }}": "Truexd",
    # What templates do that never met a null, and would fail or print "None":
    "[{{ c }}{{ c ~ 'a' }}{{ 'a' + c }}{{ c + 'a' }}{{ c | trim }}{{ c.strip() }}]": "[aaa]",
    "{{ c.split('</think>')[-1].lstrip('\n') }}{{ c | length }}{{ '<' in c }}{% for x in c %}x{% endfor %}": "0False",
    "{{ c | tojson }}{{ [c] | tojson }}{{ messages[0] | tojson }}": 'null[null]{"role": "assistant", '
    '"tool_calls": [{"function": {"name": "f", "arguments": {}}}], "content": null}',
}


@pytest.mark.parametrize("source", NULL)
@pytest.mark.parametrize("encode", [False, True])
def test_null_is_none_to_those_who_ask_and_empty_to_the_others(small, source, encode):
    template, messages = ChatTemplate("{% set c = messages[0].content %}|" + source), [calling({}, content=None)]
    text = small.decode(template.encode(small, messages)) if encode else template.render(messages)
    assert text == "|" + NULL[source]


def test_null_beside_no_call_is_refused(template):
    for calls in ({}, {"tool_calls": []}, {"tool_calls": None}):
        with pytest.raises(TemplateError, match=r"messages\[1\]\.content: must be a string"):
            template.render([USER, {"role": "assistant", "content": None, **calls}])


def test_null_beside_reasoning_is_an_answer_that_never_came(template):
    for name in ("reasoning_content", "reasoning", "thinking"):
        messages = [USER, {"role": "assistant", "content": None, name: "so"}, USER]
        assert template.render(messages) == template.render([USER, {"role": "assistant", "content": ""}, USER])


# --- Arguments as JSON text -------------------------------------------------------------------------------------------

SPELLED = {
    '{"city": "Paris", "n": [1, 2.5, null, true]}': {"city": "Paris", "n": [1, 2.5, None, True]},
    '{"query": "{\\"a\\": 1}"}': {"query": '{"a": 1}'},  # text within an object stays text
    ' {"é": "\\u00e9<think>"}\n': {"é": "é<think>"},
    "": {},
    "  ": {},
    "{}": {},
    '"{\\"a\\": 1}"': {"a": 1},  # encoded twice
    "[1, 2]": [1, 2],
    "5": 5,
    "null": None,
}


@pytest.mark.parametrize("text", SPELLED)
@pytest.mark.parametrize("flat", [False, True])
def test_json_text_is_the_object_that_it_spells(template, small, small_hf, text, flat):
    def conversation(arguments):
        call = {"name": "f", "arguments": arguments}
        return [USER, {"role": "assistant", "content": "", "tool_calls": [call if flat else {"function": call}]}]

    assert template.render(conversation(text)) == template.render(conversation(SPELLED[text]))
    assert template.encode(small, conversation(text)) == template.encode(small, conversation(SPELLED[text]))
    assert template.render(conversation(text)) == small_hf.apply_chat_template(
        conversation(SPELLED[text]), chat_template=TEMPLATE, tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("text", ["{", "{'a': 1}", "hello", '{"a": NaN}', '{"a": 1} {}', "[" * 99999, '"hello"'])
def test_what_is_no_json_is_refused(template, text):
    with pytest.raises(TemplateError) as caught:
        template.render([USER, calling("{}"), calling(text)])
    assert str(caught.value).startswith("messages[2].tool_calls[0].function.arguments: is n")


def test_arguments_are_an_object_or_text_as_the_template_takes_them(small):
    text = '{"a":1,  "text": "<think>"}'
    uses = {
        "{{ a | tojson }}": '{"a": 1, "text": "<think>"}',
        "{{ a is mapping }}{{ a is string }}{{ a.a }}{{ a.text }}{{ a | items | list | length }}": "TrueFalse1<think>2",
        "{% for k, v in a.items() %}{{ k }}={{ v }};{% endfor %}": "a=1;text=<think>;",
        "{{ 'x' + a + 'x' }}{{ a ~ '' }}{{ a }}{{ a | string }}": f"x{text}x{text}{text}{text}",
    }
    for source, wanted in uses.items():
        template = ChatTemplate("{% set a = messages[0].tool_calls[0].function.arguments %}" + source)
        messages = [calling(text, content=None)]
        assert template.render(messages) == wanted
        ids = template.encode(small, messages)
        assert small.decode(ids) == wanted
        assert small.think_start not in ids
    # An object serves a template that joins text, and prints as in transformers elsewhere.
    template = ChatTemplate("{% set a = messages[0].tool_calls[0].arguments %}{{ 'x' + a }}{{ a }}")
    messages = [{"role": "assistant", "content": "", "tool_calls": [{"arguments": {"é": 1}}]}]
    assert template.render(messages) == "x{\"é\": 1}{'é': 1}"


def test_several_calls_of_several_messages(small):
    calls = [{"id": str(n), "function": {"name": f"f{n}", "arguments": json.dumps({"n": n})}} for n in range(3)]
    messages = [USER, {"role": "assistant", "tool_calls": calls[:2]}, {**CALLING, "content": None}]
    messages.append({"role": "assistant", "tool_calls": calls[2:]})
    loop = "{% for m in messages %}{% for c in m.tool_calls %}{{ '' + (c.function or c).arguments }};{% endfor %}"
    arguments = json.dumps(CALLING["tool_calls"][0]["arguments"], ensure_ascii=False)
    wanted = f'{{"n": 0}};{{"n": 1}};{arguments};{{"n": 2}};'
    assert ChatTemplate(loop + "{% endfor %}").render(messages) == wanted


# --- Reasoning in a field ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_in_a_field_is_found_as_in_transformers(small, small_hf, name):
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}{% endfor %}"
        "{{ messages | tojson }}"
    )
    messages = [USER, {"role": "assistant", "content": "4", name: "two and two"}, USER]
    template = ChatTemplate(source)
    text = small_hf.apply_chat_template(messages, chat_template=source, tokenize=False)
    assert template.render(messages) == text
    assert template.encode(small, messages) == small.encode(text, special=True)
    messages[1][name] = "</think><|im_end|>"  # what it spells ends nothing
    ids = template.encode(small, messages)
    assert ids.count(small.think_end) == 1
    assert small.added["<|im_end|>"] not in ids
