"""From logits to the next token, in Hugging Face's order: penalties, temperature, top-k, top-p, min-p, typical-p.

Each step takes logits and returns logits; a token that it excludes gets -inf. Everything is float64, so that a sum of
152,064 probabilities cannot move a threshold. The steps follow `transformers/generation/logits_process.py`, ties
included. The presence penalty, the frequency penalty and the logit bias are those of the OpenAI API. Top-n-sigma stands
before top-k, as in llama.cpp: top-k would change the standard deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .ops import Array, softmax

STEPS = ("penalties", "temperature", "top_n_sigma", "top_k", "top_p", "min_p", "typical_p")
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
    frequency_penalty   subtracted from the logit of every token of the output, as often as the output has it
    penalty_window      the penalties see this many last tokens of prompt and output together; 0: all of them
    typical_p           keep the tokens of most typical surprise whose probabilities reach p; 1 keeps all
    top_n_sigma         keep logits within n standard deviations of the largest; 0 keeps all
    logit_bias          token id -> number added to its logit, before all steps; -inf excludes the token

    Raises ValueError for a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    steps: tuple[str, ...] = STEPS
    frequency_penalty: float = 0.0
    penalty_window: int = 0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, ok, wanted in (
            ("temperature", 0 <= self.temperature < np.inf, "at least 0 and finite"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < np.inf, "above 0 and finite"),
            ("presence_penalty", abs(self.presence_penalty) < np.inf, "finite"),
            ("steps", len(set(self.steps) & set(STEPS)) == len(self.steps), f"some of {', '.join(STEPS)}, each once"),
            ("frequency_penalty", abs(self.frequency_penalty) < np.inf, "finite"),
            ("penalty_window", self.penalty_window >= 0, "at least 0"),
            ("typical_p", 0 < self.typical_p <= 1, "above 0 and at most 1"),
            ("top_n_sigma", 0 <= self.top_n_sigma < np.inf, "at least 0 and finite"),
        ):
            if not ok:
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)}")
        for identity, bias in self.logit_bias.items():
            if not (identity >= 0 and bias < np.inf):
                raise ValueError(f"logit_bias must add to ids from 0 finite numbers or -inf, got {identity}: {bias}")

    @property
    def penalises(self) -> bool:
        """Whether a penalty has an effect."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


def distribution(logits: Array, how: Sampling, prompt: Sequence[int] = (), output: Sequence[int] = ()) -> Array:
    """logits [V] -> [V]

    The probability of each token to be next. `prompt` and `output` are the ids so far, for the penalties.
    ValueError as for `checked_logits`.
    """
    logits = checked_logits(np.asarray(logits, np.float64))
    with np.errstate(over="ignore"):  # a logit far below the largest may become -inf
        if how.logit_bias:
            logits = checked_logits(logit_bias(logits, how.logit_bias))
        for step in how.steps:
            if step == "penalties":
                logits = penalties(logits, how, prompt, output)
            elif step == "temperature" and how.temperature > 0:
                logits = temperature(logits, how.temperature)
            elif step == "top_n_sigma" and how.top_n_sigma > 0:
                logits = top_n_sigma(logits, how.top_n_sigma)
            elif step == "top_k" and how.top_k > 0:
                logits = top_k(logits, how.top_k)
            elif step == "top_p" and how.top_p < 1:
                logits = top_p(logits, how.top_p)
            elif step == "min_p" and how.min_p > 0:
                logits = min_p(logits, how.min_p)
            elif step == "typical_p" and how.typical_p < 1:
                logits = typical_p(logits, how.typical_p)
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


def logit_bias(logits: Array, bias: Mapping[int, float]) -> Array:
    """logits [V] -> [V]

    Add a number to the logit of each of these ids. -inf excludes a token. A number such as -100 leaves it a probability
    that a draw never meets; the OpenAI API has the range -100 to 100. ValueError for an id that is not below V.
    """
    ids = np.fromiter(bias, np.int64, len(bias))
    if np.any(ids >= len(logits)):
        raise ValueError(f"logit_bias must name ids below {len(logits)}, got {max(ids)}")
    added = np.zeros(len(logits))
    added[ids] = np.fromiter(bias.values(), np.float64, len(bias))
    return np.where(np.isneginf(added), -np.inf, _within_range(logits + added, logits))


def penalties(logits: Array, how: Sampling, prompt: Sequence[int], output: Sequence[int]) -> Array:
    """logits [V] -> [V]

    Apply the three penalties. Each sees the last tokens alone, where there is a window.
    """
    seen = [*prompt, *output][-how.penalty_window :]
    output = output[-how.penalty_window :]
    logits = repetition_penalty(logits, seen, how.repetition_penalty)
    logits = presence_penalty(logits, output, how.presence_penalty)
    return frequency_penalty(logits, output, how.frequency_penalty)


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


def frequency_penalty(logits: Array, output: Sequence[int], penalty: float) -> Array:
    """logits [V] -> [V]

    Subtract the penalty from the logit of each token in the output, as often as the token is there.
    """
    ids, counts = np.unique(np.asarray(output, np.int64), return_counts=True)
    penalised = logits.copy()
    penalised[ids] = logits[ids] - np.clip(penalty * counts, -LARGEST, LARGEST)
    return _within_range(penalised, logits)


def temperature(logits: Array, value: float) -> Array:
    """logits [..., V] -> [..., V]

    Divide by the temperature, which is above 0. If the largest logit would come near to overflow, divide by a higher
    temperature. There, too, the largest logits have all of the probability: the limit for temperatures towards 0.
    """
    largest = np.max(logits, axis=-1, keepdims=True)
    cooled: Array = logits / np.maximum(value, np.abs(largest) / FAR)
    return cooled


def top_n_sigma(logits: Array, n: float) -> Array:
    """logits [V] -> [V]

    Drop tokens whose logits are more than n standard deviations below the largest. Excluded tokens do not count for the
    deviation. A temperature changes nothing: it divides both. Tang et al. 2024, arXiv:2411.07641.
    """
    possible = np.isfinite(logits)
    _, exponent = np.frexp(np.max(np.abs(logits[possible])))
    scaled = np.ldexp(logits, -exponent)  # at most 1, so that no square overflows
    return np.where(scaled < np.max(scaled) - n * np.std(scaled[possible]), -np.inf, logits)


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


def typical_p(logits: Array, p: float) -> Array:
    """logits [V] -> [V]

    Keep the fewest tokens whose probabilities reach p, and ties with the last of them. The first is the token whose
    surprise, -log of its probability, is nearest to the mean surprise. Meister et al. 2022, arXiv:2202.00666.
    """
    probs = softmax(logits)
    surprise = np.full(len(logits), np.inf)
    surprise[probs > 0] = -np.log(probs[probs > 0])
    distance = np.abs(surprise - np.sum(probs[probs > 0] * surprise[probs > 0]))
    nearest_first = np.argsort(distance, kind="stable")
    last = min(int(np.sum(np.cumsum(probs[nearest_first]) < p)), len(logits) - 1)
    return np.where(distance > distance[nearest_first[last]], -np.inf, logits)


def _within_range(penalised: Array, logits: Array) -> Array:
    """Return penalised logits, with the largest float64 in place of an overflow to infinity."""
    return np.where(np.isfinite(logits), np.clip(penalised, -LARGEST, LARGEST), logits)
