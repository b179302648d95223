"""Do lists, their error rates and forecasts keep what they claim on real τ? Held against many members.

    python tests/measure_claims.py --draw      # trains the members once (about 15 minutes on two cores)
    python tests/measure_claims.py             # measures, and writes notebooks/claims.csv and notebooks/forecasts.csv

An effect list: a random share of the pairs is made null by subtracting their mean over all members, so that skew and
dependence stay; `trustworthy(claim="effect")` sees a few of the members, whose null means are stretched to scatter as
those of members from outside would; and the realised false discovery proportion is counted, 0 for an empty list. A sign
list: of real pairs, the sign of the mean of a few members against that of all others. A forecast: `power` of a pilot
against what the members held out find.
"""

import argparse
import warnings

import joblib
import numpy as np
import pandas as pd

from tdalib import Params, stats
from tdalib.data import resolve
from tdalib.store import open_result

PARAMS = ["claims_cnn2", "claims_cnn2_gd", "claims_mlp"]
CASES = [  # store, method, every how many train points
    ("claims_cnn2", "loo", 1),
    ("claims_cnn2", "gd", 1),
    ("claims_cnn2_gd", "gd", 3),
    ("claims_mlp", "loo", 1),
    ("claims_mlp", "gd", 1),
]
MEMBERS = (5, 10, 20)
NULLS = (0.8, 0.95, 0.99, 1.0)


def members_of(tau, chosen):
    return tau.isel(sample=np.isin(tau.member.values, chosen))


def load(store, method, step):
    """τ of one method by member, (sample, train, test, method), float64."""
    tau = open_result(resolve(f"results/{store}.zarr")).tau.loc[{"method": [method]}].isel(train=slice(0, None, step))
    tau = stats.by_member(tau).rename(member="sample").transpose("sample", ...).astype(float).compute()
    numbers = np.arange(tau.sizes["sample"])
    seeds = {name: ("sample", numbers) for name in ("member", "init_seed", "batch_seed")}
    return tau.drop_vars("sample").assign_coords(seeds)


def effects(tau, nulls, count, fdr, repeats, seed):
    """Realised false discovery proportions, and what of the others is found: by the claim, and by q ≤ fdr alone."""
    stream, rows = np.random.default_rng(seed), []
    shrunk = np.sqrt(1 - count / tau.sizes["sample"])  # few of finitely many: their null means scatter less than others
    for _ in range(repeats):
        null = stream.random(tau.shape[1:3]) < nulls
        centred = tau - tau.mean("sample") * null[..., None]
        few = members_of(centred, stream.permutation(tau.sizes["sample"])[:count])
        few = few + (1 / shrunk - 1) * few.mean("sample") * null[..., None]
        claim = stats.trustworthy(few, fdr, "effect")
        by_q = stats.per_pair(few).q.values[..., 0] <= fdr
        wrong = null[claim.train, claim.test].sum()
        others = max((~null).sum(), 1)
        rows.append([
            wrong / max(len(claim), 1), (len(claim) - wrong) / others,
            (by_q & null).sum() / max(by_q.sum(), 1), (by_q & ~null).sum() / others,
        ])  # fmt: skip
    return np.array(rows)


def signs(tau, count, fdr, repeats, seed):
    """Directional error against all other members, its own estimate, and the share listed."""
    stream, rows = np.random.default_rng(seed), []
    for _ in range(repeats):
        order = stream.permutation(tau.sizes["sample"])
        few, others = members_of(tau, order[:count]), members_of(tau, order[count:])
        listed = stats.trustworthy(few, fdr)
        right = np.sign(others.mean("sample").values[listed.train, listed.test, 0]) == np.sign(listed["mean"])
        error, own = (1 - right.mean(), listed.sign_error.iloc[0]) if len(listed) else (0.0, np.nan)
        rows.append([error, own, len(listed) / few[0].size])
    return np.array(rows)


def measured(case, count, fdr, repeats, seed):
    warnings.simplefilter("ignore")
    tau = load(*case)
    named = {"store": case[0], "method": case[1], "members": count, "fdr": fdr}
    rows = []
    for nulls in NULLS:
        fdp, found, fdp_q, found_q = effects(tau, nulls, count, fdr, repeats, seed).T
        rows.append(named | {"claim": "effect", "nulls": nulls, "error": fdp.mean(), "95th": np.quantile(fdp, 0.95),
                             "found": found.mean(), "error of q": fdp_q.mean(), "95th of q": np.quantile(fdp_q, 0.95),
                             "found of q": found_q.mean(), "lists": repeats})  # fmt: skip
    error, own, listed = signs(tau, count, fdr, repeats, seed).T
    rows.append(named | {"claim": "sign", "error": error.mean(), "95th": np.quantile(error, 0.95),
                         "own estimate": np.nanmean(own), "found": listed.mean(), "lists": repeats})  # fmt: skip
    return rows


def forecasts(store, method, pilot, repeats, seed):
    """Forecasts of a pilot against what members held out find, on the scale "test"."""
    warnings.simplefilter("ignore")
    tau, stream, rows = load(store, method, 3 if store == "claims_cnn2_gd" else 1), np.random.default_rng(seed), []
    counts = [10, 20]
    for _ in range(repeats):
        order = stream.permutation(tau.sizes["sample"])
        forecast = stats.power(members_of(tau, order[:pilot]), counts).isel(method=0)
        others = order[pilot:]
        for count in counts:
            tries = [members_of(tau, stream.permutation(others)[:count]) for _ in range(6)]
            found = np.mean([float((stats.per_pair(few, scale="test").q <= 0.05).mean()) for few in tries])
            one = forecast.sel(members=count)
            inside = float(one.low) <= found <= float(one.high)
            rows.append([count, float(one.predicted), found, inside])
    table = pd.DataFrame(rows, columns=["members", "predicted", "found", "covered"])
    table = table.assign(error=table.predicted - table.found, size=abs(table.predicted - table.found))
    means = table.groupby("members").mean().reset_index()
    return means.assign(store=store, method=method, pilot=pilot, forecasts=repeats).to_dict("records")


def main(repeats, seed):
    jobs = [joblib.delayed(measured)(case, n, fdr, repeats, seed)
            for case in CASES for n in MEMBERS for fdr in (0.05, 0.2)]  # fmt: skip
    pool = joblib.Parallel(-1, verbose=5)
    claims = pd.DataFrame([row for rows in pool(jobs) for row in rows])
    claims.to_csv(resolve("notebooks/claims.csv"), index=False, float_format="%.4f")
    methods = ["loo", "ats", "if", "gd", "gc"]
    asked = [(store, m) for store in ("claims_cnn2", "claims_mlp") for m in methods] + [("claims_cnn2_gd", "gd")]
    jobs = [joblib.delayed(forecasts)(*one, pilot, repeats // 2, seed) for one in asked for pilot in (5, 10)]
    table = pd.DataFrame([row for rows in pool(jobs) for row in rows])
    table.to_csv(resolve("notebooks/forecasts.csv"), index=False, float_format="%.4f")
    by_method = table.groupby("method")[["error", "size", "covered"]].mean()
    print(
        claims.to_string(float_format="{:.3f}".format),
        table.to_string(float_format="{:.3f}".format),
        by_method.to_string(float_format="{:.3f}".format),
        sep="\n\n",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="train the members; a store that is there goes on")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.draw:
        for name in PARAMS:
            Params.read(resolve(f"params/{name}.yaml")).experiment().run()
    else:
        main(asked.repeats, asked.seed)
