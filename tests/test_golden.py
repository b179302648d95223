"""τ of some params is what version 0.1.0 gave: `golden.npz` holds these params and some pairs of member 0 of each."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tdalib import Experiment, Params

with np.load(Path(__file__).with_name("golden.npz")) as file:
    GOLDEN = dict(file)
NAMES = sorted({key.split("/")[0] for key in GOLDEN})
TOLERANCE = 2e-3  # of the largest |τ| of a method: what rounding grows to in a training


@pytest.mark.filterwarnings("ignore:.*too few to judge")
@pytest.mark.filterwarnings("ignore:.*has not converged")
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def test_tau_is_what_it_was(name):
    params = Params.of(json.loads(GOLDEN[f"{name}/params"].item()))
    posterior = params.posterior(params.task())
    one = replace(posterior, members=posterior.members[:1])
    removals = {"points": GOLDEN[f"{name}/points"].tolist()}
    result = Experiment(one, params.methods, removals=removals, device="cpu", workers=1).run()
    tests = GOLDEN[f"{name}/tests"]
    np.testing.assert_allclose(result.loss.values[:, tests], GOLDEN[f"{name}/loss"], rtol=1e-3, atol=1e-5)
    for method in params.methods:
        before = GOLDEN[f"{name}/{method}"]
        now = result.tau.loc[{"method": method}].transpose("sample", "train", "test").values[:, :, tests]
        np.testing.assert_allclose(now, before, rtol=0, atol=TOLERANCE * np.abs(before).max(), err_msg=method)
