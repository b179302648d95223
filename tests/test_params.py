"""One list of names, and what a params file may hold."""

import ast
from itertools import product
from pathlib import Path

import nbformat
import pytest

from tdalib import Params, run
from tdalib.data import ROOT


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


def test_every_cell_of_the_papers_tables_has_a_file():
    for dataset, epochs, test in (("mnist3", 15, 300), ("cifar10", 30, 50)):
        for model, vary, size in product(("cnn2", "cnn3", "vit_lora"), ("init", "batch"), (10, 20, 50)):
            name = f"{dataset}_{model}_{vary}" + ("" if size == 10 else f"_{size}")
            params = Params.read(ROOT / "params" / f"{name}.yaml")
            assert (params.dataset, params.model, params.sampler_options) == (f"{dataset}_paper", model, {"vary": vary})
            assert (params.train_per_class, params.test_per_class, params.epochs) == (size, test, epochs)
            is_small = (dataset, model) == ("mnist3", "cnn2")  # all points are removed; of the others 30 at random
            assert params.removals == (None if is_small else {"points": 30})
            is_costly = model == "vit_lora" or (dataset, model) == ("cifar10", "cnn3")
            assert (params.members, params.checkpoints, len(params.methods)) == (5 if is_costly else 10, 5, 5)
            assert params.schedule == ("linear" if model == "vit_lora" else "constant")


def test_paper_scale_is_the_papers():
    params = Params.read(ROOT / "params" / "mnist3_cnn2.yaml")
    task = params.task()
    assert (len(task.x_train), len(task.x_test), params.members, params.checkpoints) == (150, 900, 10, 5)
    assert params.recipe == Params().recipe and params.epochs == 15


def test_yaml_numbers_without_a_dot_are_numbers(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("learning_rate: 1e-2\nmethod_options: {if: {damping: 1e-3}}")
    assert Params.read(path).learning_rate == 0.01
    assert Params.read(path).method_options == {"if": {"damping": 0.001}}


def test_relative_stores_lie_in_the_repository(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Params(name="x").path == ROOT / "results" / "x.zarr"
    assert Params(store="elsewhere/y.zarr").path == ROOT / "elsewhere" / "y.zarr"
    assert Params(store="~/z.zarr").path == Path.home() / "z.zarr"
