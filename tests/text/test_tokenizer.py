"""Ids and text, held against transformers; broken tokenizer files; thinking told from the answer."""

import copy
import json
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwq_ref.errors import TokenizerError
from qwq_ref.text import (
    StreamDecoder,
    load_tokenizer,
)
from tests.support.small_tokenizer import (
    ADDED,
    SENTENCES,
    SIZE,
    SPECIAL,
    TEXT,
    VALUES,
    hugging_face,
)


def same_ids(ours, hf, plain_hf, text):
    assert ours.encode(text, special=True) == hf(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(text) == plain_hf(text, add_special_tokens=False)["input_ids"]


@given(TEXT)
@example("")
@example("<|im_start|><|im_end|><think></think>")
def test_encode_equals_transformers(small, small_hf, small_plain_hf, text):
    same_ids(small, small_hf, small_plain_hf, text)


@pytest.mark.shared
@given(TEXT)
def test_real_encode_equals_transformers(real, real_hf, real_plain_hf, text):
    same_ids(real, real_hf, real_plain_hf, text)


@given(TEXT)
def test_plain_text_has_no_added_token_and_comes_back(small, text):
    ids = small.encode(text)
    assert not set(ids) & set(small.added.values())
    assert small.decode(ids) == unicodedata.normalize("NFC", text)


def same_text(ours, hf, ids):
    for skip in (True, False):
        wanted = hf.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(ids, skip_special=skip) == wanted
        stream = StreamDecoder(ours, skip_special=skip)
        pieces = [stream.feed(identity) for identity in ids]
        assert "".join(pieces) + stream.finish() == wanted


@given(st.lists(st.integers(0, SIZE - 1) | st.integers(SIZE - len(ADDED), SIZE - 1), max_size=30))
@example([VALUES["model"]["vocab"][token] for token in "ðŁĺ"])  # three of the four bytes of an emoji
def test_decode_equals_transformers(small, small_hf, ids):
    same_text(small, small_hf, ids)


@pytest.mark.shared
@given(st.lists(st.integers(0, 151668) | st.integers(151640, 151668) | st.integers(94, 255), max_size=30))
def test_real_decode_equals_transformers(real, real_hf, ids):
    same_text(real, real_hf, ids)


@pytest.mark.shared
def test_gsm8k_equals_transformers(real, real_hf, shared_data):
    texts = []
    for name, count in (("test", 1319), ("train", 1500)):
        lines = (shared_data / "gsm8k" / f"{name}.jsonl").read_text().splitlines()[:count]
        assert len(lines) == count
        texts += [text for line in lines for text in json.loads(line).values()]
    wanted = real_hf(texts)["input_ids"]
    assert [real.encode(text) for text in texts] == wanted
    assert [real.decode(ids) for ids in wanted] == real_hf.batch_decode(wanted)


@pytest.mark.shared
def test_real_facts(real):
    assert (real.size, real.think_start, real.think_end) == (151669, 151667, 151668)
    assert real.added == dict(zip(ADDED, range(151643, 151669), strict=True))
    assert real.special == {real.added[token] for token in SPECIAL}
    assert real.encode("<think>", special=True) == [151667]
    assert real.decode([151644, 151667, 151668, 151645]) == "<think></think>"


def test_stream_gives_characters_as_soon_as_they_are_whole(small):
    stream = StreamDecoder(small)
    assert stream.feed(small.encode("a")[0]) == "a"
    emoji = [VALUES["model"]["vocab"][token] for token in "ðŁĺĢ"]  # its four bytes, one token each
    assert [stream.feed(identity) for identity in emoji] == ["", "", "", "😀"]
    assert [stream.feed(identity) for identity in emoji[:2]] == ["", ""]
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""
    assert stream.feed(emoji[0]) == ""
    assert stream.feed(small.think_start) == "\ufffd<think>"


def test_token_bytes_are_the_text(small):
    assert b"".join(map(small.token_bytes, small.encode("naïve 😀\n"))) == "naïve 😀\n".encode()
    assert small.token_bytes(small.think_end) == b"</think>"


@pytest.mark.parametrize("identity", [-1, SIZE, SIZE + 395, 10**30])
def test_an_id_that_no_text_has_is_refused(small, identity):
    for use in (small.token_bytes, StreamDecoder(small).feed, lambda identity: small.decode([1, identity])):
        with pytest.raises(TokenizerError, match=rf"tokenizer.json: id {identity} is not one of the {SIZE} ids"):
            use(identity)


@pytest.mark.parametrize("special", [False, True])
def test_a_lone_surrogate_is_refused(small, special):
    with pytest.raises(TokenizerError, match="text: character 2 is a lone surrogate"):
        small.encode("ab\udc80<think>", special=special)


# Files: each row changes one thing in a good file. (what to change, how, what the message must name)

ADDED_0 = ("added_tokens", 0)


OVER = f"outside of the model's vocabulary of {SIZE}"
BAD_FILES = {
    "vocab id beyond": (("model", "vocab", "a"), SIZE, OVER),
    "added id beyond": ((*ADDED_0, "id"), SIZE, OVER),
    "vocab id twice": (("model", "vocab", "a"), 7, "id 7 is also that of"),
    "added id twice": ((*ADDED_0, "id"), SIZE - 1, f"id {SIZE - 1} is also that of"),
    "added id of another": ((*ADDED_0, "id"), 3, "id 3 is also that of"),
    "added content of another": ((*ADDED_0, "content"), "a", "model.vocab says"),
    "added content twice": ((*ADDED_0, "content"), "</think>", "added_tokens[25].content: '</think>' appears twice"),
    "id true": (("model", "vocab", "a"), True, "model.vocab['a']: id must be a non-negative integer"),
    "id negative": (("model", "vocab", "a"), -1, "model.vocab['a']: id must be a non-negative integer"),
    "id float": (("model", "vocab", "a"), 1.0, "model.vocab['a']: id must be a non-negative integer"),
    "id string": ((*ADDED_0, "id"), "7", "added_tokens['<|endoftext|>']: id must be a non-negative integer"),
    "pre-tokenizer absent": (("pre_tokenizer",), None, "pre_tokenizer: unknown pre-tokenizer"),
    "pre-tokenizer list": (("pre_tokenizer",), [], "pre_tokenizer: unknown pre-tokenizer"),
    "pre-tokenizer other": (("pre_tokenizer", "type"), "Whitespace", "pre_tokenizer: unknown pre-tokenizer"),
    "pre-tokenizer regex": (
        ("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex"),
        r"\p{N}{1,3}|\s+",
        "pre_tokenizer: unknown pre-tokenizer",
    ),
    "pre-tokenizer order": (
        ("pre_tokenizer", "pretokenizers"),
        VALUES["pre_tokenizer"]["pretokenizers"][::-1],
        "pre_tokenizer: unknown pre-tokenizer",
    ),
    "pre-tokenizer inverted": (("pre_tokenizer", "pretokenizers", 0, "invert"), True, "unknown pre-tokenizer"),
    "pre-tokenizer behaviour": (("pre_tokenizer", "pretokenizers", 0, "behavior"), "Removed", "unknown pre-tokenizer"),
    "prefix space": (("pre_tokenizer", "pretokenizers", 1, "add_prefix_space"), True, "unknown pre-tokenizer"),
    "second regex": (("pre_tokenizer", "pretokenizers", 1, "use_regex"), True, "unknown pre-tokenizer"),
    "pre-tokenizer cut": (("pre_tokenizer", "pretokenizers"), [1], "unknown pre-tokenizer"),
    "normalizer": (("normalizer", "type"), "NFKC", "normalizer: unknown normalizer"),
    "decoder": (("decoder", "type"), "Metaspace", "decoder: unknown decoder"),
    "decoder absent": (("decoder",), None, "decoder: unknown decoder"),
    "model type": (("model", "type"), "Unigram", "model.type: must be BPE"),
    "model absent": (("model",), None, "model.type: must be BPE"),
    "dropout": (("model", "dropout"), 0.1, "model.dropout"),
    "byte fallback": (("model", "byte_fallback"), True, "model.byte_fallback"),
    "unknown token": (("model", "unk_token"), "a", "model.unk_token"),
    "prefix": (("model", "continuing_subword_prefix"), "##", "model.continuing_subword_prefix"),
    "suffix": (("model", "end_of_word_suffix"), "</w>", "model.end_of_word_suffix"),
    "ignore merges": (("model", "ignore_merges"), True, "model.ignore_merges"),
    "vocab list": (("model", "vocab"), [], "model.vocab: must be an object"),
    "vocab empty": (("model", "vocab"), {}, "model.vocab: has no token for byte 0"),
    "vocab of no byte": (("model", "vocab", "日"), 96, "model.vocab: holds '日', which stands for no byte"),
    "merges object": (("model", "merges"), {}, "model.merges: must be a list of pairs"),
    "merge number": (("model", "merges", 0), 5, "model.merges: must be a list of pairs"),
    "merge of three": (("model", "merges", 0), ["a", "b", "c"], "model.merges: must be a list of pairs"),
    "merge of one": (("model", "merges", 0), "ab", "model.merges: must be a list of pairs"),
    "merge of numbers": (("model", "merges", 0), [1, 2], "model.merges: cannot be used"),
    "merge of unknown": (("model", "merges", 0), ["zzzz", "a"], "model.merges: cannot be used"),
    "added object": (("added_tokens",), {}, "added_tokens: must be a list"),
    "added string": (ADDED_0, "<x>", "added_tokens[0].content"),
    "added empty": ((*ADDED_0, "content"), "", "added_tokens[0].content"),
    "added surrogate": ((*ADDED_0, "content"), "\ud800", "added_tokens[0].content: holds a lone surrogate"),
    "added lstrip": ((*ADDED_0, "lstrip"), True, "added_tokens[0].lstrip: must be false"),
    "added rstrip": ((*ADDED_0, "rstrip"), True, "added_tokens[0].rstrip: must be false"),
    "added single word": ((*ADDED_0, "single_word"), True, "added_tokens[0].single_word: must be false"),
    "added normalized": ((*ADDED_0, "normalized"), 1, "added_tokens[0].normalized: must be true or false"),
    "added flag absent": ((*ADDED_0, "normalized"), None, "added_tokens[0].normalized: must be true or false"),
    "added special": ((*ADDED_0, "special"), 1, "added_tokens[0].special: must be true or false"),
}


def changed(path, value):
    values = copy.deepcopy(VALUES)
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return values


def refusal(file, vocab_size=SIZE):
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(file, vocab_size)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert message.isprintable()
    return message


@pytest.mark.parametrize("row", BAD_FILES)
def test_bad_file(tmp_path, row):
    path, value, wanted = BAD_FILES[row]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(changed(path, value)))
    assert wanted in refusal(file)


def test_a_vocabulary_without_a_byte(tmp_path):
    """It would lose that byte from every text."""
    file = tmp_path / "tokenizer.json"
    vocab = {token: identity for token, identity in VALUES["model"]["vocab"].items() if token != "Ā"}
    file.write_text(json.dumps(changed(("model", "vocab"), vocab)))
    assert "model.vocab: has no token for byte 0" in refusal(file)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"model": {}, "model": {}}', "model: appears twice"),
        ('{"model": {"vocab": {"a": 1, "a": 2}}}', "a: appears twice"),
        ('{"model": NaN}', "which is not JSON"),
        ('{"model": ' * 5000, "is nested too deeply"),
        ('{"\\ud800": 1, "\\ud800": 2}', "appears twice"),
    ],
)
def test_bad_json(tmp_path, text, wanted):
    file = tmp_path / "tokenizer.json"
    file.write_text(text)
    assert wanted in refusal(file)


def test_over_50_megabytes(tmp_path):
    file = tmp_path / "tokenizer.json"
    with file.open("wb") as out:
        out.truncate(50_000_001)
    assert "is 50,000,001 bytes long" in refusal(file)


def test_too_many_added_tokens(tmp_path):
    """Each is part of a pattern that is compiled."""
    file = tmp_path / "tokenizer.json"
    entries = [{**VALUES["added_tokens"][-1], "id": SIZE + i, "content": f"<{i}>"} for i in range(16_385)]
    file.write_text(json.dumps(changed(("added_tokens",), entries)))
    assert "added_tokens: holds 16,385 tokens; at most 16,384 are read" in refusal(file, None)


def test_no_file_and_no_regular_file(tmp_path):
    assert "cannot be opened" in refusal(tmp_path / "none.json")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: cannot be opened"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(TokenizerError, match="is not a regular file"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("normalizer",), None),
        (("normalizer",), {"type": "Sequence", "normalizers": []}),
        (("normalizer",), {"type": "Sequence", "normalizers": [{"type": "NFC"}]}),
        (("pre_tokenizer", "pretokenizers", 1, "trim_offsets"), True),
        (("model", "merges"), [" ".join(pair) for pair in VALUES["model"]["merges"]]),
        (("model", "end_of_word_suffix"), ""),
        (("post_processor",), {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}),
        (("added_tokens",), []),
    ],
)
def test_other_spellings_are_accepted_and_mean_what_they_mean_there(tmp_path, path, value):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(changed(path, value)))
    ours, hf = load_tokenizer(file), hugging_face(file)
    for text in [*SENTENCES, "e\u0301 <think>1 2</think>"]:
        assert ours.encode(text, special=True) == hf(text, add_special_tokens=False)["input_ids"]


def test_the_longest_of_overlapping_added_tokens_wins(tmp_path):
    values = copy.deepcopy(VALUES)
    for number, content in enumerate(["<a", "<a>", "a><a"]):
        values["added_tokens"].append({**values["added_tokens"][-1], "id": SIZE + number, "content": content})
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(values))
    ours, hf = load_tokenizer(file), hugging_face(file)
    for text in ["<a><a>", "<aa><a>", "x<a<a><a", "a><a>"]:
        assert ours.encode(text, special=True) == hf(text, add_special_tokens=False)["input_ids"]


def test_an_added_token_beyond_ascii_decodes_as_in_transformers(tmp_path):
    values = copy.deepcopy(VALUES)
    for number, content in enumerate(["<｜User｜>", "<é>", "<a b>"]):
        values["added_tokens"].append({**values["added_tokens"][-1], "id": SIZE + number, "content": content})
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(values))
    same_text(load_tokenizer(file), hugging_face(file), [SIZE, SIZE + 1, SIZE + 2])
