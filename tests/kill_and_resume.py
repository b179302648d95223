"""Kill a run with SIGKILL at random moments, start it again, and compare the store with an undisturbed one.

`python tests/kill_and_resume.py --rounds 20` says for each round when it was killed and what was there, and fails if
a finished chunk was lost or any byte differs.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic

import psutil

from tdalib import Recipe, attribute, data, deep_ensemble

METHODS = ["loo", "ats", "if", "gd", "gc"]


def work(path: Path) -> None:
    """Some seconds of work: 6 members, 6 train blocks."""
    task = data.load("mnist3", train_per_class=50, test_per_class=20)
    posterior = deep_ensemble("logreg", task, Recipe(epochs=4), members=6, checkpoints=2)
    attribute(posterior, METHODS, path=path, workers=2)


def chunk_bytes(path: Path) -> dict[str, bytes]:
    """Every chunk of the store, coordinates too, by name."""
    files = (file for file in path.glob("*/c/**/*") if file.is_file() and file.suffix != ".partial")
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def start(path: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, __file__, "--work", str(path)], stderr=subprocess.DEVNULL)


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
        undisturbed = Path(folder) / "undisturbed.zarr"
        begun = monotonic()
        assert start(undisturbed).wait() == 0
        duration = monotonic() - begun
        expected = chunk_bytes(undisturbed)
        done, store = 0, 0
        while done < rounds:
            store += 1
            path, before, finished = Path(folder) / f"killed{store}.zarr", {}, False
            while not finished and done < rounds:
                process, moment, whole_tree = start(path), chance.uniform(0.2, 1) * duration, chance.random() < 0.5
                try:
                    finished = process.wait(moment) == 0
                except subprocess.TimeoutExpired:
                    kill(process, whole_tree)
                    done += 1
                now = chunk_bytes(path)
                assert finished or process.returncode == -9, f"the run failed with {process.returncode}"
                assert before.items() <= now.items() <= expected.items(), "a chunk was lost or differs"
                print(f"round {done}: {'finished' if finished else 'killed'} at {len(now)} of {len(expected)} chunks")
                before = now
            assert finished or start(path).wait() == 0
            assert chunk_bytes(path) == expected, "the resumed store differs"
    print(f"seed {seed}: {done} kills, {store} stores, every one with the bytes of the undisturbed one")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked.work)
    else:
        main(asked.rounds, asked.seed)
