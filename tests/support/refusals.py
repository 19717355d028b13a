"""The form of every refusal of a bad file."""

import pytest


def refused(error_type, longest, call, file, field, words):
    """`call()` raises `error_type`: one line that starts with the file, then the field, and says what is wrong."""
    with pytest.raises(error_type) as caught:
        call()
    error = caught.value
    assert (error.file, error.field) == (str(file), field)
    assert words in error.problem
    assert str(error).startswith(": ".join(part for part in (str(file), field) if part) + ": ")
    assert str(error).isprintable()  # so it is one line, too
    assert len(str(error)) < longest
