"""Works that run side by side in the event loop."""

import asyncio
import gc
import warnings

import pytest

from qwq_ref.serve.events import gather


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
