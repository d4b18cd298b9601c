"""What the mini chat model learns from: recordings, what is known about them, and the training sequences made of it.

The real ones are PTB-XL's development records in the folder named by ECGCHAT_REAL_DATA. Taught in: 12 §6.
"""

from __future__ import annotations

import itertools
import json
import os
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ecgchat_lib.chat.batches import Example, batch_order, sequence_lengths
from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.reader import FindingReader, fit_reader, reader_features, signs_line
from ecgchat_lib.chat.spelling import Spelling, with_words
from ecgchat_lib.chat.template import Encoded, encode, opening, pack
from ecgchat_lib.chat.train import TrainConfig
from ecgchat_lib.chat.train_state import write_tensors
from ecgchat_lib.coca.embed import encoder_tokens
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.coca.preprocess import front_end, recording_windows
from ecgchat_lib.datasets.cpsc2018 import load_real_sample
from ecgchat_lib.datasets.manifest import Manifest, make_manifest
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.ecg.measure import Measurements, measure
from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.evaluate.mini_data import processed_signals, read_real
from ecgchat_lib.instruct.build import Turn, finding_weights, questions_about
from ecgchat_lib.instruct.facts import check_facts
from ecgchat_lib.instruct.findings import FINDINGS, presence
from ecgchat_lib.instruct.measured import from_row, to_row
from ecgchat_lib.instruct.wording import measured_line

Z_SCORE_MV = 0.15  # a lead's typical deviation; gives z-scored records a size that the measuring rules can work with
GROUNDINGS: Mapping[frozenset[str], float] = {
    frozenset({"tokens"}): 0.5,
    frozenset({"tokens", "measurements"}): 0.25,
    frozenset({"tokens", "measurements", "labels"}): 0.25,
}
MEASURED_KINDS = ("interval", "axis")  # can't be answered without the line of measured values
STAGE1 = TrainConfig(steps=20, batch=1, learning_rate=2e-4)
STAGE2 = TrainConfig(steps=500, batch=1, learning_rate=1e-3, projector_rate=5e-4)


@dataclass(frozen=True)
class RecipeConfig:
    """What the results depend on.

    Attributes:
        synthetic: synthetic ECGs beside the real ones.
        synthetic_weight: how often a synthetic ECG is drawn, compared with a real one with the same findings.
        spelling_steps: steps that teach the projector to spell, before stage 1.
        spelling_noise: what is added to the ECG tokens in these steps, in parts of their deviation.
        reader_strength: inverse of the reader's regularization.
        questions: most questions in one packed tree.
        presence_questions: most of them that ask whether a finding is there.
        rounds: turns of a dialogue.
        dialogue_share: share of the sequences that are dialogues instead of trees.
        all_right: first steps of stage 2, in which every known finding is spelled right.
        fade: steps after these in which that goes down to none.
        rank: LoRA's rank.
        stage1: settings of stage 1, the projector alone.
        stage2: settings of stage 2, projector and LoRA.
        seed: of everything random.
    """

    synthetic: int = 4000
    synthetic_weight: float = 0.3
    spelling_steps: int = 700
    spelling_noise: float = 0.4
    reader_strength: float = 0.01
    questions: int = 8
    presence_questions: int = 5
    rounds: int = 5
    dialogue_share: float = 0.2
    all_right: int = 40
    fade: int = 160
    rank: int = 8
    stage1: TrainConfig = STAGE1
    stage2: TrainConfig = STAGE2
    seed: int = 7


@dataclass
class Material:
    """Recordings as the recipe needs them, one row each.

    Attributes:
        manifest: real training and validation records, then synthetic ones (split "train").
        tokens: (n, ecg tokens, width) from the encoder.
        measurements: record name → what was measured.
        signs: the reader's line for each row; empty: prompts go without.
    """

    manifest: Manifest
    tokens: torch.Tensor
    measurements: dict[str, Measurements]
    signs: list[str] = field(default_factory=list)

    def measured(self, row: int) -> Measurements:
        """Return what was measured on a row."""
        return self.measurements[self.manifest["record"].iloc[row]]

    def lines(self, row: int, grounding: Iterable[str]) -> list[str]:
        """Return what the prompt says about a row in words, where `grounding` has "measurements" or "labels"."""
        given = set(grounding)
        said = [measured_line(self.measured(row))] if "measurements" in given else []
        return said + ([self.signs[row]] if "labels" in given and self.signs else [])

    def rows(self, split: str) -> list[int]:
        """Return the row numbers of one split."""
        return [int(k) for k in np.flatnonzero(self.manifest["split"] == split)]


def is_synthetic(manifest: Manifest) -> np.ndarray:
    """Return which rows are synthetic ECGs (n,)."""
    return np.asarray(manifest["record"].str.startswith("synthetic-"), dtype=bool)


COLUMNS = ("record", "path", "patient", "split", "report", "statements", "language")
ROWS, TOKENS = "rows.jsonl", "tokens.safetensors"


def read_material(real: Path, encoder: EcgCoca, config: RecipeConfig, encoder_sha256: str, work: Path) -> Material:
    """Read, measure and encode PTB-XL's folds 1–9 and the synthetic ECGs (some minutes), or take them from `work`.

    Args:
        real: the folder that holds `ptbxl/`.
        encoder: the mini ECG-CoCa.
        config: how many synthetic ones, and the seed.
        encoder_sha256: hash of the encoder's weights.
        work: where the material is kept for the next call with the same encoder, count and seed.

    Raises:
        MissingPartError: a file of the real data is missing.
        EcgChatError: what is kept is damaged.
    """
    made_of = json.dumps([encoder_sha256, config.synthetic, config.seed])
    if (work / TOKENS).is_file():
        material, found = _kept_material(work)
        if found == made_of:
            return material
    manifest, windows = read_real(real / "ptbxl", encoder.config.encoder, measured=False)
    measurements = _measure_real(real / "ptbxl", manifest)
    rows, parts, made = _synthetic(config, encoder)
    real_rows: list[dict[str, Any]] = manifest[list(COLUMNS)].to_dict("records")  # type: ignore[assignment]
    tokens = encoder_tokens(torch.cat([windows.ecg.float(), *parts]), encoder)
    material = Material(make_manifest(real_rows + rows), tokens, measurements | made)
    keep_material(material, work, made_of)
    return _kept_material(work)[0]  # what a later call gets: float16 tokens


def keep_material(material: Material, work: Path, made_of: str) -> None:
    """Write material to a folder; the tokens, in float16, come last, so that a folder without them is unfinished."""
    work.mkdir(parents=True, exist_ok=True)
    (work / TOKENS).unlink(missing_ok=True)
    temporary = work / f".{ROWS}.part"
    with temporary.open("w", encoding="utf-8") as file:
        for row in material.manifest[list(COLUMNS)].to_dict("records"):
            measured = to_row(material.measurements[row["record"]])
            file.write(json.dumps({**row, "measured": measured}, ensure_ascii=False) + "\n")
    os.replace(temporary, work / ROWS)
    write_tensors(work / TOKENS, {"tokens": material.tokens.half()}, {"state": made_of})


def _kept_material(work: Path) -> tuple[Material, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(work / TOKENS, "pt") as file:
            tokens, made_of = file.get_tensor("tokens").float(), file.metadata()["state"]
        rows = [json.loads(line) for line in (work / ROWS).read_text(encoding="utf-8").splitlines()]
        measured = {row["record"]: from_row(row.pop("measured")) for row in rows}
        for row in rows:
            row["statements"] = tuple((str(code), float(likelihood)) for code, likelihood in row["statements"])
        if len(rows) != len(tokens):
            raise ValueError(f"{len(rows)} rows for {len(tokens)} recordings")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise EcgChatError(
            f"{work}: its material can't be read ({error}). Delete the folder to make it again"
        ) from None
    return Material(make_manifest(rows), tokens, measured), str(made_of)


def _measure_real(folder: Path, manifest: Manifest) -> dict[str, Measurements]:
    """Measure each record, the raw one where there is one; axis and heights mean nothing on z-scored ones."""
    index = pd.read_csv(folder / "index.csv")
    index["record"] = [f"{number:05d}" for number in index["ecg_id"]]
    index = index[index["record"].isin(set(manifest["record"]))]
    processed = processed_signals(folder / "processed_125hz.npy.xz")
    measured = {}
    with tempfile.TemporaryDirectory() as place:
        with tarfile.open(folder / "raw_500hz_wfdb.tar.xz") as archive:
            archive.extractall(place, filter="data")
        base = next(Path(place).rglob("records500")).parent
        for row in tqdm(index.to_dict("records"), desc="measuring", unit="record", disable=None):
            if row["has_raw500"]:
                measured[row["record"]] = measure(read_recording(base / row["raw_path"]))
            else:
                recording = Recording(row["record"], processed[row["processed_row"]] * np.float32(Z_SCORE_MV), 125.0)
                measured[row["record"]] = without_heights(measure(recording))
    return measured


def without_heights(measurements: Measurements) -> Measurements:
    """Return measurements without what needs millivolts: the axis and the heights of P, R and T."""
    names = ("axis_deg", "p_mv", "r_mv", "t_mv")
    reasons = measurements.reasons | dict.fromkeys(names, "the leads were scaled one by one")
    return replace(measurements, **dict.fromkeys(names, float("nan")), reasons=reasons)  # type: ignore[arg-type]


def _synthetic(
    config: RecipeConfig, encoder: EcgCoca
) -> tuple[list[dict[str, Any]], list[torch.Tensor], dict[str, Measurements]]:
    rows: list[dict[str, Any]] = []
    windows, measured = [], {}
    for number in tqdm(range(config.synthetic), desc="synthetic", unit="record", disable=None):
        made = synthesize(config.seed * 1_000_000 + 500_000 + number)
        name = f"synthetic-{number:05d}"
        recording = Recording(name, made.signal, made.fs)
        rows.append(
            {
                "record": name,
                "path": name,
                "patient": name,
                "split": "train",
                "report": made.report,
                "statements": made.statements,
                "language": "en",
            }
        )
        windows.append(front_end(made.signal[None], encoder.config.encoder, fs=made.fs))
        measured[name] = measure(recording)
    return rows, windows, measured


def row_chances(manifest: Manifest, synthetic_weight: float) -> np.ndarray:
    """Return how likely each recording is drawn: the rarer its rarest finding, the likelier (n,), sum 1.

    Half of PTB-XL is normal; with a few hundred steps, drawing evenly would show most findings a handful of times.
    """
    names = [[f.name for f in FINDINGS if presence(f, statements)] for statements in manifest["statements"]]
    counts = Counter(name for items in names for name in items)
    rarity = np.array([max((counts[name] ** -0.5 for name in items), default=0.0) for items in names])
    chances = rarity * np.where(is_synthetic(manifest), synthetic_weight, 1.0)
    return np.asarray(chances / chances.sum())


def presence_table(manifest: Manifest) -> torch.Tensor:
    """Return which recording has which finding, (n, findings): 1 present, 0 absent, NaN unsaid."""
    rows = [[presence(finding, statements) for finding in FINDINGS] for statements in manifest["statements"]]
    return torch.tensor([[float("nan") if there is None else float(there) for there in row] for row in rows])


def sample_material(encoder: EcgCoca) -> Material:
    """Return the ten real sample recordings (CPSC2018), which are never trained on."""
    manifest = load_real_sample()
    recordings = [read_recording(path) for path in manifest["path"]]
    measured = {name: measure(item) for name, item in zip(manifest["record"], recordings, strict=True)}
    tokens = encoder_tokens(recording_windows(recordings, encoder.config.encoder), encoder)
    return Material(manifest, tokens, measured)


def known_rates(material: Material) -> torch.Tensor:
    """Return the measured heart rates (n,), NaN where there is none to go by."""
    return torch.tensor([material.measured(row).judged("heart_rate_bpm") for row in range(len(material.manifest))])


def train_reader(material: Material, config: RecipeConfig) -> FindingReader:
    """Fit the reader on the training rows and write every row's line into `material.signs`.

    The training rows get the line of a reader that didn't see them, so that the language model learns how far the
    lines can be trusted.
    """
    rows = material.rows("train")
    features = reader_features(material.tokens, [material.measured(row) for row in range(len(material.manifest))])
    train = material.manifest.iloc[rows]
    reader, left_out = fit_reader(
        features[rows],
        presence_table(train),
        train["patient"].tolist(),
        strength=config.reader_strength,
        trusted=~is_synthetic(train),
    )
    with torch.no_grad():
        scores = reader(features)
    scores[rows] = left_out
    material.signs = [signs_line(row) for row in scores]
    return reader


def turns_of(
    material: Material, row: int, weights: Mapping[str, float], *, seed: int, measured_kinds: bool = True
) -> list[Turn]:
    """Return the checked questions about one recording.

    Args:
        material: the recordings.
        row: which one.
        weights: from `finding_weights`.
        seed: of the questions.
        measured_kinds: whether intervals and the axis are asked for.
    """
    item, measured = material.manifest.iloc[row], material.measured(row)
    turns = questions_about(item["record"], item["statements"], measured, weights, seed=seed)
    turns = [turn for turn in turns if measured_kinds or turn.kind not in MEASURED_KINDS]
    for turn in turns:
        check_facts(turn.answer, item["statements"], measured, where=f"{item['record']}, {turn.kind}")
    return turns


def make_examples(
    material: Material, chat: EcgChat, count: int, config: RecipeConfig, *, seed: int
) -> tuple[list[Example], list[int]]:
    """Draw training recordings and turn them into sequences: trees of single questions, and some dialogues.

    Args:
        material: the recordings.
        chat: for its tokenizer and template.
        count: sequences.
        config: lengths, and weights.
        seed: of what is drawn.

    Returns:
        The sequences, whose ECG is number k for the k-th of them, and the recordings' row numbers.
    """
    rows = material.rows("train")
    train = material.manifest.iloc[rows]
    weights = finding_weights(train)
    rng = np.random.default_rng(seed)
    examples, drawn = [], []
    groundings = list(GROUNDINGS)
    for number, place in enumerate(rng.choice(len(rows), size=count, p=row_chances(train, config.synthetic_weight))):
        row = rows[int(place)]
        given = groundings[int(rng.choice(len(groundings), p=list(GROUNDINGS.values())))]
        chosen = _choose(material, row, weights, given, config, seed=seed + 2 * number)
        mixed = [chosen[int(k)] for k in rng.permutation(len(chosen))]
        dialogue = rng.random() < config.dialogue_share
        conversations = [mixed[: config.rounds]] if dialogue else [[turn] for turn in mixed]
        examples.append(Example(encode_turns(material.lines(row, given), conversations, chat), (number,)))
        drawn.append(row)
    return examples, drawn


def _choose(
    material: Material,
    row: int,
    weights: Mapping[str, float],
    given: frozenset[str],
    config: RecipeConfig,
    *,
    seed: int,
) -> list[Turn]:
    """Return at most `config.questions` different questions, those for the presence of a finding first."""
    measured_kinds = "measurements" in given
    found = [
        turn
        for number in (0, 1)
        for turn in turns_of(material, row, weights, seed=seed + number, measured_kinds=measured_kinds)
    ]
    turns = list({(turn.kind, turn.about): turn for turn in found}.values())
    asked = [turn for turn in turns if turn.kind == "presence"]
    order = np.random.default_rng(seed).permutation(len(asked))
    asked = [asked[int(k)] for k in order[: config.presence_questions]]
    others = [turn for turn in turns if turn.kind != "presence"]
    order = np.random.default_rng(seed + 1).permutation(len(others))
    return asked + [others[int(k)] for k in order[: max(1, config.questions - len(asked))]]


def encode_turns(lines: Sequence[str], conversations: Iterable[Sequence[Turn]], chat: EcgChat) -> Encoded:
    """Encode conversations about one recording, of which the prompt says `lines`; several are packed into a tree."""
    start = opening(lines)
    encoded = []
    for turns in conversations:
        pairs: list[tuple[str, str | None]] = [
            (start + turn.question if number == 0 else turn.question, turn.answer) for number, turn in enumerate(turns)
        ]
        encoded.append(encode(pairs, chat.tokenizer, chat.template))
    return encoded[0] if len(encoded) == 1 else pack(encoded)


def fading_table(
    material: Material, tokens: torch.Tensor, drawn: Sequence[int], spelling: Spelling, config: RecipeConfig
) -> torch.Tensor:
    """Return the ECG tokens of stage 2's examples (examples, ecg tokens, width + 1), with the words spelled right.

    In the first `all_right` steps all known findings, and the rate, are spelled right; then each one by chance, less
    and less; after `fade` more steps none.

    Args:
        material: for what is right.
        tokens: (recordings, ecg tokens, width): the recordings' own, or exchanged ones for the twin.
        drawn: the recording of each example, from `make_examples`.
        spelling: the layout.
        config: the schedule, and the seed.
    """
    rows = list(drawn)
    words = spelling.words(presence_table(material.manifest.iloc[rows]), known_rates(material)[rows])
    step = torch.arange(len(rows))[:, None] // per_step(config.stage2)
    share = (1 - (step - config.all_right) / max(1, config.fade)).clamp(0, 1)
    generator = torch.Generator().manual_seed(config.seed)
    right = torch.rand(len(rows), len(FINDINGS) + 1, generator=generator) < share
    return with_words(tokens[rows], spelling.shown(words, right))


def per_step(config: TrainConfig) -> int:
    """Return how many examples an optimizer step takes."""
    return config.batch * config.accumulate


def in_order(examples: Sequence[Example], ecg_tokens: int, config: TrainConfig) -> list[Example]:
    """Put examples where a training that shuffles them takes the k-th one in step k.

    Raises:
        EcgChatError: there isn't exactly one example for each place of a step.
    """
    if len(examples) != config.steps * per_step(config) or config.group_lengths:
        raise EcgChatError(f"{len(examples)} examples for {config.steps} steps: expected one for each place, ungrouped")
    order = itertools.chain.from_iterable(
        batch_order(sequence_lengths(examples, ecg_tokens), config.batch, config.seed)
    )
    out = list(examples)
    for example, place in zip(examples, order, strict=False):
        out[place] = example
    return out


def exchanged(material: Material, seed: int) -> torch.Tensor:
    """Return the ECG tokens with those of the training recordings shuffled among them: what the twin learns from."""
    tokens = material.tokens.clone()
    rows = torch.tensor(material.rows("train"))
    generator = torch.Generator().manual_seed(seed)
    tokens[rows] = material.tokens[rows[torch.randperm(len(rows), generator=generator)]]
    return tokens
