"""Shipped subsets, your own arrays and files, and what is refused."""

from hashlib import sha256

import numpy as np
import pytest
import torch

from tdalib import data


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


def test_own_file(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays())
    task = data.load(str(path), train_per_class=1, test_per_class=1)
    assert task.name == "mine" and len(task.x_train) == 3


NAN = np.where(np.arange(24).reshape(6, 4) == 9, np.nan, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": NAN}, r"x_train\[2\] has a value that is not finite"),
        ({"y_train": np.array([0, 0, 2, 2, 2, 2])}, r"class 1 \('1'\) has no train point"),
        ({"y_train": np.array([0, 1, 2, 0, 1])}, "one label for each of 6 points"),
        ({"y_test": np.array([0, 1, 7])}, "y_test has the label 7; the classes are 0 to 2"),
        ({"y_test": np.array([0, -1, 1])}, "whole numbers"),
        ({"y_train": np.array(list("abcabc"))}, "y_train must hold whole numbers"),
        ({"y_train": np.array([0, 1, 2, 0, 1, 10**12])}, "label 1000000000000 but only 6 points"),
        ({"y_test": np.array([0.0, 1.0, 2.0])}, "whole numbers"),
        ({"x_test": np.ones((3, 5))}, r"float64 of shape \(4,\), those of x_test are float64 of shape \(5,\)"),
        ({"x_train": np.ones((6, 4, 4, 2), np.uint8)}, "uint8 images need shape"),
        ({"x_test": np.ones((3, 4), np.float32)}, "must be alike"),
        ({"x_train": np.ones((6, 4), np.int64)}, "x_train holds int64; give uint8 images or floats"),
        ({"x_train": 1.0}, "at least one point"),
        ({"x_train": np.ones(6)}, "at least one point and one feature axis"),
        ({"train_index": np.arange(2)}, "one whole number for each of 6 points"),
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
        ("mnist", 1, "dataset 'mnist' is not known; choose from cifar10, mnist3"),
        ("nowhere.npz", 1, "no file .*; a relative path starts at the repository root"),
        ("mnist3", 101, "train_per_class: 101 is not possible; mnist3 has 1 to 100 per class"),
        ("mnist3", 0, "train_per_class: 0 is not possible"),
    ],
)
def test_bad_requests_are_refused(name, per_class, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, train_per_class=per_class, test_per_class=1)
