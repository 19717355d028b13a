"""The experiments of reinforcement learning, with their control: train, evaluate, and print the table.

python -m tests.tools.rl_experiments FOLDER [--seeds 0,1,2] [--only e2,e5] [-n PROBLEMS] [-t THREADS]

    e0  the base model
    e1  the cold start
    e2  e1 + PPO on the whole reward
    e3  e0 + PPO on correctness and form alone, without the cold start
    e4  e0 + PPO on the whole reward
    e5  e1 + solutions of the same kinds of problems, for at least the time of e2: the control
    e6  e1 and e2, at temperature 0

Runs and scores that FOLDER holds already are kept, and a run that was interrupted resumes. BLAS should have one thread,
since the threads share the batches: OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import qwq_ref
from qwq_ref.eval.accuracy import evaluate
from qwq_ref.eval.intervals import wilson_interval
from qwq_ref.train import rl, sft
from qwq_ref.train.folder import LOG, read_log
from qwq_ref.train.reward import Reward
from qwq_ref.train.rollout import answers
from tests.support.paths import PACKAGE

BASE, COLD = PACKAGE / "models" / "qwq-nano-base", PACKAGE / "models" / "qwq-nano"
LOOKED_AT = ("count", "recall", "countdown3", "gcd", "countdown2", "mod", "sort")
PLAIN = Reward(language=0, repetition=0, long=0, truncated=0)
CONTROL = 1.0  # the time of the control, over that of e2


def told(name):
    def progress(done, total, measured):
        if done % 10 == 0:
            reward = f"reward {measured['reward']:.3f}" if isinstance(measured, dict) else f"loss {measured:.4f}"
            print(f"{name}: {done} of {total}, {reward}", file=sys.stderr, flush=True)

    return progress


def train(name, folder, seed, threads):
    """Run an experiment, or resume it."""
    how = {"seed": seed, "workers": threads, "progress": told(folder.name)}
    recipe = rl.Recipe()
    if name == "e2":
        rl.train(folder, COLD, recipe, **how)
    elif name == "e3":
        rl.train(folder, BASE, replace(recipe, reward=PLAIN), **how)
    elif name == "e4":
        rl.train(folder, BASE, recipe, **how)
    elif name == "e5":
        spent = sum(read_log(folder.parent / f"e2-{seed}" / LOG)["seconds"])
        sft.train("control", folder, base=COLD, steps=control_steps(folder, spent, threads), **how)


def control_steps(folder, seconds, threads):
    """The steps that take as long as a run of PPO took: kept in a file, so that a run resumes with the same number."""
    kept = folder.with_suffix(".steps")
    if not kept.exists():
        trial = folder.with_suffix(".trial")
        sft.train("control", trial, base=COLD, steps=12, workers=threads)
        kept.write_text(str(round(CONTROL * seconds / np.median(read_log(trial / LOG)["seconds"][2:]))))
    return int(kept.read_text())


def scored(model, categories, n, temperature, threads):
    """-> {category: its score}"""
    sampling = model.sampling(temperature=temperature)

    def answer(problems):
        said = answers(
            model.config,
            model.backend.tensors,
            [model.prompt_ids(problem.prompt) for problem in problems],
            sampling,
            end_ids=[*model.end_tokens],
            vocabulary=min(model.tokenizer.size, model.config.V),
            never=model.tokenizer.holes,
            max_tokens=400,
            seed=0,
            workers=threads,
        )
        return [(one.ids, one.ended) for one in said]

    return {name: evaluate(answer, model.tokenizer, name, n, seed=0).row() for name in categories}


def scores(file, folder, n, temperature, threads):
    """The scores of a model, which are kept in a file as they come."""
    known = json.loads(file.read_text()) if file.exists() else {}
    missing = [name for name in LOOKED_AT if known.get(name, {}).get("n") != n]
    if missing:
        model = qwq_ref.load(folder, backend="numpy", text=True)
        for name in missing:
            known |= scored(model, [name], n, temperature, threads)
            file.write_text(json.dumps(known, indent=2))
            print(f"{file.stem}: {name} {known[name]['accuracy']:.1%}", file=sys.stderr, flush=True)
    return known


def row(label, runs):
    """A line of the table: the share of all runs' answers that is right, with its interval, for each category."""
    cells = []
    for name in LOOKED_AT:
        n = sum(run[name]["n"] for run in runs)
        right = sum(run[name]["accuracy"] * run[name]["n"] for run in runs)
        low, high = wilson_interval(round(right), n)
        cells.append(f"{right / n:.1%} ({low:.1%} - {high:.1%})")
    means = [
        np.mean([run[name][fact] for run in runs for name in LOOKED_AT]) for fact in ("loops", "switches", "tokens")
    ]
    return f"| {label} | {' | '.join(cells)} | {means[0]:.2%} | {means[1]:.2%} | {means[2]:.0f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="e0,e1,e2,e3,e4,e5,e6")
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("-t", "--threads", type=int, default=2)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    wanted, seeds = options.only.split(","), [int(seed) for seed in options.seeds.split(",")]

    def measured(name, folder, temperature=None):
        return scores(options.folder / f"{name}.json", folder, options.n, temperature, options.threads)

    print(f"| | {' | '.join(LOOKED_AT)} | loops | switches | tokens |")
    print("|---|" + "---|" * (len(LOOKED_AT) + 3))
    for name in wanted:
        if name in ("e0", "e1"):
            print(row(name, [measured(name, BASE if name == "e0" else COLD)]), flush=True)
        elif name == "e6":
            print(row("e1, greedy", [measured("e1-greedy", COLD, 0)]), flush=True)
            greedy = [measured(f"e2-{seed}-greedy", options.folder / f"e2-{seed}", 0) for seed in seeds]
            print(row("e2, greedy", greedy), flush=True)
        else:
            runs = []
            for seed in seeds:
                folder = options.folder / f"{name}-{seed}"
                train(name, folder, seed, options.threads)
                runs.append(measured(folder.name, folder))
                print(row(folder.name, runs[-1:]), flush=True)
            print(row(name, runs), flush=True)


if __name__ == "__main__":
    main()
