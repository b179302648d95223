"""Training of a stack: many networks that differ in the point left out, as one batched computation on a GPU."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.func import functional_call, vmap

from tdalib.training import Recipe, Theta, flatten, masks_from, point_losses, set_rate, to_training, trainable, weights


def train_stack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    batches: list[list[Tensor]],
    *,
    seed: int,
    without: Sequence[int | None] = (None,),
    keep: int = 1,
) -> Iterator[list[Theta]]:
    """What `training.train` gives, to float tolerance, with all runs trained at once; `model` keeps its weights.

    Every parameter gets a leading dimension, one entry a run, and `torch.func.vmap` maps one run's loss over it; the
    frozen rest is shared. The runs see the same batches and dropout masks, each with its own weights of the points.
    """
    stacked = {
        name: p.detach().repeat(len(without), *(1 for _ in p.shape)).requires_grad_()
        for name, p in trainable(model).items()
    }  # name → (runs, ...)
    weight = weights(without, x)  # (runs, points)
    optimizer = recipe.optimizer(stacked.values())
    flat, kept_after = flatten(batches, keep)

    def loss(theta, weight, x, y):  # of one run
        return (weight * point_losses(functional_call(model, theta, (x,)), y)).mean()

    each = vmap(loss, in_dims=(0, 0, None, None), randomness="same")
    kept = []
    to_training(model)
    for step, batch in enumerate(flat):
        batch = batch.to(x.device)
        set_rate(optimizer, recipe.rate(step, len(flat)))
        with masks_from(seed + step, x):
            optimizer.zero_grad()
            each(stacked, weight[:, batch], x[batch], y[batch]).sum().backward()
            optimizer.step()
        if step in kept_after:
            kept.append({name: p.detach().clone() for name, p in stacked.items()})
    model.eval()
    for run in range(len(without)):
        yield [{name: p[run] for name, p in theta.items()} for theta in kept]
