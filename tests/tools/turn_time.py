"""The time to the first token of a chat's second turn, against the same prompt from a cold start.

    python -m tests.tools.turn_time MODEL --tokens 2000

The first turn asks about a long text, and its answer has reasoning where the model's template opens it. The prefix of
the second turn is computed while the user reads: the time for that is printed as well, and is no part of the ratio.
"""

import argparse
import statistics
import threading
import time

import qwq_ref
from qwq_ref.engine.generation import Piece
from qwq_ref.engine.scheduler import Ended, Scheduler
from qwq_ref.engine.turns import certain_prefix

LINE = "The ship left port on day {}, with {} barrels of water and {} crates of oranges on board.\n"
SECOND = "And how many crates of oranges were there on day 7?"


def long_text(model, tokens):
    """Return a text of so many tokens, or a few less."""
    text, day = "", 0
    while len(model.tokenizer.encode(text)) < tokens:
        day += 1
        text += LINE.format(day, 40 + day * 3 % 17, 20 + day * 5 % 23)
    return text.rstrip()


def ask(scheduler, messages, most):
    """Answer a conversation -> the answer, and the seconds to its first piece."""
    first, ended, started = [], threading.Event(), time.perf_counter()

    def take(event):
        if isinstance(event, Piece) and not first:
            first.append(time.perf_counter() - started)
        if isinstance(event, Ended):
            ended.set()

    job = scheduler.submit(scheduler.model.prepare(messages, max_tokens=most, temperature=0), take)
    ended.wait()
    return job.generation, first[0]


def measure(model, tokens, most):
    """Return the seconds of a warm second turn, of a cold one, and of the work between the turns; and the warm run."""
    talk = [{"role": "user", "content": long_text(model, tokens - most) + "\nHow much water was there on day 5?"}]
    scheduler = Scheduler(model, running=1, waiting=1)
    said, _ = ask(scheduler, talk, most)
    talk.append({"role": "assistant", "content": said.texts["answer"], "reasoning_content": said.texts["thinking"]})
    started = time.perf_counter()
    scheduler.warm(certain_prefix(model, talk))
    while scheduler.call(lambda: scheduler.warming):
        time.sleep(0.005)
    between = time.perf_counter() - started
    talk.append({"role": "user", "content": SECOND})
    warm, seconds = ask(scheduler, talk, 1)
    scheduler.close()
    scheduler = Scheduler(model, running=1, waiting=1)
    _, cold = ask(scheduler, talk, 1)
    scheduler.close()
    return seconds, cold, between, warm.run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--tokens", type=int, default=2000, help="of the conversation before the second turn")
    parser.add_argument("--answer", type=int, default=200, help="most tokens of the first answer")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    weights = None if options.weights == "auto" else options.weights
    model = qwq_ref.load(options.model, weights=weights, context=options.tokens + 1024)
    rows = [measure(model, options.tokens, options.answer) for _ in range(options.repeats)]
    warm, cold, between = (statistics.median(row[number] for row in rows) for number in range(3))
    run = rows[0][3]
    print(f"second turn: prompt of {len(run.prompt)} tokens, {run.cached} of them prepared")
    print(f"first token: {warm:.3f} s, from a cold start {cold:.3f} s: {warm / cold:.1%} (medians of {len(rows)})")
    print(f"prepared while the user reads: in {between:.3f} s")


if __name__ == "__main__":
    main()
