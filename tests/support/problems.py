"""Problems for tests, and readings of their text that share nothing with the generators."""

import ast
import operator
import re
from fractions import Fraction

import numpy as np

from qwq_ref import tasks

ALL = tasks.CATEGORIES + tasks.HARDER


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def problems(category, count=300, seed=0):
    rng = np.random.default_rng([seed, ALL.index(category)])
    return [tasks.generate(category, rng) for _ in range(count)]


def value(expression):
    """Python's own reading of an expression, without running it; 07 is 7."""

    def of(node):
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        if isinstance(node, ast.UnaryOp):
            return -of(node.operand)
        return OPERATORS[type(node.op)](of(node.left), of(node.right))

    return of(ast.parse(re.sub(r"\b0+(?=\d)", "", expression), mode="eval").body)


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]
