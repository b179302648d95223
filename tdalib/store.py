"""The result on disk: one xarray Dataset in Zarr, in which a chunk is a finished unit of work."""

import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from filelock import FileLock, Timeout
from zarr.codecs import Crc32cCodec, ZstdCodec

from tdalib import checksums, identity
from tdalib.data import resolve
from tdalib.stats import counted


def create(path: Path, empty: xr.Dataset) -> None:
    """Lay out a store at `path`, or let the one there grow by the members and methods that it lacks.

    Raises
    ------
    ValueError
        The store was made with other params, data or code, or `path` is something else.
    OSError
        The disk is full, or nothing can be written there.
    """
    check(path, empty)
    if not path.exists():
        with _drafted(path, empty) as draft, _writing(path):
            draft.rename(path)
        return
    made = _made(path)
    identity.note_versions(path, made, identity.read(empty.attrs))
    wanted = identity.together(made, empty)
    if identity.grows(made, identity.read(empty.attrs)):
        with _drafted(path, wanted) as draft, _writing(path):
            _grow(path, draft, made)
    as_many = identity.members(identity.read(empty.attrs)) == identity.members(_made(path))
    for name in missing(path, wanted):
        if as_many or "sample" not in wanted[name].dims:
            write(path, name, (0,) * wanted[name].ndim, wanted[name].values)
    checksums.copy_metadata(path)


@contextmanager
def _drafted(path: Path, empty: xr.Dataset) -> Iterator[Path]:
    """A folder beside `path` with the empty store, which is gone afterwards."""
    codecs = {"compressors": (ZstdCodec(), Crc32cCodec()), "write_empty_chunks": True}
    encoding = {name: codecs | {"fill_value": np.nan} for name in empty.data_vars}
    encoding |= {name: codecs | {"chunks": empty[name].shape} for name in stored_at_once(empty)}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tdalib-draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with _writing(path), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")  # xr.open_zarr asks for it all the same
            empty.to_zarr(draft, compute=False, zarr_format=3, encoding=encoding)
            _check_fill(draft)
            checksums.copy_metadata(draft)
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _grow(path: Path, draft: Path, made: identity.Made) -> None:
    """Put the layout of a draft in the place of a smaller one, whose chunks stay; killed halfway, it is done again.

    The root's metadata, which say how all is read, change in one moment. Coordinates are missing around it, so that
    nothing is read by a layout that does not fit.
    """
    (path / checksums.COPY).unlink(missing_ok=True)  # it would not fit for a moment
    if identity.members(_made(draft)) > identity.members(made):
        for name in identity.of_all_members(made):  # of fewer members
            column = identity.methods(made).index(name)
            for chunk in path.glob(f"tau/c/*/*/*/{column}"):
                chunk.unlink()
    arrays = [folder.name for folder in draft.iterdir() if folder.is_dir()]
    at_once = [name for name in arrays if (draft / name / "c").exists()]
    for name in at_once:
        shutil.rmtree(path / name / "c", ignore_errors=True)
    for name in arrays:
        (path / name).mkdir(exist_ok=True)
        (draft / name / "zarr.json").replace(path / name / "zarr.json")
    (draft / "zarr.json").replace(path / "zarr.json")
    for name in at_once:
        (draft / name / "c").replace(path / name / "c")


def columns(path: Path, empty: xr.Dataset) -> list[str]:
    """The methods in the order that they have, or will have, in the store."""
    held = identity.methods(_made(path)) if path.exists() else []
    return list(dict.fromkeys([*held, *empty.method.values]))


def is_whole(path: Path, empty: xr.Dataset) -> bool:
    """Whether there is a store that is laid out for all that is asked for."""
    return path.exists() and not identity.grows(_made(path), identity.read(empty.attrs)) and not missing(path, empty)


def _made(path: Path) -> identity.Made:
    """What made the store at `path`, from its attributes."""
    return identity.read(zarr.open_group(path, mode="r").attrs)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the store at `path` for one run; the lock goes with the process, however that ends.

    Raises
    ------
    ValueError
        Another run holds it.
    """
    path = path.resolve()  # one lock, whatever links lead here
    file = path.with_name(f".{path.name}.lock")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    try:
        lock = FileLock(file, timeout=0).acquire()
    except Timeout:
        raise ValueError(f"store {path} is being written by another run; wait for it or choose another store") from None
    with lock:
        for partial in path.rglob("*.partial"):  # a chunk that a killed run was writing
            partial.unlink()
        yield


def check(path: Path, empty: xr.Dataset) -> None:
    """Refuse a place where no store can lie, or one made with other params, data or code, naming what differs."""
    with _writing(path):  # to ask after a name can fail too, if it is too long
        ground = next(parent for parent in (path, *path.parents) if parent.exists())
    if ground != path and not ground.is_dir():
        raise ValueError(f"store {path}: {ground} is a file; choose another place")
    if not os.access(ground, os.W_OK):
        raise ValueError(f"store {path}: nothing can be written in {ground}; choose another place")
    if not path.exists():
        return
    _check_metadata(path)
    made: identity.Made = {}
    with suppress(Exception):  # zarr raises what the content makes it raise
        made = _made(path)
    if "params" not in made:
        raise ValueError(f"store {path} exists and is not a tdalib store; choose another")
    if other := identity.difference(made, identity.read(empty.attrs)):
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
    path = _there(path)
    _check_metadata(path)
    if not (path / "zarr.json").is_file() or "params" not in zarr.open_group(path, mode="r").attrs:
        raise ValueError(f"{path} is a folder, but not a tdalib store")
    _check_fill(path)
    result = xr.open_zarr(checksums.Verified(path, read_only=True))
    for name in missing(path, result):
        raise ValueError(f"store {path} lacks its {name}; the run that made the store writes it again")
    return result.assign_coords(result.coords.to_dataset().load().coords)


def _there(path: Path | str) -> Path:
    """The folder called so."""
    path = resolve(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no store at {path}; make one: python -m tdalib.run params/{path.stem}.yaml")
    return path


def merge(paths: Sequence[Path | str]) -> xr.Dataset:
    """Runs of the same data and params with other seeds, as one result, lazily.

    Members are counted by their seeds, in the order of the stores; one that several stores hold stands once. The
    methods are those of the first store, which the others must have too.

    Raises
    ------
    FileNotFoundError
        A store is not there.
    ValueError
        What `open_result` raises, or runs that differ in more than their seeds.
    """
    if isinstance(paths, str | Path) or not paths:
        raise ValueError("merge: give a list of stores, one at least")
    results = [open_result(path) for path in paths]
    first = identity.read(results[0].attrs)
    parts: list[xr.Dataset] = []
    seen: dict[tuple[int, int], None] = {}  # in order
    for path, result in zip(paths, results, strict=True):
        if other := identity.other_than_seeds(identity.read(result.attrs), first):
            raise ValueError(f"store {path} cannot be merged with {paths[0]}: it was made with {other}")
        if len(list(resolve(path).glob("tau/c/*/*/*/*"))) < result.tau.data.npartitions:
            raise ValueError(f"store {path} is not finished; the run that made it goes on where it was")
        seeds = list(zip(result.init_seed.values.tolist(), result.batch_seed.values.tolist(), strict=True))
        parts.append(result.sel({"method": identity.methods(first)}).isel(sample=[s not in seen for s in seeds]))
        seen |= dict.fromkeys(seeds)
    kept = [part for part in parts if part.sizes["sample"]]
    whole = xr.concat(kept, "sample", data_vars="minimal", coords="minimal", compat="override", join="exact")
    params = json.dumps(first["params"] | {"members": len(seen), "seeds": list(seen)}, sort_keys=True)
    return counted(whole).assign_attrs(seeds=json.dumps(list(seen)), params=params)


def _check_metadata(path: Path) -> None:
    """Refuse a store whose metadata are not those that were written."""
    for name in checksums.damaged_metadata(path):
        raise ValueError(f"{name} of store {path} is damaged; tdalib.store.repair restores it")


def _check_fill(path: Path) -> None:
    """Refuse a store in which a chunk that is not there would be read as a number."""
    for name, array in zarr.open_group(path, mode="r").arrays():
        if array.dtype == np.float32 and not np.isnan(array.fill_value):
            raise ValueError(f"store {path}: what {name} lacks would be read as {array.fill_value}, not as missing")


def write(path: Path, name: str, chunk: tuple[int, ...], values: np.ndarray) -> None:
    """Write one chunk of variable `name`, whole and at once; `chunk` counts chunks along each dim.

    Raises
    ------
    OSError
        The disk is full. The store stays valid, and the same run goes on from here.
    """
    with zarr.config.set({"array.write_empty_chunks": True}), _writing(path):
        zarr.open_group(path, mode="r+")[name].blocks[chunk] = values  # type: ignore[union-attr]


def is_done(path: Path, name: str, chunk: tuple[int, ...]) -> bool:
    """Whether the chunk exists: it is written only when finished."""
    return path.joinpath(name, "c", *map(str, chunk)).is_file()


def damaged(path: Path | str) -> list[str]:
    """The chunks and metadata whose bytes are not those that were written, by their checksum; all is read."""
    path = _there(path)
    return checksums.damaged_metadata(path) + checksums.damaged_chunks(path)


def repair(path: Path | str) -> list[str]:
    """Restore damaged metadata and remove damaged chunks; returns their names.

    The run which made the store computes the chunks again.
    """
    path = _there(path)
    with held(path):
        restored, removed = checksums.restore_metadata(path), checksums.damaged_chunks(path)
        for name in removed:
            (path / name).unlink()
    return restored + removed


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Where something is written: what the system refuses is one sentence.

    Raises
    ------
    OSError
        The disk is full, or nothing can be written there.
    """
    try:
        yield
    except OSError as error:
        why = f"it cannot be written ({error.strerror or error}); choose another place"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "the disk is full; make room, and the same run goes on from here"
        raise OSError(f"store {path}: {why}") from None


def missing(path: Path, result: xr.Dataset) -> list[str]:
    """What is stored at once and `repair` removed: it would be read as zeros."""
    return [name for name in stored_at_once(result) if not is_done(path, name, (0,) * result[name].ndim)]


def stored_at_once(result: xr.Dataset) -> list[str]:
    """Variables that are known before anything is computed: coordinates, and the points that are removed."""
    return [*result.coords, *(name for name in ("removed",) if name in result)]
