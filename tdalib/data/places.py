"""Where things lie: what comes with tdalib, what users name, and what the Hugging Face hub has."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tdalib.options import one_line

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else None  # of the repository, in a checkout
NOTEBOOKS = ROOT / "notebooks" if ROOT else PACKAGE / "notebooks"


def resolve(path: Path | str) -> Path:
    """A path as users write it.

    `~` is their home; a relative one starts at the repository root, or at the working directory where tdalib is
    installed without one.

    Raises
    ------
    ValueError
        It is no path.
    """
    if not isinstance(path, str | Path) or str(path) == "" or "\0" in str(path) or "://" in str(path):
        raise ValueError(f"{path!r} is no path; give a string or a pathlib.Path")
    return (ROOT or Path.cwd()) / Path(path).expanduser()


@contextmanager
def had(who: str, what: str) -> Iterator[None]:
    """Where something that the hub may have is loaded: transformers is quiet, and what goes wrong is one sentence.

    Raises
    ------
    ValueError
        It cannot be had.
    """
    from transformers.utils import logging

    with ExitStack() as afterwards:
        afterwards.callback(logging.set_verbosity, logging.get_verbosity())
        if logging.is_progress_bar_enabled():
            afterwards.callback(logging.enable_progress_bar)
        logging.set_verbosity_error()  # else it says that the classifier is new
        logging.disable_progress_bar()
        try:
            yield
        except Exception as error:  # the hub, transformers and safetensors raise what they come across
            reason = one_line(error).split(". ")[0].removesuffix(".")  # what follows is advice on their use
            raise ValueError(f"{who} is no folder or name on the hub of {what}: {reason}") from None


def fetched(name: str) -> Path:
    """The folder called so; else what the Hugging Face hub has by this name, fetched where its cache lacks it."""
    from huggingface_hub import snapshot_download

    if resolve(name).is_dir():
        return resolve(name)
    wanted: dict[str, Any] = {"repo_id": name, "allow_patterns": ["*.json", "*.txt", "*.model", "*.safetensors"]}
    try:
        return Path(snapshot_download(**wanted, local_files_only=True))
    except OSError:  # not in the cache
        return Path(snapshot_download(**wanted))
