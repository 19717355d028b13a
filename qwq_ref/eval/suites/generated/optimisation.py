"""Optimisation: a slow function to replace by a fast one, judged by results and by measured run time.

Each family has the source of a slow function, which the prompt shows, and of our fast one, the reference. The reference
is plain code with the better algorithm, and no tricks: a limit of several times its time leaves room for style.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from random import Random
from typing import Any

from ....errors import printable
from ....tasks.verifiers import Verdict, code
from ..program import definitions
from ..suite import Scored, Task
from .families import Pair

MOST = 3.0  # times the reference's seconds
_ROUNDS = 3  # measurements of each, in turns; the least counts
_HOPELESS = 4.0  # times the limit: no further round can help
_IMPORTS = 0.05  # seconds of loading that are free. A table that a program makes beforehand takes longer
_LIMITS = code.Limits(seconds=1.0, wall=20.0)  # many times the reference's seconds; the machine may be busy
_SMALL, _LARGE = 12, 4  # inputs
_ENTRY = "called_with_packed_arguments"
# The measured time holds the reading of arguments. One text is read ten times as fast as a list of many numbers.
_UNPACKS = f"""

def {_ENTRY}(*packed):
    kinds = {{{{
        "ints": lambda text: [*map(int, text.split())],
        "texts": lambda text: text.split(),
        "pairs": lambda text: [[int(part) for part in line.split()] for line in text.split(",")],
    }}}}
    return {{name}}(*[kinds[each[0]](each[1]) if isinstance(each, tuple) else each for each in packed])
"""


@dataclass(frozen=True)
class Times:
    """Measurements of a program beside the reference's.

    ratio  of the seconds for large inputs, the program's to the reference's
    seconds, reference  these seconds, the least of several rounds
    results, wanted  of all inputs
    """

    ratio: float
    seconds: float
    reference: float
    results: list[Any]
    wanted: list[Any]


def inputs(pair: Pair, seed: str) -> list[tuple[Any, ...]]:
    """Return the arguments of each call: small ones first, then `_LARGE` of the largest size."""
    random = Random(seed)
    sizes = [random.randint(1, pair.small) for _ in range(_SMALL)] + [pair.most] * _LARGE
    return [pair.draw(random, size) for size in sizes]


def compare(program: str, pair: Pair, given: list[tuple[Any, ...]]) -> Times | str:
    """Measure a program and the reference in turns, in the sandbox. Return why not, if that fails."""
    packed = [tuple(map(_packed, each)) for each in given]
    unpacks = _UNPACKS.format(name=pair.name)
    least = [float("inf")] * 2
    results: list[list[Any]] = [[], []]
    for _ in range(_ROUNDS):
        loading = [0.0, 0.0]
        for which, text in enumerate((pair.fast, program)):
            found = code.measure(text + unpacks, _ENTRY, packed, repeats=1, limits=_LIMITS)
            if not found.measured:
                return found.why if which else f"not run: the reference fails: {found.why}"
            loading[which] = found.loading
            beforehand = max(0.0, loading[1] - loading[0] - _IMPORTS) if which else 0.0
            least[which] = min(least[which], sum(found.seconds[_SMALL:]) + beforehand)
            results[which] = found.results
        if least[1] > MOST * _HOPELESS * least[0]:
            break
    return Times(least[1] / least[0], least[1], least[0], results[1], results[0])


def task(identity: str, group: str, pair: Pair, seed: str) -> Task:
    """Return the task of a pair. Its inputs come from `seed`, and no prompt shows them."""
    prompt = (
        "This Python function is correct, but slow for large "
        f"inputs:\n\n```python\n{pair.slow}```\n\n{pair.text}\n\nWrite a much faster function `{pair.name}` with equal "
        "results. It has the same arguments, which it does not change. Only Python's standard library is there. Calls "
        "nest at most 900 deep. Answer with the whole function, and with all that it imports, in one Python code block."
    )
    return Task(identity, prompt, lambda answer: judge(answer, pair, inputs(pair, seed)), group)


def judge(answer: str, pair: Pair, given: list[tuple[Any, ...]]) -> Verdict:
    """Return whether an answer holds a function with the reference's results, in at most `MOST` times its seconds."""
    started = time.perf_counter()
    program = definitions(code.extract_code(answer, pair.name))
    times = compare(program, pair, given)
    why = times if isinstance(times, str) else _different(times) or "passed"
    speed = 0.0
    if not isinstance(times, str) and why == "passed":
        speed = min(1.0, 1 / times.ratio)
        if times.ratio > MOST:
            took = f"{times.ratio:.2f} times the {1000 * times.reference:.1f} ms of the reference"
            why = f"takes {took}, and may take {MOST:g} times"
    return Scored(
        why == "passed", printable(why), time.perf_counter() - started, {"of the reference's speed": (speed, 1)}
    )


def _different(times: Times) -> str | None:
    """Return the first result that differs from the reference's."""
    for number, (found, wanted) in enumerate(zip(times.results, times.wanted, strict=True), 1):
        if _plain(found) != _plain(wanted):
            return f"input {number} of {len(times.wanted)}: wrong answer: {_shown(found)} instead of {_shown(wanted)}"
    return None


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.60}"
    except ValueError:  # Python shows no integer of more than 4300 digits
        return f"a long {type(value).__name__}"


def _packed(value: Any) -> Any:
    """Return an argument in the form that `_UNPACKS` reads: a list as its kind and a text."""
    if not isinstance(value, list) or not value:
        return value
    if isinstance(value[0], list):
        return "pairs", ",".join(" ".join(map(str, each)) for each in value)
    return "texts" if isinstance(value[0], str) else "ints", " ".join(map(str, value))


def _plain(value: Any) -> Any:
    """Return a value with lists for tuples: a model may return either."""
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
