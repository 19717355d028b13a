"""The exercises of the categories: what a question asks, and reasoning in two languages that a tiny model can follow.

Every reasoning obeys the same rules, because a model of four layers must be able to write it token by token:

- It restates the problem first, in one form, whatever the words of the question. All that follows is copied from there.
- A line follows from the line before it and from the numbers that it restates. Nothing is counted at a distance.
- Each line writes down the state of the computation: a carry, a borrow, a running total, the rest of a list.
- Digits come lowest first, with two digits where there can be two. A result grows at its front, so that its last form
  can be copied.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence
from functools import partial

from .author import Author, Exercise

Maker = Callable[[Author], Exercise]


# --- Column arithmetic: operands reversed, then one line a digit: the sum of the column, and the result so far. ---


def add_columns(a: int, b: int) -> list[str]:
    """`x+y+carry=cd,result`: c is the next carry, and d the digit put before the result."""
    first, second = reversed_pair(a, b)
    lines, carry, result = [f"{first}+{second}"], 0, ""
    for x, y in zip(first, second, strict=True):
        total = int(x) + int(y) + carry
        result = f"{total % 10}{result}"
        lines.append(f"{x}+{y}+{carry}={total:02d},{result}")
        carry = total // 10
    return lines


def subtract_columns(a: int, b: int) -> list[str]:
    """`1x-y-borrow=cd,result`: every column gets a ten in advance; c = 0 means that the next column lends it."""
    first, second = reversed_pair(a, b)
    lines, borrow, result = [f"{first}-{second}"], 0, ""
    for x, y in zip(first, second, strict=True):
        left = 10 + int(x) - int(y) - borrow
        result = f"{left % 10}{result}"
        lines.append(f"1{x}-{y}-{borrow}={left:02d},{result}")
        borrow = 1 - left // 10
    return lines


def reversed_pair(a: int, b: int) -> tuple[str, str]:
    width = len(str(max(a, b)))
    return f"{a:0{width}d}"[::-1], f"{b:0{width}d}"[::-1]


def reversing(author: Author, expression: str) -> str:
    return author.say(f"Reverse {expression}:", f"倒序{expression}：")


def addition(author: Author, digits: int) -> Exercise:
    return sum_of(author, author.number(digits), author.number(digits))


def sum_of(author: Author, a: int, b: int, family: str | None = None) -> Exercise:
    low, high = sorted((a, b))  # b+a is the same problem
    lead = reversing(author, f"{a}+{b}")
    return Exercise(f"{low}+{high}", "sum", {"a": a, "b": b}, lead, add_columns(a, b), str(a + b), family)


def subtraction(author: Author, digits: int) -> Exercise:
    b, a = sorted((author.number(digits), author.number(digits)))
    return difference_of(author, a, b)


def difference_of(author: Author, a: int, b: int, family: str | None = None) -> Exercise:
    """a - b. If it is negative, the reasoning swaps the two; it is the same problem as b - a."""
    high, low = max(a, b), min(a, b)
    lines = subtract_columns(high, low)
    if a < b:
        lines.insert(0, author.say(f"Swap {high}-{low}:", f"交换{high}-{low}："))
    kind = "difference" if a >= b else "negative"
    lead = reversing(author, f"{a}-{b}")
    return Exercise(f"{high}-{low}", kind, {"a": a, "b": b}, lead, lines, str(a - b), family)


def addition_or_subtraction(author: Author, digits: int) -> Exercise:
    return (addition, subtraction)[author.integer(0, 1)](author, digits)


def product(author: Author, shortest: int, longest: int) -> Exercise:
    return product_of(author, author.number(author.integer(shortest, longest)), author.integer(2, 9))


def product_of(author: Author, a: int, b: int, family: str | None = None) -> Exercise:
    """`x*b=pq,pq+carry=cd,result`, with a `b` of one digit."""
    lines, carry, result = [f"{str(a)[::-1]}*{b}"], 0, ""
    for x in reversed(str(a)):
        times = int(x) * b
        total = times + carry
        result = f"{total % 10}{result}"
        lines.append(f"{x}*{b}={times:02d},{times:02d}+{carry}={total:02d},{result}")
        carry = total // 10
    lead = reversing(author, f"{a}*{b}")
    return Exercise(f"{a}*{b}", "product", {"a": a, "b": b}, lead, lines, str(a * b), family)


def missing_operand(author: Author, low: int = 10, high: int = 49) -> Exercise:
    """Hide one of three numbers. The reasoning computes it as a sum or a difference of the two others."""
    small, other = author.integers(2, low, high)
    total = small + other
    equation, isolated, lines, answer = (
        (f"x+{small}={total}", f"x={total}-{small}", subtract_columns(total, small), other),
        (f"{small}+x={total}", f"x={total}-{small}", subtract_columns(total, small), other),
        (f"{total}-x={small}", f"x={total}-{small}", subtract_columns(total, small), other),
        (f"x-{small}={other}", f"x={other}+{small}", add_columns(other, small), total),
    )[author.integer(0, 3)]
    lead = author.say(f"Solve {equation}:", f"解{equation}：")
    return Exercise(equation, "missing_operand", {"equation": equation}, lead, [isolated, *lines], str(answer))


# --- Reduction: each line is the line before, with its first two items combined or its first item removed. ---


def chain_sum(author: Author, shortest: int, longest: int) -> Exercise:
    terms = author.integers(author.integer(shortest, longest), 1, 9)
    expression = "+".join(map(str, terms))
    lines, left = [expression], terms
    while len(left) > 2:
        left = [left[0] + left[1], *left[2:]]
        lines.append("+".join(map(str, left)))
    lead = author.say("Step by step:", "一步一步：")
    return Exercise(expression, "chain_sum", {"expression": expression}, lead, lines, str(sum(terms)))


def boolean(author: Author) -> Exercise:
    """0, 1 and the signs & | ^, strictly from left to right."""
    operators = {"&": operator.and_, "|": operator.or_, "^": operator.xor}
    count = author.integer(5, 6)
    signs = [author.pick("&|^") for _ in range(count - 1)]
    bits = author.integers(count, 0, 1)
    value, lines = bits[0], []
    for place, sign in enumerate(signs):
        rest = (f"{s}{bit}" for s, bit in zip(signs[place:], bits[place + 1 :], strict=True))
        lines.append(f"{value}{''.join(rest)}")
        value = operators[sign](value, bits[place + 1])
    lead = author.say("Step by step:", "一步一步：")
    return Exercise(lines[0], "boolean", {"expression": lines[0]}, lead, lines, str(value))


def minmax(author: Author) -> Exercise:
    largest = bool(author.integer(0, 1))
    return minmax_of(author, author.distinct(author.integer(4, 5), 10, 99), largest)


def minmax_of(author: Author, left: list[int], largest: bool) -> Exercise:
    """Compare the first two numbers, and remove the one that is not wanted."""
    choose = max if largest else min
    listed = joined(left)
    lines = [listed]
    while len(left) > 2:
        left = [choose(left[:2]), *left[2:]]
        lines.append(joined(left))
    en, zh = ("largest", "最大") if largest else ("smallest", "最小")
    lead = author.say(f"Keep the {en}:", f"留下{zh}的：")
    key = f"{'max' if largest else 'min'} {listed}"
    return Exercise(key, en, {"numbers": listed}, lead, lines, str(choose(left)))


def sort(author: Author, count: int) -> Exercise:
    return sort_of(author, author.distinct(count, 10, 99))


def sort_of(author: Author, numbers: list[int]) -> Exercise:
    """`sorted:left`: the first of the numbers that are left goes to its place."""
    count = len(numbers)
    listed = joined(numbers)
    lines = [f"{joined(sorted(numbers[:place]))}:{joined(numbers[place:])}" for place in range(1, count)]
    lead = author.say("Insert one by one:", "逐个插入：")
    return Exercise(listed, "sort", {"numbers": listed}, lead, lines, joined(sorted(numbers)))


def reverse(author: Author, shortest: int, longest: int) -> Exercise:
    """`left:reversed`: the first digit that is left goes before the reversed part."""
    text = author.digit_string(shortest, longest)
    lines = [f"{text[place:]}:{text[:place][::-1]}" for place in range(1, len(text))]
    lead = author.say(f"One by one {text}:", f"逐个{text}：")
    return Exercise(text, "reverse", {"text": text}, lead, lines, text[::-1])


def count(author: Author, shortest: int = 5, longest: int = 7, most: int = 4) -> Exercise:
    """`left:digit=wanted,count` or `left:digit!wanted,count`: the first digit that is left, and the count after it."""
    wanted = author.integer(0, 9)
    length = author.integer(shortest, longest)
    hits = author.integer(0, most)
    others = [(wanted + shift) % 10 for shift in author.integers(length - hits, 1, 9)]
    text = "".join(map(str, author.shuffled([wanted] * hits + others)))
    so_far = [text[: place + 1].count(str(wanted)) for place in range(length)]
    signs = ["=" if digit == str(wanted) else "!" for digit in text]
    lines = [f"{text[n:]}:{text[n]}{signs[n]}{wanted},{so_far[n]}" for n in range(length)]
    lead = author.say(f"Count {wanted}:", f"数{wanted}：")
    return Exercise(f"{wanted} in {text}", "count", {"digit": wanted, "text": text}, lead, lines, str(hits))


def parity(author: Author, shortest: int = 5, longest: int = 7) -> Exercise:
    """`left:parity so far` of the sum of digits, 1 for odd."""
    text = author.digit_string(shortest, longest)
    bits = [sum(map(int, text[:place])) % 2 for place in range(len(text) + 1)]
    lines = [f"{text[place:]}:{bits[place]}" for place in range(len(text))]
    answer = author.say("odd", "奇数") if bits[-1] else author.say("even", "偶数")
    return Exercise(text, "parity", {"text": text}, author.say("Even 0, odd 1:", "偶0奇1："), lines, answer)


def joined(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


# --- Number theory and order ---


def modulus(author: Author, digits: int = 3) -> Exercise:
    """Long division, a digit at a time: `rd-b*q=rd-bq=r`, where r goes before the next digit."""
    a, b = author.number(digits), author.integer(2, 9)
    lines, rest = [], 0
    for digit in str(a):
        part = 10 * rest + int(digit)
        times = part // b
        rest = part - b * times
        lines.append(f"{part:02d}-{b}*{times}={part:02d}-{b * times:02d}={rest}")
    lead = author.say(f"Digit by digit {a} mod {b}:", f"逐位{a}÷{b}：")
    return Exercise(f"{a} mod {b}", "mod", {"a": a, "b": b}, lead, lines, str(rest))


def gcd(author: Author) -> Exercise:
    """Euclid's algorithm: divide by the remainder of the division before, until it is 0."""
    while True:
        a, b = author.distinct(2, 2, 99)
        lines, divisor = divisions(max(a, b), min(a, b))
        # Short ones only. Half of the many coprime pairs are dropped, so that 1 is not a good guess.
        if 2 <= len(lines) <= 4 and a < 10 * b and b < 10 * a and (divisor > 1 or author.integer(0, 1)):
            break
    lead = author.say(f"Divide {a},{b} until 0:", f"{a},{b}除到0：")
    return Exercise(joined(sorted((a, b))), "gcd", {"a": a, "b": b}, lead, lines, str(divisor))


def divisions(high: int, low: int) -> tuple[list[str], int]:
    """Return Euclid's lines for two numbers, `a-b*q=a-bq=r`, and their greatest common divisor."""
    lines = []
    while low:
        times = high // low
        rest = high - low * times
        lines.append(f"{high:02d}-{low:02d}*{times}={high:02d}-{low * times:02d}={rest:02d}")
        high, low = low, rest
    return lines, high


def compare(author: Author) -> Exercise:
    digits = author.integer(3, 4)
    a = author.number(digits)
    shared = author.integer(0, digits - 1)
    scale = 10 ** (digits - shared)
    # b shares its leading digits with a. If it shares none, its first digit must not be 0.
    b = a
    while b == a:
        b = a // scale * scale + author.integer(0 if shared else scale // 10, scale - 1)
    return compare_of(author, a, b)


def compare_of(author: Author, a: int, b: int) -> Exercise:
    """Compare from the highest digit to the first difference; the shorter number gets zeros in front."""
    width = len(str(max(a, b)))
    pairs = list(zip(f"{a:0{width}d}", f"{b:0{width}d}", strict=True))
    first = next(place for place, (x, y) in enumerate(pairs) if x != y)
    signs = [f"{x}{'=<>'[(x < y) + 2 * (x > y)]}{y}" for x, y in pairs[: first + 1]]
    lead = author.say(f"Digit by digit {a},{b}:", f"逐位{a},{b}：")
    return Exercise(joined(sorted((a, b))), "compare", {"a": a, "b": b}, lead, signs, str(max(a, b)))


def sequence(author: Author) -> Exercise:
    """Two increments alternate; the next one is that of two lines before."""
    start = author.integer(1, 60)
    increments = author.integers(2, 1, 9)
    terms = [start]
    for place in range(5):
        terms.append(terms[-1] + increments[place % 2])
    return sequence_of(author, terms, increments[0])


def sequence_of(author: Author, terms: Sequence[int], increment: int) -> Exercise:
    """Hide the last of the terms, which is larger than the one before by `increment`."""
    *shown, answer = terms
    lines = [f"{after}-{before}={after - before}" for before, after in itertools.pairwise(shown)]
    lines.append(f"{shown[-1]}+{increment}={answer}")
    listed = joined(shown)
    lead = author.say(f"Step by step {listed}:", f"一步一步{listed}：")
    return Exercise(listed, "sequence", {"numbers": listed}, lead, lines, str(answer))


def units(author: Author, whole: bool = False) -> Exercise:
    """A length, a time or a mass in its smaller unit; `whole` leaves the smaller unit out of the question."""
    factor, en_big, en_small, zh_big, zh_small = (
        (60, "h", "min", "小时", "分钟"),
        (60, "min", "s", "分钟", "秒"),
        (100, "m", "cm", "米", "厘米"),
        (1000, "kg", "g", "千克", "克"),
    )[author.integer(0, 3)]
    big, small = author.integer(1, 9), author.integer(1, factor - 1)
    en, zh = f"{big} {en_big}", f"{big}{zh_big}"
    if not whole:
        en, zh = f"{en} {small} {en_small}", f"{zh}{small}{zh_small}"
    lead = author.say(f"1 {en_big}={factor} {en_small}", f"1{zh_big}={factor}{zh_small}")
    total = big * factor
    lines = [f"{big}*{factor}={total}"]
    if not whole:
        lines.append(f"{total}+{small}={total + small}")
        total += small
    slots = {"amount": author.say(en, zh), "unit": author.say(en_small, zh_small)}
    return Exercise(en, "units", slots, lead, lines, str(total))


def recall(author: Author) -> Exercise:
    """Copy a string of digits, or find two values among four."""
    if author.integer(0, 1):
        return copy(author, 5, 8)
    return lookup(author, 4, 2)


def lookup(author: Author, entries: int, wanted: int) -> Exercise:
    """Find the values of some names in a table of so many entries."""
    names = ["abcdkmnt"[place] for place in author.distinct(entries, 0, 7)]
    values = author.integers(entries, 10, 99)
    table = ",".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
    places = author.distinct(wanted, 0, entries - 1)
    asked = ",".join(names[place] for place in places)
    # The table again, one entry a line: an entry that is looked up begins with the same token.
    lines = [f"{names[place]}={values[place]}" for place in (*range(entries), *places)]
    answer = joined([values[place] for place in places])
    lead = author.say(f"Find {asked}:", f"找{asked}：")
    return Exercise(f"{table} {asked}", "recall", {"table": table, "wanted": asked}, lead, lines, answer)


def copy(author: Author, shortest: int, longest: int) -> Exercise:
    text = author.digit_string(shortest, longest)
    return Exercise(f"copy {text}", "copy", {"text": text}, author.say("Look back:", "回看："), (), text)


# --- Search and programs: every answer that works is right. ---

SIGNS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def countdown_slots(numbers: Sequence[int], target: int) -> dict[str, object]:
    return {"numbers": joined(numbers), "target": target}


def trying(author: Author, numbers: Sequence[int], target: int) -> str:
    return author.say(f"Try {joined(numbers)} for {target}:", f"试{joined(numbers)}得{target}：")


def countdown2(author: Author) -> Exercise:
    """Try +, -, * in this order, the larger number first, until one gives the target."""
    a, b = author.integer(10, 60), author.integer(2, 20)
    high, low = max(a, b), min(a, b)
    target = SIGNS[author.pick("+-*")](high, low)
    lines = []
    for sign, apply in SIGNS.items():
        value = apply(high, low)
        lines.append(f"{high}{sign}{low}={value}")
        if value == target:
            break
    lead = trying(author, (a, b), target)
    key = f"{joined(sorted((a, b)))} {target}"
    return Exercise(key, "countdown", countdown_slots((a, b), target), lead, lines, f"{high}{sign}{low}")


def countdown3(author: Author) -> Exercise:
    """List the results of the first two numbers, then the values that the third needs: target-c, target+c, target/c.

    The list ends at the first value that the two can make.
    """
    while True:
        b, a = sorted(author.distinct(2, 1, 12))
        c = author.integer(1, 12)
        target = SIGNS[author.pick("+-*")](SIGNS[author.pick("+-*")](a, b), c)
        if 1 <= target <= 99:
            break
    made = {sign: apply(a, b) for sign, apply in SIGNS.items()}
    # The quotient is needed only if the target is a product, and then it is exact.
    needed = {"+": target - c, "-": target + c, "*": target // c}
    inverse = {"+": "-", "-": "+", "*": "/"}
    tried = list(itertools.takewhile(lambda sign: needed[sign] not in made.values(), SIGNS))
    last = next(sign for sign in SIGNS if sign not in tried)
    first = next(sign for sign, value in made.items() if value == needed[last])
    lines = [f"{a}{sign}{b}={value}" for sign, value in made.items()]
    lines += [f"{target}{inverse[sign]}{c}={needed[sign]}" for sign in (*tried, last)]
    key = f"{joined(sorted((a, b, c)))} {target}"
    numbers = (a, b, c)
    lead = trying(author, numbers, target)
    return Exercise(key, "countdown", countdown_slots(numbers, target), lead, lines, f"({a}{first}{b}){last}{c}")


def countdown4(author: Author) -> Exercise:
    """Write one solution, without the search for it."""
    while True:
        numbers = author.distinct(4, 1, 10)
        value, expression, lines = numbers[0], str(numbers[0]), []
        for number in numbers[1:]:
            sign = author.pick("+-*")
            result = SIGNS[sign](value, number)
            lines.append(f"{value}{sign}{number}={result}")
            value, expression = result, f"({expression}{sign}{number})"
        if 1 <= value <= 99 and not any("=-" in line for line in lines):
            break
    shown = author.shuffled(numbers)
    key = f"{joined(sorted(numbers))} {value}"
    lead = trying(author, shown, value)
    return Exercise(key, "countdown", countdown_slots(shown, value), lead, lines, expression[1:-1])


def rpn(author: Author, shortest: int, longest: int) -> Exercise:
    """Translate steps in words into a program."""
    words = {"+": ("add", "加"), "-": ("subtract", "减"), "*": ("multiply by", "乘")}
    # x is never subtracted: after x - x, the steps before it would not matter.
    operands = {"+": "123456789x", "-": "123456789", "*": "123456789x"}
    signs = [author.pick("+-*") for _ in range(author.integer(shortest, longest))]
    steps = [(sign, author.pick(operands[sign])) for sign in signs]
    told = [author.say(f"{words[sign][0]} {number}", f"{words[sign][1]}{number}") for sign, number in steps]
    listed = author.say(", ", "，").join(told)
    lines = [f"{step}: {number} {sign}" for step, (sign, number) in zip(told, steps, strict=True)]
    program = " ".join(("x", *(f"{number} {sign}" for sign, number in steps)))
    key = " ".join(f"{sign}{number}" for sign, number in steps)
    return Exercise(key, "rpn", {"steps": listed}, author.say("Start with x", "从x开始"), lines, program)


MAKERS: dict[str, Maker] = {
    "addsub2": partial(addition_or_subtraction, digits=2),
    "add3": partial(addition, digits=3),
    "add4": partial(addition, digits=4),
    "sub3": partial(subtraction, digits=3),
    "sub4": partial(subtraction, digits=4),
    "product": partial(product, shortest=2, longest=3),
    "chain_sum": partial(chain_sum, shortest=4, longest=6),
    "mod": modulus,
    "gcd": gcd,
    "compare": compare,
    "minmax": minmax,
    "sort": partial(sort, count=4),
    "reverse": partial(reverse, shortest=5, longest=6),
    "count": count,
    "parity": parity,
    "missing_operand": missing_operand,
    "sequence": sequence,
    "boolean": boolean,
    "units": units,
    "recall": recall,
    "countdown2": countdown2,
    "countdown3": countdown3,
    "rpn": partial(rpn, shortest=2, longest=3),
}

# Harder than their namesakes: longer numbers, longer chains, one more number to combine.
HARDER_MAKERS: dict[str, Maker] = {
    "add5": partial(addition, digits=5),
    "sub5": partial(subtraction, digits=5),
    "product4": partial(product, shortest=4, longest=4),
    "chain_sum9": partial(chain_sum, shortest=7, longest=9),
    "sort6": partial(sort, count=6),
    "reverse9": partial(reverse, shortest=8, longest=9),
    "countdown4": countdown4,
    "rpn5": partial(rpn, shortest=4, longest=5),
}
