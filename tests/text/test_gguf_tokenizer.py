"""The tokenizer of a GGUF file equals the tokenizer.json that it was made from."""

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwq_ref.engine.tokens import find_tokenizer
from qwq_ref.errors import CheckpointError, QwqError, TokenizerError
from qwq_ref.text import StreamDecoder, load_chat_template, load_tokenizer, prompt_is_thinking, split_thinking
from tests.support.gguf_text import (
    BYTE,
    CONTROL,
    MERGES,
    NORMAL,
    TOKENS,
    TYPES,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    metadata,
    same_tokenizer,
    write,
)
from tests.support.small_tokenizer import ADDED, SENTENCES, SIZE, SPECIAL, TEXT, VALUES

ROWS = SIZE + 40
ROLES = {"ggml__eos_token_id": SIZE - 24, "ggml__bos_token_id": SIZE - 26, "ggml__padding_token_id": SIZE - 26}
FIRST = SIZE - len(ADDED)  # the id of the first added token


def small_file(path, values=VALUES, rows=ROWS, **changes):
    return write(path, metadata(values, rows, **ROLES | changes))


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return load_tokenizer(small_file(tmp_path_factory.mktemp("gguf") / "small.gguf"), ROWS)


def test_it_equals_that_of_tokenizer_json(ours, small):
    same_tokenizer(ours, small)
    assert (ours.eos, ours.bos, ours.adds_bos) == (small.added["<|im_end|>"], small.added["<|endoftext|>"], False)


@given(TEXT)
@example("<|im_start|><|im_end|><think></think><|fim_prefix|>")
def test_encode_equals_transformers(ours, small_hf, small_plain_hf, text):
    assert ours.encode(text, special=True) == small_hf(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(text) == small_plain_hf(text, add_special_tokens=False)["input_ids"]


@given(st.lists(st.integers(0, SIZE - 1) | st.integers(FIRST, SIZE - 1), max_size=30))
def test_decode_equals_transformers(ours, small_hf, ids):
    for skip in (True, False):
        wanted = small_hf.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(ids, skip_special=skip) == wanted
        stream = StreamDecoder(ours, skip_special=skip)
        assert "".join(map(stream.feed, ids)) + stream.finish() == wanted


def test_padding_is_never_sampled(ours):
    assert ours.size == SIZE
    with pytest.raises(TokenizerError, match=rf"small\.gguf: id {SIZE} is not one of the {SIZE} ids"):
        ours.token_bytes(SIZE)


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED])
def test_padding_that_is_marked_as_a_token(tmp_path, small, kind):
    """Converters of 2024 marked padding as user-defined."""
    types = metadata(VALUES, ROWS)[TYPES][:SIZE] + [kind] * (ROWS - SIZE)
    same_tokenizer(load_tokenizer(small_file(tmp_path / "x.gguf", ggml__token_type=types)), small)


def test_holes_between_tokens(tmp_path):
    """Padding that other tokens follow, as where a fine-tuned model has added a token of its own."""
    fields = metadata(VALUES, ROWS)
    for identity, (token, kind) in {FIRST + 3: ("[X]", UNUSED), SIZE: (f"[PAD{SIZE}]", USER_DEFINED)}.items():
        fields[TOKENS][identity], fields[TYPES][identity] = token, kind
    fields[TOKENS][SIZE + 2], fields[TYPES][SIZE + 2] = "<new>", USER_DEFINED
    tokenizer = load_tokenizer(write(tmp_path / "x.gguf", fields), ROWS)
    assert tokenizer.size == SIZE + 3
    assert tokenizer.holes == (range(FIRST + 3, FIRST + 4), range(SIZE, SIZE + 2))
    assert tokenizer.encode("<new>", special=True) == [SIZE + 2]
    with pytest.raises(TokenizerError, match="has no token"):
        tokenizer.token_bytes(SIZE)


# --- Kinds of tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marked", [CONTROL, USER_DEFINED])
def test_qwens_own_tokens_keep_their_flags_whatever_the_file_says(tmp_path, small, marked):
    """Converters mark <|fim_prefix|> and others as control tokens, and some files <think>, too."""
    fields = metadata(VALUES, ROWS, **ROLES)
    for token in set(ADDED) - set(SPECIAL):
        fields[TYPES][small.added[token]] = marked
    tokenizer = load_tokenizer(write(tmp_path / "x.gguf", fields))
    assert tokenizer.special == small.special
    start, end = tokenizer.think_start, tokenizer.think_end
    assert tokenizer.decode([*tokenizer.encode("a"), start, end, small.added["<|im_end|>"]]) == "a<think></think>"
    assert prompt_is_thinking(tokenizer.encode("<|im_start|>assistant\n<think>\n", special=True), tokenizer)
    assert split_thinking([1, end, 2], tokenizer, True) == ([1], [2])


def test_other_tokens_follow_their_type(tmp_path):
    fields = metadata(VALUES, SIZE + 4)
    fields[TOKENS][SIZE:] = ["<shown>", "<hidden>", "<unknown>", "<hidden to end>"]
    fields[TYPES][SIZE:] = [USER_DEFINED, CONTROL, UNKNOWN, USER_DEFINED]
    tokenizer = load_tokenizer(write(tmp_path / "x.gguf", fields | {"tokenizer.ggml.eot_token_id": SIZE + 3}))
    assert set(range(SIZE, SIZE + 4)) & tokenizer.special == {SIZE + 1, SIZE + 2, SIZE + 3}
    assert tokenizer.decode(range(SIZE, SIZE + 4)) == "<shown>"


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<think>", "<|video_pad|>"])
def test_an_added_token_that_is_marked_as_normal(tmp_path, small, token):
    """No merges make it. As part of the vocabulary it would not be found, and the prompt would be another."""
    fields = metadata(VALUES, ROWS, **ROLES | {"ggml__unknown_token_id": small.added["<|video_pad|>"]})
    fields[TYPES][small.added[token]] = NORMAL
    tokenizer = load_tokenizer(write(tmp_path / "x.gguf", fields))
    assert (tokenizer.added, tokenizer.special) == (small.added, small.special)
    assert tokenizer.encode(f"a{token}", special=True) == small.encode(f"a{token}", special=True)


def test_a_role_of_an_ordinary_token_hides_no_text(tmp_path, small):
    bang = small.encode("!")[0]
    word = next(i for i in small.encode("the thinking thinks") if len(small.token_bytes(i)) > 2)
    tokenizer = load_tokenizer(
        small_file(tmp_path / "x.gguf", ggml__padding_token_id=bang, ggml__unknown_token_id=word)
    )
    same_tokenizer(tokenizer, small)


def test_a_byte_is_an_ordinary_token(tmp_path, small):
    types = metadata(VALUES, ROWS)[TYPES]
    types[small.encode("a")[0]] = BYTE
    same_tokenizer(load_tokenizer(small_file(tmp_path / "x.gguf", ggml__token_type=types)), small)


# --- Roles ------------------------------------------------------------------------------------------------------------


def test_the_tokens_that_end_an_answer(tmp_path, small):
    changes = {"ggml__eos_token_id": FIRST + 2, "ggml__eot_token_id": FIRST + 5, "ggml__eom_token_id": FIRST + 7}
    tokenizer = load_tokenizer(small_file(tmp_path / "x.gguf", **changes))
    assert tokenizer.eos == FIRST + 2
    assert tokenizer.ends == (FIRST + 2, FIRST + 5, FIRST + 7, small.added["<|endoftext|>"])
    alone = dict.fromkeys(ROLES)
    none = load_tokenizer(small_file(tmp_path / "y.gguf", **alone))
    assert (none.eos, none.bos, none.ends) == (None, None, (small.added["<|endoftext|>"],))
    unused = load_tokenizer(small_file(tmp_path / "z.gguf", ggml__eos_token_id=SIZE + 1))
    assert unused.eos is None


def test_a_text_begins_with_bos_where_the_file_says_so(tmp_path, small):
    tokenizer = load_tokenizer(small_file(tmp_path / "x.gguf", ggml__add_bos_token=True))
    bos = FIRST
    assert (tokenizer.bos, tokenizer.adds_bos) == (bos, True)
    assert tokenizer.encode("a") == small.encode("a")
    assert tokenizer.begin(tokenizer.encode("a")) == [bos, *small.encode("a")]
    assert tokenizer.begin([bos, 5]) == [bos, 5]
    assert tokenizer.begin([]) == [bos]
    assert small.begin([5]) == [5]


# --- The pre-tokenizer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pre", ["qwen2", "deepseek-r1-qwen"])
def test_pre_tokenizers_of_qwen2(tmp_path, small, pre):
    tokenizer = load_tokenizer(small_file(tmp_path / "x.gguf", ggml__pre=pre))
    assert [*map(tokenizer.encode, SENTENCES)] == [*map(small.encode, SENTENCES)]


@pytest.mark.parametrize(
    ("pre", "wanted"),
    [
        (
            "llama-bpe",
            "tokenizer.ggml.pre: is 'llama-bpe', an unknown pre-tokenizer; Qwen2's are qwen2, deepseek-r1-qw",
        ),
        (None, "tokenizer.ggml.pre: is missing; Qwen2's are qwen2, deepseek-r1-qwen"),
        ("a\nb", "is 'a\\nb', an unknown pre-tokenizer"),
        (7, "tokenizer.ggml.pre: must be a text"),
    ],
)
def test_other_pre_tokenizers(tmp_path, pre, wanted):
    assert wanted in refusal(small_file(tmp_path / "x.gguf", ggml__pre=pre))


@pytest.mark.parametrize("pre", ["llama-bpe", "default", None])
def test_a_wrong_pre_tokenizer_of_qwen2s_vocabulary(tmp_path, monkeypatch, small, pre):
    monkeypatch.setattr("qwq_ref.text.tokenizer_gguf._is_vocabulary_of_qwen2", lambda tokens: True)
    file = small_file(tmp_path / "x.gguf", ggml__pre=pre)
    with pytest.warns(UserWarning, match="its pre-tokenizer is used") as caught:
        tokenizer = load_tokenizer(file)
    (warning,) = caught
    named = f"is {pre!r}" if pre else "is missing"
    assert str(warning.message) == (
        f"{file}: tokenizer.ggml.pre: {named}, but the vocabulary is Qwen2's: its pre-tokenizer is used"
    )
    assert [*map(tokenizer.encode, SENTENCES)] == [*map(small.encode, SENTENCES)]
    with pytest.raises(TokenizerError, match="unknown pre-tokenizer"):
        load_tokenizer(small_file(tmp_path / "y.gguf", ggml__pre="tekken"))


# --- Where the tokenizer comes from -----------------------------------------------------------------------------------


def test_the_path_tells_which_tokenizer_is_read(tmp_path, small):
    """A folder means tokenizer.json, whatever lies beside it, and a file means itself, whatever its name is."""
    file = small_file(tmp_path / "model.gguf", values={**VALUES, "added_tokens": VALUES["added_tokens"][:3]})
    (tmp_path / "tokenizer.json").write_text(json.dumps(VALUES))
    assert load_tokenizer(tmp_path).added == small.added
    assert load_tokenizer(tmp_path / "tokenizer.json").added == small.added
    assert len(load_tokenizer(file).added) == 3
    blob = file.rename(tmp_path / "sha256-0")
    assert len(load_tokenizer(str(blob)).added) == 3
    assert load_tokenizer(blob).file == blob
    assert len(find_tokenizer(blob, ROWS).added) == 3
    assert find_tokenizer(tmp_path, ROWS).added == small.added


@pytest.mark.parametrize("model", [None, "none", "no_vocab"])
def test_a_file_without_a_tokenizer(tmp_path, model):
    file = small_file(tmp_path / "x.gguf", ggml__model=model)
    assert find_tokenizer(file, ROWS) is None
    found = f"is {model}" if model else "is missing"
    assert f"x.gguf: tokenizer.ggml.model: {found}: the file has no tokenizer" in refusal(file)


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.gguf: cannot be opened"):
        load_tokenizer(tmp_path / "none.gguf")


# --- Bad metadata -----------------------------------------------------------------------------------------------------


def refusal(file, vocab_size=ROWS):
    with pytest.raises((TokenizerError, CheckpointError)) as caught:
        load_tokenizer(file, vocab_size)
    message = str(caught.value)
    assert message.startswith(f"{file}: tokenizer.")
    assert message.isprintable()
    return message


def element(key, index, value):
    """Change one element of an array."""

    def change(fields):
        fields[key][index] = value

    return change


def whole_field(key, value):
    def change(fields):
        fields[f"tokenizer.ggml.{key}"] = value

    return change


def without(key):
    return lambda fields: fields.pop(key)


A = VALUES["model"]["vocab"]["a"]
BAD = {
    "model llama": (whole_field("model", "llama"), "model: is 'llama', a tokenizer of another kind; Qwen2's is gpt2"),
    "model number": (whole_field("model", 5), "model: must be a text"),
    "no tokens": (without(TOKENS), "tokens: is missing"),
    "no types": (without(TYPES), "token_type: is missing"),
    "no merges": (without(MERGES), "merges: is missing"),
    "tokens a text": (whole_field("tokens", "a"), "tokens: must be an array of strings"),
    "tokens numbers": (whole_field("tokens", [1, 2]), "tokens: must be an array of strings, got int32"),
    "types strings": (whole_field("token_type", ["1"]), "token_type: must be an array of integers"),
    "types floats": (whole_field("token_type", [1.0]), "token_type: must be an array of integers"),
    "types a number": (whole_field("token_type", 1), "token_type: must be an array of integers"),
    "merges numbers": (whole_field("merges", [1]), "merges: must be an array of strings, got int32"),
    "too few types": (lambda f: f[TYPES].pop(), f"token_type: has {ROWS - 1:,} elements; tokens has {ROWS:,}"),
    "too many types": (lambda f: f[TYPES].append(1), f"token_type: has {ROWS + 1:,} elements; tokens has {ROWS:,}"),
    "too few scores": (whole_field("scores", [0.0] * 9), f"scores: has 9 elements; tokens has {ROWS:,}"),
    "scores a number": (whole_field("scores", 0.5), "scores: must be an array"),
    "no token at all": (
        whole_field("tokens", []),
        f"token_type: has {ROWS:,} elements; tokens has 0",
    ),
    "only padding": (lambda f: f.update({TYPES: [UNUSED] * ROWS}), "tokens: has no token for byte"),
    "a type of 0": (element(TYPES, 5, 0), "token_type[5]: is 0; token types are 1 to 6"),
    "a type of 7": (element(TYPES, ROWS - 1, 7), f"token_type[{ROWS - 1}]: is 7; token types are 1 to 6"),
    "a negative type": (element(TYPES, 5, -1), "token_type[5]: is -1; token types are 1 to 6"),
    "a token twice": (element(TOKENS, A, "b"), "tokens["),
    "an added token twice": (element(TOKENS, SIZE - 1, "<think>"), f"'<think>' is also element {SIZE - 2}"),
    "an added token of the vocabulary": (element(TOKENS, SIZE - 1, "a"), f"[{SIZE - 1}]: 'a' is also element {A}"),
    "an empty token": (element(TOKENS, 300, ""), "tokens[300]: is empty"),
    "an empty added token": (element(TOKENS, SIZE - 1, ""), f"tokens[{SIZE - 1}]: is empty"),
    "a token of no byte": (element(TOKENS, 300, "日"), "tokens: holds '日', which stands for no byte"),
    "a missing byte": (element(TYPES, A, UNUSED), f"tokens: has no token for byte {ord('a')}"),
    "a byte of another kind": (element(TYPES, 300, BYTE), "token_type[300]: is 6, a byte, but the token is "),
    "not UTF-8": (element(TOKENS, 300, b"\xff"), "tokens: element 300 is not UTF-8"),
    "a lone surrogate": (element(TOKENS, SIZE - 1, b"<\xed\xa0\x80>"), f"tokens: element {SIZE - 1} is not UTF-8"),
    "a merge of unknown parts": (element(MERGES, 0, "zzzz a"), "merges: cannot be used"),
    "a merge into no token": (element(MERGES, 0, "! !"), "merges: cannot be used"),
    "a merge of one": (element(MERGES, 7, "ab"), "merges[7]: must be two tokens and a space between them"),
    "a merge of three": (element(MERGES, 7, "a b c"), "merges[7]: must be two tokens and a space between them"),
    "merges of one and of three": (
        lambda f: f[MERGES].__setitem__(slice(7, 9), ["a b c", "ab"]),
        "merges[7]: must be two tokens and a space between them",
    ),
    "an empty merge": (element(MERGES, 7, ""), "merges[7]: must be two tokens and a space between them"),
    "a merge of nothing": (element(MERGES, 7, " "), "merges[7]: must be two tokens and a space between them"),
    "a merge twice": (lambda f: f[MERGES].append(f[MERGES][3]), "is also element 3"),
    "a merge not UTF-8": (element(MERGES, 7, b"\xff a"), "merges: element 7 is not UTF-8"),
    "eos beyond": (whole_field("eos_token_id", ROWS), f"eos_token_id: is {ROWS}; the file has {ROWS:,} tokens"),
    "bos negative": (whole_field("bos_token_id", -1.0), "bos_token_id: must be a token id"),
    "eos a text": (whole_field("eos_token_id", "<|im_end|>"), "eos_token_id: must be a token id"),
    "eos true": (whole_field("eos_token_id", True), "eos_token_id: must be a token id"),
    "add_bos a number": (whole_field("add_bos_token", 1), "add_bos_token: must be true or false"),
    "add_bos without bos": (
        lambda f: (f.pop("tokenizer.ggml.bos_token_id"), f.update({"tokenizer.ggml.add_bos_token": True})),
        "add_bos_token: is true, but the file names no bos token",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_metadata(tmp_path, case):
    change, wanted = BAD[case]
    fields = metadata(VALUES, ROWS, **ROLES)
    change(fields)
    assert wanted in refusal(write(tmp_path / "x.gguf", fields))


def test_a_token_beyond_the_models_vocabulary(tmp_path):
    file = small_file(tmp_path / "x.gguf")
    assert load_tokenizer(file, SIZE).size == SIZE  # padding may be longer or shorter
    wanted = f"tokenizer.ggml.tokens[{SIZE - 1}]: id {SIZE - 1} is outside of the model's vocabulary of {SIZE - 1}"
    assert wanted in refusal(file, SIZE - 1)


def test_a_string_of_100_megabytes(tmp_path):
    fields = metadata(VALUES, ROWS)
    fields[TOKENS][300] = b"a" * 100_000_000
    begin = time.process_time()
    assert "tokenizer.ggml.tokens" in refusal(write(tmp_path / "x.gguf", fields))
    assert time.process_time() - begin < 1


def test_too_many_added_tokens(tmp_path):
    """Each is part of a pattern that is compiled."""
    fields = metadata(VALUES, SIZE + 300_000)
    fields[TYPES][SIZE:] = [CONTROL] * 300_000
    fields[TOKENS][SIZE:] = [f"<{i}>" for i in range(300_000)]
    file = write(tmp_path / "x.gguf", fields)
    begin = time.process_time()
    assert "tokenizer.ggml.token_type: marks 300,026 added tokens; at most 16,384 are read" in refusal(file, None)
    assert time.process_time() - begin < 2


GOOD = metadata(VALUES, SIZE + 9, **ROLES, chat_template="{{ messages[0].content }}")


@given(st.data())
def test_a_broken_file_gives_an_error_of_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("broken") / "x.gguf"
    broken = bytearray(write(path, GOOD).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(broken) - 1))
        broken[begin : begin + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    path.write_bytes(broken)
    for load in (load_tokenizer, load_chat_template):
        message = f"{path}: "
        try:
            load(path)
        except QwqError as problem:
            message = str(problem)
        assert message.startswith(f"{path}: ")
        assert message.isprintable()
