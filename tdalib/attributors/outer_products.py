"""Which linear layers have gradients that are outer products: NaN in the place of their weights would show if not.

The gradient of a linear layer that sees one vector a per example is g aᵀ, if its weights serve nothing else. Whether
they do is tried: NaN is put in their place and the layer's own output repaired. Outputs that are not finite then have
come into touch with the weights by another way.
"""

from typing import Any

import torch
from torch import Tensor, nn

from tdalib.data import Points
from tdalib.networks import calls, forward_at
from tdalib.samplers import Draw


def outer_product_layers(draw: Draw, points: Points) -> dict[str, nn.Linear]:
    """Linear layers that are called once, on one vector per example, and whose trained weights serve nothing else."""
    ends = [0, len(points) - 1]
    linear = {name: m for name, m in draw.model.named_modules() if type(m) is nn.Linear and not _is_hooked(m)}
    layers = {name: layer for name, layer in linear.items() if f"{name}.weight" in draw.theta}
    of_one, of_two = (calls(draw.model, layers, points[ends[:count]].inputs) for count in (1, 2))
    once = [name for name in layers if _vectors(of_one[name]) == [(1,)] and _vectors(of_two[name]) == [(2,)]]
    return {name: layers[name] for name in once if not _used_elsewhere(draw, name, layers[name], points[ends])}


def _is_hooked(layer: nn.Module) -> bool:
    """Whether something is done to what goes in or out."""
    return any([layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks])


def _vectors(called: list[tuple[tuple, Any]]) -> list[tuple[int, ...]]:
    """How many vectors a layer takes in each of its calls."""
    return [tuple(arguments[0].shape[:-1]) if arguments else () for arguments, _ in called]


def _used_elsewhere(draw: Draw, name: str, layer: nn.Linear, points: Points) -> bool:
    """Whether a layer's parameters reach the output by another way than its call."""
    own = {key: p for key, p in draw.theta.items() if key.rpartition(".")[0] == name}
    spoiled = {key: torch.full_like(p, torch.nan) for key, p in own.items()}
    weight, bias = own[f"{name}.weight"], own.get(f"{name}.bias", layer.bias)

    def repair(_: nn.Module, args: tuple, __: object) -> Tensor:
        return nn.functional.linear(args[0], weight, bias)

    with layer.register_forward_hook(repair), torch.no_grad():
        try:
            outputs = forward_at(draw.model, draw.rest | draw.theta | spoiled, points.inputs)
        except Exception:  # of a network that looks at its numbers
            return True
    return not outputs.isfinite().all()
