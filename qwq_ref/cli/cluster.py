"""Options and models of the commands that can compute on several machines, with Ray."""

from __future__ import annotations

import argparse
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .ending import run_loop
from .options import chosen_rope, refuse
from .progress import progress_bar
from .screen import tell
from .values import count

if TYPE_CHECKING:
    from ..cluster.load import Wishes
    from ..engine.model import Model

_NO_EFFECT = ("backend", "max_memory", "prompt_cache", "threads", "watts")


def add_ray_argument(parser: argparse.ArgumentParser, what: str) -> Any:
    """Add `--ray`, which computes `what` on other machines, and return its group of options."""
    group = parser.add_argument_group("several machines")
    group.add_argument(
        "--ray",
        type=_address,
        metavar="ADDRESS",
        help=f"{what} with Ray: HOST:PORT, as `ray start --head` prints it, or local, for this machine alone. Each "
        "machine needs the same qwq_ref and model; see docs/ray.md",
    )
    return group


def add_stages_argument(group: Any) -> None:
    """Add `--stages` to the group of `add_ray_argument`."""
    group.add_argument(
        "--stages", type=count, metavar="N", help="parts that the layers are divided into; default: one a machine"
    )


def _address(text: str) -> str:
    from ..cluster.connect import checked_address

    try:
        return checked_address(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def check_ray(options: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go with `--ray`, or need it; and where Ray is not installed."""
    if options.ray is None:
        if getattr(options, "stages", None) is not None:
            raise UsageError(None, "stages", "needs --ray")
        return
    refuse(options, [name for name in _NO_EFFECT if hasattr(options, name)], "has no effect with --ray")
    from ..cluster.connect import require_ray

    require_ray()


def wishes_of(options: argparse.Namespace, context: int | None, chat_template: str | None = None) -> Wishes:
    """Return the choices for the model that the options name, which may be downloaded to this machine."""
    from ..cluster.load import Wishes
    from ..engine.ahead import check_small
    from ..formats import read_config
    from .models import locate

    path = locate(options, None, lambda folder: check_small(folder, chat_template, text=True))
    rope = chosen_rope(options, read_config(path)) if hasattr(options, "rope_scaling") else None
    return Wishes(options.model, path, options.weights, options.kv, options.isa, context, rope, chat_template)


@contextlib.contextmanager
def pipeline_of(options: argparse.Namespace, chat_template: str | None = None) -> Iterator[Model]:
    """Load a model shared out by layers, for the time of a block. Raises ClusterError."""
    from ..cluster.connect import connected
    from ..cluster.load import pipeline

    wishes = wishes_of(options, options.ctx_size, chat_template)
    with contextlib.ExitStack() as stack:
        with progress_bar("starting stages", 1, "clusters"):
            ray = stack.enter_context(connected(options.ray))
            parallel = options.parallel or 1
            model = stack.enter_context(pipeline(ray, wishes, options.stages, parallel, told=_lost))
        if options.verbose:
            tell(f"backend: {model.backend.description}")
            tell(f"context: {model.context} tokens")
        yield model


@contextlib.contextmanager
def workers_of(
    options: argparse.Namespace, make: Callable[..., Any], *arguments: Any, room: int | None = None
) -> Iterator[Any]:
    """Start a process on each machine, for the time of a block. Its state is make(*arguments, threads)."""
    from ..cluster.connect import connected
    from ..cluster.workers import Workers

    made = functools.partial(make, *arguments)
    with connected(options.ray) as ray, Workers(ray, made, room, _lost, run_loop) as workers:
        if options.verbose:
            names = ", ".join(f"{place.node.name} ({place.node.cpus} threads)" for place in workers.places)
            tell(f"machines: {names}")
        yield workers


def single_thread(there: Any, threads: int) -> Model:
    """Load a model whose answers each take one thread, on a machine with so many."""
    from ..cluster.load import load_there

    return load_there(there, 1, 1, 1)


def _lost(line: str) -> None:
    tell(f"qwq: {line}")
