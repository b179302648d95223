"""The models by name: what every function (task, seed) → nn.Module gets, whoever wrote it."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial, wraps

import torch
from torch import Tensor, nn

from tdalib.data import Task
from tdalib.networks import trainable
from tdalib.registry import Registry

MODELS = Registry("model", lambda name, function: _seeded(function))


def register(name: str):
    """Decorator: make a function (task, seed, **options) → nn.Module known as `name`.

    The function runs with torch's generator set to `seed` and set back afterwards, so ordinary PyTorch
    initialisation is enough: the same seed gives the same weights and the caller's random state is untouched.

    Parameters that do not require gradients stay as they are, and attribution is over the others. A module whose frozen
    part comes first can name it by a method `frozen_beginning(x)`, which gives back what it once gave as it is and does
    not depend on the seed: it is then computed once for all trainings and attributions, and `forward` gets the result.
    """

    def decorate(function):
        MODELS.register(name)(function)
        return MODELS[name]

    return decorate


def _seeded(function):
    @wraps(function)
    def seeded(task: Task, seed: int, **options) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = function(task, seed, **options)
        if any(_couples(module) for module in network.modules()):
            raise ValueError(
                "the model has batch norm, which couples the points of a batch; use group or layer norm, or batch norm "
                "with fixed statistics, set to eval mode where the model is made"
            )
        images = isinstance(task.x_train, Tensor) and task.x_train.ndim == 4
        layout = torch.channels_last if images else torch.preserve_format
        return network.to(task.train.device, task.train.dtype, memory_format=layout)

    return seeded


def _couples(module: nn.Module) -> bool:
    """Whether it is a batch norm that would use the statistics of a batch; training leaves one in eval mode so."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)


def get(model: str | Callable | nn.Module, **options) -> Callable[[Task, int], nn.Module]:
    """The network function called so, or made of a function (task, seed) or of a network, with its options bound."""
    if isinstance(model, nn.Module):
        function = _seeded(lambda task, seed: deepcopy(model))  # whatever the seed
    elif callable(model):
        function = model if getattr(model, "func", model) in MODELS.values() else _seeded(model)
    else:
        function = MODELS.find(model)
    return partial(function, **options) if options else function


def parameter_count(network: nn.Module) -> str:
    """How many parameters a network has, and how many of them are trained, in words."""
    count = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in trainable(network).values())
    return f"{count:,} parameters, {'all' if trained == count else f'{trained:,}'} trained"
