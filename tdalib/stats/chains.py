"""Has a chain converged? By the loss of its draws."""

import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats.base import array_stats

from tdalib.stats.draws import counted


def convergence(result: xr.Dataset) -> pd.DataFrame:
    """R-hat and effective sample size of each member's chain, by the mean test loss of its draws.

    Columns: `draws`; `R-hat`, rank-normalised, of the quarters of the chain: well above 1 where it drifts or hangs;
    `ESS`, in draws. R-hat is NaN for fewer than 8 draws; below about 20 it scatters by 0.3 even for independent
    ones. Chains of different members start at different modes and are not compared.

    Source: Vehtari et al. 2021, arXiv:1903.08008, by arviz-stats.
    """
    rows = {}
    trace = counted(result)["loss"].mean("test")
    for member, chain in trace.groupby(trace.member.compute()):
        draws = chain.values.astype(np.float64)
        halves = draws[len(draws) % 2 :].reshape(2, -1)  # (chain, draw), no odd first; arviz-stats splits each again
        r_hat = float(array_stats.rhat(halves, method="z_scale"))
        ess = float(array_stats.ess(draws[None]))
        rows[member] = {"draws": len(draws), "R-hat": r_hat, "ESS": ess}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("member")


def convergence_warning(table: pd.DataFrame) -> str | None:
    """One line on what is wrong with the chains of a `convergence` table, judged by the median chain; else None."""
    r_hat, ess, draws = (table[name].median() for name in ("R-hat", "ESS", "draws"))
    if draws < 20:
        return (
            f"{draws:.0f} draws of a chain are too few to judge whether it has converged; 20 checkpoints or more tell"
        )
    if r_hat > 1.1 or ess < draws / 4:
        state = f"R-hat {r_hat:.2f}, effective sample size {ess:.0f} of {draws:.0f} draws"
        advice = "a longer burn_in or thin, or another step_size, helps"
        return f"the loss of the chains has not converged: {state} (median of {len(table)} chains); {advice}"
    return None
