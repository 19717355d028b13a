"""The verifier of Lean proofs, by the published outputs of its tools. Small Python programs stand for the tools."""

import json
import os
import sys

import pytest

from qwq_ref.sandbox import view
from qwq_ref.tasks.verifiers import lean
from tests.tasks.lean_outputs import REPL, REPORTS

STATEMENT = "theorem expected : 1 + 1 = 2 := by\n  sorry\n"
PROOF = "theorem expected : 1 + 1 = 2 := by\n  rfl\n"

TOOL = """
import json, os, sys
program, output, status = sys.argv[1:4]
if program == "repl":
    request = json.loads(sys.stdin.read())
    assert request == {"cmd": open("/tools/proof.lean").read()}, request
else:
    assert sys.argv[4:] == ["config.json"]
    config = json.load(open("config.json"))
    assert config["challenge_module"] == "Challenge" and config["solution_module"] == "Solution"
    assert config["permitted_axioms"] == ["propext", "Classical.choice", "Quot.sound"]
    assert open("Solution.lean").read() == open("/tools/proof.lean").read()
    assert open("Challenge.lean").read() == open("/tools/statement.lean").read()
if output == "sleep":
    import time
    time.sleep(100)
if output == "loop":
    while True: pass
if output == "crash":
    os.kill(os.getpid(), 6)
if output == "flood":
    while True: print("x" * 10**6)
if program == "repl":
    print(output, flush=True)
elif output:
    open(config["json_output_path"], "w").write(output)
sys.exit(int(status))
"""
LIMITS = lean.LIMITS._replace(memory=1 << 30, seconds=2, wall=6, threads=20)


@pytest.fixture
def judge(way, tmp_path):
    """Judge PROOF, where the tools print these outputs and end with these statuses."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, text in (("tool.py", TOOL), ("proof.lean", PROOF), ("statement.lean", STATEMENT)):
        (folder / name).write_text(text.replace("/tools/", f"{folder}/"))
    folder.chmod(0o755)

    def judge(repl, report, status=0, statement=STATEMENT, **given):
        python = [view.python(), "-I", "-S", str(folder / "tool.py")]
        texts = [each if isinstance(each, str) else json.dumps(each, indent=1) for each in (repl, report)]
        tools = lean.Tools((*python, "repl", texts[0], "0"), (*python, "comparator", texts[1], str(status)))
        return lean.verify(statement, PROOF, tools._replace(folders=(str(folder),)), limits=LIMITS, **given)

    return judge


@pytest.mark.parametrize("report", ["proved", "proved with axioms"])
def test_a_proof_is_accepted(judge, report):
    verdict = judge(REPL["fine"], REPORTS[report])
    assert (verdict.correct, verdict.why) == (True, "passed")


@pytest.mark.parametrize(
    ("repl", "report", "status", "why"),
    [
        ("error", "proved", 0, "does not compile: line 1: type mismatch rfl has type f = f : Prop"),
        ("sorry", "proved", 0, "uses sorry"),
        ("sorry in a macro", "proved", 0, "uses sorry"),
        ("refused", "proved", 0, "the REPL refuses the proof: unknown module prefix 'Mathlib'"),
        ("fine", "a new axiom", 1, "Illegal axiom detected: 'axC'"),
        ("redefined #print", "a new axiom", 1, "Illegal axiom detected: 'axC'"),
        ("fine", "a changed statement", 1, "Challenge and solution theorem statement do not match: 'expected'"),
        ("fine", "native_decide", 1, "Illegal axiom detected: 'Lean.ofReduceBool'"),
        ("fine", "hacked environment", 1, "the kernel does not accept the proof: (kernel) application type mismatch"),
        ("fine", "earlier form", 1, "the kernel does not accept the proof: (kernel) application type mismatch"),
        ("fine", "a lenient report", 0, "uses the axiom sorryAx"),
        ("fine", "another theorem", 0, "Comparator does not report on expected"),
        ("fine", "no targets", 0, "Comparator does not report on expected"),
        ("fine", "no kernel", 0, "the kernel does not accept the proof: None"),
        ("fine", "proved", 1, "Comparator does not accept the proof (status 1)"),
    ],
)
def test_published_outputs(judge, repl, report, status, why):
    verdict = judge(REPL[repl], REPORTS[report], status)
    assert not verdict.correct
    assert verdict.why.startswith(why), verdict.why


@pytest.mark.parametrize(
    ("repl", "report", "why"),
    [
        # Invented: IO in elaboration prints an answer first, or ends the REPL, and cannot prove anything by it
        ('{"env": 0}\n\n' + json.dumps(REPL["error"]), REPORTS["a new axiom"], "Illegal axiom detected: 'axC'"),
        ("", REPORTS["proved"], "the REPL gives no answer (status 0)"),
        ("Hello!", REPORTS["proved"], "the REPL gives no answer (status 0)"),
        ("[1]", REPORTS["proved"], "the REPL gives no answer (status 0)"),
        ("[" * 100_000, REPORTS["proved"], "the REPL gives no answer (status 0)"),
        ('{"messages": 7, "sorries": []}', REPORTS["proved"], "the REPL gives no answer (status 0)"),
        ('{"messages": [7, {"severity": "error"}]}', REPORTS["proved"], "does not compile: line None: None"),
        (REPL["fine"], "", "Comparator gives no report (status 0)"),
        (REPL["fine"], "{", "Comparator gives no report (status 0)"),
        (
            REPL["fine"],
            '{"reports": {"expected": true}, "kernelAccepted": true}',
            "Comparator does not report on expec",
        ),
        (REPL["fine"], '{"reports": [7], "kernelAccepted": true}', "Comparator does not report on expected"),
        # A time-out, a crash, and output without end, in each of the tools
        ("sleep", REPORTS["proved"], "the tool runs for more than 6 seconds"),
        ("loop", REPORTS["proved"], "the tool computes for more than 2 seconds|the tool runs for more than 6 seconds"),
        ("crash", REPORTS["proved"], "the tool crashes with signal 6"),
        ("flood", REPORTS["proved"], "the REPL gives no answer|the tool runs for more than 6 seconds"),
        (REPL["fine"], "sleep", "the tool runs for more than 6 seconds"),
        (REPL["fine"], "crash", "the tool crashes with signal 6"),
    ],
)
def test_outputs_that_prove_nothing(judge, repl, report, why):
    verdict = judge(repl, report)
    assert not verdict.correct
    assert verdict.why.replace(view.python(), "the tool").startswith(tuple(why.split("|"))), verdict.why


def test_each_theorem_of_the_statement_must_be_proved(judge):
    two = STATEMENT + "\n@[simp] theorem second {n : Nat} : n = n := by sorry\n"
    assert lean._THEOREM.findall(two) == ["expected", "second"]
    assert lean._THEOREM.findall("lemma A.b(n : Nat) : n = n := sorry\n-- theorem") == ["A.b"]
    assert judge(REPL["fine"], REPORTS["proved"], theorems=["expected", "second"]).why == (
        "Comparator does not report on second"
    )
    assert judge(REPL["fine"], REPORTS["proved"], statement="def f := 1").why == "the statement names no theorem"


def test_tools_that_are_missing_are_no_success(way):
    verdict = lean.verify(STATEMENT, PROOF, lean.Tools(("lake", "env", "repl"), ("comparator",)), limits=LIMITS)
    assert (verdict.correct, verdict.why) == (False, "not run: lake: No such file or directory")


def test_a_project_lends_its_lake_files_and_packages(tmp_path):
    (tmp_path / "lakefile.toml").write_text("name = 'x'")
    (tmp_path / "lean-toolchain").write_text("leanprover/lean4:v4.20.0")
    assert lean._project(str(tmp_path)) == (
        {"lakefile.toml": b"name = 'x'", "lean-toolchain": b"leanprover/lean4:v4.20.0"},
        {},
    )
    (tmp_path / ".lake" / "packages").mkdir(parents=True)
    assert lean._project(str(tmp_path))[1] == {".lake/packages": f"{tmp_path}/.lake/packages"}
    assert list(lean._project(None)[0]) == ["lakefile.toml"]
    assert os.path.isabs(sys.executable)
