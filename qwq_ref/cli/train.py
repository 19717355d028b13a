"""`qwq train`: a stage of the recipe, from a seed; stops and resumes to the same bits."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ..errors import UsageError
from .options import progress_bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", choices=["base", "cold-start"], help="a new model, or one from a base model")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="where the run lives; resumes what is there")
    parser.add_argument("-m", "--model", metavar="DIR", help="the base model to start from (cold-start)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--steps", type=int, metavar="N", help="instead of the recipe's own number")
    parser.add_argument("--chat-template-file", metavar="FILE", help="a template to store with a new model (base)")
    parser.add_argument("-t", "--threads", type=int, default=2, metavar="N", help="threads that share a batch")
    parser.add_argument(
        "--checkpointing", choices=["none", "selective", "full"], default="none", help="what a backward pass keeps"
    )


def run(options: argparse.Namespace) -> int:
    import os

    if (options.stage == "cold-start") != (options.model is not None):
        raise UsageError(None, "model", "is what cold-start starts from, and base does without")
    for library in ("OMP", "OPENBLAS", "MKL", "VECLIB_MAXIMUM"):  # each worker has one BLAS thread
        os.environ[f"{library}_NUM_THREADS"] = "1"
    from ..train.stages import STAGES, train

    total = options.steps or STAGES[options.stage].steps
    template = Path(options.chat_template_file).read_text("utf-8") if options.chat_template_file else None
    started = [0.0, 0]
    with progress_bar(options.stage, total, "step") as bar:

        def progress(done: int, total: int, loss: float) -> None:
            if not started[1]:
                started[:] = [time.perf_counter(), done]
                bar(done - 1)
            bar(1)
            if not sys.stderr.isatty() and (done % 50 == 0 or done == total):
                rate = (time.perf_counter() - started[0]) / max(1, done - started[1])
                print(f"step {done} of {total}: loss {loss:.4f}, {rate:.2f} s a step", file=sys.stderr, flush=True)

        train(
            options.stage,
            options.out,
            base=options.model,
            template=template,
            seed=options.seed,
            steps=options.steps,
            workers=options.threads,
            checkpointing=options.checkpointing,
            progress=progress,
        )
    return 0
