"""The shape contracts of spec and numerics: the first line of each docstring is parsed, and checked on every call.

`x [T, D], w [D] -> [T, D]` names arrays and their dimensions. A letter has one size throughout a call. Upper-case
letters have the size in the config, if there is one: an argument, or the config of the `forward` that is running. `E/2`
is half of E, and `...` is any number of leading dimensions. An argument that is None has no shape. An integer argument
with the name of a letter is that dimension.
"""

import functools
import importlib
import inspect
import re
from contextlib import contextmanager

import numpy as np

import qwq_ref.spec
from qwq_ref.config import DIMENSIONS, Config
from qwq_ref.numerics import engine, fixed, integers, key_bias, kv, quant
from qwq_ref.spec import model, ops, sampling

# `spec.block` and `spec.generate` are the functions: the modules of these names are imported by their paths.
block, generate = (importlib.import_module(f"qwq_ref.spec.{name}") for name in ("block", "generate"))
MODULES = (ops, block, model, sampling, generate, quant, fixed, integers, key_bias, kv, engine, qwq_ref.spec)
called = set()
_config_in_sight = []


def parse(function):
    """-> ({argument: dims}, [dims or None of each result]); ValueError if there is no contract."""
    line = (inspect.getdoc(function) or "").split("\n")[0]
    item = r"(?:(\w+) ?)?(?:\[([^\]]*)\])?"
    if not re.fullmatch(rf"({item}(, {item})*)?( ?-> {item}(, {item})*)?", line) or not ("[" in line or "->" in line):
        raise ValueError(f"{function.__qualname__} has no shape contract: {line!r}")
    given, _, returned = line.partition("->")
    items = [[match for match in re.findall(item, part) if any(match)] for part in (given, returned)]
    arguments = {name: _dims(dims) for name, dims in items[0] if dims}
    results = [_dims(dims) if dims else None for _, dims in items[1]]
    return arguments, results


def _dims(text):
    return tuple(part.strip() for part in text.split(","))


def name_of(function):
    """Functions of `fixed` and `engine` share names with those of the spec, so they get a prefix: `fixed.rmsnorm`."""
    prefixes = {fixed.__name__: "fixed.", engine.__name__: "engine."}
    return prefixes.get(function.__module__, "") + function.__name__


def public_functions():
    """Every function that the spec defines under a public name, by that name."""
    return {
        name_of(value): value
        for module in MODULES
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__.startswith(("qwq_ref.spec", "qwq_ref.numerics"))
        and not name.startswith("_")
    }


def checked(function):
    arguments, results = parse(function)
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        config = next((value for value in bound.arguments.values() if isinstance(value, Config)), None)
        known = config or (_config_in_sight[-1] if _config_in_sight else None)
        sizes = {letter: getattr(known, letter) for letter in "DFHKGEVL"} if known else {}
        for name, value in bound.arguments.items():
            if name in DIMENSIONS and isinstance(value, int):
                assert sizes.setdefault(name, value) == value, f"{function.__name__}: {name} is {value}, not {sizes}"
        for name, dims in arguments.items():
            if bound.arguments[name] is not None:
                _check(function, name, np.shape(bound.arguments[name]), dims, sizes)
        if config:
            _config_in_sight.append(config)
        try:
            result = function(*args, **kwargs)
        finally:
            if config:
                _config_in_sight.pop()
        for value, dims in zip(result if len(results) > 1 else [result], results, strict=False):
            if dims is not None:
                _check(function, "result", value.shape, dims, sizes)
        called.add(name_of(function))
        return result

    return wrapper


def _check(function, name, shape, dims, sizes):
    def fail():
        raise AssertionError(f"{function.__name__}: {name} has shape {shape}, contract {list(dims)} where {sizes}")

    if dims[0] == "...":
        dims = dims[1:]
        shape = shape[len(shape) - len(dims) :]
    if len(shape) != len(dims):
        fail()
    for size, dim in zip(shape, dims, strict=True):
        letter, _, divisor = dim.partition("/")
        if sizes.setdefault(letter, size * int(divisor or 1)) != size * int(divisor or 1):
            fail()


@contextmanager
def enforced():
    """Replace each function by one that checks its contract, under every name in the modules of spec and numerics."""
    checking = {name: checked(function) for name, function in public_functions().items()}
    places = [
        (module, name, value)
        for module in MODULES
        for name, value in list(vars(module).items())
        if inspect.isfunction(value) and checking.get(name_of(value)) is not None and name == value.__name__
    ]
    for module, name, value in places:
        setattr(module, name, checking[name_of(value)])
    try:
        yield
    finally:
        for module, name, value in places:
            setattr(module, name, value)
