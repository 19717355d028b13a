"""Where the reasoning ends and the answer begins."""

import json

from qwq_ref.text import ThinkingSplitter, load_tokenizer, prompt_is_thinking, split_thinking
from tests.support.small_tokenizer import ADDED, SIZE, VALUES


def test_prompt_is_thinking(small):
    def thinking(text):
        return prompt_is_thinking(small.encode(text, special=True), small)

    assert thinking("<|im_start|>assistant\n<think>\n")
    assert not thinking("<|im_start|>assistant\n")
    assert not thinking("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not thinking("<think>cut off<|im_end|>\n<|im_start|>assistant\n")
    assert thinking("</think><think>")
    assert not thinking("")
    assert not prompt_is_thinking(small.encode("assistant\n<think>\n"), small)


def test_thinking_is_split_by_id_not_by_spelling(small):
    spelled = small.encode("so </think> is a tag, and <think> too")
    ids = [*spelled, small.think_end, *spelled]
    assert split_thinking(ids, small, True) == (spelled, spelled)
    assert split_thinking(ids, small, False) == ([], spelled * 2)
    again = [small.think_start, 5, small.think_end, 6]
    splitter = ThinkingSplitter(small, False)
    assert [splitter.feed(identity) for identity in again] == ["marker", "thinking", "marker", "answer"]
    assert not splitter.thinking
    assert split_thinking(again, small, True) == ([5], [6])


def test_a_model_without_thinking_tokens(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**VALUES, "added_tokens": []}))
    tokenizer = load_tokenizer(file)
    assert (tokenizer.think_start, tokenizer.think_end, tokenizer.size) == (None, None, SIZE - len(ADDED))
    assert not prompt_is_thinking([1, 2], tokenizer)
    assert split_thinking([1, 2], tokenizer, False) == ([], [1, 2])
