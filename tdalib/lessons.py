"""For the lessons, `notebooks/01` to `05`: checks of exercises, which do not show the answer, and sliders."""

from collections.abc import Callable
from io import BytesIO
from typing import Any, NamedTuple

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import xarray as xr
from IPython.display import display
from matplotlib.figure import Figure

from tdalib.stats import by_member


class Exercise(NamedTuple):
    """What is right, from the data that the lesson's cell gives, and what those find who make a typical mistake."""

    truth: Callable[..., float]
    mistakes: dict[str, Callable[..., float]]  # hint → what is found so
    within: float = 0.005  # of the truth, as a share of it


def _one_sign(draws: np.ndarray) -> float:
    """Share of the pairs on whose sign the first five draws agree, (draw, train, test)."""
    return (abs(np.sign(draws[:5]).sum(0)) == 5).mean()


def _noisy(draws: np.ndarray) -> float:
    """Share of the pairs with std > |mean| over the draws, (draw, train, test)."""
    return (draws.std(0, ddof=1) > abs(draws.mean(0))).mean()


def _left(tau: np.ndarray, judges: np.ndarray) -> float:
    """What the mean of the judges has of the strongest 10 % of the pairs of the first training, as a share."""
    first, mean = tau[0].ravel(), judges.mean(0).ravel()
    top = np.argsort(-abs(first))[: int(np.ceil(first.size / 10))]
    return (np.sign(first) * mean)[top].mean() / abs(first)[top].mean()


def _out(draws: np.ndarray) -> np.ndarray:
    """Whether the 95 % interval of the mean leaves zero, (draw, pair) → (pair,)."""
    return scipy.stats.ttest_1samp(draws, 0).pvalue < 0.05


def _error(components: xr.Dataset, trainings: int, epochs: int) -> float:
    """Standard error of the mean τ of leave-one-out over so many trainings and so many epochs of each."""
    variance = components.variance.loc[{"method": "loo"}]
    epoch = variance.loc[{"source": "checkpoint"}]
    return float((variance.sum() - epoch + epoch / epochs) / trainings) ** 0.5


def _correlation(tau: xr.DataArray, of: Callable = scipy.stats.spearmanr) -> float:
    """Correlation over pairs of Grad-Cos with leave-one-out, means over members."""
    return of(*(tau.mean("member").loc[{"method": name}].values.ravel() for name in ("gc", "loo"))).statistic


_COUNTED = "Those are draws: checkpoints of one training are no two trainings. stats.by_member averages them."

EXERCISES: dict[str, Exercise] = {
    "01.1": Exercise(lambda e, h: (e / (1 - h))[h.argmax()], {
        "That is the residual, which training on the image has made small already.": lambda e, h: e[h.argmax()],
        "Without the image the error is larger, not smaller.": lambda e, h: (e * (1 - h))[h.argmax()],
    }),
    "01.2": Exercise(lambda h: h.max(), {
        "That is what the first order gets. What does it miss?": lambda h: 1 - h.max(),
        "Divide by the true change, not by the first order.": lambda h: h.max() / (1 - h.max()),
    }),
    "02.1": Exercise(lambda tau: 1 - _one_sign(by_member(tau).values), {
        "That is the share on whose sign they agree.": lambda tau: _one_sign(by_member(tau).values),
        _COUNTED: lambda tau: 1 - _one_sign(tau.values),
    }),
    "02.2": Exercise(lambda tau: _noisy(by_member(tau).values), {
        "That is the share whose spread is the smaller of the two.": lambda tau: 1 - _noisy(by_member(tau).values),
        _COUNTED: lambda tau: _noisy(tau.values),
    }),
    "03.1": Exercise(lambda tau: (tau[0].argmax(0) == tau[1].argmax(0)).mean(), {
        "That is the best among the best five.": lambda t: (t[0].argmax(0) == (-t[1]).argsort(0)[:5]).any(0).mean(),
        "Test images are asked for, not pairs.": lambda t: ((t[0] == t[0].max(0)) == (t[1] == t[1].max(0))).mean(),
    }),
    "03.2": Exercise(lambda tau: _left(tau, tau[1:]), {
        "The training that chose is in your mean; it is no judge.": lambda tau: _left(tau, tau),
        "Averaged as |τ|, noise counts as signal.": lambda tau: _left(tau, abs(tau[1:].mean(0)) * np.sign(tau[:1])),
    }),
    "04.1": Exercise(lambda draws: (_out(draws[:5]) | _out(draws[:10])).mean(), {
        "That is the last look alone; you would have stopped at the first.": lambda draws: _out(draws[:10]).mean(),
        "The looks are not independent: the second sees the draws of the first again.": lambda _: 1 - 0.95**2,
    }),
    "04.2": Exercise(lambda p: (scipy.stats.false_discovery_control(p) <= 0.05).sum(), {
        "That is uncorrected: of pairs without effect, it takes 5 %.": lambda p: (p < 0.05).sum(),
        "That is Bonferroni's line, the same for every rank.": lambda p: (p <= 0.05 / p.size).sum(),
    }),
    "05.1": Exercise(lambda parts: _error(parts, 10, 3), {
        "30 checkpoints of 10 trainings are no 30 trainings.": lambda parts: _error(parts, 30, 1),
        "That is the variance; the standard error is its root.": lambda parts: _error(parts, 10, 3) ** 2,
    }),
    "05.2": Exercise(lambda tau: _correlation(by_member(tau)), {
        "That is Pearson's, of values: take ranks.": lambda tau: _correlation(by_member(tau), scipy.stats.pearsonr),
        "That is one training alone: average over all.": lambda tau: _correlation(by_member(tau)[:1]),
    }),
}  # fmt: skip


def check(number: str, answer: Any, *data: Any) -> None:
    """Print whether an answer is right; a typical mistake gets its hint.

    Parameters
    ----------
    number : str
        Of the exercise, such as "02.1".
    answer : float
        None: not answered yet.
    *data
        What the question is about, as the lesson's cell gives it.

    Raises
    ------
    ValueError
        There is no such exercise.
    """
    if number not in EXERCISES:
        raise ValueError(f"exercise {number!r} is not known; choose from {', '.join(EXERCISES)}")
    print(f"{number}: {_said(EXERCISES[number], answer, data)}")


def explore(draw: Callable[..., Figure], **controls: Any) -> None:
    """Sliders, and under them the figure that `draw` makes of their values, by name.

    A picture and no output widget: those hang now and then where papermill runs a notebook.
    """
    picture = ipywidgets.Image()

    def redraw(_: Any = None) -> None:
        figure, png = draw(**{name: control.value for name, control in controls.items()}), BytesIO()
        figure.savefig(png, format="png", bbox_inches="tight")
        plt.close(figure)
        picture.value = png.getvalue()

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    display(ipywidgets.VBox([*controls.values(), picture]))


def _said(exercise: Exercise, answer: Any, data: tuple) -> str:
    if answer is None:
        return "not answered yet. Put your answer in the place of None and run the cell again."
    if np.ndim(answer) or not np.issubdtype(np.asarray(answer).dtype, np.number):
        return f"the answer is one number, not a {type(answer).__name__}."

    def is_near(value: float) -> bool:
        return bool(np.isclose(float(answer), value, rtol=exercise.within, atol=1e-9))

    if is_near(exercise.truth(*data)):
        return "right."
    hints = [hint for hint, found in exercise.mistakes.items() if is_near(found(*data))]
    return f"not yet. {hints[0]}" if hints else "not yet. The hint under the exercise says how to begin."
