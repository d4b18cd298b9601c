"""Training ECG-CoCa: a plain loop with AdamW, warm-up and cosine, gradient clipping, seeds, and a resume that is exact.

Everything random in step k comes from the seed and k alone, so a run that was killed and one that was not end in the
same weights, bit by bit on the same machine. One process, one device; no framework. Taught in: 07 §2–5.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from ecgchat_lib.coca.checkpoint import save_coca
from ecgchat_lib.coca.losses import CocaLosses, caption_loss, coca_loss, contrastive_loss, shared_targets
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.errors import EcgChatError, ParameterError

Augmentation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the original's but for the sizes (steps, batch, warm-up).

    Attributes:
        steps: optimizer steps in all; the cosine ends there.
        batch: pairs per step.
        learning_rate: the highest, at the end of the warm-up.
        weight_decay: on weight matrices only.
        betas: AdamW's two decays.
        epsilon: AdamW's floor.
        warmup: steps of linear warm-up.
        clip: largest norm of the gradient.
        contrastive_weight: weight of the contrastive loss.
        caption_weight: weight of the caption loss.
        share_targets: records of a batch with the same key count as one another's reports (`shared_targets`).
        average: decay per step of the moving average of the weights that is validated and kept; 0 for none.
        seed: of every random draw.
        evaluate_every: steps between validations.
        save_every: steps between saved states.
    """

    steps: int = 1000
    batch: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-6
    warmup: int = 100
    clip: float = 0.5
    contrastive_weight: float = 1.0
    caption_weight: float = 2.0
    share_targets: bool = False
    average: float = 0.0
    seed: int = 7
    evaluate_every: int = 100
    save_every: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 2 or not 0 <= self.average < 1:
            raise ParameterError(
                f"steps={self.steps} must be at least 1, batch={self.batch} at least 2 (a contrastive loss needs "
                f"another report to compare with), average={self.average} in [0, 1)"
            )


class Batch(NamedTuple):
    """B pairs: windows (B, 12, samples), report vectors (B, 384), pieces (B, L), and the reports' keys."""

    ecg: torch.Tensor
    vectors: torch.Tensor
    pieces: torch.Tensor
    keys: list[Hashable]


@dataclass
class PairedEcgs:
    """Windows with one or more wordings of each one's report, encoded once.

    Args:
        windows: (n, 12, samples), as `front_end` makes them; float16 is fine.
        texts: one or more wordings per record.
        model: whose report encoder and tokenizer encode the texts.
        keys: what the report says, per record, for `share_targets`; the first wording if None.
        weights: how likely each record is drawn; all alike if None.

    Raises:
        ParameterError: the lengths differ, or a record has no text.
    """

    windows: torch.Tensor
    texts: Sequence[Sequence[str]]
    model: EcgCoca
    keys: Sequence[Hashable] | None = None
    weights: Sequence[float] | None = None
    vectors: torch.Tensor = field(init=False, repr=False)
    pieces: torch.Tensor = field(init=False, repr=False)
    rows: list[list[int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        lengths = {len(self.windows), len(self.texts), len(self.keys or self.texts), len(self.weights or self.texts)}
        if len(lengths) > 1 or not all(self.texts):
            raise ParameterError(f"windows, texts, keys and weights differ in length ({lengths}), or a text is missing")
        if self.model.tokenizer is None:
            raise ParameterError("the model has no vocabulary, so its reports can't be encoded")
        distinct = {text: row for row, text in enumerate(dict.fromkeys(t for ts in self.texts for t in ts))}
        self.rows = [[distinct[text] for text in wordings] for wordings in self.texts]
        self.vectors = self.model.report_encoder(list(distinct))
        self.pieces = self.model.tokenizer.encode(list(distinct), self.model.config.decoder.context + 1)
        self.keys = list(self.keys or (wordings[0] for wordings in self.texts))

    def __len__(self) -> int:
        return len(self.windows)

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return `size` different records, each with one of its wordings, drawn with `generator`."""
        if size > len(self):
            raise ParameterError(f"batch={size} is larger than the {len(self)} records. Choose a smaller batch.")
        weights = torch.ones(len(self)) if self.weights is None else torch.tensor(self.weights)
        chosen = torch.multinomial(weights, size, generator=generator).tolist()
        wording = torch.rand(size, generator=generator).tolist()
        rows = [self.rows[i][int(w * len(self.rows[i]))] for i, w in zip(chosen, wording, strict=True)]
        pieces = self.pieces[rows]
        longest = int((pieces != 0).sum(dim=1).max())
        assert self.keys is not None  # set in __post_init__
        return Batch(
            self.windows[chosen].float(), self.vectors[rows], pieces[:, :longest], [self.keys[i] for i in chosen]
        )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of a step (from 0): linear warm-up, then half a cosine down to 0."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices only: none on biases, norms and the temperature."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon)


def batch_losses(model: EcgCoca, batch: Batch, config: TrainConfig) -> CocaLosses:
    """Run the model on a batch and return its losses."""
    out = model(batch.ecg, batch.vectors, batch.pieces)
    targets = shared_targets(batch.keys) if config.share_targets else None
    return coca_loss(
        contrastive_loss(out.ecg, out.text, out.scale, targets),
        caption_loss(out.logits, out.labels),
        contrastive_weight=config.contrastive_weight,
        caption_weight=config.caption_weight,
    )


@contextmanager
def step_randomness(seed: int, step: int) -> Iterator[torch.Generator]:
    """Give one step its own randomness: a generator for the data, and torch's global state for patch dropout."""
    number = (seed * 1_000_003 + step) % 2**63
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        yield torch.Generator().manual_seed(number)


@dataclass
class TrainState:
    """All that a resume needs: model, optimizer, moving average, the next step, and the history so far."""

    model: EcgCoca
    optimizer: torch.optim.AdamW
    average: dict[str, torch.Tensor]
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        names = {id(p): name for name, p in self.model.named_parameters()}
        return {
            f"optimizer.{key}.{names[id(p)]}": value
            for p, values in self.optimizer.state.items()
            for key, value in values.items()
        }

    def save(self, path: Path, config: TrainConfig) -> None:
        """Write the state to one safetensors file, in one step (a kill leaves the old one)."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()} | self._optimizer_tensors()
        about = {"step": self.step, "history": self.history, "best": self.best, "config": _plain(config)}
        temporary = path.with_name(path.name + ".part")
        save_file({k: v.detach().clone() for k, v in tensors.items()}, temporary, {"state": json.dumps(about)})
        os.replace(temporary, path)

    def load(self, path: Path, config: TrainConfig) -> None:
        """Read the state back.

        Raises:
            EcgChatError: the file is damaged, or it belongs to a run with other settings.
        """
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except Exception as error:
            raise EcgChatError(f"{path}: not a readable training state ({error}). Delete it to start over.") from error
        if about["config"] != _plain(config):
            changed = [k for k, v in _plain(config).items() if about["config"].get(k) != v]
            raise EcgChatError(
                f"{path}: this run was started with other settings ({', '.join(changed)}). "
                "Use the same settings to resume it, or another folder to start a new run."
            )
        self.step, self.history, self.best = about["step"], about["history"], about["best"]
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        self.model.load_state_dict(parts["model"])
        self.average = parts["average"]
        parameters = dict(self.model.named_parameters())
        for key, tensor in parts["optimizer"].items():
            what, name = key.split(".", 1)  # "exp_avg.encoder.conv1.weight"
            self.optimizer.state[parameters[name]][what] = tensor


def _plain(config: TrainConfig) -> dict[str, Any]:
    """Return the config as JSON gives it back (tuples become lists)."""
    return json.loads(json.dumps(asdict(config)))


class TrainResult(NamedTuple):
    """The run's history (one dict per step), the step and value of the best validation (NaN without one)."""

    history: list[dict[str, float]]
    best_step: int
    best_value: float


def train_coca(
    model: EcgCoca,
    pairs: PairedEcgs,
    config: TrainConfig,
    *,
    folder: Path | None = None,
    augment: Augmentation | None = None,
    validate: Callable[[EcgCoca], float] | None = None,
    until: int | None = None,
) -> TrainResult:
    """Train a model in place on pairs of ECG and report.

    With a folder, the state is saved there every `save_every` steps and a later call with the same settings goes on
    from it; the weights with the highest validation value are kept in `folder/best`.

    Args:
        model: trained in place.
        pairs: the training set.
        config: the settings.
        folder: where the state is kept; None to keep nothing.
        augment: called on each batch's windows, with the step's generator.
        validate: called every `evaluate_every` steps and at the end with the (averaged) model; higher is better.
        until: stop after this many steps in all, as a kill would; None for `config.steps`.

    Raises:
        EcgChatError: the loss is not a number any more, or the folder holds another run's state.
    """
    state = _open_state(model, config, folder)
    last = min(config.steps, config.steps if until is None else until)
    bar = tqdm(total=config.steps, initial=state.step, desc="train", unit="step", disable=None)
    while state.step < last:
        losses = _train_step(state, pairs, config, augment)
        state.history.append(losses)
        state.step += 1
        bar.update()
        bar.set_postfix(loss=f"{losses['loss']:.3f}")
        if validate and (state.step % config.evaluate_every == 0 or state.step == config.steps):
            _validate(state, validate, folder)
        if folder and (state.step % config.save_every == 0 or state.step == last):
            state.save(folder / "state.safetensors", config)
    bar.close()
    return TrainResult(state.history, int(state.best.get("step", 0)), state.best.get("value", math.nan))


def _open_state(model: EcgCoca, config: TrainConfig, folder: Path | None) -> TrainState:
    average = {k: v.detach().clone() for k, v in model.state_dict().items()} if config.average else {}
    state = TrainState(model, build_optimizer(model, config), average)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "state.safetensors").is_file():
            state.load(folder / "state.safetensors", config)
    return state


def _train_step(
    state: TrainState, pairs: PairedEcgs, config: TrainConfig, augment: Augmentation | None
) -> dict[str, float]:
    """Take one optimizer step; return its losses, learning rate and temperature."""
    rate = learning_rate(state.step, config)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.model.train()
    with step_randomness(config.seed, state.step) as generator:
        batch = pairs.draw(config.batch, generator)
        if augment is not None:
            batch = batch._replace(ecg=augment(batch.ecg, generator))
        losses = batch_losses(state.model, batch, config)
    if not torch.isfinite(losses.total):
        raise EcgChatError(
            f"step {state.step}: the loss is {losses.total.item()}. Lower learning_rate or raise warmup."
        )
    state.optimizer.zero_grad(set_to_none=True)
    losses.total.backward()
    nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
    state.optimizer.step()
    state.model.clamp_temperature()
    if state.average:
        decay = min(config.average, (state.step + 1) / (state.step + 10))  # short memory at the start
        for name, value in state.model.state_dict().items():
            state.average[name].lerp_(value, 1 - decay)
    return {
        "loss": losses.total.item(),
        "contrastive": losses.contrastive.item(),
        "caption": losses.caption.item(),
        "learning_rate": rate,
        "scale": state.model.logit_scale.exp().item(),
    }


@contextmanager
def averaged_weights(state: TrainState) -> Iterator[EcgCoca]:
    """Lend the model with its averaged weights, in evaluation mode, and put the trained ones back."""
    trained = {k: v.detach().clone() for k, v in state.model.state_dict().items()}
    if state.average:
        state.model.load_state_dict(state.average)
    state.model.eval()
    try:
        yield state.model
    finally:
        state.model.load_state_dict(trained)


def _validate(state: TrainState, validate: Callable[[EcgCoca], float], folder: Path | None) -> None:
    """Validate the averaged weights, note the value, and keep the best."""
    with averaged_weights(state) as model:
        value = float(validate(model))
        state.history[-1]["validation"] = value
        if value > state.best.get("value", -math.inf):
            state.best = {"step": state.step, "value": value}
            if folder and model.tokenizer is not None:
                save_coca(model, folder / "best", about={"step": state.step, "validation": value})
