"""Small tasks that several tests share, and the weights that leave a point out."""

import os

import numpy as np
import pytest
import torch

from tdalib import data

if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores
    torch.set_num_threads(1)


def without(task, *points):
    """Weights (removal, point): a row for each of the points, with 0 at it and 1 elsewhere; None leaves out nothing."""
    weights = torch.ones(len(points), len(task.train))
    for row, point in zip(weights, points, strict=True):
        if point is not None:
            row[point] = 0
    return weights


@pytest.fixture(scope="session")
def digits():
    """Six train and six test digits: enough for every code path of cnn2."""
    return data.load("mnist3", train_per_class=2, test_per_class=2)


@pytest.fixture(scope="session")
def blobs():
    """Three overlapping Gaussian classes in float64, 90 train and 15 test points: for exact truths."""
    stream = np.random.default_rng(7)
    centres = stream.normal(size=(3, 4))
    y_train, y_test = np.arange(90) % 3, np.arange(15) % 3
    return data.from_arrays(
        centres[y_train] + stream.normal(size=(90, 4)), y_train, centres[y_test] + stream.normal(size=(15, 4)), y_test
    )
