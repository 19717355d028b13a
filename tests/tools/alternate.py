"""Compare the speed of two source trees: run `qwq bench` of one and of the other in alternation.

    python -m tests.tools.alternate OLD NEW
    python -m tests.tools.alternate OLD NEW --rounds 9 --case="--op matmul-q4 --shape o -T 1,8" --case="-m qwq-nano"

OLD and NEW are folders with a `qwq_ref` package whose core is built in place. Each round runs every case once in
each tree; the order of the two changes from round to round, so that a drift of the machine's speed cancels out. A
row of the output is one row of `qwq bench`:

    old, new  the median time over all repeats of all rounds, in ms: of a call, or of a token
    new/old   the ratio of these medians: below 1 means that NEW is faster
    spread    the quartiles of the ratios of single rounds
    best      the ratio of the shortest times, which other work on the machine disturbs the least

The exit status is 1 if a ratio is beyond the bound, and the rows beyond it carry a mark.
"""

import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import geometric_mean, median, quantiles

from qwq_ref.tables import Table

CASES = [
    "--op matmul --shape o -T 1,8,512",
    "--op attention --shape 4k -T 1,8,512",
    "--op quantise-q4,quantise-q8 --shape o",
    "--op quantise-activations,rmsnorm,rope,softmax,swiglu,top-k,argmax -T 1,512",
    "--shape qwq-32b --layers 8 -p 512 -n 32",
]
KEYS = ("op", "shape", "model", "weights", "kv", "test", "T", "isa", "threads")


def times(tree: Path, case: str) -> dict[str, list[float]]:
    """Return {row: seconds of each repeat} of one run of `qwq bench` in a tree: of a call, or of a token."""
    command = [sys.executable, "-P", "-m", "qwq_ref", "bench", *shlex.split(case), "-o", "json"]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False, cwd=tree)
    if done.returncode:
        raise SystemExit(f"{tree}: qwq bench {case}: exit status {done.returncode}")
    found = {}
    for row in json.loads(done.stdout)["rows"]:
        name = " ".join(f"{key}={row[key]}" if key in ("T", "threads") else row[key] for key in KEYS if row.get(key))
        found[name] = row["samples"] if "seconds" in row else [1 / speed for speed in row["samples"]]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="alternate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--case", action="append", help=f"arguments of qwq bench; default: {'; '.join(CASES)}")
    parser.add_argument("--bound", type=float, default=0.01, help="the ratio may be 1 + BOUND (default 0.01)")
    parser.add_argument("--json", type=Path, help="write all times here")
    options = parser.parse_args()

    trees = (options.old.resolve(), options.new.resolve())
    samples: dict[str, tuple[list[list[float]], list[list[float]]]] = defaultdict(lambda: ([], []))
    for number, case in itertools.product(range(options.rounds), options.case or CASES):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            print(f"round {number + 1} of {options.rounds}, {('old', 'new')[which]}: {case}", file=sys.stderr)
            for name, seconds in times(trees[which], case).items():
                samples[name][which].append(seconds)
    if options.json:
        options.json.write_text(json.dumps(samples, indent=1) + "\n")

    table = Table(["row", "old ms", "new ms", "new/old", "spread", "best", ""], "<>>>>><")
    rows, ratios = [], []
    for name, (old, new) in samples.items():
        if not old or not new:
            rows.append([name, *["-"] * 5, f"only in {'new' if new else 'old'}"])
            continue
        before, after = list(itertools.chain(*old)), list(itertools.chain(*new))
        ratio = median(after) / median(before)
        single = [median(b) / median(a) for a, b in zip(old, new, strict=True)]
        low, _, high = quantiles(single, n=4, method="inclusive") if len(single) > 1 else single * 3
        figures = [f"{1e3 * median(before):.4g}", f"{1e3 * median(after):.4g}", f"{ratio:.3f}"]
        figures += [f"{low:.3f} to {high:.3f}", f"{min(after) / min(before):.3f}"]
        rows.append([name, *figures, "slower" if ratio > 1 + options.bound else ""])
        ratios.append(ratio)
    print(table.text(rows))
    if ratios:
        print(f"\n{len(ratios)} rows: geometric mean {geometric_mean(ratios):.3f}, worst {max(ratios):.3f}")
    return int(any(row[-1] == "slower" for row in rows) or not ratios)


if __name__ == "__main__":
    sys.exit(main())
