"""An aarch64 Python that runs here in QEMU, for the job of that name in `tests.tools.matrix`.

The system folder holds Debian's Python and C library for aarch64, and the wheels that the tests need. It is made once,
below build/, and used again.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.paths import ROOT

SYSTEM = ROOT / "build" / "aarch64"
SUITE, VERSION = "bookworm", "3.11"
PACKAGES = "python3,libpython3-dev,libgomp1"
WHEELS = ("pytest", "hypothesis", "jsonschema")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64")


def prepare():
    """Make the system folder, unless it is there and has what pyproject.toml names."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    complete = SYSTEM / "complete"
    if complete.exists() and complete.read_text() == str(needed):
        return
    shutil.rmtree(SYSTEM, ignore_errors=True)
    SYSTEM.mkdir(parents=True)
    root = SYSTEM / "root"
    # The first stage only: the second would run the packages' scripts in the emulator, and nothing here needs them.
    options = ["--arch=arm64", "--foreign", "--variant=minbase", f"--include={PACKAGES}"]
    subprocess.run(["debootstrap", *options, SUITE, root], check=True)
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", package, root], check=True)
    platforms = [f"--platform={name}" for name in PLATFORMS]
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", SYSTEM / "site", "--only-binary=:all:"]
    command += [*platforms, "--python-version", VERSION, "--implementation", "cp", *needed, *WHEELS]
    subprocess.run(command, check=True)
    complete.write_text(str(needed))


def compiler():
    """The environment in which setup.py compiles for aarch64."""
    headers = SYSTEM / "root/usr/include"
    return {
        "CC": "aarch64-linux-gnu-gcc",
        "LDSHARED": "aarch64-linux-gnu-gcc -shared",
        "CFLAGS": f"-I{headers}/python{VERSION} -I{headers}",
    }


def interpreter(folder, source):
    """Write a script that runs Python in the emulator, which finds the package in `source` -> the script.

    The script is its own `sys.executable`, so that a test can start a second Python.
    """
    root = SYSTEM / "root"
    found = f"{source}{os.pathsep}{SYSTEM / 'site'}"
    script = Path(folder) / "python"
    script.write_text(
        "#!/bin/sh\n"
        f'exec qemu-aarch64 -0 "$0" -L {root} -E PYTHONHOME={root}/usr -E PYTHONPATH={found} '
        f'-E PYTHONDONTWRITEBYTECODE=1 {root}/usr/bin/python{VERSION} "$@"\n'
    )
    script.chmod(0o755)
    return script
