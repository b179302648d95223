"""Per-example gradients as rows of a matrix, and their inner products.

A linear layer that sees one vector a per example has the gradient g aᵀ, so the product of two of its rows is
(a·a')(g·g'): those rows are kept as the pair (a, g) and never formed. All other parameters take the general path,
`torch.func.vjp` under `vmap`, and are kept as they are.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from tdalib.samplers.posterior import Draw
from tdalib.training import logits

CHUNK_ROWS = 250  # rows under one vmap: larger is slower, the cache is then too small


@dataclass(frozen=True)
class Rows:
    """k gradient rows for each of b examples: one row is `dense` and all outer products a gᵀ, side by side."""

    dense: Tensor  # (b, k, P_dense)
    inputs: dict[str, Tensor]  # layer → a, (b, in)
    outputs: dict[str, Tensor]  # layer → g, (b, k, out)


def loss_rows(draw: Draw, x: Tensor, y: Tensor) -> Rows:
    """∇L of every example at the draw: one row each."""
    return rows(draw, x, residuals(draw, x, y)[:, None])


def residuals(draw: Draw, x: Tensor, y: Tensor) -> Tensor:
    """∂L/∂logits = p − e_y of every example, (b, C).

    The entry of the label is minus the sum of the others: p_y − 1 would cancel where the network is sure.
    """
    others = logits(draw.model, draw.theta, x).double().softmax(1)
    others[torch.arange(len(y)), y] = 0
    others[torch.arange(len(y)), y] = -others.sum(1)
    return others.to(x.dtype)


def rows(draw: Draw, x: Tensor, cotangents: Tensor) -> Rows:
    """Gradients of ⟨v, f(x_i)⟩ over θ for the logits f and every cotangent v of example i; cotangents (b, k, C)."""
    layers = _outer_product_layers(draw, x)
    dense = {name: p for name, p in draw.theta.items() if name.rpartition(".")[0] not in layers}

    def one(xi, vi):  # vi (k, C)
        def forward(dense, shift):
            seen = {}
            with ExitStack() as hooks:
                for name, layer in layers.items():
                    hooks.enter_context(layer.register_forward_hook(_tap(name, shift, seen)))
                output = functional_call(draw.model, draw.theta | dense, (xi[None],))[0]
            return output, seen

        shift = {name: xi.new_zeros(layer.out_features) for name, layer in layers.items()}
        _, pull, seen = vjp(forward, dense, shift, has_aux=True)
        by_dense, by_output = vmap(pull)(vi)
        flat = [g.flatten(1) for g in by_dense.values()]  # (k, size)
        return torch.cat(flat, 1) if flat else vi.new_zeros(len(vi), 0), seen, by_output

    chunk = max(1, CHUNK_ROWS // cotangents.shape[1])
    parts = [vmap(one)(*pair) for pair in zip(x.split(chunk), cotangents.split(chunk), strict=True)]
    inputs = {name: torch.cat([seen[name] for _, seen, _ in parts]) for name in layers}
    return Rows(
        dense=torch.cat([part for part, _, _ in parts]),
        inputs={name: _with_bias(a) if f"{name}.bias" in draw.theta else a for name, a in inputs.items()},
        outputs={name: torch.cat([by_output[name] for _, _, by_output in parts]) for name in layers},
    )


def gram(left: Rows, right: Rows) -> Tensor:
    """Inner products of all rows with all rows, (b·k, b'·k')."""
    shape = (*left.dense.shape[:2], *right.dense.shape[:2])  # (b, k, b', k')
    products = left.dense.flatten(0, 1) @ right.dense.flatten(0, 1).T
    for name, g in left.outputs.items():
        a = left.inputs[name] @ right.inputs[name].T  # (b, b')
        g = g.flatten(0, 1) @ right.outputs[name].flatten(0, 1).T  # (b·k, b'·k')
        products += (g.view(shape) * a[:, None, :, None]).view_as(products)
    return products


def norms(r: Rows) -> Tensor:
    """Euclidean length of every row, (b·k,)."""
    square = r.dense.square().sum(2)  # (b, k)
    for name, g in r.outputs.items():
        square = square + r.inputs[name].square().sum(1, keepdim=True) * g.square().sum(2)
    return square.sqrt().flatten()


def _outer_product_layers(draw: Draw, x: Tensor) -> dict[str, nn.Linear]:
    """Linear layers that are called once, on one vector per example, and whose trained weights serve nothing else."""
    pair = torch.cat([x[:1], x[:1]])
    layers = {
        name: module
        for name, module in draw.model.named_modules()
        if type(module) is nn.Linear and f"{name}.weight" in draw.theta
    }
    calls = {name: [] for name in layers}
    with ExitStack() as hooks, torch.no_grad():
        for name, layer in layers.items():
            note = partial(lambda seen, _, args, __: seen.append(args[0].shape[:-1]), calls[name])
            hooks.enter_context(layer.register_forward_hook(note))
        draw.model(pair)
    return {name: m for name, m in layers.items() if calls[name] == [(2,)] and not _used_elsewhere(draw, name, m, pair)}


def _used_elsewhere(draw: Draw, name: str, layer: nn.Linear, x: Tensor) -> bool:
    """Whether a layer's parameters reach the output by another way than its call: NaN in their place would show."""
    spoiled = {key: torch.full_like(p, torch.nan) for key, p in draw.theta.items() if key.rpartition(".")[0] == name}
    true = {key.rpartition(".")[2]: draw.theta[key] for key in spoiled}

    def repair(_, args, __):
        return nn.functional.linear(args[0], true["weight"], true.get("bias", layer.bias))

    with layer.register_forward_hook(repair), torch.no_grad():
        return not functional_call(draw.model, draw.theta | spoiled, (x,)).isfinite().all()


def _tap(name: str, shift: dict, seen: dict):
    """Forward hook: note the layer's input, and add a zero to its output whose gradient is the output's."""

    def hook(_, args, output):
        seen[name] = args[0][0]
        return output + shift[name]

    return hook


def _with_bias(a: Tensor) -> Tensor:
    return torch.cat([a, a.new_ones(len(a), 1)], 1)
