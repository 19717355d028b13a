"""Which containment runs, the filter of system calls by an interpreter of its own, and the end of a sandbox."""

import errno
import os
import platform
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwq_ref.errors import SandboxError
from qwq_ref.sandbox import LIMITS, containment, require_containment, seccomp, start, view, ways
from tests.sandbox.test_hostile import assert_gone
from tests.support.paths import ROOT

ALLOWED, KILLED = 0x7FFF0000, 0x80000000
REFUSED, MISSING = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
X86, ARM = 0xC000003E, 0xC00000B7  # AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64 of <linux/audit.h>


def judged(filter_, architecture, number, first=0):
    """Run classic BPF, as <linux/filter.h> describes it, on one `struct seccomp_data`."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, first, 0, 0, 0, 0, 0)
    code = [struct.unpack_from("=HBBI", filter_, place) for place in range(0, len(filter_), 8)]
    place = accumulator = 0
    while True:
        operation, if_true, if_false, operand = code[place]
        place += 1
        match operation:
            case 0x20:  # BPF_LD | BPF_W | BPF_ABS
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
                place += if_true if accumulator == operand else if_false
            case 0x35:  # BPF_JMP | BPF_JGE | BPF_K
                place += if_true if accumulator >= operand else if_false
            case 0x45:  # BPF_JMP | BPF_JSET | BPF_K
                place += if_true if accumulator & operand else if_false
            case 0x06:  # BPF_RET | BPF_K
                return operand
            case _:
                raise AssertionError(f"operation {operation:#x}")


# Numbers of arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h. CLONE_THREAD and others are
# flags of <linux/sched.h>; 0x3d0f00 are those with which the C library starts a thread.
@pytest.mark.parametrize(
    ("machine", "architecture", "number", "first", "alone", "with_processes"),
    [
        ("x86_64", X86, 0, 0, ALLOWED, ALLOWED),  # read
        ("x86_64", X86, 231, 0, ALLOWED, ALLOWED),  # exit_group
        ("x86_64", X86, 59, 0, ALLOWED, ALLOWED),  # execve
        ("x86_64", X86, 57, 0, REFUSED, ALLOWED),  # fork
        ("x86_64", X86, 58, 0, REFUSED, ALLOWED),  # vfork
        ("x86_64", X86, 56, 0x3D0F00, ALLOWED, ALLOWED),  # clone: a thread
        ("x86_64", X86, 56, 17, REFUSED, ALLOWED),  # clone: a process
        ("x86_64", X86, 56, 0x10000000 | 17, REFUSED, REFUSED),  # a namespace of users
        ("x86_64", X86, 56, 0x3D0F00 | 0x20000000, REFUSED, REFUSED),
        ("x86_64", X86, 435, 0, MISSING, MISSING),  # clone3
        ("x86_64", X86, 101, 0, REFUSED, REFUSED),  # ptrace
        ("x86_64", X86, 41, 2, REFUSED, REFUSED),  # socket
        ("x86_64", X86, 165, 0, REFUSED, REFUSED),  # mount
        ("x86_64", X86, 425, 0, REFUSED, REFUSED),  # io_uring_setup
        ("x86_64", X86, 451, 0, MISSING, MISSING),  # newer than the list
        ("x86_64", X86, 0x40000000, 0, MISSING, MISSING),  # x32's read
        ("x86_64", 0x40000003, 11, 0, KILLED, KILLED),  # i386's execve, by int 0x80
        ("aarch64", ARM, 63, 0, ALLOWED, ALLOWED),  # read
        ("aarch64", ARM, 0, 0, ALLOWED, ALLOWED),  # io_setup: the zeros of the table are no calls
        ("aarch64", ARM, 220, 0x3D0F00, ALLOWED, ALLOWED),
        ("aarch64", ARM, 220, 17, REFUSED, ALLOWED),
        ("aarch64", ARM, 117, 0, REFUSED, REFUSED),  # ptrace
        ("aarch64", ARM, 198, 2, REFUSED, REFUSED),  # socket
        ("aarch64", X86, 0, 0, KILLED, KILLED),
    ],
)
def test_the_filter(monkeypatch, machine, architecture, number, first, alone, with_processes):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert judged(seccomp.program(), architecture, number, first) == alone
    assert judged(seccomp.program(processes=True), architecture, number, first) == with_processes


def test_a_processor_whose_calls_are_unknown_runs_nothing(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert ways.problem.__wrapped__("namespaces").startswith("the system calls of ")


def test_bubblewrap_comes_first(monkeypatch):
    monkeypatch.setattr(ways, "problem", {"bubblewrap": None, "namespaces": None}.get)
    assert containment() == require_containment() == "bubblewrap"
    monkeypatch.setattr(ways, "problem", {"bubblewrap": "is broken", "namespaces": None}.get)
    assert containment() == "namespaces"
    monkeypatch.setattr(ways, "problem", lambda way: "is broken")
    assert containment() is None
    with pytest.raises(SandboxError, match=r"nothing contains a program .*bubblewrap: is broken; namespaces: is broke"):
        require_containment()


def test_without_bubblewrap_the_advice_names_the_package(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert ways.problem.__wrapped__("bubblewrap") == "there is no bwrap; apt-get install bubblewrap"


def test_a_way_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(ways, "command", lambda *arguments: [sys.executable, "-c", "import sys; sys.exit('no space')"])
    assert ways.problem.__wrapped__("namespaces") == "no space"
    monkeypatch.setattr(ways, "command", lambda *arguments: ["/nothing/here"])
    assert ways.problem.__wrapped__("namespaces") == "cannot start a process (No such file or directory)"


UNPRIVILEGED = """
from qwq_ref.sandbox import ways, start
print(ways.new_user())
program = '''
import os
print(os.getuid(), end=" ")
for attempt in (lambda: open("/x", "w"), lambda: os.setuid(0)):
    try:
        attempt()
    except OSError as problem:
        print(type(problem).__name__, end=" ")
'''
for way in ways.WAYS:
    if ways.problem(way) is None:
        with start("stream", (program,), output=True, way=way) as process:
            print(process.output()[0].decode().strip())
    else:
        print(ways.problem(way))
"""


def test_the_ways_of_a_user_without_rights():
    """Within a namespace of users, where root is nobody outside: no other user can be become."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare of util-linux")
    if subprocess.run(["unshare", "--user", "--map-root-user", "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no namespaces of users")
    script = UNPRIVILEGED
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "0", done.stderr
    for way, found in zip(ways.WAYS, done.stdout.splitlines()[1:], strict=True):
        wanted = ["65534", "OSError", "OSError"]  # who it is, a file in the root, and becoming root
        assert ways.problem(way) is not None or found == " ".join(wanted), done.stdout


def test_each_program_of_root_has_a_user_of_its_own(way):
    if not ways.is_whole_root():
        pytest.skip("only root becomes other users")
    program = "import os\nprint(os.getresuid(), os.getresgid(), os.getgroups())"
    found = set()
    for _ in range(2):
        with start("stream", (program,), output=True, way=way) as process:
            found.add(process.output()[0].decode())
    assert len(found) == 2
    assert all(line.startswith("(19") and line.endswith("[]\n") for line in found)


def test_packages_are_out_of_sight(tmp_path):
    """A data set with answers may be one of them."""
    for name in ("python3.11/site-packages", "python3/dist-packages", "site-packages"):
        (tmp_path / "lib" / name).mkdir(parents=True)
    (tmp_path / "lib" / "python3.11" / "json").mkdir()
    hidden = view._packages([str(tmp_path / "lib")])
    assert {str(Path(path).relative_to(tmp_path / "lib")) for path in hidden} == {
        "python3.11/site-packages",
        "python3/dist-packages",
        "site-packages",
    }


WAITING = """
import sys
from qwq_ref.sandbox import LIMITS, start
from qwq_ref.tasks.verifiers import code
limits = LIMITS._replace(memory={mark}, wall=60)
print("ready", flush=True)
try:
    print(code.verify_function("import time\\ntime.sleep(99)", "f", "", limits=limits))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_the_parent_ends(way, number):
    mark = (1 << 28) + 4096 * random.randrange(1 << 14)
    script = f"from qwq_ref.sandbox import ways\nways.require_containment = lambda: {way!r}\n" + WAITING
    command = [sys.executable, "-c", script.format(mark=mark)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 20
        while len(found(mark)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        assert len(found(mark)) >= 2
        parent.send_signal(number)
        assert (parent.stdout.read() == "interrupted\n") == (number == signal.SIGINT)
    assert_gone(mark)


def test_a_program_has_namespaces_of_its_own(way):
    mark = (1 << 28) + 4096 * random.randrange(1 << 14)
    program = "import time\ntime.sleep(99)"
    with start("stream", (program,), LIMITS._replace(memory=mark), way=way):
        deadline = time.monotonic() + 20
        different = set()
        while not different and time.monotonic() < deadline:
            time.sleep(0.05)
            for pid in found(mark):
                try:
                    root = Path(f"/proc/{pid}", "root")
                    if (root / "sandbox" / "inside").exists() and not (root / "proc").exists():
                        names = ("mnt", "pid", "net", "ipc", "uts")
                        spaces = {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in names}
                        different = {name for name in names if spaces[name] != os.readlink(f"/proc/self/ns/{name}")}
                except FileNotFoundError:
                    continue
                except PermissionError:
                    pytest.skip("only root sees the namespaces of other users")
    assert different == {"mnt", "pid", "net", "ipc", "uts"}


def found(mark):
    """The processes with a number in their commands."""
    numbers = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            numbers += [int(path.parent.name)] if f"confine({mark}," in path.read_text(errors="replace") else []
        except OSError:
            continue
    return numbers


def test_descriptors_are_closed(way):
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with start("stream", ("print(1)",), output=True, way=way) as process:
            process.output()
    with pytest.raises(ZeroDivisionError), start("stream", ("while True: pass",), output=True, way=way):
        _ = 1 / 0
    assert len(set(os.listdir("/proc/self/fd"))) <= len(before)


def test_the_limits_have_defaults():
    assert (LIMITS.memory, LIMITS.seconds, LIMITS.wall, LIMITS.processes) == (1 << 28, 10.0, 10.0, False)
