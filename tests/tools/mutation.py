"""Mutation testing of the spec: change one thing at a time, and count the changes that the fast tier notices.

    python -m tests.tools.mutation [--workers 2] [--only ops.py] [--lines 98,110] [--json FILE]

The script changes every operator, comparison, constant, name of a weight or tap, rounding and call once. A test that
fails, or a run that takes over ten minutes, kills a mutant. Each survivor is printed with its line: either a test is
missing, or the change has no effect.

Torch and transformers are imported once. Each mutant then runs in a fork, on its own copy of the package.
"""

import argparse
import ast
import copy
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # not from tests.support.paths, which imports the package
SPEC = ROOT / "qwq_ref" / "spec"
FILES = ("ops.py", "block.py", "model.py", "sampling.py", "generate.py")
TESTS = (
    "spec/test_discriminating.py",
    "spec/test_ops.py",
    "spec/test_sampling.py",
    "spec/test_generate.py",
    "house/test_house.py",
    "config/test_config.py",
    "spec/test_vs_hf.py",
    "spec/test_properties.py",
)
SECONDS = 600

BINARY = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.RShift: ast.LShift,
}
COMPARE = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
}
NAMES = {
    "cos": "sin",
    "sin": "cos",
    "minimum": "maximum",
    "maximum": "minimum",
    "min": "max",
    "max": "min",
    "floor": "ceil",
    "ceil": "floor",
    "mean": "sum",
    "argmax": "argmin",
    "float64": "float32",
    "rnd": "exact",
    "first": "second",
}


def mutants(tree):
    """Yield (line, what, changed tree) for each single change."""
    skipped = set()
    for node in ast.walk(tree):
        has_docstring = isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node)
        if has_docstring:
            skipped.update(map(id, ast.walk(node.body[0])))
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if annotation is not None:
                skipped.update(map(id, ast.walk(annotation)))
        if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom):  # wording, and names
            skipped.update(map(id, ast.walk(node)))
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in (
            "KV",
            "Cache",
            "Array",
            "Round",
            "Tap",
        ):
            skipped.update(map(id, ast.walk(node)))
    for position, node in enumerate(ast.walk(tree)):
        if id(node) in skipped:
            continue
        for what, change in changes(node):
            changed = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(changed)) if i == position)
            replacement = change(target)
            if replacement is not None:
                changed = Replace(target, replacement).visit(changed)
            yield getattr(node, "lineno", 0), what, ast.fix_missing_locations(changed)


class Replace(ast.NodeTransformer):
    def __init__(self, target, replacement):
        self.target, self.replacement = target, replacement

    def visit(self, node):
        return self.replacement if node is self.target else self.generic_visit(node)


def changes(node):
    """(description, function that changes the node in place or returns one to put in its place)"""

    def setter(attribute, value):
        return lambda n: setattr(n, attribute, value)

    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in BINARY:
        new = BINARY[type(node.op)]
        yield f"{type(node.op).__name__} -> {new.__name__}", setter("op", new())
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARE:
        new = COMPARE[type(node.ops[0])]
        yield f"{type(node.ops[0]).__name__} -> {new.__name__}", lambda n: n.ops.__setitem__(0, new())
    elif isinstance(node, ast.BoolOp):
        new = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{type(node.op).__name__} -> {new.__name__}", setter("op", new())
    elif isinstance(node, ast.UnaryOp):
        yield f"{type(node.op).__name__} dropped", lambda n: n.operand
    elif isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, bool):
            yield f"{value} -> {not value}", setter("value", not value)
        elif isinstance(value, int | float):
            yield f"{value} -> {value + 1}", setter("value", value + 1)
            if isinstance(value, float) and value:
                yield f"{value} -> {value * 2}", setter("value", value * 2)
        elif isinstance(value, str):
            yield f"{value!r} changed", setter("value", value + "X")
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in NAMES:
        yield f"{node.id} -> {NAMES[node.id]}", setter("id", NAMES[node.id])
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield f"{node.attr} -> {NAMES[node.attr]}", setter("attr", NAMES[node.attr])
    elif isinstance(node, ast.If | ast.IfExp):
        yield "condition -> True", setter("test", ast.Constant(True))
        yield "condition -> False", setter("test", ast.Constant(False))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield f"{ast.unparse(node)[:50]} dropped", lambda n: ast.Pass()
    elif isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr in (
            "abs",
            "sqrt",
            "exp",
            "copy",
            "unique",
            "cumsum",
        ):
            if node.args:
                yield f"{ast.unparse(node.func)} dropped", lambda n: n.args[0]
            else:
                yield f"{ast.unparse(node.func)} dropped", lambda n: n.func.value
        for i, keyword in enumerate(node.keywords):
            yield f"{ast.unparse(keyword)} dropped", lambda n, i=i: n.keywords.pop(i) and None
    elif isinstance(node, ast.Slice) and (node.lower or node.upper):
        yield "slice -> :", lambda n: ast.Slice()


def run(job):
    """Run the fast tier against one mutant -> whether it survived."""
    number, name, line, what, source = job
    started = time.time()
    child = os.fork()
    if child == 0:
        folder = tempfile.mkdtemp()
        try:
            shutil.copytree(ROOT / "qwq_ref", Path(folder, "qwq_ref"), ignore=shutil.ignore_patterns("__pycache__"))
            Path(folder, "qwq_ref", "spec", name).write_text(source)
            sys.path[:] = [folder] + [p for p in sys.path if Path(p or ".").resolve() != ROOT]
            sys.dont_write_bytecode = True
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            import pytest

            status = int(
                pytest.main(
                    [*(str(ROOT / "tests" / t) for t in TESTS), "-xq", "-p", "no:cacheprovider", "--import-mode=append"]
                )
            )
            if status == 0 and not sys.modules["qwq_ref"].__file__.startswith(folder):
                status = 77
        except BaseException:
            status = 99
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(status)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.time() - started > SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            code = "timeout"
            break
        time.sleep(0.05)
    return number, name, line, what, code


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=FILES)
    parser.add_argument("--lines", help="only mutants of these lines, such as 98,110")
    parser.add_argument("--json")
    options = parser.parse_args()
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[threads] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # pytest warns of plugins that are imported already
    for module in ("torch", "transformers.models.qwen2.modeling_qwen2", "transformers.generation"):
        importlib.import_module(module)

    jobs = [(0, "ops.py", 0, "no change", (SPEC / "ops.py").read_text())]
    for name in FILES if options.only is None else [options.only]:
        for line, what, tree in mutants(ast.parse((SPEC / name).read_text())):
            if options.lines is None or str(line) in options.lines.split(","):
                jobs.append((len(jobs), name, line, what, ast.unparse(tree)))
    print(f"{len(jobs) - 1} mutants", file=sys.stderr)

    results = []
    with multiprocessing.get_context("fork").Pool(options.workers, maxtasksperchild=50) as pool:
        for result in pool.imap_unordered(run, jobs):
            results.append(result)
            number, name, line, what, code = result
            if number == 0 and code != 0:
                sys.exit(f"the tests fail without any change (status {code})")
            if number and code == 0:
                print(f"survived: {name}:{line}: {what}", flush=True)
            elif code in (2, 3, 4, 5, 77, 99):
                print(f"not judged: {name}:{line}: {what} (status {code})", flush=True)
            if len(results) % 25 == 0:
                print(f"{len(results)} of {len(jobs)}", file=sys.stderr, flush=True)
    judged = [r for r in results if r[0]]
    killed = sum(code != 0 for *_, code in judged)
    print(f"{killed} of {len(judged)} mutants killed: {killed / len(judged):.1%}")
    if options.json:
        Path(options.json).write_text(json.dumps(sorted(judged)))


if __name__ == "__main__":
    main()
