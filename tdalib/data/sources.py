"""Where data come from: shipped subsets, files and folders of your own, torchvision's full sets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tdalib.data.task import Task, check_labels, check_points, class_counts, class_names, from_arrays, positions

ROOT = Path(__file__).resolve().parents[2]  # of the repository
TORCHVISION = ("MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100")
SHIPPED = {path.stem: path for path in sorted((Path(__file__).parents[1] / "datasets").glob("*.npz"))}


def resolve(path) -> Path:
    """A path as users write it: `~` is their home, a relative one starts at the repository root."""
    return ROOT / Path(path).expanduser()


def load(name: str, *, train_per_class: int, test_per_class: int, seed: int = 0, **options) -> Task:
    """A class-balanced, seeded subset of a data set.

    Parameters
    ----------
    name : str
        "mnist3" or "cifar10", which are shipped; the path of your own .npz file (`from_file`) or folder of images
        (`from_folder`); or a data set of torchvision (`from_torchvision`), such as "MNIST". Relative paths start at the
        repository root.
    train_per_class, test_per_class : int
    seed : int
        Chooses the subset. With one seed, smaller subsets are contained in larger ones.
    options
        Further keywords of the function that reads it.

    Raises
    ------
    ValueError
        An unknown name, data that cannot be used, or more per class than there are.
    """
    return loader(name)(name, train_per_class=train_per_class, test_per_class=test_per_class, seed=seed, **options)


def loader(name: str) -> Callable[..., Task]:
    """The function that reads the data set called `name`: from_file, from_folder or from_torchvision."""
    if name in TORCHVISION:
        return from_torchvision
    if name in SHIPPED or resolve(name).suffix == ".npz":
        return from_file
    if name and resolve(name).is_dir():
        return from_folder
    raise ValueError(
        f"dataset {name!r} is not known; choose from {', '.join(SHIPPED)}, {', '.join(TORCHVISION)} (of torchvision), "
        "or give an .npz file or a folder of images"
    )


def from_file(name, *, train_per_class: int, test_per_class: int, seed: int = 0) -> Task:
    """A subset of a shipped data set or of your own `.npz` file, see `load`.

    A file needs the keys x_train, y_train, x_test, y_test, as `from_arrays` takes them, and may have classes,
    train_index and test_index.
    """
    arrays = _read(name)
    for split in ("train", "test"):
        check_points(arrays[f"x_{split}"], f"x_{split}")
        check_labels(arrays[f"y_{split}"], len(arrays[f"x_{split}"]), f"y_{split}")
    classes = class_names(arrays.get("classes"), arrays["y_train"])
    picked = {"classes": classes, "name": Path(name).stem}
    for split, per_class in (("train", train_per_class), ("test", test_per_class)):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        index = positions(arrays.get(f"{split}_index"), len(x), f"{split}_index")
        keep = _choose(y, classes, per_class, seed, split, name)
        picked |= {f"x_{split}": x[keep], f"y_{split}": y[keep], f"{split}_index": index[keep]}
    return from_arrays(**picked)


def from_torchvision(
    name: str, *, train_per_class: int, test_per_class: int, seed: int = 0, root: str = "~/.cache/tdalib"
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


def from_folder(
    path, *, train_per_class: int, test_per_class: int, seed: int = 0, size: int = 32, resize: int | None = None
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
    if not 1 <= size <= (resize or size):
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
    order, beside = ("test", 0) if divided else ("train", test_per_class)  # one folder: both from one random order
    train = _choose(labels, classes, train_per_class, seed, "train", path, beside=beside)
    test = _choose(labels_of_test, classes, test_per_class, seed, "test", path, order=order)
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


def _choose(labels, classes, per_class: int, seed: int, split: str, name, order=None, beside: int = 0) -> np.ndarray:
    """Positions of `per_class` points of each class, class by class: the first of a random order, that of the split.

    With `beside`, where so many of the first are in use already: the last.
    """
    available = class_counts(labels, classes, split).min()
    if not 1 <= per_class <= available - beside:
        asked = f"{split}_per_class: {per_class}" + (f" beside test_per_class: {beside}" if beside else "")
        raise ValueError(f"{asked} is not possible; {name} has 1 to {available} per class")
    stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(("train", "test").index(order or split),)))
    random = [stream.permutation(np.flatnonzero(labels == label)) for label in range(len(classes))]
    chosen = slice(-1, -per_class - 1, -1) if beside else slice(per_class)
    return np.concatenate([np.sort(positions[chosen]) for positions in random])


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
