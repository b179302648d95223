"""What a network gives on a few points: the same each time and everywhere, and for a point whatever is beside it.

A network that fails here would give wrong numbers later, so it is refused. Its weights are shaken first: a last layer
that starts at 0 would hide the others.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tdalib.data import PACKAGE, Inputs, Task, chosen
from tdalib.networks import State, fingerprint, forward, seeded, set_state, state_of, to_training
from tdalib.objectives import Objective
from tdalib.options import one_line

FEW = 10  # points that are seen at once
ROUNDING = 1e-3  # share of the largest number by which numbers may differ: float32 in another order of sums
SAME_SHAPE = 1e-3  # of that, where sums are in the same order
EPSILON = 1e-6  # share of a number itself: the rounding of float32, where many hardly vary
SHAKEN = 0.05  # standard deviation, of what is 0 and relative to what is not
MOST = 100  # numbers of a point that are noted

Behaviour = dict[str, np.ndarray]


def check_network(build: Callable[[Task, int], nn.Module], task: Task, seed: int) -> Behaviour:
    """What a network gives on a few points, in use and in training, if it is one that can be attributed with.

    Raises
    ------
    ValueError
        Built twice it is not the same; a point sees those beside it; something that is neither parameter nor buffer is
        kept from one pass to the next; or it fails on the points.
    """
    some, others, targets = _few(task)
    network, again = _shaken(build(task, seed)), _shaken(build(task, seed))
    start = state_of(network)
    given = _in_use(network, some)
    _check_outputs(given, task, len(targets))
    if not _equal(given, _in_use(network, some)):
        raise ValueError("the model gives other outputs at each call, in eval mode too; only training may be random")
    in_training, rest = _in_training(network, some, start), state_of(network).rest
    starts = {fingerprint(state.theta | state.rest) for state in (start, state_of(again))}
    if len(starts) > 1 or not _equal(in_training, _in_training(again, some, start)):
        rule = "it must take its random numbers from torch, numpy or random, and depend on the task and the seed alone"
        raise ValueError(f"the model built twice from seed {seed} is not the same; {rule}")
    _in_training(network, others, start)
    if changed := [name for name, value in state_of(network).rest.items() if not _equal(value, rest[name])]:
        remedy = "where one that is left out would still act; give that layer fixed statistics"
        raise ValueError(f"in training the model keeps something of the points in {changed[0]!r}, {remedy}")
    set_state(network, start)
    seen_others = _shaken(build(task, seed))
    beside_others = _in_use(seen_others, others)
    kept = [_in_use(network, some), _in_use(seen_others, some)]
    if not (all(_equal(given, after) for after in kept) and _equal(in_training, _in_training(network, some, start))):
        raise ValueError("the model keeps something from one pass to the next that is neither parameter nor buffer")
    set_state(network, start)
    scale = _spread(given)
    remedy = "each point must be seen by itself (batch_first=True, no statistics of the batch)"
    alone = [_in_use(network, chosen(some, slice(k, k + 1))) for k in range(len(given))]
    is_alone = all(_alike(given[k : k + 1], of_one, scale) for k, of_one in enumerate(alone))
    if not (is_alone and _alike(given[:1], beside_others[:1], SAME_SHAPE * scale)):
        raise ValueError(f"the model gives a point other outputs alone than beside others; {remedy}")
    _undropped(network)  # where a mask falls may depend on the shapes of others
    beside_some, beside_others = (_in_training(network, inputs, start)[:1] for inputs in (some, others))
    if not _alike(beside_some, beside_others, SAME_SHAPE * scale):
        raise ValueError(f"in training the model gives a point other outputs beside others; {remedy}")
    losses = _check_objective(task.objective, given, targets)
    found = {"outputs": _some_of(given), "outputs in training": _some_of(in_training)}
    return found | {"losses at the start": losses.cpu().numpy()}


def differs(before: Mapping[str, Any], now: Behaviour) -> str | None:
    """The first name under which other numbers stand than before; only what both have is compared."""
    for name, values in now.items():
        if name in before:
            was, is_now = torch.as_tensor(before[name]), torch.as_tensor(values)
            scale = _spread(was) if name.startswith("outputs") else was.abs().max()
            if not _alike(was, is_now, scale):
                return name
    return None


def _check_outputs(outputs: Tensor, task: Task, n: int) -> None:
    """Refuse outputs of n points that are none."""
    if outputs.shape[:1] != (n,):
        raise ValueError(f"the model gives outputs of shape {tuple(outputs.shape)} for {n} points; give (points, ...)")
    if not outputs.is_floating_point() or outputs.isnan().any():
        kind = "NaN" if outputs.is_floating_point() else str(outputs.dtype).removeprefix("torch.")
        raise ValueError(f"the model gives outputs that are {kind}; they must be floats")
    if task.objective.likelihood == "classification" and outputs[0].numel() < task.outputs:
        raise ValueError(f"the model has {outputs[0].numel()} outputs; the {task.outputs} classes need one each")


def _check_objective(objective: Objective, outputs: Tensor, targets: Tensor) -> Tensor:
    """The losses of a few points, if each is a function of its own outputs and target alone."""
    with named(f"objective {objective.name!r}, which is given float64,"):
        losses, again = (objective.losses(outputs, targets) for _ in range(2))
        alone = torch.cat([objective.losses(outputs[k : k + 1], targets[k : k + 1]) for k in range(len(targets))])
    if not _equal(losses, again):
        raise ValueError(f"objective {objective.name!r} gives other losses at each call; a loss may not be random")
    if not _alike(losses, alone, losses.abs().max()):
        raise ValueError(f"objective {objective.name!r} gives a point another loss alone than beside others")
    return losses


@contextmanager
def named(who: str) -> Iterator[None]:
    """What goes wrong in code of one's own is said in one sentence that begins with its name.

    Raises
    ------
    ValueError
        Something went wrong.
    """
    try:
        yield
    except Exception as error:  # it can raise anything
        raised_in = Path(extract_tb(error.__traceback__)[-1].filename)
        is_ours = isinstance(error, ValueError | RuntimeError) and raised_in.is_relative_to(PACKAGE)
        if is_ours or isinstance(error, MemoryError | torch.OutOfMemoryError):  # which is no fault of the code
            raise
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{who} fails: {kind}{one_line(error)}") from error


def _few(task: Task) -> tuple[Inputs, Inputs, Tensor]:
    """Inputs of FEW points from all parts; of as many others, but for the first; and the targets of the few."""
    points, n = task.train, len(task.train)
    some = np.linspace(0, n - 1, min(FEW, n)).astype(int)
    others = [0, *((some[1:] + 1) % n)]
    return chosen(points.inputs, some), chosen(points.inputs, np.array(others)), points.targets[some]


def _shaken(network: nn.Module) -> nn.Module:
    stream = torch.Generator().manual_seed(0)
    state = state_of(network)
    noise = {name: SHAKEN * torch.randn(p.shape, generator=stream).to(p) for name, p in state.theta.items()}
    shaken = {name: torch.where(p == 0, noise[name], p * (1 + noise[name])) for name, p in state.theta.items()}
    set_state(network, State(shaken, {}))  # of the same signs, as a scale may have to be positive
    return network


def _undropped(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, nn.RNNBase):
            module.dropout = 0.0


def _in_use(network: nn.Module, inputs: Inputs) -> Tensor:
    with torch.no_grad(), named("the model"):
        return forward(network.eval(), inputs)


def _in_training(network: nn.Module, inputs: Inputs, start: State) -> Tensor:
    set_state(network, start)
    to_training(network)
    with torch.enable_grad(), named("the model"), seeded(0, next(network.parameters()).device):
        outputs = forward(network, inputs)
    if not outputs.requires_grad:
        raise ValueError("the model's outputs have no gradient in its parameters; they must be a function of these")
    return outputs.detach()


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same, NaN at the same places too."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _spread(outputs: Tensor) -> Tensor:
    """By how much outputs differ between points: their size says little where all have the same offset."""
    return (outputs - outputs.mean(0)).abs().nan_to_num(0, 0, 0).max().double()


def _alike(one: Tensor, other: Tensor, scale: Tensor) -> bool:
    """Whether two tensors are the same but for rounding, of numbers that differ by `scale`."""
    if one.shape != other.shape:
        return False
    one, other = one.double(), other.double()
    bound = ROUNDING * scale + EPSILON * one.abs()
    return bool(((one - other).abs() <= bound).logical_or(one == other).all())


def _some_of(outputs: Tensor) -> np.ndarray:
    """At most MOST numbers of each point, float64."""
    of_points = outputs.double().reshape(len(outputs), -1).cpu()
    return of_points[:, :: max(1, of_points.shape[1] // MOST)].numpy()
