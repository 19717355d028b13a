"""Faults of the network and of the hub: one line that names the model and what to do, and nothing half-done is used."""

import os
import signal
import subprocess
import sys
import time

import pytest

from qwq_ref.errors import CheckpointError
from qwq_ref.footprint import human
from qwq_ref.formats import resolve
from qwq_ref.formats.hub import download
from qwq_ref.formats.hub.reasons import reason
from tests.support.hub_files import SHARDS, UNREAD, published
from tests.support.hub_server import environment
from tests.support.safetensors_files import INDEX

FILES = published()
LISTING, CONFIG, STORE = "hub:GET /api", "hub:HEAD /owner/name/resolve/main/config.json", "store:GET"
SHARD = f"{STORE} .*{SHARDS['b']}"


@pytest.fixture
def repo(local_hub, monkeypatch):
    """The hub with owner/name in it, and no long waits -> the hub."""
    monkeypatch.setattr(download, "_LISTING_SECONDS", 0.3)
    local_hub.add("owner/name", FILES)
    return local_hub


def fails(words, name="owner/name", **kwargs):
    with pytest.raises(CheckpointError) as caught:
        resolve(name, **kwargs)
    error = caught.value
    assert error.file == name
    assert words in error.problem
    assert str(error).isprintable()
    assert len(str(error)) < 500


def complete(folder):
    for name, data in FILES.items():
        assert name in UNREAD or (folder / name).read_bytes() == data
    assert not list(folder.parents[3].rglob("*.incomplete"))


# --- transfers that break, and go on ---


@pytest.mark.parametrize("after", [0, 50, 100])
@pytest.mark.parametrize("times", [1, 3])
def test_a_transfer_that_is_cut_goes_on_where_it_was(repo, after, times):
    repo.fault(SHARD, "cut", after, times=times)
    complete(resolve("owner/name"))
    ranges = [asked for _, path, asked in repo.log if SHARDS["b"] in path and asked]
    assert ranges == [f"bytes={after * n}-" for n in range(1, times + 1) if after]


@pytest.mark.parametrize("kind", ["stall", "hang"])
def test_a_transfer_that_stands_still_goes_on(repo, kind):
    repo.fault(SHARD, kind, 100, times=1)
    complete(resolve("owner/name"))


@pytest.mark.parametrize("status", [408, 429])
def test_a_store_that_is_busy_is_asked_again(repo, status):
    repo.fault(SHARD, "status", status, times=2)
    complete(resolve("owner/name"))


def test_a_store_that_ignores_ranges(repo, monkeypatch):
    """The transfer begins again: the first bytes are not there twice."""
    repo.fault(SHARD, "cut", 100, times=1)
    monkeypatch.setattr(type(repo), "ranges", False)
    told = []
    complete(resolve("owner/name", progress=told.append))
    assert sum(told) == sum(len(data) for name, data in FILES.items() if name not in UNREAD)


# --- transfers that fail ---


@pytest.mark.parametrize(
    ("where", "kind", "value", "words"),
    [
        (LISTING, "status", 404, "is not a folder, not a file, and the hub has no such model"),
        (LISTING, "status", 401, "or it is private: check the name"),
        (LISTING, "status", 403, "refuses access (no reason given): log in with `hf auth login`, or set HF_TOKEN"),
        (LISTING, "status", 407, "the proxy refuses: check HTTPS_PROXY"),
        (LISTING, "status", 429, "too many requests: try again later"),
        (LISTING, "status", 503, "answers with status 503: try again later"),
        (LISTING, "status", 418, "answers with status 418"),
        (LISTING, "loop", 0, "never end: check HF_ENDPOINT"),
        (LISTING, "page", 0, "does not answer as a hub does"),
        (LISTING, "hang", 0, "does not answer in time"),
        (LISTING, "cut", 20, "the connection to"),
        (CONFIG, "status", 403, "refuses access"),
        (CONFIG, "status", 500, "answers with status 500"),
        (CONFIG, "loop", 0, "never end"),
        (CONFIG, "page", 0, "does not answer as a hub does"),
    ],
)
def test_one_line_for_each_fault(repo, where, kind, value, words):
    repo.fault(where, kind, value)
    fails(words)
    fails("cannot be downloaded: " if value not in (401, 404) else "not a file")


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("status", 403, "refuses access"),
        ("status", 500, "answers with status 500: try again later"),
        ("status", 429, "too many requests"),
        ("cut", 0, "broke: try again"),
        ("loop", 0, "never end"),
        ("page", 0, "a file has another size than the hub says"),
    ],
)
def test_a_store_that_fails_tells_what_is_kept(repo, kind, value, words):
    repo.fault(SHARD, kind, value)
    with pytest.raises(CheckpointError) as caught:
        resolve("owner/name")
    sizes = {name: len(data) for name, data in FILES.items() if name not in (*UNREAD, "config.json", INDEX)}
    whole, lost = sum(sizes.values()), sizes[SHARDS["b"]]
    start, kept = f"owner/name: {SHARDS['b']}: ", f"; 5 of 6 files ({human(whole - lost)} of {human(whole)})"
    assert str(caught.value).startswith(start)
    assert words in str(caught.value)
    assert str(caught.value).endswith(f"{kept} are in the cache, and the next run fetches the rest")
    repo.faults.clear()
    repo.log.clear()
    complete(resolve("owner/name"))
    assert [path for path in repo.asked("GET") if "/api/" not in path] == repo.asked("GET", SHARDS["b"])


def test_a_file_of_another_size(repo):
    repo.fault("hub:HEAD .*model-", "size", 5)
    fails("a file has another size than the hub says: try again")
    assert not list(held_in_cache(repo, "model-"))


def held_in_cache(repo, part):
    from huggingface_hub import constants

    return [name for root, _, names in os.walk(constants.HF_HUB_CACHE) for name in names if part in name]


def test_how_long_to_wait(repo):
    repo.fault(LISTING, "status", 429, {"Retry-After": "30"})
    fails("too many requests: try again in 30 seconds, or log in")


# --- access ---


def test_names_that_the_hub_does_not_have(repo):
    resolve("owner/name")
    fails("the hub has no such model, or it is private: check the name", "owner/nam")
    fails("(did you mean owner/name?)", "owner/nam")
    fails("the hub has owner/name, but not its revision v9: check the name behind the @", "owner/name@v9")
    fails("not its revision " + "f" * 40, "owner/name@" + "f" * 40)


def test_access(repo, monkeypatch):
    repo.gated.add("owner/name")
    fails(f"access is restricted: accept the conditions on {repo.address}/owner/name, and log in with `hf auth login`")
    repo.private.add("owner/name")
    fails("or it is private: check the name. For a private model, log in with `hf auth login`, or set HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    fails("the hub does not accept the token: check HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    complete(resolve("owner/name"))


def test_the_token_does_not_leave_the_hub(repo, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    resolve("owner/name")
    assert {seen for path, seen in repo.authorizations if path.startswith("store")} == {None}


# --- the network ---


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://no-such-host.invalid", "cannot be reached ("),
        ("http://127.0.0.1:9", "cannot be reached (Connection refused): check the network"),
        ("https://127.0.0.1:9", "cannot be reached"),
    ],
)
def test_a_hub_that_is_not_there(repo, monkeypatch, address, words):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    fails(f"cannot be downloaded: {address} {words}")


def test_a_proxy_that_is_not_there(repo, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    repo.forget_connections()
    fails("check the network and the proxy")


# --- the cache ---


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_cache_that_cannot_be_written(repo, tmp_path, place):
    (tmp_path / "file").write_text("")
    fails("the cache cannot be written (", cache_dir=tmp_path / place)


def test_a_disk_that_becomes_full(repo, monkeypatch):
    import errno

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    fails("the disk of the cache is full")


def test_a_partial_snapshot_says_what_it_lacks(repo):
    folder = resolve("owner/name")
    (folder / SHARDS["a"]).unlink()
    repo.fault(LISTING, "status", 503)
    fails(f"but without its {SHARDS['a']}; cannot be downloaded: ")


def test_errors_of_other_versions_of_the_library():
    """Names of classes are compared, along the chain of causes."""

    timeout = type("Timeout", (type("ConnectTimeout", (Exception,), {}),), {})
    proxy, wrapped = type("ProxyError", (Exception,), {}), type("Wrapped", (Exception,), {})

    def said(error, cause=None):
        error.__cause__ = cause
        return reason(error, "owner/name", None, "HUB")

    assert said(timeout()).startswith("HUB does not answer in time")
    assert said(wrapped(), proxy()).startswith("the proxy refuses")
    assert said(wrapped(), ConnectionResetError(104, "reset")).startswith("HUB cannot be reached")
    assert said(wrapped("first line\nsecond line")) == "Wrapped: first line"
    assert said(wrapped("x [SSL: CERTIFICATE_VERIFY_FAILED] y")).startswith("the certificate of HUB")
    loop = wrapped()
    assert said(loop, loop) == "Wrapped: "


# --- Ctrl-C ---


def test_ctrl_c_keeps_what_is_complete(hub, tmp_path):
    hub.add("owner/name", FILES)
    hub.fault(SHARD, "stall", 100, times=1)
    code = "import qwq_ref.formats as f; print(f.resolve('owner/name'))"
    command = [sys.executable, "-c", code]
    env = environment(hub, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="30")
    heed = {
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    }  # a background shell's children ignore it
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **heed)
    deadline = time.monotonic() + 60
    while not hub.asked("GET", SHARDS["b"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, stderr = process.communicate(timeout=30)
    assert time.monotonic() - started < 5
    assert stderr.splitlines()[-1].startswith("5 of 6 files (")
    assert stderr.endswith(" are in the cache, and the next run fetches the rest\n")
    assert not list(tmp_path.rglob("*.incomplete"))
    hub.log.clear()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert [path for path in hub.asked("GET") if "/api/" not in path] == hub.asked("GET", SHARDS["b"])
