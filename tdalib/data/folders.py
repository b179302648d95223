"""Folders of images, one for each class."""

import os
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from tdalib.data.places import resolve
from tdalib.data.task import SPLITS, Task, choose, from_arrays, random_orders
from tdalib.options import Count, Natural, checked, said_as

Side = Annotated[Count, Field(le=1024)]  # of an image, pixels


@partial(checked, owner="from_folder")
def from_folder(
    path: Path | str,
    *,
    train_per_class: Count,
    test_per_class: Count,
    seed: Natural = 0,
    size: Side = 32,
    resize: Side | None = None,
) -> Task:
    """A subset of a folder of images, see `load`: a folder for each class, with images of any format and size.

    Where `path` has the folders train and test, class folders are in each; else each class's images are divided, and
    no image is in both. Hidden files and folders, and those that macOS puts into archives, are passed over. The label
    "file" of a point is where its image lies in `path`.

    Parameters
    ----------
    path : path
    size : int
        Side of the square that is cut out of the middle, pixels, at most 1024. Images are (3, size, size), grey ones
        too.
    resize : int, optional
        Length of the shorter side before that; by default `size`.

    Returns
    -------
    Task whose `train_index` and `test_index` are positions among the images that are not passed over, in the order of
    torchvision's `ImageFolder(path).samples`, or in those of path/train and path/test.

    Warns
    -----
    UserWarning
        Files that are no images by their endings are left out, or test images are among the train images too.

    Raises
    ------
    ValueError
        A size above `resize`, folders that do not fit, a file that is no image, or more per class than there are.
    """
    resize = resize or size
    if size > resize:
        raise ValueError(f"size: {size} is not possible; it must be at least 1, and resize no less")
    folder = resolve(path)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; it needs a folder of images for each class")
    if (folder / "train").is_dir():
        of_train, of_test = (_images(folder / split, size, resize) for split in SPLITS)
        if differ := ", ".join(sorted(set(of_train.classes) ^ set(of_test.classes))):
            raise ValueError(f"{folder}: train and test must have the same class folders; they differ in {differ}")
        train = choose(of_train.targets, of_train.classes, train_per_class, seed, "train", path)
        test = choose(of_test.targets, of_test.classes, test_per_class, seed, "test", path)
    else:  # both from one random order, test points from its beginning and train points from its end
        of_train = of_test = _images(folder, size, resize)
        wanted = {"train_per_class": train_per_class, "test_per_class": test_per_class}
        orders = random_orders(of_train.targets, of_train.classes, wanted, seed, "train", path)
        train = np.concatenate([np.sort(order[-train_per_class:]) for order in orders])
        test = np.concatenate([np.sort(order[:test_per_class]) for order in orders])
    picked: dict[str, Any] = {"name": folder.name, "classes": of_train.classes}
    files = {}
    for split, images, keep in (("train", of_train, train), ("test", of_test, test)):
        x, y = np.stack([images[k][0] for k in keep]), np.asarray(images.targets)
        files[split] = [Path(images.samples[k][0]).relative_to(folder).as_posix() for k in keep]
        picked |= {f"x_{split}": x, f"y_{split}": y[keep], f"{split}_index": keep}
    known = {x.tobytes(): file for x, file in zip(picked["x_train"], files["train"], strict=True)}
    same = [known.get(x.tobytes()) for x in picked["x_test"]]
    if twice := [f"{file} is {other}" for file, other in zip(files["test"], same, strict=True) if other]:
        said = f"{folder}: {len(twice)} test images are among the train images too, such as {twice[0]}"
        warnings.warn(said, stacklevel=4)
    return from_arrays(**picked, labels={"file": (files["train"], files["test"])})


def _images(folder: Path, size: int, resize: int) -> Any:
    """Torchvision's `ImageFolder`, whose images are cut out as asked for, without hidden files and folders."""
    from torchvision.datasets import ImageFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    if not folder.is_dir():
        raise ValueError(f"{folder} is not there; beside train there must be a folder test, of the same classes")
    inside = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    names = [name for name in inside if not _is_hidden(Path(name))]
    if not names:
        raise ValueError(f"{folder} has no class folders; it needs a folder of images for each class")
    if split := [name for name in names if name.lower() in SPLITS]:
        raise ValueError(f"{folder}: {split[0]!r} is no class; name the folders of the splits train and test")
    below = (walked for name in names for walked in os.walk(folder / name, followlinks=True))
    files = sorted(Path(at, name) for at, _, inside in below for name in inside)
    seen = [file for file in files if not _is_hidden(file.relative_to(folder))]
    images = {str(file) for file in seen if file.suffix.lower() in IMG_EXTENSIONS}
    if len(images) < len(seen):
        endings = ", ".join(sorted({file.suffix or file.name for file in seen if str(file) not in images}))
        said = f"{folder}: {len(seen) - len(images)} files are no images by their endings ({endings}) and are left out"
        warnings.warn(said, stacklevel=5)

    class Visible(ImageFolder):
        def find_classes(self, _: str | Path) -> tuple[list[str], dict[str, int]]:
            return names, {name: k for k, name in enumerate(names)}

    load = partial(_image, size=size, resize=resize)
    return Visible(folder, loader=load, allow_empty=True, is_valid_file=images.__contains__)


def _is_hidden(path: Path) -> bool:
    """Whether a part of a path begins with a dot, or is what macOS puts into archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _image(file: str, size: int, resize: int) -> np.ndarray:
    """An image the right way up, its shorter side resized and its middle cut out, (size, size, 3), uint8."""
    from PIL import Image, ImageOps
    from torchvision.transforms.v2 import functional

    with said_as(f"{file} cannot be read as an image"), Image.open(file) as image:
        if image.mode[0] in "IF":
            raise ValueError(f"its pixels are of mode {image.mode}; convert it to 8 bits a channel")
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(functional.center_crop(functional.resize(upright, [resize]), [size]))
