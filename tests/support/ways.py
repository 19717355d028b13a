"""The ways to contain a program. Each test runs in every way; one that does not work here is a skip with its reason."""

import pytest

from qwq_ref.sandbox import ways


@pytest.fixture(params=ways.WAYS)
def way(request, monkeypatch):
    """The containment of a test, by its name."""
    reason = ways.problem(request.param)
    if reason is not None:
        pytest.skip(f"no test of {request.param} on this machine: {reason}")
    monkeypatch.setattr(ways, "require_containment", lambda: request.param)
    return request.param
