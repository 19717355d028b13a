"""Works that run side by side in the event loop."""

import asyncio
import gc
import json
import warnings

import pytest

from qwq_ref.serve.events import gather
from tests.support.servers import request


def test_works_that_are_cancelled_before_they_begin_leave_no_warning():
    """A client may go while the works of its answer are made."""

    async def work():
        await asyncio.sleep(10)

    async def main():
        both = asyncio.create_task(gather(work(), work()))
        asyncio.get_running_loop().call_soon(both.cancel)
        with pytest.raises(asyncio.CancelledError):
            await both

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    assert not seen


@pytest.mark.parametrize("stream", [True, False])
def test_a_fault_in_an_answer_is_told_by_its_place(server, nano, monkeypatch, capfd, stream):
    """Its text may hold what a client wrote, so nobody sees it."""

    def fails(self, steps, progress=None):
        raise ValueError("secret")

    monkeypatch.setattr(type(nano.backend), "run_together", fails)
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": stream}).encode()
    answer = server.ask_raw(request("/v1/chat/completions", body))
    assert b'"code":"fault"' in answer
    told = capfd.readouterr().err
    assert told.startswith("qwq: fault: ValueError at ")
    assert told.count("\n") == 1
    assert "test_events.py" in told
    assert b"secret" not in answer
    assert "secret" not in told
