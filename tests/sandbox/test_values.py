"""Plain data between processes: every type comes back as it was, and no other bytes are accepted."""

import contextlib
import math
import os
import struct
import threading
from collections import Counter, OrderedDict, defaultdict, namedtuple
from enum import IntEnum
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.sandbox.inside import values

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.just(...)
    | st.builds(range, st.integers(), st.integers(), st.integers(1))
)
KEYS = st.recursive(LEAVES, lambda inner: st.tuples(inner, inner) | st.frozensets(inner), max_leaves=5)
DATA = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner)
        | st.dictionaries(KEYS, inner)
        | st.sets(KEYS)
        | st.frozensets(KEYS)
        | st.builds(bytearray, st.binary())
    ),
    max_leaves=20,
)


def same(one, other):
    """Equal, of the same types all the way down."""
    if type(one) is not type(other) or one != other:
        return False
    if isinstance(one, (list, tuple)):
        return all(map(same, one, other))
    if isinstance(one, dict):
        return all(map(same, one, other)) and all(map(same, one.values(), other.values()))
    return math.copysign(1, one) == math.copysign(1, other) if isinstance(one, float) else True


@given(DATA)
def test_values_come_back(value):
    assert same(values.decoded(values.encoded(value)), value)


def test_the_bytes_of_a_value():
    """Written down from the layout: a type, a count, and then the content, big-endian."""
    wanted = b"l\0\0\0\4" + b"i\0\0\0\2\1\0" + b"f" + struct.pack(">d", 0.5) + b"s\0\0\0\2\xc3\xa9" + b"t\0\0\0\1T"
    assert values.encoded([256, 0.5, "é", (True,)]) == wanted
    assert values.message(None) == b"\0\0\0\1N"


def test_not_a_number_and_large_numbers():
    assert math.isnan(values.decoded(values.encoded(float("nan"))))
    assert values.decoded(values.encoded(-(10**5000))) == -(10**5000)


class Always(list):
    """Equal to everything, and longer than it is."""

    def __eq__(self, other):
        return True

    def __len__(self):
        return 10**9


class Number(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Always([1]), [1]),
        (namedtuple("Point", "x y")(1, 2), (1, 2)),
        (Number.ONE, 1),
        (OrderedDict(a=1), {"a": 1}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (type("Text", (str,), {"__eq__": lambda *_: True})("a"), "a"),
    ],
)
def test_a_subclass_becomes_its_built_in_type(value, plain):
    assert same(values.decoded(values.encoded(value)), plain)


@pytest.mark.parametrize("value", [object(), lambda: 1, map(str, [1]), Fraction(1, 2), type, {}.keys()])
def test_an_object_becomes_one_that_equals_nothing(value):
    (found,) = values.decoded(values.encoded([value]))
    assert found != value
    assert found != found
    assert repr(found) == f"<{type(value).__name__}>"


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def endless():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize("value", [nested(101), nested(10_000), endless(), {"a": endless()}])
def test_deep_values_are_refused(value):
    with pytest.raises(ValueError, match="nested too deeply"):
        values.encoded(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"NN",
        b"i\0\0\0\2\1",
        b"s\0\0\0\1\xff",
        b"l\xff\xff\xff\xff",
        b"l\0\0\0\1",
        b"S\0\0\0\1l\0\0\0\0",
        b"d\0\0\0\1l\0\0\0\0N",
        b"rNNN",
        b"r" + 3 * b"i\0\0\0\1\0",
        b"l\0\0\0\1" * 5000 + b"N",
        b"__init__",
    ],
)
def test_other_bytes_are_refused(data):
    with pytest.raises(ValueError, match=r"."):
        values.decoded(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_an_error(data):
    with contextlib.suppress(ValueError):
        values.decoded(data)


def test_keys_are_counted():
    data = values.encoded([{1, 2}, {"a": 1}])
    assert values.decoded(data, most_keys=3) == [{1, 2}, {"a": 1}]
    with pytest.raises(ValueError, match="too many keys"):
        values.decoded(data, most_keys=2)


def test_messages_over_a_pipe():
    reads, writes = os.pipe()
    large = list(range(100_000))
    sender = threading.Thread(target=values.send, args=(writes, values.message(large)))
    sender.start()
    assert values.receive(reads) == large
    sender.join()
    os.write(writes, b"\xff\xff\xff\xff")
    with pytest.raises(ValueError, match="too large"):
        values.receive(reads)
    os.close(writes)
    with pytest.raises(EOFError):
        values.receive(reads)
    os.close(reads)


def test_a_line_of_an_exception_with_hostile_methods():
    class OddError(Exception):
        def __str__(self):
            raise SystemExit

    assert values.line(OddError()) == "OddError"
    assert values.line(ValueError("a\n b")) == "ValueError: a b"
