"""The peer's process: its settings, its errors and its end. No test depends on a speed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwq_ref.errors import MemoryLimitError, QwqError, UsageError
from qwq_ref.host import memory
from qwq_ref.interop.llama_cpp import peer as peers
from qwq_ref.interop.llama_cpp.bindings import Library
from qwq_ref.interop.llama_cpp.peer import Peer, configurations
from tests.support.paths import ROOT


def test_the_four_that_count():
    found = configurations(3, 1000, flash_attention=True, kv="q8_0")
    assert [(c.name, c.quant, c.repack) for c in found] == [
        ("llama.cpp Q4_0", "Q4_0", True),
        ("llama.cpp Q4_0, no repacking", "Q4_0", False),
        ("llama.cpp Q4_K", "Q4_K", True),
        ("llama.cpp Q4_K, no repacking", "Q4_K", False),
    ]
    assert {(c.threads, c.context, c.flash_attention, c.kv) for c in found} == {(3, 1000, True, "q8_0")}


@pytest.mark.parametrize("choice", configurations(1, 1100), ids=lambda choice: choice.name)
def test_each_configuration_runs(choice, files, capfd):
    with choice.start(files[choice.quant]) as peer:
        assert peer.name == choice.name
        assert peer.prompt(600) > 0
        assert peer.positions == (0, 600)
        assert peer.decode(3, depth=1000) > 0
        assert peer.positions == (1000, 1003)
        assert peer.prompt(20, depth=1000) > 0
        assert peer.positions == (1000, 1020)
        assert peer.decode(1) > 0
        assert peer.positions == (0, 1)
        assert peer.prompt(100, depth=1000) > 0
        assert peer.positions == (1000, 1100)
        assert peer.peak_bytes() > 10e6
        assert peer.version.startswith("llama-cpp-python ")
        assert peer.version.endswith(", f16 cache, mmap")
        assert "CPU_Mapped" in peer.buffers
        if "REPACK = 1" in peer.system:
            assert ("CPU_REPACK" in peer.buffers) == choice.repack
            assert (", repacking," in peer.version) == choice.repack
            assert (", no repacking," in peer.version) != choice.repack
    assert peer._process.poll() is not None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("flash", "kv", "words"),
    [
        (None, "f16", "flash attention auto"),
        (True, "f16", "flash attention on, f16 cache"),
        (False, "f16", "flash attention off, f16 cache"),
        (True, "q8_0", "flash attention on, q8_0 cache"),
    ],
)
def test_settings_reach_llama_cpp(flash, kv, words, files):
    with Peer(files["Q4_0"], "peer", 1, 300, flash_attention=flash, kv=kv) as peer:
        assert words in peer.version
        assert peer.prompt(5, depth=200) > 0


def test_what_settings_become(files, monkeypatch):
    """The fields of llama.cpp's own parameters."""
    given = {}

    class StopError(Exception):
        pass

    class Recorded(Library):
        def _set(self, parameters, what, settings):
            given[what] = settings
            super()._set(parameters, what, settings)
            if what == "context":
                given["flash"] = getattr(parameters, "flash_attn_type", None)
                raise StopError

    monkeypatch.setattr(peers, "Library", Recorded)
    for repack, flash, kv in ((True, None, "f16"), (False, True, "q8_0")):
        requests = peers.queue.SimpleQueue()
        settings = {"path": str(files["Q4_0"]), "threads": 3, "context": 700}
        requests.put(settings | {"repack": repack, "flash_attention": flash, "kv": kv})
        with pytest.raises(StopError):
            peers._serve(requests, None)
        assert given["model"] == {"n_gpu_layers": 0} | ({} if repack else {"use_extra_bufts": False})
        cache = {"f16": 1, "q8_0": 8}[kv]
        assert (
            given["context"].items()
            >= {
                "n_ctx": 700,
                "n_batch": 512,
                "n_ubatch": 512,
                "n_threads": 3,
                "n_threads_batch": 3,
                "type_k": cache,
                "type_v": cache,
            }.items()
        )
        assert given["flash"] in (None, -1 if flash is None else int(flash))


def test_what_a_peer_refuses(files, tmp_path, monkeypatch, gguf):
    path = files["Q4_0"]
    for changes, words in (
        ({"threads": 0}, "threads"),
        ({"context": 0}, "context"),
        ({"kv": "f64"}, "kv: must be one"),
    ):
        with pytest.raises(UsageError, match=words):
            Peer(path, **({"name": "peer", "threads": 1, "context": 64} | changes))
    with pytest.raises(QwqError, match=r"none\.gguf: cannot be opened"):
        Peer(tmp_path / "none.gguf", "peer", 1, 64)
    (tmp_path / "broken.gguf").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(QwqError, match=r"broken\.gguf: llama\.cpp does not load it"):
        Peer(tmp_path / "broken.gguf", "peer", 1, 64)
    with pytest.raises(QwqError, match=r"llama\.cpp makes no context for it"):
        Peer(path, "peer", 1, 64, flash_attention=False, kv="q8_0")
    with Peer(path, "peer", 1, 64) as peer:
        for tokens, depth in ((0, 0), (1, -1), (65, 0), (1, 64)):
            with pytest.raises(UsageError, match="do not fit a context of 64"):
                peer.prompt(tokens, depth)
        assert peer.decode(1, 63) > 0  # it goes on
    with pytest.raises(QwqError, match="has been closed"):
        peer.decode(1)
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(MemoryLimitError):
        Peer(path, "peer", 1, 64)


def test_a_version_without_the_switch(files, monkeypatch):
    """Before September 2025 repacking could not be left out."""
    api = Library(QwqError).api

    class Old:
        n_gpu_layers = 0

    monkeypatch.setattr(api, "llama_model_default_params", Old)
    requests = peers.queue.SimpleQueue()
    settings = {"path": str(files["Q4_0"]), "threads": 1, "context": 64, "flash_attention": None, "kv": "f16"}
    requests.put(settings | {"repack": False})
    with pytest.raises(UsageError, match="use_extra_bufts: llama_model_params has no such field"):
        peers._serve(requests, None)


def test_a_process_that_was_killed(files):
    with Peer(files["Q4_0"], "the peer", 1, 64) as peer:
        assert peer.decode(1) > 0
        os.kill(peer._process.pid, signal.SIGKILL)
        with pytest.raises(QwqError, match=r"Q4_0\.gguf: the peer: the process ended by signal 9"):
            peer.decode(1)
        with pytest.raises(QwqError, match="has been closed"):
            peer.decode(1)


def test_last_words(files, monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho first >&2\necho something is wrong >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(QwqError, match="the process ended with status 3: something is wrong"):
        Peer(files["Q4_0"], "peer", 1, 64)


def test_an_interrupt_is_the_parents(files, monkeypatch):
    """Ctrl-C reaches both. The child goes on until the parent ends it."""
    with Peer(files["Q4_0"], "peer", 1, 64) as peer:
        os.kill(peer._process.pid, signal.SIGINT)
        assert peer.decode(1) > 0

        def interrupted():
            raise KeyboardInterrupt

        answers = peer._process.stdout
        monkeypatch.setattr(
            peer._process, "stdout", type("Pipe", (), {"readline": interrupted, "close": answers.close})
        )
        with pytest.raises(KeyboardInterrupt):
            peer.decode(1)
        assert peer._process.poll() == -signal.SIGKILL


def test_the_child_goes_with_its_parent(files):
    script = (
        "import sys, os, signal\n"
        "from qwq_ref.interop.llama_cpp.peer import Peer\n"
        f"peer = Peer({str(files['Q4_0'])!r}, 'peer', 1, 64)\n"
        "print(peer._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    stat = Path("/proc") / done.stdout.strip() / "stat"
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc to see other processes")
    for _ in range(200):
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("it is still there")


def test_nothing_is_imported_from_the_current_folder(files, tmp_path, monkeypatch):
    (tmp_path / "llama_cpp.py").write_text("raise SystemExit('taken from here')")
    monkeypatch.chdir(tmp_path)
    with Peer(files["Q4_0"], "peer", 1, 64) as peer:
        assert peer.decode(1) > 0


def test_what_a_library_prints_is_not_an_answer(files, tmp_path, monkeypatch):
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text(
        "import os, sys\n"
        "os.write(1, b'noise\\n')\n"
        f"sys.path.remove({str(tmp_path)!r})\n"
        "del sys.modules['llama_cpp']\n"
        "import llama_cpp\n"  # the real one takes its place
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Peer(files["Q4_0"], "peer", 1, 64) as peer:
        assert peer.decode(1) > 0
        peer._errors.seek(0)
        assert peer._errors.read() == b"noise\n"


def test_our_own_threads_settings_are_not_passed_on(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    monkeypatch.setenv("SOMETHING", "else")
    environment = peers._environment()
    assert not [name for name in environment if "OMP_" in name]
    assert environment["SOMETHING"] == "else"


def test_the_child_imports_this_very_package(monkeypatch):
    """Wherever the parent imported it from, installed or not."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert Path(peers._environment()["PYTHONPATH"]) == ROOT
