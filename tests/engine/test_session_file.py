"""A saved session continues with the same bits, and a file that is none of this model's is refused in one line."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import qwq_ref
from qwq_ref.engine.session_file import load_session, save_session
from qwq_ref.errors import SessionFileError, UsageError

IDS = np.random.default_rng(0).integers(0, 200, 300).tolist()


@pytest.fixture(scope="module", params=[("core", "int8"), ("core", "fp32"), ("numpy", "fp32")], ids=" ".join)
def model(request, random_folder):
    backend, kv = request.param
    return qwq_ref.load(random_folder, backend=backend, kv=kv, weights="q8" if kv == "int8" else "fp32")


@pytest.fixture
def saved(model, tmp_path):
    session = model.session()
    session.extend(IDS)
    save_session(session, tmp_path / "a.qwqcache")
    return session, tmp_path / "a.qwqcache"


def test_it_goes_on_with_the_same_bits(model, saved):
    session, path = saved
    loaded = load_session(model, path)
    assert loaded.ids == IDS
    for each in (session, loaded):
        each.extend([5, 6, 7])
    assert np.array_equal(session.next_logits(), loaded.next_logits())
    for each in (session, loaded):
        each.rollback(200)
        each.extend([9])
    assert np.array_equal(session.next_logits(), loaded.next_logits())


def test_a_loaded_session_answers_without_computing_the_prompt(model, tmp_path):
    how = {"temperature": 0, "max_tokens": 6}
    first = model.session()
    one = model.generate("What is 12+34?", session=first, **how)
    wanted = "".join(map(str, one))
    save_session(first, tmp_path / "a.qwqcache")
    again = model.generate("What is 12+34?", session=load_session(model, tmp_path / "a.qwqcache"), **how)
    assert "".join(map(str, again)) == wanted
    assert again.run.cached == len(again.run.prompt) - 1


def test_nothing_of_another_conversation_is_saved(saved, model, tmp_path):
    """Two sessions with the same tokens, of which one held others before, give the same file."""
    session = model.session()
    session.extend(IDS)
    session.extend(range(50))
    session.rollback(len(IDS))
    save_session(session, tmp_path / "b.qwqcache")
    assert (tmp_path / "b.qwqcache").read_bytes() == saved[1].read_bytes()


def test_the_file_is_safetensors(saved):
    tensors = load_file(saved[1])
    assert tensors["ids"].tolist() == IDS


def test_an_empty_session_is_refused(model, tmp_path):
    with pytest.raises(UsageError, match="session: holds no token"):
        save_session(model.session(), tmp_path / "a.qwqcache")
    assert not (tmp_path / "a.qwqcache").exists()


def header_of(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header, rest):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def test_damaged_files_are_refused(model, saved, tmp_path):
    _, path = saved
    data, pool = path.read_bytes(), getattr(model.backend, "pool", None)
    header, rest = header_of(data)
    used = pool and pool.used

    def changed(**metadata):
        return with_header(header | {"__metadata__": header["__metadata__"] | metadata}, rest)

    last = [name for name in header if name != "__metadata__"][-1]
    cases = {
        b"": "header: is missing",
        data[:-1]: "past the end of the file",
        data[:-1] + bytes([data[-1] ^ 1]): "sha256: is not that of the contents",
        rest[:4].join([data[: -len(rest)], b"\xff" * 4]) + rest[4:]: "ids: must be in|past the end|does not account",
        changed(format="other"): "is not a saved session",
        changed(version="2"): "version: is 2, not 1: save it again",
        changed(identity="{}"): "identity: is of another model or form",
        changed(length="299"): "ids: are not those of the length",
        with_header({k: v for k, v in header.items() if k != last}, rest): "does not account for|must be",
        b"GGUF" + data: "is not a safetensors file|header",
    }
    for broken, words in cases.items():
        path.write_bytes(broken)
        with pytest.raises(SessionFileError, match=words) as caught:
            load_session(model, path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)
    del caught
    assert (pool and pool.used) == used
    flipped = rest[:4] + bytes(4) + rest[8:]
    path.write_bytes(with_header(header, flipped))
    with pytest.raises(SessionFileError, match="sha256"):
        load_session(model, path)


def test_a_session_of_another_model_is_refused(model, saved, random_folder, monkeypatch):
    _, path = saved
    other = qwq_ref.load(random_folder, backend="core", kv="int8" if model.backend.kv == "fp32" else "fp32")
    with pytest.raises(SessionFileError, match=r"identity: is of another model or form: its (KV|weights) "):
        load_session(other, path)
    if hasattr(model.backend, "pool"):
        weights = model.backend.weights
        changed = dataclasses.replace(weights, norm=weights.norm * np.float32(1.5))
        twin = type(model.backend)(model.config, changed, model.context, model.backend.kv)
        monkeypatch.setattr(model, "backend", twin)
        with pytest.raises(SessionFileError, match=r"identity: is of another model or form$"):
            load_session(model, path)


def test_a_longer_context_than_there_is_room_for(saved, model, random_folder):
    _, path = saved
    if model.backend.kv == "int8":
        small = qwq_ref.load(random_folder, backend="core", kv="int8", weights="q8", context=256)
        with pytest.raises(SessionFileError, match="ids: are 300, and the context has room for 256"):
            load_session(small, path)
