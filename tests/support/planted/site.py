"""The place to plant a mistake in, and two ways to plant one."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import torch


class Site:
    """The model to plant in, and the way back: what is changed through a site is restored at the end."""

    def __init__(self, hf, config, layers, stack: ExitStack) -> None:
        self.hf = hf
        self.config = config
        self.everywhere = layers is None
        self.layers = set(range(config.L)) if layers is None else set(layers)
        self.blocks = [block for i, block in enumerate(hf.model.layers) if i in self.layers]
        self.rotary = hf.model.rotary_emb
        self.current: int | None = None  # the layer whose attention runs: functions that HF looks up do not know it
        self._stack = stack
        for i, block in enumerate(hf.model.layers):
            stack.callback(block.self_attn.register_forward_pre_hook(partial(self._enter, i)).remove)

    def _enter(self, layer, module, args) -> None:
        self.current = layer

    @property
    def norms(self):
        inner = [norm for block in self.blocks for norm in (block.input_layernorm, block.post_attention_layernorm)]
        return [*inner, self.hf.model.norm] if self.everywhere else inner

    @property
    def matrices(self):
        """The linear modules of the chosen layers."""
        return [module for block in self.blocks for module in block.modules() if isinstance(module, torch.nn.Linear)]

    def set(self, owner, name, value) -> None:
        """An attribute, a buffer, or a method of one instance."""
        own = name in vars(owner) or name in vars(owner).get("_buffers", ())
        restore = partial(setattr, owner, name, getattr(owner, name)) if own else partial(delattr, owner, name)
        self._stack.callback(restore)
        setattr(owner, name, value)

    def edit(self, parameter, value) -> None:
        self._stack.callback(parameter.data.copy_, parameter.detach().clone())
        parameter.data.copy_(value.detach().clone())  # a copy, since it may be a view of this very parameter


@dataclass(frozen=True)
class Plant:
    """How to plant a mistake.

    put     (site) -> None: plants it
    values  changes for `config_values` that give a small model on which the mistake has an effect
    whole   it is one of the whole model, not of a layer
    grid    the weights have to lie on a 4-bit grid: see `on_grid`
    source  the quantised model that it needs, of `files.MADE`
    silent  the types in which it changes no bit
    quiet    it takes a long prompt to show
    flips    it rounds what two correct implementations compute a bit differently, so that some of it falls elsewhere
    """

    put: Callable[[Site], None]
    values: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False
    grid: bool = False
    source: str = ""
    silent: frozenset[torch.dtype] = frozenset()
    quiet: bool = False
    flips: bool = False


def forwards(pick, wrong):
    """Another `forward` of some modules: `wrong(module, true forward, arguments of the call...)`."""

    def put(site):
        for module in pick(site):
            site.set(module, "forward", partial(wrong, module, module.forward))

    return put


def function(owner, name, wrong):
    """Another function where HF's attention looks one up, in the chosen layers."""

    def put(site):
        true = getattr(owner, name)

        @wraps(true)  # those who watch functions know them by name
        def chosen(*args, **kwargs):
            return (wrong if site.current in site.layers else true)(*args, **kwargs)

        site.set(owner, name, chosen)

    return put
