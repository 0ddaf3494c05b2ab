"""A small text encoder for a dataset whose texts no language model was given for, trained on what users met together.

Texts that one user met close together attract each other (InfoNCE over pairs of neighbouring events). Ours: the papers
start from an LLM that knows the language.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from models.contract import DIM
from models.dataset import Behaviour, Ints
from models.head import ProjectionHead
from models.loss import InfoNCE
from models.optimise import updates
from models.text_encoder import TextEncoder
from models.tiny import llama, train_tokenizer

NEIGHBOURS = 3  # events: how far apart the two texts of a pair may be
PAIRS = 192  # a step


def text_encoder(data: Behaviour, training: NDArray[np.bool_], steps: int, rng: np.random.Generator) -> TextEncoder:
    """A decoder over the words of the dataset, 64 wide and two layers deep. Texts are no negatives of themselves."""
    tokenizer = train_tokenizer(text for text in data.texts if text.strip())
    encoder = TextEncoder(llama(len(tokenizer), hidden=64, layers=2), tokenizer)
    head, loss = ProjectionHead(encoder.width, DIM), InfoNCE()
    lefts, rights = pairs(data, training)
    for update in updates("text encoder", [encoder, head, loss], steps if len(lefts) else 0):
        rows = rng.integers(len(lefts), size=PAIRS)
        left, right = torch.from_numpy(lefts[rows]), torch.from_numpy(rights[rows])
        texts = [data.texts[place] for place in torch.cat([left, right]).tolist()]
        a, b = head(encoder.encode(*encoder.tokenize(texts))).chunk(2)
        update(loss(a[:, None], b, b, right[:, None] == right).mean())
    return encoder.eval()


def pairs(data: Behaviour, training: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """The texts of all pairs of different events of one user in one scenario, at most NEIGHBOURS apart."""
    owner = np.repeat(np.arange(data.users), np.diff(data.first))
    texts = np.array([bool(text.strip()) for text in data.texts])
    usable = training & data.liked & texts[data.text]
    found = [np.zeros((2, 0), dtype=np.int64)]
    for apart in range(1, NEIGHBOURS + 1):
        near = (owner[apart:] == owner[:-apart]) & (data.scenario[apart:] == data.scenario[:-apart])
        near &= usable[apart:] & usable[:-apart] & (data.text[apart:] != data.text[:-apart])
        found.append(np.stack([data.text[:-apart][near], data.text[apart:][near]]))
    lefts, rights = np.concatenate(found, axis=1)
    return lefts, rights
