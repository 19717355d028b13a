"""Tokens a second of one client, and of many at once, through a scheduler: python -m tests.tools.clients MODEL

Each client asks for as many tokens as it may have. The line tells the ratio, and checks that each answer has the bits
that it has alone.
"""

import argparse
import dataclasses
import threading
import time

import qwq_ref
from qwq_ref.engine.scheduler import Ended, Scheduler

QUESTIONS = [
    "Write a function that adds two numbers.",
    "Explain what a hash table is.",
    "List the planets of the solar system.",
    "Sort a list of words in Python.",
]


def ask_all(scheduler, prepared):
    """Submit prompts at once -> the seconds from the first token of the last one on, and all jobs."""
    started, ended = threading.Barrier(len(prepared) + 1), threading.Barrier(len(prepared) + 1)

    class Client:
        begun = False

        def __call__(self, event):
            if isinstance(event, Ended):
                threading.Thread(target=ended.wait).start()
            elif not self.begun and type(event).__name__ == "Piece":
                self.begun = True
                threading.Thread(target=started.wait).start()

    jobs = [scheduler.submit(each, Client()) for each in prepared]
    started.wait()
    before, start = sum(len(job.generation.run.output) for job in jobs), time.perf_counter()
    ended.wait()
    seconds = time.perf_counter() - start
    return (sum(len(job.generation.run.output) for job in jobs) - before) / seconds, jobs


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--weights", default="q4")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("-n", "--tokens", type=int, default=64)
    parser.add_argument("-r", "--repeats", type=int, default=3)
    options = parser.parse_args()
    model = qwq_ref.load(options.model, weights=options.weights, context=2048)

    def prompts(count):
        ready = [
            model.prepare(
                f"{QUESTIONS[i % len(QUESTIONS)]} Number {i}.", seed=i, max_tokens=options.tokens, loop_guard=0
            )
            for i in range(count)
        ]
        for each in ready:  # a client that ends early would leave the others a faster machine
            each = dataclasses.replace(each, limits={**each.limits, "end_ids": []})
            yield each

    alone = [[*model.generate(f"{QUESTIONS[i % 4]} Number {i}.", seed=i, max_tokens=8)] for i in range(options.clients)]
    for _ in range(options.repeats):
        scheduler = Scheduler(model, running=options.clients)
        one, _ = ask_all(scheduler, [*prompts(1)])
        many, jobs = ask_all(scheduler, [*prompts(options.clients)])
        scheduler.close()
        for job, pieces in zip(jobs, alone, strict=True):
            text = "".join(piece.text for piece in pieces)
            assert "".join(job.generation.texts.values()).startswith(text.rstrip("\ufffd")), job.number
        print(
            f"one: {one:.1f} tokens/s; {options.clients} clients: {many:.1f} tokens/s, {many / one:.2f} x", flush=True
        )


if __name__ == "__main__":
    main()
