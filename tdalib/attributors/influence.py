"""Influence functions."""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.func import functional_call, jvp, vjp

from tdalib.attributors.gradients import (
    Gradients,
    examples_at_once,
    inner,
    loss_gradients,
    pairwise,
    residuals,
)
from tdalib.attributors.methods import register
from tdalib.data import Task
from tdalib.samplers.posterior import Draw
from tdalib.training import Theta, logits


@register("if", unit="nats")
def influence(
    draw: Draw,
    task: Task,
    *,
    solver: Literal["ggn", "cg"] = "ggn",
    damping: float | None = None,
    memory: float = 1.0,
) -> Tensor:
    """Influence function: τ(z_j, z) = (1/n) ∇L(z)ᵀ (H + λI)⁻¹ ∇L(z_j).   (train, test), nats.

    H is the generalised Gauss–Newton matrix of the mean cross-entropy, the positive semi-definite part of the Hessian
    and all of it for models linear in θ. Positive: removing z_j raises the loss at z.

    Parameters
    ----------
    solver : {"ggn", "cg"}
        "ggn" is exact, through a kernel of n·C rows and columns. "cg" solves for one train point after another by
        conjugate gradients to a relative residual of 1e-6: slower, for n·C too large for the kernel.
    damping : float, optional
        λ > 0; by default the recipe's weight decay, the diagonal that the L2 term adds to the Hessian.
    memory : float
        GB that gradients take at a time. The kernel of "ggn" comes on top: 24 (n·C)² bytes.

    Source: Koh and Liang 2017, arXiv:1703.04730, equation 2; Martens 2020, arXiv:1412.1193, for the Gauss–Newton form.
    """
    damping = draw.recipe.weight_decay if damping is None else damping
    if not 0 < damping < float("inf"):
        raise ValueError(f"if: damping {damping} is not possible; H + λI needs λ > 0 (weight_decay, or damping itself)")
    if solver not in _SOLVERS:
        raise ValueError(f"if: solver {solver!r} is not known; choose from {', '.join(_SOLVERS)}")
    return _SOLVERS[solver](draw, task, damping, memory)


def _ggn(draw: Draw, task: Task, damping: float, memory: float) -> Tensor:
    """Exact, in the span of the train logits' gradients.

    With p the probabilities at z_i and R = diag(√p) − p √pᵀ, the logits' Hessian is diag(p) − p pᵀ = R Rᵀ. So
    H = J̃ᵀJ̃ for the stacked blocks J̃_i = Rᵀ J_i / √n, (n·C, P). The gradient of z_j lies in their span,
    ∇L(z_j) = J̃ᵀ c with c = √n (√p − e_y / √p_y) in block j, and
    (J̃ᵀJ̃ + λI)⁻¹ J̃ᵀ = J̃ᵀ (J̃J̃ᵀ + λI)⁻¹: no P × P matrix, and no difference of large numbers.
    """
    n = len(task.x_train)
    log_p = logits(draw.model, draw.theta, task.x_train).double().log_softmax(1)  # (n, C)
    p, root = log_p.exp(), (log_p / 2).exp()
    factor = (torch.diag_embed(root) - root[:, :, None] * p[:, None, :]) / n**0.5  # Rᵀ / √n, (n, C, C)
    jacobian = Gradients(draw, task.x_train, factor.to(task.x_train.dtype), memory)
    kernel = pairwise(inner, jacobian, jacobian).double()  # (n·C, n·C)
    kernel.diagonal().add_(damping)
    coefficients = root - F.one_hot(task.y_train, p.shape[1]) / root  # (n, C)
    span = n**0.5 * torch.block_diag(*coefficients[:, :, None])  # (n·C, n)
    solution = torch.linalg.solve(kernel, span) / n  # (n·C, n)
    test = loss_gradients(draw, task.x_test, task.y_test, memory)
    tau = task.x_train.new_empty(n, len(test))
    for part, gradients in test:
        products = torch.cat([inner(block, gradients) for _, block in jacobian])  # (n·C, part)
        tau[:, part] = (solution.T @ products.double()).to(tau.dtype)
    return tau


def _cg(draw: Draw, task: Task, damping: float, memory: float) -> Tensor:
    n = len(task.x_train)
    residual = residuals(draw, task.x_train, task.y_train)  # (n, C)
    p = logits(draw.model, draw.theta, task.x_train).softmax(1)
    at_once = examples_at_once(draw, task.x_train, memory)
    train, test = (range(count) for count in (n, len(task.x_test)))

    def outputs(part: slice):
        return lambda theta: functional_call(draw.model, theta, (task.x_train[part],))

    def test_losses(part: slice):
        x, y = task.x_test[part], task.y_test[part]
        return lambda theta: F.cross_entropy(functional_call(draw.model, theta, (x,)), y, reduction="none")

    def gradient(part: slice, cotangent: Tensor) -> np.ndarray:  # (part, C) → (P,)
        (by_name,) = vjp(outputs(part), draw.theta)[1](cotangent)
        return torch.cat([g.flatten() for g in by_name.values()]).cpu().numpy()

    def product(v: np.ndarray) -> np.ndarray:  # (H + λI) v
        tangent, total = _unflatten(v, draw.theta), damping * v
        for part in _slices(train, at_once):
            _, jv = jvp(outputs(part), (draw.theta,), (tangent,))  # (part, C)
            total += gradient(part, p[part] * (jv - (p[part] * jv).sum(1, keepdim=True)) / n)
        return total

    tau = task.x_train.new_empty(n, len(test))
    for j in train:
        right = gradient(slice(j, j + 1), residual[j : j + 1])  # ∇L(z_j)
        operator = LinearOperator((len(right),) * 2, matvec=product, dtype=right.dtype)
        solution = _unflatten(_solve(operator, right), draw.theta)
        for part in _slices(test, at_once):
            tau[j, part] = jvp(test_losses(part), (draw.theta,), (solution,))[1] / n  # ∇L(z)ᵀ solution
    return tau


def _slices(points: range, size: int) -> list[slice]:
    return [slice(first, first + size) for first in points[::size]]


def _solve(operator: LinearOperator, gradient: np.ndarray) -> np.ndarray:
    solution, failed = cg(operator, gradient, rtol=1e-6, maxiter=1000)
    if failed:
        raise RuntimeError("if: conjugate gradients did not converge in 1000 steps; a larger damping helps")
    return solution


def _unflatten(vector: np.ndarray, theta: Theta) -> Theta:
    parts = torch.as_tensor(vector).split([value.numel() for value in theta.values()])
    return {name: part.view_as(value).to(value) for part, (name, value) in zip(parts, theta.items(), strict=True)}


_SOLVERS = {"ggn": _ggn, "cg": _cg}
