"""The models by name: what every function (task, seed) → nn.Module gets, whoever wrote it."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial, wraps
from math import gcd

import torch
from torch import nn

from tdalib.data import Task
from tdalib.networks import trainable
from tdalib.options import Count
from tdalib.registry import Registry

MODELS = Registry("model")


def register(name: str) -> Callable[[Callable], Callable]:
    """Decorator: make a function (task, seed, **options) → nn.Module known as `name`.

    The function runs with torch's generator set to `seed` and set back afterwards, so ordinary PyTorch
    initialisation is enough: the same seed gives the same weights and the caller's random state is untouched.

    Parameters that do not require gradients stay as they are, and attribution is over the others.
    """
    return lambda function: MODELS.register(name)(_seeded(function))


def _seeded(function: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    @wraps(function)
    def seeded(task: Task, seed: int, **options: object) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            network = function(task, seed, **options)
        norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if any(norm.training or norm.running_mean is None for norm in norms):  # training leaves one in eval mode so
            raise ValueError(
                "batch norm couples the points of a batch; return tdalib.models.with_group_norm(network), "
                "or network.eval() to keep the statistics that it has"
            )
        layout = torch.channels_last if getattr(task.x_train, "ndim", 0) == 4 else torch.preserve_format
        return network.to(task.train.device, task.train.dtype, memory_format=layout)  # type: ignore[call-overload]

    return seeded


def get(model: str | Callable | nn.Module, **options: object) -> Callable[[Task, int], nn.Module]:
    """The network function called so, or made of a function (task, seed) or of a network, with its options bound."""
    if isinstance(model, nn.Module):
        function = _seeded(lambda task, seed: deepcopy(model))  # whatever the seed
    elif callable(model):
        function = model if getattr(model, "func", model) in MODELS.values() else _seeded(model)
    else:
        function = MODELS.find(model)
    return partial(function, **options) if options else function


def with_group_norm(network: nn.Module, groups: Count = 32) -> nn.Module:
    """The network with group norm in the place of every batch norm, changed in place: no point sees another.

    Parameters
    ----------
    network : nn.Module
    groups : int
        Of the channels of a layer; where it does not divide them, their greatest common divisor.

    Source: Wu and He 2018, arXiv:1803.08494.
    """
    for parent in list(network.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                channels = norm.num_features
                setattr(parent, name, nn.GroupNorm(gcd(groups, channels), channels, norm.eps, norm.affine))
    return network


def parameter_count(network: nn.Module) -> str:
    """How many parameters a network has, and how many of them are trained, in words."""
    count = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in trainable(network).values())
    return f"{count:,} parameters, {'all' if trained == count else f'{trained:,}'} trained"
