"""A session holds the ids that its sequence holds: through chunks, roll-backs and interruptions."""

import numpy as np
import pytest

from qwq_ref.engine.backends import logits

IDS = [5, 9, 1, 200, 7, 7, 30, 12]


def test_a_session_gives_the_logits_of_its_last_token(random_model):
    wanted = logits(random_model.backend, IDS)
    session = random_model.session()
    for cut in (1, 3, len(IDS)):
        session.extend(IDS[len(session.ids) : cut])
        assert session.ids == IDS[:cut]
        np.testing.assert_allclose(session.next_logits(), wanted[cut - 1], rtol=0, atol=1e-5)


def test_logits_after_a_rollback_are_the_earlier_ones(random_model):
    session = random_model.session()
    seen = []
    for token in IDS:
        session.extend([token])
        seen.append(session.next_logits().copy())
    for length in (7, 4, 4, 1):
        session.rollback(length)
        assert session.ids == IDS[:length]
        assert np.array_equal(session.next_logits(), seen[length - 1])
        assert session.ids == IDS[:length]
    for token, wanted in zip(IDS[1:], seen[1:], strict=True):
        session.extend([token])
        assert np.array_equal(session.next_logits(), wanted)


def test_impossible_requests_are_refused(random_model):
    session = random_model.session()
    with pytest.raises(ValueError, match="an empty session has no logits"):
        session.next_logits()
    session.extend(IDS)
    for length in (-1, 9):
        with pytest.raises(ValueError, match=f"length must be 0 to 8, got {length}"):
            session.rollback(length)
    for ids in ([random_model.config.V], [-1], [1] * random_model.context):
        with pytest.raises(ValueError, match="token_ids"):
            session.extend(ids)
        session.rollback(8)
    session.rollback(0)
    session.extend(IDS)
    assert session.ids == IDS


def test_an_interruption_leaves_whole_chunks(random_model, monkeypatch):
    ids = list(np.random.default_rng(0).integers(0, 200, random_model.backend.chunk + 3))
    whole, session = random_model.session(), random_model.session()
    whole.extend(ids)
    true, calls = random_model.backend.run, []

    def run(chunk, *rest, **more):
        calls.append(len(chunk))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return true(chunk, *rest, **more)

    monkeypatch.setattr(random_model.backend, "run", run)
    with pytest.raises(KeyboardInterrupt):
        session.extend(ids)
    assert session.ids == ids[: random_model.backend.chunk]
    session.extend(ids[len(session.ids) :])
    assert np.array_equal(session.next_logits(), whole.next_logits())
