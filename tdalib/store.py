"""The result on disk: one xarray Dataset in Zarr, in which a chunk is a finished unit of work."""

import errno
import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import xarray as xr
import zarr
from filelock import FileLock, Timeout
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from tdalib.data import resolve

# params that older stores lack, as they were then
SINCE: dict[str, Any] = {"objective": None, "model_options": {}, "optimizer": "adam", "momentum": 0.0, "removals": None}


def create(path: Path, empty: xr.Dataset) -> None:
    """Lay out a store at `path`; one that is there already is kept if it was made with the same params and data.

    Raises
    ------
    ValueError
        The store was made with other params or other data, or `path` is something else.
    OSError
        The disk is full.
    """
    check(path, empty)
    if path.exists():
        for name in missing(path, empty):
            write(path, name, (0,) * empty[name].ndim, empty[name].values)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    codecs = {"compressors": (ZstdCodec(), Crc32cCodec()), "write_empty_chunks": True}
    encoding = {name: codecs | {"fill_value": np.nan} for name in empty.data_vars}
    encoding |= {name: codecs | {"chunks": empty[name].shape} for name in stored_at_once(empty)}
    try:
        with _full_disk_named(path), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")  # xr.open_zarr asks for it all the same
            empty.to_zarr(draft, compute=False, zarr_format=3, encoding=encoding)
        _check_fill(draft)
        draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the store at `path` for one run; the lock goes with the process, however that ends.

    Raises
    ------
    ValueError
        Another run holds it.
    """
    path = path.resolve()  # one lock, whatever links lead here
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0).acquire()
    except Timeout:
        raise ValueError(f"store {path} is being written by another run; wait for it or choose another store") from None
    with lock:
        for partial in path.rglob("*.partial"):  # a chunk that a killed run was writing
            partial.unlink()
        yield


def check(path: Path, empty: xr.Dataset) -> None:
    """Refuse a place where no store can lie, or one made with other params or other data, naming what differs."""
    blocked = [parent for parent in path.parents if parent.exists() and not parent.is_dir()]
    if blocked:
        raise ValueError(f"store {path}: {blocked[0]} is a file; choose another place")
    if not path.exists():
        return
    try:
        made: Any = zarr.open_group(path, mode="r").attrs
        before = SINCE | json.loads(made["params"])
    except Exception:  # zarr raises what the content makes it raise
        raise ValueError(f"store {path} exists and is not a tdalib store; choose another") from None
    params = SINCE | json.loads(empty.attrs["params"])
    for key in sorted(before.keys() | params.keys()):
        was, now = before.get(key), params.get(key)
        if was != now:
            raise ValueError(f"store {path} was made with {key}: {was}, not {now}; choose another store")
    if is_done(path, "removed", (0, 0)) and not np.array_equal(xr.open_zarr(path)["removed"], empty["removed"]):
        raise ValueError(f"store {path} was made with other removals; choose another store")
    for fact, other in {"data_sha256": "other points or targets", "model_sha256": "another model or backbone"}.items():
        if empty.attrs[fact] != made[fact]:
            raise ValueError(f"store {path} was made with {other}; choose another store")


def open_result(path: Path | str) -> xr.Dataset:
    """The stored Dataset, lazily but for its coordinates; a relative path starts at the repository root.

    Raises
    ------
    FileNotFoundError
        Nothing is there; the sentence says how to make a store.
    ValueError
        The folder is no store. Here or when the values are read: a chunk, which the sentence names, is damaged.
    """
    path = resolve(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no store at {path}; make one: python -m tdalib.run params/{path.stem}.yaml")
    if not (path / "zarr.json").is_file():
        raise ValueError(f"{path} is a folder, but not a tdalib store")
    _check_fill(path)
    result = xr.open_zarr(_Verified(path, read_only=True))
    for name in missing(path, result):
        raise ValueError(f"store {path} lacks its {name}; the run that made the store writes it again")
    return result.assign_coords(result.coords.to_dataset().load().coords)


def _check_fill(path: Path) -> None:
    """Refuse a store in which a chunk that is not there would be read as a number."""
    for name, array in zarr.open_group(path, mode="r").arrays():
        if array.dtype == np.float32 and not np.isnan(array.fill_value):
            filled = f"what {name} lacks would be read as {array.fill_value}, not as missing"
            raise ValueError(f"store {path}: {filled}; make it again with another version of xarray or zarr")


def write(path: Path, name: str, chunk: tuple[int, ...], values: np.ndarray) -> None:
    """Write one chunk of variable `name`, whole and at once; `chunk` counts chunks along each dim.

    Raises
    ------
    OSError
        The disk is full. The store stays valid, and the same run goes on from here.
    """
    with zarr.config.set({"array.write_empty_chunks": True}), _full_disk_named(path):
        zarr.open_group(path, mode="r+")[name].blocks[chunk] = values  # type: ignore[union-attr]


def is_done(path: Path, name: str, chunk: tuple[int, ...]) -> bool:
    """Whether the chunk exists: it is written only when finished."""
    return path.joinpath(name, "c", *map(str, chunk)).is_file()


def damaged(path: Path | str) -> list[str]:
    """The chunks whose bytes are not those that were written, by their checksum; all of the store is read."""
    path = resolve(path)
    files = sorted(file for file in path.glob("*/c/**/*") if file.is_file() and file.suffix != ".partial")
    return [file.relative_to(path).as_posix() for file in files if not _is_intact(file.read_bytes())]


def repair(path: Path | str) -> list[str]:
    """Remove the damaged chunks, so that the run which made the store computes them again; returns their names."""
    with held(resolve(path)):
        names = damaged(path)
        for name in names:
            (resolve(path) / name).unlink()
    return names


class _Verified(LocalStore):
    """A store that says which chunk is damaged; zarr's checksum codec knows no names."""

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        return self._verified(key, await super().get(key, prototype, byte_range))

    def get_sync(self, key: str, **options: Any) -> Any:
        return self._verified(key, super().get_sync(key, **options))

    def _verified(self, key: str, value: Any) -> Any:
        if value is not None and "/c/" in key and not _is_intact(value.to_bytes()):
            remedy = "tdalib.store.repair removes it, and the run that made the store computes it again"
            raise ValueError(f"chunk {key} of {self.root} is damaged; {remedy}")
        return value


def _is_intact(content: bytes) -> bool:
    """Whether the last four bytes are the crc32c of the rest."""
    return len(content) > 4 and google_crc32c.value(content[:-4]) == int.from_bytes(content[-4:], "little")


@contextmanager
def _full_disk_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(f"store {path}: the disk is full; make room, and the same run goes on from here") from None


def missing(path: Path, result: xr.Dataset) -> list[str]:
    """What is stored at once and `repair` removed: it would be read as zeros."""
    return [name for name in stored_at_once(result) if not is_done(path, name, (0,) * result[name].ndim)]


def stored_at_once(result: xr.Dataset) -> list[str]:
    """Variables that are known before anything is computed: coordinates, and the points that are removed."""
    return [*result.coords, *(name for name in ("removed",) if name in result)]
