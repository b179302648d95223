"""Networks of linear layers: logistic regression, and an MLP of any depth and width."""

from copy import deepcopy

from torch import Tensor, nn

from tdalib.data import Task
from tdalib.models.registry import register


@register("logreg")
def logreg(task: Task, seed: int) -> nn.Module:
    """Multinomial logistic regression: convex, so that attribution has exact answers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(task.x_train[0].numel(), len(task.classes)))


@register("mlp")
def mlp(
    task: Task, seed: int, *, depth: int = 2, width: int = 128, skip: bool = False, dropout: float = 0.0
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
    for key, value in (("depth", depth), ("width", width)):
        if value < 1:
            raise ValueError(f"mlp: {key} {value} is not possible; it must be at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"mlp: dropout {dropout} is not possible; it must be from 0 to below 1")
    drop = [nn.Dropout(dropout)] if dropout else []
    layers = [nn.Flatten(), nn.Linear(task.x_train[0].numel(), width), nn.GELU(), *drop]
    for _ in range(depth - 1):
        hidden = nn.Sequential(nn.Linear(width, width), nn.GELU(), *deepcopy(drop))
        layers.append(Residual(hidden) if skip else hidden)
    return nn.Sequential(*layers, nn.Linear(width, len(task.classes)))


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, function: nn.Module):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return x + self.function(x)
