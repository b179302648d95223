"""Lists of pairs, and whether they keep what they claim; shares and their intervals."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from simulated import simulate

from tdalib import stats
from tdalib.stats.shares import jackknife
from tdalib.stats.trust import _median_skew


@pytest.fixture
def draws():
    return np.random.default_rng(0).normal(0.3, 1, size=(6, 2, 4, 5, 3)).astype(np.float32)


def realised(claim, fdr, draw, repeats=20, members=10, effect=2.0):
    """False discovery proportions of lists of 2,000 pairs, of which four fifths are null, and the share found."""
    stream, false, found = np.random.default_rng(7), [], []
    mean = np.where(np.arange(2000) % 5 == 0, effect, 0)
    for _ in range(repeats):
        x = (mean + draw(stream, members)).reshape(members, 1, 20, 100, 1)
        pairs = stats.trustworthy(simulate(x), fdr, claim)
        null = mean.reshape(20, 100)[pairs.train, pairs.test] == 0
        false.append(null.mean() if len(pairs) else 0)
        found.append((~null).sum() / 400)
    return np.array(false), np.array(found)


def normal(stream, members, shared=0.0):
    own, common = stream.normal(size=(members, 2000)), stream.normal(size=(members, 1))
    return shared * common + np.sqrt(1 - shared**2) * own


def opposed(stream, members):
    """Pairs that share noise, half of them with the other sign, as real ones do."""
    return normal(stream, members, 0.7) * np.where(np.arange(2000) % 2, 1, -1)


def skewed(stream, members):
    return 1 - stream.exponential(size=(members, 2000))


@pytest.mark.filterwarnings("ignore:.*no pair is listed")
@pytest.mark.parametrize("draw", [normal, opposed, skewed])
def test_effects_are_listed_at_the_rate_or_not_at_all(draw):
    false, found = realised("effect", 0.1, draw)
    assert false.mean() <= 0.12 and np.quantile(false, 0.95) <= 0.35
    assert found.mean() > 0.3 or draw is skewed


@pytest.mark.filterwarnings("ignore:.*no pair is listed")
def test_where_nothing_has_an_effect_nothing_is_listed():
    false, _ = realised("effect", 0.1, normal, effect=0)
    assert false.mean() <= 0.1
    signs, _ = realised("sign", 0.1, opposed, effect=0)
    assert signs.mean() <= 0.1


@pytest.mark.parametrize("members", [5, 10])
def test_listed_signs_are_right_and_their_error_is_known(members):
    """Means of every size around 0: a sign is right where it is that of the mean."""
    stream, errors, estimates = np.random.default_rng(1), [], []
    for _ in range(20):
        mean = stream.normal(0, 1.5, size=(20, 100, 1))
        pairs = stats.trustworthy(simulate(mean + stream.normal(size=(members, 1, 20, 100, 1))))
        errors.append((np.sign(mean[pairs.train, pairs.test, 0]) != np.sign(pairs["mean"])).mean())
        estimates.append(pairs.sign_error.iloc[0])
    assert np.mean(errors) < 0.02 and abs(np.mean(estimates) - np.mean(errors)) < 0.02


@pytest.mark.filterwarnings("ignore:.*no pair is listed")
def test_an_empty_list_says_why(draws):
    few = stats.trustworthy(simulate(draws), claim="effect")
    assert len(few) == 0 and few.attrs["empty"]["m0"].startswith("as 6 members are too few for effects at fdr 0.05; 8")
    heavy = np.random.default_rng(1).lognormal(0, 3, size=(12, 1, 5, 6, 1))
    heavy[0] *= 30
    heavy[:, :, 0] = 1
    said = stats.trustworthy(simulate(heavy / 10), claim="effect").attrs["empty"]["m0"]
    assert "too skewed over the 12 members (median |skew| " in said and "claim='sign'" in said
    with pytest.warns(UserWarning, match="m0, m1, m2: no pair is listed, as no q is 1e-09 or less; more members"):
        none = stats.trustworthy(simulate(draws), 1e-9)
    assert list(none.attrs["empty"]) == ["m0", "m1", "m2"]
    two = stats.trustworthy(simulate(np.concatenate([draws[:1], draws[:1] + 1e-6])), 0.9)
    assert len(two) == 0 and "as 2 members have no halves" in two.attrs["empty"]["m0"]


def test_impossible_claims_are_refused(draws):
    with pytest.raises(ValueError, match="fdr: 5 is not possible; it must be between 0 and 1"):
        stats.trustworthy(simulate(draws), fdr=5)
    with pytest.raises(ValueError, match="claim: 'cause' is not possible; it must be 'sign' or 'effect'"):
        stats.trustworthy(simulate(draws), claim="cause")
    with pytest.raises(ValueError, match="τ must be a DataArray"):
        stats.trustworthy(stats.per_pair(simulate(draws)))


@pytest.mark.filterwarnings("ignore:.*no pair is listed")
def test_a_list_names_the_points(draws):
    draws[:, :, 2, 3, 1] = 5 + 0.01 * draws[:, :, 2, 3, 1]
    draws[:, :, 0, 4, 1] = -5 + 0.1 * draws[:, :, 0, 4, 1]
    tau = simulate(draws).assign_coords(train_index=("train", [10, 20, 30, 40]), test_class=("test", list("abcde")))
    pairs = stats.trustworthy(tau, fdr=1e-3)
    assert pairs[["method", "train", "test", "train_index", "test_class"]].values.tolist() == [
        ["m1", 2, 3, 30, "d"], ["m1", 0, 4, 10, "e"],
    ]  # fmt: skip
    assert pairs["snr"].is_monotonic_decreasing and not pairs["noise_dominated"].any() and (pairs.sign_error == 0).all()
    table = stats.per_pair(tau, level=0.95).isel(method=1, train=2, test=3)
    assert (pairs.low[0], pairs.high[0]) == pytest.approx((float(table.low), float(table.high)))
    named = tau.assign_coords(train=[10, 20, 30, 40])  # positions, whatever the points are called
    pd.testing.assert_frame_equal(pairs, stats.trustworthy(named, fdr=1e-3))
    none = stats.trustworthy(tau, fdr=1e-30)
    assert len(none) == 0 and list(none.columns) == list(pairs.columns)
    sets = stats.trustworthy(simulate(draws).assign_coords(size=("train", [1, 10, 100, 1000])), fdr=1e-3)
    assert sets[["method", "train", "test", "size"]].values.tolist() == [["m1", 2, 3, 100], ["m1", 0, 4, 1]]


def test_skew_is_that_of_scipy():
    x = np.random.default_rng(2).exponential(size=(9, 4, 5))
    assert _median_skew(x) == pytest.approx(np.median(abs(scipy.stats.skew(x))))
    assert _median_skew(np.ones((9, 2, 2))) == 0


def test_summary_counts_finished_pairs_only(draws):
    draws[3, :, 1] = np.nan  # one member is not there yet, for one train point
    summary = stats.summary(simulate(draws))
    kept = np.delete(draws, 1, axis=2).astype(float).mean(1)
    p = scipy.stats.ttest_1samp(kept, 0, axis=0).pvalue  # (train, test, method)
    q = [scipy.stats.false_discovery_control(p[..., m].ravel()) for m in range(3)]
    expected = {
        "std > |mean|": (kept.std(0, ddof=1) > abs(kept.mean(0))).mean((0, 1)),
        "mean p (t)": p.mean((0, 1)),
        "share p (t) < 0.05": (p < 0.05).mean((0, 1)),
        "share q ≤ 0.05": np.mean(np.array(q) <= 0.05, axis=1),
    }
    for name, values in expected.items():
        rows = summary.xs(name, level="share")
        np.testing.assert_allclose(rows["value"], values, rtol=1e-4)
        assert (rows.pairs == 15).all() and (rows.members == 6).all()
        assert (rows.low <= rows["value"]).all() and (rows["value"] <= rows.high).all()
    one = stats.summary(simulate(draws).sel({"method": "m1"}))
    pd.testing.assert_frame_equal(one, summary.loc[["m1"]])
    assert stats.summary(simulate(draws[:2])).low.isnull().all()


@pytest.mark.parametrize("members", [5, 10, 20])
def test_intervals_of_shares_cover_what_so_many_members_give(members):
    """Pairs that share noise, so that shares scatter; the truth is the mean over many samples of members."""
    stream = np.random.default_rng(3)
    mean = np.where(stream.random(300) < 0.3, 0, stream.normal(0, 1, 300))
    loads = stream.normal(size=(3, 300))

    def sample():
        noise = 0.6 * stream.normal(size=(members, 3)) @ loads + stream.normal(size=(members, 300))
        return simulate((mean + noise).reshape(members, 1, 15, 20, 1))

    tables = [stats.summary(sample()) for _ in range(120)]
    values = np.array([table["value"] for table in tables])
    low, high = (np.array([table[end] for table in tables]) for end in ("low", "high"))
    covered = ((low <= values.mean(0)) & (values.mean(0) <= high)).mean(0)
    assert (covered > 0.8).all(), covered


def test_noise_is_less_among_what_another_member_finds_large():
    stream = np.random.default_rng(4)
    mean = np.zeros(2000)
    mean[:40] = 10
    tau = simulate((mean + stream.normal(size=(6, 2000))).reshape(6, 1, 40, 50, 1))
    table = stats.noise_by_size(tau, [0.02, 1]).isel(method=0)
    assert float(table.noise[0]) == 0 and float(table.noise[1]) > 0.8
    x = tau.values.reshape(6, 2000).astype(float)
    by_hand = []
    for k in range(6):
        rest, chosen = np.delete(x, k, 0), np.argsort(-abs(x[k]))[:200]
        by_hand.append((rest.std(0, ddof=1) > abs(rest.mean(0)))[chosen].mean())
    assert stats.noise_by_size(tau, [0.1]).noise.item() == pytest.approx(np.mean(by_hand))
    for impossible in ([], [0], [1.1]):
        with pytest.raises(ValueError, match="they must be above 0 and at most 1"):
            stats.noise_by_size(tau, impossible)


def test_jackknife_of_a_mean_is_the_t_interval():
    """On the angle's scale the half width is that of Student's t, since the statistic undoes the transformation."""
    x = np.random.default_rng(5).uniform(0.6, 0.9, size=(8, 3))
    value, low, high = jackknife(lambda some: np.sin(some.mean(0)) ** 2, x, 0.9)
    ends = scipy.stats.t.interval(0.9, 7, x.mean(0), scipy.stats.sem(x))
    np.testing.assert_allclose([low, high], np.sin(ends) ** 2)
    np.testing.assert_allclose(value, np.sin(x.mean(0)) ** 2)


@pytest.mark.filterwarnings("ignore:.*no pair is listed")
@pytest.mark.parametrize("claim", ["sign", "effect"])
def test_a_pair_that_a_member_lacks_is_no_evidence_against_the_others(claim):
    stream = np.random.default_rng(6)
    draws = stream.normal(2, 1, size=(9, 1, 10, 12, 1))
    whole = stats.trustworthy(simulate(draws[:, :, 1:]), claim=claim)
    draws[3, :, 0] = np.nan  # of the first train point
    found = stats.trustworthy(simulate(draws), claim=claim)
    columns = ["train", "test", "sign_error"]
    assert len(found) > 20 or claim == "effect"
    pd.testing.assert_frame_equal(found[columns], whole[columns].assign(train=whole.train + 1))
