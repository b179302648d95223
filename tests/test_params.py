"""Strict params: one line, before any work, with nothing written."""

import ast
import subprocess
import sys

import nbformat
import numpy as np
import pytest

from tdalib import Params, run, store
from tdalib.data import ROOT

TINY = {"name": "tiny", "train_per_class": 2, "test_per_class": 2, "members": 2, "checkpoints": 1, "epochs": 1}


def write(path, **values):
    path.write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    return path


def test_notebook_and_model_share_names_and_defaults():
    notebook = nbformat.read(run.NOTEBOOK, as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    lines = [node for node in ast.parse(cell.source).body if isinstance(node, ast.AnnAssign)]
    assert {node.target.id: ast.literal_eval(node.value) for node in lines} == Params().model_dump()
    assert all("  # " in line for line in cell.source.splitlines())


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_params_are_valid_and_only_what_differs(path):
    params = Params.read(path)
    assert params.name == path.stem
    given = params.model_dump(include=params.model_fields_set, exclude={"name"})
    defaults = Params().model_dump()
    assert all(defaults[key] != value for key, value in given.items())


def test_paper_scale_is_the_papers():
    params = Params.read(ROOT / "params" / "mnist3_cnn2.yaml")
    task = params.task()
    assert (len(task.x_train), len(task.x_test), params.members, params.checkpoints) == (150, 900, 10, 5)
    assert params.recipe == Params().recipe and params.epochs == 15


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"memebrs": 3}, "unknown key 'memebrs'; allowed are name, dataset, train_per_class"),
        ({"methods": "[loo, lime]"}, "methods: method 'lime' is not known; choose from ats, gc, gd, if, loo"),
        ({"methods": "[gd, gd]"}, "methods: a method is named twice"),
        ({"methods": "[]"}, "methods: [] is not possible"),
        ({"train_per_class": 200}, "train_per_class: 200 is not possible; mnist3 has 1 to 100 per class"),
        ({"members": 0}, "members: 0 is not possible; input should be greater than or equal to 1"),
        ({"members": "'3'"}, "members: '3' is not possible"),
        ({"checkpoints": 16}, "checkpoints: 16 is not possible with 1 epochs"),
        ({"model": "cnn9"}, "model: model 'cnn9' is not known; choose from cnn2, logreg"),
        ({"sampler": "mcmc"}, "sampler: sampler 'mcmc' is not known"),
        ({"sampler_options": "{vari: init}"}, "sampler_options: deep_ensemble has no option 'vari'; it has vary"),
        ({"sampler_options": "{vary: all}"}, "vary 'all' is not known"),
        ({"method_options": "{if: {slover: cg}}"}, "if has no option 'slover'; it has solver, damping"),
        ({"method_options": "{if: {solver: lu}}"}, "if: solver 'lu' is not known"),
        ({"model_options": "{width: 3}"}, "model_options: cnn2 has no option 'width'; it has none"),
        ({"weight_decay": 0}, "if: damping 0.0 is not possible"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is not possible"),
        ({"dataset": "imagenet"}, "dataset 'imagenet' is not known"),
        ({"name": "a/b"}, "name: 'a/b' is not possible"),
    ],
    ids=str,
)
def test_wrong_params_give_one_line_and_write_nothing(tmp_path, capsys, values, message):
    path = write(tmp_path / "bad.yaml", **TINY | {"store": tmp_path / "bad.zarr"} | values)
    assert run.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith(f"{path}: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.where(np.arange(16).reshape(4, 4) == 5, np.nan, 1.0)}, "x_train[1] has a value"),
        ({"y_train": np.array([0, 0, 2, 2]), "y_test": np.array([0, 2])}, "class 1 ('1') has no train point"),
    ],
    ids=["NaN image", "empty class"],
)
def test_bad_data_gives_one_line_and_writes_nothing(tmp_path, capsys, changes, message):
    data = {"x_train": np.ones((4, 4)), "y_train": [0, 1, 0, 1], "x_test": np.ones((2, 4)), "y_test": [0, 1]}
    np.savez(tmp_path / "mine.npz", **data | changes)
    values = TINY | {"dataset": tmp_path / "mine.npz", "model": "logreg", "store": tmp_path / "bad.zarr"}
    path = write(tmp_path / "bad.yaml", **values | {"train_per_class": 1, "test_per_class": 1})
    assert run.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"bad.yaml", "mine.npz"}


def test_exit_code_of_the_process(tmp_path):
    path = write(tmp_path / "bad.yaml", members=0)
    done = subprocess.run([sys.executable, "-m", "tdalib.run", path], capture_output=True, text=True)
    assert done.returncode != 0 and done.stderr.count("\n") == 1 and done.stdout == ""


def test_yaml_numbers_without_a_dot_are_numbers(tmp_path):
    assert Params.read(write(tmp_path / "a.yaml", learning_rate="1e-2")).learning_rate == 0.01


@pytest.mark.parametrize("text", ["- 1\n", "a: [\n"])
def test_files_that_hold_no_params(tmp_path, capsys, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert run.main([str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_store_of_another_experiment_is_refused(tmp_path, capsys):
    params = Params.of(TINY | {"store": str(tmp_path / "a.zarr"), "methods": ["gd"]})
    task = params.task()
    from tdalib import attributors

    store.create(params.path, store.template(params.posterior(task), {"gd": attributors.get("gd")}, params.defining()))
    path = write(tmp_path / "b.yaml", **TINY | {"store": params.path, "methods": "[gd]", "seed": 5})
    before = sorted(tmp_path.rglob("*"))
    assert run.main([str(path)]) == 2
    assert "made with seed: 0, not 5; choose another store" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_relative_stores_lie_in_the_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Params(name="x").path == ROOT / "results" / "x.zarr"
    assert Params(store="elsewhere/y.zarr").path == ROOT / "elsewhere" / "y.zarr"
