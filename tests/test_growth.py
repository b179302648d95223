"""A store grows by members and methods, to what one run would have made; what else differs is refused."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import xarray as xr
from kill_and_resume import chunk_bytes
from torch import nn

from tdalib import (
    Experiment,
    Recipe,
    attribute,
    attributors,
    checksums,
    data,
    deep_ensemble,
    objectives,
    samplers,
    stats,
    store,
)
from tdalib.attributors import Method

RECIPE = Recipe(epochs=2)


@pytest.fixture(autouse=True)
def own_methods(monkeypatch):
    """Known for one test."""
    of_all = Method("spread", spread, "{loss}", "posterior", "sum")
    for method in (of_all, Method("scaled", scaled, "1", sets="sum")):
        monkeypatch.setitem(attributors.METHODS, method.name, method)


def ensemble(task, members=2, sampler="deep_ensemble", model="logreg", **options):
    return samplers.get(sampler)(model, task, RECIPE, members=members, checkpoints=2, **options)


def spread(members, task):
    """Of all members: what any of them lacks shows in the τ of every other."""
    total = sum(float(draw.losses(task.test).sum()) for draws in members for draw in draws)
    return torch.full((len(members), len(task.train), len(task.test)), total)


GROWTHS = [  # (members, methods) of one run after the other
    [(2, ["loo", "gd"]), (4, ["loo", "gd"])],
    [(2, ["loo"]), (2, ["loo", "gd"])],
    [(2, ["gd"]), (3, ["gd", "loo", "gc"])],
    [(2, ["gd", "spread"]), (3, ["gd", "spread"])],
    [(3, ["gd"]), (1, ["gd"]), (4, ["loo"]), (4, ["gd", "loo"])],
]


@pytest.mark.parametrize("steps", GROWTHS, ids=str)
def test_a_grown_store_has_the_bytes_of_one_run(digits, tmp_path, steps):
    for members, methods in steps:
        given = attribute(ensemble(digits, members), methods, path=tmp_path / "grown.zarr", workers=1)
        assert given.sizes["sample"] == 2 * members and [*given.method.values] == methods
        assert given.tau.notnull().all()
    members, methods = steps[-1]
    at_once = attribute(ensemble(digits, members), methods, path=tmp_path / "at_once.zarr", workers=1)
    assert chunk_bytes(tmp_path / "grown.zarr") == chunk_bytes(tmp_path / "at_once.zarr")
    grown = store.open_result(tmp_path / "grown.zarr")
    assert grown.identical(at_once.assign_attrs(created=grown.attrs["created"]))
    assert store.damaged(tmp_path / "grown.zarr") == []
    assert {file.name for file in tmp_path.iterdir()} == {
        "grown.zarr", "at_once.zarr", ".grown.zarr.lock", ".at_once.zarr.lock"
    }  # fmt: skip


def test_less_and_another_order_come_from_the_same_store(digits, tmp_path):
    path = tmp_path / "a.zarr"
    whole = attribute(ensemble(digits, 3), ["loo", "gd", "gc"], path=path, workers=1).load()
    before = chunk_bytes(path)
    some = attribute(ensemble(digits, 2), ["gc", "loo"], path=path, workers=1)
    assert chunk_bytes(path) == before
    np.testing.assert_array_equal(some.tau, whole.tau[:4, :, :, [2, 0]])


def test_what_was_opened_before_a_store_grew_keeps_its_numbers(digits, tmp_path):
    path = tmp_path / "a.zarr"
    lazy = attribute(ensemble(digits), ["gd"], path=path, workers=1)
    expected = attribute(ensemble(digits), ["gd"], workers=1).tau.values
    attribute(ensemble(digits, 3), ["gc", "gd"], path=path, workers=1)
    np.testing.assert_array_equal(lazy.tau.values, expected)


def test_a_method_of_all_members_is_not_given_for_some_of_them(digits, tmp_path):
    attribute(ensemble(digits, 3), ["spread"], path=tmp_path / "a.zarr", workers=1)
    for method in ("spread", "gd"):  # one that is there, and one that is new
        with pytest.raises(ValueError, match=f"made with members: 3, and {method} needs all of them, not 2; choose"):
            attribute(ensemble(digits, 2), [method], path=tmp_path / "a.zarr", workers=1)


def test_members_that_would_be_others_are_refused(digits, tmp_path):
    attribute(ensemble(digits, 4, "crossed"), ["gd"], path=tmp_path / "a.zarr", workers=1)
    with pytest.raises(ValueError, match="made with seeds: .*, not .*; choose another store"):
        attribute(ensemble(digits, 9, "crossed"), ["gd"], path=tmp_path / "a.zarr", workers=1)


KILLED = """
import os, signal, sys
from pathlib import Path
from tempfile import TemporaryDirectory
from tdalib import Recipe, attribute, data, deep_ensemble
moment, path = int(sys.argv[1]), Path(sys.argv[2])
task = data.load("mnist3", train_per_class=2, test_per_class=2)
calls = 0
def dying(function):
    def called(*arguments, **options):
        global calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return called
import shutil
for name in ("replace", "mkdir", "unlink"):
    setattr(Path, name, dying(getattr(Path, name)))
posterior = deep_ensemble("logreg", task, Recipe(epochs=2), members=3, checkpoints=2)
attribute(posterior, ["gd", "loo"], path=path, workers=1)
"""


@pytest.mark.slow
def test_a_growth_that_is_killed_at_any_file_is_done_again(digits, tmp_path):
    attribute(ensemble(digits, 3), ["gd", "loo"], path=tmp_path / "at_once.zarr", workers=1)
    killed = 0
    for moment in range(1, 60, 3):
        path = tmp_path / f"{moment}.zarr"
        attribute(ensemble(digits, 2), ["gd"], path=path, workers=1)
        code = subprocess.run([sys.executable, "-c", KILLED, str(moment), path], capture_output=True).returncode
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        attribute(ensemble(digits, 3), ["gd", "loo"], path=path, workers=1)
        assert chunk_bytes(path) == chunk_bytes(tmp_path / "at_once.zarr")
    assert killed > 10


def relu(task, seed):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), ACTIVATION(), nn.Dropout(DROPS), nn.Linear(8, 3))


ACTIVATION, DROPS, FACTOR = nn.ReLU, 0.1, 1.0


def scaled(draw, task):
    """A method that is corrected later."""
    return FACTOR * torch.outer(draw.losses(task.train), draw.losses(task.test))


def own_loss(outputs, targets):
    return FACTOR * objectives.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("name", "value", "methods", "own", "said"),
    [
        ("ACTIVATION", nn.GELU, ["gd"], False, "code that gave other outputs on a few points"),
        ("DROPS", 0.2, ["gd"], False, "code that gave other outputs in training on a few points"),
        ("FACTOR", 1.01, ["scaled"], False, "code that gave other numbers by scaled on a few points"),
        ("FACTOR", 1.01, ["gd"], True, "code that gave other losses at the start on a few points"),
    ],
)
def test_changed_code_is_refused_by_name(digits, tmp_path, monkeypatch, name, value, methods, own, said):
    task = replace(digits, objective=objectives.get(own_loss)) if own else digits
    attribute(ensemble(task, model=relu), methods, path=tmp_path / "a.zarr", workers=1)
    attribute(ensemble(task, model=relu), methods, path=tmp_path / "a.zarr", workers=1)
    monkeypatch.setitem(globals(), name, value)
    with pytest.raises(ValueError, match=f"a.zarr was made with {said}; choose another store"):
        attribute(ensemble(task, model=relu), methods, path=tmp_path / "a.zarr", workers=1)


def test_corrected_class_names_are_not_those_of_the_store(digits, tmp_path):
    attribute(ensemble(digits), ["gd"], path=tmp_path / "a.zarr", workers=1)
    labels = digits.train.labels | {"class": np.array(["three"] * 6, object)}
    named = replace(digits, train=replace(digits.train, labels=labels))
    with pytest.raises(ValueError, match="made with other labels of the points"):
        attribute(ensemble(named), ["gd"], path=tmp_path / "a.zarr", workers=1)


def test_a_store_that_goes_on_with_other_versions_says_so(digits, tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    attribute(ensemble(digits), ["gd"], path=path, workers=1)
    made = store._made(path)
    older = json.dumps(json.loads(made["versions"]) | {"torch": "1.0", "cpu": "x86_64 NO AVX"})
    group = store.zarr.open_group(path, mode="r+")
    group.attrs["versions"] = older
    checksums.copy_metadata(path)
    assert attribute(ensemble(digits), ["gd"], path=path, workers=1).attrs["versions"] == older  # nothing is computed
    with pytest.warns(UserWarning, match=r"begun with torch 1.0, now .*; cpu x86_64 NO AVX, now .*: numbers agree"):
        attribute(ensemble(digits, 3), ["gd"], path=path, workers=1)


METADATA = ["zarr.json", "tau/zarr.json", "member/zarr.json", ".metadata"]


@pytest.mark.parametrize("name", METADATA)
def test_a_flipped_bit_in_metadata_is_named_and_restored(digits, tmp_path, name):
    path = tmp_path / "a.zarr"
    posterior = ensemble(digits)
    expected = attribute(posterior, ["loo", "gd"], path=path, workers=1).load()
    file = path / name
    content = file.read_bytes()
    for at in np.linspace(0, len(content) - 1, 25).astype(int):
        for bit in (0, 5):
            file.write_bytes(content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :])
            for used in (lambda: store.open_result(path), lambda: attribute(posterior, ["loo", "gd"], path=path)):
                with pytest.raises(ValueError, match=f"^{name} of store .*a.zarr is damaged; tdalib.store.repair"):
                    used()
            assert store.damaged(path) == [name] == store.repair(path)
            assert file.read_bytes() == content
    assert store.open_result(path).identical(expected)


def test_metadata_that_are_cut_or_lost_are_restored(digits, tmp_path):
    path = tmp_path / "a.zarr"
    expected = attribute(ensemble(digits), ["gd"], path=path, workers=1).load()
    (path / "zarr.json").write_bytes(b"")
    (path / "tau" / "zarr.json").unlink()
    assert store.repair(path) == ["tau/zarr.json", "zarr.json"]
    assert store.open_result(path).identical(expected)


def test_a_folder_of_ones_own_called_draft_is_kept(digits, tmp_path):
    (tmp_path / "a.zarr.draft").mkdir()
    attribute(ensemble(digits), ["gd"], path=tmp_path / "a.zarr", workers=1)
    assert (tmp_path / "a.zarr.draft").is_dir()


@pytest.mark.parametrize("place", ["/proc/x.zarr", "/sys/x.zarr", "/dev/null/x.zarr", "/proc/1/mem"])
def test_a_forbidden_place_is_one_sentence(digits, place):
    with pytest.raises((ValueError, OSError), match=f"^store {place}.*choose another"):
        attribute(ensemble(digits), ["gd"], path=place, workers=1)


def test_a_read_only_place_is_one_sentence(digits, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", folder], check=False, capture_output=True)
    if os.access(folder, os.W_OK):
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(ValueError, match="nothing can be written in .*locked; choose another place"):
            attribute(ensemble(digits), ["gd"], path=folder / "a.zarr", workers=1)
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_scheduler_that_is_not_there_is_said_at_once(digits, tmp_path):
    with pytest.raises(ValueError, match="scheduler: nothing answers at 127.0.0.1:9"):
        attribute(ensemble(digits), ["gd"], path=tmp_path / "a.zarr", scheduler="127.0.0.1:9")
    assert list(tmp_path.iterdir()) == []


def test_merged_runs_are_one_result_whose_members_are_their_seeds(digits, tmp_path):
    paths = [tmp_path / f"{seed}.zarr" for seed in (0, 1)]
    runs = [attribute(ensemble(digits, 2, seed=seed), ["loo", "gd"], path=path, workers=1)
            for seed, path in enumerate(paths)]  # fmt: skip
    merged = store.merge([*paths, paths[0]])
    assert merged.member.values.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    np.testing.assert_array_equal(merged.tau, np.concatenate([run.tau for run in runs]))
    np.testing.assert_array_equal(merged.loss_without, np.concatenate([run.loss_without for run in runs]))
    assert stats.per_pair(merged.tau).attrs["members"] == 4


@pytest.mark.parametrize("put_together", [xr.concat, store.merge], ids=["concat", "merge"])
def test_runs_of_other_seeds_count_as_the_members_they_are(digits, tmp_path, put_together):
    paths = [tmp_path / f"{seed}.zarr" for seed in (0, 1)]
    runs = [attribute(ensemble(digits, 3, seed=seed), ["gd"], path=path) for seed, path in enumerate(paths)]
    both = xr.concat(runs, "sample") if put_together is xr.concat else store.merge(paths)
    by_hand = np.concatenate([run.tau.values.reshape(3, 2, 6, 6, 1).mean(1) for run in runs])
    np.testing.assert_allclose(stats.by_member(both.tau), by_hand)
    table = stats.per_pair(both.tau)
    assert table.attrs["members"] == 6
    np.testing.assert_allclose(table["std"], by_hand.std(0, ddof=1), rtol=1e-4)
    twice = xr.concat([runs[0], runs[0]], "sample")
    assert stats.per_pair(twice.tau).attrs["members"] == 3


@pytest.mark.parametrize(("coords", "compat"), [("different", "equals"), ("minimal", "override")])
def test_runs_of_other_data_are_no_draws_of_the_same_pairs(digits, tmp_path, coords, compat):
    other = data.load("mnist3", train_per_class=2, test_per_class=2, seed=1)
    same_index = replace(other, train=replace(other.train, labels=digits.train.labels),
                         test=replace(other.test, labels=digits.test.labels))  # fmt: skip
    paths = [tmp_path / f"{k}.zarr" for k in range(3)]
    runs = [
        attribute(ensemble(task), ["gd"], path=path)
        for task, path in zip([digits, other, same_index], paths, strict=True)
    ]
    for one in runs[1:]:
        with pytest.raises(ValueError, match="a pair of points is then another one in each"):
            stats.per_pair(xr.concat([runs[0], one], "sample", coords=coords, compat=compat).tau)
    with pytest.raises(ValueError, match="cannot be merged with .*: it was made with other points or targets"):
        store.merge(paths[::2])


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({}, {"members": 3, "recipe": Recipe(epochs=2, batch_size=4)}, "batch_size: 4, not 32"),
        ({"vary": "init"}, {"vary": "init", "seed": 1}, "members that share one batch order, another than"),
        ({"vary": "batch"}, {"vary": "batch", "seed": 1}, "members that share one initialisation, another than"),
        ({"methods": ["gd", "gc"]}, {"seed": 1}, "methods: \\['gd'\\], without gc"),
    ],
)
def test_runs_that_differ_in_more_than_their_seeds_are_not_merged(digits, tmp_path, one, other, said):
    for path, asked in ((tmp_path / "a.zarr", one), (tmp_path / "b.zarr", other)):
        asked = dict(asked)
        methods, recipe = asked.pop("methods", ["gd"]), asked.pop("recipe", RECIPE)
        posterior = deep_ensemble("logreg", digits, recipe, **{"members": 2, "checkpoints": 2} | asked)
        attribute(posterior, methods, path=path, workers=1)
    with pytest.raises(ValueError, match=f"b.zarr cannot be merged with .*a.zarr: it was made with {said}"):
        store.merge([tmp_path / "a.zarr", tmp_path / "b.zarr"])


def test_a_store_of_before_is_read_and_not_written(digits, tmp_path):
    path = tmp_path / "a.zarr"
    expected = attribute(ensemble(digits), ["gd"], path=path, workers=1).tau.values
    about = path / "zarr.json"
    facts = json.loads(about.read_text())
    del facts["attributes"]["scopes"]
    about.write_text(json.dumps(facts))
    (path / ".metadata").unlink()
    with pytest.raises(ValueError, match="made with a tdalib of before 0.2, .*; it can be read; choose another store"):
        attribute(ensemble(digits), ["gd"], path=path, workers=1)
    np.testing.assert_array_equal(store.open_result(path).tau, expected)


def test_a_method_that_sees_all_members_is_not_left_behind(digits, tmp_path):
    path = tmp_path / "a.zarr"
    attribute(ensemble(digits, 2), ["spread"], path=path, workers=1)
    before = chunk_bytes(path)
    with pytest.raises(ValueError, match="made with spread, which sees all members: to have more of them, ask for it"):
        attribute(ensemble(digits, 3), ["gd"], path=path, workers=1)
    assert chunk_bytes(path) == before


def test_a_store_that_changes_before_it_is_held_is_not_written(digits, tmp_path, monkeypatch):
    """Another run adds a method between the look at the store and its lock."""
    path, create = tmp_path / "a.zarr", store.create
    attribute(ensemble(digits), ["if"], path=path, workers=1)

    def changed(path, empty):
        monkeypatch.setattr(store, "create", create)
        others = Experiment(ensemble(digits), ["gd"], path=path, workers=1)
        create(path, others._empty)
        create(path, empty)

    monkeypatch.setattr(store, "create", changed)
    with pytest.raises(ValueError, match="another run has just changed it; run again"):
        attribute(ensemble(digits), ["gc"], path=path, workers=1)
    found = attribute(ensemble(digits), ["gc", "gd", "if"], path=path, workers=1)
    np.testing.assert_array_equal(found.tau, attribute(ensemble(digits), ["gc", "gd", "if"], workers=1).tau)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no second file system")
def test_a_store_behind_a_link_grows_where_it_lies(digits, tmp_path):
    with TemporaryDirectory(dir="/dev/shm") as elsewhere:
        (tmp_path / "a.zarr").symlink_to(Path(elsewhere) / "real.zarr")
        attribute(ensemble(digits), ["gd"], path=tmp_path / "a.zarr", workers=1)
        grown = attribute(ensemble(digits, 3), ["gd", "gc"], path=tmp_path / "a.zarr", workers=1).load()
        assert (Path(elsewhere) / "real.zarr").is_dir() and (tmp_path / "a.zarr").is_symlink()
    np.testing.assert_array_equal(grown.tau, attribute(ensemble(digits, 3), ["gd", "gc"], workers=1).tau)


def test_params_of_ones_own_are_kept_beside_what_is_asked_for(digits, tmp_path):
    own = {"note": "x"}
    for members in (2, 2, 3):
        attribute(ensemble(digits, members), ["gd"], path=tmp_path / "a.zarr", params=own, workers=1)
    assert own == {"note": "x"}
    with pytest.raises(ValueError, match="made with note: x, not y"):
        attribute(ensemble(digits), ["gd"], path=tmp_path / "a.zarr", params={"note": "y"}, workers=1)


def test_what_is_noted_of_a_network_is_little(blobs, tmp_path):
    def wide(task, seed):
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 20_000))

    made = attribute(ensemble(blobs.to(torch.float32), model=wide), ["gd"], path=tmp_path / "a.zarr", workers=1)
    assert len(made.attrs["behaviour"]) < 50_000


def test_an_unfinished_run_and_one_of_another_network_are_not_merged(digits, tmp_path):
    for seed, model in ((0, "logreg"), (1, "logreg"), (2, relu)):
        attribute(ensemble(digits, seed=seed, model=model), ["gd"], path=tmp_path / f"{seed}.zarr", workers=1)
    merged = store.merge([tmp_path / "1.zarr", tmp_path / "0.zarr"])
    seeds = list(dict.fromkeys(zip(merged.init_seed.values.tolist(), merged.batch_seed.values.tolist(), strict=True)))
    assert [tuple(each) for each in json.loads(merged.attrs["seeds"])] == seeds
    assert json.loads(merged.attrs["params"])["members"] == 4
    (tmp_path / "1.zarr/tau/c/1/0/0/0").unlink()
    with pytest.raises(ValueError, match="1.zarr is not finished"):
        store.merge([tmp_path / "0.zarr", tmp_path / "1.zarr"])
    with pytest.raises(ValueError, match="2.zarr cannot be merged with .*: it was made with model: relu, not logreg"):
        store.merge([tmp_path / "0.zarr", tmp_path / "2.zarr"])


def test_code_of_the_same_name_that_is_another_is_not_merged(digits, tmp_path, monkeypatch):
    for seed, name, value in ((0, "FACTOR", 1.0), (1, "ACTIVATION", nn.Tanh), (2, "FACTOR", 100.0)):
        monkeypatch.setitem(globals(), "ACTIVATION", nn.ReLU)
        monkeypatch.setitem(globals(), name, value)
        posterior = ensemble(digits, seed=seed, model=relu)
        attribute(posterior, ["scaled"], path=tmp_path / f"{seed}.zarr", workers=1)
    for seed, what in ((1, "outputs"), (2, "numbers by scaled")):
        with pytest.raises(ValueError, match=f"it was made with code that gave other {what} on a few points"):
            store.merge([tmp_path / "0.zarr", tmp_path / f"{seed}.zarr"])


WEIGHT = 1.0


def of_the_last_class(outputs, targets):
    weight = torch.where(targets == 2, WEIGHT, 1.0)
    return weight * objectives.cross_entropy(outputs, targets)


def test_a_loss_that_was_changed_for_one_class_is_seen(digits, tmp_path, monkeypatch):
    task = replace(digits, objective=objectives.get(of_the_last_class))
    attribute(ensemble(task), ["gd"], path=tmp_path / "a.zarr", workers=1)
    monkeypatch.setitem(globals(), "WEIGHT", 3.0)
    with pytest.raises(ValueError, match="code that gave other losses at the start on a few points"):
        attribute(ensemble(task), ["gd"], path=tmp_path / "a.zarr", workers=1)


def test_another_unit_is_another_method(digits, tmp_path, monkeypatch):
    attribute(ensemble(digits), ["scaled"], path=tmp_path / "a.zarr", workers=1)
    monkeypatch.setitem(attributors.METHODS, "scaled", Method("scaled", scaled, "nats", sets="sum"))
    with pytest.raises(ValueError, match="made with scaled in 1, not in nats"):
        attribute(ensemble(digits), ["scaled"], path=tmp_path / "a.zarr", workers=1)
