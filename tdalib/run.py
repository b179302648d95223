"""`python -m tdalib.run params/a.yaml …`: the run notebook through papermill, with strict params."""

import argparse
import sys
from pathlib import Path

from tdalib import experiment, store
from tdalib.data import ROOT
from tdalib.params import Params

NOTEBOOK = ROOT / "notebooks" / "10_run_experiment.ipynb"


def check(params: Params) -> None:
    """Do everything that can fail on wrong params, and write nothing.

    Raises
    ------
    ValueError
        One line that names what is wrong and what is allowed.
    """
    task = params.task()
    experiment.probe(params.posterior(task), params.methods, params.method_options)
    store.check(params.path, params.defining(), task.fingerprint())


def run(params: Params) -> Path:
    """Execute the run notebook; the executed copy lies beside the store, as NAME.ipynb."""
    import papermill

    params.path.parent.mkdir(parents=True, exist_ok=True)
    executed = params.path.with_suffix(".ipynb")
    values = params.model_dump(exclude_defaults=True) | {"name": params.name}
    papermill.execute_notebook(NOTEBOOK, executed, values, kernel_name="python3", stderr_file=sys.stderr)
    return executed


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tdalib.run", description=__doc__)
    parser.add_argument("params", nargs="+", type=Path, help="a YAML file that holds what differs from the defaults")
    paths = parser.parse_args(arguments).params
    experiments = {}
    for path in paths:  # all are checked before the first runs
        try:
            params = Params.read(path)
            if params.path in experiments:
                raise ValueError(f"store {params.path} is that of {experiments[params.path][0]} too; choose another")
            check(params)
        except Exception as error:  # a model or an attributor of one's own can raise anything
            print(f"{path}: {' '.join(str(error).split())}", file=sys.stderr)
            return 2
        experiments[params.path] = path, params
    for path, params in experiments.values():
        try:
            print(f"{path}: done, see {run(params)}")
        except KeyboardInterrupt:
            print(f"{path}: interrupted; the same command goes on from here", file=sys.stderr)
            return 130
        except Exception as error:  # whatever a notebook can raise
            reason = str(error).strip().splitlines()[-1]
            print(f"{path}: {reason}; see {params.path.with_suffix('.ipynb')}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
