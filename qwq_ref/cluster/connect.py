"""Connect to a Ray cluster, or start one on this machine for the time of a command."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import ClusterError, UsageError
from ..host.limits import cpus

LOCAL = "local"
_STORE = 256 << 20  # bytes of Ray's object store on this machine: a stream of 512 tokens of QwQ-32B has 10 MiB
_PATIENCE = 5.0  # seconds to wait for a connection
_HEALTH = 30.0  # seconds to wait for Ray's own check
# The core is told its threads at each call; BLAS reads these once, and would take all processors for each process.
_WORKERS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")} | {"RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    id      Ray's
    name    its address
    cpus    that it offers
    memory  bytes that it offers
    """

    id: str
    name: str
    cpus: int
    memory: int


def require_ray() -> Any:
    """Return the module `ray`. Raises UsageError without it."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}  # read when Ray starts
    try:
        import ray
    except ImportError:
        raise UsageError(None, "ray", "needs ray: pip install 'qwq_ref[ray]'") from None
    return ray


def checked_address(text: str) -> str:
    """Return an address: `local`, or HOST:PORT. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if text != LOCAL and not (host and "/" not in host and port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise ValueError(f"must be {LOCAL}, or HOST:PORT as `ray start --head` prints it, got {text[:60]}")
    return text


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a cluster for the time of a block -> the module `ray`. Actors of this process end with the block.

    address  HOST:PORT; or `local`, which starts a cluster on this machine, with its usable processors

    Raises UsageError without Ray, and ClusterError where no cluster answers.
    """
    ray = require_ray()
    how: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "runtime_env": {"env_vars": _WORKERS}}
    if address == LOCAL:
        how |= {"address": LOCAL, "num_cpus": cpus(), "include_dashboard": False, "object_store_memory": _STORE}
    else:
        _check_answers(address)
        how["address"] = address
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(**how)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError, SystemExit) as problem:
        ray.shutdown()
        raise ClusterError(address, None, f"Ray does not start: {' '.join(str(problem).split())[:300]}") from None
    finally:
        for number, handler in handlers.items():  # Ray has put its own
            with contextlib.suppress(ValueError):  # not the main thread: Ray has put none
                signal.signal(number, handler)
    try:
        with _quiet():
            yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop the reports of lost machines, which Ray prints on stdout among our answers; we tell of them ourselves."""
    from ray._private import worker

    own = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_to_stdstream = own


def nodes(ray: Any) -> list[Node]:
    """Return the machines that are there, with processors to offer. Raises ClusterError where there is none."""
    found = [
        Node(
            each["NodeID"],
            each["NodeManagerAddress"],
            int(each["Resources"].get("CPU", 0)),
            int(each["Resources"].get("memory", 0)),
        )
        for each in ray.nodes()
        if each["Alive"]
    ]
    found = [node for node in found if node.cpus]
    if not found:
        raise ClusterError(None, "ray", "no machine of the cluster offers a processor")
    return found


def _check_answers(address: str) -> None:
    """Raise ClusterError where no Ray cluster answers. Ray itself would wait for minutes, and end this process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _PATIENCE).close()
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise ClusterError(address, None, f"no Ray cluster answers ({reason}): see `ray status` there") from None
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        healthy = subprocess.run(command, capture_output=True, timeout=_HEALTH).returncode == 0
    except subprocess.TimeoutExpired:
        healthy = False
    if not healthy:
        raise ClusterError(address, None, "something answers there, but no Ray cluster of a version like this one")
