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

from tdalib.data import PACKAGE, Inputs, Task, chosen, tensors
from tdalib.networks import State, forward, seeded, set_state, state_of, to_training
from tdalib.options import one_line

FEW = 3  # points that are seen at once
ROUNDING = 1e-3  # share of the largest number by which numbers may differ: float32 in another order of sums
SHAKEN = 0.02  # standard deviation

Build = Callable[[Task, int], nn.Module]
Behaviour = dict[str, np.ndarray]


def check_network(build: Build, task: Task, seed: int) -> Behaviour:
    """What a network gives on a few points, in use and in training, if it is one that can be attributed with.

    Raises
    ------
    ValueError
        Built twice it is not the same; a point sees those beside it; something that is neither parameter nor buffer is
        kept from one pass to the next; or it fails on the points.
    """
    some, others = _few(task)
    network, again = _shaken(build(task, seed)), _shaken(build(task, seed))
    start = state_of(network)
    given = _in_use(network, some)
    _check_outputs(given, task, len(tensors(some)[0]))
    if not _alike(given, _in_use(network, some)):
        raise ValueError("the model gives other outputs at each call, in eval mode too; only training may be random")
    in_training, rest = _in_training(network, some, start), state_of(network).rest
    if not (_same(start, state_of(again)) and _alike(in_training, _in_training(again, some, start))):
        raise ValueError(
            f"the model built twice from seed {seed} is not the same; it must take its random numbers from torch, "
            "numpy or random, and depend on the task and the seed alone"
        )
    beside_others = _in_training(network, others, start)
    if changed := [name for name, value in state_of(network).rest.items() if not torch.equal(value, rest[name])]:
        raise ValueError(
            f"in training the model keeps something of the points in {changed[0]!r}, where one that is left out would "
            "still act; give that layer fixed statistics"
        )
    set_state(network, start)
    if not (_alike(given, _in_use(network, some)) and _alike(in_training, _in_training(network, some, start))):
        raise ValueError(
            "the model keeps something from one pass to the next that is neither parameter nor buffer; register it as "
            "a buffer, or do without"
        )
    set_state(network, start)
    remedy = "each point must be seen by itself (batch_first=True, no statistics of the batch)"
    alone = [_in_use(network, chosen(some, slice(k, k + 1))) for k in range(len(given))]
    if not all(_alike(given[k : k + 1], of_one) for k, of_one in enumerate(alone)):
        raise ValueError(f"the model gives a point other outputs alone than beside others; {remedy}")
    if not _alike(in_training[:1], beside_others[:1]):
        raise ValueError(f"in training the model gives a point other outputs beside others; {remedy}")
    return {"outputs": given.double().cpu().numpy(), "outputs in training": in_training.double().cpu().numpy()}


def differs(before: Mapping[str, Any], now: Behaviour) -> str | None:
    """The first name under which other numbers stand than before; only what both have is compared."""
    for name, values in now.items():
        if name in before and not _alike(torch.as_tensor(before[name]), torch.as_tensor(values)):
            return name
    return None


def same_start(build: Build, task: Task, seeds: list[int]) -> bool:
    """Whether a network starts from the same weights whatever the seed."""
    return len(seeds) > 1 and _same(*(state_of(build(task, seed)) for seed in seeds[:2]))


def _check_outputs(outputs: Tensor, task: Task, n: int) -> None:
    """Refuse outputs of n points that are none."""
    if outputs.shape[:1] != (n,):
        raise ValueError(f"the model gives outputs of shape {tuple(outputs.shape)} for {n} points; give (points, ...)")
    if not outputs.is_floating_point() or outputs.isnan().any():
        kind = "NaN" if outputs.is_floating_point() else str(outputs.dtype).removeprefix("torch.")
        raise ValueError(f"the model gives outputs that are {kind}; they must be floats")
    task.check_outputs(outputs)


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
        if isinstance(error, ValueError | RuntimeError) and raised_in.is_relative_to(PACKAGE):
            raise  # a sentence of our own
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{who} fails: {kind}{one_line(error)}") from error


def _few(task: Task) -> tuple[Inputs, Inputs]:
    """The inputs of FEW points, and others, of which the first is the same."""
    inputs, n = task.train.inputs, len(task.train)
    some, others = range(min(FEW, n)), [0, *range(n - 1, max(0, n - FEW), -1)]
    return chosen(inputs, list(some)), chosen(inputs, others)


def _shaken(network: nn.Module) -> nn.Module:
    stream = torch.Generator().manual_seed(0)
    state = state_of(network)
    noise = {name: torch.randn(p.shape, generator=stream).to(p) for name, p in state.theta.items()}
    set_state(network, State({name: p + SHAKEN * noise[name] for name, p in state.theta.items()}, {}))
    return network


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


def _same(one: State, other: State) -> bool:
    """Whether two states hold the same, to the bit."""
    left, right = one.theta | one.rest, other.theta | other.rest
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same but for rounding."""
    if one.shape != other.shape:
        return False
    one, other = one.double(), other.double()
    bound = ROUNDING * one[one.isfinite()].abs().max() if one.isfinite().any() else 0.0
    return bool(((one - other).abs() <= bound).logical_or(one == other).all())
