"""Chains that drift, and chains that do not."""

import numpy as np
import xarray as xr

from tdalib import stats


def chains(slope, count=40):
    loss = np.random.default_rng(0).normal(size=(5, count)) + slope * np.arange(count)
    return xr.Dataset(
        {"loss": (("sample", "test"), loss.reshape(-1, 1))}, {"member": ("sample", np.arange(5).repeat(count))}
    )


def test_convergence_tells_a_drift_from_independent_draws():
    steady, drifting = stats.convergence(chains(0)), stats.convergence(chains(0.2))
    assert steady["R-hat"].median() < 1.05 and (drifting["R-hat"] > 1.3).all()
    assert steady["ESS"].median() > 30 and (drifting["ESS"] < 10).all()
    assert stats.convergence_warning(steady) is None
    line = stats.convergence_warning(drifting)
    assert "has not converged: R-hat" in line and "of 40 draws (median of 5 chains)" in line and "\n" not in line
    assert "too few to judge" in stats.convergence_warning(stats.convergence(chains(0, count=6)))
