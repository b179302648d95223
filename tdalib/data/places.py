"""Where things lie: what comes with tdalib, what users name, and what the Hugging Face hub has."""

from pathlib import Path
from typing import Any

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
