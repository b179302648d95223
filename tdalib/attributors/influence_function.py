"""Influence functions."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from tdalib.attributors.gradients import Gradients, examples_at_once, loss_gradients, pairwise, pulled_back
from tdalib.attributors.methods import asked_about, register, summed
from tdalib.data import Points, Task
from tdalib.networks import Theta, direction, say_slower
from tdalib.options import Positive
from tdalib.samplers import Draw

MOST = 50_000  # rows of a kernel: it takes 60 GB


@register("if", unit="{loss}", sets="own")
def influence(
    draw: Draw,
    task: Task,
    removed: Sequence | None = None,
    *,
    solver: Literal["ggn", "cg"] = "ggn",
    damping: Positive | None = None,
    memory: Positive = 1.0,
) -> Tensor:
    """Influence function: τ(z_j, z) = (1/n) ∇L(z)ᵀ (H + λI)⁻¹ ∇L(z_j).   (train, test), loss.

    H is the generalised Gauss–Newton matrix of the mean loss, the positive semi-definite part of the Hessian and all of
    it for models linear in θ. Positive: removing z_j raises the loss at z. Of a set it is the sum over its points.

    Parameters
    ----------
    solver : {"ggn", "cg"}
        "ggn" is exact, through a kernel of n·k rows and columns, k the rank of a point's curvature in the outputs.
        "cg" solves for one train point after another by conjugate gradients to a relative residual of 1e-6: slower, for
        n·k too large for the kernel.
    damping : float, optional
        λ > 0; by default the recipe's weight decay, the diagonal that the L2 term adds to the Hessian (adamw has no
        such term).
    memory : float
        GB that gradients take at a time. The kernel of "ggn" comes on top: 24 (n·k)² bytes, and 12 n·k·m for m test
        points.

    Raises
    ------
    ValueError
        No damping above 0, a kernel of too many rows, or an objective that is not convex in the outputs.

    Source: Koh and Liang 2017, arXiv:1703.04730, equation 2; Martens 2020, arXiv:1412.1193, for the Gauss–Newton form.
    """
    if damping is None:
        if draw.recipe is None:
            raise ValueError("if: the recipe, whose weight_decay damps, is not known; give damping")
        damping = draw.recipe.l2("if: without damping it")
    if not damping > 0:
        raise ValueError(f"if: damping {damping} is not possible; H + λI needs λ > 0 (weight_decay, or damping itself)")
    asked = asked_about(removed, len(task.train))
    return summed(_SOLVERS[solver](draw, task, asked, damping, memory), removed, asked)


def _ggn(draw: Draw, task: Task, asked: np.ndarray, damping: float, memory: float) -> Tensor:
    """Exact, in the span of the train outputs' gradients.

    The Hessian of L(z_i) in the outputs is R Rᵀ, so H = J̃ᵀJ̃ for the stacked blocks J̃_i = Rᵀ J_i / √n, (n·k, P). Where
    ∂L/∂outputs = R c, the gradient of z_j lies in their span, ∇L(z_j) = J̃ᵀ s with s = √n c in block j, and
    (J̃ᵀJ̃ + λI)⁻¹ J̃ᵀ = J̃ᵀ (J̃J̃ᵀ + λI)⁻¹: no P × P matrix, and no difference of large numbers. What lies beside the span,
    u, is solved by (H + λI)⁻¹ u = (u − J̃ᵀ (J̃J̃ᵀ + λI)⁻¹ J̃ u) / λ.

    Raises
    ------
    ValueError
        The kernel has too many rows.
    """
    n, train = len(task.train), task.train
    if (rows := n * draw.all_outputs(train[:1]).numel()) > MOST:
        raise ValueError(f"if: the kernel of solver 'ggn' has {rows:,} rows, above {MOST:,}; choose solver cg")
    root, coefficients, beside = task.objective.curvature(draw.all_outputs(train), train.targets)
    jacobian = Gradients(draw, train, *direction(root / n**0.5, 2, train.dtype), memory)
    kernel = pairwise(jacobian, jacobian)  # (n·k, n·k)
    kernel.diagonal().add_(damping)
    coupling = torch.block_diag(*(n**0.5 * coefficients)[:, :, None])[:, asked]  # s of each z_j, (n·k, asked)
    if beside.any():
        outside = Gradients(draw, train[asked], *direction(beside[asked][:, None], 2, train.dtype), memory)
        coupling = coupling - pairwise(jacobian, outside) / damping
    test = loss_gradients(draw, task.test, memory)
    tau = torch.linalg.solve(kernel, coupling).T @ pairwise(jacobian, test) / n
    if beside.any():
        tau += pairwise(outside, test) / (damping * n)
    return tau.to(train.dtype)


def _cg(draw: Draw, task: Task, asked: np.ndarray, damping: float, memory: float) -> Tensor:
    n, train = len(task.train), task.train
    (residual, scale), (residual_of_test, scale_of_test) = draw.residuals(train), draw.residuals(task.test)
    outputs = draw.all_outputs(train)
    at_once, push = examples_at_once(draw, train, memory), _push(draw, train[:1])

    def along(points: Points, direction: Theta) -> Tensor:  # J direction, (points, ...)
        return torch.cat([_moved(push, draw, part, direction) for part in points.split(at_once)])

    theta = {name: p.detach().requires_grad_() for name, p in draw.theta.items()}

    def back(points: Points, cotangents: Tensor) -> np.ndarray:  # Jᵀ cotangents, (P,)
        total: Any = 0
        for part, cotangent in zip(points.split(at_once), cotangents.split(at_once), strict=True):
            total = total + pulled_back(draw.outputs(theta, part.inputs), theta, cotangent)
        return total.cpu().numpy()

    def product(v: np.ndarray) -> np.ndarray:  # (H + λI) v
        moved = along(train, _unflatten(v, draw.theta))
        curved = task.objective.curved(outputs, train.targets, moved)  # R Rᵀ J v, (n, ...)
        return damping * v + back(train, curved.to(moved.dtype) / n)

    tau = scale.new_empty(len(asked), len(task.test))
    for k, j in enumerate(asked):
        gradient = back(train[j : j + 1], residual[j : j + 1])  # ∇L(z_j) / scale[j]
        operator = LinearOperator((len(gradient),) * 2, matvec=product, dtype=gradient.dtype)
        solution, failed = cg(operator, gradient, rtol=1e-6, maxiter=1000)
        if failed:
            raise RuntimeError("if: conjugate gradients did not converge in 1000 steps; a larger damping helps")
        moved = along(task.test, _unflatten(solution, draw.theta))
        along_test = (residual_of_test * moved).flatten(1).sum(1)  # ∇L(z)ᵀ solution / (scale[j] scale_of_test)
        tau[k] = along_test.double() * scale[j] * scale_of_test / n
    return tau.to(train.dtype)


def _push(draw: Draw, points: Points) -> Callable:
    """The function that gives J v: forward through the network where that can be done, else backward twice."""
    try:
        _moved(jvp, draw, points, draw.theta)
    except Exception as error:  # a network that forward mode cannot serve fails in its own way
        say_slower("if: directions go through the network backward twice", error)
        return torch.autograd.functional.jvp
    return jvp


def _moved(push: Callable, draw: Draw, points: Points, direction: Theta) -> Tensor:
    """J v of the outputs for a direction v of θ, (points, ...)."""

    def outputs(*values: Tensor) -> Tensor:
        return draw.outputs(dict(zip(direction, values, strict=True)), points.inputs)

    theta = tuple(draw.theta[name] for name in direction)
    with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have no second derivative
        return push(outputs, theta, tuple(direction.values()))[1]


def _unflatten(vector: np.ndarray, theta: Theta) -> Theta:
    parts = torch.as_tensor(vector).split([value.numel() for value in theta.values()])
    return {name: part.view_as(value).to(value) for part, (name, value) in zip(parts, theta.items(), strict=True)}


_SOLVERS = {"ggn": _ggn, "cg": _cg}
