"""Programs on tests: right ones, wrong ones, and each trick by which a program could pass without the right results."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwq_ref.sandbox import ways
from qwq_ref.tasks.verifiers import code
from qwq_ref.tasks.verifiers.code import Raised

SHORT = code.LIMITS._replace(seconds=1, wall=3)
TESTS = """
METADATA = {'author': 'the tests'}

def check(candidate):
    assert candidate([3, 1, 2]) == [1, 2, 3]
    assert candidate(list(range(1000, 0, -1))) == list(range(1, 1001))
    assert candidate([]) == []
"""
SECRET = "def check(candidate):\n    assert candidate() == 'a secret of the tests'\n"


def verify(program, tests=TESTS, name="f", setup="", limits=SHORT):
    return code.verify_function(program, name, tests, setup, limits=limits)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "program",
    [
        "def f(x): return sorted(x)",
        "print('noise' * 10**6)\ndef f(x):\n    print('noise')\n    return sorted(x)",
        "from typing import List\nimport json, re, math, collections, heapq\ndef f(x: List[int]): return sorted(x)",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\ndef f(x): return sorted(A(x).x)",
        "class F:\n    def __call__(self, x): return sorted(x)\nf = F()",
        "if __name__ == '__main__':\n    raise ValueError\ndef f(x): return sorted(x)",
        "import threading\ndef f(x):\n    t = threading.Thread(target=x.sort)\n    t.start(); t.join()\n    return x",
        "import sys\nsys.setrecursionlimit(10**6)\n"
        "def f(x): return f([y for y in x[1:] if y < x[0]]) + [x[0]] + f([y for y in x[1:] if y >= x[0]]) if x else []",
    ],
)
def test_programs_that_pass(program):
    verdict = verify(program)
    assert verdict.correct, verdict.why
    assert verdict.why == "passed"
    assert 0 < verdict.seconds < 30


WRONG = {
    "no result": ("def f(x): pass", "wrong answer: assert candidate([3, 1, 2]) == [1, 2, 3]"),
    "a wrong result": ("def f(x): return x[::-1] if len(x) > 5 else sorted(x)[:3] or 7", "wrong answer: assert candid"),
    "an exception": ("def f(x): return 1 / 0", "ZeroDivisionError: division by zero, at: assert ca"),
    "no function": ("def g(x): return sorted(x)", "the program does not load: NameError: the program defines no f"),
    "no program": ("Sure! Here is the code:", "the program does not load: SyntaxError"),
    "a null byte": ("def f(x): return x\0", "the program does not load: "),
    "a lone surrogate": ("'\ud800'", "the program does not load: "),
    "brackets without end": ("(" * 100_000, "the program does not load: "),
    "an operator without end": ("x = " + "-" * 100_000 + "1", "the program"),
    "no callable": ("f = 3", "TypeError"),
    "a coroutine": ("async def f(x): return sorted(x)", "wrong answer"),
    "a generator": ("def f(x): yield from sorted(x)", "wrong answer"),
    "os._exit(0)": ("import os\nos._exit(0)", "the program ends while it loads"),
    "sys.exit(0)": ("import sys\nsys.exit(0)", "the program does not load: SystemExit: 0"),
    "os._exit(0) in the call": ("import os\ndef f(x): os._exit(0)", "the program ends during a call"),
    "sys.exit(0) in the call": ("import sys\ndef f(x): sys.exit(0)", "RuntimeError: SystemExit: 0, at: "),
    "SystemExit with a text": ("def f(x): raise SystemExit('passed')", "RuntimeError: SystemExit: passed, at"),
    "an equal to all": (
        "class A:\n    def __eq__(self, o): return True\n    def __ne__(self, o): return False\ndef f(x): return A()",
        "wrong answer",
    ),
    "a list that equals all": (
        "class A(list):\n    def __eq__(self, other): return True\ndef f(x): return A()",
        "wrong answer",
    ),
    "an exception with a hostile text": (
        "class A(Exception):\n    def __str__(self): raise SystemExit(0)\ndef f(x): raise A",
        "Exception, at",
    ),
    "another assert": ("import builtins\nbuiltins.AssertionError = KeyError\ndef f(x): return 0", "wrong answer"),
    "other built-ins": ("import builtins\nbuiltins.sorted = builtins.abs = lambda *_: 0\ndef f(x): return 0", "wrong"),
    "a patched encoder": (
        "import sys\nsys.modules['inside.values'].encoded = lambda v: b'T' if v else b'N'\ndef f(x): return 0",
        "the program's answer cannot be read",
    ),
    "a false verdict": (
        "import os, sys\nframe = sys.modules['inside.values'].message(None)\n"
        "for fd in range(4096):\n    try: os.write(fd, frame * 9)\n    except OSError: pass\n"
        "def f(x): return [1, 2, 3]",
        "the program's answer cannot be read",
    ),
    "a printed verdict": ("print('passed', flush=True)\nimport os\nos._exit(0)", "the program ends while it loads"),
    "a broken message": (
        "import os\nfor fd in range(4096):\n    try: os.write(fd, b'\\xff' * 9)\n"
        "    except OSError: pass\ndef f(x): return 0",
        "the program's answer cannot be read",
    ),
    "a closed channel": ("import os\nos.closerange(0, 4096)\ndef f(x): return sorted(x)", "the program ends"),
    "an endless loop": ("while True: pass", "the program "),
    "an endless call": ("def f(x):\n    while True: pass", "the program "),
    "a call that sleeps": ("import time\ndef f(x): time.sleep(100)", "the program runs for more than 3 seconds"),
    "a huge result": ("def f(x): return bytes(80_000_000)", "ValueError: a value is too large"),
    "a deep result": ("def f(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y", "ValueError: a"),
    "an endless result": ("def f(x):\n    x.append(x)\n    return x", "ValueError: a value is nested too deeply"),
    "a result that doubles": ("def f(x):\n    y = [1]\n    for _ in range(60): y = [y, y]\n    return y", "the progr"),
    "all memory": ("def f(x): return len(bytearray(10**10))", "MemoryError"),
    "all memory in pieces": ("def f(x):\n    while True: x.append(bytes(10**6))", "MemoryError"),
    "a crash": ("import ctypes\ndef f(x): ctypes.string_at(0)", "the program crashes with signal 11"),
    "a signal of its own": ("import os\ndef f(x): os.kill(os.getpid(), 9)", "the program "),
}  # fmt: skip


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", WRONG)
def test_programs_that_fail(name):
    program, why = WRONG[name]
    verdict = verify(program)
    assert not verdict.correct
    assert verdict.why.startswith(why), verdict.why
    assert verdict.why.isprintable()
    assert verdict.seconds < 30


LOOKS = {
    "objects": "import gc\nfound = [x for x in gc.get_objects() if isinstance(x, str)]",
    "frames": "import sys\nfound, frame = [], sys._getframe()\n"
    "while frame: found += [v for v in frame.f_globals.values() if isinstance(v, str)]; frame = frame.f_back",
    "dictionaries": "import gc\nfound = [v for d in gc.get_objects() if isinstance(d, dict) "
    "for v in list(d.values()) if isinstance(v, str)]",
    "code": "import gc, types\nfound = [c for f in gc.get_objects() if isinstance(f, types.FunctionType) "
    "for c in f.__code__.co_consts if isinstance(c, str)]",
    "descriptors": "import os\nfound = []\nfor fd in range(4096):\n"
    "    try: found.append(os.pread(fd, 9999, 0).decode('utf-8', 'replace'))\n    except OSError: pass",
    "arguments": "import sys\nfound = sys.argv + sys.orig_argv",
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", LOOKS)
def test_a_program_finds_no_answer_of_the_tests(name):
    """It returns each text in its process that could be the answer; its own one is in two parts."""
    look = LOOKS[name] + "\nfound = [x for x in found if 'a secret' + ' of the tests' in x]"
    program = look + "\ndef f():\n    return 'a secret' + ' of the tests' if found else 'nothing'"
    verdict = verify(program, SECRET)
    assert not verdict.correct
    assert verdict.why.startswith("wrong answer"), verdict.why
    assert verify(program.replace("if found else 'nothing'", ""), SECRET).correct


@pytest.mark.usefixtures("way")
def test_tests_that_catch_everything_do_not_pass_a_program_that_ends():
    tests = (
        "def check(candidate):\n    for _ in range(3):\n        try: candidate()\n        except BaseException: pass\n"
    )
    assert verify("def f(): return 0", tests).correct
    verdict = verify("import os\ndef f(): os._exit(0)", tests)
    assert (verdict.correct, verdict.why) == (False, "the program ends during a call")


@pytest.mark.usefixtures("way")
def test_tests_see_the_type_of_a_built_in_exception():
    tests = """
def check(candidate):
    try:
        candidate(-1)
    except ValueError as problem:
        assert str(problem) == 'too small'
    else:
        assert False, 'no exception'
"""
    assert verify("class Own(ValueError): pass\ndef f(x): raise Own('too small')", tests).correct
    assert verify("def f(x): raise KeyError('too small')", tests).why.startswith("KeyError: ")
    assert verify("def f(x): return 0", tests).why == "wrong answer: assert False, 'no exception'"


@pytest.mark.usefixtures("way")
def test_tests_call_the_helpers_of_a_prompt():
    """As those of HumanEval's problems 32, 38 and 50 do."""
    setup = "import math\n\ndef poly(xs, x):\n    return sum(c * math.pow(x, i) for i, c in enumerate(xs))\n"
    tests = "def check(candidate):\n    assert math.fabs(poly([-6, 11, -6, 1], candidate([-6, 11, -6, 1]))) < 1e-4\n"
    assert verify("def f(xs): return 2.0", tests, setup=setup).correct
    assert not verify("def poly(xs, x): return 0\ndef f(xs): return 5.0", tests, setup=setup).correct
    assert not verify("def f(xs): return float('nan')", tests, setup=setup).correct


@pytest.mark.usefixtures("way")
def test_tests_call_the_function_by_its_name():
    """As those of HumanEval's problem 33 do; the prompt's own stub is not meant."""
    tests = "def check(candidate):\n    assert f(2) == candidate(2) == 4\n"
    assert verify("def f(x): return x * x", tests, setup="def f(x):\n    pass\n").correct


@pytest.mark.usefixtures("way")
def test_arguments_and_results_keep_their_types():
    tests = """
def check(candidate):
    values = [
        1, True, None, 2.5, float('inf'), -0.0, 1j, 'é\\ud800', b'x',
        (1, (2,)), {1, 2}, frozenset({3}), {(1,): [2]},
    ]
    found = candidate(*values, key=values)
    assert found == (values, values)
    for one, other in zip(found[0], values):
        assert type(one) is type(other) and repr(one) == repr(other)
    nan = candidate(float('nan'), key=[])[0][0]
    assert nan != nan
"""
    verdict = verify("def f(*values, key): return list(values), key", tests)
    assert verdict.correct, verdict.why


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ("", "the tests define no check"),
        ("def check(candidate): exit(0)", "SystemExit"),
        ("raise SystemExit(0)", "the tests fail: SystemExit"),
        ("import os\ndef check(candidate): os._exit(0)", "the tests give no verdict: the process end early"),
        ("def check(candidate):\n    while True: pass", ""),
        ("def check(", "the tests fail: SyntaxError"),
        ("def check(candidate): candidate(object)", "wrong answer|TypeError|"),
    ],
)
def test_tests_without_a_verdict_are_no_success(tests, why):
    verdict = verify("def f(*x): return 0", tests)
    assert verdict.why.startswith(tuple(why.split("|"))), verdict.why
    assert not verdict.correct or "object" in tests


@pytest.mark.usefixtures("way")
def test_sixteen_threads_at_once():
    programs = ["def f(x): return sorted(x)", "def f(x): return x", "import os\nos._exit(0)", "f = 1 / 0"] * 8
    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(16) as pool:
        verdicts = list(pool.map(lambda program: verify(program, limits=code.LIMITS._replace(wall=60)), programs))
    assert [verdict.correct for verdict in verdicts] == [True, False, False, False] * 8, verdicts
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_runs_where_nothing_contains_it(monkeypatch, tmp_path):
    monkeypatch.setattr(ways, "problem", lambda way: "not here")
    sign = tmp_path / "ran"
    program = f"open({str(sign)!r}, 'w')\ndef f(x): return sorted(x)"
    refusal = (
        "not run: nothing contains a program on this machine, so none runs (bubblewrap: not here; namespaces: not here)"
    )
    assert (verdict := verify(program)).why == refusal
    assert not verdict.correct
    verdict = code.verify_streams(program, [("", "")])
    assert (verdict.correct, verdict.why) == (False, f"case 1 of 1: {refusal}")
    assert code.measure(program, "f", [([],)]).why == refusal
    assert not sign.exists()


# --- Streams ----------------------------------------------------------------------------------------------------------

DOUBLE = "import sys\nfor line in sys.stdin: print(2 * int(line))"


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("program", "cases", "why"),
    [
        (DOUBLE, [("1\n2\n", "2\n4\n"), ("", ""), ("7", "  14  \n\n")], "passed"),
        ("print(input()[::-1])", [("abc\n", "cba")], "passed"),
        ("if __name__ == '__main__':\n    print('main')", [("", "main")], "passed"),
        ("import sys\nprint(1)\nsys.exit()", [("", "1")], "passed"),
        ("print('é\u2028')", [("", "é\u2028")], "passed"),
        (DOUBLE, [("1\n", "2"), ("1\n2\n", "2\n5\n")], "case 2 of 2: wrong answer in line 2: '4' instead of '5'"),
        (DOUBLE, [("1\n", "2\n4")], "case 1 of 1: wrong answer in line 2: nothing instead of '4'"),
        (DOUBLE, [("1\n2", "2")], "case 1 of 1: wrong answer in line 2: '4' instead of nothing"),
        ("print(1)\n1 / 0", [("", "1")], "case 1 of 1: the program ends with status 1 (ZeroDivisionError: division"),
        ("print(1)\nexit('no')", [("", "1")], "case 1 of 1: the program ends with status 1"),
        ("print(1, flush=True)\nimport os\nos._exit(3)", [("", "1")], "case 1 of 1: the program ends with status 3"),
        ("print(input(), input())", [("1", "1")], "case 1 of 1: the program ends with status 1 (EOFError"),
        ("def", [("", "")], "case 1 of 1: the program ends with status 1 (SyntaxError"),
        ("while True: print('x' * 10**6)", [("", "")], "case 1 of 1: the program writes more than 16,777,216 bytes"),
        ("import time\ntime.sleep(9)", [("", "")], "case 1 of 1: the program runs for more than 3 seconds"),
        ("print(1)", [], "there are no cases"),
    ],
)  # fmt: skip
def test_streams(program, cases, why):
    verdict = code.verify_streams(program, cases, limits=SHORT)
    assert verdict.why.startswith(why), verdict.why
    assert verdict.correct == (why == "passed")


# --- Run time ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
def test_a_run_time_is_the_processor_s():
    slow = "import time\ndef f(n):\n    time.sleep(0.2)\n    return sum(i * i for i in range(n))"
    found = code.measure(slow, "f", [(10,), (1_000_000,)], repeats=2)
    assert found.measured, found.why
    assert found.results == [285, 333332833333500000]
    assert found.seconds[0] < 0.05 < 10 * found.seconds[1]
    assert found.seconds[1] > 5 * found.seconds[0]
    assert 0 < found.loading < 1


@pytest.mark.usefixtures("way")
def test_a_program_cannot_hide_its_run_time():
    """It stops Python's clocks, computes in a thread, or makes a table while it loads."""
    work = "for _ in range(30): sum(range(10**5))"
    clocks = "import time\ntime.process_time = time.perf_counter = time.thread_time = lambda: 0.0\n"
    for program in (
        f"{clocks}def f():\n    {work}",
        f"import threading as t\ndef work():\n    {work}\ndef f():\n    a = t.Thread(target=work); a.start(); a.join()",
    ):
        found = code.measure(program, "f", [()])
        assert found.measured, found.why
        assert found.seconds[0] > 0.01
    table = code.measure(f"{work}\ndef f(): pass", "f", [()])
    assert table.loading > 0.01 > table.seconds[0]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("def f(x): return x", "measured"),
        ("f = 1 / 0", "the program does not load: ZeroDivisionError: division by zero"),
        ("import os\ndef f(x): os._exit(0)", "the program ends during a call"),
        ("import os\nos._exit(1)", "the program ends with status 1"),
        ("def f(x):\n    while True: pass", "the program "),
        ("import os\ndef f(x): return int.from_bytes(os.urandom(8), 'big')", "the results differ between two runs"),
        ("def f(x): return set(range(20_000))", "the program's answer cannot be read: too many keys"),
    ],
)
def test_a_program_without_a_run_time(program, why):
    found = code.measure(program, "f", [(1,)], limits=SHORT)
    assert found.why.startswith(why), found.why


@pytest.mark.usefixtures("way")
def test_an_exception_is_a_result():
    found = code.measure("def f(x): return 1 / x", "f", [(2,), (0,)])
    assert found.results == [0.5, Raised("ZeroDivisionError: division by zero")]


def test_what_a_start_costs(way):
    """A loose bound; docs/verifiers.md has the figures."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        assert code.verify_streams("print(1)", [("", "1")]).correct
        times.append(time.perf_counter() - began)
    assert min(times) < 1.0
