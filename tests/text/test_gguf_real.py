"""The tokenizers of real GGUF files: QwQ's own, written by the package gguf, and published files beside llama.cpp."""

import json
import time
import unicodedata
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.errors import TokenizerError
from qwq_ref.formats.gguf import read_header
from qwq_ref.text import gguf_tokenizer, load_tokenizer
from tests.support.gguf_text import MERGES, TOKENS, TYPES, metadata, same_tokenizer
from tests.support.paths import ROOT
from tests.support.real_models import QWEN_05B, R1_7B_HEAD, real_model
from tests.support.small_tokenizer import ADDED, PIECES, SENTENCES, SPECIAL, TEXT


@pytest.fixture(scope="session")
def real_gguf(real_folder, tmp_path_factory):
    """QwQ's own tokenizer as the package gguf writes it, with the padding of its 152,064 rows."""
    gguf = pytest.importorskip("gguf", reason="writes the header of a GGUF file: pip install 'qwq_ref[bench]'")
    path = tmp_path_factory.mktemp("qwq") / "qwq.gguf"
    fields = metadata(json.loads((real_folder / "tokenizer.json").read_text()), 152064)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(fields[TOKENS])
    writer.add_token_types(fields[TYPES])
    writer.add_token_merges(fields[MERGES])
    for add, identity in ((writer.add_eos_token_id, 151645), (writer.add_pad_token_id, 151643)):
        add(identity)
    writer.add_bos_token_id(151643)
    writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def real_ours(real_gguf):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_tokenizer(real_gguf, 152064)


@pytest.mark.shared
def test_real_it_equals_that_of_tokenizer_json(real_ours, real):
    same_tokenizer(real_ours, real)
    assert (real_ours.eos, real_ours.ends) == (real.eos, (151645, 151643)) == (151645, (151645, 151643))


@pytest.mark.shared
@given(TEXT)
def test_real_encode_equals_transformers(real_ours, real_hf, real_plain_hf, text):
    assert real_ours.encode(text, special=True) == real_hf(text, add_special_tokens=False)["input_ids"]
    assert real_ours.encode(text) == real_plain_hf(text, add_special_tokens=False)["input_ids"]


@pytest.mark.shared
@given(st.lists(st.integers(0, 151668) | st.integers(151640, 151668) | st.integers(94, 255), max_size=30))
def test_real_decode_equals_transformers(real_ours, real_hf, ids):
    for skip in (True, False):
        wanted = real_hf.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert real_ours.decode(ids, skip_special=skip) == wanted


def own_texts():
    """English and code, and words in Chinese: the sources and the pages of this project."""
    files = [path for folder in ("qwq_ref", "csrc", "docs") for path in sorted((ROOT / folder).rglob("*.*"))]
    kinds = (".py", ".c", ".h", ".md", ".json")
    return [path.read_text() for path in files if path.suffix in kinds and path.stat().st_size < 100_000]


@pytest.mark.shared
def test_real_texts_equal_transformers(real_ours, real_hf, shared_data):
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text().splitlines()[:500]
    whole = [text for line in lines for text in json.loads(line).values()] + own_texts()
    wanted = real_hf(whole)["input_ids"]
    assert sum(map(len, wanted)) > 500_000
    assert [real_ours.encode(text, special=True) for text in whole] == wanted
    assert [real_ours.decode(ids, skip_special=False) for ids in wanted] == [
        unicodedata.normalize("NFC", text) for text in whole
    ]


@pytest.mark.shared
def test_the_vocabulary_of_qwen2_is_known(real_gguf, real, tmp_path):
    """Ollama's file of QwQ-32B-Preview names llama-bpe."""
    fields = dict(read_header(real_gguf).fields)
    with pytest.warns(UserWarning, match="is 'llama-bpe', but the vocabulary is Qwen2's"):
        tokenizer = gguf_tokenizer(real_gguf, fields | {"tokenizer.ggml.pre": "llama-bpe"})
    assert tokenizer.added == real.added
    with pytest.raises(TokenizerError, match="is 'tekken', an unknown pre-tokenizer"):
        gguf_tokenizer(real_gguf, fields | {"tokenizer.ggml.pre": "tekken"})


@pytest.fixture(scope="session")
def qwen_05b():
    return real_model(QWEN_05B)


@pytest.fixture(scope="session")
def qwen_05b_tokenizer(qwen_05b):
    return load_tokenizer(qwen_05b, 151936)


@pytest.mark.real
def test_a_real_file_has_the_tokens_of_the_published_tokenizer(qwen_05b_tokenizer):
    """Qwen2.5-Coder's tokenizer.json lacks the last four added tokens of QwQ's."""
    tokenizer = qwen_05b_tokenizer
    assert tokenizer.added == {token: 151643 + i for i, token in enumerate(ADDED[:-4])}
    assert tokenizer.special == {tokenizer.added[token] for token in SPECIAL}
    assert (tokenizer.size, tokenizer.holes) == (151665, ())
    assert (tokenizer.eos, tokenizer.bos, tokenizer.adds_bos) == (151645, 151643, False)
    assert tokenizer.ends == (151645, 151643)


# llama.cpp's tables are of an older Unicode, and it does not put text in NFC.
KNOWN = st.characters(exclude_categories=("Cs", "Cn", "Co"))
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(KNOWN, max_size=8), max_size=12).map("".join)


@pytest.fixture(scope="session")
def llama_cpp_ids(qwen_05b):
    """llama.cpp's ids of a text, with the added tokens in it."""
    package = pytest.importorskip("llama_cpp", reason="runs the real llama.cpp: pip install 'qwq_ref[bench]'")
    model = package.Llama(model_path=str(qwen_05b), vocab_only=True, verbose=False)
    yield lambda text: model.tokenize(text.encode(), add_bos=False, special=True)
    model.close()


@pytest.mark.real
@given(TEXTS)
def test_ids_of_a_real_file_are_those_of_llama_cpp(qwen_05b_tokenizer, llama_cpp_ids, text):
    text = unicodedata.normalize("NFC", text)
    assert qwen_05b_tokenizer.encode(text, special=True) == llama_cpp_ids(text)


@pytest.mark.real
def test_long_texts_have_the_ids_of_llama_cpp(qwen_05b_tokenizer, llama_cpp_ids):
    whole = [unicodedata.normalize("NFC", text) for text in [*SENTENCES, *own_texts()]]
    found = [qwen_05b_tokenizer.encode(text, special=True) for text in whole]
    assert sum(map(len, found)) > 500_000
    assert found == [*map(llama_cpp_ids, whole)]


@pytest.mark.real
def test_a_real_file_loads_fast(qwen_05b):
    """It takes half a second, and a little more beside other programs."""
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        load_tokenizer(qwen_05b, 151936)
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.9


@pytest.mark.real
def test_the_tokenizer_of_r1_distill():
    tokenizer = load_tokenizer(real_model(R1_7B_HEAD), 152064)
    assert (tokenizer.size, tokenizer.think_start, tokenizer.think_end) == (151665, 151648, 151649)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.adds_bos) == (151646, 151643, True)
    shown = ("<｜User｜>", "<｜Assistant｜>", "<|EOT|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
    hidden = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|quad_start|>", "<|video_pad|>")
    assert not {tokenizer.added[token] for token in shown} & tokenizer.special
    assert {tokenizer.added[token] for token in hidden} <= tokenizer.special
    assert tokenizer.begin(tokenizer.encode("<｜User｜>Hi", special=True)) == [151646, 151644, 13048]
