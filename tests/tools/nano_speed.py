"""How fast qwq-nano answers, sampling and text included; and how soon after the command the first token is there.

python -m tests.tools.nano_speed [WEIGHTS]

Tokens per second from the first piece of text to the last, with the model's own sampling and default threads. The
command is started in a fresh process each time, as by pressing enter; its first character on stdout or stderr counts.
"""

import subprocess
import sys
import time
from statistics import median

import qwq_ref

PROMPT = "Solve step by step: (12+7)*3-44/4=?"


def speed(model, seed):
    first, count = None, 0
    for _ in model.generate(PROMPT, seed=seed):
        first = first or time.perf_counter()
        count += 1
    return (count - 1) / (time.perf_counter() - first), count


def first_token():
    begun = time.perf_counter()
    command = [sys.executable, "-m", "qwq_ref", "generate", PROMPT, "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        process.stderr.read(1)  # the reasoning comes first
        seconds = time.perf_counter() - begun
        process.stderr.read()
    return seconds, time.perf_counter() - begun


def main():
    model = qwq_ref.load("qwq-nano", weights=sys.argv[1] if len(sys.argv) > 1 else None)
    speeds = [speed(model, seed) for seed in range(40)]
    print(f"{model.backend.description}: {median(s for s, _ in speeds):,.0f} tokens/s, median of {len(speeds)} answers "
          f"of {median(n for _, n in speeds):.0f} pieces")  # fmt: skip
    first, whole = zip(*(first_token() for _ in range(7)), strict=True)
    print(f"first token after {median(first):.2f} s, the whole command {median(whole):.2f} s")


if __name__ == "__main__":
    main()
