"""How a result lies in chunks, each a finished unit of work: a member, a block of removals, a method."""

TRAIN_BLOCK = 25  # removals in a chunk


def blocks(removals: int) -> list[slice]:
    """The blocks of so many removals."""
    return [slice(first, min(first + TRAIN_BLOCK, removals)) for first in range(0, removals, TRAIN_BLOCK)]


def chunk(name: str, member: int, block: int = 0, method: int = 0) -> tuple[int, ...]:
    """Where a chunk of a variable lies, counted along each of its dims."""
    where = {"tau": (member, block, 0, method), "loss_without": (member, block, 0), "loss": (member, 0)}
    return where[name]
