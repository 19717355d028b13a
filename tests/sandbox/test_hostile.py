"""Programs that try to get out, to read what they must not, or to take all: each is one line of the tables below."""

import os
import random
import resource
import time
from pathlib import Path

import pytest

from qwq_ref.sandbox import LIMITS, start
from tests.support.processes import ends

SHORT = LIMITS._replace(seconds=1, wall=4)
SECRET = "the-answer-of-the-tests-is-81"

# name: (program, what it prints). Each ends well, after an attempt that fails.
REFUSED = {
    "fork": ("import os\nos.fork()", "PermissionError"),
    "vfork and exec": ("import _posixsubprocess as p, subprocess\nsubprocess.run(['/bin/true'])", "Error"),
    "fork in C": ("import ctypes\nprint(ctypes.CDLL(None).fork())", "-1"),
    "spawn in C": ("import os\nos.posix_spawn(sys.executable, ['python'], {})", "Error"),
    "read /etc/passwd": ("open('/etc/passwd')", "FileNotFoundError"),
    "read /etc/shadow": ("open('/etc/shadow')", "FileNotFoundError"),
    "list /home": ("os.listdir('/home')", "FileNotFoundError"),
    "read the parent's memory": ("open(f'/proc/{os.getppid()}/mem', 'rb')", "FileNotFoundError"),
    "read its variables": ("open('/proc/self/environ')", "FileNotFoundError"),
    "follow a symbolic link": ("os.symlink('/etc/passwd', 'x')\nopen('x')", "FileNotFoundError"),
    "leave by ..": ("open('../../../../etc/passwd')", "FileNotFoundError"),
    "hard link": ("os.link(sys.executable, '/tmp/python')", "OSError|PermissionError"),
    "write beside Python": ("open(os.path.dirname(os.__file__) + '/x.py', 'w')", "OSError|PermissionError"),
    "write to the code": ("open('/sandbox/inside/values.py', 'a')", "OSError|PermissionError"),
    "write to the root": ("open('/x', 'w')", "OSError|PermissionError"),
    "delete the library": ("os.remove(os.__file__)", "OSError|PermissionError"),
    "open a socket": ("import socket\nsocket.socket()", "PermissionError"),
    "open a local socket": ("import socket\nsocket.socket(socket.AF_UNIX)", "PermissionError"),
    "ask for a host": ("import urllib.request as u\nu.urlopen('http://127.0.0.1:8080', timeout=1)", "URLError"),
    "kill the first process": ("os.kill(1, 9)\nos.getppid() == 1 and print('alive')", "alive|PermissionError"),
    "kill the parent's group": ("os.killpg(0, 0)\nos.kill(os.getppid(), 9)\nprint('alive')", "alive|PermissionError"),
    "kill everybody": ("os.kill(-1, 9)", "ProcessLookupError|PermissionError"),
    "kill another process": ("os.kill(@PARENT@, 9)", "ProcessLookupError"),
    "become root": ("os.setuid(0)", "PermissionError"),
    "become root's group": ("os.setresgid(0, 0, 0)", "PermissionError"),
    "trace": ("print(C.syscall(101, 16, 1, 0, 0))", "-1"),
    "read another's memory": ("print(C.process_vm_readv(1, None, 0, None, 0, 0))", "-1"),
    "mount": ("print(C.mount(b'none', b'/tmp', b'tmpfs', 0, None))", "-1"),
    "a new namespace": ("print(C.unshare(0x10000000))", "-1"),
    "change the root": ("os.chroot('/tmp')", "PermissionError"),
    "a file in memory": ("os.memfd_create('x')", "PermissionError"),
    "shared memory": ("print(C.shmget(0, 1 << 30, 0o1600))", "-1"),
    "load a BPF program": ("print(C.syscall(321, 0, 0, 0))", "-1"),
    "10 GB of memory": ("bytearray(10**10)", "MemoryError"),
    "10 GB of addresses": ("import mmap\nmmap.mmap(-1, 10**10)", "OSError|MemoryError"),
    "a higher limit": ("import resource as r\nr.setrlimit(r.RLIMIT_AS, (-1, -1))", "ValueError|PermissionError"),
    "10 GB in a file": ("f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))", "OSError"),
    "10,000 threads": (
        "import threading as t\nthreading_event = t.Event()\n"
        "for _ in range(10_000): t.Thread(target=threading_event.wait, daemon=True).start()",
        "RuntimeError|MemoryError",
    ),
    "a device": ("os.mknod('/tmp/x', 0o20666, os.makedev(1, 1))", "PermissionError"),
    "a shell": ("os.execv('/bin/sh', ['sh'])", "FileNotFoundError"),
    "a package": ("import numpy", "ModuleNotFoundError"),
}
_FRAME = """\
import ctypes, os, sys
C = ctypes.CDLL(None)
try:
    exec({program!r})
except BaseException as problem:
    print(type(problem).__name__)
"""


def run(way, program, limits=SHORT, **given):
    """Return the output of a program, its errors, and why it ended."""
    with start("stream", (program,), limits, output=True, way=way, **given) as process:
        output, errors = process.output()
        return output.decode("utf-8", "replace"), errors.decode("utf-8", "replace"), process.failure(1.0)


@pytest.mark.parametrize("name", REFUSED)
def test_an_attempt_is_refused(way, name):
    program, wanted = REFUSED[name]
    if "syscall" in program and os.uname().machine != "x86_64":
        pytest.skip("the numbers of the calls are those of x86-64")
    output, errors, _ = run(way, _FRAME.format(program=program.replace("@PARENT@", str(os.getpid()))))
    found = output.split()
    assert found, errors
    assert any(word == found[0] or (word == "Error" and found[0].endswith("Error")) for word in wanted.split("|")), (
        found
    )


# name: (program, why it ends)
ENDED = {
    "an endless loop": ("while True: pass", "computes for more than 1 seconds|runs for more than 4 seconds"),
    "a loop that catches the signal": (
        "import signal\nsignal.signal(signal.SIGXCPU, lambda *_: None)\nwhile True: pass",
        "computes for more than 1 seconds|runs for more than 4 seconds",
    ),
    "sleep": ("import time\ntime.sleep(100)", "runs for more than 4 seconds"),
    "close all and sleep": ("import os, time\nos.closerange(0, 99)\ntime.sleep(100)", "runs for more than 4 seconds"),
    "a loop in threads": (
        "import threading as t\nfor _ in range(8): t.Thread(target=lambda: exec('while True: pass')).start()",
        "computes for more than 1 seconds|runs for more than 4 seconds",
    ),
    "10 GB of output": (
        "import os\nwhile True: os.write(1, bytes(1 << 16))",
        "writes more than 16,777,216 bytes",
    ),
    "10 GB of errors": ("import os\nwhile True: os.write(2, bytes(1 << 16))", "computes|runs"),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(10**9)\nf = lambda x: f(x + 1)\nf(0)",
        "crashes with signal 11|ends with status|computes|runs",
    ),
    "deep recursion in C": (
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n def __repr__(s): return repr([s])\nrepr(A())",
        "crashes with signal 11|ends with status|computes|runs",
    ),
    "a crash": ("import ctypes\nctypes.string_at(0)", "crashes with signal 11"),
    "a huge number": ("x = 10 ** 10 ** 10", "computes|runs|ends with status 1"),
    "stop itself": ("import os\nos.kill(os.getpid(), 19)", "runs for more than 4 seconds"),
}


@pytest.mark.parametrize("name", ENDED)
def test_a_program_that_takes_all_ends(way, name):
    program, wanted = ENDED[name]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    _, _, why = run(way, program)
    assert why is not None
    assert any(why.startswith(each) for each in wanted.split("|")), why
    assert time.monotonic() - began < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KiB


@pytest.mark.parametrize("name", ["an endless loop", "a loop that catches the signal", "a loop in threads"])
def test_the_processor_s_time_is_limited(way, name):
    _, _, why = run(way, ENDED[name][0], SHORT._replace(wall=100))
    assert why == "computes for more than 1 seconds"


def test_the_limits_of_the_system(way):
    """Some of them are second lines of defence, which no attempt reaches."""
    names = ["AS", "CPU", "FSIZE", "NOFILE", "CORE", "MEMLOCK", "MSGQUEUE", "NPROC"]
    program = (
        f"import resource as r\nprint(*(r.getrlimit(getattr(r, 'RLIMIT_' + name)) for name in {names}), sep='\\n')"
    )
    output, _, _ = run(way, program)
    found = [eval(line) for line in output.splitlines()]
    assert found == [(1 << 28,) * 2, (1, 2), (1 << 24,) * 2, (64, 64), (0, 0), (0, 0), (0, 0), (64, 64)]


def test_the_whole_tree_of_files_holds_no_secret(way, tmp_path, monkeypatch):
    """A search of every file that is in sight, every variable and every descriptor."""
    (tmp_path / "tests.json").write_text(SECRET)
    monkeypatch.setenv("SECRET", SECRET)
    program = """
import os
found = [name for name, value in os.environ.items() if value.startswith('the-answer')]
folders = set()
for folder, names, files in os.walk('/', followlinks=False):
    folders.add(folder)
    for file in files:
        path = os.path.join(folder, file)
        found += [path] if file == 'tests.json' else []
        found += [path] if '-packages/' in path else []
for fd in range(256):
    try:
        os.fstat(fd)
    except OSError:
        continue
    found += [fd] if fd > 2 else []
print(found, len(folders) > 10)
"""
    output, errors, why = run(way, program, LIMITS)
    assert (output, why) == ("[] True\n", None), errors


def test_the_folder_to_write_in_is_fresh_small_and_gone_afterwards(way):
    before = set(os.listdir("/tmp"))
    program = "import os\nprint(os.listdir('.'), os.getcwd(), os.path.expanduser('~'))\nopen('mine-81', 'w').write('x')"
    for _ in range(2):
        assert run(way, program) == ("[] /tmp /tmp\n", "", None)
    assert "mine-81" not in set(os.listdir("/tmp")) - before
    fill = "import os\nn = 0\ntry:\n while True: open(str(n), 'wb').write(bytes(1 << 20)); n += 1\n"
    output, _, _ = run(way, fill + "except OSError: print(n)")
    assert int(output) <= LIMITS.disk >> 20


def test_a_program_that_becomes_a_daemon_leaves_nothing(way):
    """With processes allowed, and two forks, a session of its own and no pipes."""
    mark = (1 << 29) + 4096 * random.randrange(1 << 14)
    program = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 99)
        time.sleep(1000)
    os._exit(0)
time.sleep(0.3)
print('started')
"""
    output, errors, why = run(way, program, SHORT._replace(processes=True, memory=mark))
    assert (output, why) == ("started\n", None), errors
    assert_gone(mark)


def test_a_fork_bomb_stops_at_the_limit(way):
    """Where processes are allowed, such as for a compiler."""
    if os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split()[2] != str(2**32 - 1):
        pytest.skip("the system counts no processes of root within a namespace of users")
    program = "import os, time\nn = 0\ntry:\n  while os.fork(): n += 1\n  time.sleep(9)\nexcept OSError: print(n)"
    output, _, _ = run(way, program, SHORT._replace(processes=True, threads=20))
    assert 0 < int(output.split()[-1]) < 20


def assert_gone(mark):
    """No process has this number in its command. Each test has its own, the limit of memory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_text(errors="replace")
        except OSError:  # ended meanwhile
            continue
        if f"confine({mark}," in command:
            found.append(int(path.parent.name))
    left = [pid for pid in found if not ends(pid, 20.0)]
    assert not left, [(pid, Path(f"/proc/{pid}/status").read_text().split()[:20]) for pid in left]
