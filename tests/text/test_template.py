"""Compare prompts with those of transformers; find the template of a model; use each feature of Jinja once."""

import copy
import json

import pytest

from qwq_ref.errors import TemplateError
from qwq_ref.text import ChatTemplate, load_chat_template, prompt_is_thinking
from tests.support.conversations import CONVERSATIONS, THOUGHT, TOOL, USER
from tests.support.small_tokenizer import TEMPLATE, VALUES


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


def test_a_long_conversation_fits_the_budget(template):
    """Of 131,072 tokens, which is some 600,000 characters, in many turns."""
    turns = [{**USER, "content": "a few words " * 50}, {**THOUGHT, "content": THOUGHT["content"] * 30}] * 400
    text = template.render(turns, [TOOL])
    assert len(text) > 250_000
    assert len(template.render([{**USER, "content": "日" * 4_000_000}])) > 4_000_000


# --- Where the template comes from ------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_an_empty_template_is_named(tmp_path, empty):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": empty}))
    with pytest.raises(TemplateError, match=r"tokenizer_config\.json: holds an empty chat template$"):
        load_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(empty)
    with pytest.raises(TemplateError, match=r"chat_template\.jinja: holds an empty chat template$"):
        load_chat_template(tmp_path)
    (tmp_path / "mine").write_text(empty)
    with pytest.raises(TemplateError, match=r"mine: holds an empty chat template$"):
        load_chat_template(tmp_path, tmp_path / "mine")


@pytest.mark.parametrize("source", ["{# nothing #}", "{% if tools %}x{% endif %}", "{{ missing }}"])
def test_a_template_that_says_nothing_is_named(small, source):
    template = ChatTemplate(source, "mine.jinja")
    assert template.render([USER]) == ""
    with pytest.raises(TemplateError, match=r"^mine\.jinja: makes an empty prompt of this conversation$"):
        template.encode(small, [USER])


# --- Several templates ------------------------------------------------------------------------------------------------

PAIR = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
SEVERAL = {
    "list": ({"chat_template": PAIR}, {}),
    "list, a name twice": ({"chat_template": [*PAIR, {"name": "default", "template": "D2"}]}, {}),
    "object": ({"chat_template": {"default": "D", "tool_use": "T", "rag": "R"}}, {}),
    "one": ({"chat_template": "D"}, {}),
    "a list of one": ({"chat_template": PAIR[1:]}, {}),
    "file": ({}, {"chat_template.jinja": "J"}),
    "file and list": ({"chat_template": PAIR}, {"chat_template.jinja": "J"}),
    "file and folder": ({}, {"chat_template.jinja": "J", "additional_chat_templates/tool_use.jinja": "F"}),
    "folder alone": ({}, {f"additional_chat_templates/{name}.jinja": name for name in ("default", "tool_use", "rag")}),
    "all": (
        {"chat_template": PAIR},
        {
            "chat_template.jinja": "J",
            "additional_chat_templates/tool_use.jinja": "F",
            "chat_template.json": json.dumps({"chat_template": "O"}),
        },
    ),
}


def write_templates(folder, configuration, files):
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    (folder / "tokenizer.json").write_text(json.dumps(VALUES))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer", **configuration}))
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("tools", [None, [], [TOOL]], ids=["without tools", "no tool", "a tool"])
@pytest.mark.parametrize("name", SEVERAL)
def test_a_template_of_several_is_that_of_transformers(tmp_path, small, name, tools):
    from transformers import AutoTokenizer

    folder = write_templates(tmp_path, *SEVERAL[name])
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template([USER], tools=tools, tokenize=False)
    template = load_chat_template(folder)
    assert template.render([USER], tools) == text
    assert template.encode(small, [USER], tools) == small.encode(text)


def test_where_transformers_finds_none(tmp_path):
    """A processor's file is better than none, and so is the default of another place."""
    folder = write_templates(tmp_path, {}, {"chat_template.json": json.dumps({"chat_template": PAIR})})
    assert [load_chat_template(folder).render([USER], tools) for tools in (None, [TOOL])] == ["D", "T"]
    folder = write_templates(tmp_path, {"chat_template": "C"}, {"additional_chat_templates/tool_use.jinja": "F"})
    assert [load_chat_template(folder).render([USER], tools) for tools in (None, [TOOL])] == ["C", "F"]
    (folder / "mine").write_text("M")
    template = load_chat_template(folder, folder / "mine")
    assert [template.render([USER], tools) for tools in (None, [TOOL])] == ["M", "M"]


def test_faults_of_the_second_template_name_its_file(tmp_path, small):
    folder = write_templates(tmp_path, {"chat_template": "C"}, {"additional_chat_templates/tool_use.jinja": "{% if %}"})
    template = load_chat_template(folder)
    assert template.render([USER]) == "C"
    for use in (template.render, lambda *arguments: template.encode(small, *arguments)):
        with pytest.raises(TemplateError, match=r"additional_chat_templates/tool_use\.jinja: line 1: "):
            use([USER], [TOOL])
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("")
    with pytest.raises(TemplateError, match=r"tool_use\.jinja: holds an empty chat template"):
        load_chat_template(folder)
    folder = write_templates(tmp_path, {"chat_template": {"default": "D", "tool_use": 5}}, {})
    (folder / "additional_chat_templates" / "tool_use.jinja").unlink()
    with pytest.raises(TemplateError, match=r"tokenizer_config\.json: chat_template: must be"):
        load_chat_template(folder)


@pytest.mark.parametrize(
    "configuration",
    [
        {},
        {"eos_token": None, "bos_token": "<|im_start|>"},
        {"eos_token": "<|im_end|>", "pad_token": None},
        {"extra_special_tokens": {"image_token": "<think>"}},
        {"image_token": "</think>", "add_bos_token": True},
    ],
)
def test_variables_are_those_of_transformers(tmp_path, configuration):
    from transformers import AutoTokenizer

    source = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ image_token }}|{{ add_bos_token }}"
    folder = write_templates(tmp_path, {"chat_template": source, **configuration}, {})
    text = AutoTokenizer.from_pretrained(folder).apply_chat_template([USER], tokenize=False)
    assert load_chat_template(folder).render([USER]) == text


# --- The end of a turn ------------------------------------------------------------------------------------------------


def test_the_token_that_ends_a_turn(template, small):
    assert template.turn_end(small) == small.added["<|im_end|>"]
    ends = {
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n<|endoftext|>\n{% endfor %}": "<|endoftext|>",
        "{% for m in messages %}{{ m.content }}</tool_call>{% endfor %}": "</tool_call>",  # need not be special
        "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}": None,
        "{% for m in messages %}{{ m.content }}[END]<|im_end|>{% endfor %}": None,
        "{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}": None,  # not a token here
        "<|im_start|>{{ messages[0].content }}<|im_end|>": None,
        "{{ raise_exception('no') }}": None,
        "{{ messages[-1].content | trim }}<|im_end|>": "<|im_end|>",
    }
    for source, token in ends.items():
        assert ChatTemplate(source).turn_end(small) == (token and small.added[token]), source


@pytest.mark.shared
def test_the_token_that_ends_a_turn_of_the_real_template(real_template, real):
    assert real_template.turn_end(real) == 151645


# --- What templates use -----------------------------------------------------------------------------------------------

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
