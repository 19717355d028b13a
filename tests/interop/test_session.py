"""The peer measures exactly what it was asked for: its session, in this process. No test depends on a speed."""

import numpy as np
import pytest

from qwq_ref.errors import QwqError
from qwq_ref.interop.llama_cpp import peer as peers
from qwq_ref.interop.llama_cpp.bindings import Library
from qwq_ref.interop.llama_cpp.gguf import write_gguf
from qwq_ref.interop.llama_cpp.peer import Peer
from tests.support.gguf_models import peer_config


class Watched(Library):
    """Notes each batch: (first position, its tokens' number, the places whose logits are wanted)."""

    def __init__(self):
        super().__init__(QwqError)
        self.seen = []

    def decode(self, run, batch):
        n = batch.n_tokens
        self.seen.append((batch.pos[0], n, [i for i in range(n) if batch.logits[i]]))
        return super().decode(run, batch)

    def noted(self):
        seen, self.seen = self.seen, []
        return seen


@pytest.fixture
def session(files, request):
    """Of Q4_0, with room for 2048 positions."""
    library, path = Watched(), files["Q4_0"]
    context = {"n_ctx": 2048, "n_batch": 512, "n_ubatch": 512, "n_threads": 1, "n_threads_batch": 1}
    with (
        library.log() as log,
        library.model(path, {}, log) as model,
        library.context(path, model, context, None, log) as run,
    ):
        yield peers._Session(str(path), library, run, library.vocabulary(model), 2048, log)


def logits_of(session):
    address = session.library.api.llama_get_logits_ith(session.run, -1)
    return np.ctypeslib.as_array(address, (session.vocabulary,)).copy()


def test_a_prompt_is_computed_as_llama_bench_does(session):
    """512 at once, and the logits of the last token alone. The first time it is computed once more before."""
    session.prompt(600, 0)
    measured = [(0, 512, []), (512, 88, [87])]
    assert session.library.noted() == [(0, 512, [511]), *measured]
    session.prompt(600, 0)
    assert session.library.noted() == measured
    session.prompt(7, 3)
    assert session.library.noted() == [(0, 3, []), (3, 7, [6]), (3, 7, [6])]


def test_decoding_goes_token_by_token(session):
    session.decode(3, 10)
    measured = [(10, 1, [0]), (11, 1, [0]), (12, 1, [0])]
    assert session.library.noted() == [(0, 10, []), (10, 1, [0]), *measured]
    session.decode(3, 10)
    assert session.library.noted() == measured


def test_a_depth_is_computed_once(session):
    session.prompt(512, 0)
    session.decode(1, 0)
    session.library.noted()
    measured = [(1100, 1, [0]), (1101, 1, [0])]
    session.decode(2, 1100)
    assert session.library.noted() == [(0, 512, []), (512, 512, []), (1024, 76, []), *measured]
    session.decode(2, 1100)
    assert session.library.noted() == measured
    session.decode(1, 1103)  # more is added
    assert session.library.noted() == [(1100, 3, []), (1103, 1, [0])]
    session.decode(1, 40)  # what is there is used
    assert session.library.noted() == [(40, 1, [0])]
    session.decode(1, 50)  # and the rest is gone
    assert session.library.noted() == [(40, 10, []), (50, 1, [0])]


def test_what_was_rolled_back_has_no_influence(session, files):
    """The logits are those of a context in which nothing else has ever been."""
    session.prompt(300, 0)
    session.decode(20, 200)
    session.prompt(30, 100)
    after = logits_of(session)
    library = session.library
    ids = session.ids[:130]
    settings = {"n_ctx": 2048, "n_threads": 1, "n_threads_batch": 1}
    with (
        library.log() as log,
        library.model(files["Q4_0"], {}, log) as model,
        library.context(files["Q4_0"], model, settings, None, log) as run,
        library.batch(ids[:100], 0, [False] * 100) as depth,
        library.batch(ids[100:], 100, [i == 29 for i in range(30)]) as prompt,
    ):
        assert library.decode(run, depth) == library.decode(run, prompt) == 0
        fresh = np.ctypeslib.as_array(library.api.llama_get_logits_ith(run, -1), (300,)).copy()
    assert 0.1 < fresh.std() < 10
    np.testing.assert_allclose(after, fresh, atol=1e-4)


def test_a_cache_that_holds_something_else_is_noticed(session, monkeypatch):
    monkeypatch.setattr(session.library, "remove", lambda run, start: None)
    with pytest.raises(QwqError, match=r"positions were in the cache, not 0 and 2|cannot decode it"):
        session.decode(2, 0)
    monkeypatch.undo()
    monkeypatch.setattr(session.library, "positions", lambda run: 5)
    with pytest.raises(QwqError, match="5 and then 5 positions were in the cache, not 0 and 2"):
        session.decode(2, 0)


def test_logits_that_are_not_finite_are_no_measurement(gguf, tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, peer_config(), "Q4_0")
    output = next(t for t in gguf.GGUFReader(path).tensors if t.name == "output.weight")
    with open(path, "r+b") as file:
        file.seek(int(output.data_offset) + 208)  # the scale of its first block
        file.write(np.float16(np.nan).tobytes())
    with Peer(path, "peer", 1, 64) as peer, pytest.raises(QwqError, match="logits are not finite"):
        peer.decode(1)
