"""Training of a stack: many networks that differ in the points' weights, as one batched computation on a GPU."""

from collections.abc import Iterator

from torch import Tensor
from torch.func import vmap

from tdalib.data import chosen
from tdalib.networks import State, forward_at, state_of, to_training, trainable
from tdalib.training.one_by_one import Training, set_rate


def train_stack(training: Training, weights: Tensor | None = None, keep: int = 1) -> Iterator[list[State]]:
    """What `train` gives, to float tolerance, with all removals trained at once; the network keeps its parameters.

    Every parameter gets a leading dimension, one entry a removal, and `torch.func.vmap` maps one removal's loss over
    it; the rest is shared. All see the same batches and dropout masks, each with its own weights of the points.
    """
    network, points, objective = training.network, training.task.train, training.task.objective
    weights = training.weights(weights)
    stacked = {
        name: p.detach().repeat(len(weights), *(1 for _ in p.shape)).requires_grad_()
        for name, p in trainable(network).items()
    }  # name → (removal, ...)
    optimizer, steps, ends = training.recipe.start(stacked.values()), training.steps, training.ends[-keep:]

    def loss(theta, weight, inputs, targets):  # of one removal
        return training.batch_loss(objective.loss(forward_at(network, theta, inputs), targets), weight)

    each = vmap(loss, in_dims=(0, 0, None, None), randomness="same")
    kept = []
    to_training(network)
    for step, batch in enumerate(steps):
        batch = batch.to(points.device)
        set_rate(optimizer, training.recipe.rate(step, len(steps)))
        with training.masks(step):
            optimizer.zero_grad()
            each(stacked, weights[:, batch], chosen(points.inputs, batch), points.targets[batch]).sum().backward()
            optimizer.step()
        if step + 1 in ends:
            theta = {name: p.detach().clone() for name, p in stacked.items()}
            kept.append(State(theta, state_of(network).rest))
    network.eval()
    for removal in range(len(weights)):
        yield [State({name: p[removal] for name, p in state.theta.items()}, state.rest) for state in kept]
