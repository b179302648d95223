"""The page says what can be trusted, in words, and holds nothing from elsewhere."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr

from tdalib import attribute, data, deep_ensemble, from_scores, report


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A small store that no params file made; what its classes are called means something elsewhere."""
    stream = np.random.default_rng(0)
    x_train, x_test = stream.random((9, 4, 4)), stream.random((6, 4, 4))
    y_train, y_test = np.arange(9) % 3, np.arange(6) % 3
    task = data.from_arrays(x_train, y_train, x_test, y_test, classes=["<b>", "$a$", "a & $"])
    path = tmp_path_factory.mktemp("report") / "small & own.zarr"
    attribute(deep_ensemble("logreg", task, members=4, checkpoints=2), ["loo", "gd"], path=path, workers=1)
    return path


class Page(HTMLParser):
    """Its tags, and the text of each."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append((self.tags[-1][0] if self.tags else "", data.strip()))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def without_pictures(text):
    return re.sub('base64,[^"]*', "", text)


def test_page_opens_with_the_verdict_and_is_self_contained(store, capsys):
    assert report.main([str(store)]) == 0
    page = store.with_suffix(".html")
    assert capsys.readouterr().out == f"report: {page}\n"
    text = page.read_text()
    read = Page(text)
    assert "<title>tdalib: small &amp; own</title>" in text and len(read.all("h1")) == 1
    first = next(said for tag, said in read.texts if tag == "p" and said)
    assert re.match("(With 4 trainings the sign of|0 of 54 pairs .* can be trusted with 4 trainings)", first)
    heads = [said for tag, said in read.texts if tag == "h2" and said]
    assert heads == [
        "Are only small attributions noisy?", "Which pairs can be trusted?", "Is what is steady also right?",
        "How many trainings would be needed?", "What was computed",
    ]  # fmt: skip
    assert len(read.all("img")) == 4 and all(len(img["alt"]) > 40 for img in read.all("img"))
    assert not re.search(r"<script|<link|(src|href)=\"(?!data:|#)", text)
    assert not re.search(r"p_flip|per_pair|stats\.|import ", without_pictures(text))


def test_tables_say_what_they_are_and_classes_are_shown_as_they_are(store):
    text = without_pictures(report.write(store).read_text())
    read = Page(text)
    assert text.count("<caption>") == len(read.all("table")) > 2
    assert all(attrs["scope"] in ("col", "row") for attrs in read.all("th"))
    assert "<b>" not in text and "correlation with loo" in text


@pytest.mark.parametrize("members", [3, 11])
def test_any_number_of_members_has_a_report(digits, tmp_path, members):
    path = tmp_path / "some.zarr"
    attribute(deep_ensemble("logreg", digits, members=members, checkpoints=1), ["gd"], path=path, workers=1)
    assert "nan" not in without_pictures(report.write(path).read_text())


def test_one_method_and_two_members_have_a_report(digits, tmp_path):
    path = tmp_path / "two.zarr"
    attribute(deep_ensemble("logreg", digits, members=2, checkpoints=1), ["gc"], path=path, workers=1)
    page = report.write(path, tmp_path / "there" / "page.html")
    assert page == tmp_path / "there" / "page.html"
    text = without_pictures(page.read_text())
    assert text.count("<h2") == 2 and "nan" not in text


def test_finished_scores_have_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a path on the command line is also looked for from here
    stream = np.random.default_rng(0)
    matrices = {seed: stream.normal(size=(12, 10)) + 2 * np.eye(12, 10) for seed in range(5)}
    scores = from_scores(matrices, method="<if>")
    for name, result in (("scores.nc", scores), ("one.h5", scores.isel(method=0))):
        result.to_netcdf(tmp_path / name, engine="h5netcdf")
        assert report.main([name]) == 0
        text = without_pictures((tmp_path / name).with_suffix(".html").read_text())
        assert "of 120 pairs" in text and "&lt;if&gt;" in text and "nan" not in text
        assert "computed elsewhere" in text and "parameters" not in text


def a_file_with(result):
    return lambda file: result.to_netcdf(file)


@pytest.mark.parametrize(("write", "said"), [
    (lambda file: None, "no store at"),
    (lambda file: file.write_text("no result"), "is no netCDF file of a result"),
    (a_file_with(xr.Dataset({"scores": ("x", np.ones(3))})), "it holds scores, and no tau"),
    (a_file_with(xr.Dataset({"tau": ("x", np.ones(3))})), "τ must be a DataArray"),
])  # fmt: skip
def test_a_file_without_a_result_is_refused(write, said, tmp_path, capsys):
    write(file := tmp_path / "scores.nc")
    assert report.main([str(file)]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*.html"))


def test_what_cannot_be_reported_is_refused(digits, tmp_path, capsys):
    assert report.main([str(tmp_path / "none.zarr")]) == 2
    assert f"no store at {tmp_path / 'none.zarr'}" in capsys.readouterr().err
    single = tmp_path / "single.zarr"
    attribute(deep_ensemble("logreg", digits, members=1), ["gd"], path=single, workers=1)
    assert report.main([str(single)]) == 2
    assert "has one member; a report on what varies needs at least 2" in capsys.readouterr().err
    chunk = next(file for file in (single / "tau" / "c").rglob("*") if file.is_file())
    chunk.unlink()
    assert report.main([str(single)]) == 2
    assert "is not finished" in capsys.readouterr().err
    assert report.main([str(single), "--to", str(tmp_path)]) == 2
    assert "is a folder; name the HTML file to write" in capsys.readouterr().err
    assert report.main([str(tmp_path)]) == 2
    assert "is a folder, but not a tdalib store" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.html"))
