"""DeepSeek-R1-Distill of 7 billion parameters: its texts begin with BOS, and its cut file is refused in one line."""

import os
from types import SimpleNamespace

import pytest

from qwq_ref.cli import main
from qwq_ref.engine.model import Model
from qwq_ref.eval.chunks import Chunks, bos_of
from qwq_ref.formats.gguf import read_header
from qwq_ref.text import load_tokenizer
from tests.support.real_models import R1_7B_HEAD, real_model
from tests.support.small_tokenizer import SENTENCES

pytestmark = pytest.mark.real
BOS, SIZE = 151646, 4_683_073_248  # of the published file


@pytest.fixture(scope="module")
def head():
    return real_model(R1_7B_HEAD)


@pytest.fixture(scope="module")
def model(head):
    """The tokenizer of a model, without its weights."""
    return SimpleNamespace(tokenizer=load_tokenizer(head, 152064))


@pytest.fixture(scope="module")
def llama_cpp_ids(head, tmp_path_factory):
    """llama.cpp's ids of a text, from a file as long as the published one, with a hole in the place of the weights."""
    package = pytest.importorskip("llama_cpp", reason="runs the real llama.cpp: pip install 'qwq_ref[bench]'")
    whole = tmp_path_factory.mktemp("r1") / "r1.gguf"
    with open(head, "rb") as file:
        tensors = read_header(head, whole=False).tensors.values()
        whole.write_bytes(file.read(min(tensor.begin for tensor in tensors)))
    os.truncate(whole, SIZE)
    loaded = package.Llama(model_path=str(whole), vocab_only=True, verbose=False)
    yield lambda text: loaded.tokenize(text.encode(), add_bos=True, special=False)
    loaded.close()


def test_raw_text_begins_with_bos(model, llama_cpp_ids):
    """Texts without markers: llama.cpp reads a <think> of a text as the marker, and here it is text."""
    for text in ["Hi", "The quick brown fox", *(text for text in SENTENCES if "<" not in text)]:
        ids = Model.prompt_ids(model, text, raw=True)
        assert ids == llama_cpp_ids(text)
        assert (ids[0], ids.count(BOS)) == (BOS, 1)


def test_bos_begins_the_chunks_of_a_perplexity(model):
    """The first token of the text is BOS, and BOS takes the place of the first token of each later chunk."""
    assert bos_of(model) == BOS
    chunks = Chunks(model.tokenizer, ["The quick brown fox jumps over the lazy dog. " * 20], 16, BOS)
    first = next(iter(chunks))
    assert list(first[:2]) == [BOS, *model.tokenizer.encode("The")]


@pytest.mark.parametrize(
    "command", [["generate", "Hi", "-n", "1"], ["info", "--check"], ["info"], ["convert", "-o", "x"]]
)
def test_the_cut_file_is_refused_in_one_line(head, capsys, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    assert main([command[0], "-m", str(head), *command[1:]]) == 1
    out, err = capsys.readouterr()
    missing = SIZE - head.stat().st_size
    assert (out, list(tmp_path.iterdir())) == ("", [])
    assert err.splitlines() == [
        f"qwq: {head}: output.weight: ends 253,791,968 bytes past the end of the file, which is cut off and lacks "
        f"{missing:,} bytes in all: download it again"
    ]
