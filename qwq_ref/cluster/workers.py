"""Work that is shared out over the machines of a cluster, one process on each, and done again where one is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..errors import ClusterError, QwqError
from .connect import Node, nodes

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
TRIES = 4  # processes that a piece of work may take with it, before it is taken for the cause
_AGAIN = 3  # times that a process on a machine is started again
_PAUSE = 0.5  # seconds before a process is started again


class Worker(Generic[S]):
    """A process on a machine: the state that `make` returns, such as a model, and the work that needs it."""

    def __init__(self, make: Callable[[int], S], threads: int, name: str) -> None:
        self._make, self._threads, self._name = make, threads, name
        self._state: asyncio.Task[S] | None = None

    async def do(self, function: Callable[[S, T], Any], item: T) -> Any:
        """Return function(state, item), which may be a coroutine. Raises ClusterError where no state can be made."""
        if self._state is None:
            self._state = asyncio.create_task(asyncio.to_thread(self._make, self._threads))
        try:
            state = await asyncio.shield(self._state)
        except QwqError as problem:
            raise ClusterError(f"machine {self._name}", None, str(problem)) from None
        if asyncio.iscoroutinefunction(function):
            return await function(state, item)
        return await asyncio.to_thread(function, state, item)


@dataclass
class _Place:
    """A machine, its process, and the work that it has.

    again  times that the process was started again
    """

    node: Node
    actor: Any
    busy: int = 0
    again: int = 0


@dataclass
class Workers(Generic[S]):
    """A process on each machine of a cluster. Use it as a context, at the end of which they end.

    ray   the module
    make  number of threads -> the state of a process; it is pickled
    room  pieces of work that a process has at a time; None: one for each of its processors
    told  called with a line about each loss
    run_loop  runs a coroutine in an event loop
    """

    ray: Any
    make: Callable[[int], S]
    room: int | None = None
    told: Callable[[str], object] = lambda line: None
    run_loop: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run
    places: list[_Place] = field(default_factory=list)

    def __enter__(self) -> Workers[S]:
        self.places = [_Place(node, self._start(node)) for node in nodes(self.ray)]
        return self

    def __exit__(self, *_: object) -> None:
        for place in self.places:
            self._kill(place.actor)

    def map(
        self,
        function: Callable[[S, T], R | Awaitable[R]],
        items: Sequence[T],
        progress: Callable[[int, R], object] = lambda number, result: None,
    ) -> list[R]:
        """Return the result for each item, in their order. Raises what `function` raises, and ClusterError.

        function  of a module, so that other processes find it
        progress  called with the number of an item and its result, as soon as it is there
        """

        async def one(number: int) -> None:
            results[number] = await self.ask(function, items[number])
            progress(number, results[number])

        results: dict[int, R] = {}

        async def every() -> None:
            tasks = [asyncio.create_task(one(number)) for number in range(len(items))]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        self.run_loop(every())
        return [results[number] for number in range(len(items))]

    async def ask(self, function: Callable[[S, T], Any], item: T) -> Any:
        """Return function(state, item) of the process with the most room; from another one, should it be lost."""
        exceptions = self.ray.exceptions
        for _ in range(TRIES):
            place = await self._free()
            actor, place.busy = place.actor, place.busy + 1
            try:
                return await actor.do.remote(function, item)
            except exceptions.RayTaskError as problem:  # the work itself failed, and not the process
                raise problem.cause from None
            except exceptions.RayError as problem:
                reason = " ".join(str(problem).split())
                await self._lost(place, actor, reason)
            finally:
                place.busy -= 1
        raise ClusterError(None, "ray", f"{TRIES} processes were lost with the same work, the last: {reason[:300]}")

    async def _free(self) -> _Place:
        """Return a place with room, once there is one. Raises ClusterError once there is no place."""
        while True:
            if not self.places:
                raise ClusterError(None, "ray", "all machines are lost")
            place = min(self.places, key=lambda each: each.busy / self._room(each.node))
            if place.busy < self._room(place.node):
                return place
            await asyncio.sleep(0.002)

    async def _lost(self, place: _Place, actor: Any, reason: str) -> None:
        """Start a lost process again where its machine is there; give the machine up otherwise."""
        if place.actor is not actor or place not in self.places:
            return  # another piece of work has noticed it before
        self._kill(actor)
        place.again += 1
        there = any(each["Alive"] and each["NodeID"] == place.node.id for each in self.ray.nodes())
        if there and place.again <= _AGAIN:
            self.told(f"a process on {place.node.name} was lost and is started again: {reason[:200]}")
            place.actor = self._start(place.node)
            await asyncio.sleep(_PAUSE)
            return
        self.places.remove(place)
        self.told(f"{place.node.name} was lost; {len(self.places)} machines go on: {reason[:200]}")

    def _room(self, node: Node) -> int:
        return self.room or node.cpus

    def _start(self, node: Node) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        options = {"scheduling_strategy": there, "max_concurrency": self._room(node), "num_cpus": 0}
        return self.ray.remote(Worker).options(**options).remote(self.make, node.cpus, node.name)

    def _kill(self, actor: Any) -> None:
        with contextlib.suppress(self.ray.exceptions.RayError, ValueError):
            self.ray.kill(actor)
