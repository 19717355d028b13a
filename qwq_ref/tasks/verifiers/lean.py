"""The verifier of proofs in Lean 4: the Lean REPL reads a proof, and Comparator decides.

To elaborate a Lean file runs code that the file brings. So no output of its own elaboration counts as a success: a file
can print what it likes, and make `#print axioms` say what it likes. Two sandboxes run one after the other.

1. The REPL (github.com/leanprover-community/repl) elaborates the proof. Errors and `sorry` end here, with a reason.
2. Comparator (github.com/leanprover/comparator) builds statement and proof in processes of their own, and exports both.
   It compares the statements, collects the axioms, and replays the proof in Lean's kernel. Its report decides.

Lean was not there when this was written: it follows the published formats of both programs, and has not run with them.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import SandboxError, UsageError, printable
from ...sandbox import Limits, start
from ...sandbox.inside import values
from .verdict import Verdict

AXIOMS = ("propext", "Classical.choice", "Quot.sound")
# Addresses: Lean maps the files of Mathlib into memory.
LIMITS = Limits(memory=1 << 35, seconds=300.0, wall=300.0, disk=1 << 28, threads=256, processes=True)
_THEOREM = re.compile(r"^[ \t]*(?:@\[[^\]]*\]\s*)?(?:protected\s+)?(?:theorem|lemma)\s+([^\s:({\[⦃]+)", re.MULTILINE)
_SORRY = re.compile(r"declaration uses ['`]sorry['`]")
_REPORT = "report.json"
_LAKE_FILE = 'name = "judged"\n\n[[lean_lib]]\nname = "Challenge"\n\n[[lean_lib]]\nname = "Solution"\n'
_LAKE_FILES = ("lakefile.toml", "lakefile.lean", "lake-manifest.json", "lean-toolchain")


class Tools(NamedTuple):
    """The programs of Lean on this machine.

    repl        command of the REPL, such as ("lake", "env", "/opt/repl/.lake/build/bin/repl")
    comparator  command of Comparator, such as ("lake", "env", "/opt/comparator/.lake/build/bin/comparator")
    project     a folder with a lakefile that has the libraries Challenge and Solution; None for one without packages
    folders     that the commands read: Lean, the packages of the project, landrun, lean4export, git
    variables   such as PATH
    """

    repl: tuple[str, ...]
    comparator: tuple[str, ...]
    project: str | None = None
    folders: tuple[str, ...] = ()
    variables: Mapping[str, str] = {}


class _UnprovedError(Exception):
    """The proof is not accepted. The message says why."""


def verify(
    statement: str, proof: str, command: Tools, *, theorems: Sequence[str] = (), limits: Limits = LIMITS
) -> Verdict:
    """Judge a proof in Lean 4.

    statement  a trusted Lean file with the theorems to prove, by `sorry`
    proof      the model's Lean file, with the same theorems
    theorems   their full names; by default, all that the statement names, which a namespace would change

    The axioms propext, Classical.choice and Quot.sound are allowed, and no others.
    """
    started = time.monotonic()
    try:
        names = list(theorems) or _THEOREM.findall(statement)
        if not names:
            raise _UnprovedError("the statement names no theorem")
        _elaborate(proof, command, limits)
        _compare(statement, proof, names, command, limits)
        why = "passed"
    except _UnprovedError as problem:
        why = str(problem)
    except (SandboxError, UsageError, OSError, ValueError) as problem:
        why = f"not run: {problem}"
    return Verdict(why == "passed", printable(why), time.monotonic() - started)


def _elaborate(proof: str, tools: Tools, limits: Limits) -> None:
    """Let the REPL read the proof. Raises _UnprovedError for errors and `sorry`. Silence is no success yet."""
    request = json.dumps({"cmd": proof}) + "\n\n"
    status, files = _run(tools.repl, {}, request, (), tools, limits)
    answer = _object(files[""])
    if answer is None:
        raise _UnprovedError(f"the REPL gives no answer (status {status})")
    if isinstance(answer.get("message"), str):  # the form of its own errors
        raise _UnprovedError(f"the REPL refuses the proof: {_short(answer['message'])}")
    messages = [each for each in _list(answer.get("messages")) if isinstance(each, dict)]
    for each in messages:
        if each.get("severity") == "error":
            place = each.get("pos")
            line = place.get("line") if isinstance(place, dict) else None
            raise _UnprovedError(f"does not compile: line {line}: {_short(each.get('data'))}")
    if answer.get("sorries") or any(_SORRY.search(str(each.get("data"))) for each in messages):
        raise _UnprovedError("uses sorry")
    if "env" not in answer:
        raise _UnprovedError(f"the REPL gives no answer (status {status})")


def _compare(statement: str, proof: str, names: Sequence[str], tools: Tools, limits: Limits) -> None:
    """Let Comparator judge statement and proof. Raises _UnprovedError unless each theorem is proved."""
    config = {
        "challenge_module": "Challenge",
        "solution_module": "Solution",
        "theorem_names": list(names),
        "permitted_axioms": list(AXIOMS),
        "enable_nanoda": False,
        "json_output_path": _REPORT,
    }
    files = {
        "Challenge.lean": statement.encode("utf-8", "surrogatepass"),
        "Solution.lean": proof.encode("utf-8", "surrogatepass"),
        "config.json": json.dumps(config).encode(),
    }
    status, found = _run([*tools.comparator, "config.json"], files, "", (_REPORT,), tools, limits)
    report = _object(found.get(_REPORT))
    if report is None:
        raise _UnprovedError(f"Comparator gives no report (status {status})")
    _require_proved(report, names)
    if status != 0:
        raise _UnprovedError(f"Comparator does not accept the proof (status {status})")


def _require_proved(report: dict[str, Any], names: Sequence[str]) -> None:
    """Raise _UnprovedError unless a report of Comparator accepts each theorem. Both published forms of it are read."""
    targets = [each for each in _list(report.get("reports")) if isinstance(each, dict)]
    by_name = {str(each.get("target", each.get("targetName"))): each for each in targets}
    for name in names:
        target = by_name.get(name)
        if target is None:
            raise _UnprovedError(f"Comparator does not report on {_short(name)}")
        if target.get("failureCategory") is not None or target.get("failureMessage") is not None:
            raise _UnprovedError(_short(target.get("failureMessage") or target["failureCategory"]))
        others = [axiom for axiom in _list(target.get("transitiveAxioms")) if axiom not in AXIOMS]
        if others:
            raise _UnprovedError(f"uses the axiom {_short(others[0])}")
    kernel = report.get("kernel")
    nested = kernel if isinstance(kernel, dict) else {}
    if report.get("kernelAccepted", nested.get("accepted")) is not True:
        message = report.get("kernelFailureMessage", nested.get("failureMessage"))
        raise _UnprovedError(f"the kernel does not accept the proof: {_short(message)}")


def _run(
    command: Sequence[str], files: Mapping[str, bytes], given: str, wanted: Sequence[str], tools: Tools, limits: Limits
) -> tuple[int, dict[str, bytes | None]]:
    """Run a command in a sandbox of its own. Return its status and files; "" names its standard output."""
    project, links = _project(tools.project)
    written, stdin = {**project, **files}, given.encode("utf-8", "surrogatepass")
    order = (list(command), dict(tools.variables), written, links, stdin, list(wanted))
    folders = [*tools.folders, *([tools.project] if tools.project else [])]
    with start("tool", order, limits, output=True, folders=folders) as process:
        output, errors = process.output()
        failure = process.failure(1.0)
    if failure is not None:
        raise _UnprovedError(f"{command[0]} {failure}")
    match values.decoded(output[4:], most_keys=100):
        case (127, _):
            raise UsageError(None, None, errors.decode("utf-8", "replace").strip() or f"{command[0]} does not start")
        case (int() as status, dict() as found):
            if status == 128 + signal.SIGXCPU:
                raise _UnprovedError(f"{command[0]} computes for more than {limits.seconds:g} seconds")
            if status > 128:
                raise _UnprovedError(f"{command[0]} crashes with signal {status - 128}")
            return status, found
    raise ValueError("no answer has this form")


def _project(folder: str | None) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the files with which lake builds the two modules, and links to built packages. Raises OSError."""
    if folder is None:
        return {"lakefile.toml": _LAKE_FILE.encode()}, {}
    found = {name: Path(folder, name) for name in _LAKE_FILES}
    packages = Path(folder, ".lake", "packages")
    links = {".lake/packages": str(packages)} if packages.is_dir() else {}
    return {name: path.read_bytes() for name, path in found.items() if path.exists()}, links


def _object(data: bytes | None) -> dict[str, Any] | None:
    """Return the first JSON object of some bytes; None if they do not begin with one."""
    try:
        found, _ = json.JSONDecoder().raw_decode((data or b"").decode("utf-8", "replace").lstrip())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _short(value: Any) -> str:
    return " ".join(str(value)[:300].split())
