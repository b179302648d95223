"""Influence functions."""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.func import functional_call, jvp, vjp

from tdalib.attributors.gradients import gram, loss_rows, residuals, rows
from tdalib.attributors.methods import register
from tdalib.data import Task
from tdalib.samplers.posterior import Draw
from tdalib.training import Theta, logits


@register("if", unit="nats")
def influence(draw: Draw, task: Task, *, solver: Literal["ggn", "cg"] = "ggn", damping: float | None = None) -> Tensor:
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

    Source: Koh and Liang 2017, arXiv:1703.04730, equation 2; Martens 2020, arXiv:1412.1193, for the Gauss–Newton form.
    """
    damping = draw.recipe.weight_decay if damping is None else damping
    if not 0 < damping < float("inf"):
        raise ValueError(f"if: damping {damping} is not possible; H + λI needs λ > 0 (weight_decay, or damping itself)")
    if solver not in _SOLVERS:
        raise ValueError(f"if: solver {solver!r} is not known; choose from {', '.join(_SOLVERS)}")
    return _SOLVERS[solver](draw, task, damping)


def _ggn(draw: Draw, task: Task, damping: float) -> Tensor:
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
    jacobian = rows(draw, task.x_train, factor.to(task.x_train.dtype))
    kernel = gram(jacobian, jacobian).double()  # (n·C, n·C)
    kernel.diagonal().add_(damping)
    coefficients = root - F.one_hot(task.y_train, p.shape[1]) / root  # (n, C)
    span = n**0.5 * torch.block_diag(*coefficients[:, :, None])  # (n·C, n)
    test = gram(loss_rows(draw, task.x_test, task.y_test), jacobian).double()  # (test, n·C)
    tau = test @ torch.linalg.solve(kernel, span) / n  # (test, train)
    return tau.T.to(task.x_train.dtype)


def _cg(draw: Draw, task: Task, damping: float) -> Tensor:
    n, dtype = len(task.x_train), task.x_train.dtype
    residual = residuals(draw, task.x_train, task.y_train)  # (n, C)

    def train_logits(theta):
        return functional_call(draw.model, theta, (task.x_train,))

    def test_losses(theta):
        return F.cross_entropy(functional_call(draw.model, theta, (task.x_test,)), task.y_test, reduction="none")

    f, pull = vjp(train_logits, draw.theta)
    p = f.softmax(1)

    def vector(cotangent: Tensor) -> np.ndarray:  # (n, C) → (P,)
        return torch.cat([g.flatten() for g in pull(cotangent)[0].values()]).numpy()

    def product(v: np.ndarray) -> np.ndarray:  # (H + λI) v
        _, jv = jvp(train_logits, (draw.theta,), (_unflatten(v, draw.theta, dtype),))  # (n, C)
        return vector(p * (jv - (p * jv).sum(1, keepdim=True)) / n) + damping * v

    tau = []
    for j in range(n):
        gradient = vector(residual * (torch.arange(n) == j)[:, None])  # ∇L(z_j)
        operator = LinearOperator((len(gradient),) * 2, matvec=product, dtype=gradient.dtype)
        solution = _unflatten(_solve(operator, gradient), draw.theta, dtype)
        tau.append(jvp(test_losses, (draw.theta,), (solution,))[1] / n)  # ∇L(z)ᵀ solution for all z at once
    return torch.stack(tau)


def _solve(operator: LinearOperator, gradient: np.ndarray) -> np.ndarray:
    solution, failed = cg(operator, gradient, rtol=1e-6, maxiter=1000)
    if failed:
        raise RuntimeError("if: conjugate gradients did not converge in 1000 steps; a larger damping helps")
    return solution


def _unflatten(vector: np.ndarray, theta: Theta, dtype: torch.dtype) -> Theta:
    parts = torch.as_tensor(vector, dtype=dtype).split([value.numel() for value in theta.values()])
    return {name: part.view_as(value) for part, (name, value) in zip(parts, theta.items(), strict=True)}


_SOLVERS = {"ggn": _ggn, "cg": _cg}
