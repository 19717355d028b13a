"""Run here the jobs of CI that can run here, and report what each ran.

    python -m tests.tools.matrix                     every job but the nightly one
    python -m tests.tools.matrix --job clang docs    some jobs
    python -m tests.tools.matrix --list

Each job works on a clean copy of the checkout. `.github/workflows/ci.yml` runs the same jobs, one machine each; a test
holds both lists equal. A job that lacks a tool is reported as not run, with the reason. The exit status is 1 if a job
failed, or if a job that was named with --job could not run.

Needs Linux and `pip install -e '.[test,docs,wheel]'`; on Debian and Ubuntu, for all jobs:

    apt-get install gcc clang libomp-dev python3-venv python3-dev
    apt-get install debootstrap debian-archive-keyring qemu-user gcc-aarch64-linux-gnu   # aarch64, as root
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from tests.support import checkout
from tests.support.paths import ROOT
from tests.tools import aarch64

# Tests that compile a core themselves. They need a compiler beside the Python that runs them.
BUILDERS = "every_piece_runs or without_new_threads or thread_sanitizer"
BUILDERS += " or the_sanitizers_find or without_a_compiler_all"
# The tests of compiled code, and the bits that every compiler and processor must give.
CORE_TESTS = ("tests/core", "tests/engine/test_bits.py")
QUESTION = ("generate", "What is 123+456?", "--seed", "1")
ANSWER = r"\boxed{579}"
PYTHONS = ("3.12", "3.13", "3.14")


class UnavailableError(Exception):
    """The job needs something that is not here."""


def run(*command, cwd, env=None):
    """Run a command, and show its output; CalledProcessError if it fails."""
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], cwd=cwd, env=os.environ | (env or {}), check=True)


def output(*command, cwd, env=None):
    print("$", *command, flush=True)
    return subprocess.check_output([str(part) for part in command], cwd=cwd, env=os.environ | (env or {}), text=True)


def need(*programs):
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        raise UnavailableError(f"{', '.join(missing)} not found")


def imports_torch(path, root):
    """Whether a file of the tests imports torch or transformers, itself or through tests.support."""
    text = path.read_text()
    if "import torch" in text or "from transformers" in text or "import transformers" in text:
        return True
    names = [line.split()[1] for line in text.splitlines() if line.startswith("from tests.")]
    names += [
        f"tests.support.{word.strip(',()')}"
        for line in text.splitlines()
        if line.startswith("from tests.support import ")
        for word in line.split()[3:]
    ]
    files = [root / f"{name.replace('.', '/')}.py" for name in names]
    return any(imports_torch(file, root) for file in files if file.is_file())


def tests_without_torch(root):
    """The test files that need neither torch nor transformers, relative to the root."""
    needs = {path for path in (root / "tests").rglob("*.py") if imports_torch(path, root)}
    files = sorted((root / "tests").rglob("test_*.py"))
    return [str(file.relative_to(root)) for file in files if not needs & {file, file.with_name("conftest.py")}]


def build_core(source, env):
    """Compile the core of a checkout in place."""
    command = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    run(*command, cwd=source, env=env)
    if not list((source / "qwq_ref/core").glob("_core*.so")):  # the core is optional to setuptools, not here
        raise subprocess.CalledProcessError(1, command)


def pytest(python, source, *arguments):
    """Run tests of a checkout."""
    command = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
    run(*command, cwd=source, env={"PYTHONPATH": str(source)})


def compiled_with(folder, cc, *options):
    """Build the core with a compiler and run its tests, with the packages of this environment."""
    source = checkout.copy(folder / "source")
    build_core(source, {"CC": str(cc)})
    pytest(sys.executable, source, "-n", "2", *options, *CORE_TESTS)
    return f"core built with {Path(cc).name}; {', '.join(CORE_TESTS)}"


def ci(folder):
    source = checkout.copy(folder / "source")
    run("bash", ".ci/run", cwd=source)
    return "the second line of the set-up: all tests, in a new environment"


def gcc(folder):
    need("gcc")
    return compiled_with(folder, "gcc")


def clang(folder):
    need("clang")
    return compiled_with(folder, "clang")


def sanitize(folder):
    need("gcc")
    run(sys.executable, "-m", "tests.tools.sanitize", "--quick", cwd=ROOT)
    return "tests/core under AddressSanitizer and UndefinedBehaviorSanitizer"


def new_environment(folder, python, packages, env):
    run(python, "-m", "venv", folder / "venv", cwd=folder)
    run(folder / "venv/bin/pip", "install", "-q", *packages, cwd=folder / "source", env=env)
    return folder / "venv/bin/python"


def no_compiler(folder):
    source = checkout.copy(folder / "source")
    env = {"CC": "/bin/false", "PYTHONPATH": ""}
    new_environment(folder, sys.executable, ["."], env)
    state = output(
        folder / "venv/bin/python", "-P", "-c", "import qwq_ref.core as c; print(c.lib)", cwd=folder, env=env
    )
    answer = output(folder / "venv/bin/qwq", *QUESTION, cwd=folder, env=env)
    if state.strip() != "None" or ANSWER not in answer:
        raise subprocess.CalledProcessError(1, ("qwq", "generate"))
    tests = ("tests/spec", "tests/text", "tests/config", "tests/tasks")  # with the packages of this environment
    pytest(sys.executable, source, "-n", "2", *tests)
    return f"installed without a core; qwq generate answers; {', '.join(tests)}"


def find_python(version):
    """An interpreter of that version: on the PATH, or of pyenv."""
    found = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    candidates = [*([found] if found else []), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
    for candidate in candidates:  # pyenv's shims exist for versions that do not run
        if subprocess.run([candidate, "--version"], capture_output=True).returncode == 0:
            return candidate
    raise UnavailableError(f"no Python {version} here")


def other_python(folder, version):
    """All tests that need no torch: its wheels for other Pythons bring gigabytes."""
    python = find_python(version)
    source = checkout.copy(folder / "source")
    extras = tomllib.loads((source / "pyproject.toml").read_text())["project"]["optional-dependencies"]["test"]
    small = [package for package in extras if not package.startswith(("torch", "transformers"))]
    made = new_environment(folder, python, ["-e", ".", *small], {"PYTHONPATH": ""})
    tests = tests_without_torch(source)
    pages = "test_snippets_run and (adapters or oracle)"  # their snippets import torch
    pytest(made, source, "-n", "2", "-k", f"not ({pages})", *tests)
    return f"{len(tests)} test files that need no torch"


def emulated(folder):
    """Cross-compile the scalar core for aarch64, and run its tests in QEMU's emulator of user programs."""
    need("qemu-aarch64", "aarch64-linux-gnu-gcc", "debootstrap", "dpkg")
    if os.geteuid() != 0 and not aarch64.SYSTEM.exists():
        raise UnavailableError("debootstrap needs root")
    source = checkout.copy(folder / "source")
    aarch64.prepare()
    build_core(source, aarch64.compiler())
    python = aarch64.interpreter(folder, source)
    state = output(python, "-c", "from qwq_ref import core; import platform; print(platform.machine())", cwd=source)
    if state.strip() != "aarch64":
        raise subprocess.CalledProcessError(1, (python,))
    pytest(python, source, "-k", f"not ({BUILDERS})", *CORE_TESTS)
    answer = output(python, "-m", "qwq_ref", *QUESTION, cwd=source)
    if ANSWER not in answer:
        raise subprocess.CalledProcessError(1, ("qwq", "generate"))
    return f"scalar core in QEMU; {', '.join(CORE_TESTS)}; qwq generate answers"


def wheel(folder):
    if platform.system() != "Linux":
        raise UnavailableError("wheels are built on Linux")
    run(sys.executable, "-m", "tests.tools.wheel", "--out", "dist", cwd=ROOT)
    return "in dist/: built, audited, and tried in an environment without a compiler"


def docs(folder):
    source = checkout.copy(folder / "source")
    env = {"PYTHONPATH": str(source)}
    run(sys.executable, "-m", "sphinx", "-W", "-q", source / "docs", folder / "site", cwd=source, env=env)
    return "sphinx-build -W"


def long(folder):
    source = checkout.copy(folder / "source")
    build_core(source, {})
    pytest(sys.executable, source, "-n", "2", "--long")
    return "all tests, with 10,000 examples for each property"


def python_job(version):
    return lambda folder: other_python(folder, version)


# Name -> the function that runs it in an empty folder and returns what it ran.
JOBS = {
    "gcc": gcc,
    "clang": clang,
    "no-compiler": no_compiler,
    "sanitize": sanitize,
    "aarch64": emulated,
    **{f"python{version}": python_job(version) for version in PYTHONS},
    "wheel": wheel,
    "docs": docs,
    "ci": ci,
    "long": long,
}
NIGHTLY = ("long",)


def run_job(name):
    """-> (result, what ran or why not, seconds)"""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"qwq-{name}-") as folder:
        try:
            result, note = "passed", JOBS[name](Path(folder))
        except UnavailableError as error:
            result, note = "not run", str(error)
        except subprocess.CalledProcessError as error:
            result, note = "FAILED", f"exit status {error.returncode} of {' '.join(map(str, error.cmd))[:100]}"
    return result, note, time.monotonic() - start


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", nargs="+", choices=JOBS, metavar="NAME", help=", ".join(JOBS))
    parser.add_argument("--list", action="store_true", help="print the names of the jobs")
    options = parser.parse_args(arguments)
    if options.list:
        print(*JOBS, sep="\n")
        return 0
    results = {}
    for name in options.job or [name for name in JOBS if name not in NIGHTLY]:
        print(f"\n=== {name}", flush=True)
        results[name] = run_job(name)
    print()
    for name, (result, note, seconds) in results.items():
        print(f"{name:12} {result:8} {seconds:6.0f} s  {note}")
    bad = {"FAILED", "not run"} if options.job else {"FAILED"}
    return int(any(result in bad for result, _, _ in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
