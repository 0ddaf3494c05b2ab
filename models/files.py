"""Files that are written whole or not at all."""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, written aside and renamed over `path`."""
    aside = path.with_suffix(".writing")
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, aside, metadata)
    aside.replace(path)
