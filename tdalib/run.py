"""`python -m tdalib.run params/a.yaml …`: the run notebook through papermill, with strict params."""

import argparse
import logging
import sys
from itertools import permutations
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import pandas as pd

from tdalib import models, store
from tdalib.data import ROOT
from tdalib.params import Params

NOTEBOOK = ROOT / "notebooks" / "10_run_experiment.ipynb"
BROKE, WRONG, INTERRUPTED = 1, 2, 130  # exit codes


def execute(params: Params) -> str:
    """Execute the run notebook, or only print the plan; says where the executed copy lies, beside the store."""
    if params.plan_only:
        posterior = params.posterior(params.task())
        size = models.parameter_count(posterior.build(posterior.task, 0))
        plan = params.experiment(posterior).plan()
        return f"planned, {params.model}: {size}\n{plan.to_string(float_format='%.2f')}"
    import papermill

    executed = params.path.with_suffix(".ipynb")
    values = params.model_dump(exclude_defaults=True) | {"name": params.name}
    papermill.execute_notebook(
        NOTEBOOK, executed, values, kernel_name="python3", stdout_file=sys.stdout, stderr_file=sys.stderr
    )
    return f"done, see {executed}"


def main(arguments=None) -> int:
    """Run experiments one after another, whatever becomes of the others; the exit code is 0 where all went well."""
    parser = argparse.ArgumentParser(prog="python -m tdalib.run", description=__doc__)
    parser.add_argument("params", nargs="+", type=Path, help="a YAML file that holds what differs from the defaults")
    parser.add_argument("--repair", action="store_true", help="compute damaged chunks of the store again")
    asked = parser.parse_args(arguments)
    try:
        ready, outcomes = _check(asked.params)
    except KeyboardInterrupt:
        print("interrupted while the params were checked; nothing was run", file=sys.stderr)
        return INTERRUPTED
    for path, params in ready.items():
        start = perf_counter()
        code, said = _attempt(path, params, asked.repair)
        where = "" if params.plan_only else params.path
        outcomes[path] = Outcome(code, said, (perf_counter() - start) / 60, where)
        print(f"{path}: {said}", file=sys.stderr if code else sys.stdout, flush=True)
        if code == INTERRUPTED:
            break
    if len(asked.params) > 1:
        _print_outcomes(asked.params, outcomes)
    return max(outcome.code for outcome in outcomes.values())


class Outcome(NamedTuple):
    """What became of one params file: the exit code, what there is to say, and the store that was written."""

    code: int
    said: str
    minutes: float = 0.0
    store: Path | str = ""


def _check(paths: list[Path]) -> tuple[dict[Path, Params], dict[Path, Outcome]]:
    """The params of the files in which nothing is wrong, and the outcomes of the others; nothing runs before."""
    ready, outcomes = {}, {}
    for path in paths:
        try:
            ready[path] = Params.read(path)
            ready[path].experiment().check()
        except Exception as error:  # a model or an attributor of one's own can raise anything
            ready.pop(path, None)
            outcomes[path] = Outcome(WRONG, " ".join(str(error).split()) or repr(error))
    for path, other in permutations(ready, 2):
        if ready[path].path == ready[other].path:
            outcomes[path] = Outcome(WRONG, f"store {ready[path].path} is that of {other} too; choose another")
    for path, outcome in outcomes.items():
        print(f"{path}: {outcome.said}", file=sys.stderr)
    return {path: params for path, params in ready.items() if path not in outcomes}, outcomes


def _attempt(path: Path, params: Params, repair: bool) -> tuple[int, str]:
    """Run one experiment; its exit code, and what there is to say."""
    try:
        if not params.plan_only:
            with store.held(params.path):  # by another run: its executed notebook is not to be overwritten
                pass
            for name in store.repair(params.path) if repair else ():
                print(f"{path}: chunk {name} was damaged and is computed again")
    except (ValueError, OSError) as error:
        return WRONG, str(error)
    except KeyboardInterrupt:
        return INTERRUPTED, "interrupted before it began"
    try:
        return 0, execute(params)
    except KeyboardInterrupt:
        logging.getLogger("asyncio").disabled = True  # it would log the notebook's traceback, which nobody awaits now
        return INTERRUPTED, "interrupted; the same command goes on from here"
    except Exception as error:  # whatever a notebook can raise
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        return BROKE, reason if params.plan_only else f"{reason}; see {params.path.with_suffix('.ipynb')}"


def _print_outcomes(paths: list[Path], outcomes: dict[Path, Outcome]) -> None:
    """What ran, how long it took and where it lies; then again what failed."""
    words = {0: "done", BROKE: "failed", WRONG: "refused", INTERRUPTED: "interrupted"}
    rows = {}
    for path in paths:
        code, _, minutes, where = outcomes.get(path, (None, "", 0, ""))
        word = "planned" if code == 0 and not where else words.get(code, "not started")
        rows[str(path)] = word, f"{minutes:.1f}", where
    print(pd.DataFrame.from_dict(rows, orient="index", columns=["outcome", "minutes", "store"]).to_string(), flush=True)
    for path, outcome in outcomes.items():
        if outcome.code:
            print(f"{path}: {outcome.said}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
