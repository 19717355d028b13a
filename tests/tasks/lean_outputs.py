"""Outputs of the Lean REPL and of Comparator. Lean is not available to the tests, so published outputs stand for it.

Each entry names its source. The ones marked as invented follow the published form, with content of our own.
"""

import json

# --- The REPL: github.com/leanprover-community/repl -----------------------------------------------------------------

REPL = {
    # test/readme.expected.out, its last answer without the sorry
    "fine": {"env": 0},
    # README.md, "Command mode"
    "error": {
        "messages": [
            {
                "severity": "error",
                "pos": {"line": 1, "column": 23},
                "endPos": {"line": 1, "column": 26},
                "data": "type mismatch\n  rfl\nhas type\n  f = f : Prop\nbut is expected to have type\n  f = 2 : Prop",
            }
        ],
        "env": 6,
    },
    # README.md, "Tactic mode"
    "sorry": {
        "sorries": [
            {
                "proofState": 0,
                "pos": {"line": 1, "column": 29},
                "goal": "x : Unit\n⊢ Nat",
                "endPos": {"line": 1, "column": 34},
            }
        ],
        "messages": [
            {
                "severity": "warning",
                "pos": {"line": 1, "column": 4},
                "endPos": {"line": 1, "column": 5},
                "data": "declaration uses 'sorry'",
            }
        ],
        "env": 0,
    },
    # test/readme.expected.out, a later form of the warning; invented: without the list of sorries
    "sorry in a macro": {
        "messages": [
            {
                "severity": "warning",
                "pos": {"line": 1, "column": 4},
                "endPos": {"line": 1, "column": 5},
                "data": "declaration uses `sorry`",
            }
        ],
        "env": 0,
    },
    # Invented: the form of the REPL's own errors, as REPL/JSON.lean and lean_interact's LeanError have it
    "refused": {"message": "unknown module prefix 'Mathlib'"},
    # Invented: a file that redefines #print, and makes it print this
    "redefined #print": {
        "messages": [
            {
                "severity": "info",
                "pos": {"line": 9, "column": 0},
                "endPos": {"line": 9, "column": 6},
                "data": "'expected' does not depend on any axioms",
            }
        ],
        "env": 0,
    },
}

# --- Comparator: github.com/leanprover/comparator ---------------------------------------------------------------------


def report(category=None, message=None, axioms=(), accepted=None, why=None, name="expected"):
    """The form of Comparator's Main.lean, `TargetReport` and `VerificationReport`."""
    target = {"target": name, "targetKind": "theorem", "failureCategory": category, "failureMessage": message}
    allowed = ("propext", "Classical.choice", "Quot.sound")
    lists = {"unpermittedAxioms": [each for each in axioms if each not in allowed], "transitiveAxioms": list(axioms)}
    kernel = {"kernelAccepted": accepted, "kernelFailureMessage": why}
    return {"reports": [target | lists], **kernel, "nanodaAccepted": None, "nanodaFailureMessage": None}


REPORTS = {
    # tests/projects/json_output_success/test.json
    "proved": json.loads(
        '{"reports": [{"target": "expected", "targetKind": "theorem", "failureCategory": null, "failureMessage": null,'
        '"unpermittedAxioms": [], "transitiveAxioms": []}], "kernelAccepted": true, "kernelFailureMessage": null,'
        '"nanodaAccepted": null, "nanodaFailureMessage": null}'
    ),
    # tests/projects/json_output_theorem_failure/test.json, the message shortened: a proof that hacks the environment
    "hacked environment": json.loads(
        '{"reports": [{"target": "expected", "targetKind": "theorem", "failureCategory": null, "failureMessage": null,'
        '"unpermittedAxioms": [], "transitiveAxioms": ["Quot.sound", "propext"]}], "nanodaFailureMessage": null,'
        '"nanodaAccepted": null, "kernelFailureMessage": "(kernel) application type mismatch\\n  @id",'
        '"kernelAccepted": false}'
    ),
    # tests/projects/incremental_axioms/test.json, its third target, by another name
    "a new axiom": report("axioms", "Illegal axiom detected: 'axC'", ["axC", "axB"]),
    # tests/projects/olean_issue/test.json: an earlier form, the message shortened
    "earlier form": {
        "reports": [
            {"targetName": "expected", "targetKind": "theorem", "failureCategory": None, "failureMessage": None}
        ],
        "nanoda": {"failureMessage": None, "accepted": None},
        "kernel": {"failureMessage": "(kernel) application type mismatch\n  @id", "accepted": False},
    },
    # The message of Comparator/Compare.lean, in a report of the published form
    "a changed statement": report(
        "comparison", "Challenge and solution theorem statement do not match: 'expected'", ["propext"]
    ),
    # Invented, in the published form: the axiom of native_decide
    "native_decide": report("axioms", "Illegal axiom detected: 'Lean.ofReduceBool'", ["Lean.ofReduceBool"]),
    # Invented: allowed axioms
    "proved with axioms": report(axioms=["propext", "Classical.choice", "Quot.sound"], accepted=True),
    # Invented, and none should exist: Comparator has other axioms than ours in its configuration
    "a lenient report": report(axioms=["sorryAx"], accepted=True),
    # Invented: another theorem; no kernel; no targets
    "another theorem": report(accepted=True, name="easier"),
    "no kernel": report(),
    "no targets": {"reports": [], "kernelAccepted": True},
}
