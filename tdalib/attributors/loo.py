"""LOO: leave-one-out retraining, the ground truth."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from tdalib.attributors.methods import register
from tdalib.samplers import Draw, Posterior
from tdalib.training import Training, known, train

Protocol = Literal["retrain", "continue", "further"]


@register("loo", unit="{loss}", scope="retrain", sets="own")
def leave_one_out(
    posterior: Posterior, member: int, weights: Tensor, *, protocol: Protocol = "retrain"
) -> Tensor | tuple[Tensor, Tensor]:
    r"""LOO: τ(z_j, z) = L(z; θ\j) − L(z; θ); this gives the first term.   (draw, removal, test), loss.

    Positive τ: without z_j the loss at z is higher, so z_j helps. A removal is a row of `weights` (removal, point), 0
    at the points that are left out. Where θ is not the draw itself, the second term is given too, (draw, 1, test).

    Parameters
    ----------
    protocol : {"retrain", "continue", "further"}
        "retrain": the sampler runs the member again with the weight of z_j set to 0 and every random number as it
        was (common random numbers); one retraining serves all draws. "continue": the released research code's
        protocol, which trains on from each finished checkpoint for the recipe's epochs without z_j, its schedule from
        the start, so that drift of the longer training is mixed in, at the price of one training per checkpoint.
        "further": the same, compared with θ trained on as long with all the data, the control that "continue" lacks.

    Raises
    ------
    ValueError
        A protocol that trains on, where draws are no epochs of a training.

    Source: Nguyen et al. 2023, arXiv:2305.19765, equation 1.
    """
    with_control = protocol == "further" or (protocol == "retrain" and posterior.stacked > 1)
    if with_control:  # in a stack too: θ and θ\j then differ by the point alone, not by rounding
        weights = torch.cat([torch.ones_like(weights[:1]), weights])
    if protocol == "retrain":
        trained: Iterable[Sequence[Draw]] = posterior.draws_under(member, weights)
    elif posterior.kind != "epochs":
        raise ValueError(f"loo: {protocol!r} trains on from epochs; {posterior.sampler!r} draws none; choose retrain")
    else:
        trained = zip(*(_continued(draw, posterior, weights) for draw in posterior.draws(member)), strict=True)
    # the draws of a removal are let go before the next
    of_each = [torch.stack([draw.losses(posterior.task.test) for draw in draws]) for draws in trained]
    losses = torch.stack(of_each, dim=1)
    return (losses[:, 1:], losses[:, :1]) if with_control else losses


def _continued(draw: Draw, posterior: Posterior, weights: Tensor) -> Iterator[Draw]:
    training = Training(draw.module(), posterior.task, known(posterior.recipe), draw.batch_seed, posterior.renormalise)
    for (state,) in train(training, weights):
        yield replace(draw, theta=state.theta, rest=state.rest, model=training.network)
