"""The core's tests under AddressSanitizer and UndefinedBehaviorSanitizer, on a build of their own.

    python -m tests.tools.sanitize [--quick] [what pytest is given]

By default, all of tests/test_core*.py. --quick: a build without optimisation, which takes seconds and not minutes.
Needs GCC with its libasan: with Debian's and Ubuntu's gcc it comes; Fedora: dnf install libasan libubsan. The normal
build stays as it is.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.paths import ROOT

FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"


def runtime(cc="gcc"):
    """libasan, which must be there before Python. gcc prints a bare name for a file that it does not have."""
    path = subprocess.run(
        [cc, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(path):
        raise SystemExit(f"{cc} is here, but libasan is not: install it (Fedora: dnf install libasan libubsan)")
    return path


def build(folder, flags="", cc="gcc", source=ROOT):
    """A copy of the package with a core of these flags; returns the folder to import it from."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", f"{folder}/base", "--build-lib", f"{folder}/lib"],
        cwd=source,
        env=os.environ | {"CC": cc, "QWQ_CORE_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    built = list(Path(folder, "lib/qwq_ref/core").glob("_core*.so"))
    if done.returncode or not built:  # the core is optional to setuptools, not here
        raise SystemExit(f"the core was not built:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return Path(folder, "lib")


def environment(library):
    """What Python needs to run that build. Leaks are not looked for: Python itself leaves memory at its end."""
    return os.environ | {
        "PYTHONPATH": f"{library}{os.pathsep}{ROOT}",
        "LD_PRELOAD": runtime(),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:halt_on_error=1:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=99",
        "PYTHONMALLOC": "malloc",  # so that NumPy's and cffi's memory has red zones, however small
        "QWQ_SANITIZED": str(library),
    }


def main(arguments):
    quick = "--quick" in arguments
    arguments = [a for a in arguments if a != "--quick"]
    runtime()  # says what is missing before the linker does
    with tempfile.TemporaryDirectory() as folder:
        library = build(folder, f"{FLAGS} {'-O0' if quick else '-O1'}")
        tests = arguments or [str(ROOT / "tests" / "core")]
        # -P, and not `python -m pytest`: the working folder would come before the build.
        command = ["import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))", "-q", "-p", "no:cacheprovider", *tests]
        return subprocess.run([sys.executable, "-P", "-c", *command], cwd=ROOT, env=environment(library)).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
