"""Mutated files, by the hundred thousand: each must give a typed error of one line, or the right answer.

    python -m tests.tools.mutate RECORD [-n 100000] [--seed 0] [--kinds config,template] [--only KIND:NUMBER]

RECORD is a file of JSON lines, one for each chunk of mutants. A later call with the same seed and commit goes on after
the last chunk. A mutant is read in a child process, so that a crash or a hang is a fault of this mutant alone. Faults
are crashes, hangs, exceptions of another type, errors of several lines, wrong answers, warnings, anything printed,
and more than `SECONDS` or `BYTES` for one mutant. `--only` shows one mutant. Exit status 1 if there is a fault.
"""

import argparse
import collections
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from tests.support.paths import ROOT

# The share of each kind, in percent.
SHARES = {
    "config": 18,
    "generation-config": 10,
    "tokenizer": 10,
    "tokenizer-config": 3,
    "template": 2,
    "safetensors": 12,
    "index": 5,
    "gguf": 10,
    "quantised": 10,
    "packed": 10,
    "golden": 10,
}
CHUNK, SLOW_CHUNK = 2500, 250  # a child takes seconds to start; a template has a process of its own
START, HANG = 600.0, 60.0  # seconds without news of a child: until its first mutant, and then
SECONDS, BYTES = 5.0, 200_000_000  # the most that a mutant may take
_ADDRESS_SPACE = 16 << 30


def one(kind, name, number, seed, capture):
    """Read one mutant -> {"outcome", "seconds", "bytes", and a "fault" if there is one}."""
    from qwq_ref.errors import QwqError
    from tests.support import mutants

    file, data = kind.put(mutants.rng_of(seed, name, number))
    before = _resident()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    started = time.perf_counter()
    answer = refusal = fault = None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            answer = kind.read()
        except QwqError as error:
            refusal = error
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            fault = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
    seconds, peak = time.perf_counter() - started, _status("VmHWM") - before
    sys.stdout.flush()
    sys.stderr.flush()
    printed = capture.seek(0, os.SEEK_END)
    if printed:
        capture.seek(0)
        fault = fault or f"printed {capture.read(200)!r}"
        capture.seek(0)
        capture.truncate()
    if warned:
        fault = fault or f"warned: {warned[0].message}"
    if refusal is not None and (not str(refusal).isprintable() or len(str(refusal)) > 1200 or not refusal.file):
        fault = f"not one line that names a file: {str(refusal)!r:.300}"
    if seconds > SECONDS or peak > BYTES:
        fault = fault or f"took {seconds:.1f} s and {peak:,} bytes"
    if fault is None and refusal is None:
        try:
            kind.check(answer, file, data)
        except AssertionError as error:
            fault = f"a wrong answer: {error}"
    outcome = "fault" if fault else "refused" if refusal else "same" if answer_is(answer, kind.sound) else "read"
    kind.restore(file)
    return {"outcome": outcome, "seconds": seconds, "bytes": peak} | ({"fault": f"{fault:.500}"} if fault else {})


def answer_is(answer, sound):
    """Return whether an answer is that of the sound files."""
    if isinstance(answer, dict):
        return answer.keys() == sound.keys() and all(answer_is(answer[name], sound[name]) for name in answer)
    if hasattr(answer, "tobytes"):
        return answer.tobytes() == sound.tobytes()
    return bool(answer == sound)


def _status(field):
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(field)) * 1024


def _resident():
    return _status("VmRSS")


def child(name, first, count, seed, pipe):
    """Read `count` mutants, and write a line for each to the pipe before and after."""
    import resource

    from tests.support.mutant_kinds import KINDS

    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as capture, open(pipe, "w") as news:
        kind = KINDS[name](Path(folder) / name)
        os.dup2(capture.fileno(), 1)
        os.dup2(capture.fileno(), 2)
        for number in range(first, first + count):
            for line in (number, None):
                made = number if line is not None else one(kind, name, number, seed, capture)
                news.write(json.dumps(made) + "\n")
                news.flush()


def chunk(name, first, count, seed):
    """Read a chunk of mutants in children -> its line for the record. A child that dies is followed by another."""
    outcomes, faults = collections.Counter(), {}
    worst = {"seconds": [0.0, first], "bytes": [0, first]}
    number, end = first, first + count
    while number < end:
        ours, theirs = os.pipe()
        command = [sys.executable, "-m", "tests.tools.mutate", "--child", name, str(number), str(end - number)]
        run = subprocess.Popen(
            [*command, "--seed", str(seed), "--pipe", str(theirs), "-"], cwd=ROOT, pass_fds=[theirs],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        current = None
        patience = START
        with open(ours, "rb", buffering=0) as news:
            while select.select([news], [], [], patience)[0] and (line := news.readline()):
                result, patience = json.loads(line), HANG
                if isinstance(result, int):
                    current = result
                    continue
                outcomes[result["outcome"]] += 1
                for what, most in worst.items():
                    worst[what] = max(most, [result[what], current])
                if "fault" in result:
                    faults[current] = result["fault"]
                number, current = current + 1, None
        if run.poll() is None and number < end:
            os.killpg(run.pid, signal.SIGKILL)  # its own group: it and the processes of its templates
        said = run.stderr.read().decode("utf-8", "replace")[-300:]
        status = run.wait()
        if number < end:
            if current is None:
                raise SystemExit(f"{name}: a child ended before mutant {number} (status {status}): {said}")
            faults[current] = "hang" if status == -signal.SIGKILL else f"crash: status {status}"
            outcomes["fault"] += 1
            number = current + 1
    return {"kind": name, "first": first, "count": count, **outcomes, "worst": worst, "faults": faults}


def read_record(path, seed, commit):
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(line["kind"], line["first"]): line for line in lines if (line["seed"], line["commit"]) == (seed, commit)}


def table(lines):
    """Return the sums of each kind as text."""
    rows = [f"{'kind':18}{'mutants':>8}{'refused':>9}{'same':>7}{'read':>7}{'faults':>8}{'worst s':>9}{'worst MB':>10}"]
    for kind in SHARES:
        own = [line for line in lines if line["kind"] == kind]
        if own:
            sums = [sum(line.get(what, 0) for line in own) for what in ("count", "refused", "same", "read", "fault")]
            seconds = max(line["worst"]["seconds"] for line in own)
            memory = max(line["worst"]["bytes"] for line in own)
            rows.append(
                f"{kind:18}{sums[0]:8,}{sums[1]:9,}{sums[2]:7,}{sums[3]:7,}{sums[4]:8,}{seconds[0]:9.2f}"
                f"{memory[0] / 1e6:10.1f}"
            )
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("-n", type=int, default=100_000, metavar="N", help="mutants of all kinds (default 100,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", help="default: all")
    parser.add_argument("--only", metavar="KIND:NUMBER", help="read one mutant, and print its file and its result")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--pipe", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, first, count = options.child
        child(name, int(first), int(count), options.seed, options.pipe)
        return 0
    if options.only:
        return only(options)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    seed, commit = options.seed, commit.stdout.strip()
    done = read_record(options.record, seed, commit)
    kinds = options.kinds.split(",") if options.kinds else list(SHARES)
    whole = sum(SHARES[kind] for kind in kinds)
    plan = []
    for kind in kinds:
        wanted = options.n * SHARES[kind] // whole
        size = SLOW_CHUNK if kind == "template" else CHUNK
        plan += [(kind, first, min(size, wanted - first)) for first in range(0, wanted, size)]
    for place, (kind, first, count) in enumerate(sorted(plan, key=lambda part: part[1])):
        if (kind, first) not in done:
            line = chunk(kind, first, count, seed) | {"seed": seed, "commit": commit}
            with options.record.open("a") as record:
                record.write(json.dumps(line) + "\n")
            done[kind, first] = line
            for number, fault in line["faults"].items():
                print(f"{kind}:{number}: {fault}", file=sys.stderr, flush=True)
        print(f"{place + 1} of {len(plan)} chunks", end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr)
    lines = [line for (kind, first), line in done.items() if any((kind, first) == part[:2] for part in plan)]
    print(table(lines))
    return int(any(line["faults"] for line in lines))


def only(options):
    """Read one mutant in this process, and print it."""
    from tests.support import mutants
    from tests.support.mutant_kinds import KINDS

    name, _, number = options.only.partition(":")
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as capture:
        kind = KINDS[name](Path(folder) / name)
        file, data = kind.put(mutants.rng_of(options.seed, name, number))
        options.record.write_bytes(data)
        print(f"{file}: {len(data):,} bytes, in {options.record}")
        try:
            print(repr(kind.read())[:500])
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
        kind.restore(file)
        result = one(kind, name, int(number), options.seed, capture)
    print(json.dumps(result))
    return int("fault" in result)


if __name__ == "__main__":
    sys.exit(main())
