"""Per-example gradients as rows of a matrix, made in blocks, and their inner products.

A linear layer that sees one vector a per example has the gradient g aᵀ, so the product of two of its rows is
(a·a')(g·g'): those rows are kept as the pair (a, g) and never formed, if the layer's weights serve nothing else. That
is tried: NaN is put in their place and the layer's own output repaired. Outputs that are not finite then have come into
touch with the weights by another way. All other parameters take the general path, `torch.func.vjp` under
`vmap`, and are kept as they are. A network that this cannot serve (recurrent layers, a forward that looks at its
numbers, …) goes one example after another through autograd, with the same result.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from tdalib.data import Inputs, Points, of_each
from tdalib.networks import Theta, calls, forward_at, say_slower
from tdalib.samplers import Draw

CHUNK_ROWS = 250  # rows under one vmap: larger is slower, the cache is then too small
COMPARED = 4  # examples in which the two paths are compared
SAFE = 1e-12  # lengths of float32 from this to its inverse have squares that float32 holds
ROUNDING = 1e-3  # share by which products of gradients may differ between the two paths


@dataclass(frozen=True)
class Rows:
    """k gradient rows for each of b examples: one row is `dense` and all outer products a gᵀ, side by side.

    Rows have length 1, and their lengths stand beside them in float64: squares underflow where gradients are small.
    """

    dense: Tensor  # (b, k, P_dense)
    inputs: dict[str, Tensor]  # layer → a, (b, in)
    outputs: dict[str, Tensor]  # layer → g, (b, k, out)
    lengths: Tensor  # (b, k)

    @classmethod
    def of(cls, dense: Tensor, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> "Rows":
        """Rows of length 1 of what has any length, in its place; 0 stays 0."""
        square = _lengths(dense).square()
        for name, g in outputs.items():
            square += (_lengths(inputs[name])[:, None] * _lengths(g)).square()
        lengths = square.sqrt()
        divisor = torch.where(lengths > 0, lengths, 1).to(dense.dtype)[..., None]
        return cls(dense.div_(divisor), inputs, {name: g.div_(divisor) for name, g in outputs.items()}, lengths)


class Gradients:
    """Gradients of ⟨v, f(x_i)⟩ over θ for the outputs f and every cotangent v of example i, block by block.

    Iteration gives pairs (slice of rows, Rows), and notes their lengths. Two blocks, their making and their products
    take about `memory`. A block that holds all examples is made once and kept, else blocks are made anew in every
    iteration.

    Parameters
    ----------
    draw : Draw
    points : Points
    cotangents : Tensor, (n, k, ...)
        k of each point, in the shape of the outputs, of length 1.
    scale : Tensor, (n, k)
        Their lengths.
    memory : float
        GB.

    Attributes
    ----------
    lengths : Tensor, (n · k,), float64
        Of the rows that have been made.
    """

    def __init__(self, draw: Draw, points: Points, cotangents: Tensor, scale: Tensor, memory: float):
        self.draw, self.points, self.cotangents, self.scale = draw, points, cotangents, scale
        self.lengths = torch.zeros(len(self), dtype=torch.float64, device=points.device)
        self.layers, self.make = outer_product_layers(draw, points), self._at_once
        per_example = cotangents.shape[1]
        self.chunk = max(1, min(CHUNK_ROWS, examples_at_once(draw, points, memory)) // per_example)
        if why := self._why_one_by_one():
            self.go_one_by_one()
            say_slower("gradients are taken one example at a time", why)
        dense = sum(p.numel() for p in self.dense.values())
        factors = sum(layer.in_features + layer.out_features for layer in self.layers.values())
        share = memory * 1e9 / 4 / points.dtype.itemsize  # numbers: a block, the next, its parts, the products
        rows = min(share / (dense + factors), (share / 3) ** 0.5)  # of one block with another: three squares
        self.block = max(1, int(rows / per_example))
        self.whole: Rows | None = None

    @property
    def dense(self) -> dict[str, Tensor]:
        """The parameters whose gradients are no outer products."""
        return {name: p for name, p in self.draw.theta.items() if name.rpartition(".")[0] not in self.layers}

    def __len__(self) -> int:
        return self.cotangents.shape[0] * self.cotangents.shape[1]

    def __iter__(self) -> Iterator[tuple[slice, Rows]]:
        k, first = self.cotangents.shape[1], 0
        for points, cotangents in zip(self.points.split(self.block), self.cotangents.split(self.block), strict=True):
            rows = self.whole or self.make(points, cotangents)
            if len(points) == len(self.points):
                self.whole = rows
            at = slice(first, first := first + len(points) * k)
            self.lengths[at] = rows.lengths.flatten() * self.scale.flatten()[at]
            yield at, rows

    def go_one_by_one(self) -> None:
        """Take gradients by autograd, one example after another, from now on; rows that were kept are made anew."""
        self.layers, self.make, self.whole = {}, self._one_by_one, None

    def _why_one_by_one(self) -> Exception | str:
        """Why some examples cannot be done at once; empty where they give what autograd gives."""
        ends = np.unique(np.linspace(0, len(self.points) - 1, COMPARED).astype(int))
        longest = self.scale[ends].argmax(1)  # others may be 0
        pair, cotangents = self.points[ends], self.cotangents[ends, longest][:, None]
        try:
            rows = self._at_once(pair, cotangents)
        except Exception as error:  # a network that vmap cannot serve fails in its own way
            return error
        alone = self._one_by_one(pair, cotangents)
        cosines, lengths = inner(rows, rows) - inner(alone, alone), rows.lengths - alone.lengths
        is_same = (cosines.abs() <= ROUNDING).all() and (lengths.abs() <= ROUNDING * alone.lengths).all()
        return "" if is_same else "under vmap the network gives other ones"

    def _one_by_one(self, points: Points, cotangents: Tensor) -> Rows:
        theta = {name: p.detach().requires_grad_() for name, p in self.draw.theta.items()}
        rows = []
        for point, vectors in zip(points.split(1), cotangents, strict=True):
            outputs = self.draw.outputs(theta, point.inputs)
            rows += [pulled_back(outputs, theta, v[None]) for v in vectors]
        return Rows.of(torch.stack(rows).view(*cotangents.shape[:2], -1), {}, {})  # (b, k, P)

    def _at_once(self, points: Points, cotangents: Tensor) -> Rows:
        draw, layers = self.draw, self.layers

        def one(xi: Inputs, vi: Tensor) -> tuple[Tensor, Theta, Theta]:  # vi (k, ...)
            def forward(dense: Theta, shift: Theta) -> tuple[Tensor, Theta]:
                seen: Theta = {}
                with ExitStack() as hooks:
                    for name, layer in layers.items():
                        hooks.enter_context(layer.register_forward_hook(partial(_tap, name, shift, seen)))
                    one_point = of_each(lambda x: x[None], xi)
                    return forward_at(draw.model, draw.rest | draw.theta | dense, one_point)[0], seen

            shift = {name: vi.new_zeros(layer.out_features) for name, layer in layers.items()}
            _, pull, seen = vjp(forward, self.dense, shift, has_aux=True)  # type: ignore[misc]
            by_dense, by_output = vmap(pull)(vi)
            flat = [g.reshape(len(vi), -1) for g in by_dense.values()]  # (k, size)
            return torch.cat(flat, 1) if flat else vi.new_zeros(len(vi), 0), seen, by_output

        dense, inputs, outputs = vmap(one, chunk_size=self.chunk)(points.inputs, cotangents)
        for name, a in inputs.items():
            if f"{name}.bias" in draw.theta:
                inputs[name] = nn.functional.pad(a, (0, 1), value=1)
        return Rows.of(dense, inputs, outputs)


def pulled_back(outputs: Tensor, theta: Theta, cotangents: Tensor) -> Tensor:
    """Jᵀ v of the outputs for their cotangents v, (P,), by autograd; what was computed for it is kept."""
    by_name = torch.autograd.grad(outputs, [*theta.values()], cotangents, retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in by_name]).detach()  # older versions of torch: zeros that require a gradient


def examples_at_once(draw: Draw, points: Points, memory: float) -> int:
    """How many examples can go forward and back in a quarter of `memory` GB, by the outputs of the network's layers."""
    called = calls(draw.model, dict(draw.model.named_modules()), points[:1].inputs).values()
    numbers = sum(output.numel() for of_layer in called for _, output in of_layer if isinstance(output, Tensor))
    return max(1, int(memory * 1e9 / 4 / (4 * points.dtype.itemsize * numbers)))


def loss_gradients(draw: Draw, points: Points, memory: float) -> Gradients:
    """∇L of every point at the draw: one row each."""
    residuals, lengths = draw.residuals(points)
    return Gradients(draw, points, residuals[:, None], lengths[:, None], memory)


def cosines(left: Gradients, right: Gradients) -> Tensor:
    """Cosines of all rows with all rows, (left, right); those of a row that is 0 are 0."""
    if left.layers.keys() != right.layers.keys():  # as one of the two is served one by one
        left.go_one_by_one()
        right.go_one_by_one()
    found = left.cotangents.new_empty(len(left), len(right))
    for i, a in left:
        for j, b in right:
            found[i, j] = inner(a, b)
    return found


def pairwise(left: Gradients, right: Gradients) -> Tensor:
    """Inner products of all rows with all rows, (left, right), float64."""
    return cosines(left, right).double().mul_(left.lengths[:, None]).mul_(right.lengths)


def inner(left: Rows, right: Rows) -> Tensor:
    """Inner products of rows of length 1, (b·k, b'·k')."""
    shape = (*left.dense.shape[:2], *right.dense.shape[:2])  # (b, k, b', k')
    products = left.dense.flatten(0, 1) @ right.dense.flatten(0, 1).T
    for name, g in left.outputs.items():
        a = left.inputs[name] @ right.inputs[name].T  # (b, b')
        g = g.flatten(0, 1) @ right.outputs[name].flatten(0, 1).T  # (b·k, b'·k')
        products += g.view(shape).mul_(a[:, None, :, None]).view_as(products)
    return products


def _lengths(vectors: Tensor) -> Tensor:
    """Lengths along the last dim, float64: taken in float32 where its squares neither underflow nor overflow."""
    fast = vectors.norm(dim=-1)
    is_safe = (fast > SAFE).logical_and(fast < 1 / SAFE).all()
    return fast.double() if is_safe else vectors.norm(dim=-1, dtype=torch.float64)


def _tap(name: str, shift: dict, seen: dict, _: nn.Module, args: tuple, output: Tensor) -> Tensor:
    """Forward hook: note the layer's input, and add a zero to its output whose gradient is the output's."""
    seen[name] = args[0][0]
    return output + shift[name]


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
