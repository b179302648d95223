"""Tasks: the images, labels and indices that everything else is a function of; and your own arrays as one."""

from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Task:
    """A classification task: n train and m test points.

    Attributes
    ----------
    x_train, x_test : Tensor, (n, ...) and (m, ...), float
        Images are (n, channels, height, width).
    y_train, y_test : Tensor, (n,) and (m,), int64
        Labels 0 … classes − 1.
    train_index, test_index : ndarray, (n,) and (m,), int64
        Positions in the source, so that a point can be found again.
    classes : tuple of str
    name : str
    """

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    train_index: np.ndarray
    test_index: np.ndarray
    classes: tuple[str, ...]
    name: str

    def to(self, device: str) -> "Task":
        """The same task with its points and labels on `device`."""
        moved = {key: getattr(self, key).to(device) for key in ("x_train", "y_train", "x_test", "y_test")}
        return replace(self, **moved)

    def first(self, train: int | None = None, test: int | None = None) -> "Task":
        """The same task with its first train and test points alone; None: all of them."""
        return replace(
            self,
            **{key: getattr(self, key)[:train] for key in ("x_train", "y_train", "train_index")},
            **{key: getattr(self, key)[:test] for key in ("x_test", "y_test", "test_index")},
        )

    def fingerprint(self) -> str:
        """SHA-256 over all points and labels, their shapes and types: one fingerprint, the same data."""
        digest = sha256()
        for array in map(np.ascontiguousarray, (self.x_train, self.y_train, self.x_test, self.y_test)):
            digest.update(f"{array.shape} {array.dtype} ".encode() + array.tobytes())
        return digest.hexdigest()


def from_arrays(
    x_train, y_train, x_test, y_test, *, classes=None, train_index=None, test_index=None, name="arrays"
) -> Task:
    """A task from your own arrays.

    Parameters
    ----------
    x_train, x_test : array, (n, ...) and (m, ...)
        uint8 images, (n, height, width) or (n, height, width, 1 or 3), are scaled to [−1, 1] (mean 0.5 and standard
        deviation 0.5 per channel, as in the paper). Floats are taken as they are, float32 unless float64; float
        images are (n, channels, height, width).
    y_train, y_test : int array, (n,) and (m,)
    classes : sequence of str, optional
        Names; by default as many numbers as y_train has classes.
    train_index, test_index : int array, optional
        Positions in the source; by default 0, 1, 2, …

    Raises
    ------
    ValueError
        Shapes that do not fit, a value that is not finite, a label out of range, a class without a train point,
        one class alone.
    """
    x_train, y_train, x_test, y_test = map(np.asarray, (x_train, y_train, x_test, y_test))
    for x, y, split in ((x_train, y_train, "train"), (x_test, y_test, "test")):
        check_points(x, f"x_{split}")
        check_labels(y, len(x), f"y_{split}")
    if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
        train, test = (f"{x.dtype} of shape {x.shape[1:]}" for x in (x_train, x_test))
        raise ValueError(f"points of x_train are {train}, those of x_test are {test}; they must be alike")
    classes = class_names(classes, y_train)
    if len(classes) < 2:
        raise ValueError("all points are of one class; a classifier needs two or more")
    class_counts(y_train, classes, "train")
    _check_range(y_test, classes, "test")
    return Task(
        x_train=_floats(x_train),
        y_train=torch.as_tensor(y_train.astype(np.int64)),
        x_test=_floats(x_test),
        y_test=torch.as_tensor(y_test.astype(np.int64)),
        train_index=positions(train_index, len(x_train), "train_index"),
        test_index=positions(test_index, len(x_test), "test_index"),
        classes=classes,
        name=name,
    )


def check_points(x, key):
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"{key} has shape {x.shape}; it needs at least one point and one feature axis")
    if x.dtype == np.uint8:
        if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
            raise ValueError(f"{key}: uint8 images need shape (n, height, width) or (n, height, width, 1 or 3)")
    elif x.dtype.kind != "f":
        raise ValueError(f"{key} holds {x.dtype}; give uint8 images or floats")
    elif len(bad := np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))):
        raise ValueError(f"{key}[{bad[0]}] has a value that is not finite; every value must be a number")


def check_labels(y, count, key):
    if y.shape != (count,):
        raise ValueError(f"{key} has shape {y.shape}; it needs one label for each of {count} points")
    if y.dtype.kind not in "iu" or y.min() < 0:
        raise ValueError(f"{key} must hold whole numbers, 0 for the first class")


def class_names(classes, labels) -> tuple[str, ...]:
    count = int(labels.max()) + 1
    if count > len(labels):
        raise ValueError(
            f"y_train has the label {count - 1} but only {len(labels)} points; every class needs at least one"
        )
    return tuple(map(str, range(count) if classes is None else np.atleast_1d(classes)))


def _check_range(labels, classes, split):
    if labels.max() >= len(classes):
        raise ValueError(f"y_{split} has the label {labels.max()}; the classes are 0 to {len(classes) - 1}")


def class_counts(labels, classes, split) -> np.ndarray:
    """Points per class; none may be empty."""
    _check_range(labels, classes, split)
    counts = np.bincount(labels, minlength=len(classes))
    if (counts == 0).any():
        label = int(counts.argmin())
        raise ValueError(f"class {label} ({classes[label]!r}) has no {split} point; every class needs at least one")
    return counts


def _floats(x) -> Tensor:
    if x.dtype == np.uint8:
        x = x[..., None] if x.ndim == 3 else x
        x = (np.moveaxis(x, -1, 1) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    x = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64 if x.dtype == np.float64 else np.float32))
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x  # the faster layout on CPUs


def positions(index, count, key) -> np.ndarray:
    index = np.arange(count) if index is None else np.asarray(index)
    if index.shape != (count,) or index.dtype.kind not in "iu":
        raise ValueError(f"{key} must hold one whole number for each of {count} points")
    return index.astype(np.int64)
