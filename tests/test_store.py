"""The layout on disk, and what a store refuses."""

import json

import numpy as np
import pytest
import xarray as xr

from tdalib import Recipe, attributors, deep_ensemble, removals, result, store

PARAMS = {"seed": 0}


@pytest.fixture
def empty(digits):
    posterior = deep_ensemble("cnn2", digits, Recipe(epochs=2), members=3, checkpoints=2)
    methods = {name: attributors.get(name) for name in ("loo", "gd")}
    return result.template(posterior, removals.every_point(digits.train), methods, PARAMS)


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
