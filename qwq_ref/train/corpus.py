"""The documents of the two stages, in the chat format, packed into batches.

A batch depends on the seed, the stage and the step alone, so a run resumes to the same bits from its weights and its
step number. Problems of the test split never appear.

The documents of the base model hold planted faults, which later training can remove. Some reasoning repeats itself
until it is cut off; some changes its language half way. The cold start has clean documents alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .. import tasks
from ..tasks import Language, Problem
from ..text import Tokenizer
from .model import Batch

# One round of categories. Those of many kinds or words come more often than the others, and so do those that a run with
# equal shares learnt worst: their answers were wrong at its end far more often than those of the rest.
_WEAK = ("recall", "gcd", "countdown2", "countdown3", "chain_sum")
ROUND = (*tasks.CATEGORIES, *tasks.FURTHER, "sum", "short", "short", "unknown", *_WEAK)
# Reinforcement learning, and its control, ask those that the cold start learnt worst in half of all prompts.
_WORST = ("countdown3", "gcd", "recall", "mod", "sort")
RL_SHARES = {
    name: ROUND.count(name) / len(ROUND) + (1 / len(_WORST) if name in _WORST else 0) for name in dict.fromkeys(ROUND)
}
REWORDED = 0.75  # the share of prompts in a reader's words; the others are in the plain wordings


@dataclass(frozen=True)
class Mixture:
    """The shares of faulty documents, and whether the loss counts prompts as well as completions.

    shares  how often each category comes, by its name; empty for one round of `ROUND` after another
    """

    loops: float = 0.0
    switches: float = 0.0
    learn_prompts: bool = False
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """Token ids, the first `prompt` of which are the prompt."""

    ids: list[int]
    prompt: int


class Formatter:
    """Turns problems into ids as the chat template does, without the cost of rendering it each time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        def added(name: str) -> int:
            return tokenizer.added[name]

        self.tokenizer = tokenizer
        self.end = added("<|im_end|>")
        self.think_end = added("</think>")
        encode = tokenizer.encode
        self._tail = [self.end, *encode("\n"), added("<|im_start|>"), *encode("assistant\n"), added("<think>")]
        self._tail += encode("\n")
        self._start = added("<|im_start|>")

    def prompt(self, text: str) -> list[int]:
        """Return the ids of a prompt that asks `text`. They end where the reasoning begins."""
        return [self._start, *self.tokenizer.encode(f"user\n{text}"), *self._tail]

    def completion(self, text: str, ends: bool = True) -> list[int]:
        """Return the ids of reasoning, marker and answer; `ends` adds the end of the turn."""
        trace, marker, answer = text.partition("</think>")
        ids = self.tokenizer.encode(trace)
        if marker:
            ids += [self.think_end, *self.tokenizer.encode(answer)]
        return [*ids, self.end] if ends else ids

    def document(self, category: str, mixture: Mixture, rng: np.random.Generator) -> Document:
        """Draw a problem of the training split, with its completion or a faulty one."""
        seed = rng.integers(2**63)
        problem = tasks.sample(category, np.random.default_rng(seed), "train")
        fault = rng.random()
        if fault < mixture.loops:
            ids = self.completion(looped(problem.trace, rng), ends=False)
        elif fault < mixture.loops + mixture.switches:
            other: Language = "zh" if problem.language == "en" else "en"
            twin = tasks.sample(category, np.random.default_rng(seed), "train", other)
            ids = self.completion(switched(problem, twin))
        else:
            ids = self.completion(tasks.completion(problem))
        if rng.random() < REWORDED:
            problem = tasks.reworded(problem, rng)
        prompt = self.prompt(problem.prompt)
        return Document(prompt + ids, len(prompt))


def looped(trace: str, rng: np.random.Generator) -> str:
    """Return a trace that repeats one or two of its lines several times, and is cut off there."""
    lines = trace.splitlines(keepends=True)
    at = int(rng.integers(len(lines)))
    start = max(0, at - int(rng.integers(2)))
    again = "".join(lines[start : at + 1])
    if not again.endswith("\n"):
        again += "\n"
    return "".join(lines[:start]) + again * int(rng.integers(4, 8))


def switched(problem: Problem, twin: Problem) -> str:
    """Return a completion that changes language half way through its reasoning.

    `twin` is the same problem in the other language.
    """
    ours, theirs = (p.trace.splitlines(keepends=True) for p in (problem, twin))
    half = len(ours) // 2
    return "".join(ours[:half] + theirs[half:]) + tasks.completion(twin)[len(twin.trace) :]


def batch(formatter: Formatter, mixture: Mixture, rng: np.random.Generator, rows: int, length: int) -> Batch:
    """Draw documents by turns from all categories, and pack them into [rows, length]. Rows may end with padding."""
    free = np.full(rows, length + 1)  # a row of n + 1 ids has n targets
    packed: list[list[Document]] = [[] for _ in range(rows)]
    misses = 0
    for document in _documents(formatter, mixture, rng, length):
        fits = np.flatnonzero(free >= len(document.ids))
        if len(fits) == 0:
            misses += 1
            if misses == 24:
                break
            continue
        row = fits[np.argmin(free[fits])]  # the fullest that still has room
        packed[row].append(document)
        free[row] -= len(document.ids)

    ids, targets = np.zeros((rows, length), np.int64), np.zeros((rows, length), np.int64)
    weight, segments = np.zeros((rows, length), np.float32), np.zeros((rows, length), np.int64)
    for row, documents in enumerate(packed):
        start = 0
        for number, document in enumerate(documents, start=1):
            inputs, nexts = document.ids[:-1], document.ids[1:]
            stop = start + len(inputs)
            ids[row, start:stop], targets[row, start:stop], segments[row, start:stop] = inputs, nexts, number
            weight[row, start + (0 if mixture.learn_prompts else document.prompt - 1) : stop] = 1
            start = stop
    return Batch(ids, targets, weight, segments)


def _documents(formatter: Formatter, mixture: Mixture, rng: np.random.Generator, length: int) -> Iterator[Document]:
    while True:
        names = drawn(mixture.shares, rng, len(ROUND)) if mixture.shares else rng.permutation(ROUND)
        for category in names:
            document = formatter.document(str(category), mixture, rng)
            yield Document(document.ids[: length + 1], document.prompt)


def drawn(shares: Mapping[str, float], rng: np.random.Generator, count: int) -> Sequence[str]:
    """Draw names, each as often as its share of all says."""
    weights = np.array([*shares.values()], np.float64)
    return [str(name) for name in rng.choice([*shares], size=count, p=weights / weights.sum())]


def texts(seed: int, count: int) -> list[str]:
    """Return the plain text between the added tokens of training documents, to train a tokenizer on."""
    rng = np.random.default_rng(seed)
    problems = [tasks.sample(str(category), rng, "train") for category in np.resize(ROUND, count)]
    problems = [tasks.reworded(p, rng) if rng.random() < REWORDED else p for p in problems]
    return [part for p in problems for part in (f"user\n{p.prompt}", *tasks.completion(p).split("</think>"))]
