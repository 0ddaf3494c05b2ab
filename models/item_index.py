"""The ids of the items that training met ("warm"), and the row of each in the tables of the item tower.

Looked up by a 64-bit hash, sorted, and then compared byte by byte: a million ids take some tens of megabytes, load as
three arrays and are found without a Python object per id.
"""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from models.errors import BadInput
from models.files import write_tensors

FILE = "item_index.safetensors"
UNKNOWN = -1  # the row of an id that is empty or was not met


class ItemIndex:
    """Item id -> row. `ids` are distinct and not empty; the first has row 0."""

    def __init__(self, ids: Sequence[str] = ()) -> None:
        names = [_bytes(name) for name in ids]
        if not all(names):
            raise BadInput(f"item {names.index(b'')} of the id table has an empty id; leave out what has no id")
        hashes = np.array([_hash(name) for name in names], dtype=np.int64)
        self._blob = np.frombuffer(b"".join(names), dtype=np.uint8)
        self._ends = np.cumsum([len(name) for name in names], dtype=np.int64)
        self._rows = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._rows]
        found = self.rows(ids)
        if (twice := found != np.arange(len(names))).any():
            raise BadInput(f"item id {ids[int(twice.argmax())]!r} is there twice; the id table needs distinct ids")

    def __len__(self) -> int:
        return len(self._ends)

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """int64 [N]: the row of each id, `UNKNOWN` where there is none."""
        names = [_bytes(name) for name in ids]
        hashes = np.array([_hash(name) for name in names], dtype=np.int64)
        places = np.searchsorted(self._hashes, hashes)
        return np.array([self._row(*pair) for pair in zip(names, places.tolist(), strict=True)], dtype=np.int64)

    def ids(self) -> list[str]:
        """All ids, by row."""
        return [self._name(row).decode(errors="surrogatepass") for row in range(len(self))]

    def save(self, folder: Path) -> None:
        """Writes `item_index.safetensors` in `folder`, whole or not at all."""
        arrays = {"blob": self._blob, "ends": self._ends, "rows": self._rows, "hashes": self._hashes}
        write_tensors(folder / FILE, {name: torch.tensor(array) for name, array in arrays.items()}, {})

    @classmethod
    def load(cls, folder: Path) -> "ItemIndex":
        """The index saved in `folder`; an empty one where there is none."""
        index = cls()
        if (folder / FILE).exists():
            tensors = load_file(folder / FILE)
            index._blob, index._ends = tensors["blob"].numpy(), tensors["ends"].numpy()
            index._rows, index._hashes = tensors["rows"].numpy(), tensors["hashes"].numpy()
        return index

    def _row(self, name: bytes, place: int) -> int:
        """The row of `name`, whose hash would stand at `place`; ids of one hash stand side by side."""
        hash_ = _hash(name)
        while place < len(self) and self._hashes[place] == hash_:
            if self._name(row := int(self._rows[place])) == name:
                return row
            place += 1
        return UNKNOWN

    def _name(self, row: int) -> bytes:
        start = self._ends[row - 1] if row else 0
        return self._blob[start : self._ends[row]].tobytes()


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogatepass")


def _hash(name: bytes) -> int:
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "little", signed=True)
