"""The models by name: what every function (task, seed) → nn.Module gets, whoever wrote it."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial, wraps

import torch
from torch import nn

from tdalib.data import Task
from tdalib.networks import trainable
from tdalib.registry import Registry

MODELS = Registry("model")


def register(name: str):
    """Decorator: make a function (task, seed, **options) → nn.Module known as `name`.

    The function runs with torch's generator set to `seed` and set back afterwards, so ordinary PyTorch
    initialisation is enough: the same seed gives the same weights and the caller's random state is untouched.

    Parameters that do not require gradients stay as they are, and attribution is over the others.
    """
    return lambda function: MODELS.register(name)(_seeded(function))


def _seeded(function):
    @wraps(function)
    def seeded(task: Task, seed: int, **options) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = function(task, seed, **options)
        norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if any(norm.training or norm.running_mean is None for norm in norms):  # training leaves one in eval mode so
            raise ValueError("batch norm couples the points of a batch; use group or layer norm, or eval mode for it")
        layout = torch.channels_last if getattr(task.x_train, "ndim", 0) == 4 else torch.preserve_format
        return network.to(task.train.device, task.train.dtype, memory_format=layout)

    return seeded


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
