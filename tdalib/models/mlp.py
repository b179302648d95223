"""Networks of linear layers: logistic regression, and an MLP of any depth and width."""

from torch import Tensor, nn

from tdalib.data import Task
from tdalib.models.registry import register


@register("logreg")
def logreg(task: Task, seed: int) -> nn.Module:
    """Multinomial logistic regression: convex, so that attribution has exact answers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(task.x_train[0].numel(), len(task.classes)))


@register("mlp")
def mlp(task: Task, seed: int, *, depth: int = 2, width: int = 128, skip: bool = False) -> nn.Module:
    """Multi-layer perceptron: `depth` hidden layers of `width` with GELU, for studies of the architecture.

    Parameters
    ----------
    depth, width : int
        Hidden layers, at least 1, and units of each.
    skip : bool
        Add to every hidden layer but the first what comes in: residual connections.
    """
    for key, value in (("depth", depth), ("width", width)):
        if value < 1:
            raise ValueError(f"mlp: {key} {value} is not possible; it must be at least 1")
    layers = [nn.Flatten(), nn.Linear(task.x_train[0].numel(), width), nn.GELU()]
    for _ in range(depth - 1):
        hidden = nn.Sequential(nn.Linear(width, width), nn.GELU())
        layers.append(Residual(hidden) if skip else hidden)
    return nn.Sequential(*layers, nn.Linear(width, len(task.classes)))


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, function: nn.Module):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return x + self.function(x)
