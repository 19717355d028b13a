"""How a command ends: signals, errors of the system, and their exit status."""

import asyncio
import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from qwq_ref import cli
from qwq_ref.cli import ending, main
from qwq_ref.errors import FileError, QwqError, UsageError

ENDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "ended by SIGHUP"}


def start(*command, **kwargs):
    def heed():  # a test run in the background has signals ignored, and its children inherit that
        for number in ENDS:
            signal.signal(number, signal.SIG_DFL)

    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": heed}
    return subprocess.Popen([sys.executable, *map(str, command)], **usual | kwargs)


@pytest.mark.parametrize(("number", "words"), ENDS.items())
def test_a_signal_keeps_the_partial_answer(scripted, number, words):
    process = start(
        "-m", "qwq_ref", "generate", "-m", scripted("two", "4!", ends=False), "what?", "--loop-guard", "off"
    )
    first = process.stdout.read(2)
    process.send_signal(number)
    rest, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert (first + rest).startswith("4!")
    assert rest.endswith("\n")
    assert re.search(rf"\nqwq: {words}: \d+ output tokens were generated\n$", err), err
    assert "output: " in err
    assert "Traceback" not in err


def test_a_signal_keeps_the_partial_json(scripted):
    endless = ("-m", scripted("two", "4!", ends=False), "what?", "--loop-guard", "off")
    process = start("-m", "qwq_ref", "generate", *endless, "--json", "-v")
    for line in process.stderr:
        if line.startswith("context: "):  # the model is loaded, and the answer is about to begin
            break
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert '"finish_reason": "interrupt"' in out or not out
    assert err.splitlines()[-1].startswith("qwq: ended by SIGTERM")


SLOW = """
import signal, sys, time
from qwq_ref.cli import ending
def work():
    try:
        print("works", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("keeps", flush=True)
        time.sleep(60)
with ending.signals(own=True):
    ending.run(work, lambda: False)
"""


@pytest.mark.parametrize("second", ENDS)
def test_the_second_signal_ends_at_once(second):
    process = start("-c", SLOW)
    for line in ("works\n", "keeps\n"):
        assert process.stdout.readline() == line
        process.send_signal(second if line == "keeps\n" else signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == -second


def test_what_was_printed_before_a_signal_is_printed_once():
    """The signal comes right after the system call that wrote a line, most of the time."""
    script = """
from qwq_ref.cli import ending, streams
def work():
    for i in range(1000000):
        print(i, flush=True)
with ending.signals(own=True), streams.standard():
    ending.run(work, lambda: False)
"""
    for _ in range(10):
        process = start("-c", script)
        first = os.read(process.stdout.fileno(), 1).decode()
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
        lines = (first + rest).splitlines()
        assert lines == [str(i) for i in range(len(lines))]
        assert err == "qwq: interrupted\n"


def test_signals_that_are_ignored_stay_so():
    """`nohup` ignores SIGHUP, and a shell ignores SIGINT of its background."""
    script = "import signal\nfor n in (1, 2): signal.signal(n, signal.SIG_IGN)" + SLOW
    process = start("-c", script.replace("time.sleep(60)", "time.sleep(1)"))
    assert process.stdout.readline() == "works\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


def test_a_caller_of_main_has_its_handlers_back(capsys):
    for number, handler in zip(ENDS, (signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL), strict=True):
        signal.signal(number, handler)  # a test run in the background has SIGINT ignored
    before = {number: signal.getsignal(number) for number in ENDS}
    assert main(["golden", "mistakes"]) == 0
    assert {number: signal.getsignal(number) for number in ENDS} == before
    with pytest.raises(KeyboardInterrupt), ending.signals(own=False):
        signal.raise_signal(signal.SIGINT)
    assert {number: signal.getsignal(number) for number in ENDS} == before


def refuses(number, *files):
    return OSError(number, os.strerror(number), *files)


SYSTEM = {
    "of a file": (refuses(errno.ESTALE, "a/b"), 1, "qwq: a/b: Stale file handle"),
    "bytes": (refuses(errno.EACCES, b"a/\xff"), 1, "qwq: a/\\udcff: Permission denied"),
    "a descriptor": (refuses(errno.EIO, 7), 1, "qwq: the system: Input/output error"),
    "of no file": (refuses(errno.EMFILE), 1, "qwq: the system: Too many open files"),
    "a quota": (refuses(errno.EDQUOT, "c"), 1, "qwq: c: Disk quota exceeded"),
    "without number": (OSError("no luck"), 1, "qwq: the system: no luck"),
    "memory": (MemoryError(), 1, "qwq: memory: is used up"),
    "NumPy's": (MemoryError("Unable to allocate 3 GiB"), 1, "qwq: memory: is used up (Unable to allocate 3 GiB)"),
    "threads": (RuntimeError("can't start new thread"), 1, "qwq: threads: the system allows no more"),
    "a pipe": (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    "Ctrl-C": (KeyboardInterrupt(), 130, "qwq: interrupted"),
    "an error": (QwqError("f", "x", "is wrong"), 1, "qwq: f: x: is wrong"),
    "a file error": (FileError("f", None, "is gone"), 1, "qwq: f: is gone"),
    "a wrong use": (UsageError(None, "x", "is wrong"), 2, "qwq: x: is wrong"),
}


@pytest.mark.parametrize("name", SYSTEM)
def test_errors_are_one_line(capsys, monkeypatch, name):
    problem, status, line = SYSTEM[name]

    def fails(given, options):
        print("so far", end="")
        raise problem

    monkeypatch.setattr(cli, "parse", fails)
    assert main(["info"]) == status
    assert capsys.readouterr() == ("so far", line and f"{line}\n")


def test_faults_of_this_program_keep_their_traceback(monkeypatch):
    for problem in (RuntimeError("a fault"), ValueError("a fault"), ZeroDivisionError()):

        def fails(given, options, problem=problem):
            raise problem

        monkeypatch.setattr(cli, "parse", fails)
        with pytest.raises(type(problem)):
            main(["info"])
    monkeypatch.setattr(cli, "parse", lambda given, options: setattr(options, "verbose", True) or {}["nothing"])
    with pytest.raises(KeyError):
        main(["info"])


@pytest.mark.parametrize("most", [4, 8, 16])
def test_too_few_open_files(most):
    """Even imports fail: whatever fails first, it is one line."""
    script = "import resource, sys; from qwq_ref.cli import main; resource.setrlimit(7, (MOST,) * 2); sys.exit(main())"
    done = start("-c", script.replace("MOST", str(most)), "generate", "1+1?", "--temp", "0")
    err = done.communicate(timeout=120)[1]
    assert "Traceback" not in err
    assert err.startswith("qwq: ") or done.returncode == 0
    assert done.returncode in (0, 1)


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_in_any_task_of_a_loop_cancels_the_coroutine(number, caplog):
    """KeyboardInterrupt in the other task would end the loop, and asyncio would report a task that nobody asked."""
    told = []

    async def other():
        signal.raise_signal(number)
        told.append("other")

    async def work():
        task = asyncio.create_task(other())
        try:
            await asyncio.sleep(60)
        finally:
            await task
            told.append("ended")

    with ending.signals(own=False), pytest.raises(KeyboardInterrupt):
        ending.run_loop(work())
    assert told == ["other", "ended"]
    assert ending._last == number
    assert not caplog.records


def test_a_signal_ends_a_block_of_a_coroutine_that_waits_for_the_system():
    read, write = os.pipe()

    async def work():
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with ending.blocking():
            os.read(read, 1)

    with ending.signals(own=False), pytest.raises(KeyboardInterrupt):
        ending.run_loop(work())
    os.close(read)
    os.close(write)


def test_after_a_loop_signals_interrupt_as_before():
    async def work():
        with ending.blocking():
            pass

    with ending.signals(own=False):
        before = signal.getsignal(signal.SIGTERM)
        ending.run_loop(work())
        assert signal.getsignal(signal.SIGTERM) is before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
