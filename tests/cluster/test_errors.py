"""Errors travel between processes whole."""

import pickle

import pytest

from qwq_ref import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.QwqError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_is_the_same_elsewhere(kind):
    more = {errors.ChoiceError: ([], True), errors.BusyError: (2.5,)}.get(kind, ())
    problem = (
        kind("file", "is wrong", *more) if kind is errors.ChoiceError else kind("file", "field", "is wrong", *more)
    )
    other = pickle.loads(pickle.dumps(problem))
    assert type(other) is kind
    assert str(other) == str(problem)
    assert vars(other) == vars(problem)
