"""`python -m tdalib.report STORE`: one self-contained HTML page on a result, for people without Jupyter."""

import argparse
import json
import sys
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import xarray as xr

from tdalib import plots, stats
from tdalib.attributors import METHODS
from tdalib.data import resolve
from tdalib.options import said_as
from tdalib.store import open_result
from tdalib.verdicts import number, percent, verdict

PAGE = Template((Path(__file__).parent / "page" / "page.html").read_text("utf-8"))
LISTED = 10  # pairs in the table


def write(store: Path | str, page: Path | str | None = None) -> Path:
    """Put the verdict on a result, its size, figures and tables on one page.

    Parameters
    ----------
    store : path
        What `10_run_experiment` wrote, or a result in a netCDF file, `from_scores(…).to_netcdf("scores.nc")`. A
        relative path starts at the repository root.
    page : path, optional
        The HTML file to write, by default beside the store; one that is there is replaced. A relative path starts at
        the repository root.

    Returns
    -------
    Path of the page.

    Raises
    ------
    FileNotFoundError
        Nothing is there.
    ValueError
        It is no result, not finished, or has one member alone, or the page is a folder. Nothing is written then.
    """
    store = resolve(store)
    page = resolve(page) if page else store.with_suffix(".html")
    if page.is_dir():
        raise ValueError(f"{page} is a folder; name the HTML file to write")
    result = _of_file(store) if store.is_file() else open_result(store)
    tau = stats.with_methods(result["tau"].load())
    if tau.isnull().any():
        raise ValueError(f"{store} lacks some τ and is not finished; the run that made it goes on where it was")
    if len(set(tau.member.values)) < 2:
        raise ValueError(f"{store} has one member; a report on what varies needs at least 2")
    looks: dict = {"figure.dpi": 110, "figure.figsize": (6.4, 3.6), "savefig.bbox": "tight", "text.parse_math": False}
    with matplotlib.rc_context(looks), plt.ioff():
        body = "\n".join(_sections(store, result, tau))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(PAGE.substitute(title=escape(f"tdalib: {store.stem}"), body=body), encoding="utf-8")
    return page


def _of_file(path: Path) -> xr.Dataset:
    """A result from a netCDF file."""
    with said_as(f"{path} is no netCDF file of a result", most=120):
        result = xr.load_dataset(path)
        if "tau" not in result:
            raise ValueError(f"it holds {', '.join(map(str, result)) or 'nothing'}, and no tau")
        stats.scaled(result["tau"], scale=None)  # what is no τ is refused
    return result


def _sections(store: Path, result: xr.Dataset, tau: xr.DataArray) -> Iterator[str]:
    """The page, part by part."""
    members, main = len(set(tau.member.values)), "loo" if "loo" in tau.method.values else str(tau.method.values[0])
    judged = verdict(tau)
    yield f"<h1>Can the attributions of {escape(store.stem)} be trusted?</h1>"
    yield "".join(map(_paragraph, judged.sentences[main]))
    said = f"This is said of {_named(main)}. {members} networks were trained from different seeds. For each of "
    what = "removed sets" if "size" in tau.coords else "train points"
    said += f"{tau.sizes['train']} {what} and {tau.sizes['test']} test points a method says how much the one helps at "
    said += "the other (above 0: it helps). In brackets are intervals over trainings."
    yield _paragraph(said)
    caption = "The verdict by method. The top train points of a test point are those that help it most."
    yield _table(judged.table.T, caption)
    if members > 2:
        yield from _size(tau, main)
    yield from _pairs(tau, main)
    if main == "loo" and tau.sizes["method"] > 1:
        yield from _truth(tau)
    if members > 3:
        yield from _seeds(tau, main)
    yield "<h2>What was computed</h2>"
    if "params" in result.attrs:
        params = {"value": json.loads(result.attrs["params"])}
        yield _table(pd.DataFrame(params, dtype=object), "The parameters of the experiment.")
        methods = {"what it is": {name: _explained(name) for name in map(str, tau.method.values)}}
        yield _table(pd.DataFrame(methods), "The methods.")
    else:
        yield _paragraph("Nothing here: these are finished scores, which were computed elsewhere.")


def _size(tau: xr.DataArray, main: str) -> Iterator[str]:
    sizes = stats.noise_by_size(tau)
    yield "<h2>Are only small attributions noisy?</h2>"
    one = sizes.sel({"method": main})
    largest, *_, every = (percent(one.rename(noise="value").isel(share=k)) for k in range(one.sizes["share"]))
    size = f"{float(one.share[0]):.0%}"
    said = f"By {_named(main)}, of the largest {size} of the pairs, chosen in one training, {largest} vary more "
    said += f"between the others than they differ from 0; of all pairs, judged in the same way, {every}."
    yield _paragraph(said)
    alt = f"A line for each method over the share of the largest pairs. {said}"
    yield _figure(alt, lambda ax: plots.plot_noise_by_size(sizes, ax=ax))


def _pairs(tau: xr.DataArray, main: str) -> Iterator[str]:
    yield "<h2>Which pairs can be trusted?</h2>"
    with warnings.catch_warnings(action="ignore"):  # what an empty list has to say is said here
        pairs = stats.trustworthy(tau.loc[{"method": [main]}], scale="test")
    if len(pairs):
        named = [name for name in pairs if name.endswith(("_index", "_class", "_file"))]
        shown = pairs.head(LISTED)[["train", "test", *named, "mean", "low", "high", "snr"]]
        shown = shown.rename(columns={"snr": "|mean| / std"}).reset_index(drop=True)
        text = shown.map(lambda value: f"{value:.3g}" if isinstance(value, float) else str(value))
        clearest = f"The clearest {len(text)} of {len(pairs):,} pairs whose sign can be trusted by {_named(main)}."
        unit = "Numbers are multiples of what moves the test point, intervals at 95 %."
        yield _table(text, f"{clearest} {unit}")
    else:
        yield _paragraph(f"By {_named(main)} no pair is listed, {pairs.attrs['empty'][main]}.")
    table = stats.per_pair(tau.loc[{"method": [main]}])
    noise = float(table.noise_dominated.mean())
    alt = f"A map of all pairs: blue stands out from the seed's noise, red ({noise:.0%}) does not."
    yield _figure(alt, lambda ax: plots.plot_trust_map(table, main, ax=ax))


def _truth(tau: xr.DataArray) -> Iterator[str]:
    ceiling = stats.noise_ceiling(tau)
    yield "<h2>Is what is steady also right?</h2>"
    of = ceiling.rename(correlation="value").dropna("method", subset=["value"])
    said = "Correlation of each estimate's mean with leave-one-out retraining: "
    said += ", ".join(f"{m} {number(of.sel({'method': m}))}" for m in map(str, of.method.values) if m != "loo")
    most = number({"value": ceiling.ceiling, "low": ceiling.ceiling_low, "high": ceiling.ceiling_high})
    noisy = f" Leave-one-out is noisy itself: what is right would reach {most}." if ceiling.ceiling.notnull() else ""
    yield _paragraph(f"{said}.{noisy} An estimate that hardly depends on the seed can still be far from it.")
    yield _figure(f"Bars: {said}.", lambda ax: plots.plot_ceiling(ceiling, ax=ax))


def _seeds(tau: xr.DataArray, main: str) -> Iterator[str]:
    power = stats.power(tau)
    yield "<h2>How many trainings would be needed?</h2>"
    pilot, one = power.attrs["pilot"], power.sel({"method": main})
    found, double = float(one.found.sel(members=pilot)), one.rename(predicted="value").sel(members=2 * pilot)
    said = f"By {_named(main)} the sign of {found:.0%} of the pairs passes a test with {pilot} trainings; with "
    said += f"{2 * pilot} that of about {percent(double)} would "
    said += f"(for {pilot} the forecast is off by {float(one.misfit):+.1%})."
    yield _paragraph(said)
    alt = f"The share of pairs listed over the number of trainings, found and forecast. {said}"
    label = "share of pairs whose sign is listed"
    yield _figure(alt, lambda ax: plots.plot_power(power, ax=ax).set_ylabel(label))


def _named(method: str) -> str:
    return "leave-one-out retraining (loo)" if method == "loo" else method


def _explained(method: str) -> str:
    """What a method is: the first line of its docstring."""
    doc = METHODS[method].function.__doc__ if method in METHODS else None
    return (doc or "a method of one's own").strip().splitlines()[0].split("   (")[0]


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _figure(alt: str, draw: Callable) -> str:
    fig, ax = plt.subplots()
    draw(ax)
    file = BytesIO()
    fig.savefig(file)
    plt.close(fig)
    return f'<img src="data:image/png;base64,{b64encode(file.getvalue()).decode()}" alt="{escape(alt)}">'


def _table(frame: pd.DataFrame, caption: str) -> str:
    """A table of text whose heads say what they are heads of; it scrolls where the screen is narrow."""
    head = "<td></td>" + "".join(f'<th scope="col">{escape(str(name))}</th>' for name in frame.columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th>' + "".join(f"<td>{escape(str(v))}</td>" for v in row) + "</tr>"
        for name, row in zip(frame.index, frame.to_numpy(), strict=True)
    )
    inside = f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>{inside}</table></div>'


def main(arguments: list[str] | None = None) -> int:
    """Write the page and say where it lies; the exit code is 0 where all went well, 2 where there can be none."""
    parser = argparse.ArgumentParser(prog="python -m tdalib.report", description=__doc__)
    parser.add_argument("store", type=Path, help="a store, such as results/quick.zarr, or a netCDF file")
    parser.add_argument("--to", type=Path, help="the HTML file to write; by default beside the store")
    asked = parser.parse_args(arguments)
    try:
        here = asked.store.absolute() if asked.store.exists() else asked.store  # from where the command is given
        print(f"report: {write(here, asked.to)}")
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
