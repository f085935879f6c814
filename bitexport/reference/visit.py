"""Calls a function with the values of every step while the reference runs; it may replace them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bitexport.errors import UnsupportedError
from bitexport.reference.steps import Place, Site

#: Called with a step's values, float32 ``[T, width]``, heads concatenated; a result other than None replaces
#: them.
Visit = Callable[[Place, torch.Tensor], torch.Tensor | None]

_AROUND_ATTENTION = (Site.QUERY, Site.KEY, Site.HEADS)


@contextmanager
def visited(
    model: Any, modules: Mapping[str, nn.Module], places: Sequence[Place], visit: Visit
) -> Iterator[None]:
    """Within the block, ``visit`` is called for each of ``places`` as soon as it is computed.

    Queries, keys, heads, the inputs of a norm and block outputs can be replaced just as module outputs can;
    but the residual branch keeps the original input of ``ffn_norm``, which both share.

    Args:
        model: a transformers causal language model with eager attention.
        modules: its modules by the GGUF name of their weight.
        places: the steps to visit.

    Raises:
        UnsupportedError: the model's class has no eager attention function to observe.
    """
    with ExitStack() as stack:
        for place in places:
            if place.step.site not in _AROUND_ATTENTION:
                handle = _hook(model, modules, place, visit)
                stack.callback(handle.remove)
        around = {(p.step.site, p.layer): p for p in places if p.step.site in _AROUND_ATTENTION}
        if around:
            stack.enter_context(_watched_attention(around, visit))
        yield


def _hook(model: Any, modules: Mapping[str, nn.Module], place: Place, visit: Visit) -> Any:
    assert place.weight is not None
    module = modules[place.weight]
    if place.step.site is Site.INPUT:

        def before(_module: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
            other = _show(place, inputs[0], visit)
            return None if other is None else (other,)

        # before the hooks that quantize the input
        return module.register_forward_pre_hook(before, prepend=True)
    if place.step.site is Site.BLOCK:
        module = _parent(model, module)

    def after(_module: nn.Module, _inputs: object, output: Any) -> Any:
        if isinstance(output, tuple):
            other = _show(place, output[0], visit)
            return None if other is None else (other, *output[1:])
        if getattr(module, "heads_first", False):
            other = _show(place, output.transpose(1, 2), visit)
            return None if other is None else other.transpose(1, 2)
        return _show(place, output, visit)

    return module.register_forward_hook(after)


def _show(place: Place, values: torch.Tensor, visit: Visit) -> torch.Tensor | None:
    """``values`` is ``(1, T, ...)``."""
    other = visit(place, values[0].flatten(1))
    return None if other is None else other.reshape(values.shape)


def _parent(model: Any, module: nn.Module) -> nn.Module:
    """The block that contains a norm."""
    name = next(name for name, found in model.named_modules() if found is module)
    parent: nn.Module = model.get_submodule(name.rpartition(".")[0])
    return parent


@contextmanager
def _watched_attention(around: Mapping[tuple[Site, int | None], Place], visit: Visit) -> Iterator[None]:
    """Replaces the eager attention function, which transformers looks up in a table at each call."""

    def watched(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *rest: Any,
        **named: Any,
    ) -> Any:
        layer = int(module.layer_idx)  # type: ignore[arg-type]

        def seen(site: Site, values: torch.Tensor) -> torch.Tensor:
            place = around.get((site, layer))
            other = None if place is None else _show(place, values, visit)
            return values if other is None else other

        # (1, heads, T, head_dim) -> (1, T, heads, head_dim), and back
        query = seen(Site.QUERY, query.transpose(1, 2)).transpose(1, 2)
        key = seen(Site.KEY, key.transpose(1, 2)).transpose(1, 2)
        output, weights = _eager_attention(module)(module, query, key, value, *rest, **named)
        return seen(Site.HEADS, output), weights

    # Set on this object only: its local mapping takes precedence over the default of the model's module.
    ALL_ATTENTION_FUNCTIONS["eager"] = watched
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["eager"]


def _eager_attention(module: nn.Module) -> Callable[..., Any]:
    """The eager attention function in the Python module that defines the class or one of its bases."""
    for kind in type(module).__mro__:
        function = getattr(sys.modules[kind.__module__], "eager_attention_forward", None)
        if callable(function):
            return function  # type: ignore[no-any-return]
    raise UnsupportedError(
        f"no eager_attention_forward is defined next to {type(module).__name__}, so the steps around its "
        "attention cannot be compared; leave out --layers"
    )
