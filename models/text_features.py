"""Frozen features: every text's state, encoded once with a language model that is not trained, and kept on disk.

One file per (model, texts), named by a hash of both, so nothing stale is ever read. Beside it, while it is written, lie
the rows so far and how many there are: a run that was stopped goes on where it was.
"""

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from models.text_encoder import TextEncoder

BATCH_ROWS = 128  # texts encoded at once: bounds the tokens held to BATCH_ROWS × max_tokens
UNSAID = ("_name_or_path", "architectures", "dtype", "transformers_version")  # set by saving; the weights tell
SAVE_ROWS = 64 * BATCH_ROWS  # at most these are encoded again after a stop


def text_features(encoder: TextEncoder, texts: Sequence[str], cache: Path) -> NDArray[np.float32]:
    """States [N, width] of `texts`, as `encoder` in evaluation mode gives them, zeros for a blank text.

    The array is mapped, read-only, from its file in the folder `cache`; a progress bar shows if it has to be written
    first. One process at a time.
    """
    if not texts:
        return np.zeros((0, encoder.width), dtype=np.float32)
    path = cache / f"{fingerprint(encoder, texts)}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _encode_all(encoder.eval(), texts, path)
    features: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return features


def fingerprint(encoder: TextEncoder, texts: Sequence[str]) -> str:
    """Hexadecimal, of everything that the features depend on: weights, tokenizer, length limit, texts and order."""
    digest = blake2b(digest_size=16)
    config = encoder.language_model.config.to_dict()
    config = sorted((name, value) for name, value in config.items() if name not in UNSAID)
    digest.update(repr((encoder.max_tokens, config, _tokenizer(encoder))).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for text in texts:
        data = text.encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


@torch.inference_mode()
def _encode_all(encoder: TextEncoder, texts: Sequence[str], path: Path) -> None:
    """Writes the features of `texts`, in the order of their length, into a file beside `path`, then renames it."""
    aside, count = path.with_suffix(".writing"), path.with_suffix(".rows")
    order = np.argsort([len(text) for text in texts], kind="stable")
    done = int(count.read_text()) if aside.exists() and count.exists() else 0
    shape = (len(texts), encoder.width)
    rows = format.open_memmap(aside, "r+" if done else "w+", np.float32, None if done else shape)  # type: ignore[no-untyped-call]
    with Progress(console=Console(stderr=True)) as progress:  # a command's answer may be JSON
        task = progress.add_task("texts", total=len(texts), completed=done)
        for start in range(done, len(texts), BATCH_ROWS):
            batch = order[start : start + BATCH_ROWS]
            rows[batch] = encoder([texts[row] for row in batch]).cpu().numpy()
            progress.update(task, advance=len(batch))
            if (start + BATCH_ROWS) % SAVE_ROWS == 0:
                rows.flush()
                _write(count, start + BATCH_ROWS)
    rows.flush()
    aside.replace(path)
    count.unlink(missing_ok=True)


def _write(path: Path, number: int) -> None:
    aside = path.with_suffix(".count")
    aside.write_text(str(number))
    aside.replace(path)


def _tokenizer(encoder: TextEncoder) -> str:
    """Its rules, without those that each call sets anew."""
    fast = getattr(encoder.tokenizer, "backend_tokenizer", None)
    if fast is None:
        return repr(sorted(encoder.tokenizer.get_vocab().items()))
    return repr(json.loads(fast.to_str()) | {"truncation": None, "padding": None})
