"""The models by name: what every function (task, seed) → nn.Module gets, whoever wrote it."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial, wraps
from math import gcd

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from tdalib.behaviour import named
from tdalib.data import Task
from tdalib.networks import float32_by_default, kept_generators, seeded, trainable
from tdalib.options import Count, Registry, said_as

MODELS = Registry("model")


def register(name: str) -> Callable[[Callable], Callable]:
    """Decorator: make a function (task, seed, **options) → nn.Module known as `name`.

    The function runs with the generators of torch, numpy and random set to `seed` and set back afterwards, so ordinary
    initialisation is enough: the same seed gives the same weights and the caller's random state is untouched. What it
    gives is copied, so it may be one network, made before, each time.

    Parameters that do not require gradients stay as they are, and attribution is over the others.
    """
    return lambda function: MODELS.register(name)(_seeded(function))


def _seeded(function: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    @wraps(function)
    def build(task: Task, seed: int, **options: object) -> nn.Module:
        at_seed = seeded(seed, torch.device("cpu"))
        with kept_generators(), float32_by_default(), at_seed, named("the model's function"):
            given = function(task, seed, **options)
        if not isinstance(given, nn.Module):
            raise ValueError(f"the model's function gave a {type(given).__name__}; it must give an nn.Module")
        if isinstance(given, torch.jit.ScriptModule):
            raise ValueError("the model is of TorchScript; give the nn.Module that it was made of")
        if any(isinstance(p, UninitializedParameter) or p.is_meta for p in given.parameters()):
            raise ValueError("the model has parameters without numbers (of lazy layers, or on the meta device)")
        if isinstance(given, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise ValueError("the model is wrapped for several GPUs; give the module inside, .module")
        if any(p.is_complex() for p in given.parameters()):
            raise ValueError("the model has complex parameters; give real ones, such as their real and imaginary parts")
        if hooked := [name for name, p in given.named_parameters() if p._backward_hooks]:
            raise ValueError(f"the model has a hook on the gradient of {hooked[0]!r}, which no copy keeps; do without")
        if not trainable(given):
            raise ValueError("the model has no parameter that requires a gradient; there is nothing to train")
        with said_as("the model cannot be copied, as every retraining needs"):
            network = deepcopy(given)  # which nobody else trains
        norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if any(norm.training or norm.running_mean is None for norm in norms):  # training leaves one in eval mode so
            remedy = "tdalib.models.with_group_norm(network), or network.eval() to keep the statistics that it has"
            raise ValueError(f"batch norm couples the points of a batch; return {remedy}")
        network = network.to(task.train.device, task.train.dtype)
        return _laid_out(network, task.x_train) if getattr(task.x_train, "ndim", 0) == 4 else network

    return build


def _laid_out(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """The network in the layout that is faster on CPUs, channels last, if it works in it; else as it is.

    One that takes a view of what a convolution gives does not.
    """
    fast = deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with torch.no_grad():
            fast.eval()(images[:1])
    except Exception as error:  # other faults are told where the network is checked
        if "view" in str(error):
            network.register_forward_pre_hook(lambda _, arguments: tuple(x.contiguous() for x in arguments))
            return network
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def get(model: str | Callable | nn.Module, **options: object) -> Callable[[Task, int], nn.Module]:
    """The network function called so, or made of a function (task, seed) or of a network, with its options bound."""
    if isinstance(model, nn.Module):
        function = _seeded(lambda task, seed: model)  # whatever the seed
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
