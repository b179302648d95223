"""Objectives: the loss of a point that a network is trained on and that τ is about, with its curvature and unit."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tdalib.options import Registry

IGNORED = -100  # the target of a token that is not to be predicted, as torch has it
SMALLEST = 1e-150  # square root of a probability whose inverse is used: a loss of 690 nats
FLAT = 1e-10  # share of the largest curvature of a point below which a direction has none


@dataclass(frozen=True)
class Objective:
    """A loss of outputs (points, ...) and targets (points, ...).

    Attributes
    ----------
    name : str
    loss : (outputs, targets) → (points,)
        The loss of every point, a function of its own outputs and target alone.
    unit : str
        Of the loss, and so of τ.
    root : (outputs, targets) → (points, k, ...), optional
        Rᵀ: k rows in the shape of the outputs with R Rᵀ = ∂²L/∂outputs². By default from the Hessian by autograd.
    gradient : (outputs, targets) → (points, ...), optional
        ∂L/∂outputs, where autograd would cancel.
    coefficients : (outputs, targets) → (points, k), optional
        c with R c = ∂L/∂outputs, likewise; by default by least squares.
    correct : (outputs, targets) → (points,), bool, optional
        Whether a point is predicted rightly; an objective without it has no accuracy.
    likelihood : {"classification", "regression"}, optional
        What laplace-torch calls −log p = L, if it knows it.
    targets_of : (inputs) → targets, optional
        Of an objective that is about the inputs themselves.
    """

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]
    unit: str = "1"
    root: Callable[[Tensor, Tensor], Tensor] | None = None
    gradient: Callable[[Tensor, Tensor], Tensor] | None = None
    coefficients: Callable[[Tensor, Tensor], Tensor] | None = None
    correct: Callable[[Tensor, Tensor], Tensor] | None = None
    likelihood: Literal["classification", "regression"] | None = None
    targets_of: Callable[[Tensor | dict[str, Tensor]], Tensor] | None = None

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of every point, (points,), float64: in float32 every cross-entropy below 1e-7 would be 0."""
        each = self.loss(outputs.double(), _double(targets))
        if each.shape != (len(outputs),):
            shape, count = tuple(each.shape), len(outputs)
            raise ValueError(f"objective {self.name!r} gave losses of shape {shape} for {count} points; give one each")
        return each

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """∂L/∂outputs, (points, ...), float64."""
        outputs, targets = outputs.detach().double(), _double(targets)
        if self.gradient:
            return self.gradient(outputs, targets)
        outputs.requires_grad_()
        return torch.autograd.grad(self.loss(outputs, targets).sum(), outputs)[0]

    def curved(self, outputs: Tensor, targets: Tensor, along: Tensor) -> Tensor:
        """(∂²L/∂outputs²) v of every point for its v in `along` (points, ...), float64.

        Raises
        ------
        ValueError
            vᵀ (∂²L/∂outputs²) v is negative.
        """
        outputs, targets, along = outputs.detach().double(), _double(targets), along.double()
        _, product = torch.autograd.functional.hvp(lambda f: self.loss(f, targets).sum(), outputs, along)
        squares = (along * product).flatten(1).sum(1)
        v, hv = along.flatten(1).norm(dim=1), product.flatten(1).norm(dim=1)
        self._check_convex(squares < -(FLAT**0.5) * v * hv - FLAT * v**2)  # the last for rounding without curvature
        return product

    def _check_convex(self, negative: Tensor) -> None:
        if negative.any():
            raise ValueError(f"objective {self.name!r} is not convex in the outputs; its curvature has no real root")

    def curvature(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rᵀ (points, k, ...), the coefficients c (points, k), and what of ∂L/∂outputs is not R c (points, ...).

        The last is 0 for the usual losses. It is not where a loss has a slope and no curvature, as Huber's far out.

        Raises
        ------
        ValueError
            The Hessian has a negative eigenvalue.
        """
        residuals = self.residuals(outputs, targets)
        outputs, targets = outputs.detach().double(), _double(targets)
        root = self.root(outputs, targets) if self.root else self._root(outputs, targets)
        rows = root.flatten(2)  # (points, k, C)
        if self.coefficients:
            coefficients = self.coefficients(outputs, targets)
        else:
            coefficients = (torch.linalg.pinv(rows.mT, rtol=FLAT**0.5) @ residuals.flatten(1)[..., None])[..., 0]
        rest = residuals.flatten(1) - (rows.mT @ coefficients[..., None])[..., 0]
        small = FLAT**0.5 * residuals.flatten(1).norm(dim=1, keepdim=True)
        return root, coefficients, rest.where(rest.abs() > small, 0).view_as(residuals)

    def _root(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Rᵀ from the Hessian of every point, (points, C, C), C the number of its outputs."""

        def slope(outputs: Tensor) -> Tensor:  # summed over points, of which none sees another, (C,)
            (each,) = torch.autograd.grad(self.loss(outputs, targets).sum(), outputs, create_graph=True)
            return each.flatten(1).sum(0)

        rows = torch.autograd.functional.jacobian(slope, outputs)  # (C, points, ...)
        values, vectors = torch.linalg.eigh(rows.flatten(2).transpose(0, 1))  # (points, C), (points, C, C)
        largest = values.abs().amax(1, keepdim=True)
        self._check_convex(values < -(FLAT**0.5) * largest)
        root = vectors * values.where(values > FLAT * largest, 0).sqrt()[:, None, :]
        return root.mT.unflatten(2, outputs.shape[1:])


def _double(targets: Tensor) -> Tensor:
    return targets.double() if targets.is_floating_point() else targets


OBJECTIVES = Registry("objective", Objective)
register = OBJECTIVES.register


def get(objective: str | Objective | Callable) -> Objective:
    """The objective called so, or made of a function (outputs, targets) → (points,)."""
    if isinstance(objective, Objective):
        return objective
    if callable(objective):
        name = getattr(objective, "__name__", type(objective).__name__)
        known = OBJECTIVES.get(name)
        return known if known and known.loss is objective else Objective(name, objective)
    return OBJECTIVES.find(objective)


def _cross_entropy_gradient(outputs: Tensor, targets: Tensor) -> Tensor:
    """Give p − e_y; the label's entry is minus the sum of the others: p_y − 1 would cancel where p_y is near 1."""
    label = targets[:, None]
    others = outputs.softmax(1).scatter(1, label, 0)
    return others.scatter(1, label, -others.sum(1, keepdim=True))


def _cross_entropy_root(outputs: Tensor, targets: Tensor) -> Tensor:
    """Rᵀ = diag(√p) − √p pᵀ, as the Hessian is diag(p) − p pᵀ."""
    log_p = outputs.log_softmax(1)
    p, root = log_p.exp(), (log_p / 2).exp()
    return torch.diag_embed(root) - root[:, :, None] * p[:, None, :]


def _cross_entropy_coefficients(outputs: Tensor, targets: Tensor) -> Tensor:
    """√p − e_y / √p_y: R times it is p − e_y, and no large numbers are subtracted.

    Where √p_y is so small that its inverse is no number, the second term is left out.
    """
    root = (outputs.log_softmax(1) / 2).exp()
    of_label = root.gather(1, targets[:, None])
    inverse = torch.where(of_label > SMALLEST, 1 / of_label, 0)
    return root - F.one_hot(targets, outputs.shape[1]) * inverse


@register(
    "cross_entropy",
    unit="nats",
    root=_cross_entropy_root,
    gradient=_cross_entropy_gradient,
    coefficients=_cross_entropy_coefficients,
    correct=lambda outputs, targets: outputs.argmax(1) == targets,
    likelihood="classification",
)
def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """−log p(target), p the softmax of the outputs (points, C); targets (points,) are classes from 0.   (points,)."""
    if outputs.ndim != 2:
        raise ValueError(f"cross_entropy needs outputs (points, classes); the model's are {tuple(outputs.shape)}")
    return F.cross_entropy(outputs, targets, reduction="none")


@register("squared_error", unit="target²", likelihood="regression")
def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ ‖f − y‖², summed over the outputs of a point: −log p of unit noise, up to a constant.   (points,)."""
    if outputs.shape != targets.shape:
        raise ValueError(f"outputs of shape {tuple(outputs.shape[1:])} do not fit targets {tuple(targets.shape[1:])}")
    return (outputs - targets).square().flatten(1).sum(1) / 2


def token_ids(who: str, inputs: Tensor | dict[str, Tensor]) -> Tensor:
    """The token ids of the inputs, (points, T), for one who needs them.

    Raises
    ------
    ValueError
        There are none.
    """
    ids = inputs.get("input_ids", torch.empty(0)) if isinstance(inputs, dict) else inputs
    if ids.ndim != 2 or ids.is_floating_point():
        raise ValueError(f"{who} needs token ids, whole numbers (points, T), as inputs or input_ids")
    return ids


def _next_tokens(inputs: Tensor | dict[str, Tensor]) -> Tensor:
    """The token after each one of a passage, (points, T); IGNORED where there is none, or padding."""
    ids = token_ids("objective 'next_token'", inputs)
    mask = inputs.get("attention_mask", torch.ones_like(ids)) if isinstance(inputs, dict) else torch.ones_like(ids)
    following = ids[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORED)
    return F.pad(following, (0, 1), value=IGNORED)


def _next_token_gradient(outputs: Tensor, targets: Tensor) -> Tensor:
    """(p − e_y) / count of every token that counts."""
    counted = (targets != IGNORED).to(outputs)
    each = _cross_entropy_gradient(outputs.flatten(0, 1), targets.clamp(min=0).flatten()).view_as(outputs)
    return each * (counted / counted.sum(1, keepdim=True).clamp(min=1))[:, :, None]


@register("next_token", unit="nats", gradient=_next_token_gradient, targets_of=_next_tokens)
def next_token(outputs: Tensor, targets: Tensor) -> Tensor:
    """−log p(next token), the mean over a passage; outputs (points, T, vocabulary), targets (points, T).   (points,).

    A target of −100 does not count; a passage in which none counts has loss 0.

    Raises
    ------
    ValueError
        The outputs have another shape.
    """
    if outputs.shape[:-1] != targets.shape:
        raise ValueError(f"next_token needs outputs (points, T, vocabulary); the model's are {tuple(outputs.shape)}")
    each = F.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    return each.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)
