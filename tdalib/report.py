"""`python -m tdalib.report STORE`: one self-contained HTML page on a store, for people without Jupyter."""

import argparse
import sys
from html import escape
from pathlib import Path

import nbformat
from tqdm import tqdm

from tdalib.data import ROOT, resolve
from tdalib.store import open_result

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-size: 0.9rem; }}
th, td {{ padding: 0.2rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; }}
h1 {{ margin-top: 3rem; border-top: 2px solid #222; padding-top: 1rem; }}
.anchor-link {{ display: none; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def report(store, page=None) -> Path:
    """Put the prose, tables and figures of the notebooks that render a store on one page.

    Parameters
    ----------
    store : path
        What `10_run_experiment` wrote; a relative path starts at the repository root.
    page : path, optional
        The HTML file to write, by default beside the store; one that is there is replaced.

    Returns
    -------
    Path of the page.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no store, it is not finished, or it has one member alone. Nothing is written then.
    """
    store = resolve(store)
    page = Path(page).absolute() if page else store.with_suffix(".html")
    chosen = _notebooks(store)
    cells = [cell for name in tqdm(chosen, unit="notebook") for cell in _executed(name, chosen[name])]
    for k, cell in enumerate(cells):
        cell.id = f"cell-{k}"  # unique, as they come from several notebooks
    from nbconvert import HTMLExporter

    plain = HTMLExporter(template_name="basic", exclude_input=True, exclude_output_prompt=True)
    body, _ = plain.from_notebook_node(nbformat.v4.new_notebook(cells=cells))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(PAGE.format(title=escape(f"tdalib: {store.stem}"), body=body), encoding="utf-8")
    return page


def _notebooks(store: Path) -> dict[str, dict]:
    """The notebooks that say something about this store, with their parameters."""
    tau = open_result(store).tau
    if tau.isnull().any():
        raise ValueError(f"store {store} is not finished; the run that made it goes on where it was")
    methods, members = list(map(str, tau.method.values)), len(set(tau.member.values))
    if members < 2:
        raise ValueError(f"store {store} has one member; a report on what varies needs at least 2")
    first = "loo" if "loo" in methods else methods[0]
    chosen = {"20_which_pairs_to_trust": {"method": first}}
    if len(methods) > 1:
        chosen["21_do_methods_agree"] = {"truth": first, "k": min(5, tau.sizes["train"])}
    if members >= 4:
        chosen["24_how_many_seeds"] = {}
    return {name: values | {"store": str(store)} for name, values in chosen.items()}


def _executed(name: str, values: dict) -> list:
    import papermill

    notebook = papermill.execute_notebook(
        ROOT / "notebooks" / f"{name}.ipynb", None, values, kernel_name="python3", progress_bar=False
    )
    return [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def main(arguments=None) -> int:
    """Write the page and say where it lies; the exit code is 0 where all went well."""
    parser = argparse.ArgumentParser(prog="python -m tdalib.report", description=__doc__)
    parser.add_argument("store", type=Path, help="a store, such as results/quick.zarr")
    parser.add_argument("--to", type=Path, help="the HTML file to write; by default beside the store")
    asked = parser.parse_args(arguments)
    try:
        print(f"report: {report(asked.store, asked.to)}")
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
