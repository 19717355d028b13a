"""The perplexity of chunks, held against the whole logits of each chunk and formulas written out here."""

import dataclasses
import json

import numpy as np
import pytest

import qwq_ref
from qwq_ref.errors import KlBaseError, NonFiniteError, UsageError
from qwq_ref.eval import chunks, kl_base
from qwq_ref.eval.chunks import Chunks, Measurement, groups, measure
from qwq_ref.eval.kl_base import Base
from qwq_ref.eval.means import Estimate, Mean, root
from tests.support.paths import ROOT

CTX = 32
N = CTX - 1 - CTX // 2


@pytest.fixture(scope="module")
def model():
    return qwq_ref.load("qwq-nano", threads=1)


@pytest.fixture(scope="module")
def other():
    return qwq_ref.load("qwq-nano", weights="q4" if qwq_ref.core.available() else None, threads=1)


@pytest.fixture(scope="module")
def text():
    return (ROOT / "docs" / "glossary.md").read_text()[:600]


def halves(model, ids, bos=None):
    """Log-probabilities [n, V] and next tokens [n] of all second halves, from whole chunks."""
    logs, following = [], []
    for start in range(0, len(ids) - CTX + 1, CTX):
        chunk = ids[start : start + CTX]
        fed = chunk if bos is None else [bos, *chunk[1:]]
        logits = model.logits(fed)[CTX // 2 : CTX - 1].astype(np.float64)
        logs.append(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
        following += chunk[CTX // 2 + 1 :]
    return np.concatenate(logs), np.array(following)


def estimate(values):
    return pytest.approx([np.mean(values), np.std(values) / np.sqrt(len(values) - 1)], rel=1e-9, abs=1e-15)


def pair(estimate):
    return [estimate.value, estimate.error]


def test_it_is_that_of_the_second_halves(model, text):
    ids = model.tokenizer.encode(text)
    logs, following = halves(model, ids)
    nll = -logs[np.arange(len(logs)), following]
    found = measure(model, text, ctx=CTX)
    assert (found.chunks, found.tokens, found.divergence) == (len(ids) // CTX, len(nll), None)
    assert len(nll) == found.chunks * N
    ppl = np.exp(nll.mean())
    assert pair(found.ppl) == pytest.approx([ppl, ppl * nll.std() / np.sqrt(len(nll) - 1)])


def test_logits_are_held_in_parts(model, text, monkeypatch):
    """The logits of some positions at a time, and the same figures."""
    whole = measure(model, text, ctx=128, chunks=2)
    seen, run = [], chunks.run_finite_together

    def watched(*given):
        seen.extend(found := run(*given))
        return found

    monkeypatch.setattr(chunks, "_LOGITS", 1)
    monkeypatch.setattr(chunks, "_FLOATS", 1)
    monkeypatch.setattr(chunks, "run_finite_together", watched)
    assert dataclasses.astuple(measure(model, text, ctx=128, chunks=2))[:2] == dataclasses.astuple(whole)[:2]
    assert measure(model, text, ctx=128, chunks=2).ppl.value == pytest.approx(whole.ppl.value, rel=1e-12)
    assert max(len(logits) for logits in seen) == 16


def test_bos_replaces_the_first_token_of_each_chunk(model, text, monkeypatch):
    tokenizer = model.tokenizer
    monkeypatch.setattr(tokenizer, "bos", 486)
    monkeypatch.setattr(tokenizer, "adds_bos", True)
    ids = [486, *tokenizer.encode(text)]
    logs, following = halves(model, ids, bos=486)
    found = measure(model, text, ctx=CTX)
    assert found.ppl.value == pytest.approx(np.exp(-logs[np.arange(len(logs)), following].mean()))
    assert found.chunks == len(ids) // CTX > 2


def test_the_figures_of_a_comparison(model, other, text, tmp_path):
    file = tmp_path / "base"
    measure(model, text, ctx=CTX, kl_base=file)
    found = measure(other, text, kl=file)
    ids = model.tokenizer.encode(text)
    (p, following), (q, _) = halves(model, ids), halves(other, ids)
    at = np.arange(len(p)), following
    kld = (np.exp(p) * (p - q)).sum(axis=1)
    delta = np.exp(q[at]) - np.exp(p[at])
    far = found.divergence
    near = {"rel": 2e-4, "abs": 2e-8}  # of the 16 bits of a base
    assert pair(far.mean_kld) == pytest.approx([kld.mean(), kld.std() / np.sqrt(len(kld) - 1)], **near)
    of_kld = [far.median_kld, far.percentile_999_kld, far.maximum_kld]
    assert of_kld == pytest.approx([np.median(kld), np.percentile(kld, 99.9), kld.max()], **near)
    assert pair(far.ln_ratio) == pytest.approx(pair(Mean_of(p[at] - q[at])), rel=1e-5)
    assert pair(far.mean_delta_p) == pytest.approx(pair(Mean_of(delta)), rel=1e-5)
    square = Mean_of(delta * delta)
    rms = np.sqrt(square.value)
    assert pair(far.rms_delta_p) == pytest.approx([rms, square.error / 2 / rms], rel=1e-5)
    share = np.mean(p.argmax(axis=1) == q.argmax(axis=1))
    assert pair(far.same_top) == pytest.approx([share, np.sqrt(share * (1 - share) / (len(p) - 1))])
    assert far.ppl_base.value == pytest.approx(np.exp(-p[at].mean()), rel=1e-6)
    if qwq_ref.core.available():
        assert far.mean_kld.value > 1e-4


def Mean_of(values):
    mean = Mean()
    for part in np.array_split(values, 3):
        mean.add(part)
    return mean.estimate


def test_a_model_is_near_itself(model, text, tmp_path):
    measure(model, text, ctx=CTX, kl_base=tmp_path / "base")
    far = measure(model, text, kl=tmp_path / "base").divergence
    assert 0 <= far.mean_kld.value < 1e-8
    assert far.maximum_kld < 3e-8
    assert (far.same_top, far.median_kld < 1e-8) == (Estimate(1.0, 0.0), True)


def test_means():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, 500)
    assert pair(Mean_of(values)) == estimate(values)
    assert pair(Mean_of(np.ones(4))) == [1, 0]
    assert root(Estimate(0.0, 0.0)) == Estimate(0.0, 0.0)
    with pytest.raises(ValueError, match="needs two numbers, got 1"):
        _ = Mean_of(np.ones(1))


@pytest.mark.parametrize("parallel", [1, 2, 3])
def test_chunks_before_a_difference_are_scored(text, tmp_path, parallel):
    model = qwq_ref.load("qwq-nano", threads=1, parallel=parallel)
    measure(model, text, ctx=CTX, chunks=4, kl_base=tmp_path / "base")
    ids = model.tokenizer.encode(text)
    with Base(tmp_path / "base") as base:
        measurement = Measurement(model, CTX, None, base=base, parallel=parallel)
        *first, last = groups((ids[i : i + CTX] for i in range(0, 5 * CTX, CTX)), parallel)
        for group in first:
            measurement.add(group)
        with pytest.raises(KlBaseError, match="tokens: end after chunk 4, where the text goes on"):
            measurement.add(last)
        assert measurement.figures.chunks == 4


def test_a_text_in_pieces_is_not_read_ahead(model, text):
    read = 0

    def pieces():
        nonlocal read
        for i in range(0, len(text), 50):
            read += 50
            yield text[i : i + 50]

    source = Chunks(model.tokenizer, pieces(), CTX, None)
    found = iter(source)
    assert len(next(found)) == CTX
    assert read < len(text) / 2
    rest = [*found]
    assert source.left == source.read - CTX * (1 + len(rest)) < CTX
    assert measure(model, (piece for piece in [text[:99], text[99:]]), ctx=CTX) == measure(model, text, ctx=CTX)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"text": "short"}, "text: has . tokens, and a chunk 32: take a longer text, or shorter chunks"),
        ({"ctx": 7}, "ctx: must be 8 to 1024, got 7"),
        ({"ctx": 2048}, "ctx: must be 8 to 1024, got 2048"),
    ],
)
def test_what_cannot_be_measured(model, text, changes, problem, tmp_path):
    with pytest.raises(UsageError, match=problem):
        measure(model, **{"text": text, "ctx": CTX, "kl_base": tmp_path / "base"} | changes)
    assert [*tmp_path.iterdir()] == []


def test_logits_that_are_not_finite_have_no_perplexity(model, text, monkeypatch):
    def broken(backend, requests, path):
        raise NonFiniteError(path, requests[0].name, "is not finite")

    monkeypatch.setattr(chunks, "run_finite_together", broken)
    with pytest.raises(NonFiniteError, match="chunk 1, positions 0 to 15"):
        measure(model, text, ctx=CTX)


# --- The file of a base ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(model, text, tmp_path_factory):
    file = tmp_path_factory.mktemp("base") / "nano.klb"
    measure(model, text, ctx=CTX, chunks=3, kl_base=file)
    return file


def test_the_bytes_of_a_base(model, text, base):
    """A reader written from the docstring of `kl_base` alone."""
    data = base.read_bytes()
    assert data[:8] == b"QWQ-KLB1"
    size = int.from_bytes(data[8:16], "little")
    header = json.loads(data[16 : 16 + size])
    V = header["n_vocab"]
    assert {"n_vocab": 512, "ctx": CTX, "bos": None, "model": "qwq-nano"}.items() <= header.items()
    ids = model.tokenizer.encode(text)
    logs, following = halves(model, ids)
    body = data[16 + size :]
    length = 4 * CTX + N * (2 * V + 8)
    assert len(body) == 3 * length
    for chunk in range(3):
        part, rows = body[chunk * length : (chunk + 1) * length], slice(chunk * N, (chunk + 1) * N)
        assert np.frombuffer(part, "<i4", CTX).tolist() == ids[chunk * CTX : (chunk + 1) * CTX]
        codes = np.frombuffer(part, "<u2", N * V, 4 * CTX).reshape(N, V)
        assert -40 * (codes / 65535) ** 2 == pytest.approx(np.maximum(logs[rows], -40), abs=7e-4)
        tops = np.frombuffer(part, "<i4", N, 4 * CTX + 2 * N * V)
        assert tops.tolist() == logs[rows].argmax(axis=1).tolist()
        surprises = np.frombuffer(part, "<f4", N, 4 * CTX + 2 * N * V + 4 * N)
        assert surprises == pytest.approx(-logs[rows][np.arange(N), following[rows]], rel=1e-6)


def test_codes():
    logs = np.array([[0.0, -40.0, -41.0, -1e9, -1.0]])
    codes = kl_base.encode_logs(logs)
    assert codes.tolist() == [[0, 65535, 65535, 65535, round(65535 / 40**0.5)]]
    assert kl_base.encode_logs(kl_base.LOGS[None]).tolist() == [[*range(65536)]]


@pytest.mark.parametrize(
    ("kind", "changes", "problem"),
    [
        ("whole", {"ctx": 64}, "ctx: is 32, but chunks of 64 tokens are asked for"),
        ("other", {}, "tokens: differ from the text in chunk 1: token 0 is "),
        ("long", {}, "tokens: end after chunk 3, where the text goes on"),
        ("cut", {}, "tokens: fill 3 chunks, and those of the text only "),
    ],
)
def test_another_run_is_refused(model, base, text, kind, changes, problem):
    texts = {"whole": text, "other": "x = 1\n" * 100, "long": text * 4, "cut": text[:120]}
    with pytest.raises(KlBaseError, match=f"{base}: {problem}"):
        measure(model, texts[kind], kl=base, **changes)


def rewritten(base, **changes):
    data = base.read_bytes()
    size = int.from_bytes(data[8:16], "little")
    header = json.dumps(json.loads(data[16 : 16 + size]) | changes).encode()
    return data[:8] + len(header).to_bytes(8, "little") + header + data[16 + size :]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (lambda base: b"", "is not a file of `qwq perplexity --kl-base`"),
        (lambda base: b"_logits_" + bytes(64), "is not a file of"),
        (lambda base: b"QWQ-KLB1" + b"\xff" * 8, "length: of the header is "),
        (lambda base: b"QWQ-KLB1" + (9).to_bytes(8, "little") + b"{}", "length: of the header is 9 bytes"),
        (lambda base: b"QWQ-KLB1" + (2).to_bytes(8, "little") + b"[]", "must hold a JSON object"),
        (lambda base: rewritten(base, model=3), "model: must be a text, got 3"),
        (lambda base: rewritten(base, n_vocab=0), "n_vocab: must be an integer from 1 to"),
        (lambda base: rewritten(base, n_vocab=1 << 40), "n_vocab: must be an integer from 1 to"),
        (lambda base: rewritten(base, n_vocab=True), "n_vocab: must be an integer from 1 to"),
        (lambda base: rewritten(base, n_vocab=1 << 24), "chunks: of .* bytes do not fill the .* bytes of the file"),
        (lambda base: rewritten(base, ctx="32"), "ctx: must be an integer from "),
        (lambda base: rewritten(base, bos=512), "bos: must be an integer from 0 to 511"),
        (lambda base: base.read_bytes()[:-1], "chunks: of .* bytes do not fill"),
    ],
)
def test_a_broken_base_is_one_line(base, data, problem, tmp_path):
    (tmp_path / "x").write_bytes(data(base))
    with pytest.raises(KlBaseError, match=problem) as caught:
        Base(tmp_path / "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("at", "value", "problem"),
    [
        (0, b"\xff\xff\xff\x7f", "tokens: of chunk 1 must be in"),
        (4 * CTX + 2 * N * 512, b"\0\2\0\0", "tops: of chunk 1 must be in"),
        (4 * CTX + 2 * N * 512 + 4 * N, b"\0\0\xc0\x7f", "surprises: of chunk 1 must be finite"),
    ],
)
def test_values_that_no_run_gives(model, base, text, at, value, problem, tmp_path):
    data = bytearray(base.read_bytes())
    start = 16 + int.from_bytes(data[8:16], "little") + at
    data[start : start + 4] = value
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(KlBaseError, match=problem):
        measure(model, text, kl=tmp_path / "x", chunks=1)


def test_another_vocabulary_is_refused(model, base, text, tmp_path):
    """As long as 512 columns are not the model's, the file is of another model."""
    data = base.read_bytes()
    size = int.from_bytes(data[8:16], "little")
    fewer = rewritten(base, n_vocab=500)[: 16 + size] + bytes(kl_base.chunk_bytes(CTX, 500))
    (tmp_path / "x").write_bytes(fewer)
    with pytest.raises(KlBaseError, match="n_vocab: is 500, but the model has 512"):
        measure(model, text, kl=tmp_path / "x")
