"""What a newcomer meets first: the two environment files, the import, the README's code."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from unittest.mock import patch

import matplotlib.pyplot as plt
import pytest
import yaml
from PIL import Image

from tdalib import attribute, attributors, example, models, stats, verdict
from tdalib.data import ROOT, places

REFERENCE = ("methods", "models_and_data", "posteriors", "running")
PAGES = [ROOT / "README.md", *(ROOT / f"notebooks/{name}.md" for name in REFERENCE)]
CONDA_NAMES = {"torch": "pytorch"}


def test_environment_agrees_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    wanted = {re.sub(r"^[\w-]+", lambda m: CONDA_NAMES.get(m[0], m[0]), line) for line in wanted}
    wanted |= {f"python{project['requires-python']}", "pip"}
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert {line for line in conda if isinstance(line, str)} == wanted
    assert conda[-1] == {"pip": ["--editable .[posteriors]"]}


def test_torch_has_a_lower_bound_only():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounds = [line for line in dependencies if line.startswith("torch")]
    assert len(bounds) == 2 and all(re.fullmatch(r"\w+>=[\d.]+", line) for line in bounds)


def test_import_is_quick_and_leaves_figures_and_transformers_alone():
    """Against what it stands on, in one process, so that a busy machine does not matter; the package alone is lazy."""
    code = """
import sys, time
start = time.process_time()
import tdalib
alone = time.process_time()
import torch, torchvision, xarray, scipy.stats
libraries = time.process_time()
from tdalib import data, models, training, samplers, attributors, experiment, store, params
assert not {"matplotlib", "seaborn", "peft", "transformers"} & set(sys.modules), sys.modules.keys()
import tdalib.stats
assert "matplotlib" not in sys.modules
print(alone - start, libraries - start, time.process_time() - libraries)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    alone, libraries, rest = (float(seconds) for seconds in done.stdout.split())
    assert alone < libraries / 2 and rest < libraries


def test_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert "2305.19765" in citation["references"][0]["identifiers"][0]["value"]


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_code_of_readme_and_pages_runs(path, monkeypatch, tmp_path):
    """Every Python block of a page, in order, in one namespace; with a folder of photos where it has one."""
    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.setattr(places, "ROOT", tmp_path)
    for animal, colour in (("cat", "grey"), ("dog", "brown")):
        (tmp_path / "photos" / animal).mkdir(parents=True)
        for k in range(8):
            Image.effect_noise((40 + 5 * k, 50), 10 * k + len(animal + colour)).save(
                tmp_path / "photos" / animal / f"{k}.jpg"
            )
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.S)
    names = {}
    with patch.dict(models.MODELS), patch.dict(attributors.METHODS):  # a page registers its own
        for block in blocks:
            exec(compile(block, path.name, "exec"), names)  # noqa: S102
    plt.close("all")


@pytest.mark.parametrize("path", [*PAGES, ROOT / "notebooks/teaching.md"], ids=lambda path: path.name)
def test_pages_name_files_that_exist(path):
    text = path.read_text()
    for file in re.findall(r"(?:params|notebooks)/[\w/.-]+\.\w+", text):
        assert (ROOT / file).exists(), file
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (path.parent / link).exists(), link


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1200


def test_numbers_of_the_readme_are_those_of_the_example():
    readme, tau = (ROOT / "README.md").read_text(), example().tau

    def told(value, low, high, scale=100):
        digits = 0 if scale == 100 else 2
        value, low, high = (f"{scale * number:.{digits}f}".replace("-", "−") for number in (value, low, high))
        said = f"{value} % [{low}, {high}]" if scale == 100 else f"{value} [{low}, {high}]"
        assert said in readme, said

    table = verdict(example()).table
    for row in ("noise", "noise of the largest 1 %", "trusted", "top 5 overlap"):
        told(*(int(number) / 100 for number in re.findall(r"(\d+)%", table.loc["loo", row])))
    told(*stats.summary(tau).loc[("gc", "std > |mean|"), ["value", "low", "high"]])
    alike = stats.noise_ceiling(tau)
    for method in ("gc", "if"):
        told(*(float(alike[name].loc[{"method": method}]) for name in ("correlation", "low", "high")), scale=1)
    parts = stats.variance_components(example(crossed=True).tau).loc[{"method": "loo"}]
    for kind in ("checkpoint", "init", "batch"):
        told(*(float(parts[name].sel(source=kind)) for name in ("share", "share_low", "share_high")))


PICKED = 'tau.loc[{"method": "loo"}]'
REASON = "gives all of them back, since `method` is a keyword of `sel` itself"


def source(path):
    """The text of a file; of a notebook, that of its cells."""
    if path.suffix != ".ipynb":
        return path.read_text()
    return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])


def test_a_method_is_picked_as_a_dict_wherever_tau_is_shown():
    """By keyword, `sel` silently selects nothing: only the sentence that says so may hold it."""
    files = [
        *PAGES,
        *ROOT.glob("notebooks/*.ipynb"),
        *ROOT.glob("tdalib/**/*.py"),
        *ROOT.glob("tests/*.py"),
    ]
    for path in files:
        for line in source(path).splitlines():
            assert not re.search(r"\.sel\(\s*method\s*=", line.replace('`tau.sel(method="loo")`', "")), (path, line)
    told = [ROOT / "README.md", ROOT / "notebooks/00_start_here.ipynb", ROOT / "notebooks/10_run_experiment.ipynb"]
    for text in (*map(source, told), attribute.__doc__):
        assert PICKED in text and REASON in " ".join(text.split())


def test_every_folder_of_the_package_is_installed():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    inside = [entry.name for entry in (ROOT / "tdalib").iterdir() if entry.is_dir() and entry.name != "__pycache__"]
    assert sorted(packages) == sorted(["tdalib", "tdalib.notebooks", *(f"tdalib.{name}" for name in inside)])


INSTALLED = """
name: here
train_per_class: 2
test_per_class: 2
model: logreg
epochs: 2
members: 2
checkpoints: 1
methods: [gd, loo]
workers: 1
"""


@pytest.mark.slow
def test_a_wheel_runs_where_no_checkout_is(tmp_path):
    """The runner's notebook comes along, and results land in the working directory."""
    source, place, work = tmp_path / "source", tmp_path / "place", tmp_path / "work"
    ignored = shutil.ignore_patterns(".git", ".venv", "results", "*.zarr", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path / "wheels", source], check=True)
    (wheel,) = (tmp_path / "wheels").glob("tdalib-*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(place)
    work.mkdir()
    (work / "here.yaml").write_text(INSTALLED)
    before = {file.relative_to(place) for file in place.rglob("*") if "__pycache__" not in file.parts}
    python = [sys.executable, "-m"]
    asked = {"cwd": work, "env": os.environ | {"PYTHONPATH": str(place)}, "check": True}
    where = subprocess.run(
        [sys.executable, "-c", "import tdalib; print(tdalib.__file__)"], capture_output=True, text=True, **asked
    )
    assert where.stdout.startswith(str(place))
    subprocess.run([*python, "tdalib.run", "here.yaml"], **asked)
    subprocess.run([*python, "tdalib.report", "results/here.zarr"], **asked)
    assert {file.name for file in (work / "results").iterdir()} >= {"here.zarr", "here.ipynb", "here.html"}
    assert before == {file.relative_to(place) for file in place.rglob("*") if "__pycache__" not in file.parts}
