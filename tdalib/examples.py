"""Small results that ship, so that every notebook opens with figures at once."""

from pathlib import Path

import xarray as xr

from tdalib.data import PACKAGE, resolve
from tdalib.store import open_result


def example(store: Path | str | None = None, *, crossed: bool = False) -> xr.Dataset:
    """The result in `store`, or a small real one that ships where nothing is there, which one line says.

    Parameters
    ----------
    store : path, optional
    crossed : bool
        The example is a grid of 4 initialisations × 4 batch orders × 4 checkpoints of CNN-2 on mnist3, 20 train points
        per class, 30 of which are removed, and 30 test points, by loo, gd and gc (`params/example_crossed.yaml`). Else
        12 trainings × 2 checkpoints, 30 train and 60 test points, by all five methods (`params/example.yaml`).

    Returns
    -------
    xarray.Dataset as `attribute` gives it. `Params.task_of` gives the images of its points.
    """
    if store and resolve(store).exists():
        return open_result(store)
    name = "example_crossed" if crossed else "example"
    if store:
        print(f"There is no {store} yet; this is the example that ships with tdalib (params/{name}.yaml).")
    return xr.load_dataset(PACKAGE / "datasets" / f"{name}.nc", engine="h5netcdf")
