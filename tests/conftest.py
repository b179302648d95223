"""Small tasks that several tests share."""

import numpy as np
import pytest

from tdalib import data


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
