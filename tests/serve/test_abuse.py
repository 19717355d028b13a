"""Malformed, oversized, slow, cross-origin and half-closed requests: each gets the answer of docs/serve.md.

`python -m tests.tools.abuse` sends 100,000 of them.
"""

import concurrent.futures
import random
from pathlib import Path

import pytest

from tests.support.abuse import KINDS, Case, fault_of, good, known_answers, send
from tests.support.servers import request, until
from tests.tools.abuse import run


def test_one_request_of_each_kind(server, nano, capfd):
    known = known_answers(nano, 2)

    def one(kind):
        case = kind(random.Random(kind.__name__), known)
        return kind.__name__, fault_of(case, send(case, server.port, random.Random(0)))

    with concurrent.futures.ThreadPoolExecutor(len(KINDS)) as pool:
        assert [fault for fault in pool.map(one, KINDS) if fault[1]] == []
    until(lambda: not server.server.server_state.connections)
    until(lambda: server.counts.running == server.counts.waiting == 0)
    assert server.counts.failed == 0
    assert capfd.readouterr().err == ""


def test_a_wrong_answer_is_found(server, nano):
    (_, text), *_ = known_answers(nano, 1)
    data = request("/health")
    assert fault_of(Case(data, {200}), send(Case(data, {200}), server.port, random)) is None
    assert "wanted {403}" in fault_of(Case(data, {403}), send(Case(data, {403}), server.port, random))
    case = good(random, [("What is 0+0?", text + "!")])
    assert fault_of(case, send(case, server.port, random)) == "another answer"


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads what a process holds from Linux's /proc")
def test_2000_requests_leave_nothing():
    counts, faults = run(2000)
    assert faults == []
    assert sum(counts.values()) == 2000
    assert {kind for kind, _ in counts} == {kind.__name__ for kind in KINDS}
