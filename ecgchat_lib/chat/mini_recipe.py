"""The recipe of the mini chat model that the course ships: material, training in two stages, and its figures.

`python -m ecgchat_lib.chat.mini_recipe --out FOLDER` reads the real recordings in the folder named by ECGCHAT_REAL_DATA
and the mini ECG-CoCa, trains, evaluates on fold 9 and on the ten real sample recordings, and writes a chat folder with
its card and results. It isn't the paper's recipe, which has a model a hundred times larger and GPT-written
conversations. Taught in: 12 §5.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ecgchat_lib.chat.checkpoint import load_chat_model, save_chat
from ecgchat_lib.chat.evaluation import Outcome, evaluate_answers, summarize
from ecgchat_lib.chat.language_model import LanguageModel, load_language_model
from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.projector import Projector
from ecgchat_lib.chat.reader import FindingReader, fit_reader, reader_features, signs_line
from ecgchat_lib.chat.template import Encoded, encode, get_template, pack
from ecgchat_lib.chat.train import Example, TrainConfig, add_lora, train_chat, train_projector, warm_start
from ecgchat_lib.coca.checkpoint import MINI_FOLDER as ENCODER_FOLDER
from ecgchat_lib.coca.checkpoint import WEIGHTS, load_coca, read_manifest
from ecgchat_lib.coca.embed import encoder_tokens
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.coca.preprocess import front_end, recording_windows
from ecgchat_lib.datasets.cpsc2018 import load_real_sample
from ecgchat_lib.datasets.manifest import Manifest, make_manifest
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.ecg.measure import Measurements, measure
from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.errors import MissingPartError
from ecgchat_lib.evaluate.mini_data import processed_signals, read_real
from ecgchat_lib.evaluate.mini_recipe import split_fold_nine
from ecgchat_lib.instruct.build import Turn, finding_weights, questions_about
from ecgchat_lib.instruct.facts import check_facts
from ecgchat_lib.instruct.findings import FINDINGS, get_finding, presence
from ecgchat_lib.instruct.wording import measured_line
from ecgchat_lib.paths import data_folder

Z_SCORE_MV = 0.15  # a lead's typical deviation; gives z-scored records a size that the measuring rules can work with
CPSC_FINDINGS = ("afib", "av_block", "lbbb", "rbbb", "pac", "pvc", "st_depression")
STAGE1 = TrainConfig(steps=20, batch=1, learning_rate=1e-3)
STAGE2 = TrainConfig(steps=220, batch=1, learning_rate=1e-3, projector_rate=3e-4)


@dataclass(frozen=True)
class RecipeConfig:
    """What the results depend on.

    Attributes:
        synthetic: synthetic ECGs beside the real ones.
        synthetic_weight: how often a synthetic ECG is drawn, compared with a real one with the same findings.
        warm_start: steps that place the CLS token near the words of what the ECG shows, before stage 1.
        warm_patches: patch tokens that the warm start places beside CLS.
        reader_strength: inverse of the reader's regularization.
        questions: most questions in one packed tree.
        rounds: turns of a dialogue.
        dialogue_share: share of the sequences that are dialogues instead of trees.
        rank: LoRA's rank.
        stage1: settings of stage 1, the projector alone.
        stage2: settings of stage 2, projector and LoRA.
        generated: held-out recordings whose rhythm and rate answers are generated; the yes/no questions use all.
        seed: of everything random.
    """

    synthetic: int = 700
    synthetic_weight: float = 0.3
    warm_start: int = 400
    warm_patches: int = 16
    reader_strength: float = 0.01
    questions: int = 7
    rounds: int = 5
    dialogue_share: float = 0.25
    rank: int = 8
    stage1: TrainConfig = STAGE1
    stage2: TrainConfig = STAGE2
    generated: int = 200
    seed: int = 7


@dataclass
class Material:
    """Recordings as the recipe needs them, one row each.

    Attributes:
        manifest: real training and validation records, then synthetic ones (split "train").
        windows: (n, 12, samples) for the encoder.
        measurements: record name → what was measured.
        signs: the reader's line for each row; empty: prompts go without.
    """

    manifest: Manifest
    windows: torch.Tensor
    measurements: dict[str, Measurements]
    signs: list[str] = field(default_factory=list)

    def lines(self, row: int) -> str:
        """Return what the prompt says about a row in words."""
        line = measured_line(self.measurements.get(self.manifest["record"].iloc[row]))
        return f"{line}\n{self.signs[row]}" if self.signs else line

    def rows(self, split: str) -> list[int]:
        """Return the row numbers of one split."""
        return [int(k) for k in np.flatnonzero(self.manifest["split"] == split)]


def read_material(real: Path, encoder: EcgCoca, config: RecipeConfig) -> Material:
    """Read and measure PTB-XL's folds 1–9 and make the synthetic ECGs (some minutes).

    Raises:
        MissingPartError: a file of the real data is missing.
    """
    manifest, windows = read_real(real / "ptbxl", encoder.config.encoder, measured=False)
    measurements = _measure_real(real / "ptbxl", manifest)
    rows, parts, made = _synthetic(config, encoder)
    columns = ["record", "path", "patient", "split", "report", "statements", "language"]
    real_rows: list[dict[str, Any]] = manifest[columns].to_dict("records")  # type: ignore[assignment]
    return Material(make_manifest(real_rows + rows), torch.cat([windows.ecg.float(), *parts]), measurements | made)


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


def make_examples(
    material: Material, chat: EcgChat, rows: Sequence[int], count: int, config: RecipeConfig
) -> list[Example]:
    """Draw recordings and turn them into training sequences: trees of single questions, and some dialogues.

    Args:
        material: the recordings.
        chat: for its tokenizer and template.
        rows: the recordings to draw from.
        count: sequences.
        config: lengths, weights, and the seed.
    """
    weights = finding_weights(material.manifest.iloc[list(rows)])
    rng = np.random.default_rng(config.seed)
    chances = row_chances(material.manifest.iloc[list(rows)], config.synthetic_weight)
    examples: list[Example] = []
    for number, place in enumerate(rng.choice(len(rows), size=count, p=chances)):
        row = rows[int(place)]
        turns = turns_of(material, row, weights, seed=config.seed + number)
        chosen = [turns[int(k)] for k in rng.permutation(len(turns))]
        if rng.random() < config.dialogue_share:
            encoded = encode_turns(material, row, [chosen[: config.rounds]], chat)
        else:
            encoded = encode_turns(material, row, [[turn] for turn in chosen[: config.questions]], chat)
        examples.append(Example(encoded, (row,)))
    return examples


def row_chances(manifest: Manifest, synthetic_weight: float) -> np.ndarray:
    """Return how likely each recording is drawn: the rarer its rarest finding, the likelier (n,), sum 1.

    Half of PTB-XL is normal; with a few hundred steps, drawing evenly would show most findings a handful of times.
    """
    names = [[f.name for f in FINDINGS if presence(f, statements)] for statements in manifest["statements"]]
    counts = Counter(name for items in names for name in items)
    rarity = np.array([max((counts[name] ** -0.5 for name in items), default=0.0) for items in names])
    synthetic = manifest["record"].str.startswith("synthetic-").to_numpy()
    chances = rarity * np.where(synthetic, synthetic_weight, 1.0)
    return np.asarray(chances / chances.sum())


def presence_table(manifest: Manifest) -> torch.Tensor:
    """Return which recording has which finding, (n, findings): 1 present, 0 absent, NaN unsaid."""
    rows = [[presence(finding, statements) for finding in FINDINGS] for statements in manifest["statements"]]
    return torch.tensor([[float("nan") if there is None else float(there) for there in row] for row in rows])


def turns_of(material: Material, row: int, weights: Mapping[str, float], *, seed: int) -> list[Turn]:
    """Return the checked questions about one recording."""
    item = material.manifest.iloc[row]
    measured = material.measurements.get(item["record"])
    turns = questions_about(item["record"], item["statements"], measured, weights, seed=seed)
    for turn in turns:
        check_facts(turn.answer, item["statements"], measured, where=f"{item['record']}, {turn.kind}")
    return turns


def encode_turns(material: Material, row: int, conversations: Iterable[Sequence[Turn]], chat: EcgChat) -> Encoded:
    """Encode conversations about one recording; several are packed into a tree."""
    start = f"<ecg>\n{material.lines(row)}\n"
    encoded = []
    for turns in conversations:
        pairs: list[tuple[str, str | None]] = [
            (start + turn.question if number == 0 else turn.question, turn.answer) for number, turn in enumerate(turns)
        ]
        encoded.append(encode(pairs, chat.tokenizer, chat.template))
    return encoded[0] if len(encoded) == 1 else pack(encoded)


def build_chat(language_model: LanguageModel, width: int, seed: int) -> EcgChat:
    """Return an untrained chat model: the language model and a fresh projector for ECG tokens of `width`."""
    torch.manual_seed(seed)
    embeddings = language_model.model.get_input_embeddings().weight
    projector = Projector(width, embeddings.shape[1])
    projector.scale_to(embeddings)
    projector.to(embeddings.device)
    template = get_template("vicuna_v1" if language_model.name.startswith("vicuna") else "smollm2")
    return EcgChat(language_model.model, language_model.tokenizer, projector, template)


def sample_material(encoder: EcgCoca) -> Material:
    """Return the ten real sample recordings (CPSC2018), which are never trained on."""
    manifest = load_real_sample()
    recordings = [read_recording(path) for path in manifest["path"]]
    measured = {name: measure(item) for name, item in zip(manifest["record"], recordings, strict=True)}
    return Material(manifest, recording_windows(recordings, encoder.config.encoder), measured)


def run_recipe(real: Path, out: Path, config: RecipeConfig) -> dict[str, Any]:
    """Train, evaluate and save the mini; return the results."""
    encoder_folder = data_folder() / ENCODER_FOLDER
    encoder = load_coca(encoder_folder)
    digest = read_manifest(encoder_folder)["sha256"][WEIGHTS]
    material = read_material(real, encoder, config)
    tokens = encoder_tokens(material.windows, encoder)
    lm = load_language_model(quantized=False)
    chat = build_chat(lm, encoder.config.encoder.width, config.seed)
    rows = material.rows("train")
    phrases = [finding.phrase for finding in FINDINGS]
    targets = presence_table(material.manifest.iloc[rows])
    chat.reader = train_reader(material, tokens, rows, targets, config)
    warm = warm_start(
        chat, tokens[rows], targets, phrases, patches=config.warm_patches, steps=config.warm_start, seed=config.seed
    )
    needed = config.stage1.steps * config.stage1.batch + config.stage2.steps * config.stage2.batch
    examples = make_examples(material, chat, rows, needed, config)
    print(
        f"{len(examples)} sequences, {sum(len(e.encoded.ids) + 100 for e in examples) / len(examples):.0f} tokens each"
    )
    times = {}
    started = time.perf_counter()
    split = config.stage1.steps * config.stage1.batch
    stage1, stage2 = replace(config.stage1, seed=config.seed), replace(config.stage2, seed=config.seed + 1)
    first = train_projector(chat, examples[:split], tokens, stage1, each_step=_say("stage 1"))
    times["stage1_seconds_per_step"] = (time.perf_counter() - started) / config.stage1.steps
    add_lora(chat, rank=config.rank, alpha=2 * config.rank, dropout=0.0, seed=config.seed)  # each is seen once
    middle = time.perf_counter()
    second = train_chat(chat, examples[split:], tokens, stage2, each_step=_say("stage 2"))
    times["stage2_seconds_per_step"] = (time.perf_counter() - middle) / config.stage2.steps
    times["training_seconds"] = time.perf_counter() - started
    encoder_origin = {"name": ENCODER_FOLDER.name, "sha256": digest}
    save_chat(chat, out, lm, encoder=encoder_origin, about={"recipe": _plain(config)})
    chat.language_model = chat.language_model.merge_and_unload()
    results: dict[str, Any] = {
        "recipe": _plain(config),
        "encoder": encoder_origin,
        "data": _counts(material),
        "loss": {"warm_start": _smooth(warm), "stage1": _smooth(first), "stage2": _smooth(second)},
        "times": times,
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        **evaluate_mini(chat, encoder, material, tokens, config),
    }
    save_results(results)
    write_card(out, results)
    return results


def evaluate_again(real: Path, out: Path, config: RecipeConfig) -> dict[str, Any]:
    """Evaluate the saved mini once more; its training figures stay as they were recorded."""
    encoder_folder = data_folder() / ENCODER_FOLDER
    digest = read_manifest(encoder_folder)["sha256"][WEIGHTS]
    chat, _ = load_chat_model(out, encoder_sha256=digest)
    encoder = load_coca(encoder_folder)
    material = read_material(real, encoder, config)
    tokens = encoder_tokens(material.windows, encoder)
    recorded = json.loads(results_path().read_text(encoding="utf-8"))
    recorded["recipe"]["generated"] = config.generated
    results = {**recorded, **evaluate_mini(chat, encoder, material, tokens, config)}
    save_results(results)
    write_card(out, results)
    return results


def results_path() -> Path:
    """Return the file of the recorded results."""
    return data_folder() / "results" / "ecg-chat-mini.json"


def train_reader(
    material: Material, tokens: torch.Tensor, rows: Sequence[int], targets: torch.Tensor, config: RecipeConfig
) -> FindingReader:
    """Fit the reader on the training rows and write every row's line into `material.signs`.

    The training rows get the line of a reader that didn't see them, so that the language model learns how far the
    lines can be trusted.
    """
    names = material.manifest["record"]
    features = reader_features(tokens, [material.measurements[name] for name in names])
    real = ~names.iloc[list(rows)].str.startswith("synthetic-").to_numpy()
    patients = material.manifest["patient"].iloc[list(rows)].tolist()
    reader, left_out = fit_reader(
        features[list(rows)], targets, patients, strength=config.reader_strength, trusted=real
    )
    with torch.no_grad():
        scores = reader(features)
    scores[list(rows)] = left_out
    material.signs = [signs_line(row) for row in scores]
    return reader


def evaluate_mini(
    chat: EcgChat, encoder: EcgCoca, material: Material, tokens: torch.Tensor, config: RecipeConfig
) -> dict[str, Any]:
    """Evaluate on the reporting half of fold 9 and on the real sample, with controls.

    "own_ecg": as in use. "other_tokens": the ECG tokens of another recording, but the own words in the prompt.
    "other_ecg": another recording's tokens, and the signs that the reader reads from those. The measured values are
    always the recording's own. "reader_alone": yes where the own line of signs names the finding.
    """
    samples = sample_material(encoder)
    sample_tokens = encoder_tokens(samples.windows, encoder)
    out: dict[str, Any] = {}
    for name, source, rows, table in (
        ("fold9", material, split_fold_nine(material.manifest, config.seed)[1].tolist(), tokens),
        ("real_sample", samples, list(range(len(samples.manifest))), sample_tokens),
    ):
        weights = finding_weights(source.manifest.iloc[rows])
        asked = [turns_of(source, row, weights, seed=config.seed) for row in rows]
        if name == "real_sample":  # its nine labels say nothing about other findings
            asked = [[t for t in turns if t.kind != "presence" or t.about in CPSC_FINDINGS] for turns in asked]
        measured = [source.measurements[record] for record in source.manifest["record"].iloc[rows]]
        own, other = table[rows], table[np.roll(rows, 1)]
        assert chat.reader is not None
        signs, wrong_signs = chat.reader.read(own, measured), chat.reader.read(other, measured)
        for twin, ecg, lines in (
            ("own_ecg", own, signs),
            ("other_tokens", other, signs),
            ("other_ecg", other, wrong_signs),
        ):
            prompts = [f"{measured_line(item)}\n{line}" for item, line in zip(measured, lines, strict=True)]
            outcomes = evaluate_answers(chat, asked, prompts, ecg, generated=config.generated)
            out.setdefault(name, {})[twin] = summarize(outcomes, seed=config.seed)
            print(name, twin, json.dumps(out[name][twin]), flush=True)
        out[name]["reader_alone"] = summarize(_read_aloud(asked, signs), seed=config.seed)
    return out


def _read_aloud(asked: Sequence[Sequence[Turn]], signs: Sequence[str]) -> list[Outcome]:
    """Return the outcomes of a rule that only looks whether the line of signs names the finding."""
    return [
        Outcome(turn, get_finding(turn.about).phrase in line.removeprefix("Signs: ").split(", "))
        for turns, line in zip(asked, signs, strict=True)
        for turn in turns
        if turn.kind == "presence"
    ]


def save_results(results: Mapping[str, Any]) -> Path:
    """Write data/results/ecg-chat-mini.json."""
    path = results_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def write_card(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write the model card, README.md, from the results; every number in it is theirs."""
    recipe, data, times = results["recipe"], results["data"], results["times"]
    steps = f"stage 1 {recipe['stage1']['steps']}, stage 2 {recipe['stage2']['steps']} steps"
    path = folder / "README.md"
    text = f"""# ECG-Chat mini

A projector and LoRA adapters that let SmolLM2-135M-Instruct answer short questions about a 12-lead ECG. They belong to
the language model and the encoder (`{results["encoder"]["name"]}`) whose hashes stand in `manifest.json`, and refuse
others. **For teaching; no medical device. It is often wrong. Nobody must be treated by what it says.**

- License of these weights: CC BY 4.0, as the recordings they were trained on. Language model: SmolLM2-135M-Instruct,
  Apache-2.0, not included.
- Trained on {data["real_train"]} recordings of PTB-XL, folds 1–8 (Wagner et al. 2020, CC BY 4.0), drawn by rarity, and
  {data["synthetic_train"]} synthetic ones, drawn {recipe["synthetic_weight"]} times as often.
- Conversations: by rules from statements and measured values (`ecgchat_lib/instruct`); each checked against both.
- Recipe: `python -m ecgchat_lib.chat.mini_recipe`, seed {recipe["seed"]}; warm start {recipe["warm_start"]} steps,
  {steps} of one sequence of up to {recipe["questions"]} questions; LoRA rank {recipe["rank"]} on every linear layer
  but the head; float32.
- Time: {times["training_seconds"] / 60:.0f} minutes on one busy CPU core; a step of stage 2 took
  {times["stage2_seconds_per_step"]:.1f} s.

## Results

Reporting half of fold 9 (the encoder was chosen on the other half), and ten recordings of another dataset. Greedy
decoding. The prompt holds the ECG tokens, a line of measured values, and a line of signs that a linear reader reads
from the tokens and the measured values. Controls: *another's tokens* changes the ECG tokens only; *another's ECG*
changes the tokens and the signs read from them; *reader alone* says yes where the line names the finding. Each finding
is asked about as often where it is absent as where it is present; balanced accuracy is by the answer's first word.

**This half is not untouched.** No weights and no step were picked on it, but a first version without the reader was
scored on all of fold 9, this half included (balanced accuracy 0.54, n = 687); seeing that, the reader was added and the
settings were revised once. So the figures may be too good, by an amount that nobody measured; a fresh fold would tell.
The shipped weights came from this recipe run in pieces (the material read once and kept, the evaluation apart); the
whole command has not been repeated from start to end.

{_result_table(results)}

{_what_it_reads(results)}

## Limits

- Rate and intervals are copied from the measured values in the prompt; the model doesn't measure. Where these are
  wrong, so is the answer.
- It knows the findings of `ecgchat_lib/instruct/findings.py` and the wordings of `ecgchat_lib/instruct/wording.py`.
  Other questions get a fluent answer without ground, and it doesn't say that it doesn't know.
- Leads were scaled one by one: what needs millivolts (hypertrophy, low voltage) it can only guess from shapes.
- Trained on adults of one center, read in short recordings of 10 s. Pacemakers, children and rare rhythms are nearly
  absent.
- Statements of PTB-XL are partly unvalidated machine reports; the model repeats their habits.
"""
    temporary = path.with_name(".README.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _what_it_reads(results: Mapping[str, Any]) -> str:
    """Say in words whether exchanging the tokens alone hurts the yes/no answers by five points or more."""
    own, other = (results["fold9"][twin]["presence"]["balanced_accuracy"] for twin in ("own_ecg", "other_tokens"))
    if own - other >= 0.05:
        return "Exchanging the ECG tokens alone hurts: the language model reads them, beside the words about the ECG."
    return (
        "Exchanging the ECG tokens alone changes little: this language model goes by the words about the ECG, which\n"
        "the reader takes from the tokens and the measured values, and hardly by the spliced tokens themselves."
    )


def _result_table(results: Mapping[str, Any]) -> str:
    twins = ("own_ecg", "other_tokens", "other_ecg", "reader_alone")
    lines = [
        "| recordings | question | answers | own ECG | another's tokens | another's ECG | reader alone |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for key, name in (("fold9", "PTB-XL, fold 9"), ("real_sample", "CPSC2018, A0001–A0010")):
        for kind, figure, words in (
            ("presence", "balanced_accuracy", "is the finding there? (balanced accuracy)"),
            ("presence", "mean_over_these_findings", "the same, mean over findings with 5 or more of each"),
            ("rhythm", "accuracy", "rhythm: sinus, fibrillation or other (accuracy)"),
            ("rhythm", "mean_recall", "the same, mean of the recalls of the three"),
            ("rate", "within_5_per_minute", "rate within 5 per minute of the measured"),
        ):
            own = results[key]["own_ecg"].get(kind)
            if own is None or own[figure] is None:
                continue
            cells = [results[key][twin].get(kind, {}).get(figure) for twin in twins]
            shown = ["–" if cell is None else f"{cell:.3f}" for cell in cells]
            if figure == "balanced_accuracy":
                shown[0] += " ({:.3f} to {:.3f})".format(*own["interval_95"])
            lines.append(f"| {name} | {words} | {own['n']} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _counts(material: Material) -> dict[str, int]:
    synthetic = material.manifest["record"].str.startswith("synthetic-")
    train = material.manifest["split"] == "train"
    return {
        "real_train": int((train & ~synthetic).sum()),
        "synthetic_train": int(synthetic.sum()),
        "real_validation": int((material.manifest["split"] == "validation").sum()),
    }


def _plain(config: RecipeConfig) -> dict[str, Any]:
    return asdict(config)


def _smooth(losses: Sequence[float]) -> list[float]:
    """Return the means of ten equal parts of a loss curve."""
    return [round(float(np.mean(part)), 4) for part in np.array_split(np.asarray(losses), 10)]


def _say(stage: str) -> Any:
    started = time.perf_counter()

    def say(step: int, loss: float) -> None:
        if step % 10 == 0:
            print(f"{stage} step {step} loss {loss:.3f} after {time.perf_counter() - started:.0f} s", flush=True)

    return say


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the recipe from the command line.

    Raises:
        MissingPartError: ECGCHAT_REAL_DATA isn't set.
    """
    parser = argparse.ArgumentParser(description="Train the course's mini chat model.")
    parser.add_argument("--out", type=Path, default=data_folder() / "weights" / "ecg-chat-mini")
    parser.add_argument("--stage1", type=int, default=RecipeConfig.stage1.steps, help="optimizer steps of stage 1")
    parser.add_argument("--stage2", type=int, default=RecipeConfig.stage2.steps, help="optimizer steps of stage 2")
    parser.add_argument("--seed", type=int, default=RecipeConfig.seed)
    parser.add_argument("--evaluate-only", action="store_true", help="evaluate the saved weights again")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's own choice")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    folder = os.environ.get("ECGCHAT_REAL_DATA")
    if not folder:
        raise MissingPartError("ECGCHAT_REAL_DATA", "not set", "Set it to the folder that holds ptbxl/")
    config = replace(
        RecipeConfig(),
        stage1=replace(RecipeConfig.stage1, steps=chosen.stage1),
        stage2=replace(RecipeConfig.stage2, steps=chosen.stage2),
        seed=chosen.seed,
    )
    work = evaluate_again if chosen.evaluate_only else run_recipe
    work(Path(folder), chosen.out, config)


if __name__ == "__main__":
    main()
