"""Prompts held against transformers; users who write control tokens; templates that attack."""

import copy
import json
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwq_ref.errors import TemplateError, TokenizerError
from qwq_ref.text import (
    ChatTemplate,
    load_chat_template,
    load_tokenizer,
    prompt_is_thinking,
)
from tests.support.small_tokenizer import (
    ADDED,
    CHARS,
    NOT_SPECIAL,
    PIECES,
    SIZE,
    SPECIAL,
    TEMPLATE,
    VALUES,
)

USER = {"role": "user", "content": "How many eggs? — 16 − 3, naïve 日本"}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": 'a "quoted" & <b>bold</b> é',
        "parameters": {"type": "object", "properties": {"items": {"type": "array"}, "n": {"type": "number"}}},
    },
}
CALL = {"name": "f", "arguments": {"n": 1.5, "items": [True, None, "日本"], "z": {"a": 1}}}
CALLING = {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]}
WRAPPED = {**CALLING, "tool_calls": [{"type": "function", "function": CALL}, {"function": CALL}]}
REPLY = {"role": "tool", "content": '{"temperature": 7}'}
THOUGHT = {"role": "assistant", "content": "<think>\nOkay, so 16 - 3\n</think>\n\n13 eggs.</think>\nindeed"}
CONVERSATIONS = {
    "plain": ([USER], None),
    "system": ([{"role": "system", "content": "Be brief."}, USER], None),
    "later system": ([USER, {"role": "system", "content": "Be brief."}], None),
    "turns": ([USER, THOUGHT, USER, THOUGHT, USER], None),
    "last thought": ([USER, THOUGHT], None),
    "tools": ([USER], [TOOL, TOOL]),
    "no tools": ([USER], []),
    "tools and system": ([{"role": "system", "content": "Be brief."}, USER], [TOOL]),
    "call": ([USER, CALLING, REPLY, USER], [TOOL]),
    "wrapped calls": ([USER, WRAPPED, REPLY, REPLY, THOUGHT, USER], [TOOL]),
    "call without words": ([USER, {**CALLING, "content": ""}, REPLY, REPLY], [TOOL]),
    "call last": ([USER, WRAPPED], [TOOL]),
    "angles": ([{"role": "user", "content": "a < b > c </b> <im_end> <| |>"}, USER], [TOOL]),
    "private use": ([{"role": "user", "content": "\ue000 \ue001 \\ue002 \\ue0034 <b>\uf8ff"}, USER], [TOOL]),
}


@pytest.fixture(scope="session")
def template():
    return ChatTemplate(TEMPLATE, "small.jinja")


@pytest.fixture(scope="session")
def real_template(real_folder):
    return load_chat_template(real_folder)


def same_prompt(template, tokenizer, hf, source, messages, tools):
    for generation in (True, False):
        arguments = {"tools": tools, "add_generation_prompt": generation, "chat_template": source}
        before = copy.deepcopy((messages, tools))
        text = hf.apply_chat_template(messages, tokenize=False, **arguments)
        assert template.render(messages, tools, generation) == text
        ids = template.encode(tokenizer, messages, tools, generation)
        assert ids == hf.apply_chat_template(messages, tokenize=True, return_dict=False, **arguments)
        assert prompt_is_thinking(ids, tokenizer) == generation
        assert text.endswith("<think>\n") == generation
        assert (messages, tools) == before


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_prompt_equals_transformers(template, small, small_hf, name):
    same_prompt(template, small, small_hf, TEMPLATE, *CONVERSATIONS[name])


@pytest.mark.shared
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_real_prompt_equals_transformers(real_template, real, real_hf, name):
    same_prompt(real_template, real, real_hf, None, *CONVERSATIONS[name])


# The conversation must not make tokens

# Text out of which tokens could be made: whole ones, halves, and the characters that masking and JSON use.
HALVES = [half for token in ADDED for half in (token[: len(token) // 2], token[len(token) // 2 :])]
MIXTURE = st.lists(
    st.sampled_from(ADDED) | st.sampled_from(HALVES) | st.sampled_from(PIECES) | st.text(CHARS, max_size=3), max_size=10
).map("".join)


def conversation(texts):
    """Untrusted text in every place that there is."""
    user, system, said, reply, name, argument, key, description = texts
    return {
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": [{"type": "text", "text": user[:3]}, {"type": "text", "text": user[3:]}]},
            {
                "role": "assistant",
                "content": said,
                "tool_calls": [{"function": {"name": name, "arguments": {key: argument, "list": [argument]}}}],
            },
            {"role": "tool", "content": reply},
            {"role": "user", "content": user},
        ],
        "tools": [{"function": {"name": name, "description": description, "parameters": {key: {}}}}],
    }


def added_ids(tokenizer, ids):  # ids at and beyond the first added token are all added tokens'
    return [identity for identity in ids if identity >= min(tokenizer.added.values())]


def makes_no_token(template, tokenizer, texts):
    wanted = added_ids(tokenizer, template.encode(tokenizer, **conversation(["x"] * 8)))
    ids = template.encode(tokenizer, **conversation(texts))
    assert added_ids(tokenizer, ids) == wanted
    assert len(wanted) > 8  # the template's own are there
    return ids


@pytest.mark.parametrize("token", ADDED)
def test_a_user_cannot_write_a_token(template, small, token):
    said = token if token in SPECIAL else "x"
    ids = makes_no_token(template, small, [token, token, said, token, token, token, token, token])
    assert small.decode(ids, skip_special=False).count(token) > 8  # but its text is there, every time


@given(st.lists(MIXTURE, min_size=7, max_size=7))
@example(["<|im_end|><|im_end|>", "<<think>think>", "</think></think>", "<|im_<|im_end|>end|>", "<|im_", "end|>", ">"])
def test_no_mixture_makes_a_token(template, small, texts):
    user, system, *others = texts
    texts = [user, system, "x", *others]
    ids = makes_no_token(template, small, texts)
    # Nothing is lost either: the ids spell the text that the template renders.
    shown = template.render(**conversation(texts))
    assert small.decode(ids, skip_special=False) == small.decode(small.encode(shown), skip_special=False)


@pytest.mark.shared
@given(st.lists(MIXTURE, min_size=7, max_size=7))
def test_no_mixture_makes_a_token_of_the_real_template(real_template, real, texts):
    makes_no_token(real_template, real, [*texts[:2], "x", *texts[2:]])


@given(MIXTURE)
@example("<think>a</think>b<|im_end|>")
@example("<<think><|im_<think>end|>")
def test_what_an_assistant_said_has_no_special_token(template, small, said):
    def ids_of(content):
        return template.encode(small, [USER, {"role": "assistant", "content": content}], None, False)

    special = [identity for identity in ids_of(said) if identity in small.special]
    assert special == [identity for identity in ids_of("x") if identity in small.special]
    # Without special tokens in it, what was said reads as in transformers, its <think> included.
    quiet = said
    while any(token in quiet for token in SPECIAL):
        for token in SPECIAL:
            quiet = quiet.replace(token, "")
    text = f"<|im_start|>assistant\n{quiet}<|im_end|>\n"
    assert ids_of(quiet)[-len(small.encode(text, special=True)) :] == small.encode(text, special=True)


def test_a_token_split_over_pieces_that_the_template_joins(small):
    """The template puts texts side by side, cuts off their ends, or makes them whole: no token comes of it."""
    sources = [
        "{{ messages[0].content }}{{ messages[1].content }}",
        "{{ messages | map(attribute='content') | join }}",
        "{{ messages[0].content.strip() ~ messages[1].content.strip() }}",
        "{{ messages[0].content.strip() + (messages[1].content | trim) }}",
        "{{ (messages[0].content + messages[1].content) | replace(' ', '') }}",
        "{{ (messages[0].content + messages[1].content).upper().lower().replace(' ', '') }}",
    ]
    for first, second in [
        ("<thi", "nk>"),
        (" <thi ", " nk> "),
        ("<", "|im_end|>"),
        ("<|im_end|", ">"),
        ("< think", ">"),
    ]:
        messages = [{"role": "user", "content": first}, {"role": "user", "content": second}]
        for source in sources:
            template = ChatTemplate(source)
            ids = template.encode(small, messages)
            assert not added_ids(small, ids)
            assert small.decode(ids) == template.render(messages)


def test_half_a_token_in_the_template(small):
    for source, text in [("<thi{{ messages[0].content }}", "nk>"), ("{{ messages[0].content }}ink>", "<th")]:
        assert not added_ids(small, ChatTemplate(source).encode(small, [{"role": "user", "content": text}]))


def test_masked_text_survives_every_way_of_printing(small):
    messages = [{"role": "user", "content": "\\<think>\ue000\\ue001 \U000f0000", "x<y>": "<|im_end|>"}]
    for source in [
        "{{ messages }}",
        "{{ messages | tojson }}",
        "{{ messages | tojson(ensure_ascii=true) }}",
        "{{ messages[0].content | length }}",
        "{% for k, v in messages[0].items() %}{{ k ~ v }}{% endfor %}",
        "{{ messages[0]['content'][::-1][::-1] }}",
    ]:
        template = ChatTemplate(source)
        ids = template.encode(small, messages)
        assert not added_ids(small, ids)
        assert small.decode(ids) == template.render(messages)


def test_names_are_found_though_an_added_token_is_spelled_like_them(tmp_path):
    values = copy.deepcopy(VALUES)
    for number, content in enumerate(["name", "con", "  ", "arguments\n"]):
        values["added_tokens"].append({**values["added_tokens"][-1], "id": SIZE + number, "content": content})
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(values))
    tokenizer = load_tokenizer(file)
    template = ChatTemplate("{{ messages[0].content.strip() }}|")
    ids = template.encode(tokenizer, [{"role": "user", "content": "  a name here con "}])
    assert not added_ids(tokenizer, ids)
    assert tokenizer.decode(ids) == "  a name here con|"  # masked white space is not stripped; all else is as ever


def test_all_of_the_private_use_characters(template, small):
    with pytest.raises(TemplateError, match="private-use"):
        template.encode(small, [{"role": "user", "content": "".join(map(chr, range(0xE000, 0xF900)))}])


def test_what_the_template_raises_shows_the_text(small):
    template = ChatTemplate("{{ raise_exception('no ' + messages[0].content) }}", "t")
    with pytest.raises(TemplateError, match=r"^t: line 1: no <think>$"):
        template.encode(small, [{"role": "user", "content": "<think>"}])


def test_a_lone_surrogate_in_a_message(template, small):
    with pytest.raises(TokenizerError, match="lone surrogate"):
        template.encode(small, [{"role": "user", "content": "a\udcff<"}])


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


# Where the template is

ECHO = "{{ bos_token }}{{ messages[0].content }}{{ more }}"


def test_where_the_template_comes_from(tmp_path):
    def render():
        return load_chat_template(tmp_path).render([{"role": "user", "content": "x"}])

    configuration = tmp_path / "tokenizer_config.json"
    configuration.write_text(json.dumps({"bos_token": {"content": "<s>"}, "chat_template": "string " + ECHO}))
    assert render() == "string <s>x"
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "list " + ECHO}]
    configuration.write_text(json.dumps({"bos_token": "<b>", "eos_token": None, "chat_template": several}))
    assert render() == "list <b>x"
    (tmp_path / "chat_template.jinja").write_text("file " + ECHO + "\n")
    assert render() == "file <b>x"
    configuration.unlink()
    assert render() == "file x"
    (tmp_path / "other").write_text("other " + ECHO)
    template = load_chat_template(tmp_path, tmp_path / "other")
    assert template.render([{"role": "user", "content": "x"}], more="!") == "other x!"


def test_no_template(tmp_path):
    assert load_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": None, "eos_token": "x"}))
    assert load_chat_template(tmp_path) is None


@pytest.mark.parametrize("value", [5, [], [{"name": "rag", "template": "x"}], [{"name": "default"}], ["x"]])
def test_what_is_not_a_template(tmp_path, value):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(TemplateError, match=r"tokenizer_config\.json: chat_template: must be"):
        load_chat_template(tmp_path)


def test_bad_template_files(tmp_path):
    file = tmp_path / "chat_template.jinja"
    file.write_bytes(b"caf\xe9")
    with pytest.raises(TemplateError, match=r"chat_template\.jinja: is not UTF-8 \(byte 3\)"):
        load_chat_template(tmp_path)
    file.write_bytes(b"x" * 70_000)
    with pytest.raises(TemplateError, match="is 70,000 bytes long"):
        load_chat_template(tmp_path)
    with pytest.raises(TemplateError, match="is 70,000 characters long"):
        ChatTemplate("x" * 70_000)
    with pytest.raises(TemplateError, match="cannot be opened"):
        load_chat_template(tmp_path, tmp_path / "none")


# What templates use

FEATURES = [
    "{% for a in [3, 1, 2] | sort %}{{ loop.index }}{{ a }}{% if a == 2 %}{% break %}{% endif %}{% endfor %}",
    "{% for a in range(9) if a % 2 and a not in (3,) %}{{ a }}{{ ',' if not loop.last }}{% endfor %}",
    "  {% if true %}\n  a\n  {% endif %}\n b",
    "{% set ns = namespace(x=1, y=[]) %}{% for a in 'abc' %}{% set ns.x = ns.x + 1 %}{% set ns.y = ns.y + [a] %}"
    "{% endfor %}{{ ns.x }}{{ ns.y }}{{ ns.y | join('-') }}{{ ', '.join(ns.y) }}",
    "{% for a in 'ab' %}{% set b = a %}{{ 'aXa'.replace(a, 'b') }}{{ b.join(['1', '2']) }}{% endfor %}",
    "{% macro f(a, b='x') %}[{{ a }}{{ b }}{{ varargs }}]{% endmacro %}{{ f(1) }}{{ f(1, 2, 3) }}",
    "{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}in{% endcall %}",
    "{% set x %}a{{ 1 }}b{% endset %}{{ x | upper }}{% filter upper %}c{% endfilter %}",
    "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ {'b': 'é<', 'a': 1} | tojson(ensure_ascii=true) }}",
    "{{ {'b': 1, 'a': [1, {}]} | tojson(separators=(',', ':'), sort_keys=true) }}{{ [] | tojson(indent=4) }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ messages | map(attribute='role') | list }}",
    "{{ messages | rejectattr('role', 'in', ['user']) | list }}{{ messages[0] | dictsort }}",
    "{{ messages[0] | items | list }}",
    "{{ 'aXbXc'.split('X') }}{{ 'a b'.split() }}{{ ' a '.strip() }}{{ 'abc'[1:] }}{{ 'abc'[::-1] }}{{ 'ab' * 3 }}",
    "{{ 'abc' | replace('b', 'x') }}{{ 'aaa'.replace('a', 'b', 2) }}{{ 'a\nb' | indent(2) }}",
    "{{ 'a\nb' | indent('>', true) }}",
    "{{ 'a' ~ 1 ~ none ~ [2] ~ missing }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ 1 / 2 }}",
    "{{ -3 | abs }}{{ '7' | int + 1 }}",
    "{{ missing is defined }}{{ messages is iterable }}{{ messages[0] is mapping }}{{ 1 is odd }}{{ 'a' is string }}",
    "{{ missing | default('d') }}{{ '' | default('e', true) }}{{ [1, 2] | first }}{{ [1, 2] | last }}",
    "{{ 'a b' | title }}",
    "{{ messages[0].get('content') }}{{ messages[0].nothing }}{{ messages[0]['role'] }}{{ messages[0].keys() | list }}",
    "{% generation %}said{% endgeneration %}{{ '<b>' | safe }}{{ '&' }}{{ [3, 1] | min }}",
    "{{ ['a', 'a'] | unique | list }}",
    "{{ dict(a=1) }}{{ 'a' in {'a': 1} }}{{ 1 < 2 <= 2 }}{{ 'x' if 1 == 1.0 else 'y' }}{{ [1] == [1] }}",
    "{{ messages[-1].content.startswith('a') and messages[-1].content.endswith('!') }}{{ bos_token is none }}",
    "{% for a in [[1, [2]], [3]] recursive %}{{ loop.depth }}{{ loop(a) if a is iterable else a }}{% endfor %}",
]


@pytest.mark.parametrize("source", FEATURES)
def test_templates_mean_what_they_mean_in_transformers(small_hf, source):
    messages = [{"role": "user", "content": "a < 'b' & \"é\"", "more": [1, None, True]}, USER]
    assert ChatTemplate(source).render(messages) == small_hf.apply_chat_template(
        messages, chat_template=source, tokenize=False, add_generation_prompt=True
    )


def test_strftime_now(small_hf):
    source = "{{ strftime_now('%d %b %Y, week %W') }}"
    wanted = {small_hf.apply_chat_template([USER], chat_template=source, tokenize=False) for _ in range(2)}
    assert ChatTemplate(source).render([USER]) in wanted


# Templates that attack. Each is refused by a budget, a list, or Jinja; (what the message must say, template)

GROW = "{% set ns = namespace(x=%s, y=%s) %}{% for i in range(60) %}{% set ns.x = %s %}{% set ns.y = %s %}{% endfor %}"


def grow(start, step, use=""):
    """A value made from itself sixty times, twice over, and then used."""
    steps = (step.replace("@", "ns.x"), step.replace("@", "ns.y"))
    source = GROW
    for part in (start, start, *steps):
        source = source.replace("%s", part, 1)
    return source + use


SLOW, BIG, LONG, HUGE = "more than 0.3 seconds", "too much memory", "makes a text of more than", "enormous number"
UNSAFE, UNKNOWN = "is unsafe", "No filter named"
HOSTILE = {
    "nested loops": (SLOW, "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"),
    "loop that filters": (SLOW, "{% for a in range(100000) if false %}{% endfor %}" * 1000),
    "loop over tests": (
        SLOW,
        "{% set m = 1 %}{% for a in [0] * 9999999 if "
        + " and ".join(["(" + "m and " * 60 + "m)"] * 60)
        + " and 0 %}{% endfor %}",
    ),
    "recursive loop": (SLOW, "{% for a in [3] * 99 recursive %}{{ loop([a - 1] * 99) if a }}{% endfor %}"),
    "two calls each": (
        SLOW,
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ),
    "map of lists": (SLOW + "|" + BIG, "{% set x = ([range(100000)] * 100000) | map('list') | list %}"),
    "recursion": ("recurses too deeply", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    "doubling by ~": (LONG, grow("'a'", "@ ~ @")),
    "doubling by +": (LONG, grow("'a'", "@ + @")),
    "doubling by *": (LONG + "|" + BIG, grow("'a'", "@ * 2")),
    "doubling by join": (LONG + "|" + BIG, grow("'a'", "[@, @] | join")),
    "doubling by join method": (LONG + "|" + BIG, grow("'a'", "@.join([@, @])")),
    "doubling by replace": (f"{LONG}|{BIG}|{SLOW}", grow("'aa'", "@ | replace('a', 'aa')")),
    "doubling by replace method": (f"{LONG}|{BIG}|{SLOW}", grow("'aa'", "@.replace('a', 'aa')")),
    "doubling by a set block": (
        LONG,
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
        "{% set ns.x = y %}{% endfor %}",
    ),
    "doubling by a macro": (
        LONG,
        "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='a') %}"
        "{% for i in range(60) %}{% set ns.x = f(ns.x) %}{% endfor %}",
    ),
    "doubling a list": (BIG, grow("[1]", "@ + @")),
    "doubling a number": (HUGE, grow("2", "@ * @")),
    "doubling a sum": (HUGE, grow("2", "@ + @", "").replace("range(60)", "range(5000)")),
    "repeat": (BIG, "{{ 'a' * 10 ** 12 }}"),
    "repeat from the left": (BIG, "{{ 10 ** 12 * 'a' }}"),
    "repeat a list": (BIG, "{{ [1] * 10 ** 12 }}"),
    "power": (HUGE, "{{ 9 ** (9 ** 9) }}"),
    "power of a power": (HUGE, grow("9", "@ ** 9")),
    "replace all by much": (BIG, "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}"),
    "replace nothing by much": (BIG, "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}"),
    "join by much": (BIG, "{{ ('b' * 1000000).join('a' * 1000000) }}"),
    "join much": (BIG, "{{ (['b' * 1000000] * 100000) | join }}"),
    "join as a filter": (BIG, "{{ ('a' * 1000000) | join('b' * 1000000) }}"),
    "indent": (BIG, "{{ 'a' | indent(10 ** 11, true) }}"),
    "indent lines": (BIG, "{{ ('\n' * 1000000) | indent(100000) }}"),
    "indent JSON": ("indents JSON too far", "{{ [1] | tojson(indent=10 ** 11) }}"),
    "separate JSON": (LONG, "{{ ([1] * 1000) | tojson(separators=('b' * 1000000, '')) }}"),
    "slices": (
        BIG,
        "{% set a = 'a' * 10000000 %}{% set ns = namespace(x=[]) %}"
        "{% for i in range(99999) %}{% set ns.x = ns.x + [a[1:]] %}{% endfor %}",
    ),
    "lists": (
        BIG + "|" + SLOW,
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = ns.x + [["
        + "i," * 20000
        + "]] %}{% endfor %}",
    ),
    "split": (BIG, "{% set x = ('aa ' * 5000000).split(' ') %}"),
    "split at space": (BIG, "{% set x = ('aa ' * 5000000).split() %}"),
    "split lines": (BIG, "{% set x = ('aa\n' * 5000000).splitlines() %}"),
    "list of characters": (BIG + "|" + SLOW, "{% set x = ('😀é' * 5000000) | list %}"),
    "sort characters": (BIG + "|" + SLOW, "{% set x = ('😀é' * 5000000) | sort %}"),
    "much output": (LONG, "{% set a = 'a' * 1000000 %}{% for i in range(100000) %}{{ a }}{% endfor %}"),
    "much output of its own": (LONG, "{% for i in range(100000) %}" + "x" * 10000 + "{% endfor %}"),
    "output in a block": (
        LONG,
        "{% set a = 'a' * 10000000 %}{% macro f() %}{{ a }}{{ a }}{% endmacro %}{{ f() | length }}",
    ),
    # Shared parts: small in memory, endless to read through
    "print": (SLOW + "|" + BIG, grow("[1]", "[@, @]", "{{ ns.x }}")),
    "print by ~": (SLOW + "|" + BIG, grow("[1]", "[@, @]", "{{ ns.x ~ '' }}")),
    "print as string": (SLOW + "|" + BIG, grow("[1]", "[@, @]", "{{ ns.x | string }}")),
    "print JSON": (SLOW + "|" + BIG, grow("[1]", "[@, @]", "{{ ns.x | tojson }}")),
    "print upper": (SLOW + "|" + BIG, grow("[1]", "[@, @]", "{{ ns.x | upper }}")),
    "print joined": (SLOW + "|" + BIG, grow("[1]", "[@, @]", "{{ [ns.x] | map('default') | join }}")),
    "print a view": (SLOW + "|" + BIG, grow("{'a': 1}", "{'a': @, 'b': @}", "{{ ns.x.items() }}")),
    "print arguments": (
        SLOW + "|" + BIG,
        "{% set ns = namespace(x=[1]) %}{% macro f() %}{% set ns.x = varargs %}{% endmacro %}"
        "{% for i in range(60) %}{{ f(ns.x, ns.x) }}{% endfor %}{{ ns.x }}",
    ),
    "raise": (SLOW + "|" + BIG, grow("[1]", "[@, @]", "{{ raise_exception(ns.x) }}")),
    "compare": (SLOW + "|" + BIG, grow("[1]", "[@, @]", "{{ ns.x == ns.y }}")),
    "compare in a chain": (SLOW + "|" + BIG, grow("[1]", "[@, @]", "{{ [] != ns.x == ns.y }}")),
    "hash to look for": (SLOW + "|" + BIG, grow("(1,)", "(@, @)", "{{ ns.x in {} }}")),
    "compare in a test": (SLOW + "|" + BIG, grow("[1]", "[@, @]", "{{ ns.x is eq(ns.y) }}")),
    "look for": (SLOW + "|" + BIG, grow("[1]", "[@, @]", "{{ ns.x in [ns.y] }}")),
    "index": (SLOW + "|" + BIG, grow("[1]", "[@, @]", "{{ [ns.x].index(ns.y) }}")),
    "sort": (SLOW + "|" + BIG, grow("[1]", "[@, @]", "{{ [ns.x, ns.y] | sort | length }}")),
    "changed": (
        SLOW + "|" + BIG,
        grow("[1]", "[@, @]", "{% for a in [ns.x, ns.y] %}{{ loop.changed(a) }}{% endfor %}"),
    ),
    "hash a key": (SLOW + "|" + BIG, grow("(1,)", "(@, @)", "{{ {ns.x: 1} | length }}")),
    "hash an index": (SLOW + "|" + BIG, grow("(1,)", "(@, @)", "{{ {}[ns.x] }}")),
    "hash for get": (SLOW + "|" + BIG, grow("(1,)", "(@, @)", "{{ {}.get(ns.x) }}")),
    "hash in a test": (SLOW + "|" + BIG, grow("(1,)", "(@, @)", "{{ ns.x is filter }}")),
    "unique": (SLOW + "|" + BIG, grow("(1,)", "(@, @)", "{{ [ns.x] | unique | list | length }}")),
    "deep": (
        "nests values too deeply",
        grow("(1,)", "(@,)", "{{ {}[ns.x] }}").replace("range(60)", "range(5000)"),
    ),
    # Formats and what else grows by a number
    "format with %": ("formats a text with %", "{{ '%999999999d' % 1 }}"),
    "format filter": (UNKNOWN, "{{ '%999999999d' | format(1) }}"),
    "format method": (UNSAFE, "{{ '{:>999999999}'.format('') }}"),
    "format method by index": (UNSAFE, "{{ ''['format']('') }}"),
    "format method by map": (
        UNSAFE,
        "{% for f in ['{0.__class__}'] | map(attribute='format') %}{{ f(1) }}{% endfor %}",
    ),
    "format_map": (UNSAFE, "{{ '{a}'.format_map({'a': 1}) }}"),
    "center": (UNKNOWN, "{{ 'a' | center(999999999) }}"),
    "center method": (UNSAFE, "{{ 'a'.center(999999999) }}"),
    "ljust": (UNSAFE, "{{ 'a'.ljust(999999999) }}"),
    "zfill": (UNSAFE, "{{ 'a'.zfill(999999999) }}"),
    "expandtabs": (UNSAFE, "{{ '\t'.expandtabs(999999999) }}"),
    "translate": (UNSAFE, "{{ 'a'.translate({97: 'aa'}) }}"),
    "to_bytes": (UNSAFE, "{{ (1).to_bytes(999999999, 'big') }}"),
    "round": (UNKNOWN, "{{ 1 | round(999999999) }}"),
    "slice": (UNKNOWN, "{{ [1] | slice(999999999) | list }}"),
    "batch": (UNKNOWN, "{{ [1] | batch(999999999, 1) | list }}"),
    "wordwrap": (UNKNOWN, "{{ 'a a' | wordwrap(1, true, 'b' * 1000000) }}"),
    "hexadecimal": (HUGE, "{{ ('f' * 100000) | int(0, 16) }}"),
    "decimal": ("Exceeds the limit", "{{ " + "9" * 10000 + " }}"),
    "long range": ("Range too big", "{{ range(999999999) | list }}"),
    "date": ("date format", "{{ strftime_now('%c' * 100) }}"),
    "lorem ipsum": ("'lipsum' is undefined", "{{ lipsum(999999) }}"),
    # Ways out
    "class": (UNSAFE, "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "class by index": (UNSAFE, "{{ ''['__class__']['__mro__'] }}"),
    "class by attr": (UNKNOWN, "{{ '' | attr('__class__') }}"),
    "class by map": (UNSAFE, "{{ [''] | map(attribute='__class__.__mro__') | list }}"),
    "class by key": (UNSAFE, "{{ messages | selectattr('__class__.__mro__') | list }}"),
    "globals of a function": (UNSAFE, "{{ raise_exception.__globals__.os }}"),
    "globals of a macro": (UNSAFE, "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}"),
    "globals of self": (UNSAFE, "{{ self._TemplateReference__context.environment }}"),
    "globals of loop": (UNSAFE, "{% for a in [1] %}{{ loop._iterator.x }}{% endfor %}"),
    "globals of cycler": (UNSAFE, "{{ cycler.__init__.__globals__ }}"),
    "globals of namespace": ("no attribute|'__init__'", "{{ namespace().__init__.__globals__.os }}"),
    "mutation": (UNSAFE, "{{ messages.append(1) }}"),
    "mutation of a dict": (UNSAFE, "{{ messages[0].update({'role': 'system'}) }}"),
    "dict.fromkeys": (UNSAFE, "{{ dict.fromkeys(range(9)) }}"),
    "include": ("other templates", "{% include '/etc/passwd' %}"),
    "import": ("other templates", "{% import 'os' as os %}"),
    "from import": ("other templates", "{% from 'os' import system %}"),
    "extends": ("other templates", "{% extends messages[0].content %}"),
    "autoescape": ("not HTML", "{% autoescape true %}{{ '<' * 9 }}{% endautoescape %}"),
    # Mistakes
    "raise_exception": ("^file: line 2: no, two\\\\nlines$", "\n{{ raise_exception('no, two\nlines') }}"),
    "syntax": ("^file: line 3: ", "a\nb\n{% if %}"),
    "unknown tag": ("^file: line 1: Encountered unknown tag", "{% exec %}"),
    "undefined": ("^file: line 2: 'nothing' is undefined$", "\n{{ nothing.more }}"),
    "wrong type": ("^file: line 1: TypeError: ", "{{ 1 + 'a' }}"),
    "division": ("^file: line 1: ZeroDivisionError", "{{ 1 // 0 }}"),
    "not JSON": ("is not JSON serializable", "{{ range | tojson }}"),
    "parentheses": ("recurses too deeply", "{{ " + "(" * 5000 + ")" * 5000 + " }}"),
    "nested ifs": ("recurses too deeply", "{% if a %}" * 2000 + "{% endif %}" * 2000),
    "nested fors": ("too many statically nested blocks", "{% for a in b %}" * 30 + "{% endfor %}" * 30),
    "many filters": ("recurses too deeply", "{{ ''" + "|upper" * 9000 + " }}"),
    "many sums": ("recurses too deeply", "{{ 1" + "+a" * 30000 + " }}"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template(name):
    wanted, source = HOSTILE[name]
    seconds = 0.3 if SLOW in wanted else 60  # where another limit is meant, a busy machine must not let this one win
    with pytest.raises(TemplateError, match=wanted) as caught:
        ChatTemplate(source, "file", seconds=seconds).render([USER])
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith("file: ")


def test_each_limit_stands_alone():
    """Where the others are out of reach."""
    far = {"seconds": 1000, "max_chars": 1 << 60, "max_bytes": 1 << 60}
    loops = "{% for a in range(1000) %}{% for b in range(1000) %}{% endfor %}{% endfor %}"
    assert ChatTemplate(loops, **far).render([USER]) == ""
    for limit, wanted in [({"seconds": 0.05}, "seconds"), ({"max_bytes": 1 << 20}, "memory")]:
        with pytest.raises(TemplateError, match=wanted):
            ChatTemplate(loops, **{**far, **limit}).render([USER])
    text = "{% for a in range(1001) %}x{% endfor %}"
    assert len(ChatTemplate(text, **far).render([USER])) == 1001
    with pytest.raises(TemplateError, match="more than 1,000 characters"):
        ChatTemplate(text, **{**far, "max_chars": 1000}).render([USER])


@pytest.mark.parametrize(("start", "item", "end"), [("[", "i,", "]"), ("(", "i,", ")"), ("{", "'%d': i,", "}")])
def test_displays_are_charged_for(start, item, end):
    items = "".join(item % number if "%" in item else item for number in range(1000))
    source = "{% for i in range(1000) %}{% set x = " + start + items + end + " %}{% endfor %}"
    with pytest.raises(TemplateError, match=BIG):
        ChatTemplate(source, seconds=1000, max_bytes=1 << 22).render([USER])


def test_a_budget_is_for_one_rendering():
    """And holds in any thread."""
    template = ChatTemplate("{% for a in range(100000) %}{% endfor %}done", max_bytes=8_000_000)
    done = []
    threads = [threading.Thread(target=lambda: done.append(template.render([USER]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == ["done"] * 4


def test_a_long_conversation_fits_the_budget(template):
    """Of 131,072 tokens, which is some 600,000 characters, in many turns."""
    turns = [{**USER, "content": "a few words " * 50}, {**THOUGHT, "content": THOUGHT["content"] * 30}] * 400
    text = template.render(turns, [TOOL])
    assert len(text) > 250_000
    assert len(template.render([{**USER, "content": "日" * 4_000_000}])) > 4_000_000


def test_not_special_stays_out_of_reach_of_users_too(template, small):
    ids = template.encode(small, [{"role": "user", "content": "".join(NOT_SPECIAL)}])
    assert added_ids(small, ids) == added_ids(small, template.encode(small, [USER]))
    assert ids[-2] == small.think_start
