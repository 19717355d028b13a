"""Build the C core, and tag wheels for the stable ABI. All other metadata is in pyproject.toml.

Without a C compiler, the build leaves the core out and succeeds. Without OpenMP, the core runs on one thread.
"""

import sys
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

TRIAL = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


class BuildCore(build_ext):
    """Build with OpenMP where the compiler has it, else for one thread."""

    def build_extension(self, ext):
        if self._compiles(["-fopenmp"]):
            ext.extra_compile_args.append("-fopenmp")
            ext.extra_link_args.append("-fopenmp")
        elif self._compiles([]):
            print("warning: the C compiler has no OpenMP: the core will run on one thread", file=sys.stderr)
        super().build_extension(ext)

    def _compiles(self, flags):
        """Return whether a program compiles and links with these flags: one that needs OpenMP, if they ask for it."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "trial.c")
            source.write_text(TRIAL if flags else "int main(void) { return 0; }\n")
            try:
                objects = self.compiler.compile([str(source)], folder, extra_postargs=flags)
                self.compiler.link_executable(objects, str(Path(folder, "trial")), extra_postargs=flags)
            except Exception:  # setuptools has several errors for it, and a missing compiler is an OSError
                return False
        return True


setup(
    cffi_modules=["qwq_ref/core/build.py:ffi"],
    cmdclass={"build_ext": BuildCore},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # one wheel for Python 3.11 and later
)
