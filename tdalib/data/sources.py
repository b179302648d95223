"""Where data come from: shipped subsets, files and folders of your own, torchvision's full sets."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tdalib.data.points import Points
from tdalib.data.task import SPLITS, Task, class_counts, from_arrays, under
from tdalib.options import Count, Natural, checked, one_line
from tdalib.registry import Registry

ROOT = Path(__file__).resolve().parents[2]  # of the repository
TORCHVISION = ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100")
SHIPPED = {path.stem: path for path in sorted((Path(__file__).parents[1] / "datasets").glob("*.npz"))}

KEYS = ("x_train", "y_train", "train_index", "x_test", "y_test", "test_index", "classes")  # of an .npz file

DATASETS = Registry("dataset")
register = DATASETS.register


def resolve(path: Path | str) -> Path:
    """A path as users write it: `~` is their home, a relative one starts at the repository root."""
    return ROOT / Path(path).expanduser()


def fetched(name: str) -> Path:
    """The folder called so; else what the Hugging Face hub has by this name, fetched where its cache lacks it."""
    from huggingface_hub import snapshot_download

    if resolve(name).is_dir():
        return resolve(name)
    wanted: dict[str, Any] = {"repo_id": name, "allow_patterns": ["*.json", "*.txt", "*.model", "*.safetensors"]}
    try:
        return Path(snapshot_download(**wanted, local_files_only=True))
    except OSError:  # not in the cache
        return Path(snapshot_download(**wanted))


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
    train = _choose(_labels(whole.train), whole.classes, train_per_class, seed, "train", name)
    test = _choose(_labels(whole.test), whole.classes, test_per_class, seed, "test", name)
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
    test = _choose(_labels(whole.test), whole.classes, test_per_class, seed, "test", name)
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
        try:
            whole = getattr(datasets, name)(resolve(root), train=split == "train", download=True)
        except Exception as error:  # whatever the network, the disk or a damaged file makes it raise
            reason = one_line(error)
            raise ValueError(f"dataset {name} is not in {resolve(root)} and cannot be fetched: {reason}") from None
        x, y = np.asarray(whole.data), np.asarray(whole.targets)
        keep = _choose(y, whole.classes, per_class, seed, split, name)
        picked |= {f"x_{split}": x[keep], f"y_{split}": y[keep], f"{split}_index": keep, "classes": whole.classes}
    return from_arrays(**picked)


@partial(checked, owner="from_folder")
def from_folder(
    path: Path | str,
    *,
    train_per_class: Count,
    test_per_class: Count,
    seed: Natural = 0,
    size: Count = 32,
    resize: Count | None = None,
) -> Task:
    """A subset of a folder of images, see `load`: a folder for each class, with images of any format and size.

    Where `path` has the folders train and test, class folders are in each; else each class's images are divided, and
    no image is in both.

    Parameters
    ----------
    path : path
    size : int
        Side of the square that is cut out of the middle, pixels. Images are (3, size, size), grey ones too.
    resize : int, optional
        Length of the shorter side before that; by default `size`.

    Returns
    -------
    Task whose `train_index` and `test_index` are positions in torchvision's `ImageFolder(path).samples`, or in those of
    path/train and path/test.

    Raises
    ------
    ValueError
        A size above `resize`, folders that do not fit, a file that is no image, or more per class than there are.
    """
    resize = resize or size
    if size > resize:
        raise ValueError(f"size: {size} is not possible; it must be at least 1, and resize no less")
    folder = resolve(path)
    if (folder / "train").is_dir():
        of_train, of_test = (_images(folder / split, size, resize) for split in SPLITS)
        if of_train.classes != of_test.classes:
            differ = ", ".join(sorted(set(of_train.classes) ^ set(of_test.classes)))
            raise ValueError(f"{folder}: train and test must have the same class folders; they differ in {differ}")
        train = _choose(of_train.targets, of_train.classes, train_per_class, seed, "train", path)
        test = _choose(of_test.targets, of_test.classes, test_per_class, seed, "test", path)
    else:  # both from one random order, test points from its beginning and train points from its end
        of_train = of_test = _images(folder, size, resize)
        wanted = {"train_per_class": train_per_class, "test_per_class": test_per_class}
        orders = _random_orders(of_train.targets, of_train.classes, wanted, seed, "train", path)
        train = np.concatenate([np.sort(order[-train_per_class:]) for order in orders])
        test = np.concatenate([np.sort(order[:test_per_class]) for order in orders])
    picked: dict[str, Any] = {"name": folder.name, "classes": of_train.classes}
    for split, images, keep in (("train", of_train, train), ("test", of_test, test)):
        x, y = np.stack([images[k][0] for k in keep]), np.asarray(images.targets)
        picked |= {f"x_{split}": x, f"y_{split}": y[keep], f"{split}_index": keep}
    return from_arrays(**picked)


def _labels(points: Points) -> np.ndarray:
    """The class of every point; one for all where there are none."""
    return points.labels.get("label", np.zeros(len(points), int))


def _choose(labels: Any, classes: Sequence[str], per_class: int, seed: int, split: str, name: object) -> np.ndarray:
    """Positions of `per_class` points of each class, class by class: the first of a random order."""
    orders = _random_orders(labels, classes or ("",), {f"{split}_per_class": per_class}, seed, split, name)
    return np.concatenate([np.sort(order[:per_class]) for order in orders])


def _random_orders(
    labels: Any, classes: Sequence[str], wanted: dict[str, int], seed: int, split: str, name: object
) -> list[np.ndarray]:
    """The positions of each class in random order; there must be as many as are wanted in all."""
    available = class_counts(labels, classes, split).min()
    if sum(wanted.values()) > available:
        asked = " beside ".join(f"{key}: {count}" for key, count in wanted.items())
        raise ValueError(f"{asked} is not possible; {name} has 1 to {available} per class")
    stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split),)))
    return [stream.permutation(np.flatnonzero(np.equal(labels, label))) for label in range(len(classes))]


def _read(name: str) -> tuple[Task, dict[str, np.ndarray]]:
    """The whole data set, and all that its file holds."""
    path = SHIPPED.get(name, resolve(name))
    try:
        with np.load(path) as file:
            arrays: Any = dict(file)
    except Exception:  # numpy raises what the damage makes it raise
        raise ValueError(f"dataset {name!r}: no .npz file of plain arrays, as np.savez writes, is at {path}") from None
    missing = {"x_train", "y_train", "x_test", "y_test"} - set(arrays)
    if missing:
        raise ValueError(f"{name} has no {', '.join(sorted(missing))}; it needs x_train, y_train, x_test and y_test")
    return from_arrays(**{key: arrays.get(key) for key in KEYS}, name=Path(name).stem), arrays


def _images(folder: Path, size: int, resize: int) -> Any:
    """Torchvision's `ImageFolder`, whose images are cut out as asked for."""
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(folder, loader=partial(_image, size=size, resize=resize), allow_empty=True)
    except FileNotFoundError:
        raise ValueError(f"{folder} has no class folders; it needs a folder of images for each class") from None


def _image(file: str, size: int, resize: int) -> np.ndarray:
    """An image the right way up, its shorter side resized and its middle cut out, (size, size, 3), uint8."""
    from PIL import Image, ImageOps
    from torchvision.transforms.v2 import functional

    try:
        with Image.open(file) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"its pixels are of mode {image.mode}; convert it to 8 bits a channel")
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return np.asarray(functional.center_crop(functional.resize(upright, [resize]), [size]))
    except Exception as error:  # PIL raises what the damage makes it raise
        raise ValueError(f"{file} cannot be read as an image: {error}") from None


for shipped in SHIPPED:
    register(shipped)(from_paper if shipped.endswith("_paper") else from_file)
for of_torchvision in TORCHVISION:
    register(of_torchvision)(from_torchvision)
