"""Lessons: solutions are right, typical mistakes get their hints, and answers are not given away."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from tdalib import lessons
from tdalib.data import ROOT

LESSONS = sorted((ROOT / "notebooks").glob("0[1-5]_*.ipynb"))
TRIED = """
from tdalib.lessons import EXERCISES as _all, check as _check
_exercise, _data = _all["{number}"], ({data})
_true = _exercise.truth(*_data)
for _given in (None, "many", 1.5 * _true + 1, _true, *(found(*_data) for found in _exercise.mistakes.values())):
    _check("{number}", _given, *_data)
"""


@pytest.fixture
def exercise(monkeypatch):
    """An exercise whose answer is twice what is given, and whose typical mistake is to give it as it is."""
    one = lessons.Exercise(lambda x: 2 * x, {"Twice of it is asked for.": lambda x: x})
    monkeypatch.setitem(lessons.EXERCISES, "99.1", one)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "99.1: not answered yet"),
        (0.5, "99.1: right."),
        (0.501, "99.1: right."),
        (0.51, "99.1: not yet. The hint"),
        (0.25, "99.1: not yet. Twice of it is asked for."),
        ([0.5], "99.1: the answer is one number, not a list"),
        ("half", "99.1: the answer is one number, not a str"),
        (float("nan"), "99.1: not yet. The hint"),
    ],
)
def test_check_says_right_or_what_went_wrong_and_never_the_answer(exercise, answer, said, capsys):
    lessons.check("99.1", answer, 0.25)
    printed = capsys.readouterr().out
    assert printed.startswith(said) and (answer == 0.5 or "0.5" not in printed)


def test_unknown_exercise_is_refused():
    with pytest.raises(ValueError, match="exercise '77.1' is not known; choose from 01.1"):
        lessons.check("77.1", 1)


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_solutions_are_right_and_mistakes_get_hints(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    solutions = dict(re.findall(r"<summary>Solution of (\d\d\.\d)</summary>\s*```python\n(.*?)```", prose, re.DOTALL))
    numbers = []
    for cell in [cell for cell in notebook.cells if cell.cell_type == "code"]:
        if asked := re.search(r'^check\("(\d\d\.\d)", answer(?:, (.*))?\)$', cell.source, re.MULTILINE):
            number, data = asked.groups()
            numbers.append(number)
            assert "answer = None" in cell.source
            cell.source = cell.source.replace("answer = None", solutions[number].strip(), 1)
            cell.source += TRIED.format(number=number, data=f"{data}," if data else "")
    assert numbers and set(numbers) == {n for n in lessons.EXERCISES if n.startswith(path.stem[:2])}
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(o.text for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream")
    for number in numbers:
        said = re.findall(rf"^{number}: (.*)$", printed, re.MULTILINE)
        solved, nothing, word, far, right, *mistakes = said
        assert (solved, right) == ("right.", "right.")
        assert nothing.startswith("not answered") and "one number" in word and "hint under" in far
        assert mistakes == [f"not yet. {hint}" for hint in lessons.EXERCISES[number].mistakes] and len(mistakes) > 1
