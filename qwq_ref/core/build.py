"""The build of the core by cffi: the contract comes from csrc/qwq.h, the code from every .c file below csrc/.

setup.py runs this. Where there is no compiler, the package installs without the core, and says so when the core is
asked for.
"""

import os
import re
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
# Products and sums are rounded one by one, as in numerics/quant.py: no rung may fuse them.
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread"]
MORE = os.environ.get("QWQ_CORE_FLAGS", "").split()  # for developers: sanitizers (tests/tools/sanitize.py), debugging


def below(pattern: str) -> list[str]:
    """Return files of csrc/, relative to setup.py, as setuptools needs them."""
    return sorted(str(path.relative_to(ROOT)) for path in CSRC.rglob(pattern))


ffi = FFI()
contract = re.search(r"/\* <cdef> \*/(.*)/\* </cdef> \*/", (CSRC / "qwq.h").read_text(), re.DOTALL)
assert contract is not None
ffi.cdef(contract[1])
ffi.set_source(
    "qwq_ref.core._core",
    '#include "qwq.h"',
    sources=below("*.c"),
    include_dirs=["csrc"],
    depends=below("*.h"),
    extra_compile_args=FLAGS + MORE,
    extra_link_args=["-pthread", "-lm", *MORE],
    optional=True,
)
