"""The labelled result: its shape, its bytes, and what happens when it is cut short."""

import json
import shutil

import numpy as np
import pytest
import torch
import xarray as xr

from tdalib import Recipe, attribute, attributors, data, deep_ensemble, engine, store

METHODS = ["loo", "ats", "if", "gd", "gc"]


@pytest.fixture(scope="module")
def posterior(digits):
    return deep_ensemble("cnn2", digits, Recipe(epochs=2, batch_size=4), members=2, checkpoints=2)


@pytest.fixture(scope="module")
def finished(posterior, tmp_path_factory):
    """A finished store, made with one worker."""
    path = tmp_path_factory.mktemp("store") / "one.zarr"
    attribute(posterior, METHODS, path=path, workers=1)
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(store, "TRAIN_BLOCK", 4)


def chunk_bytes(path):
    """Every data chunk of the store, by name."""
    files = [file for name in ("tau", "loss", "loss_without") for file in (path / name / "c").rglob("*")]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


def test_dims_coords_and_attrs(finished, posterior):
    result = xr.open_zarr(finished)
    assert result.tau.dims == ("sample", "train", "test", "method") and result.tau.shape == (4, 6, 6, 5)
    assert result.loss.dims == ("sample", "test") and result.loss_without.dims == ("sample", "train", "test")
    assert all(result[name].dtype == np.float32 for name in ("tau", "loss", "loss_without"))
    assert result.member.values.tolist() == [0, 0, 1, 1] and result.checkpoint.values.tolist() == [1, 2, 1, 2]
    assert result.init_seed.values[2] == posterior.members[1].init_seed
    np.testing.assert_array_equal(result.train_index, posterior.task.train_index)
    assert result.test_class.values.tolist() == ["0", "0", "1", "1", "2", "2"]
    assert {"sign", "units", "params", "versions", "git_revision", "created"} <= set(result.attrs)
    assert json.loads(result.attrs["params"])["epochs"] == 2
    assert result.tau.notnull().all() and result.loss.notnull().all()
    assert result.tau.loc[{"method": "gc"}].equals(result.tau.sel({"method": "gc"}))


def test_tau_is_what_the_attributors_say(finished, posterior):
    result = xr.open_zarr(finished).load()
    draw = posterior.draws(1)[1]  # sample 3
    gd = attributors.grad_dot(draw, posterior.task)
    np.testing.assert_allclose(result.tau.sel({"method": "gd"})[3], gd, rtol=1e-4, atol=1e-6)
    loo = (result.loss_without - result.loss).transpose(*result.loss_without.dims)
    np.testing.assert_allclose(result.tau.sel({"method": "loo"}), loo, atol=1e-6)  # both were rounded to float32
    without = posterior.draws(1, without=5)[1]
    losses = torch.nn.functional.cross_entropy(
        torch.func.functional_call(without.model, without.theta, (posterior.task.x_test,)),
        posterior.task.y_test,
        reduction="none",
    )
    np.testing.assert_allclose(result.loss_without[3, 5], losses.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"workers": 1}, {"workers": 2}, {"workers": 2, "scheduler": "local"}], ids=str)
def test_same_seed_same_bytes(finished, posterior, tmp_path, how):
    attribute(posterior, METHODS, path=tmp_path / "again.zarr", **how)
    assert chunk_bytes(tmp_path / "again.zarr") == chunk_bytes(finished)


def test_interrupted_run_goes_on_to_the_same_bytes(posterior, tmp_path, small_blocks, monkeypatch):
    whole, cut = tmp_path / "whole.zarr", tmp_path / "cut.zarr"
    attribute(posterior, ["loo", "gd"], path=whole, workers=1)
    written = []
    write = store.write

    def failing(path, name, chunk, values):
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append((name, chunk))
        write(path, name, chunk, values)

    monkeypatch.setattr(store, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        attribute(posterior, ["loo", "gd"], path=cut, workers=1)
    monkeypatch.setattr(store, "write", write)
    kept = chunk_bytes(cut)
    assert 0 < len(kept) < len(chunk_bytes(whole))
    attribute(posterior, ["loo", "gd"], path=cut, workers=1)
    assert chunk_bytes(cut) == chunk_bytes(whole)


def test_finished_chunks_are_not_computed_again(posterior, finished, tmp_path, monkeypatch):
    path = tmp_path / "copy.zarr"
    shutil.copytree(finished, path)
    (path / "tau" / "c" / "1" / "0" / "0" / "3").unlink()  # member 1, gd
    seen = []
    compute = engine._compute

    def noting(unit, *rest):
        seen.append((unit.member, unit.method))
        return compute(unit, *rest)

    monkeypatch.setattr(engine, "_compute", noting)
    attribute(posterior, METHODS, path=path, workers=1)
    assert seen == [(1, "gd")]
    assert chunk_bytes(path) == chunk_bytes(finished)


def test_other_params_are_refused_by_name(posterior, finished):
    before = chunk_bytes(finished)
    other = deep_ensemble("cnn2", posterior.task, Recipe(epochs=2, batch_size=5), members=2, checkpoints=2)
    with pytest.raises(ValueError, match="made with batch_size: 4, not 5"):
        attribute(other, METHODS, path=finished)
    with pytest.raises(ValueError, match="made with methods"):
        attribute(posterior, METHODS[::-1], path=finished)  # the same chunks would mean other methods
    task = data.load("mnist3", train_per_class=2, test_per_class=2, seed=1)
    moved = deep_ensemble("cnn2", task, Recipe(epochs=2, batch_size=4), members=2, checkpoints=2)
    with pytest.raises(ValueError, match="other images or labels"):
        attribute(moved, METHODS, path=finished)
    assert chunk_bytes(finished) == before


@pytest.mark.parametrize(
    ("methods", "options", "error", "message"),
    [
        (["gd", "tracin"], {}, ValueError, "method 'tracin' is not known; choose from ats, gc, gd, if, loo"),
        ([], {}, ValueError, "methods is empty"),
        (["if"], {"if": {"damping": -1}}, ValueError, "needs λ > 0"),
        (["loo"], {"loo": {"protocol": "x"}}, ValueError, "choose from retrain, continue"),
        (["gd"], {"gd": {"solver": "cg"}}, TypeError, "solver"),
        (["gd"], {"if": {"solver": "cg"}}, ValueError, "options for 'if', which is not among the methods gd"),
    ],
)
def test_bad_requests_write_nothing(posterior, tmp_path, methods, options, error, message):
    with pytest.raises(error, match=message):
        attribute(posterior, methods, options=options, path=tmp_path / "new.zarr")
    assert not list(tmp_path.iterdir())


def test_own_attributor_is_one_decorator(posterior):
    @attributors.register("same_class", unit="1")
    def same_class(draw, task, *, scale=1.0):
        return scale * (task.y_train[:, None] == task.y_test).float()

    result = attribute(posterior, ["same_class"], options={"same_class": {"scale": 2.0}}, workers=1)
    expected = 2.0 * (result.train_label == result.test_label)
    np.testing.assert_array_equal(result.tau.sel({"method": "same_class"})[0], expected)

    @attributors.register("transposed", unit="1")
    def transposed(draw, task):
        return same_class(draw, task).T

    @attributors.register("listed", unit="1")
    def listed(draw, task):
        return same_class(draw, task).numpy()

    @attributors.register("logit", unit="1")
    def logit(draw, task):  # a tensor that still wants a gradient is taken as it is
        return draw.model(task.x_train)[:, :1] * draw.model(task.x_test)[:, 0]

    assert attribute(posterior, "logit", workers=1).tau.shape == (4, 6, 6, 1)
    with pytest.raises(ValueError, match="listed gave a ndarray where a tensor is needed"):
        attribute(posterior, ["listed"])
    with pytest.raises(ValueError, match=r"'transposed' gave τ of shape \(1, 2\) where \(2, 1\) is needed"):
        attribute(posterior, ["transposed"])
    for name in ("same_class", "transposed", "listed", "logit"):
        del attributors.METHODS[name]


def test_models_are_told_apart_and_too_few_outputs_refused(blobs, tmp_path):
    def flat(width, outputs=3):
        layers = torch.nn.Linear(4, width), torch.nn.Linear(width, outputs)
        return lambda task, seed: torch.nn.Sequential(*(type(m)(m.in_features, m.out_features) for m in layers))

    small, large, narrow = (deep_ensemble(m, blobs, Recipe(epochs=1), members=1, checkpoints=1) for m in
                            (flat(2), flat(5), flat(2, outputs=2)))  # fmt: skip
    attribute(small, ["gd"], path=tmp_path / "a.zarr", workers=1)
    with pytest.raises(ValueError, match="made with model"):
        attribute(large, ["gd"], path=tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="the model has 2 outputs; 3 classes need at least as many"):
        attribute(narrow, ["gd"])


def test_one_train_point_is_enough():
    task = data.from_arrays(torch.ones(1, 3), [0], torch.ones(2, 3), [0, 0])
    result = attribute(deep_ensemble("logreg", task, Recipe(epochs=1), members=1, checkpoints=1), ["loo"], workers=1)
    assert result.tau.shape == (1, 1, 2, 1)


def test_diverged_training_is_an_error_not_a_gap(digits, tmp_path):
    wild = deep_ensemble("cnn2", digits, Recipe(epochs=3, learning_rate=1e30), members=1, checkpoints=1)
    with pytest.raises(RuntimeError, match="test loss of member 0 is not finite"):
        attribute(wild, ["loo"], path=tmp_path / "wild.zarr", workers=1)
    assert not xr.open_zarr(tmp_path / "wild.zarr").tau.notnull().any()
