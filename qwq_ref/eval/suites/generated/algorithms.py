"""Algorithms: families of functions to write, each with parameters that its prompt states.

A family draws its parameters and returns a `Problem`. The tests are random inputs that no prompt shows, with the
results of our own solutions. `tests/eval/suites/test_generated.py` compares those with slow searches.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from random import Random
from typing import Any

from ....tasks.verifiers import Verdict, code
from ..program import definitions
from ..suite import Task

_SMALL, _LARGE = 10, 3  # inputs of each test
_ASKS = "Answer with the whole function, and with all that it imports, in one Python code block."
# Tuples count as lists: a model may return either.
_TESTS = """
def plain(value):
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value

def check(candidate):
"""


@dataclass(frozen=True)
class Problem:
    """A function to write.

    name, arguments  of the function
    text             its arguments, result and limits
    settings         the parameters of the family, which the text states
    solve            our solution
    draw             returns the arguments of a call, from a size of at most `most`
    """

    name: str
    arguments: str
    text: str
    settings: dict[str, Any]
    solve: Callable[..., Any]
    draw: Callable[[Random, int], tuple[Any, ...]]
    most: int

    def cases(self, random: Random) -> list[tuple[tuple[Any, ...], Any]]:
        """Return arguments with their results: small inputs first, then some of the largest size."""
        sizes = [random.randint(1, min(8, self.most)) for _ in range(_SMALL)] + [self.most] * _LARGE
        drawn = [self.draw(random, size) for size in sizes]
        return [(given, self.solve(*given)) for given in drawn]


def task(identity: str, group: str, problem: Problem, random: Random) -> Task:
    """Return the task of a problem: the example comes from the first case, and the others are hidden."""
    (shown, result), *hidden = problem.cases(random)
    called = f"{problem.name}({', '.join(map(repr, shown))})"
    prompt = (
        f"Write a Python function `{problem.name}({problem.arguments})`.\n\n{problem.text}\n\n"
        f"Example: `{called}` returns `{result!r}`.\n\n{_ASKS}"
    )
    # A verdict quotes the line that fails.
    tests = _TESTS + "".join(f"    assert plain(candidate(*{given!r})) == {wanted!r}\n" for given, wanted in hidden)

    def judge(answer: str) -> Verdict:
        return code.verify_function(definitions(code.extract_code(answer, problem.name)), problem.name, tests)

    return Task(identity, prompt, judge, group)


def _numbers(low: int, high: int) -> Callable[[Random, int], tuple[list[int]]]:
    return lambda random, size: ([random.randint(low, high) for _ in range(size)],)


# --- Sequences --------------------------------------------------------------------------------------------------------


def subsequence(random: Random) -> Problem:
    strict, falls = random.random() < 0.5, random.random() < 0.5
    order = ("strictly " if strict else "non-strictly ") + ("decreasing" if falls else "increasing")

    def solve(values: list[int]) -> int:
        ends: list[int] = []
        for value in values:
            value = -value if falls else value
            place = (bisect_left if strict else bisect_right)(ends, value)
            ends[place : place + 1] = [value]
        return len(ends)

    text = f"`values` is a list of at most 2000 integers. Return the length of its longest {order} subsequence."
    settings = {"strict": strict, "falls": falls}
    return Problem("longest_subsequence", "values", text, settings, solve, _numbers(-20, 20), 2000)


def inversions(random: Random) -> Problem:
    factor = random.choice([1, 2, 3, 5])

    def solve(values: list[int]) -> int:
        seen: list[int] = []
        count = 0
        for value in values:
            count += len(seen) - bisect_right(seen, factor * value)
            insort(seen, value)
        return count

    text = (
        f"`values` is a list of at most 2000 integers. Return the number of pairs of positions `i < j` with "
        f"`values[i] > {factor} * values[j]`."
    )
    return Problem("count_pairs", "values", text, {"factor": factor}, solve, _numbers(-50, 50), 2000)


def intervals(random: Random) -> Problem:
    gap = random.randint(0, 4)

    def solve(pairs: list[list[int]]) -> list[list[int]]:
        merged: list[list[int]] = []
        for start, end in sorted(pairs):
            if merged and start - merged[-1][1] <= gap:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        return merged

    def draw(random: Random, size: int) -> tuple[list[list[int]]]:
        starts = [random.randint(0, 8 * size) for _ in range(size)]
        return ([[start, start + random.randint(0, 6)] for start in starts],)

    text = (
        "`pairs` is a list of at most 1000 intervals `[start, end]` of integers, with `start <= end`. Join two "
        f"intervals when the start of one is at most the end of the other plus {gap}, and the other way round. Go on "
        "until no two can be joined. Return the list of the joined intervals, in rising order."
    )
    return Problem("join_intervals", "pairs", text, {"gap": gap}, solve, draw, 1000)


def coins(random: Random) -> Problem:
    fewest = random.random() < 0.5
    modulus = random.choice([997, 10007, 65537])

    def solve(values: list[int], total: int) -> int:
        if fewest:
            least = [0] + [total + 1] * total
            for amount in range(1, total + 1):
                least[amount] = min([least[amount - coin] + 1 for coin in values if coin <= amount], default=total + 1)
            return least[total] if least[total] <= total else -1
        ways = [1] + [0] * total
        for coin in values:
            for amount in range(coin, total + 1):
                ways[amount] = (ways[amount] + ways[amount - coin]) % modulus
        return ways[total]

    def draw(random: Random, size: int) -> tuple[list[int], int]:
        return random.sample(range(2, 30), random.randint(1, 4)), random.randint(0, 5 * size)

    wanted = (
        "the smallest number of coins with this sum, or -1 if there is none"
        if fewest
        else f"the number of multisets of coins with this sum, modulo {modulus}"
    )
    text = (
        "`values` is a list of different positive integers, the values of coins; there are any number of each. "
        f"`total` is an integer from 0 to 2000. Return {wanted}."
    )
    settings = {"fewest": fewest, "modulus": None if fewest else modulus}
    return Problem("count_coins", "values, total", text, settings, solve, draw, 400)


# --- Texts ------------------------------------------------------------------------------------------------------------


def _word(random: Random, size: int, letters: str = "abc") -> str:
    return "".join(random.choice(letters) for _ in range(size))


def edit_distance(random: Random) -> Problem:
    insert, delete, replace = (random.randint(1, 4) for _ in range(3))

    def solve(source: str, target: str) -> int:
        row = [insert * column for column in range(len(target) + 1)]
        for letter in source:
            before, row = row, [row[0] + delete]
            for column, other in enumerate(target):
                replaced = before[column] + (0 if letter == other else replace)
                row.append(min(replaced, before[column + 1] + delete, row[column] + insert))
        return row[-1]

    def draw(random: Random, size: int) -> tuple[str, str]:
        return _word(random, size), _word(random, random.randint(0, size))

    text = (
        "`source` and `target` are texts of at most 200 characters. Return the lowest cost of changing `source` into "
        f"`target`. To insert a character costs {insert}, to delete one costs {delete}, and to replace one costs "
        f"{replace}."
    )
    settings = {"insert": insert, "delete": delete, "replace": replace}
    return Problem("edit_cost", "source, target", text, settings, solve, draw, 200)


def brackets(random: Random) -> Problem:
    empty = random.random() < 0.5
    wild = random.choice("?*#_")

    def solve(text: str) -> bool:
        open_counts = {0}
        for letter in text:
            steps = {"(": (1,), ")": (-1,)}.get(letter, (1, -1, 0) if empty else (1, -1))
            open_counts = {count + step for count in open_counts for step in steps if count + step >= 0}
        return 0 in open_counts

    def draw(random: Random, size: int) -> tuple[str]:
        half = max(1, size // 2)
        letters = list("()" * half)
        for _ in range(random.randint(0, 2)):
            one, other = random.randrange(len(letters)), random.randrange(len(letters))
            letters[one], letters[other] = letters[other], letters[one]
        kept = letters[random.randint(0, 1) :]  # an odd number is balanced only where a wild one stands for nothing
        return ("".join(wild if random.random() < 0.3 else letter for letter in kept),)

    means = f"an opening bracket, a closing bracket{', or nothing' if empty else ''}"
    text = (
        f"`text` has at most 400 characters, each of which is `(`, `)` or `{wild}`. Each `{wild}` stands for {means}; "
        "any two may differ. Return whether there is a choice that makes the brackets balanced, as True or False."
    )
    return Problem("can_balance", "text", text, {"empty": empty, "wild": wild}, solve, draw, 400)


def runs(random: Random) -> Problem:
    least = random.randint(2, 5)
    first = random.random() < 0.5

    def solve(text: str) -> str:
        parts = []
        for letter, run in groupby(text):
            length = len([*run])
            coded = f"{length}{letter}" if first else f"{letter}{length}"
            parts.append(coded if length >= least else letter * length)
        return "".join(parts)

    def draw(random: Random, size: int) -> tuple[str]:
        return ("".join(_word(random, 1) * random.randint(1, 6) for _ in range(size)),)

    coded = "its length and then the letter" if first else "the letter and then its length"
    text = (
        f"`text` has at most 3000 letters from a to c. Replace each longest run of one letter by {coded}, if the run "
        f"has at least {least} letters. Shorter runs stay as they are. Return the new text."
    )
    return Problem("code_runs", "text", text, {"least": least, "first": first}, solve, draw, 500)


def base(random: Random) -> Problem:
    to = random.choice([-10, -7, -6, -5, -4, -3, -2])

    def solve(number: int) -> str:
        digits = ""
        while number or not digits:
            digit = number % -to
            digits, number = str(digit) + digits, (number - digit) // to
        return digits

    def draw(random: Random, size: int) -> tuple[int]:
        return (random.randint(-(10**size), 10**size),)

    text = (
        f"`number` is an integer from -10**15 to 10**15. Return its digits in base {to}, as a text without leading "
        f"zeros. The digits are 0 to {-to - 1}. The text of the number 0 is '0'. Such a base needs no minus sign."
    )
    return Problem("to_base", "number", text, {"base": to}, solve, draw, 15)


def evaluate(random: Random) -> Problem:
    tight, loose = random.sample("+-*", 2)
    right = random.random() < 0.5
    apply = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}

    def joined(values: list[int], sign: str) -> int:
        values = values[::-1] if right else values
        found = values[0]
        for value in values[1:]:
            found = apply[sign](value, found) if right else apply[sign](found, value)
        return found

    def solve(text: str) -> int:
        return joined([joined([*map(int, part.split(tight))], tight) for part in text.split(loose)], loose)

    def draw(random: Random, size: int) -> tuple[str]:
        signs = [random.choice((tight, loose)) for _ in range(size)]
        return ("".join(f"{random.randint(0, 9)}{sign}" for sign in signs) + str(random.randint(0, 9)),)

    side = "right to left" if right else "left to right"
    text = (
        f"`text` is an expression of at most 13 digits, with one of the signs `{tight}` and `{loose}` between each "
        f"two, and without spaces. Here, `{tight}` binds tighter than `{loose}`. Each sign alone groups from {side}. "
        "Return the value as an integer."
    )
    settings = {"tight": tight, "loose": loose, "right": right}
    return Problem("value_of", "text", text, settings, solve, draw, 12)


# --- Grids and graphs -------------------------------------------------------------------------------------------------

_SIDES = [(0, 1), (1, 0), (0, -1), (-1, 0)]
_CORNERS = [(1, 1), (1, -1), (-1, 1), (-1, -1)]


def _grid(random: Random, size: int) -> tuple[list[str]]:
    width, height = random.randint(1, size), random.randint(1, size)
    return (["".join(random.choice("...#") for _ in range(width)) for _ in range(height)],)


def _near(grid: list[str], place: tuple[int, int], moves: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for down, right in moves:
        row, column = place[0] + down, place[1] + right
        if 0 <= row < len(grid) and 0 <= column < len(grid[0]) and grid[row][column] != "#":
            yield row, column


def path(random: Random) -> Problem:
    diagonal = random.random() < 0.5
    side, corner = random.randint(1, 3), random.randint(2, 4)

    def solve(grid: list[str]) -> int:
        end = (len(grid) - 1, len(grid[0]) - 1)
        if "#" in (grid[0][0], grid[-1][-1]):
            return -1
        waiting, done = [(0, (0, 0))], set()
        while waiting:
            cost, place = heapq.heappop(waiting)
            if place == end:
                return cost
            if place not in done:
                done.add(place)
                for price, moves in ((side, _SIDES), (corner, _CORNERS if diagonal else [])):
                    for other in _near(grid, place, moves):
                        heapq.heappush(waiting, (cost + price, other))
        return -1

    further = (
        f" A move to a cell that shares only a corner costs {corner}." if diagonal else " There are no other moves."
    )
    text = (
        "`grid` is a list of at most 30 texts of equal length, at most 30. `#` is a wall, and `.` is free. Return the "
        "lowest cost of a way from the first cell of the first row to the last cell of the last row over free cells, "
        f"or -1 if there is none. A move to a cell that shares a side costs {side}.{further} Walls block nothing but "
        "their own cell."
    )
    settings = {"side": side, "corner": corner if diagonal else None}
    return Problem("lowest_cost", "grid", text, settings, solve, _grid, 30)


def regions(random: Random) -> Problem:
    diagonal, largest = random.random() < 0.5, random.random() < 0.5

    def solve(grid: list[str]) -> int:
        moves = _SIDES + (_CORNERS if diagonal else [])
        done: set[tuple[int, int]] = set()
        sizes = [0]
        for place in [(row, column) for row in range(len(grid)) for column in range(len(grid[0]))]:
            if grid[place[0]][place[1]] == "#" or place in done:
                continue
            done.add(place)
            waiting, size = deque([place]), 0
            while waiting:
                size += 1
                for other in _near(grid, waiting.popleft(), moves):
                    if other not in done:
                        done.add(other)
                        waiting.append(other)
            sizes.append(size)
        return max(sizes) if largest else len(sizes) - 1

    joins = "a side or a corner" if diagonal else "a side"
    wanted = "the number of cells of the largest region, or 0 without any" if largest else "the number of regions"
    text = (
        "`grid` is a list of at most 30 texts of equal length, at most 30. `#` is a wall, and `.` is free. Free cells "
        f"that share {joins} belong to the same region. Return {wanted}."
    )
    return Problem("regions", "grid", text, {"diagonal": diagonal, "largest": largest}, solve, _grid, 30)


def order(random: Random) -> Problem:
    greatest = random.random() < 0.5
    sign = -1 if greatest else 1

    def solve(count: int, pairs: list[list[int]]) -> list[int]:
        before = [0] * count
        for _, second in pairs:
            before[second] += 1
        ready = [sign * each for each in range(count) if not before[each]]
        heapq.heapify(ready)
        found = []
        while ready:
            one = sign * heapq.heappop(ready)
            found.append(one)
            for first, second in pairs:
                if first == one:
                    before[second] -= 1
                    if not before[second]:
                        heapq.heappush(ready, sign * second)
        return found if len(found) == count else []

    def draw(random: Random, size: int) -> tuple[int, list[list[int]]]:
        places = random.sample(range(size), size)
        pairs = [sorted(random.sample(range(size), 2)) for _ in range(random.randint(0, size)) if size > 1]
        found = [[places[first], places[second]] for first, second in pairs]
        return size, found + ([found[0][::-1]] if found and random.random() < 0.2 else [])

    text = (
        "`pairs` is a list of at most 101 pairs `[first, second]` of different integers from 0 to `count - 1`; "
        "`count` is at most 100. Return the integers 0 to `count - 1` in an order in which `first` comes before "
        "`second` for each pair. Of all such lists, return the lexicographically "
        f"{'greatest' if greatest else 'least'} one. Return [] if there is none."
    )
    return Problem("ordered", "count, pairs", text, {"greatest": greatest}, solve, draw, 100)


# --- Simulations ------------------------------------------------------------------------------------------------------


def cache(random: Random) -> Problem:
    refreshed = random.random() < 0.5
    slots = random.randint(2, 6)

    def solve(keys: list[int]) -> int:
        held: OrderedDict[int, None] = OrderedDict()
        hits = 0
        for key in keys:
            if key in held:
                hits += 1
                if refreshed:
                    held.move_to_end(key)
                continue
            if len(held) == slots:
                held.popitem(last=False)
            held[key] = None
        return hits

    leaves = "was used least recently" if refreshed else "came into the cache first, used or not"
    text = (
        f"A cache holds {slots} keys, and is empty at the start. `keys` is a list of at most 2000 integers that are "
        "asked for, in order. A key in the cache is a hit. Another key comes into the cache; if the cache is full, "
        f"the key leaves that {leaves}. Return the number of hits."
    )
    return Problem("cache_hits", "keys", text, {"refreshed": refreshed, "slots": slots}, solve, _numbers(0, 9), 2000)


def life(random: Random) -> Problem:
    born = tuple(sorted(random.sample(range(1, 9), 2)))
    stays = tuple(sorted(random.sample(range(9), 3)))

    def solve(grid: list[str], steps: int) -> list[str]:
        height, width = len(grid), len(grid[0])
        for _ in range(steps):
            rows = []
            for row in range(height):
                cells = ""
                for column in range(width):
                    around = [
                        grid[(row + down) % height][(column + right) % width] for down, right in _SIDES + _CORNERS
                    ]
                    cells += "#" if around.count("#") in (stays if grid[row][column] == "#" else born) else "."
                rows.append(cells)
            grid = rows
        return grid

    def draw(random: Random, size: int) -> tuple[list[str], int]:
        height, width = random.randint(3, size + 3), random.randint(3, size + 3)
        return [_word(random, width, ".#") for _ in range(height)], random.randint(0, 5)

    text = (
        "`grid` is a list of 3 to 15 texts of equal length, 3 to 15. `#` is a living cell, and `.` a dead one. Each "
        "cell has 8 neighbours; the last row and the first are neighbours, and so are the last column and the first. "
        f"In a step, all cells change at once. A dead cell with {born[0]} or {born[1]} living neighbours becomes "
        f"alive. A living cell with {stays[0]}, {stays[1]} or {stays[2]} living neighbours stays alive, and any other "
        "dies. Return the grid after `steps` steps; `steps` is 0 to 5."
    )
    return Problem("after_steps", "grid, steps", text, {"born": born, "stays": stays}, solve, draw, 12)


FAMILIES: tuple[Callable[[Random], Problem], ...] = (
    *(subsequence, edit_distance, path, coins, intervals, inversions, order),
    *(brackets, runs, base, cache, regions, evaluate, life),
)
