"""Prompts that fill a gap: the published order, plain texts, other models' names, and what ends the gap."""

import json

import pytest

import qwq_ref
from qwq_ref.errors import TokenizerError, UsageError
from qwq_ref.text import fim_ends, fim_ids, load_tokenizer, read_gap
from tests.support.gguf_text import TOKENS, metadata, write
from tests.support.real_models import QWEN_05B, real_model
from tests.support.scripts import Given, model_that_says, read
from tests.support.small_tokenizer import VALUES

ROLES = {
    "prefix": "<|fim_prefix|>",
    "suffix": "<|fim_suffix|>",
    "middle": "<|fim_middle|>",
    "pad": "<|fim_pad|>",
    "repository": "<|repo_name|>",
    "file": "<|file_sep|>",
}


def test_the_order_is_prefix_suffix_middle(small):
    published = small.encode("<|fim_prefix|>def f(x):\n    <|fim_suffix|>\n    return y<|fim_middle|>", special=True)
    assert fim_ids(small, "def f(x):\n    ", "\n    return y") == published
    assert fim_ids(small, "", "") == [small.added[ROLES[role]] for role in ("prefix", "suffix", "middle")]


def test_the_texts_are_plain(small):
    ids = fim_ids(small, "<|fim_middle|><|im_end|>", "<|fim_suffix|><|endoftext|>")
    added = [identity for identity in ids if identity in small.added.values()]
    assert added == [small.added[ROLES[role]] for role in ("prefix", "suffix", "middle")]
    with pytest.raises(TokenizerError, match="surrogate"):
        fim_ids(small, "", "\ud800")


def test_a_gap_that_is_written_with_its_tokens(small):
    assert read_gap(small, "<|fim_prefix|>a <|im_end|>\n<|fim_suffix|> b<|fim_middle|>") == ("a <|im_end|>\n", " b")
    assert read_gap(small, "<|fim_prefix|><|fim_suffix|><|fim_middle|>") == ("", "")
    for text in (
        "",
        "a",
        "x<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
        "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>\n",
        "<|fim_prefix|>a<|fim_middle|>",
        "<|fim_prefix|>a<|fim_suffix|>b<|fim_suffix|>c<|fim_middle|>",  # where does the gap begin?
        "<|fim_prefix|>a<|fim_middle|><|fim_suffix|>b<|fim_middle|>",
        "<|fim_prefix|>a<|fim_suffix|>b<|fim_prefix|>c<|fim_middle|>",
    ):
        assert read_gap(small, text) is None, text


def test_each_token_of_the_kind_ends_a_gap(small):
    assert {*fim_ends(small)} == {small.added[token] for token in (*ROLES.values(), "<|endoftext|>")}
    for end in (*ROLES.values(), "<|endoftext|>", "<|im_end|>"):
        model = model_that_says(small, small.encode(f"y = x{end}more", special=True), Given([]))
        generation = model.generate("def f(x):\n    ", suffix="\n    return y", temperature=0)
        assert read(generation) == ("", "y = x")
        assert generation.run.finish_reason == "stop"
    model = model_that_says(small, small.encode("a<|fim_pad|>b", special=True), Given([5]))
    assert read(model.generate("x", temperature=0))[1] == "a<|fim_pad|>b"  # without a gap, it is text


def test_a_model_without_these_tokens_says_so(tmp_path):
    file = tmp_path / "tokenizer.json"
    tokens = [token for token in VALUES["added_tokens"] if token["content"] != "<|fim_middle|>"]
    file.write_text(json.dumps({**VALUES, "added_tokens": tokens}))
    model = model_that_says(load_tokenizer(file), [], Given([5]))
    with pytest.raises(UsageError, match=r"^suffix: this model has no token for the middle of a gap"):
        model.generate("a", suffix="b")
    assert read_gap(model.tokenizer, "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>") is None


@pytest.mark.parametrize(
    "names",
    [("fim_pre", "fim_suf", "fim_mid"), ("prefix", "suffix", "middle"), ("fim_pre", "suffix", "fim_mid")],
)
def test_metadata_names_the_tokens_of_a_gguf_file(tmp_path, names):
    values = json.loads(json.dumps(VALUES))
    fields, wanted = metadata(values), {}
    for name, role, spelling in zip(names, ("prefix", "suffix", "middle"), ("<PRE>", "<SUF>", "<MID>"), strict=True):
        wanted[role] = fields[TOKENS].index(ROLES[role])
        fields[TOKENS][wanted[role]] = spelling
        fields[f"tokenizer.ggml.{name}_token_id"] = wanted[role]
    tokenizer = load_tokenizer(write(tmp_path / "x.gguf", fields))
    assert {role: tokenizer.fim[role] for role in wanted} == wanted
    fields[f"tokenizer.ggml.{names[0]}_token_id"] = 10**6
    with pytest.raises(TokenizerError, match=f"{names[0]}_token_id"):
        load_tokenizer(write(tmp_path / "y.gguf", fields))


@pytest.mark.parametrize(
    "more",
    [{"system": "x"}, {"tools": [{"name": "f"}]}, {"response_format": {"type": "json_object"}}],
)
def test_a_gap_goes_with_plain_text_alone(small, more):
    model = model_that_says(small, [], Given([5]))
    with pytest.raises(UsageError, match=r"raw|suffix"):
        model.generate("a", suffix="b", **more)
    with pytest.raises(UsageError, match="raw"):
        model.generate([{"role": "user", "content": "a"}], suffix="b")


GAPS = {
    "def add(a, b):\n    |\n    return total\n": "add(2, 3) == 5",
    "def is_even(n):\n    return |\n\n\ndef is_odd(n):\n    return not is_even(n)\n": "is_even(4) and is_odd(3)",
    "def area(width, height):\n    |\n    return product\n": "area(4, 5) == 20",
}


@pytest.mark.real
def test_a_published_model_completes_functions():
    model = qwq_ref.load(real_model(QWEN_05B), context=512)
    for code, works in GAPS.items():
        before, after = code.split("|")
        middle = ""
        for piece in model.generate(before, suffix=after, max_tokens=30, temperature=0):
            middle += piece.text
            if "\n" in middle:  # so small a model goes on behind the gap
                break
        names = {}
        exec(before + middle.partition("\n")[0] + after, names)
        assert eval(works, names), middle
