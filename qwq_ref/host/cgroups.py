"""The control groups of this process: the folders in which Linux shows their limits, of versions 1 and 2.

/proc/self/cgroup names the group in each hierarchy, /proc/self/mountinfo the folder where a hierarchy is seen, and the
group that this folder shows. In a container, both often begin at the container's own group.
"""

from __future__ import annotations

import re
from pathlib import Path

from .system import ROOT, read

_CGROUP = Path("sys/fs/cgroup")


def control_groups(controller: str, root: Path = ROOT) -> list[Path]:
    """Return the folders of this process's groups, each before the one around it, as far as they are seen.

    controller  "cpu" or "memory". A process is in one group of version 2, and in one of version 1 for each controller.

    A folder may be missing, such as that of a group outside of a container.
    """
    groups: dict[Path, None] = {}
    for controllers, path in _memberships(controller, root):
        for top, shown in _places(controllers, controller, path, root):
            folder = top / shown
            groups |= dict.fromkeys([folder, *(parent for parent in folder.parents if parent.is_relative_to(top))])
    return list(groups)


def _memberships(controller: str, root: Path) -> list[tuple[str, str]]:
    """Return (controllers, path) of the hierarchies that may limit a controller; controllers are empty in version 2."""
    text = read(root / "proc" / "self" / "cgroup")
    if text is None:  # /proc is hidden: look at the tops of all hierarchies
        return [("", "/"), (controller, "/")]
    found = []
    for line in text.splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]  # 4:cpu,cpuacct:/path, or 0::/path in version 2
        if number.isdecimal() and (not controllers or controller in controllers.split(",")):
            found.append((controllers, path))
    return found


def _places(controllers: str, controller: str, path: str, root: Path) -> list[tuple[Path, str]]:
    """Return (folder, rest) for a group: where its hierarchy is mounted, and its path from there."""
    mounts = [
        (root / place.lstrip("/"), shown)
        for kind, options, shown, place in _mounts(root)
        if (kind == "cgroup" and controller in options if controllers else kind == "cgroup2")
    ]
    if not mounts:
        names = ["", "unified"] if not controllers else [controllers, controller]
        mounts = [(root / _CGROUP / name, "/") for name in dict.fromkeys(names)]
    below = [(top, _below(path, shown)) for top, shown in mounts]
    # If no folder shows the group, the first shows the nearest that can be known: a group around it, or its namespace.
    return [(top, rest) for top, rest in below if rest is not None] or [(mounts[0][0], "")]


def _below(path: str, shown: str) -> str | None:
    """Return the path of a group from the group that a folder shows; None for a group that is not within that one."""
    parts, top = [[part for part in text.split("/") if part] for text in (path, shown)]
    if ".." in parts or parts[: len(top)] != top:
        return None
    return "/".join(parts[len(top) :])


def _mounts(root: Path) -> list[tuple[str, list[str], str, str]]:
    """Return (kind, options, shown group, folder) of all mounts of control groups."""
    found = []
    for line in (read(root / "proc" / "self" / "mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) >= 5 and len(kinds) >= 3 and kinds[0] in ("cgroup", "cgroup2"):
            found.append((kinds[0], kinds[2].split(","), _plain(fields[3]), _plain(fields[4])))
    return found


def _plain(text: str) -> str:
    """Return a path of mountinfo, in which \\040 stands for a space."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)
