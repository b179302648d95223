"""The layout on disk, and what a store refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from tdalib import Experiment, Recipe, attributors, deep_ensemble, models, objectives, removals, result, samplers, store

PARAMS = {"seed": 0}


@pytest.fixture
def empty(digits):
    posterior = deep_ensemble("cnn2", digits, Recipe(epochs=2), members=3, checkpoints=2)
    methods = {name: attributors.get(name) for name in ("loo", "gd")}
    return result.template(posterior, removals.every_point(digits.train), methods, PARAMS, {})


def test_layout(empty, tmp_path, monkeypatch):
    path = tmp_path / "a.zarr"
    store.create(path, empty)
    described = json.loads((path / "tau" / "zarr.json").read_text())
    assert described["chunk_grid"]["configuration"]["chunk_shape"] == [2, 6, 6, 1]
    assert [codec["name"] for codec in described["codecs"]][-1] == "crc32c"
    assert described["fill_value"] == "NaN"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]  # no draft is left
    assert xr.open_zarr(path).tau.isnull().all()


def test_a_chunk_exists_when_written_even_if_it_holds_only_the_fill_value(empty, tmp_path):
    path = tmp_path / "a.zarr"
    store.create(path, empty)
    chunk = (1, 0, 0, 1)
    assert not store.is_done(path, "tau", chunk)
    store.write(path, "tau", chunk, np.full((2, 6, 6, 1), np.nan, np.float32))
    assert store.is_done(path, "tau", chunk) and not store.is_done(path, "tau", (0, 0, 0, 1))
    store.write(path, "tau", chunk, np.arange(72, dtype=np.float32).reshape(2, 6, 6, 1))
    tau = xr.open_zarr(path).tau
    assert tau.notnull().sum() == 72
    assert tau.sel({"method": "gd"}).values[2:4].ravel().tolist() == list(range(72))


def test_a_flipped_bit_does_not_pass_unnoticed(empty, tmp_path):
    path = tmp_path / "a.zarr"
    store.create(path, empty)
    store.write(path, "tau", (0, 0, 0, 0), np.ones((2, 6, 6, 1), np.float32))
    (file,) = [f for f in (path / "tau" / "c").rglob("*") if f.is_file()]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        xr.open_zarr(path).tau.load()


def test_places_where_no_store_can_lie(empty, tmp_path):
    (tmp_path / "notes.zarr").mkdir()
    (tmp_path / "file.zarr").touch()
    for name, message in (
        ("notes.zarr", "is not a tdalib store"),
        ("file.zarr", "is not a tdalib store"),
        ("file.zarr/b.zarr", "file.zarr is a file"),
    ):
        with pytest.raises(ValueError, match=message):
            store.create(tmp_path / name, empty)
    assert {entry.name for entry in tmp_path.rglob("*")} == {"notes.zarr", "file.zarr"}


def test_missing_store_says_how_to_make_one():
    with pytest.raises(FileNotFoundError, match="python -m tdalib.run params/nowhere.yaml"):
        store.open_result("results/nowhere.zarr")


def twin(task, seed):
    """The network of mlp, called otherwise."""
    return models.mlp(task, seed)


def without_params(
    task, methods=("loo", "gd"), sampler="deep_ensemble", model="mlp", model_options=None, recipe=None, path=None,
    removals=None, options=None, of_task=None, **asked,
):  # fmt: skip
    """An experiment made from Python, of a few short trainings but for what is asked."""
    task = replace(task, **(of_task or {}))
    network = models.get(model, **(model_options or {}))
    recipe = Recipe(**{"epochs": 2, "optimizer": "sgd"} | (recipe or {}))
    posterior = samplers.get(sampler)(network, task, recipe, **{"members": 2, "checkpoints": 1} | asked)
    return Experiment(posterior, methods, removals=removals, options=options, path=path, device="cpu", workers=1)


DROPS = {"model_options": {"dropout": 0.1}}
DIFFERENCES = [  # the params that differ, one experiment and another; what is not said is as in `without_params`
    ("batch_size", {"recipe": {"batch_size": 4}}, {"recipe": {"batch_size": 5}}),
    ("checkpoints", {"checkpoints": 1}, {"checkpoints": 2}),
    ("dataset", {}, {"of_task": {"name": "other"}}),
    ("epochs", {"recipe": {"epochs": 2}}, {"recipe": {"epochs": 3}}),
    ("learning_rate", {"recipe": {"learning_rate": 1e-3}}, {"recipe": {"learning_rate": 2e-3}}),
    ("method_options of loo", {}, {"options": {"loo": {"protocol": "continue"}}}),
    ("method_options of gd", {"options": {"gd": {"memory": 1.0}}}, {"options": {"gd": {"memory": 2.0}}}),
    ("model", {}, {"model": twin}),
    ("model_options", {"model_options": {"dropout": 0.1}}, {"model_options": {"dropout": 0.2}}),
    ("model_options", {}, {"model_options": {"width": 5}}),
    ("momentum", {"recipe": {"momentum": 0.5}}, {"recipe": {"momentum": 0.9}}),
    ("objective", {}, {"of_task": {"objective": replace(objectives.get("cross_entropy"), name="own")}}),
    ("optimizer", {"recipe": {"optimizer": "adam"}}, {"recipe": {"optimizer": "adamw"}}),
    ("removals", {}, {"removals": {"points": [0, 1, 2, 3, 4, 5]}}),
    ("removals", {"removals": {"points": 3}}, {"removals": {"points": 3, "seed": 1}}),
    ("removals", {"removals": {"sets": [[0, 1]]}}, {"removals": {"sets": [[0, 1]], "renormalise": True}}),
    ("sampler", DROPS, DROPS | {"sampler": "mc_dropout"}),
    ("sampler_options", {"sampler": "sgld"}, {"sampler": "sgld", "temperature": 0.5}),
    ("schedule", {"recipe": {"schedule": "constant"}}, {"recipe": {"schedule": "linear"}}),
    ("seeds", {"seed": 0}, {"seed": 1}),
    ("seeds", {"vary": "both"}, {"vary": "init"}),
    ("seeds", {"vary": "both"}, {"vary": "batch"}),
    ("stack", {}, {"stack": 1}),
    ("stack", {"stack": 25}, {"stack": 50}),
    ("weight_decay", {"recipe": {"weight_decay": 0.0}}, {"recipe": {"weight_decay": 0.1}}),
]


@pytest.mark.parametrize(("key", "one", "other"), DIFFERENCES)
def test_an_experiment_that_differs_is_refused_by_name(digits, tmp_path, key, one, other):
    for number, (made, asked) in enumerate([(one, other), (other, one)]):
        path = tmp_path / f"{number}.zarr"
        store.create(path, without_params(digits, **made)._empty)
        with pytest.raises(ValueError, match=rf"{number}.zarr was made with {key}: .*, not .*; choose another store"):
            without_params(digits, path=path, **asked).check()


def test_the_same_experiment_made_again_is_not_refused(digits, tmp_path):
    for _ in range(2):
        asked = without_params(digits, path=tmp_path / "a.zarr")
        asked.check()
        store.create(asked.path, asked._empty)


def test_every_param_tells_experiments_apart(digits):
    params = json.loads(without_params(digits)._empty.attrs["params"])
    told = {key.split(" of ")[0] for key, *_ in DIFFERENCES}
    assert params.keys() - told == {"device", "members", "methods"}  # a GPU is not everywhere, and stores grow


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"device": "cuda"}, "device: cuda, not cpu"),
        ({"epochs": None}, "epochs: None, not 2"),
        ({"later": 1}, "later: 1, not None"),
    ],
)
def test_a_store_that_holds_other_params_or_lacks_one_is_refused(digits, tmp_path, held, message):
    asked = without_params(digits, path=tmp_path / "a.zarr")
    params = json.loads(asked._empty.attrs["params"]) | held
    params = {key: value for key, value in params.items() if value is not None}  # of which a store need say nothing
    store.create(asked.path, asked._empty.assign_attrs(params=json.dumps(params)))
    with pytest.raises(ValueError, match=f"a.zarr was made with {message}; choose another store"):
        asked.check()


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("what", ["inputs", "targets"])
def test_other_data_of_the_same_name_are_refused(digits, tmp_path, split, what):
    asked = without_params(digits, path=tmp_path / "a.zarr")
    store.create(asked.path, asked._empty)
    points = getattr(digits, split)
    values = getattr(points, what).clone()
    values[0] = values[-1]
    other = replace(digits, **{split: replace(points, **{what: values})})
    with pytest.raises(ValueError, match="a.zarr was made with other points or targets; choose another store"):
        without_params(other, path=asked.path).check()


@pytest.mark.parametrize("part", ["1.bias", "1.weight", "scale"], ids=["trained", "frozen", "buffer"])
def test_another_network_of_the_same_name_is_refused(digits, tmp_path, part):
    def network(shift):
        def own(task, seed):
            layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 3))
            layers[1].weight.requires_grad_(False)
            layers.register_buffer("scale", torch.ones(1))
            with torch.no_grad():
                layers.state_dict()[part].add_(shift)
            return layers

        return own

    asked = without_params(digits, ["gd"], model=network(0.0), path=tmp_path / "a.zarr")
    store.create(asked.path, asked._empty)
    without_params(digits, ["gd"], model=network(0.0), path=asked.path).check()
    with pytest.raises(ValueError, match="a.zarr was made with another model or backbone; choose another store"):
        without_params(digits, ["gd"], model=network(0.5), path=asked.path).check()


def test_a_store_that_lost_its_fill_value_is_not_read(blobs, tmp_path):
    path = tmp_path / "a.zarr"
    Experiment(
        deep_ensemble("logreg", blobs, Recipe(epochs=1), members=1, checkpoints=1), "gd", path=path, workers=1
    ).run()
    about = path / "zarr.json"  # what is read of all arrays, in one file
    facts = json.loads(about.read_text())
    facts["consolidated_metadata"]["metadata"]["tau"]["fill_value"] = 0.0
    about.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="zarr.json of store .* is damaged; tdalib.store.repair restores it"):
        store.open_result(path)
    (path / ".metadata").unlink()  # as a store that was made so
    with pytest.raises(ValueError, match="what tau lacks would be read as 0.0, not as missing"):
        store.open_result(path)
