"""Lists of proponents, and how much of them another seed leaves: against loops and against chance."""

import numpy as np
import pytest
from simulated import simulate

from tdalib import stats


def test_proponents_are_the_highest_first():
    draws = np.random.default_rng(0).normal(0.3, 1, size=(6, 2, 4, 5, 3))
    tau = stats.by_member(simulate(draws)).sel({"method": "m2"})  # (member, train, test)
    equal = simulate(np.resize([1.0, 0.0], (1, 1, 100, 1, 1)))
    assert stats.proponents(equal)[0, :, 0, 0].values.tolist() == [0, 2, 4, 6, 8]
    assert stats.proponents(tau, 9).sizes["rank"] == 4
    top = stats.proponents(tau, 2)
    assert top.dims == ("member", "rank", "test") and top.shape == (6, 2, 5)
    for member, test in np.ndindex(6, 5):
        column = tau.values[member, :, test].tolist()
        best = sorted(range(4), key=lambda j: -column[j])[:2]
        assert top.values[member, :, test].tolist() == best


def rank_biased_overlap(one, other, p=0.9):
    """Equation 32 of Webber et al., written out."""
    k = len(one)
    common = [len(set(one[:d]) & set(other[:d])) for d in range(1, k + 1)]
    return common[-1] / k * p**k + (1 - p) / p * sum(x / d * p**d for d, x in enumerate(common, 1))


def test_top_k_stability_against_loops():
    tau = simulate(np.random.default_rng(8).normal(size=(4, 2, 12, 6, 2)))
    table, mean = stats.top_k_stability(tau, 3), stats.by_member(tau).values
    for test, method in np.ndindex(6, 2):
        lists = [np.argsort(-mean[m, :, test, method])[:3].tolist() for m in range(4)]
        pairs = [(a, b) for k, a in enumerate(lists) for b in lists[k + 1 :]]
        got = table.isel(test=test, method=method)
        common = np.array([len(set(a) & set(b)) for a, b in pairs])
        assert float(got.overlap) == pytest.approx((common / 3).mean())
        assert float(got.jaccard) == pytest.approx((common / (6 - common)).mean())
        assert float(got.rbo) == pytest.approx(np.mean([rank_biased_overlap(a, b) for a, b in pairs]))


def test_top_k_stability_of_certainty_and_of_chance():
    certain = simulate(np.repeat(np.random.default_rng(9).normal(size=(1, 1, 20, 5, 1)), 4, axis=0))
    assert all((values == 1).all() for values in stats.top_k_stability(certain).data_vars.values())
    noise = stats.top_k_stability(simulate(np.random.default_rng(10).normal(size=(6, 1, 20, 400, 1))))
    for name in ("overlap", "jaccard", "rbo"):
        assert float(noise[name].mean()) == pytest.approx(noise.attrs[f"chance_{name}"], rel=0.05)


def test_lists_of_points_that_never_matter_are_the_same():
    """The first points make the list; one member in which another point matters disagrees with the rest."""
    draws = np.zeros((4, 2, 12, 6, 2))
    assert (stats.proponents(stats.by_member(simulate(draws)), 3).transpose(..., "rank") == [0, 1, 2]).all()
    draws[3, :, 11, 2, 1] = 1
    table = stats.top_k_stability(simulate(draws), 3)
    expected = {"overlap": 2 / 3, "jaccard": 2 / 4, "rbo": rank_biased_overlap([0, 1, 2], [11, 0, 1])}
    for name, of_one in expected.items():
        values = np.ones((6, 2))
        values[2, 1] = (3 + 3 * of_one) / 6  # of six pairs of members three have the one that differs
        np.testing.assert_allclose(table[name], values)


def test_a_list_with_a_gap_has_no_stability():
    tau = simulate(np.random.default_rng(11).normal(size=(4, 2, 12, 6, 2)))
    holes = tau.copy()
    holes[3, 5, 2, 1] = np.nan  # one draw of one member
    whole, gap = stats.top_k_stability(tau, 3), stats.top_k_stability(holes, 3)
    assert gap.isel(test=2, method=1).to_array().isnull().all()
    left = np.ones((6, 2), bool)
    left[2, 1] = False
    for name in ("overlap", "jaccard", "rbo"):
        np.testing.assert_array_equal(gap[name].values[left], whole[name].values[left])


@pytest.mark.parametrize("members", [5, 10, 20])
def test_survival_is_the_mean_overlap_and_its_interval_covers(members):
    """The truth is the mean over many samples of members, whose noise the test points share."""
    stream = np.random.default_rng(1)
    mean, loads = stream.normal(size=(20, 8)), stream.normal(size=(3, 20, 8))

    def sample():
        noise = np.einsum("mf,fjz->mjz", stream.normal(size=(members, 3)), loads)
        return simulate((mean + 0.5 * noise + stream.normal(size=(members, 20, 8)))[:, None, ..., None])

    tables = [stats.top_k_survival(tau) for tau in (sample() for _ in range(100))]
    values = np.array([float(table.value.squeeze()) for table in tables])
    covered = [float(t.low.squeeze()) <= values.mean() <= float(t.high.squeeze()) for t in tables]
    assert np.mean(covered) > 0.8
    tau = sample()
    expected = float(stats.top_k_stability(tau).overlap.mean())
    assert float(stats.top_k_survival(tau).value.squeeze()) == pytest.approx(expected)
