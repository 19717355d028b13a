"""Added tokens as real files have them: defined beside tokenizer.json, normalised, with holes between their ids."""

import copy
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwq_ref.errors import TokenizerError
from qwq_ref.text import ChatTemplate, StreamDecoder, load_tokenizer
from tests.support.small_tokenizer import SIZE, SPECIAL, TEXT, VALUES, hugging_face

ENTRIES = VALUES["added_tokens"]
DECODER = {str(entry["id"]): {key: entry[key] for key in entry if key != "id"} for entry in ENTRIES}
OF_QWEN = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}
MARKERS = ("<think>", "</think>")


def decoder(entries):
    return {"tokenizer_config": OF_QWEN | {"added_tokens_decoder": entries}}


def without(*contents):
    return {**VALUES, "added_tokens": [entry for entry in ENTRIES if entry["content"] not in contents]}


@pytest.fixture
def write(tmp_path):
    def write(values=VALUES, **files):
        for name, contents in {"tokenizer": values, "config": {"model_type": "qwen2"}, **files}.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(contents))
        return tmp_path

    return write


def same_as_transformers(folder):
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    wanted = {str(token): identity for identity, token in theirs.added_tokens_decoder.items()}
    assert ours.added == {**wanted}
    assert ours.special == {identity for identity, token in theirs.added_tokens_decoder.items() if token.special}
    assert ours.eos == theirs.eos_token_id
    for text in ("a<think>b</think><|im_end|>", "<think>\u0338</think>\u0338", "<think></think>"):
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, special=True) == ids
        for skip in (True, False):
            wanted_text = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special=skip) == wanted_text
    return ours


FILES = {
    "in tokenizer.json alone": (VALUES, {"tokenizer_config": OF_QWEN}),
    "the markers in the decoder": (without(*MARKERS), decoder(DECODER)),
    "one marker in the decoder": (without("</think>"), decoder(DECODER)),
    "all in the decoder": ({**VALUES, "added_tokens": []}, decoder(DECODER)),
    "added_tokens.json": (
        without(*MARKERS),
        {"tokenizer_config": OF_QWEN, "added_tokens": {entry["content"]: entry["id"] for entry in ENTRIES}},
    ),
    "added_tokens.json and a map": (
        without(*MARKERS),
        {
            "tokenizer_config": {"tokenizer_class": "Qwen2Tokenizer"},
            "added_tokens": {entry["content"]: entry["id"] for entry in ENTRIES},
            "special_tokens_map": {
                "eos_token": {"content": "<|im_end|>", "lstrip": False, "rstrip": False, "single_word": False,
                              "normalized": False},
                "additional_special_tokens": ["<think>"],
            },
        },
    ),
    "as in QwQ-32B-AWQ": (
        without("<tool_response>", "</tool_response>", *MARKERS),
        {
            "tokenizer_config": OF_QWEN | {"added_tokens_decoder": DECODER},
            "added_tokens": {entry["content"]: entry["id"] for entry in ENTRIES},
            "special_tokens_map": {"eos_token": "<|im_end|>", "additional_special_tokens": SPECIAL[1:]},
        },
    ),
    "fewer in added_tokens.json than in the decoder": (
        VALUES,
        {"tokenizer_config": OF_QWEN | {"added_tokens_decoder": DECODER}, "added_tokens": {"<think>": SIZE - 2}},
    ),
    "a token that added_tokens.json alone has": (
        VALUES,
        {"tokenizer_config": OF_QWEN | {"added_tokens_decoder": DECODER}, "added_tokens": {"<new>": SIZE}},
    ),
    "a map that the decoder makes void": (
        VALUES,
        {
            "tokenizer_config": OF_QWEN | {"added_tokens_decoder": DECODER},
            "special_tokens_map": {"eos_token": "<|endoftext|>", "additional_special_tokens": ["<think>"]},
        },
    ),
    "extra_special_tokens": (VALUES, {"tokenizer_config": OF_QWEN | {"extra_special_tokens": ["</think>"]}}),
    "additional_special_tokens": (VALUES, {"tokenizer_config": OF_QWEN | {"additional_special_tokens": ["</think>"]}}),
    "extra_special_tokens by name": (
        VALUES,
        {"tokenizer_config": OF_QWEN | {"extra_special_tokens": {"thought_token": "</think>"}}},
    ),
    "a name of the model's own": (VALUES, {"tokenizer_config": OF_QWEN | {"thought_token": "<think>"}}),
    "special in the decoder": (VALUES, decoder({n: entry | {"special": True} for n, entry in DECODER.items()})),
    "normalised in the decoder": (VALUES, decoder({n: entry | {"normalized": True} for n, entry in DECODER.items()})),
    "eos as an object": (
        VALUES,
        {"tokenizer_config": OF_QWEN | {"eos_token": {**DECODER[str(SIZE - 3)], "__type": "AddedToken"}}},
    ),
    "eos null": (VALUES, {"tokenizer_config": OF_QWEN | {"eos_token": None}}),
    "eos absent": (VALUES, {"tokenizer_config": {"tokenizer_class": "Qwen2Tokenizer"}}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_added_tokens_are_those_of_transformers(write, name):
    values, files = FILES[name]
    ours = same_as_transformers(write(values, **files))
    assert (ours.think_start, ours.think_end) == (SIZE - 2, SIZE - 1)
    assert ours.size == SIZE


AWQ = ("added_tokens_decoder", "added_tokens.json", "both")


@pytest.mark.shared
@pytest.mark.parametrize("where", AWQ)
def test_real_tokens_of_the_awq_release(real, real_hf, real_folder, tmp_path, where):
    """Its tokenizer.json lacks the last four added tokens, and the files beside it have them."""
    values = json.loads((real_folder / "tokenizer.json").read_text())
    configuration = json.loads((real_folder / "tokenizer_config.json").read_text())
    entries = values["added_tokens"]
    files = {"tokenizer": {**values, "added_tokens": [entry for entry in entries if entry["id"] < 151665]}}
    if where != "added_tokens.json":
        configuration["added_tokens_decoder"] = {str(entry["id"]): entry for entry in entries}
    if where != "added_tokens_decoder":
        files["added_tokens"] = {entry["content"]: entry["id"] for entry in entries}
    for name, contents in (files | {"tokenizer_config": configuration}).items():
        (tmp_path / f"{name}.json").write_text(json.dumps(contents))
    ours = load_tokenizer(tmp_path, 152064)
    assert (ours.added, ours.special, ours.size, ours.eos) == (real.added, real.special, real.size, 151645)
    assert (ours.think_start, ours.think_end) == (151667, 151668)
    text = "<|im_start|>assistant\n<think>\nOkay, 数\n</think>\n<tool_response>7</tool_response><|im_end|>"
    ids = ours.encode(text, special=True)
    assert ids == real_hf(text)["input_ids"]
    for skip in (True, False):
        assert ours.decode(ids, skip_special=skip) == real_hf.decode(ids, skip_special_tokens=skip)


def test_a_token_of_the_vocabulary_that_no_merges_make_is_meant_as_an_added_token(write):
    values = copy.deepcopy(VALUES)
    values["model"]["vocab"]["<|end|>"] = SIZE
    folder = write(values, tokenizer_config=OF_QWEN | {"eos_token": "<|end|>", "pad_token": "!"})
    ours, theirs = load_tokenizer(folder), hugging_face(folder / "tokenizer.json", eos_token="<|end|>")
    assert ours.encode("so!<|end|>", special=True) == theirs("so!<|end|>")["input_ids"] == [*ours.encode("so!"), SIZE]
    assert ours.eos == SIZE
    assert ours.encode("<|end|>") != [SIZE]
    assert ours.decode(ours.encode("so!")) == "so!"  # where a token to pad with, "!", would be left out


def changed(**entries):
    return decoder({**DECODER, **entries})


BAD = {
    "surrogate": (
        {"tokenizer_config": {"eos_token": "\ud800"}},
        "tokenizer_config.json: eos_token: holds a lone surrogate",
    ),
    "list": ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "tokenizer_config.json: added_tokens_decoder: must"),
    "key": (changed(x=DECODER[str(SIZE - 1)]), "added_tokens_decoder['x']: must be named by a token id"),
    "negative": (changed(**{"-1": DECODER[str(SIZE - 1)]}), "added_tokens_decoder['-1']: must be named by a token id"),
    "entry": (changed(**{"7": "<think>"}), "added_tokens_decoder['7'].content: must be a non-empty string"),
    "flag": (
        changed(**{str(SIZE - 1): {"content": "</think>", "lstrip": True}}),
        f"added_tokens_decoder['{SIZE - 1}'].lstrip: must be false",
    ),
    "special": (
        changed(**{str(SIZE - 1): {"content": "</think>", "special": "yes"}}),
        f"added_tokens_decoder['{SIZE - 1}'].special: must be true or false",
    ),
    "two ids": (
        changed(**{str(SIZE - 1): {"content": "x"}, "1000": {"content": "</think>"}}),
        f"added_tokens_decoder['1000']: '</think>' has id 1000; tokenizer.json says {SIZE - 1}",
    ),
    "two tokens": (
        changed(**{str(SIZE - 1): {"content": "<new>"}}),
        f"added_tokens_decoder['{SIZE - 1}']: id {SIZE - 1} is also that of '</think>' in tokenizer.json",
    ),
    "of the vocabulary": (
        changed(**{"5": {"content": "<new>"}}),
        "added_tokens_decoder['5']: id 5 is also that of '&' in tokenizer.json",
    ),
    "a token of the vocabulary": (
        changed(**{"1000": {"content": "a"}}),
        "added_tokens_decoder['1000']: has id 1000; model.vocab of tokenizer.json says 64",
    ),
    "beyond the model": (changed(**{"5000": {"content": "<new>"}}), "id 5000 is outside of the model's vocabulary"),
    "older list": ({"added_tokens": []}, "added_tokens.json: must hold a JSON object"),
    "older id": ({"added_tokens": {"<new>": True}}, "added_tokens.json: '<new>': id must be a non-negative integer"),
    "older two ids": ({"added_tokens": {"<think>": 3}}, "added_tokens.json: '<think>': '<think>' has id 3"),
    "two ids in two files beside it": (
        changed() | {"added_tokens": {"</think>": SIZE - 2}},
        f"added_tokens.json: '</think>': '</think>' has id {SIZE - 2}; tokenizer_config.json says {SIZE - 1}",
    ),
    "two ids in tokenizer.json and in added_tokens.json": (
        decoder({}) | {"added_tokens": {"</think>": SIZE + 1}},
        f"added_tokens.json: '</think>': '</think>' has id {SIZE + 1}; tokenizer.json says {SIZE - 1}",
    ),
    "two tokens in two files beside it": (
        changed() | {"added_tokens": {"<new>": SIZE - 1}},
        f"added_tokens.json: '<new>': id {SIZE - 1} is also that of '</think>' in tokenizer_config.json",
    ),
    "a list beside the decoder": (changed() | {"added_tokens": []}, "added_tokens.json: must hold a JSON object"),
    "map": ({"special_tokens_map": 5}, "special_tokens_map.json: must hold a JSON object"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_beside_it(write, name):
    files, wanted = BAD[name]
    folder = write(**files)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(folder, SIZE + 9)
    assert wanted in str(caught.value)
    assert str(caught.value).isprintable()


# --- Normalised -------------------------------------------------------------------------------------------------------


def normalised():
    """As `tokenizer.add_tokens` makes them: two with characters that NFC changes, and one that it makes of others."""
    values = copy.deepcopy(VALUES)
    for number, content in enumerate(["<new>", "<e\u0301>", "\u212bngstr\u00f6m", "<new><old>"]):
        values["added_tokens"].append(
            {**ENTRIES[-1], "id": SIZE + number, "content": content, "normalized": True, "special": False}
        )
    return values


@pytest.fixture(scope="module")
def normalising(tmp_path_factory):
    file = tmp_path_factory.mktemp("normalised") / "tokenizer.json"
    file.write_text(json.dumps(normalised()))
    return load_tokenizer(file), hugging_face(file)


PIECES = ["<new>", "<new", ">\u0338", "<e\u0301>", "<\u00e9>", "\u212bngstr\u00f6m", "\u00c5ngstro\u0308m", "<old>"]


@given(TEXT | st.lists(st.sampled_from([*PIECES, "<think>", "\u0301", "\u0338"]) | st.text(max_size=3)).map("".join))
@example("<new>\u0338")
@example("<think>\u0338<new><old>")
@example("<new><think>\u0301<e\u0301>")
def test_normalised_tokens_are_found_where_transformers_finds_them(normalising, text):
    ours, theirs = normalising
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(text, special=True) == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", PIECES)
def test_a_user_cannot_write_a_normalised_token(normalising, text):
    tokenizer, _ = normalising
    for source in ("{{ messages[0].content }}", "{{ messages | tojson }}"):
        ids = ChatTemplate(source).encode(tokenizer, [{"role": "user", "content": f"an {text} {text}"}])
        assert not set(ids) & set(tokenizer.added.values())


def test_a_lone_surrogate_beside_a_normalised_token(normalising):
    with pytest.raises(TokenizerError, match="text: character 2 is a lone surrogate"):
        normalising[0].encode("ab\udc80<new>", special=True)


# --- Holes ------------------------------------------------------------------------------------------------------------


def test_ids_with_holes(tmp_path):
    values = copy.deepcopy(VALUES)
    values["added_tokens"] = [{**entry, "id": entry["id"] + 3} for entry in ENTRIES[2:]]
    values["added_tokens"][-1]["id"] += 40
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(values))
    tokenizer = load_tokenizer(file, SIZE + 43)
    base = SIZE - len(ENTRIES)
    assert tokenizer.size == SIZE + 43
    assert tokenizer.holes == (range(base, base + 5), range(SIZE + 2, SIZE + 42))
    assert tokenizer.encode("<think>a</think>", special=True) == [SIZE + 1, *tokenizer.encode("a"), SIZE + 42]
    assert tokenizer.decode([SIZE + 1, *tokenizer.encode("a"), SIZE + 42]) == "<think>a</think>"
    for use in (tokenizer.token_bytes, StreamDecoder(tokenizer).feed):
        with pytest.raises(TokenizerError, match=rf"tokenizer\.json: id {base} has no token"):
            use(base)
    with pytest.raises(TokenizerError, match="outside of the model's vocabulary"):
        load_tokenizer(file, SIZE + 42)


def test_a_vocabulary_with_a_hole(tmp_path):
    values = copy.deepcopy(VALUES)
    content, identity = max(values["model"]["vocab"].items(), key=lambda item: item[1])
    del values["model"]["vocab"][content]
    values["model"]["merges"] = [pair for pair in values["model"]["merges"] if "".join(pair) != content]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(values))
    tokenizer = load_tokenizer(file)
    assert (tokenizer.size, tokenizer.holes) == (SIZE, (range(identity, identity + 1),))
    theirs = hugging_face(file)
    assert tokenizer.encode("the thinking thinks") == theirs("the thinking thinks")["input_ids"]


def test_an_enormous_id_costs_no_memory(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**VALUES, "added_tokens": [*ENTRIES[:-1], {**ENTRIES[-1], "id": 10**12}]}))
    assert load_tokenizer(file).holes == (range(SIZE - 1, 10**12),)
