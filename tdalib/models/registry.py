"""The models by name: what every function (task, seed) → nn.Module gets, whoever wrote it."""

from collections.abc import Callable
from functools import partial, wraps

import torch
from torch import nn

from tdalib.data import Task
from tdalib.training import trainable

MODELS: dict[str, Callable[..., nn.Module]] = {}


def register(name: str):
    """Decorator: make a function (task, seed, **options) → nn.Module known as `name`.

    The function runs with torch's generator set to `seed` and set back afterwards, so ordinary PyTorch
    initialisation is enough: the same seed gives the same weights and the caller's random state is untouched.

    Parameters that do not require gradients stay as they are, and attribution is over the others. A module whose frozen
    part comes first can name it by a method `frozen_beginning(x)`, which gives back what it once gave as it is and does
    not depend on the seed: it is then computed once for all trainings and attributions, and `forward` gets the result.
    """

    def decorate(function):
        MODELS[name] = _seeded(function)
        return MODELS[name]

    return decorate


def _seeded(function):
    @wraps(function)
    def seeded(task: Task, seed: int, **options) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = function(task, seed, **options)
        if any(_couples(module) for module in model.modules()):
            raise ValueError(
                "the model has batch norm, which couples the points of a batch; use group or layer norm, or batch norm "
                "with fixed statistics, set to eval mode where the model is made"
            )
        layout = torch.channels_last if task.x_train.ndim == 4 else torch.preserve_format
        return model.to(task.x_train.device, task.x_train.dtype, memory_format=layout)

    return seeded


def _couples(module: nn.Module) -> bool:
    """Whether it is a batch norm that would use the statistics of a batch; training leaves one in eval mode so."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)


def get(name: str | Callable, **options) -> Callable[[Task, int], nn.Module]:
    """The model function called `name`, or made of a function (task, seed), with its options bound."""
    if callable(name):
        function = name if getattr(name, "func", name) in MODELS.values() else _seeded(name)
        return partial(function, **options) if options else function
    if name not in MODELS:
        raise ValueError(f"model {name!r} is not known; choose from {', '.join(sorted(MODELS))}")
    return partial(MODELS[name], **options) if options else MODELS[name]


def parameter_count(model: nn.Module) -> str:
    """How many parameters a model has, and how many of them are trained, in words."""
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in trainable(model).values())
    return f"{count:,} parameters, {'all' if trained == count else f'{trained:,}'} trained"
