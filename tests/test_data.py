"""Shipped subsets, your own arrays and files, and what is refused."""

import shutil
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image

from tdalib import Recipe, attribute, data, deep_ensemble


@pytest.mark.parametrize(("name", "classes", "shape"), [("mnist3", 3, (1, 28, 28)), ("cifar10", 10, (3, 32, 32))])
def test_subsets_are_balanced_seeded_and_nested(name, classes, shape):
    task = data.load(name, train_per_class=10, test_per_class=5, seed=3)
    assert task.x_train.shape == (10 * classes, *shape)
    assert (np.bincount(task.y_train) == 10).all() and (np.bincount(task.y_test) == 5).all()
    assert task.fingerprint() == data.load(name, train_per_class=10, test_per_class=5, seed=3).fingerprint()
    assert task.fingerprint() != data.load(name, train_per_class=10, test_per_class=5, seed=4).fingerprint()
    larger = data.load(name, train_per_class=20, test_per_class=5, seed=3)
    assert set(task.train_index) < set(larger.train_index)


def test_images_are_normalised_and_point_to_their_source():
    task = data.load("cifar10", train_per_class=2, test_per_class=1)
    with np.load(data.SHIPPED["cifar10"]) as file:
        where = np.flatnonzero(file["train_index"] == task.train_index[3])[0]
        image, label = file["x_train"][where], file["y_train"][where]
    expected = torch.from_numpy(image).permute(2, 0, 1) / 255 * 2 - 1
    torch.testing.assert_close(task.x_train[3], expected)
    assert task.y_train[3] == label


def test_data_card_states_the_checksums():
    card = (data.SHIPPED["mnist3"].parent / "README.md").read_text()
    for path in data.SHIPPED.values():
        assert f"{path.name} " in card and sha256(path.read_bytes()).hexdigest() in card


def arrays(**changes):
    stream = np.random.default_rng(0)
    return {
        "x_train": stream.normal(size=(6, 4)),
        "y_train": np.arange(6) % 3,
        "x_test": stream.normal(size=(3, 4)),
        "y_test": np.arange(3),
    } | changes


def test_arrays_keep_their_values_and_float64():
    given = arrays()
    task = data.from_arrays(**given, classes=["a", "b", "c"])
    assert task.x_train.dtype == torch.float64 and task.classes == ("a", "b", "c")
    np.testing.assert_array_equal(task.x_train, given["x_train"])


def test_integers_stay_integers_and_dicts_stay_dicts():
    given = arrays(x_train={"ids": np.arange(12, dtype=np.int32).reshape(6, 2), "mask": np.ones((6, 2), bool)},
                   x_test={"ids": np.arange(6).reshape(3, 2), "mask": np.zeros((3, 2), bool)})  # fmt: skip
    task = data.from_arrays(**given)
    assert task.x_train["ids"].dtype == torch.int64 and task.x_train["mask"].dtype == torch.bool
    np.testing.assert_array_equal(task.x_train["ids"], given["x_train"]["ids"])
    np.testing.assert_array_equal(task.train[[4, 1]].inputs["ids"], given["x_train"]["ids"][[4, 1]])
    assert task.to(torch.float64).x_train["ids"].dtype == torch.int64


def test_own_file(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays())
    task = data.load(str(path), train_per_class=1, test_per_class=1)
    assert task.name == "mine" and len(task.x_train) == 3


same_pixels = pytest.mark.filterwarnings("ignore:.*test images are among the train images")


def picture(path, side=(40, 60), colour=(200, 30, 90), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", side, colour).convert(mode).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Two classes of six images each, of several sizes, formats and modes."""
    for k in range(6):
        picture(tmp_path / "cat" / f"{k}.png", (40 + k, 60), (10 * k, 0, 0))
        picture(tmp_path / "dog" / f"{k}.jpg", (60, 40), (0, 10 * k, 0), mode="L" if k == 3 else "RGB")
    return tmp_path


@same_pixels
def test_folder_of_class_folders_is_divided(pictures):
    asked = {"test_per_class": 2, "size": 24, "resize": 30, "seed": 1}
    task = data.from_folder(pictures, train_per_class=3, **asked)
    assert task.classes == ("cat", "dog") and task.name == pictures.name
    assert task.x_train.shape == (6, 3, 24, 24) and task.x_test.shape == (4, 3, 24, 24)
    assert not set(task.train_index) & set(task.test_index)
    first = task.train_index[0]  # of the first class, whose files come first
    torch.testing.assert_close(task.x_train[0, 0], torch.full((24, 24), 10 * first / 127.5 - 1))
    assert (task.x_train[0, 1:] == -1).all()
    again = data.load(str(pictures), train_per_class=3, **asked)
    assert again.fingerprint() == task.fingerprint()
    larger = data.from_folder(pictures, train_per_class=4, **asked)
    assert set(task.train_index) < set(larger.train_index) and set(task.test_index) == set(larger.test_index)
    other = data.from_folder(pictures, train_per_class=3, **asked | {"test_per_class": 3})
    assert (task.train_index == other.train_index).all() and set(task.test_index) < set(other.test_index)


def test_linked_folders_inside_a_class_count(pictures, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for k in range(6):
        (pictures / "cat" / f"{k}.png").rename(elsewhere / f"{k}.png")
    (pictures / "cat" / "more").symlink_to(elsewhere)
    task = data.from_folder(pictures, train_per_class=4, test_per_class=2, size=8)
    assert {path for path in task.train.labels["file"] if "cat" in path} < {f"cat/more/{k}.png" for k in range(6)}


def test_folder_with_a_train_and_a_test_folder(pictures, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train").mkdir(exist_ok=True)
        (pictures / name).rename(tmp_path / "train" / name)
        picture(tmp_path / "test" / name / "a.png", colour=(250, 0, 0))
    task = data.from_folder(tmp_path, train_per_class=6, test_per_class=1, size=8)
    assert task.x_train.shape == (12, 3, 8, 8) and (task.test_index == [0, 1]).all()
    assert (task.x_test[:, 0] > 0.9).all() and (task.x_train[:, 0] < 0.9).all()


@same_pixels
def test_class_folders_may_be_nested_and_pictures_are_turned_upright(pictures):
    (pictures / "cat" / "2020").mkdir()
    exif = Image.Exif()
    exif[274] = 6  # to be turned a quarter
    lying = Image.new("RGB", (20, 10))
    lying.paste((255, 255, 255), (0, 0, 10, 10))
    for k in range(6):
        (pictures / "cat" / f"{k}.png").unlink()
        lying.save(pictures / "cat" / "2020" / f"{k}.png", exif=exif)
    task = data.from_folder(pictures, train_per_class=1, test_per_class=1, size=10)
    assert task.classes == ("cat", "dog")
    upper, lower = task.x_train[0].split(5, dim=1)
    assert upper.mean() > 0.9 and lower.mean() < -0.9


@same_pixels
def test_folders_for_other_splits_are_refused(pictures):
    for split, names in (("train", ("cat", "dog")), ("val", ("cat", "dog"))):
        for name in names:
            picture(pictures / "photos" / split / name / "a.png")
    with pytest.raises(
        ValueError, match="photos/test is not there; beside train there must be a folder test, of the same classes"
    ):
        data.from_folder(pictures / "photos", train_per_class=1, test_per_class=1)
    picture(pictures / "photos" / "test" / "dog" / "a.png")
    with pytest.raises(ValueError, match="same class folders; they differ in cat"):
        data.from_folder(pictures / "photos", train_per_class=1, test_per_class=1)


@same_pixels
def test_a_picture_is_cut_out_of_the_middle(tmp_path):
    for name in "ab":
        for k in range(2):
            picture(tmp_path / name / f"{k}.png", (30, 10), (0, 0, 0))
    striped = Image.new("RGB", (30, 10))
    striped.paste((255, 255, 255), (10, 0, 20, 10))
    for k in range(2):
        striped.save(tmp_path / "a" / f"{k}.png")
    task = data.from_folder(tmp_path, train_per_class=1, test_per_class=1, size=10)
    assert (task.x_train[0] == 1).all() and (task.x_train[1] == -1).all()


@same_pixels
def test_bad_folders_are_refused(pictures):
    def read(**changes):
        return data.from_folder(pictures, **{"train_per_class": 4, "test_per_class": 2} | changes)

    with pytest.raises(
        ValueError, match="train_per_class: 5 beside test_per_class: 2 is not possible; .* has 1 to 6 per class"
    ):
        read(train_per_class=5)
    with pytest.raises(
        ValueError, match="train_per_class: 4 beside test_per_class: 6 is not possible; .* has 1 to 6 per class"
    ):
        read(test_per_class=6)
    with pytest.raises(ValueError, match="size: 24 is not possible; it must be at least 1, and resize no less"):
        read(size=24, resize=20)
    for spoil in (
        lambda path: path.write_bytes(b"no picture"),
        lambda path: Image.new("I;16", (9, 9)).save(path, format="PNG"),
    ):
        spoil(pictures / "dog" / "1.jpg")
        with pytest.raises(ValueError, match=r"dog/1.jpg cannot be read as an image"):
            read()
    with pytest.raises(ValueError, match="all points are of one class; a classifier needs two or more"):
        picture(pictures / "alone" / "cat" / "a.png")
        picture(pictures / "alone" / "cat" / "b.png")
        data.from_folder(pictures / "alone", train_per_class=1, test_per_class=1)
    shutil.rmtree(pictures / "alone")
    (pictures / "empty").mkdir()
    with pytest.raises(ValueError, match="class 2 \\('empty'\\) has no train point"):
        read()
    with pytest.raises(ValueError, match="has no class folders; it needs a folder of images for each class"):
        data.from_folder(pictures / "empty", train_per_class=1, test_per_class=1)


HIDDEN = [
    ".ipynb_checkpoints/cat/1-checkpoint.png", "cat/.ipynb_checkpoints/1-checkpoint.png", "__MACOSX/cat/1.png",
    "cat/._1.png", "cat/__MACOSX/1.png", ".thumbnails/1.png", "dog/.hidden/deep/1.png",
]  # fmt: skip


def test_hidden_files_and_folders_are_no_points(pictures):
    asked = {"train_per_class": 4, "test_per_class": 2, "size": 8}
    before = data.from_folder(pictures, **asked)
    for name in HIDDEN:
        picture(pictures / name)
    after = data.from_folder(pictures, **asked)
    assert after.classes == ("cat", "dog") and after.fingerprint() == before.fingerprint()


def test_a_row_says_which_file_it_is(pictures):
    task = data.from_folder(pictures, train_per_class=4, test_per_class=2, size=8)
    files = [*task.train.labels["file"], *task.test.labels["file"]]
    assert set(files) == {f"cat/{k}.png" for k in range(6)} | {f"dog/{k}.jpg" for k in range(6)}
    for file, x in zip(task.train.labels["file"][:4], task.x_train, strict=False):
        torch.testing.assert_close(x[0], torch.full((8, 8), 10 * int(file[4]) / 127.5 - 1))
    posterior = deep_ensemble("logreg", task, Recipe(epochs=1), members=1, checkpoints=1)
    result = attribute(posterior, "gd", workers=1)
    assert result.train_file.values.tolist() == files[:8]


def test_files_of_other_endings_are_named(pictures):
    (pictures / "cat" / "notes.txt").touch()
    (pictures / "dog" / "new.HEIC").touch()
    with pytest.warns(UserWarning, match=r"2 files are no images by their endings \(.HEIC, .txt\) and are left out"):
        task = data.from_folder(pictures, train_per_class=4, test_per_class=2, size=8)
    assert len(task.train) == 8


def test_a_copy_in_the_other_split_is_named(pictures):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            picture(pictures / "photos" / split / name / f"{split}.png", colour=(len(split), len(name), ord(name[0])))
    shutil.copy(pictures / "photos/train/cat/train.png", pictures / "photos/test/cat/test.png")
    with pytest.warns(UserWarning, match="1 test images are among the train images too, such as test/cat/test.png is "):
        data.from_folder(pictures / "photos", train_per_class=1, test_per_class=1)


@pytest.mark.parametrize(("names", "said"), [
    (("Train", "Test"), "'Test' is no class; name the folders of the splits train and test"),
    (("TRAIN", "val"), "'TRAIN' is no class"),
])  # fmt: skip
def test_folders_of_splits_are_no_classes(tmp_path, names, said):
    for name in names:
        picture(tmp_path / name / "cat" / "a.png")
    with pytest.raises(ValueError, match=said):
        data.from_folder(tmp_path, train_per_class=1, test_per_class=1)


@pytest.mark.parametrize("size", [100_000, 1025, 0, -3, 2.5, "big"])
def test_an_impossible_size_is_refused(pictures, size):
    with pytest.raises(ValueError, match="from_folder.size"):
        data.from_folder(pictures, train_per_class=1, test_per_class=1, size=size)


def test_full_set_of_torchvision_from_its_files(tmp_path, monkeypatch):
    """A small MNIST in the format of the full one: what torchvision finds it does not fetch."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    for split, count in (("train", 40), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % 10
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + count.to_bytes(4) + labels.tobytes())
        shape = b"".join(size.to_bytes(4) for size in (count, 28, 28))
        (raw / f"{split}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + shape + images[:count].tobytes())
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("it fetches"))
    task = data.load("MNIST", train_per_class=3, test_per_class=2, root=str(tmp_path))
    assert task.x_train.shape == (30, 1, 28, 28) and len(task.classes) == 10
    torch.testing.assert_close(task.x_train[4, 0], torch.from_numpy(images[task.train_index[4]]) / 127.5 - 1)
    assert (task.y_train.numpy() == task.train_index % 10).all()
    with pytest.raises(ValueError, match="train_per_class: 5 is not possible; MNIST has 1 to 4 per class"):
        data.from_torchvision("MNIST", train_per_class=5, test_per_class=1, root=str(tmp_path))


def test_full_set_that_cannot_be_fetched(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(ValueError, match="dataset MNIST is not in .* and cannot be fetched: "):
        data.load("MNIST", train_per_class=1, test_per_class=1, root=str(tmp_path))


NAN = np.where(np.arange(24).reshape(6, 4) == 9, np.nan, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": NAN}, r"x_train\[2\] has a value that is not finite"),
        ({"y_train": np.array([0, 0, 2, 2, 2, 2])}, r"class 1 \('1'\) has no train point"),
        ({"y_train": np.arange(6) % 2, "classes": list("abc")}, r"class 2 \('c'\) has no train point"),
        ({"y_train": np.array([0, 1, 2, 0, 1])}, "one label for each of 6 points"),
        ({"y_test": np.array([0, 1, 7])}, "y_test has the label 7; the classes are 0 to 2"),
        ({"y_test": np.array([0, -1, 1])}, "whole numbers"),
        ({"y_train": np.array(list("abcabc"))}, "y_train must hold whole numbers"),
        ({"y_train": np.array([0, 1, 2, 0, 1, 10**12])}, "y_train has the label 1000000000000; the classes are 0 to 6"),
        (
            {"y_test": np.array([0.0, 1.0, 2.0])},
            r"y_train are int64 of shape \(\), those of y_test are float64 of shape \(1,\); they must be alike",
        ),
        ({"x_test": np.ones((3, 5))}, r"float64 of shape \(4,\), those of x_test are float64 of shape \(5,\)"),
        ({"x_train": np.ones((6, 4, 4, 2), np.uint8)}, "uint8 images need shape"),
        ({"x_test": np.ones((3, 4), np.float32)}, "must be alike"),
        ({"x_train": np.ones((6, 4), np.int64)}, r"x_train are int64 of shape \(4,\), those of x_test are float64"),
        ({"x_train": np.ones((6, 4), complex)}, "x_train holds complex128; give uint8 images, floats or integers"),
        ({"x_train": np.full((6, 4), "a")}, "x_train holds <U1; give uint8 images, floats or integers"),
        ({"x_train": 1.0}, "at least one point"),
        ({"x_train": np.ones(6)}, "at least one point and one feature axis"),
        ({"train_index": np.arange(2)}, r"train_index has shape \(2,\); it needs one .* for each of 6 points"),
        ({"train_index": np.arange(6.0)}, "train_index must hold one whole number for each of 6 points"),
    ],
)
def test_bad_arrays_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(**arrays(**changes))


def test_bad_files_are_refused_even_outside_the_subset(tmp_path):
    path = tmp_path / "mine.npz"
    for changes, message in (
        ({"x_train": NAN}, r"x_train\[2\]"),
        ({"y_train": np.array([0, 0, 2, 2, 2, 2])}, "class 1"),
        ({"y_test": np.array([0, 1, 1])}, "class 2 .* no test point"),
    ):
        np.savez(path, **arrays(**changes))
        with pytest.raises(ValueError, match=message):
            data.load(str(path), train_per_class=1, test_per_class=1)


def test_files_that_are_no_data(tmp_path):
    (tmp_path / "noise.npz").write_bytes(b"not a zip")
    (tmp_path / "empty.npz").touch()
    for name in ("noise", "empty"):
        with pytest.raises(ValueError, match="no .npz file of plain arrays"):
            data.load(str(tmp_path / f"{name}.npz"), train_per_class=1, test_per_class=1)
    np.savez(tmp_path / "half.npz", x_train=np.ones((2, 2)))
    with pytest.raises(ValueError, match="has no x_test, y_test, y_train"):
        data.load(str(tmp_path / "half.npz"), train_per_class=1, test_per_class=1)


@pytest.mark.parametrize(
    ("name", "per_class", "message"),
    [
        ("mnist", 1, "dataset 'mnist' is not known; choose from cifar10, cifar10_paper, mnist3, mnist3_paper, MNIST"),
        ("nowhere.npz", 1, f"'nowhere.npz': no .npz file of plain arrays, .*, is at {data.ROOT}/nowhere.npz"),
        ("mnist3", 101, "train_per_class: 101 is not possible; mnist3 has 1 to 100 per class"),
        ("mnist3", 0, "train_per_class: 0 is not possible"),
    ],
)
def test_bad_requests_are_refused(name, per_class, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, train_per_class=per_class, test_per_class=1)


@pytest.mark.parametrize(("name", "classes", "test"), [("mnist3_paper", 3, 300), ("cifar10_paper", 10, 50)])
@pytest.mark.parametrize("size", [10, 20, 50])
def test_the_papers_subsets_are_those_published(name, classes, test, size):
    task = data.load(name, train_per_class=size, test_per_class=test, seed=7)
    with np.load(data.SHIPPED[name]) as file:
        chosen = file[f"train_{size}"]
        assert task.train_index.tolist() == file["train_index"][chosen].tolist()
        assert task.y_train.tolist() == file["y_train"][chosen].tolist()
        assert task.test_index.tolist() == file["test_index"].tolist()
    counts = np.bincount(task.y_train, minlength=classes).tolist()
    if (name, size) == ("cifar10_paper", 10):
        assert counts == [11, 9, 14, 10, 12, 5, 6, 6, 14, 13]
    else:
        assert counts == [size] * classes
    few = data.load(name, train_per_class=size, test_per_class=2)
    assert len(few.test) == 2 * classes and set(few.test_index) < set(task.test_index)


def test_other_sizes_of_the_papers_subsets_are_refused():
    with pytest.raises(
        ValueError, match="mnist3_paper.train_per_class: 15 is not possible; input should be 10, 20 or 50"
    ):
        data.load("mnist3_paper", train_per_class=15, test_per_class=2)
    with pytest.raises(ValueError, match="test_per_class: 301 is not possible; mnist3_paper has 1 to 300 per class"):
        data.load("mnist3_paper", train_per_class=10, test_per_class=301)


def test_a_file_of_regression_counts_points_in_all(tmp_path):
    given = arrays(y_train=np.linspace(0, 1, 6), y_test=np.linspace(0, 1, 3))
    np.savez(tmp_path / "mine.npz", **given)
    task = data.load(str(tmp_path / "mine.npz"), train_per_class=4, test_per_class=3)
    assert task.objective.name == "squared_error" and task.y_train.shape == (4, 1) and len(task.test) == 3
    np.testing.assert_array_equal(task.y_train[:, 0], given["y_train"][task.train_index])
