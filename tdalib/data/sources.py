"""Where data come from: shipped subsets, files and folders of your own, torchvision's full sets."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from tdalib import objectives
from tdalib.data.points import Points
from tdalib.data.task import SPLITS, Task, class_counts, from_arrays
from tdalib.options import Count, Natural, checked
from tdalib.registry import Registry

ROOT = Path(__file__).resolve().parents[2]  # of the repository
TORCHVISION = ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100")
SHIPPED = {path.stem: path for path in sorted((Path(__file__).parents[1] / "datasets").glob("*.npz"))}

KEYS = ("x_train", "y_train", "train_index", "x_test", "y_test", "test_index", "classes")  # of an .npz file

DATASETS = Registry("dataset")
register = DATASETS.register


def resolve(path) -> Path:
    """A path as users write it: `~` is their home, a relative one starts at the repository root."""
    return ROOT / Path(path).expanduser()


def load(
    name: str, *, train_per_class: int, test_per_class: int, seed: int = 0, objective: str | None = None, **options
) -> Task:
    """A class-balanced, seeded subset of a data set.

    Parameters
    ----------
    name : str
        "mnist3" or "cifar10", which are shipped; "mnist3_paper" or "cifar10_paper", the paper's own images
        (`from_paper`); the path of your own .npz file (`from_file`) or folder of images (`from_folder`); or a data set
        of torchvision (`from_torchvision`), such as "MNIST". Relative paths start at the repository root.
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
    return replace(task, objective=objectives.get(objective)) if objective else task


def loader(name: str) -> Callable[..., Task]:
    """The function that reads the data set called `name`, or that of a file or folder."""
    if name in DATASETS:
        return DATASETS[name]
    if resolve(name).suffix == ".npz":
        return from_file
    if name and resolve(name).is_dir():
        return from_folder
    raise ValueError(
        f"dataset {name!r} is not known; choose from {', '.join(DATASETS)}, or give an .npz file or a folder of images"
    )


@checked
def from_file(name, *, train_per_class: Count, test_per_class: Count, seed: Natural = 0) -> Task:
    """A subset of a shipped data set or of your own `.npz` file, see `load`.

    A file needs the keys x_train, y_train, x_test, y_test, as `from_arrays` takes them, and may have classes,
    train_index and test_index.
    """
    arrays = _read(name)
    whole = from_arrays(**{key: arrays.get(key) for key in KEYS}, name=Path(name).stem)
    train = _choose(_labels(whole.train), whole.classes, train_per_class, seed, "train", name)
    test = _choose(_labels(whole.test), whole.classes, test_per_class, seed, "test", name)
    return replace(whole, train=whole.train[train], test=whole.test[test])


@checked
def from_paper(name, *, train_per_class: Count, test_per_class: Count, seed: Natural = 0) -> Task:
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
    arrays = _read(name)
    sizes = [int(key.removeprefix("train_")) for key in arrays if key.startswith("train_") and key[6:].isdigit()]
    if train_per_class not in sizes:
        published = ", ".join(map(str, sorted(sizes)))
        raise ValueError(f"train_per_class: {train_per_class} is not possible; {name} was published with {published}")
    whole = from_arrays(**{key: arrays[key] for key in KEYS}, name=name)
    test = _choose(_labels(whole.test), whole.classes, test_per_class, seed, "test", name)
    if len(test) == len(whole.test):
        test = np.arange(len(test))
    return replace(whole, train=whole.train[arrays[f"train_{train_per_class}"]], test=whole.test[test])


@checked
def from_torchvision(
    name: str, *, train_per_class: Count, test_per_class: Count, seed: Natural = 0, root: str = "~/.cache/tdalib"
) -> Task:
    """A subset of a full data set of torchvision, see `load`.

    Parameters
    ----------
    name : {"MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100"}
    root : path
        Where torchvision keeps it; what is not there is fetched, which needs a network.
    """
    from torchvision import datasets

    if name not in TORCHVISION:
        raise ValueError(f"{name!r} is not known; choose from {', '.join(TORCHVISION)}")
    picked = {"name": name}
    for split, per_class in (("train", train_per_class), ("test", test_per_class)):
        try:
            whole = getattr(datasets, name)(resolve(root), train=split == "train", download=True)
        except Exception as error:  # whatever the network, the disk or a damaged file makes it raise
            reason = " ".join(str(error).split())
            raise ValueError(f"dataset {name} is not in {resolve(root)} and cannot be fetched: {reason}") from None
        x, y = np.asarray(whole.data), np.asarray(whole.targets)
        keep = _choose(y, whole.classes, per_class, seed, split, name)
        picked |= {f"x_{split}": x[keep], f"y_{split}": y[keep], f"{split}_index": keep, "classes": whole.classes}
    return from_arrays(**picked)


@checked
def from_folder(
    path,
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
    """
    if size > (resize or size):
        raise ValueError(f"size: {size} is not possible; it must be at least 1, and resize no less")
    folder = resolve(path)
    divided = (folder / "train").is_dir()
    if divided and not (folder / "test").is_dir():
        raise ValueError(f"{folder} has a folder train but no folder test; it needs both, or class folders alone")
    samples, classes = _samples(folder / "train" if divided else folder)
    of_test, same = _samples(folder / "test") if divided else (samples, classes)
    if classes != same:
        differ = ", ".join(sorted(set(classes) ^ set(same)))
        raise ValueError(f"{folder}: train and test must have the same class folders; they differ in {differ}")
    labels, labels_of_test = (np.array([label for _, label in files]) for files in (samples, of_test))
    if divided:
        train = _choose(labels, classes, train_per_class, seed, "train", path)
        test = _choose(labels_of_test, classes, test_per_class, seed, "test", path)
    else:  # both from one random order, test points from its beginning and train points from its end
        available = class_counts(labels, classes, "train").min()
        if train_per_class + test_per_class > available:
            asked = f"train_per_class: {train_per_class} beside test_per_class: {test_per_class}"
            raise ValueError(f"{asked} is not possible; {path} has 1 to {available} per class")
        orders = _random_orders(labels, classes, seed, "train")
        train = np.concatenate([np.sort(order[-train_per_class:]) for order in orders])
        test = np.concatenate([np.sort(order[:test_per_class]) for order in orders])
    return from_arrays(
        np.stack([_image(samples[k][0], size, resize or size) for k in train]),
        labels[train],
        np.stack([_image(of_test[k][0], size, resize or size) for k in test]),
        labels_of_test[test],
        classes=classes,
        train_index=train,
        test_index=test,
        name=folder.name,
    )


def _labels(points: Points) -> np.ndarray:
    """The class of every point; one for all where there are none."""
    return points.labels.get("label", np.zeros(len(points), int))


def _choose(labels: np.ndarray, classes, per_class: int, seed: int, split: str, name) -> np.ndarray:
    """Positions of `per_class` points of each class, class by class: the first of a random order."""
    classes = classes or ("",)
    available = class_counts(labels, classes, split).min()
    if per_class > available:
        raise ValueError(f"{split}_per_class: {per_class} is not possible; {name} has 1 to {available} per class")
    return np.concatenate([np.sort(order[:per_class]) for order in _random_orders(labels, classes, seed, split)])


def _random_orders(labels: np.ndarray, classes, seed: int, split: str) -> list[np.ndarray]:
    """The positions of each class in random order."""
    stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split),)))
    return [stream.permutation(np.flatnonzero(labels == label)) for label in range(len(classes))]


def _read(name) -> dict[str, np.ndarray]:
    path = SHIPPED.get(name, resolve(name))
    if not path.is_file():
        raise ValueError(f"dataset {name!r}: no file {path}; a relative path starts at the repository root")
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except Exception:  # numpy raises what the damage makes it raise
        raise ValueError(f"dataset {name!r} is no .npz file of plain arrays; np.savez writes one") from None
    missing = {"x_train", "y_train", "x_test", "y_test"} - set(arrays)
    if missing:
        raise ValueError(f"{name} has no {', '.join(sorted(missing))}; it needs x_train, y_train, x_test and y_test")
    return arrays


def _samples(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """(file, label) of every image, and the names of the classes."""
    from torchvision.datasets import ImageFolder

    try:
        images = ImageFolder(folder, allow_empty=True)
    except FileNotFoundError:
        raise ValueError(f"{folder} has no class folders; it needs a folder of images for each class") from None
    return images.samples, images.classes


def _image(file: str, size: int, resized: int) -> np.ndarray:
    """An image the right way up, its shorter side resized and its middle cut out, (size, size, 3), uint8."""
    from PIL import Image, ImageOps
    from torchvision.transforms.v2.functional import center_crop, resize

    try:
        with Image.open(file) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"its pixels are of mode {image.mode}; convert it to 8 bits a channel")
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return np.asarray(center_crop(resize(upright, [resized]), [size]))
    except Exception as error:  # PIL raises what the damage makes it raise
        raise ValueError(f"{file} cannot be read as an image: {error}") from None


for shipped in SHIPPED:
    register(shipped)(from_paper if shipped.endswith("_paper") else from_file)
for of_torchvision in TORCHVISION:
    register(of_torchvision)(from_torchvision)
