"""CNN-2 and CNN-3: the convolutional networks of the paper."""

from torch import Tensor, nn

from tdalib.data import Task
from tdalib.models.network_functions import register


@register("cnn2")
def cnn2(task: Task, seed: int) -> nn.Module:
    """CNN-2: two convolutions (32, 64), linear 128, linear 10, GELU; max-pool 2 after each convolution.

    Kernel 3 for one channel (MNIST, 225,034 parameters), 5 for three (CIFAR-10, 259,914). Ten outputs, or as many as
    the task has classes if that is more.

    Source: Nguyen et al. 2023, arXiv:2305.19765, appendix.
    """
    return _cnn("cnn2", task, channels=(32, 64), grey=(3, (0, 0)), colour=(5, (0, 0)), hidden=128)


@register("cnn3")
def cnn3(task: Task, seed: int) -> nn.Module:
    """CNN-3: three convolutions (32, 64, 128), linear 256, linear 10, GELU; max-pool 2 after each convolution.

    Kernel 3; paddings 0, 2, 2 for one channel (MNIST, 619,786 parameters), 0, 0, 2 for three (CIFAR-10, 620,362). Ten
    outputs, or as many as the task has classes if that is more.

    Source: Nguyen et al. 2023, arXiv:2305.19765, appendix.
    """
    return _cnn("cnn3", task, channels=(32, 64, 128), grey=(3, (0, 2, 2)), colour=(3, (0, 0, 2)), hidden=256)


def _cnn(name: str, task: Task, channels: tuple, grey: tuple, colour: tuple, hidden: int) -> nn.Sequential:
    """The network for the task's images; `grey` is the kernel and the paddings for one channel, `colour` for more."""
    shape = tuple(getattr(task.x_train, "shape", ()))
    if len(shape) != 4 or not task.x_train.is_floating_point():
        raise ValueError(f"{name} needs images (n, channels, height, width); the task has {shape or 'a dict'}")
    before, *image = shape[1:]
    kernel, paddings = grey if before == 1 else colour
    sides, layers = image, []
    for after, padding in zip(channels, paddings, strict=True):
        layers += [nn.Conv2d(before, after, kernel, padding=padding), ImageGELU(), nn.MaxPool2d(2)]
        before, sides = after, [(side + 2 * padding - kernel + 1) // 2 for side in sides]
        if min(sides) < 1:
            raise ValueError(f"{name}: images of {image[0]} × {image[1]} are too small for its convolutions")
    outputs = max(10, task.outputs) if task.classes else task.outputs
    layers += [ImageFlatten(), nn.Linear(before * sides[0] * sides[1], hidden), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))


class ImageGELU(nn.GELU):
    """GELU of channels-last images, (batch, channels, height, width), through the view of them that is contiguous.

    PyTorch's CPU kernel for contiguous tensors is faster: an evaluation of cnn2 takes 0.9 times as long.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ImageFlatten(nn.Flatten):
    """Flatten of channels-last images in the order they lie in memory, which spares copies there and back."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to (batch, features)."""
        return super().forward(x.permute(0, 2, 3, 1))
