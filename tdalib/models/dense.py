"""Networks of linear layers: logistic regression, and an MLP of any depth and width."""

from copy import deepcopy

from torch import Tensor, nn

from tdalib.data import Task
from tdalib.models.network_functions import register
from tdalib.options import Count, Fraction


@register("logreg")
def logreg(task: Task, seed: int) -> nn.Module:
    """Multinomial logistic regression, or linear regression of floats: convex, so attribution has exact answers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(_features("logreg", task), task.outputs))


@register("mlp")
def mlp(
    task: Task, seed: int, *, depth: Count = 2, width: Count = 128, skip: bool = False, dropout: Fraction = 0.0
) -> nn.Module:
    """Multi-layer perceptron: `depth` hidden layers of `width` with GELU, for studies of the architecture.

    Parameters
    ----------
    depth, width : int
        Hidden layers, at least 1, and units of each.
    skip : bool
        Add to every hidden layer but the first what comes in: residual connections.
    dropout : float
        Share of every hidden layer's outputs that training drops, below 1.
    """
    drop = [nn.Dropout(dropout)] if dropout else []
    layers = [nn.Flatten(), nn.Linear(_features("mlp", task), width), nn.GELU(), *drop]
    for _ in range(depth - 1):
        block = Residual if skip else nn.Sequential
        layers.append(block(nn.Linear(width, width), nn.GELU(), *deepcopy(drop)))
    return nn.Sequential(*layers, nn.Linear(width, task.outputs))


def _features(name: str, task: Task) -> int:
    """Numbers of a point."""
    if isinstance(task.x_train, dict) or not task.x_train.is_floating_point():
        raise ValueError(f"{name} needs points that are floats; the task has a dict or integers")
    return task.x_train[0].numel()


class Residual(nn.Sequential):
    """x + f(x), f the layers in turn."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, width) to the same shape."""
        return x + super().forward(x)
