"""What removing a point does to the law of a loss: against closed forms, real refits, and intervals that cover."""

import numpy as np
import pytest
import xarray as xr

from tdalib import Recipe, attribute, data, deep_ensemble, stats


def result_of(loss, without, checkpoints=1, **coords):
    """As `loo` leaves it, from losses (sample, test) and (sample, train, test)."""
    members = len(loss) // checkpoints
    told = {"member": np.arange(members).repeat(checkpoints), "checkpoint": np.tile(np.arange(checkpoints), members)}
    return xr.Dataset(
        {"loss": (("sample", "test"), loss, {"units": "nats"}), "loss_without": (("sample", "train", "test"), without)},
        {name: ("sample", values) for name, values in told.items()} | coords,
    )


def gaussian(stream, members, shift, widths, correlation=0.0):
    """Losses N(2, 1) with the point, and N(2 + shift, widths²) without; `shift` and `widths` are (train, test)."""
    pairs = np.shape(shift)
    with_it = stream.normal(size=(members, 1, pairs[1]))  # one for all train points
    own = stream.normal(size=(members, *pairs))
    without = correlation * with_it + np.sqrt(1 - correlation**2) * own
    return result_of(2 + with_it[:, 0], 2 + shift + widths * without)


SHIFT = np.array([[0.0, 0.5], [-1.0, 2.0], [0.3, 0.0]])  # (train, test)
WIDTHS = np.array([[1.0, 1.5], [0.5, 1.0], [1.0, 2.0]])


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_gaussian_losses_give_the_closed_forms(correlation):
    table = stats.distributional_influence(gaussian(np.random.default_rng(0), 1000, SHIFT, WIDTHS, correlation))
    assert table["mu"].dims == ("train", "test") and table.attrs["members"] == 1000 and table.attrs["unit"] == "nats"
    np.testing.assert_allclose(table["mean_change"], SHIFT, atol=0.15)
    np.testing.assert_allclose(table["variance_change"], WIDTHS**2 - 1, atol=0.45)
    np.testing.assert_allclose(table["w2"], np.hypot(SHIFT, WIDTHS - 1), atol=0.15)
    np.testing.assert_allclose(table["mu"], SHIFT / np.sqrt((1 + WIDTHS**2) / 2), atol=0.2)
    assert (table["mu_low"] < table["mu"]).all() and (table["mu"] < table["mu_high"]).all()


def test_losses_that_are_shifted_and_stretched_give_the_closed_forms_exactly():
    z = np.random.default_rng(1).normal(size=(1000, 2))
    z = (z - z.mean(0)) / z.std(0, ddof=1)
    table = stats.distributional_influence(result_of(2 + z, 2 + SHIFT + WIDTHS * z[:, None]))
    np.testing.assert_allclose(table["mean_change"], SHIFT, atol=1e-12)
    np.testing.assert_allclose(table["variance_change"], WIDTHS**2 - 1, atol=1e-12)
    np.testing.assert_allclose(table["w2"], np.hypot(SHIFT, WIDTHS - 1), rtol=1e-3, atol=1e-12)
    np.testing.assert_allclose(table["mu"], SHIFT / np.sqrt((1 + WIDTHS**2) / 2), atol=1e-12)


def test_two_samples_of_one_law_are_apart_by_about_std_over_root_n():
    nothing = np.zeros((3, 100))
    for members in (100, 400):
        table = stats.distributional_influence(gaussian(np.random.default_rng(2), members, nothing, nothing + 1))
        assert 1 < float(table["w2"].mean()) * np.sqrt(members) < 3


def test_the_change_of_the_mean_is_that_of_leave_one_out():
    stream = np.random.default_rng(3)
    y_train, y_test = np.arange(6) % 2, np.arange(4) % 2
    x_train, x_test = (stream.normal(size=(len(y), 3)) + 2 * y[:, None] for y in (y_train, y_test))
    task = data.from_arrays(x_train, y_train, x_test, y_test)
    posterior = deep_ensemble("logreg", task, Recipe(epochs=4, batch_size=3), members=4, checkpoints=2)
    result = attribute(posterior, "loo", workers=1)
    table = stats.distributional_influence(result)
    tau = result.tau.sel({"method": "loo"})
    assert tau.std() > 0 and table.attrs["members"] == 4 and table.attrs["unit"] == "nats"
    np.testing.assert_allclose(table["mean_change"], tau.mean("sample"), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(table["mean_change"], stats.per_pair(result.tau)["mean"][..., 0], rtol=1e-4, atol=1e-6)
    assert table["train_class"].values.tolist() == list("010101") and table["test_index"].values.tolist() == [
        0,
        1,
        2,
        3,
    ]
    apart = stats.distributional_influence(result, coupled=False)
    np.testing.assert_allclose(apart["mean_change"], stats.uncoupled(result).mean("sample")[..., 0], rtol=1e-4)


def test_checkpoints_of_a_member_are_averaged_first():
    stream = np.random.default_rng(4)
    loss, without = stream.normal(size=(8, 2, 5)), stream.normal(size=(8, 2, 3, 5))  # (member, checkpoint, …)
    table = stats.distributional_influence(result_of(loss.reshape(16, 5), without.reshape(16, 3, 5), checkpoints=2))
    xr.testing.assert_allclose(table, stats.distributional_influence(result_of(loss.mean(1), without.mean(1))))
    assert table.attrs["members"] == 8


def test_uncoupled_takes_one_half_of_the_members_with_the_point_and_the_other_without():
    result = gaussian(np.random.default_rng(5), 9, SHIFT, WIDTHS, correlation=0.9)  # the last is left out
    table = stats.distributional_influence(result, coupled=False)
    loss, without = result["loss"].values[[0, 2, 4, 6], None], result["loss_without"].values[[1, 3, 5, 7]]
    mean, variance = (f(without) - f(loss) for f in (lambda x: x.mean(0), lambda x: x.var(0, ddof=1)))
    between = (without.var(0, ddof=1) + loss.var(0, ddof=1)) / 2
    np.testing.assert_allclose(table["mean_change"], mean)
    np.testing.assert_allclose(table["variance_change"], variance)
    np.testing.assert_allclose(table["mu"], mean / np.sqrt(between))
    np.testing.assert_allclose(table["w2"], np.sqrt(np.square(np.sort(without, 0) - np.sort(loss, 0)).mean(0)))
    assert table.attrs["members"] == 4 and table.attrs["coupled"] == 0


COVERED = [(5, 0.9), (10, 0.9), (20, 0.9), (10, 0.0), (20, 0.0)]


@pytest.mark.parametrize("effect", [0.0, 0.5, 2.0])
@pytest.mark.parametrize(("members", "correlation"), COVERED)
def test_the_interval_of_mu_covers(members, correlation, effect):
    """At level 0.9, over 4,000 pairs with losses of their own; without the point they are wider by a fifth."""
    shift, widths = np.full((1, 4000), effect), np.full((1, 4000), 1.2)
    table = stats.distributional_influence(gaussian(np.random.default_rng(6), members, shift, widths, correlation))
    mu = effect / np.sqrt((1 + 1.2**2) / 2)
    covered = float(((table["mu_low"] <= mu) & (mu <= table["mu_high"])).mean())
    assert 0.8 <= covered <= 0.98


@pytest.mark.parametrize("members", [10, 20])
def test_the_interval_of_mu_covers_from_two_halves_of_the_members(members):
    shift, widths = np.full((1, 4000), 0.5), np.full((1, 4000), 1.2)
    result = gaussian(np.random.default_rng(7), members, shift, widths, 0.9)
    table = stats.distributional_influence(result, coupled=False)
    mu = 0.5 / np.sqrt((1 + 1.2**2) / 2)
    covered = float(((table["mu_low"] <= mu) & (mu <= table["mu_high"])).mean())
    assert 0.8 <= covered <= 0.98


def test_a_higher_level_gives_a_wider_interval_and_coupling_a_narrower_one():
    result = gaussian(np.random.default_rng(8), 20, SHIFT, WIDTHS, 0.9)
    usual, wide = (stats.distributional_influence(result, level=level) for level in (0.9, 0.99))
    assert (wide["mu_low"] < usual["mu_low"]).all() and (usual["mu_high"] < wide["mu_high"]).all()
    apart = stats.distributional_influence(result, coupled=False)
    width, width_apart = ((table["mu_high"] - table["mu_low"]).mean() for table in (usual, apart))
    assert width < width_apart and wide.attrs["level"] == 0.99


def test_two_members_give_no_interval():
    table = stats.distributional_influence(gaussian(np.random.default_rng(9), 2, SHIFT, WIDTHS))
    assert table["mu_low"].isnull().all() and table["mu_high"].isnull().all() and table["mu"].notnull().all()


@pytest.mark.parametrize("members", [2, 3])
def test_where_no_loss_varies_a_change_is_infinite_and_none_is_0(members):
    change = np.array([[0.0, 0.5]])
    table = stats.distributional_influence(result_of(np.ones((members, 2)), 1 + np.stack([change] * members)))
    assert table["mu"].values.tolist() == [[0, np.inf]] and (table["w2"] == table["mean_change"]).all()


def test_a_pair_that_is_not_finished_is_missing_and_no_other():
    result = gaussian(np.random.default_rng(10), 6, SHIFT, WIDTHS)
    result["loss_without"][2, 1, 0] = np.nan
    table = stats.distributional_influence(result)
    for name in ("mean_change", "variance_change", "w2", "mu", "mu_low", "mu_high"):
        assert np.argwhere(table[name].isnull().values).tolist() == [[1, 0]]


def test_losses_in_lazy_blocks_give_the_same():
    result = gaussian(np.random.default_rng(11), 6, SHIFT, WIDTHS)
    chunked = result.chunk({"sample": 2, "train": 1})
    xr.testing.assert_allclose(stats.distributional_influence(chunked), stats.distributional_influence(result))


WHOLE = gaussian(np.random.default_rng(12), 4, SHIFT, WIDTHS)


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (WHOLE[["loss"]], {}, "the result lacks loss_without, which a method that retrains"),
        (WHOLE.isel(sample=[0]), {}, r"at least 2 members with equal numbers of draws are needed, not \[1\]"),
        (WHOLE.assign_coords(member=("sample", [0, 0, 0, 1])), {}, r"equal numbers of draws are needed, not \[3, 1\]"),
        (WHOLE, {"level": 90}, "level: 90 is not possible; it must be between 0 and 1"),
        (WHOLE, {"level": 1}, "level: 1 is not possible; it must be between 0 and 1"),
    ],
    ids=["no loss_without", "one member", "unequal members", "a level in percent", "a level of 1"],
)
def test_impossible_questions_are_refused(given, options, said, coupled):
    with pytest.raises(ValueError, match=said):
        stats.distributional_influence(given, coupled=coupled, **options)


@pytest.mark.parametrize("members", [2, 3])
def test_halves_of_one_member_are_refused(members):
    few = gaussian(np.random.default_rng(13), members, SHIFT, WIDTHS)
    with pytest.raises(ValueError, match="members"):
        stats.distributional_influence(few, coupled=False)


def test_leave_one_out_against_another_training_is_refused():
    tau = (WHOLE["loss_without"] - WHOLE["loss"]).transpose("sample", "train", "test").expand_dims(method=["loo"])
    assert stats.distributional_influence(WHOLE.assign(tau=tau)).attrs["members"] == 4
    with pytest.raises(ValueError, match="in this result it is against another training"):
        stats.distributional_influence(WHOLE.assign(tau=2 * tau))
