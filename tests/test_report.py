"""The page holds what the notebooks say, and nothing from elsewhere."""

import re

import pytest

from tdalib import attribute, deep_ensemble, report


@pytest.fixture(scope="module")
def store(digits, tmp_path_factory):
    """A small store that no params file made: its images are not to be had."""
    path = tmp_path_factory.mktemp("report") / "small & own.zarr"
    attribute(deep_ensemble("logreg", digits, members=4, checkpoints=2), ["loo", "gd"], path=path, workers=1)
    return path


@pytest.mark.slow
def test_page_is_whole_and_self_contained(store, capsys):
    assert report.main([str(store)]) == 0
    page = store.with_suffix(".html")
    assert capsys.readouterr().out == f"report: {page}\n"
    text = page.read_text()
    assert "<title>tdalib: small &amp; own</title>" in text
    assert re.search("Verdict.*pairs can be trusted.*What was computed", text, re.S)  # it opens with the verdict
    for title in ("Which train-test pairs can be trusted?", "Do attribution methods agree", "How many seeds"):
        assert len(re.findall(f"<h1[^>]*>{title}", text)) == 1
    assert "Answer" not in text  # those are for the store that the notebooks were committed with
    assert text.count("data:image/png;base64,") > 10 and "trainings the sign can be trusted of" in text
    assert "deep_ensemble" in text and "logreg" in text and "import " not in text  # the params, but no code
    assert text.count('alt="Figure: ') == text.count("<img")  # for those who do not see them
    assert not re.search(r"<script|<link|(src|href)=\"(?!data:|#)", text)


@pytest.mark.slow
def test_one_method_and_two_members_have_a_report(digits, tmp_path):
    path = tmp_path / "two.zarr"
    attribute(deep_ensemble("logreg", digits, members=2, checkpoints=1), ["gc"], path=path, workers=1)
    page = report.write(path, tmp_path / "there" / "page.html")
    assert page == tmp_path / "there" / "page.html"
    text = page.read_text()
    assert text.count("<h1") == 2 and "if leave-one-out and another one are there" in text
    assert "asked of 4 members or more" in text


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
