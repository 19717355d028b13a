"""The C core's manners: no byte beside its arrays, no crash on wrong calls, no state left behind, and no warnings."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qwq_ref import core
from tests.support import core_calls
from tests.support.paths import ROOT
from tests.tools import sanitize

if not core.available():
    assert shutil.which("cc") is None, "there is a compiler, and yet the core was not built: pip install -e . again"
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
ISAS = core.isas()
CSRC = ROOT / "csrc"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow"]
SANITIZED = "QWQ_SANITIZED" in os.environ
not_again = pytest.mark.skipif(SANITIZED, reason="builds the core, and runs on a sanitized one already")


def run(*command, env=None, timeout=300):
    """In a process of its own, which may die."""
    return subprocess.run(
        [sys.executable, *map(str, command)], env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("isa", ISAS)
def test_no_byte_beside_an_array_is_touched(isa, side, pytestconfig):
    for seed in range(20 if pytestconfig.getoption("--long") else 1):
        done = run("-m", "tests.support.guards", isa, side, seed)
        last = done.stdout.strip().splitlines()[-1:]
        assert done.returncode == 0, f"{last}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize(("side", "offset"), [("right", 64), ("left", -1)])
def test_a_guard_page_kills(side, offset):
    script = "import ctypes, numpy as np\nfrom tests.support import guards\n"
    script += f"g = guards.Guarded(np.zeros(64, np.uint8), {side!r})\n"
    assert run("-c", f"{script}ctypes.string_at(g.address, 64)").returncode == 0
    died = run("-c", f"{script}ctypes.string_at(g.address + {offset}, 1)").returncode
    assert died == (99 if SANITIZED else -signal.SIGSEGV)


def test_wrong_calls_are_refused_and_harm_nothing(tmp_path, pytestconfig):
    log = tmp_path / "call"
    done = run("-m", "tests.tools.core_fuzz", log, 20_000 if pytestconfig.getoption("--long") else 300, timeout=3600)
    assert done.returncode == 0, f"{log.read_text()}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("isa", ISAS)
def test_the_variant_that_is_forced_is_the_one_that_runs(isa):
    """Every entry point, and through QWQ_ISA a wrapper of each file."""
    number = core.ISAS.index(isa)
    core.lib.qwq_isas_ran()
    for call in core_calls.every(0, (17,)):
        call.arguments |= {"isa": number} if "isa" in call.arguments else {}
        call.results()
        assert core.lib.qwq_isas_ran() == ((1 << number) if "isa" in call.arguments else 0), call
    script = """
import numpy as np
from qwq_ref import core
from qwq_ref.core import attention, ops
x = np.ones((2, 64), np.float32)
kv = attention.empty_kv("int8", 2, 1, 64)
for call in (
    lambda: core.matmul(x, core.quantise(x, "q4")),
    lambda: core.quantise_activations(x),
    lambda: ops.softmax(x),
    lambda: attention.append(kv, x[:, None], x[:, None], 0),
    lambda: attention.attention_int8(x[:, None], kv, 0),
):
    call()
    print(core.lib.qwq_isas_ran())
"""
    done = run("-c", script, env=os.environ | {"QWQ_ISA": isa})
    assert done.stdout.split() == [str(1 << number)] * 5, done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc/cpuinfo")
def test_no_variant_is_left_out_that_this_processor_has():
    flags = set(Path("/proc/cpuinfo").read_text().split()) | {"ymm", "zmm"}  # every system that runs tests saves these
    assert [isa for isa in core.ISAS if set(core.needs(isa)) <= flags] == ISAS


CONTROL = """
import ctypes, os, sys
libm = ctypes.CDLL("libm.so.6")
def control():
    "MXCSR without its flags of what happened, and the x87 control word."
    state = (ctypes.c_uint8 * 64)()
    assert libm.fegetenv(state) == 0
    return int.from_bytes(bytes(state[28:32]), "little") & 0xFFC0, bytes(state[:2])
def set_control(bits):
    state = (ctypes.c_uint8 * 64)()
    assert libm.fegetenv(state) == 0
    state[28:32] = list(bits.to_bytes(4, "little"))
    assert libm.fesetenv(state) == 0
import numpy, hypothesis
before = control()
from tests.support import core_calls
from qwq_ref import core
assert control() == before, "import"
calls = list(core_calls.every(0, (17,)))
for bits in (0x1F80, 0x9FC0, 0x7F80):  # as usual; FTZ and DAZ; towards zero
    set_control(bits)
    wanted = control()
    assert wanted[0] == bits & 0xFFC0
    for call in calls:
        for isa in map(core.ISAS.index, core.isas()):
            if "isa" in call.arguments:
                call.arguments["isa"] = isa
            call.results()
            assert control() == wanted, (call, hex(bits))
print("kept")
"""


@pytest.mark.skipif(os.uname().machine != "x86_64" or not sys.platform.startswith("linux"), reason="MXCSR is x86's")
def test_rounding_and_subnormals_stay_as_they_were():
    done = run("-c", CONTROL)
    assert done.stdout.strip() == "kept", done.stderr


@pytest.mark.parametrize("threads", [0, -1, 1025, 10**6, 1 << 40])
def test_impossible_numbers_of_threads_are_one_line(threads):
    with pytest.raises(core.CoreError, match="threads: must be 1 to 1024"):
        core.quantise(np.zeros((1, 64), np.float32), "q4", threads=threads)
    assert core.MOST_THREADS == core.lib.QWQ_MOST_THREADS


@not_again
@pytest.mark.parametrize("compiler", ["gcc", "clang", "aarch64-linux-gnu-gcc"])
def test_the_core_compiles_without_a_warning(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    for source in sorted(CSRC.rglob("*.c")):
        command = [
            compiler,
            "-std=gnu11",
            "-ffp-contract=off",
            "-pthread",
            "-O1",
            *WARNINGS,
            f"-I{CSRC}",
            "-c",
            "-o",
            tmp_path / "object.o",
            source,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:3000]


@not_again
@pytest.mark.skipif(shutil.which("gcc") is None or not sys.platform.startswith("linux"), reason="GCC's sanitizers")
def test_the_sanitizers_find_nothing_in_a_selection_and_find_what_is_planted(tmp_path):
    """Each entry point, between guard pages, on the best ISA. All tests: python -m tests.tools.sanitize."""
    sanitize.runtime()  # where there is gcc and no libasan, this fails and says what to install
    library = sanitize.build(tmp_path / "core", f"{sanitize.FLAGS} -O0")
    env = sanitize.environment(library)
    script = "import qwq_ref.core._core as c, sys; from tests.support import guards; print(c.__file__); "
    script += "guards.main(sys.argv[1], 'right')"
    done = run("-P", "-c", script, ISAS[-1], env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith(str(library))  # and not the normal build
    script = """
import numpy as np, sys
from qwq_ref import core
from qwq_ref.core._ffi import at
held = np.ones(63, np.float32)  # one less than is said
core.lib.qwq_exp(at(np.empty(64, np.float32)), at(held), 64, 0)
"""
    done = run("-P", "-c", script, env=env)
    assert done.returncode == 99, "an overflow was not seen"
    assert "heap-buffer-overflow" in done.stderr
    assert "torch" not in done.stderr


NO_CORE = """
import numpy as np, sys
import qwq_ref
from qwq_ref import core
print(qwq_ref.__file__)
assert not core.available()
for call in (core.isas, lambda: core.quantise(np.zeros((1, 64), np.float32), "q4")):
    try:
        call()
    except core.CoreError as error:
        print(error)
model = qwq_ref.load("qwq-nano")
print(model.logits([1, 2]).shape)
"""


@not_again
def test_without_a_compiler_all_but_the_core_installs_and_works(tmp_path):
    with pytest.raises(SystemExit, match="was not built"):  # which is how sanitize.py sees that there is no core
        sanitize.build(tmp_path, cc="/bin/false")
    done = run("-P", "-c", NO_CORE, env=os.environ | {"PYTHONPATH": str(tmp_path / "lib")})
    assert done.returncode == 0, done.stderr
    place, *said, shape = done.stdout.splitlines()
    assert place.startswith(str(tmp_path))
    assert said == ["core: is not built: install with a C compiler, or use the NumPy backend"] * 2
    assert shape.startswith("(2, ")
