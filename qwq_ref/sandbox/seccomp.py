"""The filter of system calls, as the kernel takes it: a program of classic BPF over `struct seccomp_data`.

The kernel's Documentation/userspace-api/seccomp_filter.rst describes the layout. Namespaces hide files, processes and
the network. The filter takes away more: calls into rarely used parts of the kernel, and calls that hold memory which
no limit counts (memfd, System V IPC). Without `processes`, nothing starts a process: only threads remain.
"""

from __future__ import annotations

import errno
import platform
from struct import pack

# Numbers of x86-64 and of the table that AArch64 and newer processors use; 0 where there is no such call.
_CALLS = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "fanotify_init": (300, 262),
    "socket": (41, 198),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "personality": (135, 92),
    "iopl": (172, 0),
    "ioperm": (173, 0),
    "modify_ldt": (154, 0),
}
_STARTING = {"fork": (57, 0), "vfork": (58, 0)}
_CLONE, _CLONE3, _LAST = (56, 220), 435, 450  # calls after the last one that this list was written for do not exist
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_THREAD, _NAMESPACES = 0x00010000, 0x7E020000  # flags of clone

_LOAD, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # places in struct seccomp_data
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def supported() -> bool:
    """Return whether the numbers of this processor's system calls are known."""
    return platform.machine() in _ARCHITECTURES


def program(processes: bool = False) -> bytes:
    """Return the filter for this machine.

    processes  whether the process may start others
    """
    architecture, column = _ARCHITECTURES[platform.machine()]
    calls = _CALLS if processes else _CALLS | _STARTING
    denied = sorted({numbers[column] for numbers in calls.values()} - {0})
    refuse = _do(_RETURN, _ERROR | errno.EPERM)
    missing = _do(_RETURN, _ERROR | errno.ENOSYS)
    code = [_do(_LOAD, _ARCHITECTURE), _do(_EQUAL, architecture, 1, 0), _do(_RETURN, _KILL), _do(_LOAD, _NUMBER)]
    code += [_do(_GREATER_EQUAL, _LAST + 1, 0, 1), missing]  # x86-64's x32 calls have numbers from 2^30 on
    code += [_do(_EQUAL, _CLONE3, 0, 1), missing]  # its flags are out of sight; the C library then calls clone
    for number in denied:
        code += [_do(_EQUAL, number, 0, 1), refuse]
    code += [_do(_EQUAL, _CLONE[column], 1, 0), _do(_RETURN, _ALLOW), _do(_LOAD, _FIRST_ARGUMENT)]
    code += [_do(_ANY_BIT, _NAMESPACES, 0, 1), refuse]
    if not processes:
        code += [_do(_ANY_BIT, _THREAD, 1, 0), refuse]
    code.append(_do(_RETURN, _ALLOW))
    return b"".join(code)


def _do(operation: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return pack("=HBBI", operation, if_true, if_false, operand)
