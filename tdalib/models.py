"""Models: functions from (task, seed) to an nn.Module, found by name."""

from collections.abc import Callable
from functools import partial, wraps

import torch
from torch import Tensor, nn

from tdalib.data import Task

MODELS: dict[str, Callable[..., nn.Module]] = {}


def register(name: str):
    """Decorator: make a function (task, seed, **options) → nn.Module known as `name`.

    The function runs with torch's generator set to `seed` and set back afterwards, so ordinary PyTorch
    initialisation is enough: the same seed gives the same weights and the caller's random state is untouched.
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
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            raise ValueError("the model has batch norm, which couples the points of a batch; use group or layer norm")
        layout = torch.channels_last if task.x_train.ndim == 4 else torch.preserve_format
        return model.to(task.x_train.device, task.x_train.dtype, memory_format=layout)

    return seeded


def get(name: str | Callable, **options) -> Callable[[Task, int], nn.Module]:
    """The model function called `name`, or made of a function (task, seed), with its options bound."""
    if callable(name):
        function = name if getattr(name, "func", name) in MODELS.values() else _seeded(name)
        return partial(function, **options) if options else function
    if name not in MODELS:
        raise ValueError(f"model {name!r} is not known; choose from {', '.join(sorted(MODELS))}")
    return partial(MODELS[name], **options) if options else MODELS[name]


class ImageGELU(nn.GELU):
    """GELU of channels-last images, (batch, channels, height, width), through the view of them that is contiguous.

    PyTorch's CPU kernel for contiguous tensors is faster: an evaluation of cnn2 takes 0.9 times as long.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ImageFlatten(nn.Flatten):
    """Flatten of channels-last images in the order they lie in memory, which spares copies there and back."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1))


@register("cnn2")
def cnn2(task: Task, seed: int) -> nn.Module:
    """CNN-2 of Nguyen et al. 2023: two convolutions (32, 64), linear 128, linear 10, GELU; max-pool 2 after each.

    Kernel 3 for one channel (MNIST, 225,034 parameters), 5 for three (CIFAR-10, 259,914). Ten outputs, as in the
    paper, or as many as the task has classes if that is more.
    """
    channels, height, width = _image_shape(task, "cnn2")
    kernel = 3 if channels == 1 else 5
    h, w = (((side - kernel + 1) // 2 - kernel + 1) // 2 for side in (height, width))
    if min(h, w) < 1:
        raise ValueError(f"cnn2: images of {height} × {width} are too small for two convolutions of kernel {kernel}")
    return nn.Sequential(
        nn.Conv2d(channels, 32, kernel),
        ImageGELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel),
        ImageGELU(),
        nn.MaxPool2d(2),
        ImageFlatten(),
        nn.Linear(64 * h * w, 128),
        nn.GELU(),
        nn.Linear(128, max(10, len(task.classes))),
    )


@register("logreg")
def logreg(task: Task, seed: int) -> nn.Module:
    """Multinomial logistic regression: convex, so that attribution has exact answers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(task.x_train[0].numel(), len(task.classes)))


def _image_shape(task: Task, model: str):
    if task.x_train.ndim != 4:
        raise ValueError(f"{model} needs images (n, channels, height, width); the task has {tuple(task.x_train.shape)}")
    return task.x_train.shape[1:]
