"""A training from a manifest or from synthetic ECGs, at the size of a profile: data, model, validation, checkpoint.

It puts together what the mini model's recipe is made of, for other data and other machines; the recipe itself
(`mini_recipe`) is not run by it. Taught in: 07 §9.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ecgchat_lib.coca.config import MINI, PAPER, CaptionDecoderConfig, EcgCocaConfig, EcgEncoderConfig
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.coca.numbers import NUMBERS
from ecgchat_lib.coca.objective import Objective
from ecgchat_lib.coca.pairs import PairedEcgs
from ecgchat_lib.coca.text import ReportEncoder
from ecgchat_lib.coca.train import TrainConfig, TrainResult, train_coca
from ecgchat_lib.datasets.labels import SUPERCLASSES, superclasses
from ecgchat_lib.datasets.manifest import Manifest
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.ecg.formats import read_any
from ecgchat_lib.ecg.recording import Recording
from ecgchat_lib.errors import EcgChatError, RecordError
from ecgchat_lib.evaluate.mini_data import Said, measured_windows, single_statements, vary, wordings
from ecgchat_lib.evaluate.mini_recipe import TRAIN, RecipeConfig, build_model, endings, step_value

VALIDATED = 1000  # most validation records that a validation looks at
WORDINGS, KEEP, LEAST = 4, 0.8, 8  # texts per record, chance that a statement is said, fewest records of a statement


@dataclass(frozen=True)
class TrainProfile:
    """The sizes of one kind of machine.

    Attributes:
        model: sizes of the model; the vocabulary is counted from the texts.
        train: the settings.
        synthetic: ECGs that are made where no data are given; 0 where data must be given.
        text: the pretrained part that reads the reports.
    """

    model: EcgCocaConfig
    train: TrainConfig
    synthetic: int = 0
    text: str = "report-encoder"


_SMALL = EcgCocaConfig(
    EcgEncoderConfig(
        z_score=False, keep_scale=True, stem_channels=16, width=64, layers=2, heads=4, embedding=64, patch_dropout=0.25
    ),
    CaptionDecoderConfig(layers=1, heads=4),
    token_hidden=64,
    number_hidden=64,
)

PROFILES: MappingProxyType[str, TrainProfile] = MappingProxyType(
    {
        "ci": TrainProfile(
            _SMALL,
            replace(TRAIN, steps=40, batch=24, learning_rate=3e-3, warmup=6, evaluate_every=20, save_every=10),
            synthetic=120,
        ),
        "cpu": TrainProfile(MINI, TRAIN),
        "t4": TrainProfile(MINI, replace(TRAIN, steps=8000, batch=256, precision="fp16")),
        "h100": TrainProfile(
            replace(PAPER, number_hidden=512),  # the original's towers; measured numbers go their own way, as in MINI
            TrainConfig(
                steps=20_000,  # 20 rounds over about 770,000 pairs
                batch=768,
                chunk=192,
                precision="bf16",
                checkpoint_blocks=True,
                fused=True,
                warmup=2000,
                objective=Objective(numbers=1.0, share_targets=True),
                evaluate_every=1000,
                save_every=500,
            ),
            text="report-encoder-full",
        ),
    }
)


class Records(NamedTuple):
    """What a training reads: n recordings with their reports.

    Attributes:
        windows: (n, 12, samples) float16, mV.
        numbers: (n, 8) measured `NUMBERS`, NaN if unknown.
        statements: what is known of each as SCP codes; may be empty.
        reports: the report in English, "" if there is none.
        splits: train, validation or test.
    """

    windows: torch.Tensor
    numbers: torch.Tensor
    statements: list[Said]
    reports: list[str]
    splits: list[str]

    def rows(self, split: str) -> list[int]:
        """Return the rows of a split that have something to say."""
        told = zip(self.splits, self.statements, self.reports, strict=True)
        return [row for row, (name, said, report) in enumerate(told) if name == split and (said or report)]


def synthetic_records(n: int, seed: int, config: EcgEncoderConfig) -> Records:
    """Make n synthetic ECGs and as many again by half for the validation; each is a patient of its own."""
    total = n + n // 2
    ecgs = [synthesize(seed * 1_000_000 + number, seconds=config.seconds) for number in range(total)]
    recordings = (Recording("", ecg.signal, fs=ecg.fs) for ecg in tqdm(ecgs, "synthetic ECGs", disable=None))
    windows, numbers = measured_windows(recordings, config)
    splits = ["train"] * n + ["validation"] * (total - n)
    return Records(windows, numbers, [ecg.statements for ecg in ecgs], [""] * total, splits)


def manifest_records(
    manifest: Manifest, config: EcgEncoderConfig, folder: Path, tell: Callable[[str], None]
) -> Records:
    """Read and measure a manifest's recordings for training and validation, once; later calls find them in `folder`.

    The windows are a memory-mapped file, so that more of them than fit into memory can be trained on.

    Args:
        manifest: a checked manifest.
        config: the encoder's front end.
        folder: where `windows.npy` and `numbers.npy` are kept.
        tell: is told of recordings that can't be read; they are left out.

    Raises:
        EcgChatError: there are no recordings to train on or to validate on, or none can be read.
    """
    used = manifest[manifest["split"].isin(["train", "validation"])].reset_index(drop=True)
    for split in ("train", "validation"):
        if not (used["split"] == split).any():
            raise EcgChatError(f"the manifest has no record whose split is {split!r}; expected some. Split it again.")
    made_by: dict[str, object] = {"records": used["record"].tolist(), "front_end": str(config)}
    if not _is_made_by(folder, made_by):
        _write_windows(used, config, folder, made_by, tell)
    windows = torch.from_numpy(np.load(folder / "windows.npy", mmap_mode="c"))  # copy on write: the file stays
    numbers = torch.from_numpy(np.load(folder / "numbers.npy"))
    read = ~np.isnan(numbers[:, -1].numpy())  # the last column says whether the recording could be read
    if not read.any():
        raise EcgChatError(f"none of the {len(used)} recordings can be read; the first is {used['path'].iloc[0]}")
    english = np.where(used["language"] == "en", used["report"], "")
    splits = np.where(read, used["split"], "unreadable")
    return Records(windows, numbers[:, :-1], list(used["statements"]), list(english), list(splits))


def _is_made_by(folder: Path, made_by: dict[str, object]) -> bool:
    note = folder / "windows.json"
    if not note.is_file():
        return False
    try:
        return json.loads(note.read_text(encoding="utf-8")) == made_by
    except ValueError:
        return False


def _write_windows(
    manifest: Manifest, config: EcgEncoderConfig, folder: Path, made_by: dict[str, object], tell: Callable[[str], None]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "windows.json").unlink(missing_ok=True)  # comes last: without it nothing here counts
    shape = (len(manifest), 12, config.samples)
    windows = np.lib.format.open_memmap(folder / "windows.npy", "w+", np.float16, shape)
    numbers = np.full((len(manifest), len(NUMBERS) + 1), np.nan, dtype=np.float32)
    for row, path in enumerate(tqdm(manifest["path"], desc="recordings", unit="record", disable=None)):
        try:
            one = measured_windows([read_any(path)], config)
        except RecordError as error:
            tell(f"left out: {error}")
            continue
        windows[row] = one.ecg[0].numpy()
        numbers[row] = [*one.numbers[0].tolist(), 1.0]
    windows.flush()
    np.save(folder / "numbers.npy", numbers)
    temporary = folder / "windows.json.part"
    temporary.write_text(json.dumps(made_by), encoding="utf-8")
    os.replace(temporary, folder / "windows.json")


def texts_of(records: Records, rows: Sequence[int], seed: int) -> list[list[str]]:
    """Return the texts of each row: its report, and several wordings of its statements."""
    out = []
    for row in rows:
        said, report = records.statements[row], records.reports[row]
        ours = wordings(said, WORDINGS, KEEP, seed + row) if said else []
        out.append([*([report] if report else []), *ours])
    return out


def keys_of(records: Records, rows: Sequence[int]) -> list[Hashable]:
    """Return what each row's report says: the set of its statements, or the text where there are none."""
    return [frozenset(code for code, _ in records.statements[row]) or records.reports[row] for row in rows]


def build_pairs(records: Records, profile: TrainProfile, seed: int, cache: Path) -> tuple[EcgCoca, PairedEcgs]:
    """Return an untrained model and the pairs of the training split."""
    rows = records.rows("train")
    if not rows:
        raise EcgChatError("no training record has a report or a statement: there is nothing to pair its ECG with")
    texts = texts_of(records, rows, seed)
    encoder = ReportEncoder(profile.text, cache=cache)
    model = build_model(texts, RecipeConfig(seed=seed, model=profile.model), encoder)
    phrases, present = single_statements([records.statements[row] for row in rows], LEAST)
    whole = len(rows) == len(records.windows)
    pairs = PairedEcgs(
        records.windows if whole else _Rows(records.windows, rows),  # type: ignore[arg-type]
        texts,
        model,
        keys=keys_of(records, rows),
        numbers=records.numbers[rows],
        phrases=phrases,
        present=present if phrases else None,
    )
    return model, pairs


@dataclass(frozen=True)
class _Rows:
    """Some rows of a tensor, looked up when they are drawn: a memory-mapped file is read batch by batch."""

    tensor: torch.Tensor
    rows: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: list[int]) -> torch.Tensor:
        return self.tensor[[self.rows[place] for place in places]]


def validation(records: Records, seed: int, tell: Callable[[str], None]) -> Callable[[EcgCoca], float]:
    """Return what chooses the step, `step_value` on the validation split.

    Raises:
        EcgChatError: no validation record has a report or a statement.
    """
    rows = records.rows("validation")[:VALIDATED]
    if len(rows) < 2:
        raise EcgChatError("fewer than two validation records have a report or a statement; expected some to choose on")
    groups = [superclasses(code for code, _ in records.statements[row]) for row in rows]
    labels = np.array([[name in group for name in SUPERCLASSES] for group in groups], dtype=np.int8)
    said = [texts[0] for texts in texts_of(records, rows, seed)]
    texts = [text + ending for text, ending in zip(said, endings(records.numbers[rows]), strict=True)]

    def validate(model: EcgCoca) -> float:
        found = step_value(model, records.windows[rows], labels, texts)
        tell(
            f"validation ({len(rows)} records): zero-shot macro-AUC {found['zero_shot_auc']:.3f}, "
            f"recall at 1 {found['recall_at_1']:.3f}"
        )
        return found["value"]

    return validate


def run_training(
    model: EcgCoca,
    pairs: PairedEcgs,
    records: Records,
    config: TrainConfig,
    out: Path,
    *,
    tell: Callable[[str], None],
    tensorboard: bool = False,
) -> TrainResult:
    """Train, with variations of each batch, and keep the best step by `validation` in `out/best`."""
    return train_coca(
        model,
        pairs,
        config,
        folder=out,
        augment=partial(vary, fs=model.config.encoder.fs),
        validate=validation(records, config.seed, tell),
        tensorboard=tensorboard,
    )
