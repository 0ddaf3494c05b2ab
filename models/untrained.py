"""Towers as training begins with them, sized for a dataset."""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from models import evaluate
from models.codebook import CodebookConfig
from models.config import Training
from models.contract import SCENARIOS
from models.cooccurrence import id_vectors
from models.dataset import Behaviour
from models.errors import BadInput
from models.item_index import ItemIndex
from models.item_tower import ItemTower, ItemTowerConfig
from models.item_vectors import View
from models.pretrain import text_encoder
from models.splits import Split
from models.text_encoder import TextEncoder, is_decoder, refused
from models.tiny import llama_config
from models.user_tower import UserTower, UserTowerConfig


def item_tower(data: Behaviour, split: Split, config: Training) -> ItemTower:
    """Untrained views over a language model; of a dataset without texts and images, views of ids alone."""
    training = split.training(data)
    warm = np.zeros(len(data.texts), dtype=bool)
    warm[data.text[training]] = True
    index = ItemIndex([data.item_ids[item] for item in np.flatnonzero(warm[: data.items])])
    described = any(text.strip() for text in data.texts) or data.images is not None
    kinds = [kind if described else "id" for kind in (config.light_view, config.llm_view) if kind != "none"]
    encoder = None
    if any(kind != "id" for kind in kinds) and any(text.strip() for text in data.texts):
        rng = np.random.default_rng(config.seed)
        encoder = (
            TextEncoder.over(config.text_model, config.max_tokens)
            if config.text_model
            else text_encoder(data, training, config.text_steps, rng)
        )
    images = None if data.images is None else torch.from_numpy(data.images[np.flatnonzero(warm[: data.items])])
    views = tuple(View(kind, config.dim) for kind in kinds)
    tower = ItemTower(encoder, ItemTowerConfig(views), index, images)
    if config.id_start == "cooccurrence":
        rows = np.full(len(data.texts), -1)
        rows[: data.items] = index.rows(data.item_ids)
        tower.vectors.begin_ids(id_vectors(data, training, rows, config.dim, config.seed))
    return tower


def user_tower(data: Behaviour, split: Split, config: Training, fillers: int) -> UserTower:
    """Untrained; the recent events that the LLM reads are shared out to the scenarios there are, and the codebook has
    as many codewords as so many `fillers` can fill."""
    training = split.training(data)
    seen = np.bincount(data.scenario[training], minlength=len(SCENARIOS)) > 0
    asked = np.bincount(data.scenario[training & data.wanted], minlength=len(SCENARIOS))
    quotas = np.where(seen, max(1, config.recent // max(1, int(seen.sum()))), 1)
    light_dim = config.dim * (config.light_view != "none")
    llm_dim = config.dim * (config.llm_view != "none")
    book = CodebookConfig(
        light_dim + llm_dim,
        config.levels,
        config.codewords,
        config.scale_bits,
        config.codebook_version or 1,
        config.seed,
    ).for_items(fillers)
    if book.codewords > fillers:
        raise BadInput("the dataset has a single item; a codebook needs at least two")
    llm = causal_llm(config.llm) if config.llm and llm_dim else None
    tower = UserTower(
        UserTowerConfig(
            llm=(
                llm.config if llm else llama_config(1, config.llm_hidden, config.llm_layers, config.llm_heads)
            ).to_dict(),
            light_dim=light_dim,
            llm_dim=llm_dim,
            interests=config.interests,
            spread=config.spread or evaluate.UNMOVED,
            scenarios=tuple(np.argsort(-asked, kind="stable")[: max(1, np.count_nonzero(asked))].tolist()),
            width=config.width,
            light=config.light,
            apart=config.light_reads == "own",
            layers=config.layers,
            heads=config.heads,
            quotas=tuple(quotas.tolist()),
            dropout=config.dropout,
            codebook=asdict(book),
        )
    )
    if llm:
        tower.refiner.llm.load_state_dict(llm.state_dict())
    return tower


def causal_llm(source: str) -> Any:
    """The causal LLM in the folder `source`, or of that name on the hub, in float32."""
    with refused(f"llm={source} is no causal LLM", "the folder of one"):
        model = AutoModel.from_pretrained(source, dtype=torch.float32)
    if not is_decoder(model.config):
        raise BadInput(f"llm={source}: {model.config.model_type} reads in both directions; give a causal LLM")
    return model
