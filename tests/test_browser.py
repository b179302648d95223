"""Notebooks in JupyterLab, in a real browser: they run, sliders move, and nothing is red.

`pytest -m browser` opens them all; other runs open a few. Needs Chromium and playwright. Screenshots lie in pytest's
temporary folder.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

import nbformat
import pytest

from tdalib.data import ROOT
from tdalib.store import open_result

playwright = pytest.importorskip("playwright.sync_api", reason="opening notebooks in a browser needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
ALWAYS = ("00_start_here", "02_another_seed", "04_when_may_i_stop")  # the others on request
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells that are not in sight are there, too
    "docmanager-extension/plugin": {"autosave": False},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
MINUTE = 60_000  # milliseconds
PICTURES = "() => [...document.querySelectorAll('img.widget-image')].map(image => image.src).join()"
IDLE = "() => window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium to open notebooks in"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on loopback over a copy of the notebooks: its address, and the folder."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    for name, values in SETTINGS.items():
        place = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER{name}": str(home / name.lower()) for name in ("_CONFIG_DIR", "_RUNTIME_DIR", "LAB_WORKSPACES_DIR")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += ["--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=", f"--ServerApp.root_dir={home}"]
    with (home / "log").open("w") as log:
        settings = {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings")}
        server = subprocess.Popen(command, env=os.environ | own | settings, stdout=log, stderr=log)
    try:
        for _ in range(120):
            try:
                urlopen(f"http://127.0.0.1:{port}/api")
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", home
    finally:
        server.terminate()  # its kernels end with it
        server.wait(30)


@pytest.fixture
def page(lab):
    """A page of a browser that notes what the console calls an error."""
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(3 * MINUTE)
        page.errors = []
        page.on("console", lambda said: page.errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        yield page
        browser.close()


def opened(page, lab, name):
    """The notebook in JupyterLab, its kernel ready."""
    page.goto(f"{lab[0]}/lab/tree/notebooks/{name}.ipynb?reset")  # no other notebook is open
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.wait_for_function(IDLE)


def begin(page, command):
    """A command of JupyterLab, which goes on."""
    run = (
        "command => { window.done = false; window.jupyterapp.commands.execute(command).then(() => window.done = true) }"
    )
    page.evaluate(run, command)


def do(page, command):
    """A command of JupyterLab, until it is done."""
    begin(page, command)
    page.wait_for_function("() => window.done", timeout=5 * MINUTE)


def red(page):
    """What a reader sees in red: errors, and what was written to stderr."""
    kinds = ("error", "stderr")
    seen = [page.locator(f'[data-mime-type="application/vnd.jupyter.{kind}"]').all_inner_texts() for kind in kinds]
    return sum(seen, [])


def move(page, k):
    """Slider k, one step down, or up where it is lowest, until the figure changes; a key may come too early."""
    handle = page.locator(".noUi-handle").nth(k)
    handle.scroll_into_view_if_needed()
    figure = page.evaluate(PICTURES)
    before, now, least = (handle.get_attribute(f"aria-value{name}") for name in ("text", "now", "min"))
    for _ in range(30):
        handle.focus()
        page.keyboard.press("ArrowLeft" if float(now) > float(least) else "ArrowRight")
        page.wait_for_timeout(1000)
        if handle.get_attribute("aria-valuetext") != before:
            break
    else:
        raise AssertionError(f"slider {k} does not move")
    page.wait_for_function(f"before => ({PICTURES})() != before", arg=figure)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_its_sliders_move(path, lab, page, request):
    if path.stem not in ALWAYS and "browser" not in request.config.getoption("-m"):
        pytest.skip("this notebook is opened with pytest -m browser")
    opened(page, lab, path.stem)
    do(page, "notebook:run-all-cells")
    assert not red(page)
    page.screenshot(path=lab[1] / f"{path.stem}.png")
    for k in range(page.locator(".noUi-handle").count()):
        move(page, k)
        page.screenshot(path=lab[1] / f"{path.stem}_slider_{k}.png")
    assert not red(page) and not page.errors
    do(page, "kernelmenu:shutdown")


def test_interrupting_the_kernel_leaves_a_store_that_goes_on(lab, page):
    path = lab[1] / "notebooks" / "10_run_experiment.ipynb"
    store = lab[1] / "interrupted.zarr"
    own = f'store, members, train_per_class, test_per_class, methods, workers = "{store}", 8, 10, 3, ["loo", "gc"], 2'
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source += f"\n{own}"
    nbformat.write(notebook, path)
    opened(page, lab, path.stem)
    begin(page, "notebook:run-all-cells")
    while not any(store.glob("tau/c/*")):  # a first chunk is there, and more are to come
        page.wait_for_timeout(100)
    page.screenshot(path=lab[1] / "progress.png")
    do(page, "notebook:interrupt-kernel")
    page.wait_for_function(IDLE)
    assert any("KeyboardInterrupt" in text for text in red(page))
    assert 0 < open_result(store).tau.notnull().mean() < 1
    do(page, "notebook:run-all-cells")
    assert not red(page) and open_result(store).tau.notnull().all()
    page.screenshot(path=lab[1] / "goes_on.png")
