"""From logits to the next token, in Hugging Face's order: penalties, temperature, top-k, top-p, min-p.

Each step takes logits and returns logits; a token that it excludes gets -inf. Everything is float64, so that a sum of
152,064 probabilities cannot move a threshold. The steps follow `transformers/generation/logits_process.py`, ties
included. The presence penalty, which it lacks, is that of the OpenAI API.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .ops import Array, softmax

STEPS = ("penalties", "temperature", "top_k", "top_p", "min_p")
LARGEST = float(np.finfo(np.float64).max)
FAR = 1e300  # a logit this large leaves every smaller one without probability, and penalties room before `LARGEST`


@dataclass(frozen=True)
class Sampling:
    """The rules for the choice of the next token. The defaults keep the model's own distribution.

    temperature         divides the logits; 0 is greedy: the likeliest token, of equals the lowest id
    top_k               keep the k likeliest tokens, and ties with the last of them; 0 keeps all
    top_p               keep the fewest likeliest tokens whose probabilities reach p; 1 keeps all
    min_p               keep tokens at least min_p times as likely as the likeliest; 0 keeps all
    repetition_penalty  > 1 makes every token of the prompt and the output less likely, once
    presence_penalty    subtracted from the logit of every token of the output, once
    steps               the steps in order: some or all of `STEPS`, each once

    Raises ValueError for a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    steps: tuple[str, ...] = STEPS

    def __post_init__(self) -> None:
        for name, ok, wanted in (
            ("temperature", 0 <= self.temperature < np.inf, "at least 0 and finite"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < np.inf, "above 0 and finite"),
            ("presence_penalty", abs(self.presence_penalty) < np.inf, "finite"),
            ("steps", len(set(self.steps) & set(STEPS)) == len(self.steps), f"some of {', '.join(STEPS)}, each once"),
        ):
            if not ok:
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)}")


def distribution(logits: Array, how: Sampling, prompt: Sequence[int] = (), output: Sequence[int] = ()) -> Array:
    """logits [V] -> [V]

    The probability of each token to be next. `prompt` and `output` are the ids so far, for the penalties.
    ValueError as for `checked_logits`.
    """
    logits = checked_logits(np.asarray(logits, np.float64))
    with np.errstate(over="ignore"):  # a logit far below the largest may become -inf
        for step in how.steps:
            if step == "penalties":
                logits = repetition_penalty(logits, [*prompt, *output], how.repetition_penalty)
                logits = presence_penalty(logits, output, how.presence_penalty)
            elif step == "temperature" and how.temperature > 0:
                logits = temperature(logits, how.temperature)
            elif step == "top_k" and how.top_k > 0:
                logits = top_k(logits, how.top_k)
            elif step == "top_p" and how.top_p < 1:
                logits = top_p(logits, how.top_p)
            elif step == "min_p" and how.min_p > 0:
                logits = min_p(logits, how.min_p)
        if how.temperature == 0:
            greedy: Array = np.eye(1, len(logits), int(np.argmax(logits)))[0]
            return greedy
        return softmax(logits)


def checked_logits(logits: Array) -> Array:
    """logits [..., V] -> [..., V]

    The logits, if a token can be chosen by each row. A mask may exclude tokens by -inf. ValueError for a row that holds
    NaN or +inf, or no finite number: its largest value, which is NaN where there is one, is not finite.
    """
    largest = np.max(logits, axis=-1)
    if not np.all(np.isfinite(largest)):
        raise ValueError(f"the largest of the logits must be finite, got {largest[~np.isfinite(largest)].flat[0]}")
    return logits


def draw(probs: Array, rng: np.random.Generator) -> int:
    """probs [V]

    Draw a token id with one uniform number: the first id whose running sum of probabilities exceeds the number.
    ValueError if the sum is not above 0 and finite.
    """
    cumulative = np.cumsum(probs)
    total = cumulative[-1]
    if not 0 < total < np.inf:
        raise ValueError(f"the sum of probs must be above 0 and finite, got {total}")
    number = min(rng.random() * total, np.nextafter(total, 0))  # the product may be rounded up to the sum
    return int(np.searchsorted(cumulative, number, side="right"))


def repetition_penalty(logits: Array, seen: Sequence[int], penalty: float) -> Array:
    """logits [V] -> [V]

    Divide the positive logits of `seen` tokens by the penalty and multiply the negative ones, once per token.
    Keskar et al. 2019, arXiv:1909.05858.
    """
    ids = np.asarray(seen, np.int64)
    penalised = logits.copy()
    penalised[ids] = np.where(logits[ids] < 0, logits[ids] * penalty, logits[ids] / penalty)
    return _within_range(penalised, logits)


def presence_penalty(logits: Array, output: Sequence[int], penalty: float) -> Array:
    """logits [V] -> [V]

    Subtract the penalty once from the logit of each token in the output.
    """
    ids = np.asarray(output, np.int64)
    penalised = logits.copy()
    penalised[ids] = logits[ids] - penalty
    return _within_range(penalised, logits)


def temperature(logits: Array, value: float) -> Array:
    """logits [..., V] -> [..., V]

    Divide by the temperature, which is above 0. If the largest logit would come near to overflow, divide by a higher
    temperature. There, too, the largest logits have all of the probability: the limit for temperatures towards 0.
    """
    largest = np.max(logits, axis=-1, keepdims=True)
    cooled: Array = logits / np.maximum(value, np.abs(largest) / FAR)
    return cooled


def top_k(logits: Array, k: int) -> Array:
    """logits [V] -> [V]

    Keep the k largest, and every tie with the k-th. Fan et al. 2018, arXiv:1805.04833.
    """
    kth_largest = np.sort(logits)[-min(k, len(logits))]
    return np.where(logits < kth_largest, -np.inf, logits)


def top_p(logits: Array, p: float) -> Array:
    """logits [V] -> [V]

    Drop the least likely tokens while the dropped probabilities sum to at most 1 - p, but never the likeliest. Of equal
    tokens the lower ids stay; in HF, torch's unstable sort decides. Holtzman et al. 2019, arXiv:1904.09751.
    """
    likeliest_last = np.argsort(-logits, kind="stable")[::-1]
    dropped = np.cumsum(softmax(logits[likeliest_last])) <= 1 - p
    dropped[-1] = False
    kept = logits.copy()
    kept[likeliest_last[dropped]] = -np.inf
    return kept


def min_p(logits: Array, p: float) -> Array:
    """logits [V] -> [V]

    Drop tokens less likely than p times the likeliest. Nguyen et al. 2024, arXiv:2407.01082.
    """
    probs = softmax(logits)
    return np.where(probs < p * np.max(probs), -np.inf, logits)


def _within_range(penalised: Array, logits: Array) -> Array:
    """Return penalised logits, with the largest float64 in place of an overflow to infinity."""
    return np.where(np.isfinite(logits), np.clip(penalised, -LARGEST, LARGEST), logits)
