"""`python -m tdalib.report STORE`: one self-contained HTML page on a store, for people without Jupyter."""

import argparse
import sys
from html import escape
from pathlib import Path
from string import Template

import nbformat
import papermill
import xarray as xr
from nbconvert import HTMLExporter
from tqdm import tqdm

from tdalib.attributors import METHODS
from tdalib.data import NOTEBOOKS, resolve
from tdalib.store import open_result
from tdalib.verdicts import verdict

FOLDER = Path(__file__).parent / "page"
PAGE = Template((FOLDER / "page.html").read_text("utf-8"))
OPENING = Template((FOLDER / "opening.md").read_text("utf-8"))


def write(store: Path | str, page: Path | str | None = None) -> Path:
    """Put the prose, tables and figures of the notebooks that render a store on one page.

    Parameters
    ----------
    store : path
        What `10_run_experiment` wrote; a relative path starts at the repository root.
    page : path, optional
        The HTML file to write, by default beside the store; one that is there is replaced. A relative path starts at
        the repository root.

    Returns
    -------
    Path of the page.

    Raises
    ------
    FileNotFoundError
        There is no store.
    ValueError
        It is not finished, or it has one member alone, or the page is a folder. Nothing is written then.
    """
    store = resolve(store)
    page = resolve(page) if page else store.with_suffix(".html")
    if page.is_dir():
        raise ValueError(f"{page} is a folder; name the HTML file to write")
    tau = open_result(store).tau
    chosen = _notebooks(store, tau)
    cells = [_opening(store, tau)]
    cells += [cell for name in tqdm(chosen, unit="notebook") for cell in _executed(name, chosen[name])]
    heading = ""
    for k, cell in enumerate(cells):
        cell.id = f"cell-{k}"  # unique, as they come from several notebooks
        if cell.cell_type == "markdown" and cell.source.startswith("#"):
            heading = cell.source.splitlines()[0].strip("# ")
        cell.metadata["alt"] = f"Figure: {heading}"  # for screen readers
    plain = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
    body, _ = plain.from_notebook_node(nbformat.v4.new_notebook(cells=cells))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(PAGE.substitute(title=escape(f"tdalib: {store.stem}"), body=body), encoding="utf-8")
    return page


def _notebooks(store: Path, tau: xr.DataArray) -> dict[str, dict]:
    """The notebooks that say something about this store, with their parameters."""
    if tau.isnull().any():
        raise ValueError(f"store {store} is not finished; the run that made it goes on where it was")
    methods, members = list(map(str, tau.method.values)), len(set(tau.member.values))
    if members < 2:
        raise ValueError(f"store {store} has one member; a report on what varies needs at least 2")
    chosen: dict[str, dict] = {"20_which_pairs_to_trust": {"method": "loo" if "loo" in methods else methods[0]}}
    if "loo" in methods and len(methods) > 1:
        chosen["21_do_methods_agree"] = {"k": min(5, tau.sizes["train"])}
    if members >= 4:
        chosen["24_how_many_seeds"] = {}
    return {name: values | {"store": str(store)} for name, values in chosen.items()}


def _opening(store: Path, tau: xr.DataArray) -> nbformat.NotebookNode:
    said = [f"| {name} | {_explained(name)} |" for name in tau.method.values]
    judged = verdict(tau.load())
    first = "loo" if "loo" in judged.sentences else next(iter(judged.sentences))
    others = [f"- **{name}**: {' '.join(lines)}" for name, lines in judged.sentences.items() if name != first]
    facts = {"verdict": "\n\n".join(judged.sentences[first]), "others": "\n".join(others), "first": first}
    facts["table"] = judged.table.T.to_html()
    sizes = {"members": len(set(tau.member.values)), "train": tau.sizes["train"], "test": tau.sizes["test"]}
    return nbformat.v4.new_markdown_cell(OPENING.substitute(name=store.stem, methods="\n".join(said), **sizes, **facts))


def _explained(method: str) -> str:
    """What a method is: the first line of its docstring."""
    doc = METHODS[method].function.__doc__ if method in METHODS else None
    first_line = (doc or "a method of one's own").strip().splitlines()[0]
    return first_line.split("   (")[0].replace("|", "\\|")


def _executed(name: str, values: dict) -> list:
    """The cells of a notebook run on this store, without the answer that its opening gives for another one."""
    path = NOTEBOOKS / f"{name}.ipynb"
    notebook = papermill.execute_notebook(path, None, values, kernel_name="python3", progress_bar=False)
    opening = notebook.cells[0]
    opening.source = "\n\n".join(p for p in opening.source.split("\n\n") if not p.startswith("**Answer"))
    return notebook.cells


def main(arguments: list[str] | None = None) -> int:
    """Write the page and say where it lies; the exit code is 0 where all went well, 2 where there can be none."""
    parser = argparse.ArgumentParser(prog="python -m tdalib.report", description=__doc__)
    parser.add_argument("store", type=Path, help="a store, such as results/quick.zarr")
    parser.add_argument("--to", type=Path, help="the HTML file to write; by default beside the store")
    asked = parser.parse_args(arguments)
    try:
        print(f"report: {write(asked.store, asked.to)}")
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
