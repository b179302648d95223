"""`python -m tdalib.run params/a.yaml …`: the run notebook through papermill, with strict params."""

import argparse
import sys
from pathlib import Path

from tdalib import store
from tdalib.data import ROOT
from tdalib.params import Params

NOTEBOOK = ROOT / "notebooks" / "10_run_experiment.ipynb"


def run(params: Params) -> str:
    """Execute the run notebook, or only print the plan; says where the executed copy lies, beside the store."""
    if params.plan_only:
        return f"planned\n{params.plan(params.posterior(params.task())).to_string(float_format='%.2f')}"
    import papermill

    executed = params.path.with_suffix(".ipynb")
    values = params.model_dump(exclude_defaults=True) | {"name": params.name}
    papermill.execute_notebook(
        NOTEBOOK, executed, values, kernel_name="python3", stdout_file=sys.stdout, stderr_file=sys.stderr
    )
    return f"done, see {executed}"


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tdalib.run", description=__doc__)
    parser.add_argument("params", nargs="+", type=Path, help="a YAML file that holds what differs from the defaults")
    parser.add_argument("--repair", action="store_true", help="compute damaged chunks of the store again")
    asked = parser.parse_args(arguments)
    experiments = {}
    for path in asked.params:  # all are checked before the first runs
        try:
            params = Params.read(path)
            if params.path in experiments:
                raise ValueError(f"store {params.path} is that of {experiments[params.path][0]} too; choose another")
            params.check()
        except Exception as error:  # a model or an attributor of one's own can raise anything
            return _failed(path, " ".join(str(error).split()), 2)
        experiments[params.path] = path, params
    for path, params in experiments.values():
        try:
            if not params.plan_only:
                with store.held(params.path):  # by another run: its executed notebook is not to be overwritten
                    pass
            if asked.repair and not params.plan_only:
                for name in store.repair(params.path):
                    print(f"{path}: chunk {name} was damaged and is computed again")
        except (ValueError, OSError) as error:
            return _failed(path, error, 2)
        try:
            print(f"{path}: {run(params)}")
        except KeyboardInterrupt:
            return _failed(path, "interrupted; the same command goes on from here", 130)
        except Exception as error:  # whatever a notebook can raise
            reason = (str(error).strip() or repr(error)).splitlines()[-1]
            return _failed(path, f"{reason}; see {params.path.with_suffix('.ipynb')}", 1)
    return 0


def _failed(path: Path, reason, code: int) -> int:
    print(f"{path}: {reason}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
