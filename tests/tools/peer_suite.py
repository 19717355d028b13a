"""A suite through llama.cpp beside ours: the same file, prompts (token ids), limits, stop strings and judges.

    python -m tests.tools.peer_suite ANSWERS MODEL.gguf [--data FILE] [--threads N] [--compare]

ANSWERS is a file of `qwq eval --suite NAME -o ANSWERS`. llama.cpp answers the same questions, 16 at a time as ours,
into ANSWERS.peer. A later run goes on from there. Then the problems that only one of the two solves are listed.
--compare: list them without answering any more.
"""

import argparse
import contextlib
import math
import sys
import time

import numpy as np

import qwq_ref
from qwq_ref.engine.decode.together import together
from qwq_ref.engine.session import Session
from qwq_ref.errors import QwqError
from qwq_ref.eval.intervals import paired_interval, wilson_interval
from qwq_ref.eval.suites import open_suite
from qwq_ref.eval.suites.answers import RUNNING, Asked, Completion, ModelAnswerer
from qwq_ref.eval.suites.records import Records, read_records
from qwq_ref.eval.suites.run import run
from qwq_ref.interop.llama_cpp.bindings import Library

CHUNK = 512


class LlamaSequence:
    """One of the sequences of a context of llama.cpp, with a number of its own until `free`."""

    def __init__(self, backend):
        self.backend, self.length = backend, 0
        self.slot = backend.slots.pop()
        self.rollback(0)

    def rollback(self, length):
        api = self.backend.library.api
        api.llama_memory_seq_rm(api.llama_get_memory(self.backend.context), self.slot, length, -1)
        self.length = length

    def free(self):
        self.backend.slots.append(self.slot)


class LlamaBackend:
    """The part of a backend that `decode.together` needs."""

    chunk, streams = CHUNK, False

    def __init__(self, library, context, vocabulary, most):
        self.library, self.context, self.vocabulary = library, context, vocabulary
        self.slots = [*range(most)]

    def sequence(self):
        return LlamaSequence(self)

    def missing(self, steps):
        return 0

    def run_together(self, steps, tell):
        """Compute the steps in one batch -> for each, the logits [1, V] of its last id."""
        api, total, last = self.library.api, sum(len(step.ids) for step in steps), []
        batch = api.llama_batch_init(total, 0, 1)
        try:
            batch.n_tokens, at = total, 0
            for step in steps:
                for place, identity in enumerate(step.ids, step.sequence.length):
                    batch.token[at], batch.pos[at] = identity, place
                    batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, step.sequence.slot, False
                    at += 1
                batch.logits[at - 1] = True
                last.append(at - 1)
            if status := self.library.decode(self.context, batch):
                raise QwqError(None, "llama.cpp", f"cannot decode: status {status}")
            rows = [np.ctypeslib.as_array(api.llama_get_logits_ith(self.context, i), (self.vocabulary,)) for i in last]
            found = [row.copy()[None] for row in rows]
        finally:
            api.llama_batch_free(batch)
        for step in steps:
            step.sequence.length += len(step.ids)
        return found


@contextlib.contextmanager
def llama(path, context, threads, most=RUNNING):
    """A backend of llama.cpp with its defaults, for one file and up to `most` answers of `context` tokens at a time."""
    library = Library(QwqError)
    how = {"n_ctx": most * context, "n_seq_max": most, "n_batch": CHUNK + most, "n_ubatch": CHUNK}
    how |= {"n_threads": threads, "n_threads_batch": threads}
    with (
        library.log() as log,
        library.model(path, {"n_gpu_layers": 0}, log) as model,
        library.context(path, model, how, None, log) as run_,
    ):
        yield LlamaBackend(library, run_, library.vocabulary(model), most)


class LlamaAnswerer:
    """llama.cpp's logits; the prompts, the choice of tokens and the ends are those of `ours`."""

    def __init__(self, ours, backend, most=RUNNING):
        self.ours, self.backend, self.most = ours, backend, most

    def __call__(self, asked):
        going = {}

        def works():
            for number, one in enumerate(asked):
                ready, sequence = self.ours.prepare(one), self.backend.sequence()
                going[number] = one, ready.generation(), sequence, time.monotonic()
                yield ready.work(Session(self.backend, sequence=sequence))

        for number, identity in together(works(), self.backend, self.most):
            one, said, sequence, started = going[number]
            if identity is not None:
                said.take(identity)
                continue
            said.end()
            sequence.free()
            del going[number]
            counts = len(said.run.prompt), len(said.run.output), said.thinking_tokens
            texts, reason = (said.texts["answer"], said.texts["thinking"]), said.run.finish_reason or "stop"
            yield one, Completion(*texts, *counts, reason, time.monotonic() - started)


def compare(ours, theirs):
    """Print the two results over the problems that both answered, and those that only one of them solved."""
    theirs = {one.key: one.values for one in theirs}
    pairs = [(one.values, theirs[one.key]) for one in ours if one.key in theirs]
    n = len(pairs)
    for name, place in (("qwq_ref", 0), ("llama.cpp", 1)):
        right = sum(pair[place]["correct"] for pair in pairs)
        low, high = wilson_interval(right, n)
        print(f"{name:9} {right} of {n} correct, {right / n:.1%} ({low:.1%} - {high:.1%})")
    lost = [a["id"] for a, b in pairs if a["correct"] and not b["correct"]]
    gained = [a["id"] for a, b in pairs if b["correct"] and not a["correct"]]
    low, high = paired_interval(len(lost), len(gained), n)
    p = mcnemar(lost, gained)
    print(f"difference {len(lost) - len(gained):+d} problems, {low:+.1%} to {high:+.1%}; McNemar p = {p:.2f}")
    print(f"same text in {sum(a['text'] == b['text'] for a, b in pairs)} of {n}")
    print(f"only qwq_ref: {', '.join(lost) or 'none'}\nonly llama.cpp: {', '.join(gained) or 'none'}")


def mcnemar(lost, gained):
    """The exact two-sided p of McNemar's test: each discordant pair falls to either side with probability 1/2."""
    n, least = len(lost) + len(gained), min(len(lost), len(gained))
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)


def main(words):
    parser = argparse.ArgumentParser()
    parser.add_argument("answers")
    parser.add_argument("model")
    parser.add_argument("--data")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compare", action="store_true")
    options = parser.parse_args(words)
    facts, ours, _ = read_records(options.answers)
    path = f"{options.answers}.peer"
    if not options.compare:
        suite = open_suite(facts["suite"], options.data, form=facts.get("form"))
        tasks = {task.id: task for task in suite.tasks}
        asked = [Asked(tasks[one.key[0]], *one.key[1:], one.values["seed"]) for one in ours]
        context = max(one.values["prompt_tokens"] for one in ours) + facts["max_tokens"]
        model = qwq_ref.load(options.model, context=context, text=True)
        sampling = {name: value for name, value in facts["sampling"].items() if value not in (None, {}, [])}
        sampling["steps"] = tuple(sampling["steps"])
        prepared = ModelAnswerer(model, suite.form, facts["max_tokens"], sampling)
        with llama(options.model, context, options.threads) as backend:
            mine = facts | {"peer": backend.library.version}
            with Records(path, mine) as records:
                told = lambda one: print(one.values["id"], one.values["correct"], one.values["tokens"], flush=True)  # noqa: E731
                run(suite, LlamaAnswerer(prepared, backend), asked, records, told)
    compare(ours, read_records(path)[1])


if __name__ == "__main__":
    main(sys.argv[1:])
