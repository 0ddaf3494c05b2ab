"""`facetstream train`: a dataset folder in, a checkpoint out.

1. Texts become features, once, by a language model that stays as it is; they are kept on disk.
2. Both towers learn together, each branch on its own view of the items (`objective`), reading exact item vectors. The
   light branch learns to read scenarios together and apart, and from here on does what validation finds better.
3. The item vectors are frozen; the residual codebook is fitted on them (HyMiRec).
4. The user tower goes on learning, now from histories read through codes, as it will be served.
5. Interests are moved apart and their weights calibrated, by validation; everything is written aside and renamed.

Each epoch ends with validation, a line in metrics.jsonl and a state from which the run can go on exactly: what is
drawn in an epoch depends on the seed and its number alone.
"""

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from rich.progress import Progress
from torch import Tensor
from transformers.utils import logging

from models import checkpoint, dataset, evaluate, splits
from models.checkpoint import Checkpoint
from models.codebook import CodebookConfig, ResidualCodebook
from models.config import Training
from models.dataset import Behaviour, Ints
from models.errors import BadInput
from models.item_tower import ItemTower
from models.objective import Catalogue, Losses, Objective, Shares
from models.optimise import optimiser, schedule
from models.sequences import Sampler
from models.splits import Split
from models.text_features import text_features
from models.untrained import item_tower, user_tower
from models.user_tower import UserTower
from models.weights import fit_temperature

FEATURES = "features"  # folder for the states of texts
STATE = "state.pt"  # of a run that is not finished
METRICS = "metrics.jsonl"
GENTLY = 5  # times slower a trained tower goes on learning
WATCHED = "NDCG@10"  # what validation decides by
LATE = 0.8  # of a round: a best epoch behind it asks for another round
Judge = Callable[[Objective, Behaviour], dict[str, float]]


def train(
    folder: Path, out: Path, config: Training, start: Path | None = None, judge: Judge | None = None
) -> dict[str, float]:
    """Train on the dataset in `folder` into the checkpoint `out`; the validation figures of what was kept.

    A run that was cut short goes on where its last epoch ended. With `start`, a finished checkpoint, only its user
    tower goes on learning: sizes, item vectors, codebook and codes stay what they are, so that what is stored can be
    read, and so does how the light branch reads scenarios. A `judge` has the last word: it raises, or adds figures.
    """
    logging.disable_progress_bar()
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    processes()
    accelerator = Accelerator(
        mixed_precision=config.precision,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)],
    )
    checkpoint.refuse_finished(out)
    data = dataset.read(folder)
    split = splits.SPLITS[config.split](data)
    about = f"{data.summary()}"
    accelerator.print(about)
    unfinished = read_unfinished(out, {"config": asdict(config), "data": about, "start": str(start)})
    before = checkpoint.load(start) if start else None
    items = before.items if before else item_tower(data, split, config)
    with accelerator.main_process_first():
        catalogue = read_catalogue(data, items, config, out / FEATURES)
    towers = before or Checkpoint(items, user_tower(data, split, config, int(fillers(catalogue).sum())))
    shares = Shares(window=config.share_window, weights=config.share_weights)
    objective = Objective(items.vectors, towers.users, catalogue, shares).to(accelerator.device)
    if start:
        objective.read_through_codes(towers.users.codebook)
    run = Run(objective, data, split, config, accelerator, out, unfinished)
    if not start:
        run.rounds("1 vectors", run.enough(config.epochs), config.rate)
        run.choose_reading()
        fit_codebook(run.objective, towers.users, config)
        run.objective.read_through_codes(towers.users.codebook)
    run.phase("2 codes", config.code_epochs, config.rate / GENTLY)
    run.calibrate()
    figures = run.validate()
    if judge:
        figures |= judge(run.objective, data)
    if accelerator.is_main_process:
        towers.users.config = replace(towers.users.config, training={"config": asdict(config), "figures": figures})
        checkpoint.save(out, towers, data, run.objective.vectors(), run.objective.codes)
        (out / STATE).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    return figures


def processes() -> PartialState:
    """Those that torchrun has started. On CPUs accelerate would leave each to itself if it were not told."""
    return PartialState(cpu=not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))


def read_unfinished(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Where the run in `out` was cut short; of a new run, what is `asked` of it. Raises `BadInput` for another run."""
    path = out / STATE
    if not path.exists():
        return {"asked": asked}
    try:
        whole: dict[str, Any] = torch.load(path, weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError) as error:
        raise BadInput(f"{path} is damaged: remove it to begin anew, or restore it") from error
    if whole["asked"] != asked:
        raise BadInput(f"{path} is of a run with other settings or data: give those again, or another --out")
    return whole


def read_catalogue(data: Behaviour, items: ItemTower, config: Training, cache: Path) -> Catalogue:
    """The features of all items and queries; those of texts are made once and kept in the folder `cache`."""
    rows = torch.full((len(data.texts),), -1)
    rows[: data.items] = items.rows(data.item_ids)
    states = torch.zeros(len(data.texts), 0)
    if items.texts is not None:
        states = torch.from_numpy(np.array(text_features(items.texts, data.texts, cache)))
    return Catalogue(items.with_images(states, rows), rows, config.hidden_ids)


def fillers(catalogue: Catalogue) -> Tensor:
    """Bool [N]: the items and queries that a codebook is fitted on. Those of which nothing is known have one vector for
    all of them, which would take codewords by their number."""
    return catalogue.known if catalogue.known.sum() > 1 else torch.ones_like(catalogue.known)


def fit_codebook(objective: Objective, users: UserTower, config: Training) -> None:
    """Gives `users` a codebook of the item vectors, with a version of its own."""
    vectors = objective.vectors()
    fitted = vectors[fillers(objective.catalogue)]
    book = ResidualCodebook.fit(fitted.cpu(), CodebookConfig(**users.config.codebook))
    if not config.codebook_version:
        book.config = replace(book.config, version=book.content_version())
    users.codebook = book.to(vectors.device)
    users.config = replace(users.config, codebook=asdict(book.config))


class Run:
    """The loop: epochs in two phases, with validation, early stop and a state to go on from."""

    def __init__(
        self,
        objective: Objective,
        data: Behaviour,
        split: Split,
        config: Training,
        accelerator: Accelerator,
        out: Path,
        unfinished: dict[str, Any],
    ) -> None:
        self.objective, self.data, self.config, self.accelerator, self.out = objective, data, config, accelerator, out
        self.unfinished = unfinished
        training = split.training(data)
        self.sampler = Sampler(data, training, config.length, config.cuts, config.window)
        self.questions = splits.sample(split.valid, config.questions, config.seed)
        self.step = 0  # epochs of all phases
        sizes, trained = objective.users.config, objective.codes.shape[1] > 0
        several = sizes.light_dim > 0 and len(sizes.scenarios) > 1
        self.choosing = several and not trained and config.light_reads == "best"  # whether to read scenarios apart
        told = training & data.wanted
        told[data.first[:-1]] = False
        if not told.any():
            raise BadInput("no user has an item to train on behind another event; training needs users that come back")
        if not len(objective.catalogue.warm):
            raise BadInput("the checkpoint knows no item of this dataset: train anew on it")

    def enough(self, epochs: int) -> int:
        """`epochs`, or as many more as make up the least number of steps."""
        return max(epochs, -(-self.config.least_steps // max(1, len(self._steps(np.random.default_rng(0))))))

    def rounds(self, name: str, epochs: int, rate: float) -> None:
        """A phase of `epochs` epochs, and more of them, each from the best of the one before and twice as long, while
        there is more to learn: sparse data over-fits where dense data has only begun."""
        for number in range(self.config.rounds):
            if not self.phase(f"{name}, round {number + 1}", epochs << number, rate):
                break

    def phase(self, name: str, epochs: int, rate: float) -> bool:
        """At most `epochs` epochs; the best one by validation is kept, or the trained start where none is better.
        Whether it was among the last."""
        if not epochs:
            return False
        config, objective = self.config, self.objective
        adam = optimiser((p for p in objective.parameters() if p.requires_grad), rate, config.decay)
        steps = epochs * len(self._steps(np.random.default_rng(0)))
        rates = schedule(adam, steps, config.warmup)
        module, adam = self.accelerator.prepare(objective, adam)
        state = self._restored(name, epochs, adam, rates) or self._start()
        with Progress(disable=not self.accelerator.is_main_process) as progress:
            task = progress.add_task(name, total=steps)
            while state["epoch"] < epochs and state["epoch"] - state["best_epoch"] < config.patience:
                losses = self._epoch(module, adam, rates, progress, task)
                figures = self.validate()
                state["epoch"] += 1
                self.step += 1
                if figures[WATCHED] > state["best"]:
                    state |= self._best(state["epoch"], figures)
                self._record({"phase": name, "step": self.step, **losses, **figures})
                progress.update(task, description=f"{name}, {WATCHED} {figures[WATCHED]:.4f}")
                self._save(name, adam, rates, state)
        objective.load_state_dict(state["kept"])
        self.accelerator.free_memory()
        return bool(state["best_epoch"] > LATE * epochs)

    def _start(self) -> dict[str, Any]:
        """Of a phase; before the first one nothing is worth keeping."""
        trained = self.step > 0 or self.objective.codes.shape[1] > 0
        return {"epoch": 0} | self._best(0, self.validate() if trained else {WATCHED: -1.0})

    def _best(self, epoch: int, figures: dict[str, float]) -> dict[str, Any]:
        """What is known of the best epoch so far."""
        kept = {key: value.cpu().clone() for key, value in self.objective.state_dict().items()}
        return {"best": figures[WATCHED], "best_epoch": epoch, "kept": kept}

    def _epoch(self, module: Any, adam: Any, rates: Any, progress: Progress, task: Any) -> dict[str, float]:
        config, accelerator = self.config, self.accelerator
        rng = np.random.default_rng((config.seed, self.step))  # the same on every process
        torch.manual_seed(int(rng.integers(2**62)) + accelerator.process_index)
        sums = dict[str, Tensor]()
        module.train()
        for step in self._steps(rng):
            for left, users in zip(reversed(range(len(step))), step, strict=True):
                with accelerator.no_sync(module) if left else nullcontext():
                    losses, counts = self._losses(module, users, rng)
                    total = self.objective.total(losses, counts.tolist()) / len(step)
                    accelerator.backward(total * accelerator.num_processes)  # of which DDP takes the mean
                for (name, (loss, _)), n in zip(losses.items(), counts, strict=True):
                    sums[name] = sums.get(name, 0) + torch.stack([loss.detach().float(), n.float()])
            accelerator.clip_grad_norm_(module.parameters(), config.clip)
            adam.step()
            adam.zero_grad()
            rates.step()
            progress.advance(task)
        totals = {name: (float(accelerator.reduce(loss)), int(n)) for name, (loss, n) in sums.items()}
        if not all(math.isfinite(loss) for loss, _ in totals.values()):
            raise BadInput(f"the loss of epoch {self.step + 1} is not finite: set a lower rate than {config.rate}")
        return {f"loss, {name}": round(loss / n, 6) for name, (loss, n) in totals.items() if n}

    def _steps(self, rng: np.random.Generator) -> list[list[Ints]]:
        """The batches of users of an epoch, by step of the optimiser. A step's gradient is the mean of its batches'."""
        few = self.accelerator.num_processes
        batches = [users for users in self.sampler.epoch(self.config.tokens, rng) if len(users) >= few]
        return [
            batches[start : start + self.config.accumulate] for start in range(0, len(batches), self.config.accumulate)
        ]

    def _losses(self, module: Any, users: Ints, rng: np.random.Generator) -> tuple[Losses, Tensor]:
        """This process's losses, and how many targets they are of on all processes."""
        accelerator, warm = self.accelerator, self.objective.catalogue.warm
        batch = self.sampler.draw(users, rng)
        draws = warm[torch.from_numpy(rng.permutation(len(warm))[: self.config.draws]).to(warm.device)]
        shard = batch.shard(accelerator.process_index, accelerator.num_processes).to(accelerator.device)
        apart = bool(rng.random() < 0.5) if self.choosing else self.objective.users.config.apart
        losses: Losses = module(shard, draws, apart)
        counts: Tensor = accelerator.reduce(torch.tensor([n for _, n in losses.values()], device=accelerator.device))
        return losses, counts

    def validate(self) -> dict[str, float]:
        """Figures on the validation questions, by the maximum over interests; the same on every process. While it is
        to be chosen whether the light branch reads scenarios apart, it is left as it answers best."""
        objective, found = self.objective.eval(), dict[bool, dict[str, float]]()
        for apart in (False, True) if self.choosing else (objective.users.config.apart,):
            objective.users.config = replace(objective.users.config, apart=apart)
            found[apart] = evaluate.quick(objective, self.data, self.questions, self.config.length)
        (best,) = broadcast_object_list([max(found, key=lambda apart: found[apart][WATCHED])])
        objective.users.config = replace(objective.users.config, apart=best)
        return found[best]

    def choose_reading(self) -> None:
        """From here on the light branch, which has learnt both ways, reads as the kept epoch does best."""
        if self.choosing:
            self.validate()
            self.choosing = False

    def calibrate(self) -> None:
        """From validation: how far interests are moved apart, and one temperature for their weights, put into the
        layers that make them."""
        users, validation = self.objective.eval().users, (self.data, self.questions, self.config.length)
        if not self.config.spread:
            users.config = replace(users.config, spread=evaluate.UNMOVED)
            users.config = replace(users.config, spread=evaluate.bearable_spread(self.objective, *validation))
        logits, share = evaluate.predicted_and_realised(self.objective, *validation, self.config.window)
        users.temper(fit_temperature(logits, share))

    def _record(self, line: dict[str, Any]) -> None:
        """The line of this epoch in metrics.jsonl, instead of any that a run that was cut short has left behind."""
        if not self.accelerator.is_main_process:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        path, aside = self.out / METRICS, self.out / f"{METRICS}.writing"
        before = path.read_text().splitlines()[: self.step - 1] if path.exists() else []
        aside.write_text("\n".join([*before, json.dumps(line)]) + "\n")
        aside.replace(path)

    def _save(self, phase: str, adam: Any, rates: Any, state: dict[str, Any]) -> None:
        if not self.accelerator.is_main_process:
            return
        whole = {
            "asked": self.unfinished["asked"],
            "phase": phase,
            "step": self.step,
            "state": state,
            "objective": self.objective.state_dict(),
            "apart": self.objective.users.config.apart,
            "adam": adam.state_dict(),
            "rates": rates.state_dict(),
        }
        aside = self.out / f"{STATE}.writing"
        torch.save(whole, aside)
        aside.replace(self.out / STATE)

    def _restored(self, phase: str, epochs: int, adam: Any, rates: Any) -> dict[str, Any] | None:
        """Where an earlier run of this phase was cut short, if one was."""
        whole = self.unfinished
        if whole.get("phase", "") < phase:
            return None
        self.step = whole["step"]
        self.objective.load_state_dict(whole["objective"])
        self.objective.users.config = replace(self.objective.users.config, apart=whole["apart"])
        if whole["phase"] > phase:
            return {"epoch": epochs, "best_epoch": epochs, "kept": whole["objective"]}
        adam.load_state_dict(whole["adam"])
        rates.load_state_dict(whole["rates"])
        state: dict[str, Any] = whole["state"]
        return state
