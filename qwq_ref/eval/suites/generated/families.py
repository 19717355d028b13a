"""The families of slow functions, and the fast ones in their place.

Sizes are such that the fast function takes milliseconds for a large input, and the slow one at least ten times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from textwrap import dedent
from typing import Any


@dataclass(frozen=True)
class Pair:
    """A slow function, and a fast one with the same results.

    name        of both
    text        the kinds and limits of the arguments
    slow, fast  their sources
    draw        returns the arguments of a call, from a size of at most `most`
    most        the size of large inputs
    small       the largest size of small inputs
    """

    name: str
    text: str
    slow: str
    fast: str
    draw: Callable[[Random, int], tuple[Any, ...]]
    most: int
    small: int = 8


def _pair(name: str, text: str, slow: str, fast: str, draw: Callable[..., Any], most: int, small: int = 8) -> Pair:
    return Pair(name, text, dedent(slow).lstrip("\n"), dedent(fast).lstrip("\n"), draw, most, small)


def _values(low: int, high: int) -> Callable[[Random, int], tuple[list[int]]]:
    return lambda random, size: ([random.randint(low, high) for _ in range(size)],)


def pairs(random: Random) -> Pair:
    """Quadratic counting of pairs, against counts of earlier values."""
    by = random.randint(2, 40)
    condition, wanted, key = random.choice(
        [
            ("values[i] + values[j] == {by}", "{by} - value", "value"),
            ("values[j] - values[i] == {by}", "value - {by}", "value"),
            ("(values[i] + values[j]) % {by} == 0", "-value % {by}", "value % {by}"),
            ("(values[j] - values[i]) % {by} == 1", "(value - 1) % {by}", "value % {by}"),
        ]
    )
    slow = f"""
        def count_pairs(values):
            count = 0
            for i in range(len(values)):
                for j in range(i + 1, len(values)):
                    if {condition.format(by=by)}:
                        count += 1
            return count
        """
    fast = f"""
        def count_pairs(values):
            count, seen = 0, {{}}
            for value in values:
                count += seen.get({wanted.format(by=by)}, 0)
                key = {key.format(by=by)}
                seen[key] = seen.get(key, 0) + 1
            return count
        """
    text = "`values` is a list of at most 20,000 integers from -100 to 100."
    return _pair("count_pairs", text, slow, fast, _values(-100, 100), 20000)


def sums(random: Random) -> Pair:
    """Sums of ranges one by one, against running sums."""
    by = random.randint(2, 9)
    term = random.choice(["values[i]", "values[i] ** 2", f"values[i] % {by}", f"{by} * values[i] - i"])
    slow = f"""
        def range_sums(values, ranges):
            found = []
            for start, end in ranges:
                total = 0
                for i in range(start, end):
                    total += {term}
                found.append(total)
            return max(found)
        """
    fast = f"""
        def range_sums(values, ranges):
            before = [0]
            for i in range(len(values)):
                before.append(before[-1] + {term})
            return max([before[end] - before[start] for start, end in ranges])
        """

    def draw(random: Random, size: int) -> tuple[list[int], list[list[int]]]:
        ranges = [sorted(random.choices(range(size + 1), k=2)) for _ in range(size // 2 + 1)]
        return [random.randint(-50, 50) for _ in range(size)], ranges

    text = (
        "`values` is a list of at most 10,000 integers from -50 to 50. `ranges` is a list of 1 to 10,000 pairs "
        "`[start, end]`, with `0 <= start <= end <= len(values)`."
    )
    return _pair("range_sums", text, slow, fast, draw, 10000)


def stairs(random: Random) -> Pair:
    """Counting by recursion, against a table."""
    steps = sorted(random.sample(range(1, 8), 3))
    modulus = random.choice([997, 9973, 1_000_003, 1_000_000_007])
    recursion = " + ".join(f"ways(n - {step})" for step in steps)
    table = " + ".join(f"(table[i - {step}] if i >= {step} else 0)" for step in steps)
    slow = f"""
        def ways(n):
            if n < 0:
                return 0
            if n == 0:
                return 1
            return ({recursion}) % {modulus}
        """
    fast = f"""
        def ways(n):
            table = [1]
            for i in range(1, n + 1):
                table.append(({table}) % {modulus})
            return table[n]
        """

    def draw(random: Random, size: int) -> tuple[int]:
        return (size - random.randint(0, min(5, size)),)

    return _pair("ways", "`n` is an integer from 0 to 20,000.", slow, fast, draw, 20000, 15)


def common(random: Random) -> Pair:
    """Search in lists again and again, against a set."""
    word, result = random.choice([("in", "both"), ("not in", "only")])
    of = random.choice(["sum(found)", "len(found)", "found[-1] if found else None"])
    slow = f"""
        def {result}(first, second):
            found = []
            for value in first:
                if value {word} second and value not in found:
                    found.append(value)
            return {of}
        """
    fast = f"""
        def {result}(first, second):
            there, seen, found = set(second), set(), []
            for value in first:
                if value {word} there and value not in seen:
                    seen.add(value)
                    found.append(value)
            return {of}
        """

    def draw(random: Random, size: int) -> tuple[list[int], list[int]]:
        first, second = ([random.randint(0, 2 * size) for _ in range(size)] for _ in range(2))
        return first, second

    text = "`first` and `second` are lists of at most 10,000 integers from 0 to 20,000."
    return _pair(result, text, slow, fast, draw, 10000)


def window(random: Random) -> Pair:
    """The extreme of each window, against a queue of candidates."""
    extreme, sign = random.choice([("max", "<="), ("min", ">=")])
    total = random.choice(["total += best", "total += best * (i % 2)", "total ^= best"])
    slow = f"""
        def windows(values, width):
            total = 0
            for i in range(len(values) - width + 1):
                best = {extreme}(values[i:i + width])
                {total}
            return total
        """
    fast = f"""
        from collections import deque

        def windows(values, width):
            total, queue = 0, deque()
            for j, value in enumerate(values):
                while queue and values[queue[-1]] {sign} value:
                    queue.pop()
                queue.append(j)
                i = j - width + 1
                if queue[0] < i:
                    queue.popleft()
                if i >= 0:
                    best = values[queue[0]]
                    {total}
            return total
        """

    def draw(random: Random, size: int) -> tuple[list[int], int]:
        return [random.randint(0, 10**6) for _ in range(size)], random.randint(size // 4 + 1, size // 2 + 1)

    text = "`values` is a list of 1 to 20,000 integers from 0 to 10**6. `width` is an integer from 1 to `len(values)`."
    return _pair("windows", text, slow, fast, draw, 20000)


def balance(random: Random) -> Pair:
    """All stretches of a text, against the first places of differences."""
    one, other = random.sample("abcd", 2)
    factor = random.randint(1, 3)
    wanted = one if factor == 1 else f"{factor} * {one}"
    slow = f"""
        def longest(text):
            best = 0
            for i in range(len(text)):
                {one} = {other} = 0
                for j in range(i, len(text)):
                    {one} += text[j] == "{one}"
                    {other} += text[j] == "{other}"
                    if {wanted} == {other}:
                        best = max(best, j - i + 1)
            return best
        """
    fast = f"""
        def longest(text):
            best = difference = 0
            first = {{0: -1}}
            for j, letter in enumerate(text):
                if letter == "{one}":
                    difference += {factor}
                elif letter == "{other}":
                    difference -= 1
                best = max(best, j - first.setdefault(difference, j))
            return best
        """

    def draw(random: Random, size: int) -> tuple[str]:
        return ("".join(random.choices("abcd", k=size)),)

    return _pair("longest", "`text` has at most 30,000 letters from a to d.", slow, fast, draw, 30000)


def falls(random: Random) -> Pair:
    """Pairs in the wrong order, one by one, against a sorted list of earlier values."""
    factor, plus = random.randint(1, 3), random.randint(0, 5)
    scaled = "values[j]" if factor == 1 else f"{factor} * values[j]"
    bound = f"{scaled} + {plus}" if plus else scaled
    slow = f"""
        def falls(values):
            count = 0
            for j in range(len(values)):
                for i in range(j):
                    if values[i] > {bound}:
                        count += 1
            return count
        """
    fast = f"""
        from bisect import bisect_right

        def falls(values):
            ordered = sorted(set(values))
            tree = [0] * (len(ordered) + 1)
            count = 0
            for j, value in enumerate(values):
                place = bisect_right(ordered, {bound})
                count += j
                while place > 0:
                    count -= tree[place]
                    place -= place & -place
                place = bisect_right(ordered, value)
                while place < len(tree):
                    tree[place] += 1
                    place += place & -place
            return count
        """
    text = "`values` is a list of at most 10,000 integers from 0 to 10**6."
    return _pair("falls", text, slow, fast, _values(0, 10**6), 10000)


def gain(random: Random) -> Pair:
    """The best pair of positions by trying all, against the best so far."""
    apart = random.randint(1, 30)
    fee = random.randint(0, 9)
    minus = f" - {fee}" if fee else ""
    slow = f"""
        def gain(values):
            best = 0
            for i in range(len(values)):
                for j in range(i + {apart}, len(values)):
                    best = max(best, values[j] - values[i]{minus})
            return best
        """
    fast = f"""
        def gain(values):
            best = 0
            lowest = None
            for j in range({apart}, len(values)):
                value = values[j - {apart}]
                if lowest is None or value < lowest:
                    lowest = value
                best = max(best, values[j] - lowest{minus})
            return best
        """
    text = "`values` is a list of at most 20,000 integers from 0 to 10**6."
    return _pair("gain", text, slow, fast, _values(0, 10**6), 20000, 40)


def routes(random: Random) -> Pair:
    """Routes through a grid by recursion, against a table."""
    modulus = random.choice([997, 9973, 1_000_003])
    third = random.random() < 0.5
    diagonal, corner = (" + routes(grid, row + 1, column + 1)", " + below[column + 1]") if third else ("", "")
    slow = f"""
        def routes(grid, row=0, column=0):
            if row == len(grid) or column == len(grid[0]) or grid[row][column] == "#":
                return 0
            if row == len(grid) - 1 and column == len(grid[0]) - 1:
                return 1
            return (routes(grid, row + 1, column) + routes(grid, row, column + 1){diagonal}) % {modulus}
        """
    fast = f"""
        def routes(grid):
            below = [0] * (len(grid[0]) + 1)
            last = True
            for line in reversed(grid):
                row = [0] * (len(line) + 1)
                for column in range(len(line) - 1, -1, -1):
                    if line[column] == "#":
                        continue
                    if last and column == len(line) - 1:
                        row[column] = 1
                    else:
                        row[column] = (below[column] + row[column + 1]{corner}) % {modulus}
                below, last = row, False
            return below[0]
        """

    def draw(random: Random, size: int) -> tuple[list[str]]:
        grid = [random.choices(".......#", k=size) for _ in range(size)]
        grid[0][0] = grid[-1][-1] = "."
        return (["".join(line) for line in grid],)

    text = (
        "It is called with `grid` alone: a list of 1 to 200 texts of equal length, 1 to 200. `#` is a wall, and `.` "
        "is free. The first cell of the first row and the last cell of the last row are free."
    )
    return _pair("routes", text, slow, fast, draw, 200, 5)


def primes(random: Random) -> Pair:
    """Trial division by every smaller number, against a sieve."""
    by, rest = random.choice([(3, 1), (3, 2), (4, 1), (4, 3), (6, 1), (6, 5)])
    slow = f"""
        def prime_sum(n):
            total = 0
            for number in range(2, n + 1):
                if number % {by} == {rest} and all(number % divisor for divisor in range(2, number)):
                    total += number
            return total
        """
    fast = f"""
        def prime_sum(n):
            prime = [True] * (n + 1)
            total = 0
            for number in range(2, n + 1):
                if prime[number]:
                    if number % {by} == {rest}:
                        total += number
                    for multiple in range(number * number, n + 1, number):
                        prime[multiple] = False
            return total
        """

    def draw(random: Random, size: int) -> tuple[int]:
        return (size - random.randint(0, size // 10),)

    return _pair("prime_sum", "`n` is an integer from 0 to 100,000.", slow, fast, draw, 100000, 60)


def subsequence(random: Random) -> Pair:
    """A comparison of two texts by recursion, against a table."""
    shortest = random.random() < 0.5
    letters = random.choice(["ab", "abc", "abcd"])
    equal, choice, end = ("0", "1 + min", "len(first) + len(second)") if shortest else ("1", "max", "0")
    name = "apart" if shortest else "alike"
    slow = f"""
        def {name}(first, second):
            if not first or not second:
                return {end}
            if first[0] == second[0]:
                return {equal} + {name}(first[1:], second[1:])
            return {choice}({name}(first[1:], second), {name}(first, second[1:]))
        """
    first_row = "list(range(len(second) + 1))" if shortest else "[0] * (len(second) + 1)"
    start = "row[0] + 1" if shortest else "0"
    fast = f"""
        def {name}(first, second):
            row = {first_row}
            for letter in first:
                before, row = row, [{start}]
                for column, other in enumerate(second):
                    if letter == other:
                        row.append({equal} + before[column])
                    else:
                        row.append({choice}(before[column + 1], row[column]))
            return row[-1]
        """

    def draw(random: Random, size: int) -> tuple[str, str]:
        one, other = ("".join(random.choices(letters, k=size)) for _ in range(2))
        return one, other

    text = f"`first` and `second` are texts of at most 200 characters, each one of {', '.join(letters)}."
    return _pair(name, text, slow, fast, draw, 200, 6)


def anagrams(random: Random) -> Pair:
    """Words compared in pairs, against counts of a form that anagrams share."""
    form, shown = random.choice(
        [
            ("sorted({})", "''.join(sorted(word))"),
            ("set({})", "frozenset(word)"),
            ("({0}[0], {0}[-1])", "(word[0], word[-1])"),
            ("sorted({}[1:])", "''.join(sorted(word[1:]))"),
        ]
    )
    slow = f"""
        def related(words):
            count = 0
            for i in range(len(words)):
                for j in range(i):
                    if {form.format("words[i]")} == {form.format("words[j]")}:
                        count += 1
            return count
        """
    fast = f"""
        def related(words):
            count, seen = 0, {{}}
            for word in words:
                form = {shown}
                count += seen.get(form, 0)
                seen[form] = seen.get(form, 0) + 1
            return count
        """

    def draw(random: Random, size: int) -> tuple[list[str]]:
        return (["".join(random.choices("abcdefg", k=random.randint(2, 6))) for _ in range(size)],)

    text = "`words` is a list of at most 5,000 texts of 2 to 6 letters from a to g."
    return _pair("related", text, slow, fast, draw, 5000)


FAMILIES: tuple[Callable[[Random], Pair], ...] = (
    *(pairs, sums, stairs, common, window, balance),
    *(falls, gain, routes, primes, subsequence, anagrams),
)
