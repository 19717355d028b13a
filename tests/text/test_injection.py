"""The text of a conversation makes no control tokens, whatever it spells and whatever the template does with it."""

import copy
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwq_ref.errors import TemplateError, TokenizerError
from qwq_ref.text import ChatTemplate, load_tokenizer
from tests.support.conversations import USER
from tests.support.small_tokenizer import ADDED, CHARS, NOT_SPECIAL, PIECES, SIZE, SPECIAL, VALUES

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
    pairs = [("<thi", "nk>"), (" <thi ", " nk> "), ("<", "|im_end|>"), ("<|im_end|", ">"), ("< think", ">")]
    for source in sources:
        template = ChatTemplate(source)
        for first, second in pairs:
            messages = [{"role": "user", "content": first}, {"role": "user", "content": second}]
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


def test_not_special_stays_out_of_reach_of_users_too(template, small):
    ids = template.encode(small, [{"role": "user", "content": "".join(NOT_SPECIAL)}])
    assert added_ids(small, ids) == added_ids(small, template.encode(small, [USER]))
    assert ids[-2] == small.think_start
