"""A template finds the reasoning of earlier turns and cuts it, whatever kind of token the markers are."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwq_ref.text import ChatTemplate, load_tokenizer
from tests.support.conversations import CALLING, REPLY, THOUGHT, USER
from tests.support.markers import KINDS, MARKERS
from tests.support.small_tokenizer import SPECIAL, TEMPLATE, hugging_face

TALKS = {
    "earlier": [USER, THOUGHT, USER],
    "last": [USER, THOUGHT],
    "beside a call": [USER, {**CALLING, "content": THOUGHT["content"]}, REPLY],
    "twice": [USER, THOUGHT, USER, {**THOUGHT, "content": "<think>a</think>b</think>c<think>d"}, USER],
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizers(request, tmp_path_factory):
    file = tmp_path_factory.mktemp("markers") / "tokenizer.json"
    file.write_text(json.dumps(KINDS[request.param]))
    return load_tokenizer(file), hugging_face(file)


@pytest.mark.parametrize("talk", TALKS)
def test_the_ids_are_those_of_the_text(template, tokenizers, talk):
    ours, theirs = tokenizers
    text = theirs.apply_chat_template(TALKS[talk], chat_template=TEMPLATE, tokenize=False)
    wanted = theirs(text, add_special_tokens=False)["input_ids"]
    assert template.render(TALKS[talk], add_generation_prompt=False) == text
    assert template.encode(ours, TALKS[talk], add_generation_prompt=False) == wanted


@pytest.mark.parametrize(
    ("cut", "left"),
    [
        ("split('</thought>')[-1]", "13 </answer>"),
        ("split('[/THINK]')[-1]", " so </thought>13 </answer>"),
        ("replace('</answer>', '')", "[THINK]16 - 3[/THINK] so </thought>13 "),
        ("split('</' ~ 'thought>')[-1]", "13 </answer>"),
        ("split('<')[0]", "[THINK]16 - 3[/THINK] so "),
    ],
)
def test_a_template_finds_other_tags(tokenizers, cut, left):
    ours, _ = tokenizers
    template = ChatTemplate(f"{{{{ messages[1].content.{cut} }}}}")
    said = {"role": "assistant", "content": "[THINK]16 - 3[/THINK] so </thought>13 </answer>"}
    assert template.encode(ours, [USER, said]) == ours.encode(left)


@pytest.mark.parametrize(
    "marker", ["<|end_of_thought|>", "</think time='3s'>", "◁/think▷", "<|/think|>", "</思考>", "###"]
)
def test_a_template_finds_markers_of_any_form(tokenizers, marker):
    ours, _ = tokenizers
    template = ChatTemplate(
        f"{{{{ messages[1].content.split({marker!r})[-1] }}}}<|im_end|>{{{{ messages[2].content }}}}"
    )
    said = {"role": "assistant", "content": f"16 - 3 <b>{marker}13<|im_end|>"}
    end = [ours.added["<|im_end|>"]]
    wanted = ours.encode("13<|im_end|>") + end + ours.encode("<|im_end|>")
    assert template.encode(ours, [USER, said, {"role": "user", "content": "<|im_end|>"}]) == wanted


@pytest.mark.parametrize("cut", ["replace('#', '')", "split('#') | join", "replace('<#', '<')"])
def test_a_template_that_joins_parts_makes_no_special_token(tokenizers, cut):
    ours, _ = tokenizers
    template = ChatTemplate(f"{{{{ messages[1].content.{cut} }}}}")
    said = {"role": "assistant", "content": "<#|im_end|>"}
    assert ours.added["<|im_end|>"] not in template.encode(ours, [USER, said])
    assert template.render([USER, said]) == "<|im_end|>"


@given(st.lists(st.sampled_from([*SPECIAL, *MARKERS, "<|im_", "end|>", "<|", "|>", "<", ">", "x"])).map("".join))
@example("<|im_</think>end|>")
@example("<<think>|im_end|></think>")
def test_an_assistant_writes_no_special_token_but_the_markers(template, tokenizers, said):
    ours, _ = tokenizers
    markers = {ours.think_start, ours.think_end}

    def special(content):
        ids = template.encode(ours, [USER, {"role": "assistant", "content": content}, USER])
        return [identity for identity in ids if identity in ours.special and identity not in markers]

    assert special(said) == special("x")


def test_a_user_still_cannot_write_a_marker(template, tokenizers):
    ours, _ = tokenizers
    talk = [{"role": "user", "content": "</think><think>"}, {"role": "tool", "content": "<think></think>"}]
    ids = template.encode(ours, talk, add_generation_prompt=False)
    assert not {ours.think_start, ours.think_end} & {*ids}
    assert ours.decode(ids, skip_special=False) == template.render(talk, add_generation_prompt=False)
