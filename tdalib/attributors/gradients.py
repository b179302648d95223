"""Per-example gradients as rows of a matrix, made in blocks, and their inner products.

A linear layer that sees one vector a per example has the gradient g aᵀ, so the product of two of its rows is
(a·a')(g·g'): those rows are kept as the pair (a, g) and never formed. All other parameters take the general path,
`torch.func.vjp` under `vmap`, and are kept as they are.
"""

from collections.abc import Callable, Iterator
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


class Gradients:
    """Gradients of ⟨v, f(x_i)⟩ over θ for the logits f and every cotangent v of example i, block by block.

    Iteration gives pairs (slice of rows, Rows). Two blocks, their making and their products take about `memory`. A
    block that holds all examples is made once and kept, else blocks are made anew in every iteration.

    Parameters
    ----------
    draw : Draw
    x : Tensor, (n, ...)
    cotangents : Tensor, (n, k, C)
    memory : float
        GB.
    """

    def __init__(self, draw: Draw, x: Tensor, cotangents: Tensor, memory: float):
        if not memory > 0:
            raise ValueError(f"memory: {memory} is not possible; it must be above 0 (GB)")
        self.draw, self.x, self.cotangents = draw, x, cotangents
        self.layers = _outer_product_layers(draw, x)
        share, per_example = memory * 1e9 / 4, cotangents.shape[1]  # a block, the next, its parts, the products
        dense = sum(p.numel() for name, p in draw.theta.items() if name.rpartition(".")[0] not in self.layers)
        factors = sum(layer.in_features + layer.out_features for layer in self.layers.values())
        rows = share / (x.element_size() * (dense + factors))
        rows = min(rows, (share / (3 * x.element_size())) ** 0.5)  # of one block with another: three squares
        self.block = max(1, int(rows / per_example))
        self.chunk = max(1, min(CHUNK_ROWS, examples_at_once(draw, x, memory)) // per_example)
        self.whole = None

    def __len__(self) -> int:
        return self.cotangents.shape[0] * self.cotangents.shape[1]

    def __iter__(self) -> Iterator[tuple[slice, Rows]]:
        k, first = self.cotangents.shape[1], 0
        for x, cotangents in zip(self.x.split(self.block), self.cotangents.split(self.block), strict=True):
            rows = self.whole or _rows(self.draw, self.layers, x, cotangents, self.chunk)
            if len(x) == len(self.x):
                self.whole = rows
            yield slice(first, first := first + len(x) * k), rows


def examples_at_once(draw: Draw, x: Tensor, memory: float) -> int:
    """How many examples can go forward and back in a quarter of `memory` GB, by the outputs of the model's layers."""
    sizes = []
    with ExitStack() as hooks, torch.no_grad():
        for module in draw.model.modules():
            hooks.enter_context(module.register_forward_hook(lambda _, __, output: sizes.append(_numel(output))))
        draw.model(x[:1])
    return max(1, int(memory * 1e9 / 4 / (4 * x.element_size() * sum(sizes))))


def loss_gradients(draw: Draw, x: Tensor, y: Tensor, memory: float) -> Gradients:
    """∇L of every example at the draw: one row each."""
    return Gradients(draw, x, residuals(draw, x, y)[:, None], memory)


def residuals(draw: Draw, x: Tensor, y: Tensor) -> Tensor:
    """∂L/∂logits = p − e_y of every example, (b, C).

    The entry of the label is minus the sum of the others: p_y − 1 would cancel where the network is sure.
    """
    others = logits(draw.model, draw.theta, x).double().softmax(1)
    others[torch.arange(len(y)), y] = 0
    others[torch.arange(len(y)), y] = -others.sum(1)
    return others.to(x.dtype)


def pairwise(product: Callable[[Rows, Rows], Tensor], left: Gradients, right: Gradients) -> Tensor:
    """`product` (`inner` or `cosine`) of all rows with all rows, (left, right)."""
    products = left.x.new_empty(len(left), len(right))
    for i, a in left:
        for j, b in right:
            products[i, j] = product(a, b)
    return products


def inner(left: Rows, right: Rows) -> Tensor:
    """Inner products, (b·k, b'·k')."""
    shape = (*left.dense.shape[:2], *right.dense.shape[:2])  # (b, k, b', k')
    products = left.dense.flatten(0, 1) @ right.dense.flatten(0, 1).T
    for name, g in left.outputs.items():
        a = left.inputs[name] @ right.inputs[name].T  # (b, b')
        g = g.flatten(0, 1) @ right.outputs[name].flatten(0, 1).T  # (b·k, b'·k')
        products += g.view(shape).mul_(a[:, None, :, None]).view_as(products)
    return products


def cosine(left: Rows, right: Rows) -> Tensor:
    """Cosines, (b·k, b'·k'); 0 where a row is exactly zero."""
    lengths = _norms(left)[:, None] * _norms(right)
    return (inner(left, right) / lengths).where(lengths > 0, 0)


def _norms(rows: Rows) -> Tensor:
    square = rows.dense.square().sum(2)  # (b, k)
    for name, g in rows.outputs.items():
        square = square + rows.inputs[name].square().sum(1, keepdim=True) * g.square().sum(2)
    return square.sqrt().flatten()


def _rows(draw: Draw, layers: dict[str, nn.Linear], x: Tensor, cotangents: Tensor, chunk: int) -> Rows:
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

    parts = [vmap(one)(*pair) for pair in zip(x.split(chunk), cotangents.split(chunk), strict=True)]
    inputs = {name: torch.cat([seen[name] for _, seen, _ in parts]) for name in layers}
    return Rows(
        dense=torch.cat([part for part, _, _ in parts]),
        inputs={name: _with_bias(a) if f"{name}.bias" in draw.theta else a for name, a in inputs.items()},
        outputs={name: torch.cat([by_output[name] for _, _, by_output in parts]) for name in layers},
    )


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


def _numel(output) -> int:
    return output.numel() if isinstance(output, Tensor) else 0


def _tap(name: str, shift: dict, seen: dict):
    """Forward hook: note the layer's input, and add a zero to its output whose gradient is the output's."""

    def hook(_, args, output):
        seen[name] = args[0][0]
        return output + shift[name]

    return hook


def _with_bias(a: Tensor) -> Tensor:
    return torch.cat([a, a.new_ones(len(a), 1)], 1)
