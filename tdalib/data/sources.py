"""Where data come from: shipped subsets, files and folders of your own, torchvision's full sets."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tdalib.data.folders import from_folder
from tdalib.data.places import PACKAGE, resolve
from tdalib.data.points import Points
from tdalib.data.task import Task, choose, from_arrays, under
from tdalib.options import Count, Natural, Registry, checked, said_as

TORCHVISION = ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100")
SHIPPED = {path.stem: path for path in sorted((PACKAGE / "datasets").glob("*.npz"))}

KEYS = ("x_train", "y_train", "train_index", "x_test", "y_test", "test_index", "classes")  # of an .npz file

DATASETS = Registry("dataset")
register = DATASETS.register


def load(
    name: str, *, train_per_class: int, test_per_class: int, seed: int = 0, objective: str | None = None, **options: Any
) -> Task:
    """A class-balanced, seeded subset of a data set.

    Parameters
    ----------
    name : str
        "mnist3", "cifar10" or "sotu3" (`from_sotu`), which are shipped; "mnist3_paper" or "cifar10_paper", the paper's
        own images (`from_paper`); the path of your own .npz file (`from_file`) or folder of images (`from_folder`); or
        a data set of torchvision (`from_torchvision`), such as "MNIST". Relative paths start at the repository root.
    train_per_class, test_per_class : int
        Where the targets are floats: points in all.
    seed : int
        Chooses the subset. With one seed, smaller subsets are contained in larger ones.
    objective : str, optional
        By default cross_entropy for classes and squared_error for floats.
    options
        Further keywords of the function that reads it.

    Raises
    ------
    ValueError
        An unknown name, data that cannot be used, or more per class than there are.
    """
    task = loader(name)(name, train_per_class=train_per_class, test_per_class=test_per_class, seed=seed, **options)
    return under(task, objective) if objective else task


def loader(name: str) -> Callable[..., Task]:
    """The function that reads the data set called `name`, or that of a file or folder."""
    if name in DATASETS:
        return DATASETS[name]
    if resolve(name).suffix == ".npz":
        return from_file
    if name and resolve(name).is_dir():
        return from_folder
    known = ", ".join(DATASETS)
    raise ValueError(f"dataset {name!r} is not known; choose from {known}, an .npz file or a folder of images")


@partial(checked, owner="from_file")
def from_file(name: str, *, train_per_class: Count, test_per_class: Count, seed: Natural = 0) -> Task:
    """A subset of a shipped data set or of your own `.npz` file, see `load`.

    A file needs the keys x_train, y_train, x_test, y_test, as `from_arrays` takes them, and may have classes,
    train_index and test_index.
    """
    whole, _ = _read(name)
    train = choose(_labels(whole.train), whole.classes, train_per_class, seed, "train", name)
    test = choose(_labels(whole.test), whole.classes, test_per_class, seed, "test", name)
    return replace(whole, train=whole.train[train], test=whole.test[test])


def from_paper(name: str, *, train_per_class: Literal[10, 20, 50], test_per_class: Count, seed: Natural = 0) -> Task:
    """The images whose indices were published with the paper's code, in the order published.

    Parameters
    ----------
    name : {"mnist3_paper", "cifar10_paper"}
    train_per_class : {10, 20, 50}
        The subset of this size, as published. Those of one data set are separate draws, and that of cifar10 with 10
        per class is unbalanced: it has 5 to 14 points of a class.
    test_per_class : int
        Up to 300 of mnist3 and 50 of cifar10, which are all.
    seed : int
        Chooses test points where not all are asked for.

    Source: Nguyen et al. 2023, arXiv:2305.19765, and its released code.
    """
    whole, arrays = _read(name)
    test = choose(_labels(whole.test), whole.classes, test_per_class, seed, "test", name)
    if len(test) == len(whole.test):
        test = np.arange(len(test))
    return replace(whole, train=whole.train[arrays[f"train_{train_per_class}"]], test=whole.test[test])


@partial(checked, owner="from_torchvision")
def from_torchvision(
    name: str, *, train_per_class: Count, test_per_class: Count, seed: Natural = 0, root: str = "~/.cache/tdalib"
) -> Task:
    """A subset of a full data set of torchvision, see `load`.

    Parameters
    ----------
    name : {"MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100"}
    root : path
        Where torchvision keeps it; what is not there is fetched, which needs a network.

    Raises
    ------
    ValueError
        An unknown name, a set that is not there and cannot be fetched, or more per class than there are.
    """
    from torchvision import datasets

    if name not in TORCHVISION:
        raise ValueError(f"{name!r} is not known; choose from {', '.join(TORCHVISION)}")
    picked: dict[str, Any] = {"name": name}
    for split, per_class in (("train", train_per_class), ("test", test_per_class)):
        with said_as(f"dataset {name} is not in {resolve(root)} and cannot be fetched"):
            whole = getattr(datasets, name)(resolve(root), train=split == "train", download=True)
        x, y = np.asarray(whole.data), np.asarray(whole.targets)
        keep = choose(y, whole.classes, per_class, seed, split, name)
        picked |= {f"x_{split}": x[keep], f"y_{split}": y[keep], f"{split}_index": keep, "classes": whole.classes}
    return from_arrays(**picked)


def _labels(points: Points) -> np.ndarray:
    """The class of every point; one for all where there are none."""
    return points.labels.get("label", np.zeros(len(points), int))


def _read(name: str) -> tuple[Task, dict[str, np.ndarray]]:
    """The whole data set, and all that its file holds."""
    path = SHIPPED.get(name, resolve(name))
    wanted = f"dataset {name!r}: no .npz file of plain arrays, as np.savez writes, is at {path}"
    with said_as(wanted), np.load(path) as file:
        arrays: Any = dict(file)
    if missing := {"x_train", "y_train", "x_test", "y_test"} - set(arrays):
        raise ValueError(f"{name} has no {', '.join(sorted(missing))}; it needs x_train, y_train, x_test and y_test")
    return from_arrays(**{key: arrays.get(key) for key in KEYS}, name=Path(name).stem), arrays


for shipped in SHIPPED:
    register(shipped)(from_paper if shipped.endswith("_paper") else from_file)
for of_torchvision in TORCHVISION:
    register(of_torchvision)(from_torchvision)
