"""LOO: leave-one-out retraining, the ground truth."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from tdalib.attributors.methods import register
from tdalib.samplers.posterior import Draw, Posterior
from tdalib.training import batch_order, losses, train


@register("loo", unit="nats", retrains=True)
def leave_one_out(
    posterior: Posterior,
    member: int,
    points: Sequence[int | None],
    *,
    protocol: Literal["retrain", "continue"] = "retrain",
) -> Tensor:
    """LOO: τ(z_j, z) = L(z; θ\\j) − L(z; θ); this gives the first term.   (checkpoint, points, test), nats.

    Positive τ: without z_j the loss at z is higher, so z_j helps. For a point None nothing is left out.

    Parameters
    ----------
    protocol : {"retrain", "continue"}
        "retrain": the sampler runs the member again with the weight of z_j set to 0 and every random number as it
        was (common random numbers); one retraining serves all checkpoints. "continue": the released research code's
        protocol, which trains on from each finished checkpoint for the recipe's epochs without z_j, its schedule from
        the start, so that drift of the longer training is mixed in, at the price of one training per checkpoint.

    Source: Nguyen et al. 2023, arXiv:2305.19765, equation 1.
    """
    task = posterior.task
    if protocol == "retrain":
        runs = posterior.draws_without(member, points)
    elif protocol == "continue":
        if posterior.kind != "epochs":
            raise ValueError(
                f"loo: protocol 'continue' trains on from the epochs of a training, which sampler "
                f"{posterior.sampler!r} does not draw; choose retrain"
            )
        runs = zip(*(_continued(draw, posterior, points) for draw in posterior.draws(member)), strict=True)
    else:
        raise ValueError(f"protocol {protocol!r} is not known; choose from retrain, continue")
    without = [
        torch.stack([losses(d.model, d.theta, task.x_test, task.y_test) for d in draws]) for draws in runs
    ]  # a run's draws are let go before the next
    return torch.stack(without, dim=1)


def _continued(draw: Draw, posterior: Posterior, points: Sequence[int | None]) -> Iterator[Draw]:
    task = posterior.task
    model = posterior.model(task, draw.init_seed)
    model.load_state_dict(draw.theta, strict=False)
    batches = batch_order(len(task.x_train), draw.recipe, draw.batch_seed)
    left_out = [j for j in points if j is not None]
    runs = train(model, task.x_train, task.y_train, draw.recipe, batches, seed=draw.batch_seed, without=left_out)
    for j in points:
        yield draw if j is None else replace(draw, theta=next(runs)[0], model=model)
