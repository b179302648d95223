"""τ with a known truth, for the tests of statistics."""

import numpy as np
import xarray as xr


def simulate(draws):
    """A labelled τ from an array (member, checkpoint, train, test, method)."""
    members, checkpoints, *rest = draws.shape
    return xr.DataArray(
        draws.reshape(members * checkpoints, *rest).astype(np.float32),
        dims=("sample", "train", "test", "method"),
        coords={
            "member": ("sample", np.repeat(np.arange(members), checkpoints)),
            "method": [f"m{k}" for k in range(rest[-1])],
        },
    )
