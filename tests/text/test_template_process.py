"""The child process of a chat template: hidden start, restart, end, and what it cannot reach."""

import gc
import json
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from qwq_ref.errors import TemplateError
from qwq_ref.text import ChatTemplate, start_templates, template_process
from tests.support.conversations import USER
from tests.support.paths import ROOT
from tests.support.processes import ends, runs

ECHO = "{{ messages[0].content }}"
# Renders for ever when the first message says so.
MOODY = (
    ECHO + "{% if messages[0].content == 'loop' %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
)
MOODY += "{% endfor %}{% endif %}"
needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at /proc")


def said(text):
    return [{"role": "user", "content": text}]


def pid_of(template):
    return template._process.pid


def script(source, *arguments, **options):
    """Run a script of a few lines, as `python -c`, with a template `t` at hand."""
    start = f"import sys; from qwq_ref.text import ChatTemplate; t = ChatTemplate({MOODY!r}, seconds=0.5)\n"
    start += "say = lambda text: t.render([{'role': 'user', 'content': text}])\n"
    options = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([sys.executable, "-c", start + source, *arguments], **options)


# --- Start and restart ------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_python(tmp_path, monkeypatch):
    """A Python that waits for a second before it starts."""
    file = tmp_path / "python"
    file.write_text(f'#!/bin/sh\nsleep 1\nexec {sys.executable} "$@"\n')
    file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(file))


def test_the_constructor_does_not_wait(slow_python):
    start = time.monotonic()
    template = ChatTemplate(ECHO)
    made = time.monotonic() - start
    template.check()
    assert made < 1 <= time.monotonic() - start
    assert template.render(said("x")) == "x"


def test_a_child_can_start_before_its_template(slow_python):
    start = time.monotonic()
    start_templates()
    start_templates()
    assert time.monotonic() - start < 1
    (spare,) = template_process._spare
    template = ChatTemplate(ECHO)
    assert pid_of(template) == spare.pid
    assert template.render(said("a")) == "a"
    assert pid_of(ChatTemplate(ECHO)) != spare.pid


def test_a_spare_child_that_has_ended_is_not_taken():
    start_templates()
    (spare,) = template_process._spare
    os.kill(spare.pid, signal.SIGKILL)
    assert ends(spare.pid)
    assert ChatTemplate(ECHO).render(said("a")) == "a"


def test_a_start_ahead_that_fails_is_reported_by_the_template(monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    start_templates()
    with pytest.raises(TemplateError, match="cannot start a process"):
        ChatTemplate(ECHO)


def test_a_spare_child_ends_with_its_parent():
    source = "from qwq_ref.text import *; from qwq_ref.text import template_process as p; start_templates()\n"
    with script(source + "print(p._spare[0].pid, flush=True)") as parent:
        pid = int(parent.stdout.readline())
    assert ends(pid)


def test_a_template_that_does_not_compile_is_refused_at_each_use():
    template = ChatTemplate("{% if %}", "file")
    for use in (template.check, template.check, lambda: template.render([USER])):
        with pytest.raises(TemplateError, match=r"^file: line 1: Expected an expression"):
            use()


def test_one_child_renders_all():
    template = ChatTemplate(ECHO)
    pid = pid_of(template)
    assert [template.render(said(text)) for text in "abc"] == ["a", "b", "c"]
    assert pid_of(template) == pid


def test_a_child_that_ran_too_long_is_replaced():
    template = ChatTemplate(MOODY, "file", seconds=0.3)
    assert template.render(said("a")) == "a"
    pid = pid_of(template)
    for _ in range(2):
        with pytest.raises(TemplateError, match=r"^file: the template runs for more than 0.3 seconds$"):
            template.render(said("loop"))
        assert ends(pid, 0)
        assert template.render(said("b")) == "b"
    assert pid_of(template) != pid


def test_the_time_limit_is_for_one_rendering():
    """The child may compute for longer than that in its life; the system counts in whole seconds."""
    template = ChatTemplate(MOODY.replace("99999", "1700"), seconds=0.9)
    template.check()
    pid = pid_of(template)
    for _ in range(15):
        assert template.render(said("loop")) == "loop"
    assert pid_of(template) == pid


def test_time_that_other_programs_take_does_not_count():
    template = ChatTemplate(MOODY, seconds=0.3)
    template.check()
    pid = pid_of(template)
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(1, os.kill, (pid, signal.SIGCONT)).start()
    assert template.render(said("a")) == "a"
    assert pid_of(template) == pid


def test_a_child_that_somebody_killed_is_replaced():
    template = ChatTemplate(MOODY, seconds=60)
    template.check()
    pid = pid_of(template)
    os.kill(pid, signal.SIGKILL)
    assert ends(pid)
    assert template.render(said("a")) == "a"
    pid = pid_of(template)
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(TemplateError, match=r"crashes \(signal 9, Killed\)"):
        template.render(said("loop"))
    assert template.render(said("b")) == "b"


def test_an_exception_during_a_rendering_leaves_no_stale_answer():
    def interrupt(*_):
        raise KeyboardInterrupt

    template = ChatTemplate(MOODY, seconds=60)
    template.check()
    pid = pid_of(template)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            template.render(said("loop"))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert ends(pid, 0)
    assert template.render(said("b")) == "b"


# --- Threads and processes --------------------------------------------------------------------------------------------


def test_each_thread_gets_its_own_answer():
    template = ChatTemplate(ECHO)
    wrong = []

    def work(number):
        for turn in range(50):
            text = f"{number} {turn} " * (1 + number * 500)
            if template.render(said(text)) != text:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_process_has_its_own_child():
    template = ChatTemplate(ECHO)
    assert template.render(said("a")) == "a"
    pid = pid_of(template)
    with template._process._lock:  # as if another thread rendered
        read, write = os.pipe()
        if (forked := os.fork()) == 0:
            own = template.render(said("b" * 100_000)) == "b" * 100_000 and pid_of(template) != pid
            os.write(write, b"%d %d" % (own, pid_of(template) or 0))
            del template
            gc.collect()
            os._exit(0)
    os.close(write)
    own, pid_there = map(int, os.read(read, 100).split())
    os.close(read)
    os.waitpid(forked, 0)
    assert own
    assert ends(pid_there)
    assert template.render(said("c")) == "c"
    assert pid_of(template) == pid


def rendered_elsewhere(text):
    return ChatTemplate(ECHO).render(said(text))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_in_processes_of_multiprocessing(method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(rendered_elsewhere, ["a", "b", "c"]) == ["a", "b", "c"]


def test_the_child_ends_with_its_template():
    template = ChatTemplate(ECHO)
    pid = pid_of(template)
    assert runs(pid)
    del template
    gc.collect()
    assert ends(pid, 0)


@pytest.mark.parametrize("end", ["pass", "sys.exit(1)", "import os; os._exit(0)", "import os; os.kill(os.getpid(), 9)"])
def test_the_child_ends_with_its_parent(end):
    with script(f"say('a'); print(t._process.pid, flush=True); {end}") as parent:
        pid = int(parent.stdout.readline())
    assert ends(pid)


def test_a_busy_child_ends_after_its_parent_is_killed():
    with script("say('a'); print(t._process.pid, flush=True); say('loop')") as parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.2)
        parent.kill()
    assert ends(pid)


def test_the_child_does_not_see_ctrl_c():
    source = """
try:
    say('a')
    print(t._process.pid, flush=True)
    sys.stdin.read()
except KeyboardInterrupt:
    print(say('b'), t._process.pid)
"""
    options = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    with script(
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)" + source, **options
    ) as parent:
        pid = int(parent.stdout.readline())
        os.killpg(parent.pid, signal.SIGINT)
        rest, errors = parent.communicate()
    assert (rest.split(), errors) == (["b", str(pid)], "")


def test_without_home_in_a_folder_that_is_gone(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    source = "import os; os.rmdir(sys.argv[1]); print(say('a'))"
    environment = {"PYTHONPATH": str(ROOT)}
    with script(source, str(folder), cwd=folder, env=environment) as process:
        assert process.stdout.read() == "a\n"


def test_in_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with script("print(say('a'))", cwd=tmp_path) as process:
        assert process.stdout.read() == "a\n"
    tmp_path.chmod(stat.S_IRWXU)


# --- What the child cannot do -----------------------------------------------------------------------------------------


@needs_proc
def test_the_child_inherits_next_to_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("TZ", "UTC")
    with (tmp_path / "file").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        template = ChatTemplate(ECHO)
        template.check()
    process = Path(f"/proc/{pid_of(template)}")
    names = {entry.partition("=")[0] for entry in (process / "environ").read_text().split("\0")}
    assert names <= {"", "TZ", "LD_LIBRARY_PATH", "LC_CTYPE"}  # the last is Python's own doing
    assert {entry.name for entry in (process / "fd").iterdir()} == {"0", "1", "2"}
    assert os.readlink(process / "cwd") == "/"
    assert os.getsid(pid_of(template)) == pid_of(template)
    limits = (process / "limits").read_text().splitlines()
    for name in ("Max open files", "Max file size", "Max processes", "Max core file size"):
        (line,) = (line for line in limits if line.startswith(name))
        assert line.removeprefix(name).split()[:2] == ["0", "0"]


def test_the_child_is_small():
    """It imports Jinja, and neither NumPy nor this package."""
    worker = template_process._WORKER
    source = f"import runpy, sys; sys.path += sys.argv[1:]; runpy.run_path({str(worker)!r})\nprint(*sys.modules)"
    folders = template_process._command()[-2:]
    done = subprocess.run([sys.executable, "-I", "-S", "-c", source, *folders], capture_output=True, text=True)
    names = set(done.stdout.split())
    assert "jinja2" in names
    assert not {name.partition(".")[0] for name in names} & {"numpy", "qwq_ref", "tokenizers", "asyncio", "socket"}


def test_a_confined_process_opens_nothing_and_starts_nothing():
    source = """
import socket, subprocess, sys
from qwq_ref.text import template_worker
template_worker._confine(1 << 30)
for forbidden in (lambda: open('/dev/null'), socket.socket, lambda: subprocess.run(['true'])):
    try:
        forbidden()
        print('allowed')
    except OSError as problem:
        print(problem.errno)
"""
    with script(source) as process:
        assert process.stdout.read().split() == ["24"] * 3  # EMFILE; starting a process needs a pipe first


@pytest.mark.parametrize("zone", ["XYZ-5:30", "Asia/Kolkata"])
def test_a_confined_process_can_still_tell_the_time(monkeypatch, zone):
    if "/" in zone and not Path("/usr/share/zoneinfo", zone).exists():
        pytest.skip("this machine has no time zones")
    monkeypatch.setenv("TZ", zone)
    template = ChatTemplate("{{ strftime_now('%d %H:%M') }}")
    there = timezone(timedelta(hours=5, minutes=30))
    before = datetime.now(there)
    shown = template.render([USER])
    assert shown in {f"{now:%d %H:%M}" for now in (before, datetime.now(there))}


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
def test_memory_is_watched_where_the_system_does_not_limit_it(monkeypatch):
    monkeypatch.setattr(template_process, "_WATCH", True)
    monkeypatch.setattr(template_process, "_PYTHON_BYTES", 0)  # so that this limit is met before the system's
    source = (
        "{% set a = 'a' * 100000000 %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )
    template = ChatTemplate(source, "file", seconds=60, max_bytes=110_000_000)
    with pytest.raises(TemplateError, match=r"^file: the template needs more than 110,000,000 bytes of memory$"):
        template.render([USER])
    assert ChatTemplate(ECHO, max_bytes=110_000_000).render(said("a")) == "a"


# --- What the parent does not believe ---------------------------------------------------------------------------------

REFUSALS = {
    "no JSON": (b"\0" * 7 + b"\2{]", "cannot be read"),
    "no UTF-8": (b"\0" * 7 + b"\1\xff", "cannot be read"),
    "no object": (b"\0" * 7 + b"\x02[]", "cannot be read"),
    "no text": (b"\0" * 7 + b"\x0a" + b'{"text":1}', "cannot be read"),
    "an error without a line": (b"\0" * 7 + b"\x0d" + b'{"error":"x"}', "cannot be read"),
    "an endless length": (b"\xff" * 8, "cannot be read"),
    "deep": (b"\0" * 5 + b"\1\0\0" + b"[" * 65536, "cannot be read"),
    "less than it says": (b"\0" * 7 + b"\2{", r"crashes \(status 0\)"),
    "nothing": (b"", r"crashes \(status 0\)"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_child_that_is_taken_over(tmp_path, monkeypatch, name):
    """Its answers are data from a stranger."""
    answer, wanted = REFUSALS[name]
    worker = tmp_path / "worker.py"
    worker.write_text(f"import os\nos.read(0, 1 << 20)\nos.write(1, {answer!r})\n")
    monkeypatch.setattr(template_process, "_WORKER", worker)
    template = ChatTemplate(ECHO, "file", max_chars=100_000)
    with pytest.raises(TemplateError, match=f"^file: the template's process .*{wanted}"):
        template.check()
    monkeypatch.undo()
    assert template.render(said("a")) == "a"


def test_a_child_that_stays_silent(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text("import os, time\nos.read(0, 1 << 20)\nos.close(0)\nos.close(1)\ntime.sleep(60)\n")
    monkeypatch.setattr(template_process, "_WORKER", worker)
    template = ChatTemplate(ECHO, "file")
    pid = pid_of(template)
    with pytest.raises(TemplateError, match="sends no answer"):
        template.check()
    assert ends(pid, 0)


@pytest.mark.parametrize("executable", ["", None, "/nowhere/python"])
def test_no_python_to_run(monkeypatch, executable):
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(TemplateError, match=r"^file: cannot start a process to render in \("):
        ChatTemplate(ECHO, "file")


def test_a_program_with_python_frozen_into_it(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(TemplateError, match=r"sys\.executable names no Python"):
        ChatTemplate(ECHO, "file")


def test_no_jinja(monkeypatch):
    monkeypatch.setattr(template_process.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TemplateError, match="jinja2 is not installed"):
        ChatTemplate(ECHO, "file")


# --- The messages between the two -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["\ud83d\ude00", "\udcff", '\0\x1f\u2028"\\', "😀" * 100_000, ""])
def test_text_arrives_as_it_is(text):
    """Lone surrogates stay apart: encoding refuses them later, where no pair of them becomes a character."""
    assert ChatTemplate(ECHO).render(said(text)) == text


def test_numbers_arrive_as_they_are(template):
    values = [0.1, 1e308, 2**62, -1, True, None, float("inf")]
    assert json.loads(ChatTemplate("{{ x | tojson }}").render([USER], x=values)) == values


def test_a_long_template_does_not_block():
    source = "{# " + "日" * 65_000 + " #}" + ECHO
    assert ChatTemplate(source).render(said("a")) == "a"
