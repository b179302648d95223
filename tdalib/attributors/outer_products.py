"""Which linear layers have gradients that are outer products: NaN in the place of their weights would show if not.

The gradient of a linear layer that sees one vector a per example is g aᵀ, if its weights serve nothing else. Whether
they do is tried: NaN is put in their place and the layer's own output repaired. Outputs that are not finite then have
come into touch with the weights by another way.
"""

import torch
from torch import Tensor, nn

from tdalib.data import Points
from tdalib.networks import calls, forward_at
from tdalib.samplers import Draw


def outer_product_layers(draw: Draw, points: Points) -> dict[str, nn.Linear]:
    """Linear layers that are called once, on one vector per example, and whose trained weights serve nothing else."""
    pair = points[[0, len(points) - 1]]
    layers = {
        name: module
        for name, module in draw.model.named_modules()
        if type(module) is nn.Linear and f"{name}.weight" in draw.theta
    }
    for name, called in calls(draw.model, layers, pair.inputs).items():
        one_vector_each = [tuple(x.shape[:-1]) for arguments, _ in called for x in arguments[:1]] == [(2,)]
        if not one_vector_each or _used_elsewhere(draw, name, layers[name], pair):
            del layers[name]
    return layers


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
