"""Checksums of a store's files: chunks carry theirs; metadata have a copy with one, from which they are restored."""

import json
from pathlib import Path
from typing import Any

import google_crc32c
from zarr.storage import LocalStore

COPY = ".metadata"  # of every zarr.json, with the checksum of it all


def is_intact(content: bytes) -> bool:
    """Whether the last four bytes are the crc32c of the rest."""
    return len(content) > 4 and google_crc32c.value(content[:-4]) == int.from_bytes(content[-4:], "little")


class Verified(LocalStore):
    """A store that says which chunk is damaged; zarr's checksum codec knows no names."""

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """The bytes of a file."""
        return self._verified(key, await super().get(key, prototype, byte_range))

    def get_sync(self, key: str, **options: Any) -> Any:
        """The bytes of a file."""
        return self._verified(key, super().get_sync(key, **options))

    def _verified(self, key: str, value: Any) -> Any:
        if value is not None and "/c/" in key and not is_intact(value.to_bytes()):
            remedy = "tdalib.store.repair removes it, and the run that made the store computes it again"
            raise ValueError(f"chunk {key} of {self.root} is damaged; {remedy}")
        return value


def damaged_chunks(path: Path) -> list[str]:
    """The chunks whose bytes are not those that were written; all of the store is read."""
    files = sorted(file for file in path.glob("*/c/**/*") if file.is_file() and file.suffix != ".partial")
    return [file.relative_to(path).as_posix() for file in files if not is_intact(file.read_bytes())]


def damaged_metadata(path: Path) -> list[str]:
    """The metadata that differ from their copy, or the copy itself; none where a store has no copy yet."""
    if not (path / COPY).exists():
        return []
    if (copies := _copies(path)) is None:
        return [COPY]
    now = _metadata(path)
    return sorted(name for name in copies.keys() | now.keys() if copies.get(name) != now.get(name))


def copy_metadata(path: Path) -> None:
    """Keep a copy of the metadata as they are now."""
    content = json.dumps(_metadata(path)).encode()
    draft = path / f"{COPY}.partial"
    draft.write_bytes(content + google_crc32c.value(content).to_bytes(4, "little"))
    draft.replace(path / COPY)


def restore_metadata(path: Path) -> list[str]:
    """Put damaged metadata back as they were copied, or copy them anew where that is what is damaged; their names."""
    names = damaged_metadata(path)
    if names == [COPY]:
        copy_metadata(path)
        return names
    copies = _copies(path) or {}
    for name in names:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(copies[name].encode("latin-1")) if name in copies else (path / name).unlink()
    return names


def _metadata(path: Path) -> dict[str, str]:
    """The metadata files, of the root and of each array; a letter is a byte."""
    files = sorted([*path.glob("zarr.json"), *path.glob("*/zarr.json")])
    return {file.relative_to(path).as_posix(): file.read_bytes().decode("latin-1") for file in files}


def _copies(path: Path) -> dict[str, str] | None:
    """What the copy holds; None where it is damaged."""
    content = (path / COPY).read_bytes()
    return json.loads(content[:-4]) if is_intact(content) else None
