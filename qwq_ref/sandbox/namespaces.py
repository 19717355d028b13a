"""The part of bubblewrap that is needed, for machines without it. `ways.py` starts this file as a script.

It takes the options of `bwrap` that `view.py` writes, and does the same things in the same order. It makes namespaces
for mounts, processes, the network and IPC, and for users unless root starts it. The new root holds the named folders
alone. The first process of the namespace ends when the program ends, and everything else with it. Python has no names
for these calls of Linux, so ctypes reaches them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# Flags of <sched.h>, <sys/mount.h> and <sys/prctl.h>
_NEW_MOUNTS, _NEW_CGROUP, _NEW_HOST, _NEW_IPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
_NEW_USER, _NEW_PROCESSES, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_READ_ONLY, _NO_SETUID, _NO_DEVICES, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_DETACH = 2
_DEATH_SIGNAL, _NO_NEW_RIGHTS, _SECCOMP, _FILTER = 1, 38, 22, 2
_MOUNT_SETATTR = 442
_NEW, _OLD = "/new", "/old"

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, data)]
    _call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


def main(options: list[str]) -> None:
    split = options.index("--")
    options, command = options[:split], options[split + 1 :]
    os.umask(0o022)
    _call("prctl", _DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    filter_ = _separate_and_mount(options)
    first = os.fork()  # into the new namespace of processes, as its number 1
    if first == 0:
        _call("prctl", _DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        program = os.fork()
        if program == 0:
            _call("prctl", _NO_NEW_RIGHTS, 1, 0, 0, 0)
            _install(filter_)
            os.execv(command[0], command)
        _end_like(program)
    _end_like(first)


def _separate_and_mount(options: list[str]) -> bytes:
    """Leave the machine's namespaces, and make the new root. Return the filter of system calls."""
    given = iter(options)
    uid = None
    filter_ = b""
    spaces = _NEW_MOUNTS | _NEW_PROCESSES | _NEW_NETWORK | _NEW_IPC | _NEW_HOST | _NEW_CGROUP
    work: list[tuple[str, ...]] = []
    size = perms = ""
    for option in given:
        match option:
            case "--unshare-user":
                spaces |= _NEW_USER
            case "--uid":
                uid = next(given)
            case "--size":
                size = f"size={next(given)},nr_inodes=1024,"
            case "--perms":
                perms = next(given)
            case "--tmpfs":
                work.append((option, next(given), f"{size}mode={perms or '755'}"))
                size = perms = ""
            case "--ro-bind" | "--symlink":
                work.append((option, next(given), next(given)))
            case "--dir":
                work.append((option, next(given)))
                perms = ""
            case "--remount-ro" | "--chdir":
                work.append((option, next(given)))
            case "--seccomp":
                with open(int(next(given)), "rb") as file:
                    filter_ = file.read()
    outside = os.geteuid(), os.getegid()
    _call("unshare", spaces)
    if spaces & _NEW_USER:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {outside[0]} 1"),
            ("gid_map", f"{uid} {outside[1]} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as written:
                written.write(text)
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _NO_SETUID | _NO_DEVICES)
    os.mkdir(f"/tmp{_OLD}")
    os.mkdir(f"/tmp{_NEW}")
    _pivot("/tmp", f"/tmp{_OLD}")
    _mount("tmpfs", _NEW, "tmpfs", _NO_SETUID | _NO_DEVICES, "size=1m,mode=755")
    for each in work:
        _do(*each)
    _call("umount2", _OLD.encode(), _DETACH)
    os.chdir(_NEW)
    _pivot(".", ".")
    _call("umount2", b".", _DETACH)
    os.chdir(next(each[1] for each in work if each[0] == "--chdir"))
    return filter_


def _pivot(root: str, old: str) -> None:
    number = {"x86_64": 155}.get(os.uname().machine, 41)
    _call("syscall", ctypes.c_long(number), root.encode(), old.encode())
    if old != ".":
        os.chdir("/")


def _do(option: str, *details: str) -> None:
    target = _NEW + details[0] if option != "--remount-ro" else _NEW
    match option:
        case "--ro-bind":
            source, target = _OLD + details[0], _NEW + details[1]
            if os.path.isdir(source):
                os.makedirs(target, exist_ok=True)
            else:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                with open(target, "a"):
                    pass
            _mount(source, target, None, _BIND | _RECURSIVE)
            attributes = (ctypes.c_uint64 * 4)(_READ_ONLY | _NO_SETUID | _NO_DEVICES)
            at_working_folder, recursive = -100, 0x8000
            _call(
                "syscall",
                ctypes.c_long(_MOUNT_SETATTR),
                ctypes.c_int(at_working_folder),
                target.encode(),
                ctypes.c_uint(recursive),
                ctypes.byref(attributes),
                ctypes.c_size_t(ctypes.sizeof(attributes)),
            )
        case "--dir":
            os.makedirs(target, exist_ok=True)
        case "--symlink":
            target = _NEW + details[1]
            if not os.path.lexists(target):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.symlink(details[0], target)
        case "--tmpfs":
            os.makedirs(target, exist_ok=True)
            _mount("tmpfs", target, "tmpfs", _NO_SETUID | _NO_DEVICES, details[1])
        case "--remount-ro":
            _mount(None, target, None, _REMOUNT | _BIND | _READ_ONLY | _NO_SETUID | _NO_DEVICES)


def _install(filter_: bytes) -> None:
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    program = Program(len(filter_) // 8, filter_)
    _call("prctl", _SECCOMP, _FILTER, ctypes.byref(program), 0, 0)


def _end_like(pid: int) -> None:
    """Wait for a child, and end with its status, or with 128 and the number of its signal."""
    while True:
        ended, status = os.wait()  # the first process also inherits orphans
        if ended == pid:
            os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, IndexError, ValueError) as problem:
        print(f"namespaces: {problem}", file=sys.stderr)
        os._exit(126)
