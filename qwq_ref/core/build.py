"""How cffi builds the core: the contract is read from csrc/qwq.h, the code from the files beside it.

Run by setup.py. Where there is no compiler, the package installs without the core and says so when it is asked for.
"""

import os
import re
from pathlib import Path

from cffi import FFI

CSRC = Path(__file__).parents[2] / "csrc"
# Each job has entry points that check and share the work, a scalar reading copy, and a file for each instruction set.
SOURCES = ["cpu.c", "pack.c", "matmul.c", "ref.c", "avx2.c", "avx512.c", "select.c", "rope.c", "philox.c"]
SOURCES += ["layer.c", "ceilings.c"]
SOURCES += [f"{job}_{name}.c" for job in ("ops", "attention") for name in ("api", "ref", "avx2", "avx512")]
# Products and sums are rounded one by one, as in numerics/quant.py: no variant may fuse them.
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fopenmp", "-fvisibility=hidden"]
MORE = os.environ.get("QWQ_CORE_FLAGS", "").split()  # for developers: sanitizers (tests/tools/sanitize.py), debugging

ffi = FFI()
header = (CSRC / "qwq.h").read_text()
contract = re.search(r"/\* <cdef> \*/(.*)/\* </cdef> \*/", header, re.DOTALL)
assert contract is not None
ffi.cdef(contract[1])
ffi.set_source(
    "qwq_ref.core._core",
    '#include "qwq.h"',
    sources=[f"csrc/{name}" for name in SOURCES],  # relative to setup.py, which setuptools insists on
    include_dirs=["csrc"],
    depends=[str(path.relative_to(CSRC.parent)) for path in CSRC.glob("*.h")],
    extra_compile_args=FLAGS + MORE,
    extra_link_args=["-fopenmp", *MORE],
    optional=True,
)
