"""The labelled result: its shape, its bytes, and what happens when it is cut short."""

import json
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import without
from kill_and_resume import chunk_bytes

from tdalib import (
    Experiment,
    Recipe,
    attribute,
    attributors,
    data,
    deep_ensemble,
    experiment,
    models,
    options,
    removals,
    store,
    units,
)

METHODS = ["loo", "ats", "if", "gd", "gc"]


@pytest.fixture(scope="module")
def posterior(digits):
    return deep_ensemble("cnn2", digits, Recipe(epochs=2, batch_size=4), members=2, checkpoints=2)


@pytest.fixture(scope="module")
def finished(posterior, tmp_path_factory):
    """A finished store, made with one worker."""
    path = tmp_path_factory.mktemp("store") / "one.zarr"
    attribute(posterior, METHODS, path=path, device="cpu", workers=1)
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    for module in ("result", "units"):
        monkeypatch.setattr(f"tdalib.{module}.TRAIN_BLOCK", 4)


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


def test_accuracy_counts_what_each_draw_gets_right(posterior):
    shares = experiment.accuracy(posterior)
    assert shares.dims == ("sample",) and shares.member.values.tolist() == [0, 0, 1, 1]
    task = posterior.task
    for k, draw in enumerate(posterior.draws(0) + posterior.draws(1)):
        said = torch.func.functional_call(draw.model, draw.theta, (task.x_test,)).argmax(1)
        right = sum(int(a == b) for a, b in zip(said, task.y_test, strict=True))
        assert shares.values[k] == right / len(task.test)


def test_tau_is_what_the_attributors_say(finished, posterior):
    result = xr.open_zarr(finished).load()
    draw = posterior.draws(1)[1]  # sample 3
    gd = attributors.grad_dot(draw, posterior.task)
    np.testing.assert_allclose(result.tau.sel({"method": "gd"})[3], gd, rtol=1e-4, atol=1e-6)
    loo = (result.loss_without - result.loss).transpose(*result.loss_without.dims)
    np.testing.assert_allclose(result.tau.sel({"method": "loo"}), loo, atol=1e-6)  # both were rounded to float32
    task = posterior.task
    draw = posterior.draws(1, without(task, 5)[0])[1]
    outputs = torch.func.functional_call(draw.model, draw.theta, (task.x_test,))
    losses = torch.nn.functional.cross_entropy(outputs, task.y_test, reduction="none")
    np.testing.assert_allclose(result.loss_without[3, 5], losses.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"workers": 1}, {"workers": 2}, {"workers": 2, "scheduler": "local"}], ids=str)
def test_same_seed_same_bytes(finished, posterior, tmp_path, how):
    attribute(posterior, METHODS, path=tmp_path / "again.zarr", device="cpu", **how)
    assert chunk_bytes(tmp_path / "again.zarr") == chunk_bytes(finished)


def test_stacked_retrainings_give_the_same_tau(posterior, finished):
    stacked = attribute(replace(posterior, stack=100), ["loo"], device="cpu", workers=1)
    expected = xr.open_zarr(finished).load()
    np.testing.assert_allclose(stacked.tau[..., 0], expected.tau.sel({"method": "loo"}), atol=2e-5)
    np.testing.assert_allclose(stacked.loss_without, expected.loss_without, atol=2e-5)


def test_stacked_continuing_gives_the_same_tau(posterior):
    options = {"loo": {"protocol": "continue"}}
    one_by_one, stacked = (
        attribute(replace(posterior, stack=stack), ["loo"], options=options, device="cpu", workers=1).tau
        for stack in (1, 100)
    )
    np.testing.assert_allclose(stacked, one_by_one, atol=1e-4)
    assert np.abs(one_by_one).mean() > 1e-2


def test_a_stack_is_filled_up_as_it_was(blobs, tmp_path):
    """Of four blocks two make a stack; where one is missing, both are trained again."""
    posterior = deep_ensemble("logreg", blobs, Recipe(epochs=2), members=2, checkpoints=1, stack=50)
    path = tmp_path / "a.zarr"
    attribute(posterior, ["loo"], path=path, device="cpu", workers=1)
    before = chunk_bytes(path)
    for name in ("tau/c/1/2/0/0", "loss_without/c/0/1/0"):
        (path / name).unlink()
    work = units.Work(posterior, removals.every_point(blobs.train), {"loo": attributors.get("loo")}, {"loo": {}})
    todo, _ = work.pending(partial(store.is_done, path))
    assert [(unit.member, unit.blocks) for unit in todo] == [(0, [0, 1]), (1, [2, 3])]
    attribute(posterior, ["loo"], path=path, device="cpu", workers=1)
    assert chunk_bytes(path) == before


def test_device_is_checked_and_kept(posterior, tmp_path):
    result = attribute(posterior, ["gd"], device="cpu", workers=1)
    assert json.loads(result.attrs["params"])["device"] == "cpu"
    with pytest.raises(ValueError, match="device: 'gpu' is not possible; input should be 'auto', 'cpu' or 'cuda'"):
        attribute(posterior, ["gd"], device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device: cuda is not possible, no such GPU is to be had here"):
            attribute(posterior, ["gd"], device="cuda")
    with pytest.raises(ValueError, match="a scheduler's workers compute on CPUs; choose auto or cpu"):
        attribute(posterior, ["gd"], device="cuda", scheduler="local")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_gives_the_numbers_of_the_cpu(posterior, finished):
    on_gpu = attribute(posterior, METHODS, device="cuda")
    expected = xr.open_zarr(finished).load()
    for name in METHODS:
        one, two = (result.tau.sel({"method": name}).values for result in (on_gpu, expected))
        np.testing.assert_allclose(one, two, atol=1e-2 * np.abs(two).max())


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


def test_true_is_no_number_for_an_option_of_ones_own():
    with pytest.raises(ValueError, match="own.count: True is not possible; it must be a number"):
        options.check("own", {"count": int, "flag": bool}, {"flag": True, "count": True})


def test_a_chunk_that_is_there_is_not_written_again(posterior, finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "copy.zarr")
    (path / "tau/c/0/0/0/1").unlink()
    before = {file: file.stat().st_mtime_ns for file in path.glob("*/c/**/*") if file.is_file()}
    attribute(posterior, METHODS, path=path, device="cpu", workers=1)
    assert all(file.stat().st_mtime_ns == written for file, written in before.items())


def test_finished_chunks_are_not_computed_again(posterior, finished, tmp_path, monkeypatch):
    path = tmp_path / "copy.zarr"
    shutil.copytree(finished, path)
    (path / "tau" / "c" / "1" / "0" / "0" / "3").unlink()  # member 1, gd
    seen = []
    compute = units.estimate

    def noting(shared, unit, states):
        seen.append((unit.member, unit.method))
        return compute(shared, unit, states)

    monkeypatch.setattr(units, "estimate", noting)
    monkeypatch.setattr(units, "retrain", lambda *_: pytest.fail("it retrains"))
    attribute(posterior, METHODS, path=path, workers=1)
    assert seen == [(1, "gd")]
    assert chunk_bytes(path) == chunk_bytes(finished)


def test_other_params_are_refused_by_name(posterior, finished):
    before = chunk_bytes(finished)
    other = deep_ensemble("cnn2", posterior.task, Recipe(epochs=2, batch_size=5), members=2, checkpoints=2)
    with pytest.raises(ValueError, match="made with batch_size: 4, not 5"):
        attribute(other, METHODS, path=finished)
    turned = attribute(posterior, METHODS[::-1], path=finished)
    assert [*turned.method.values] == METHODS[::-1]  # no chunk means another method
    np.testing.assert_array_equal(turned.tau[..., 0], store.open_result(finished).tau[..., -1])
    task = data.load("mnist3", train_per_class=2, test_per_class=2, seed=1)
    moved = deep_ensemble("cnn2", task, Recipe(epochs=2, batch_size=4), members=2, checkpoints=2)
    with pytest.raises(ValueError, match="other points or targets"):
        attribute(moved, METHODS, path=finished)
    assert chunk_bytes(finished) == before


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        (["gd", "tracin"], {}, "method 'tracin' is not known; choose from ats, gc, gd, if, loo"),
        ([], {}, "methods is empty; choose from ats, gc, gd, if, loo"),
        (["if"], {"if": {"damping": -1}}, "if.damping: -1 is not possible; input should be greater than 0"),
        (
            ["loo"],
            {"loo": {"protocol": "x"}},
            "loo.protocol: 'x' is not possible; .* 'retrain', 'continue' or 'further'",
        ),
        (["gd"], {"gd": {"solver": "cg"}}, "gd has no option 'solver'; it has memory"),
        (["gd"], {"if": {"solver": "cg"}}, "options for 'if', which is not among the methods gd"),
    ],
)
def test_bad_requests_write_nothing(posterior, tmp_path, methods, options, message):
    with pytest.raises(ValueError, match=message):
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
    with pytest.raises(ValueError, match="'listed' gave a ndarray where a tensor .* is needed"):
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
    with pytest.raises(ValueError, match="made with another model or backbone"):
        attribute(large, ["gd"], path=tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="the model has 2 outputs; the 3 classes need one each"):
        attribute(narrow, ["gd"])
    with pytest.raises(ValueError, match="the model has 2 outputs; the 3 classes need one each"):
        attribute(replace(narrow, task=replace(blobs, train=blobs.train[[2, 1]])), ["gd"])  # in the trial too


def test_a_result_without_params_names_its_model(posterior):
    """A function, one with options bound, and an object that has no name but that of its class."""

    class Own:
        def __call__(self, task, seed):
            return models.cnn2(task, seed)

    for build, name in ((models.cnn2, "cnn2"), (partial(models.mlp, width=3), "mlp"), (Own(), "Own")):
        made = Experiment(replace(posterior, build=build), "gd", workers=1).run()
        described = json.loads(made.attrs["params"])
        assert described["model"] == name and described["members"] == len(posterior.members)


def test_one_train_point_is_enough():
    task = data.from_arrays(torch.ones(2, 3), [0, 1], torch.ones(2, 3), [0, 0]).first(train=1)
    result = attribute(deep_ensemble("logreg", task, Recipe(epochs=1), members=1, checkpoints=1), ["loo"], workers=1)
    assert result.tau.shape == (1, 1, 2, 1)


def test_diverged_training_is_an_error_not_a_gap(digits, tmp_path):
    wild = deep_ensemble(
        "cnn2", digits, Recipe(epochs=30, learning_rate=1e5, optimizer="sgd"), members=1, checkpoints=1
    )
    with pytest.raises(RuntimeError, match="test loss of member 0 is not finite"):
        attribute(wild, ["loo"], path=tmp_path / "wild.zarr", workers=1)
    assert not xr.open_zarr(tmp_path / "wild.zarr").tau.notnull().any()
