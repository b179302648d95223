"""Tasks: the points and the objective that all else is a function of; your own arrays as one; and subsets of points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdalib import objectives
from tdalib.data.points import Points, of_each, tensors
from tdalib.objectives import Objective
from tdalib.options import said_as

SPLITS = ("train", "test")

Arrays = np.typing.ArrayLike | dict  # of many points


@dataclass(frozen=True, eq=False)
class Task:
    """What is learned and what is asked about.

    Attributes
    ----------
    train, test : Points
    objective : Objective
        What networks are trained on, and what τ is about.
    name : str
    classes : tuple of str
        Names of the targets 0, 1, …, where these are classes.
    x_train, y_train, x_test, y_test : Tensor, or dict of Tensor
        Inputs and targets of the points.
    train_index, test_index : int array
        Positions of the points in the source.
    """

    train: Points
    test: Points
    objective: Objective
    name: str
    classes: tuple[str, ...] = ()

    x_train = property(attrgetter("train.inputs"))
    y_train = property(attrgetter("train.targets"))
    x_test = property(attrgetter("test.inputs"))
    y_test = property(attrgetter("test.targets"))
    train_index = property(lambda self: self.train.labels["index"])
    test_index = property(lambda self: self.test.labels["index"])

    @property
    def outputs(self) -> int:
        """How many outputs a network needs: one for each class, or one for each number of a target."""
        return len(self.classes) or self.y_train[0].numel()

    def to(self, where: str | torch.dtype) -> "Task":
        """The same task on another device, or with another type of its floats."""
        return replace(self, train=self.train.to(where), test=self.test.to(where))

    def first(self, train: int | None = None, test: int | None = None) -> "Task":
        """The same task with its first train and test points alone; None: all of them."""
        return replace(self, train=self.train[:train], test=self.test[:test])

    def fingerprint(self) -> str:
        """SHA-256 over all points and targets, their shapes and types: one fingerprint, the same data."""
        digest = sha256()
        for inputs in (self.x_train, self.y_train, self.x_test, self.y_test):
            for array in map(np.ascontiguousarray, tensors(inputs)):
                digest.update(f"{array.shape} {array.dtype} ".encode() + array.tobytes())
        return digest.hexdigest()


def from_arrays(
    x_train: Arrays,
    y_train: np.typing.ArrayLike,
    x_test: Arrays,
    y_test: np.typing.ArrayLike,
    *,
    classes: np.typing.ArrayLike | None = None,
    train_index: np.typing.ArrayLike | None = None,
    test_index: np.typing.ArrayLike | None = None,
    labels: dict[str, tuple] | None = None,
    objective: str | Objective | Callable | None = None,
    name: str = "arrays",
) -> Task:
    """A task from your own arrays.

    Parameters
    ----------
    x_train, x_test : array or dict of arrays, (n, ...) and (m, ...)
        uint8 images, (n, height, width) or (n, height, width, 1 or 3), are scaled to [−1, 1] (mean 0.5 and standard
        deviation 0.5 per channel, as in the paper). Floats are taken as they are, float32 unless float64; float
        images are (n, channels, height, width). Integers, such as token ids, stay integers.
    y_train, y_test : array, (n,) or (n, ...), and alike for m
        Whole numbers are classes from 0; floats are values to be met, (n,) is taken as (n, 1).
    classes : sequence of str, optional
        Names; by default the numbers from 0 to the largest label of y_train.
    train_index, test_index : int array, optional
        Positions in the source; by default 0, 1, 2, …
    labels : dict, optional
        Name → (array of the train points, array of the test points): what else is known of each point.
    objective : str, Objective or (outputs, targets) → (points,), optional
        By default cross_entropy for classes and squared_error for floats.

    Raises
    ------
    ValueError
        Shapes that do not fit, a value that is not finite, a label out of range, a class without a train point,
        one class alone.
    """
    x, y = {"train": x_train, "test": x_test}, {"train": _array(y_train, "y_train"), "test": _array(y_test, "y_test")}
    index = {"train": train_index, "test": test_index}
    points = {split: _points(x[split], y[split], index[split], split) for split in SPLITS}
    for key, part in (("x", "inputs"), ("y", "targets")):
        train, test = (of_each(_layout, getattr(points[split], part)) for split in SPLITS)
        if train != test:
            raise ValueError(f"points of {key}_train are {train}, those of {key}_test are {test}; they must be alike")
    names: tuple[str, ...] = ()
    if are_classes(y["train"]):
        count = min(y["train"].max(), len(y["train"])) + 1  # a label beyond that is out of range
        names = tuple(map(str, range(count) if classes is None else np.atleast_1d(classes)))
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"classes names {twice[0]!r} twice; each class needs a name of its own")
        if len(names) < 2:
            raise ValueError("all points are of one class; a classifier needs two or more")
        for split in SPLITS:
            if y[split].max() >= len(names):
                raise ValueError(f"y_{split} has the label {y[split].max()}; the classes are 0 to {len(names) - 1}")
            points[split].labels["label"] = y[split].astype(np.int64)
            points[split].labels["class"] = np.array(names, object)[y[split]]
        class_counts(y["train"], names, "train")
    if not isinstance(labels or {}, dict):
        raise ValueError("labels must be a dict: name → (values of the train points, values of the test points)")
    for key, of_splits in (labels or {}).items():
        if key in points["train"].labels:
            raise ValueError(f"labels: {key!r} is known of each point already; choose another name")
        if not isinstance(of_splits, tuple | list) or len(of_splits) != 2:
            raise ValueError(f"labels[{key!r}] must be two: values of the train points, and of the test points")
        for split, values in zip(SPLITS, of_splits, strict=True):
            points[split].labels[key] = _label(values, len(y[split]), f"labels[{key!r}]")
    default = "squared_error" if y["train"].dtype.kind == "f" else "cross_entropy"
    known = objectives.get(default if objective is None else objective)
    if known.likelihood == "classification" and not are_classes(y["train"]):
        raise ValueError(f"objective {known.name!r} needs classes as targets, whole numbers of shape (n,)")
    if known.likelihood == "regression" and y["train"].dtype.kind != "f":
        raise ValueError(f"objective {known.name!r} needs values as targets, floats")
    return under(Task(**points, objective=known, name=name, classes=names), known)


def under(task: Task, objective: str | Objective | Callable) -> Task:
    """The same points under another objective, with the targets that it makes of the inputs, if it does."""
    known = objectives.get(objective)
    if known.targets_of is None:
        return replace(task, objective=known)
    train, test = (replace(points, targets=known.targets_of(points.inputs)) for points in (task.train, task.test))
    return replace(task, train=train, test=test, objective=known, classes=())


def are_classes(targets: np.ndarray) -> bool:
    """Whether targets are classes: one whole number a point."""
    return targets.dtype.kind in "iu" and targets.ndim == 1


def class_counts(targets: np.ndarray, classes: Sequence[str], split: str) -> np.ndarray:
    """Points per class; none may be empty."""
    counts = np.bincount(targets, minlength=len(classes))
    if (counts == 0).any():
        label = int(counts.argmin())
        raise ValueError(f"class {label} ({classes[label]!r}) has no {split} point; every class needs at least one")
    return counts


def choose(labels: Any, classes: Sequence[str], per_class: int, seed: int, split: str, name: object) -> np.ndarray:
    """Positions of `per_class` points of each class, class by class: the first of a random order."""
    orders = random_orders(labels, classes or ("",), {f"{split}_per_class": per_class}, seed, split, name)
    return np.concatenate([np.sort(order[:per_class]) for order in orders])


def random_orders(
    labels: Any, classes: Sequence[str], wanted: dict[str, int], seed: int, split: str, name: object
) -> list[np.ndarray]:
    """The positions of each class in random order; there must be as many as are wanted in all."""
    available = class_counts(labels, classes, split).min()
    if sum(wanted.values()) > available:
        asked = " beside ".join(f"{key}: {count}" for key, count in wanted.items())
        raise ValueError(f"{asked} is not possible; {name} has 1 to {available} per class")
    stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split),)))
    return [stream.permutation(np.flatnonzero(np.equal(labels, label))) for label in range(len(classes))]


def _points(x: Arrays, targets: np.ndarray, index: np.typing.ArrayLike | None, split: str) -> Points:
    """Points of one split, whatever is wrong with them alone refused."""
    if isinstance(x, dict) and not x:
        raise ValueError(f"x_{split} is a dict without arrays; it needs one at least")
    arrays = {f"x_{split}[{key!r}]": part for key, part in x.items()} if isinstance(x, dict) else {f"x_{split}": x}
    for key, part in arrays.items():
        part = _array(part, key)
        if part.ndim < (1 if isinstance(x, dict) else 2) or len(part) == 0:
            raise ValueError(f"{key} has shape {part.shape}; it needs at least one point and one feature axis")
        if part.dtype == np.uint8 and (part.ndim < 3 or part.shape[3:] not in ((), (1,), (3,))):
            raise ValueError(f"{key}: uint8 images need shape (n, height, width) or (n, height, width, 1 or 3)")
        if part.dtype.kind not in "fiub":
            raise ValueError(f"{key} holds {part.dtype}; give uint8 images, floats or integers")
        if np.ma.is_masked(part):
            raise ValueError(f"{key} has values that are masked; every value must be a number")
        if part.dtype.kind == "u" and part.size and part.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{key} has the value {part.max()}; whole numbers are at most {np.iinfo(np.int64).max}")
        if len(bad := np.flatnonzero(~np.isfinite(part).reshape(len(part), -1).all(axis=1))):
            raise ValueError(f"{key}[{bad[0]}] has a value that is not finite; every value must be a number")
        if targets.shape[:1] != (len(part),):
            raise ValueError(f"y_{split} has shape {targets.shape}; it needs one label for each of {len(part)} points")
    if targets.dtype.kind not in "fiu" or (are_classes(targets) and targets.min() < 0):
        raise ValueError(f"y_{split} must hold whole numbers, 0 for the first class, or floats")
    if np.ma.is_masked(targets) or not np.isfinite(targets).all():
        raise ValueError(f"y_{split} has a value that is not finite; every target must be a number")
    inputs = of_each(lambda part: _tensor(_array(part, f"x_{split}")), x)
    floats = next((part.dtype for part in tensors(inputs) if part.is_floating_point()), torch.float32)
    index = _label(np.arange(len(targets)) if index is None else index, len(targets), f"{split}_index")
    if index.dtype.kind not in "iu":
        raise ValueError(f"{split}_index must hold one whole number for each of {len(targets)} points")
    wanted = torch.as_tensor(targets.astype(np.int64 if targets.dtype.kind in "iu" else np.float64))
    if wanted.is_floating_point():  # of the inputs' type, with one axis at least
        wanted = wanted.to(floats) if wanted.ndim > 1 else wanted.to(floats)[:, None]
    return Points(inputs, wanted, {"index": index.astype(np.int64)})


def _array(values: Any, key: str) -> np.ndarray:
    with said_as(f"{key} is no array"):
        return np.asanyarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def _label(values: np.typing.ArrayLike, count: int, key: str) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (count,):
        raise ValueError(f"{key} has shape {values.shape}; it needs one value for each of {count} points")
    return values.astype(object) if values.dtype.kind in "US" else values


def _layout(x: Tensor) -> str:
    """Type and shape of a point, in words."""
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape[1:])}"


def _tensor(x: np.ndarray) -> Tensor:
    if x.dtype == np.uint8:
        x = x[..., None] if x.ndim == 3 else x
        x = (np.moveaxis(x, -1, 1) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    kept = {"f": np.float64 if x.dtype.itemsize >= 8 else np.float32, "i": np.int64, "u": np.int64, "b": bool}
    given = torch.from_numpy(np.array(x, dtype=kept[x.dtype.kind], order="C"))  # a copy, which nobody else changes
    images = given.ndim == 4 and given.is_floating_point()
    return given.contiguous(memory_format=torch.channels_last) if images else given  # the faster layout on CPUs
