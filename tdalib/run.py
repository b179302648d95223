"""`python -m tdalib.run params/a.yaml …`: the run notebook through papermill, with strict params."""

import argparse
import logging
import sys
from itertools import permutations
from pathlib import Path
from time import perf_counter

from tdalib import models, store
from tdalib.data import NOTEBOOKS
from tdalib.options import one_line
from tdalib.params import Params

NOTEBOOK = NOTEBOOKS / "10_run_experiment.ipynb"
BROKE, WRONG, INTERRUPTED = 1, 2, 130  # exit codes


def execute(params: Params) -> str:
    """Execute the run notebook, or only print the plan; says where the executed copy lies, beside the store."""
    if params.plan_only:
        posterior = params.posterior(params.task())
        size = models.parameter_count(posterior.build(posterior.task, 0))
        plan = params.experiment(posterior).plan()
        return f"planned, {params.model}: {size}\n{plan.to_string(float_format='%.2f')}"
    import papermill

    executed, start = params.path.with_suffix(".ipynb"), perf_counter()
    values = params.model_dump(exclude_defaults=True) | {"name": params.name}
    streams = {"stdout_file": sys.stdout, "stderr_file": sys.stderr}
    quiet = {"progress_bar": False, "extra_arguments": ["--log-level=ERROR"]}  # the experiment shows its own progress
    papermill.execute_notebook(NOTEBOOK, executed, values, kernel_name="python3", **streams, **quiet)
    return f"done in {(perf_counter() - start) / 60:.1f} min, see {executed}"


def main(arguments: list[str] | None = None) -> int:
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
        code, said = outcomes[path] = _attempt(path, params, asked.repair)
        print(f"{path}: {said}", file=sys.stderr if code else sys.stdout, flush=True)
        if code == INTERRUPTED:
            break
    if len(asked.params) > 1:
        print("\nWhat became of each:")
        for path in asked.params:
            _, said = outcomes.get(path, (INTERRUPTED, "not started"))
            print(f"{path}: {said.splitlines()[0]}", flush=True)
    return max(code for code, _ in outcomes.values())


def _check(paths: list[Path]) -> tuple[dict[Path, Params], dict[Path, tuple[int, str]]]:
    """The params of the files in which nothing is wrong, and what is to say of the others; nothing runs before."""
    ready, outcomes = {}, {}
    for path in paths:
        try:
            params = Params.read(path)
            params.experiment().check()
            ready[path] = params
        except Exception as error:  # a model or an attributor of one's own can raise anything
            outcomes[path] = WRONG, f"refused: {one_line(error)}"
    for path, other in permutations(ready, 2):
        if ready[path].path == ready[other].path:
            outcomes[path] = WRONG, f"refused: store {ready[path].path} is that of {other} too; choose another"
    for path, (_, said) in outcomes.items():
        print(f"{path}: {said}", file=sys.stderr)
    return {path: params for path, params in ready.items() if path not in outcomes}, outcomes


def _attempt(path: Path, params: Params, repair: bool) -> tuple[int, str]:
    """Run one experiment; its exit code, and what there is to say."""
    try:
        if not params.plan_only:
            with store.held(params.path):  # by another run: its executed notebook is not to be overwritten
                pass
            for name in store.repair(params.path) if repair else ():
                print(f"{path}: chunk {name} was damaged and is computed again")
        return 0, execute(params)
    except (ValueError, OSError) as error:
        return WRONG, f"refused: {error}"
    except KeyboardInterrupt:
        logging.getLogger("asyncio").disabled = True  # it would log the notebook's traceback, which nobody awaits now
        return INTERRUPTED, "interrupted; the same command goes on from here"
    except Exception as error:  # whatever a notebook can raise
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        return BROKE, f"failed: {reason}" + ("" if params.plan_only else f"; see {params.path.with_suffix('.ipynb')}")


if __name__ == "__main__":
    sys.exit(main())
