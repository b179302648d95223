"""Kill a run with SIGKILL at random moments, start it again, and compare the store with an undisturbed one.

The store grows meanwhile, by members and by methods. `python tests/kill_and_resume.py --rounds 20` says for each round
when it was killed and what was there, and fails if a finished chunk was lost, any byte differs, or a draft, a temporary
folder, a semaphore or a folder of joblib is left in the end.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic

import psutil

from tdalib import Recipe, attribute, data, deep_ensemble

METHODS = ["loo", "ats", "if", "gd", "gc"]


STEPS = [(2, METHODS[:2]), (4, METHODS[:4]), (6, METHODS)]  # members and methods; the last is the whole


def work(path: Path, step: int) -> None:
    """Some seconds of work: at the last step 6 members, 6 train blocks."""
    members, methods = STEPS[step]
    task = data.load("mnist3", train_per_class=50, test_per_class=20)
    posterior = deep_ensemble("logreg", task, Recipe(epochs=4), members=members, checkpoints=2)
    attribute(posterior, methods, path=path, workers=2)


def chunk_bytes(path: Path) -> dict[str, bytes]:
    """Every chunk of the store, coordinates too, by name."""
    files = (file for file in path.glob("*/c/**/*") if file.is_file() and file.suffix != ".partial")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def computed(path: Path) -> dict[str, bytes]:
    """The chunks that were computed: coordinates change as a store grows."""
    names = ("tau/", "loss/", "loss_without/")
    return {name: content for name, content in chunk_bytes(path).items() if name.startswith(names)}


def start(path: Path, step: int) -> subprocess.Popen:
    python = [sys.executable, __file__, "--work", str(path), "--step", str(step)]
    temporary = path.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    return subprocess.Popen(python, stderr=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(temporary)})


def left_behind(folder: Path, processes: list[int]) -> list[Path]:
    """What is left of these runs, in their folder for temporary files and in shared memory."""
    named = [f"{sign}{process}{sign}" for process in processes for sign in "-_"]
    in_memory = [entry for entry in Path("/dev/shm").glob("*") if any(name in entry.name for name in named)]
    caches = ("matplotlib", "torchinductor")  # of libraries, which stay on purpose
    return in_memory + [e for e in folder.joinpath("temporary").iterdir() if not e.name.startswith(caches)]


def kill(process: subprocess.Popen, whole_tree: bool) -> None:
    """kill -9 of the main process, or of its workers too; no worker outlives it for long."""
    workers = psutil.Process(process.pid).children(recursive=True)
    for victim in [process, *workers] if whole_tree else [process]:
        victim.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, f"workers outlived the run: {alive}"


def main(rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, last = Path(folder) / "undisturbed.zarr", len(STEPS) - 1
        begun = monotonic()
        assert start(undisturbed, last).wait() == 0
        duration = monotonic() - begun
        expected, whole = chunk_bytes(undisturbed), computed(undisturbed)
        done, stores, processes = 0, 0, []
        while done < rounds:
            stores += 1
            path, before, step = Path(folder) / f"killed{stores}.zarr", {}, chance.randrange(len(STEPS))
            while step <= last and done < rounds:
                share = len(STEPS[step][1]) * STEPS[step][0] / (len(METHODS) * STEPS[last][0])
                moment = chance.uniform(0.2, 1) * duration * (0.5 + share / 2)
                process, whole_tree = start(path, step), chance.random() < 0.5
                processes.append(process.pid)
                try:
                    finished = process.wait(moment) == 0
                except subprocess.TimeoutExpired:
                    kill(process, whole_tree)
                    done, finished = done + 1, False
                now = computed(path)
                assert finished or process.returncode == -9, f"the run failed with {process.returncode}"
                assert before.items() <= now.items() <= whole.items(), "a chunk was lost or differs"
                what = "finished" if finished else "killed"
                print(f"round {done}, step {step}: {what} at {len(now)} of {len(whole)} chunks", flush=True)
                before, step = now, step + finished
            final = start(path, last)
            assert final.wait() == 0
            processes.append(final.pid)
            assert chunk_bytes(path) == expected, "the resumed store differs"
        assert {entry.suffix for entry in Path(folder).iterdir()} == {".zarr", ".lock", ""}, "a draft was left"
        assert not (left := left_behind(Path(folder), processes)), f"left behind: {left}"
    print(f"seed {seed}: {done} kills, {stores} stores, every one with the bytes of the undisturbed one")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked.work, asked.step)
    else:
        main(asked.rounds, asked.seed)
