"""The pool of threads: every piece runs once, whoever takes it; late threads, forks, refused threads, many callers."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from qwq_ref import core
from tests.support.paths import ROOT

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)

STRESS = ROOT / "tests/core/pool_stress.c"
needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
no_sanitizer = pytest.mark.skipif("QWQ_SANITIZED" in os.environ, reason="a process of its own")


def stress(folder, *arguments, flags=()):
    """Run tests/core/pool_stress.c -> loops, started threads, pieces that other threads ran."""
    program = folder / "pool_stress"
    command = ["gcc", "-std=gnu11", "-O1", "-g", "-pthread", f"-I{ROOT / 'csrc'}", *flags, "-o", program, STRESS, "-lm"]
    subprocess.run(command, check=True, cwd=ROOT)
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    return tuple(map(int, done.stdout.split()))


@needs_gcc
@no_sanitizer
@pytest.mark.parametrize(("callers", "most_new"), [(1, 39), (3, 39), (2, 1)])
def test_every_piece_runs_once_before_its_loop_returns(callers, most_new, tmp_path, pytestconfig):
    loops, started, by_others = stress(tmp_path, 60 if pytestconfig.getoption("--long") else 1, callers, most_new)
    assert loops > 100
    assert 1 <= started <= most_new
    assert by_others > 0


@needs_gcc
@no_sanitizer
def test_without_new_threads_the_caller_does_all(tmp_path):
    loops, started, by_others = stress(tmp_path, 0.2, 2, 0)
    assert loops > 10
    assert started == by_others == 0


@needs_gcc
@no_sanitizer
def test_thread_sanitizer_finds_no_race(tmp_path):
    source = tmp_path / "trial.c"
    source.write_text("int main(void) { return 0; }\n")
    trial = ["gcc", "-fsanitize=thread", "-o", tmp_path / "trial", source]
    if subprocess.run(trial, capture_output=True).returncode or subprocess.run([tmp_path / "trial"]).returncode:
        pytest.skip("gcc is here, but its ThreadSanitizer is not, or it cannot run: install libtsan")
    loops, _, by_others = stress(tmp_path, 2, 3, 39, flags=["-fsanitize=thread"])
    assert loops > 50
    assert by_others > 0


def product(threads, seed=0):
    """A product of a size that is shared among threads."""
    rng = np.random.default_rng(seed)
    x, w = (rng.standard_normal((n, 1024)).astype(np.float32) for n in (24, 512))
    return core.matmul(x, core.quantise(w, "q8", threads=threads), threads=threads)


def test_callers_side_by_side_get_the_bits_of_one_alone():
    wanted = [product(1, seed) for seed in range(4)]
    wrong = []

    def call(seed):
        for threads in (1, 2, 3, 8, 40):
            if not np.array_equal(product(threads, seed), wanted[seed]):
                wrong.append((seed, threads))

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_threads_of_its_own():
    """It is forked in the midst of another thread's loops, so the child's copy of the pool is taken."""
    wanted, stop = product(1), threading.Event()

    def go_on():
        while not stop.is_set():
            product(3)

    other = threading.Thread(target=go_on)
    other.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                try:
                    same = np.array_equal(product(3), wanted)
                    os._exit(0 if same and len(os.listdir("/proc/self/task")) == 3 else 1)
                finally:
                    os._exit(2)
            assert status_of(child) == 0
    finally:
        stop.set()
        other.join()
    assert np.array_equal(product(3), wanted)


def status_of(child, seconds=60):
    """The exit status of a child, which is killed if it hangs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


SUBNORMALS = """
import torch, numpy as np
from qwq_ref.core import ops
torch.set_flush_denormal(True)  # of this thread; the pool's threads start now
tiny = np.full((64, 1 << 16), 1e-39, np.float32)
ops.swiglu(tiny, tiny, threads=2)
torch.set_flush_denormal(False)
x, w = np.full((4096, 256), 1e-39, np.float32), np.ones(256, np.float32)
alone = ops.rmsnorm(x, w, 1e-6)
assert alone.all()
for _ in range(50):
    assert np.array_equal(ops.rmsnorm(x, w, 1e-6, threads=2), alone)
print("same")
"""


def test_a_thread_keeps_nothing_of_the_rounding_of_the_one_that_started_it():
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", SUBNORMALS], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "same", done.stderr
