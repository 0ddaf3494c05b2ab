"""Files that are written whole or not at all, folders that one process writes at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from models.errors import BadInput


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep the folder `out`, which need not be there, from other processes. Raises `BadInput` where one has it."""
    path = out.with_name(f"{out.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{out} is being written by another process: wait for it, or give another --out") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, written aside and renamed over `path`."""
    aside = path.with_suffix(".writing")
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, aside, metadata)
    aside.replace(path)
