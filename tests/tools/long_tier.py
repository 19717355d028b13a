"""The long tier, one test file at a time, with a record of the files that are done.

    python -m tests.tools.long_tier RECORD [-n WORKERS] [FILE ...]

The long tier takes hours. RECORD is a file of JSON lines: for each test file its seconds, its counts and the commit. A
later call skips the files that passed at the same commit, so an interrupted run goes on where it stopped. Exit status 1
if a test failed.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from tests.support.paths import ROOT


def read(record, commit):
    """{file: its last line} of a record, for one commit: another commit is other code."""
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    return {line["file"]: line for line in lines if line["commit"] == commit}


def run(file, workers, commit):
    """Run the long tier of one test file -> its line for the record."""
    command = [sys.executable, "-m", "pytest", "--long", "-q", "-n", str(workers), "--dist", "worksteal", file]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last_line(done))}
    if done.returncode not in (0, 5):  # 5: the file holds no test for this machine
        print(done.stdout[-6000:], file=sys.stderr)
    return {
        "file": file,
        "seconds": round(time.perf_counter() - started, 1),
        "status": done.returncode,
        **counts,
        "commit": commit,
    }


def last_line(done):
    """The line in which pytest counts."""
    return (done.stdout.strip().splitlines() or [""])[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("record", type=Path)
    parser.add_argument("files", nargs="*", help="default: all of them")
    parser.add_argument("-n", "--workers", type=int, default=2)
    options = parser.parse_intermixed_args()
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    commit = head.stdout.strip()
    passed = {file for file, line in read(options.record, commit).items() if line["status"] in (0, 5)}
    every = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").rglob("test_*.py"))]
    for file in options.files or every:
        if file not in passed:
            line = run(file, options.workers, commit)
            with options.record.open("a") as record:
                record.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    lines = read(options.record, commit)
    failed = [file for file, line in lines.items() if line["status"] not in (0, 5)]
    total = sum(line.get("passed", 0) for line in lines.values())
    hours = sum(line["seconds"] for line in lines.values()) / 3600
    print(f"{len(lines)} of {len(every)} files, {total} tests passed, {hours:.2f} hours; failed: {failed or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
