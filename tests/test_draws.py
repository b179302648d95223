"""θ and θ\\j drawn independently, from losses that are there."""

import numpy as np
import pytest
import scipy.stats
import xarray as xr
from simulated import simulate

from tdalib import stats


def leave_one_out(stream, members=10, seeds=1.0, effect=0.3):
    """Losses whose noise θ and θ\\j share, but for a little."""
    shape = (members, 3, 20, 30)  # (member, checkpoint, train, test)
    loss = seeds * stream.normal(size=(members, 1, 1, shape[3])) * np.ones((1, 3, 1, 1))
    without = loss + effect + 0.1 * stream.normal(size=shape)
    flat = members * 3
    return xr.Dataset(
        {
            "loss": (("sample", "test"), loss.reshape(flat, 30)),
            "loss_without": (("sample", "train", "test"), without.reshape(flat, 20, 30)),
        },
        {"member": ("sample", np.arange(members).repeat(3)), "checkpoint": ("sample", np.tile([1, 2, 3], members))},
    )


def test_a_member_with_a_missing_checkpoint_is_missing():
    draws = np.random.default_rng(0).normal(size=(3, 2, 2, 2, 1))
    draws[1, 0, 0, 1, 0] = np.nan
    members = stats.by_member(simulate(draws))
    np.testing.assert_allclose(members, draws.astype(np.float32).mean(1), rtol=1e-6)  # (member, train, test, method)
    assert members.isnull().sum() == 1


def test_uncoupled_draws_take_losses_of_two_members():
    result = leave_one_out(np.random.default_rng(8), members=5)
    tau = stats.uncoupled(result)
    assert tau.dims == ("sample", "train", "test", "method") and tau.sizes["sample"] == 6
    assert tau.member.values.tolist() == [0, 0, 0, 2, 2, 2] and tau.checkpoint.values.tolist() == [1, 2, 3] * 2
    by_hand = result.loss_without.values[[3, 4, 5, 9, 10, 11]] - result.loss.values[[0, 1, 2, 6, 7, 8], None]
    np.testing.assert_allclose(tau.values[..., 0], by_hand)
    with pytest.raises(ValueError, match="loss_without"):
        stats.uncoupled(result[["loss"]])
    shuffled = result.isel(sample=np.random.default_rng(0).permutation(15))
    np.testing.assert_array_equal(stats.uncoupled(shuffled), tau)
    for sample in (slice(0, 3), slice(0, 5)):
        with pytest.raises(ValueError, match="at least 2 members with equal numbers of draws"):
            stats.uncoupled(result.isel(sample=sample))


def test_uncoupled_draws_are_independent_and_noisier():
    """Without an effect their p-values are uniform; with one, coupled draws see it and uncoupled ones do not."""
    null = [
        stats.per_pair(stats.uncoupled(leave_one_out(np.random.default_rng(k), effect=0))).p_t.values[0, 0, 0]
        for k in range(200)
    ]
    assert scipy.stats.kstest(null, "uniform").pvalue > 0.01
    result = leave_one_out(np.random.default_rng(9))
    coupled = (result.loss_without - result.loss).expand_dims(method=["loo"], axis=-1)
    assert stats.per_pair(stats.uncoupled(result))["std"].mean() > 5 * stats.per_pair(coupled)["std"].mean()
    assert (
        (stats.per_pair(coupled).q < 0.05).mean()
        > 0.99
        > 0.2
        > (stats.per_pair(stats.uncoupled(result)).q < 0.05).mean()
    )
