"""The recipe of the mini chat model that the course ships: spelling, stage 1, stage 2, its twin, and its figures.

`python -m ecgchat_lib.chat.mini_recipe --work FOLDER` reads the real recordings in the folder named by
ECGCHAT_REAL_DATA and the mini ECG-CoCa, trains the model and its text-only twin, evaluates both on fold 9 and on the
ten real sample recordings, and writes a chat folder with its card and results. `--part` does one of these alone, so
that model and twin can train side by side; each part can be killed and goes on where it was. It isn't the paper's
recipe, which has a model a hundred times larger and GPT-written conversations. Taught in: 12 §6.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgchat_lib.chat.checkpoint import load_chat_model, save_chat, write_text
from ecgchat_lib.chat.language_model import load_language_model
from ecgchat_lib.chat.mini_card import write_card
from ecgchat_lib.chat.mini_data import (
    GROUNDINGS,
    Material,
    RecipeConfig,
    exchanged,
    fading_table,
    in_order,
    is_synthetic,
    known_rates,
    make_examples,
    per_step,
    presence_table,
    read_material,
    row_chances,
    train_reader,
)
from ecgchat_lib.chat.mini_evaluation import (
    answers_of,
    figures,
    mini_test_sets,
    outcomes_from_json,
    outcomes_to_json,
    spelled_well,
    template_answers,
)
from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.spelling import Reading, Spelling, train_spelling
from ecgchat_lib.chat.train import add_lora, train_chat, train_projector
from ecgchat_lib.chat.train_run import fresh_chat
from ecgchat_lib.coca.checkpoint import MINI_FOLDER as ENCODER_FOLDER
from ecgchat_lib.coca.checkpoint import WEIGHTS, load_coca, read_manifest
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.errors import EcgChatError, MissingPartError
from ecgchat_lib.evaluate.mini_recipe import split_fold_nine
from ecgchat_lib.instruct.findings import FINDINGS
from ecgchat_lib.paths import data_folder

PARTS = ("own", "twin", "evaluate")
SAVED, ABOUT, OUTCOMES = "saved", "about.json", "outcomes.json"


def train_part(real: Path, work: Path, part: str, config: RecipeConfig) -> Path:
    """Train the model ("own") or its twin, whose ECG tokens are another recording's; return the chat folder.

    Args:
        real: the folder that holds `ptbxl/`.
        work: where the material, states and results of all parts are kept.
        part: "own" or "twin".
        config: sizes, and the seed.

    Raises:
        EcgChatError: the part is finished, or was begun, with other settings.
    """
    encoder, origin = open_encoder()
    material = read_material(real, encoder, config, origin["sha256"], work / "material")
    folder = work / part
    if (folder / ABOUT).is_file():
        finished_part(work, part, config)
        return folder / SAVED
    folder.mkdir(parents=True, exist_ok=True)
    lm = load_language_model(quantized=False)
    chat = fresh_chat(lm, encoder.config.encoder.width, config.seed, places=material.tokens.shape[1])
    chat.reader = train_reader(material, config)
    tokens = material.tokens if part == "own" else exchanged(material, config.seed)
    about: dict[str, Any] = {"recipe": _plain(config), "threads": torch.get_num_threads(), "loss": {}, "times": {}}
    started = time.perf_counter()
    spelling = Spelling.of([f.phrase for f in FINDINGS], chat.tokenizer, tokens.shape[1])
    embeddings = chat.language_model.get_input_embeddings().weight.detach()
    about["loss"]["spelling"] = spell(chat, material, tokens, spelling, config)
    about["times"]["spelling_seconds"] = time.perf_counter() - started
    about["spelling"] = spelled_well(
        chat.projector, embeddings, material, spelling, split_fold_nine(material.manifest, config.seed)[0].tolist()
    )
    print(part, "spelling", json.dumps(about["spelling"]), flush=True)

    stage1, stage2 = replace(config.stage1, seed=config.seed), replace(config.stage2, seed=config.seed + 1)
    examples, drawn = make_examples(material, chat, stage1.steps * per_step(stage1), config, seed=config.seed)
    started = time.perf_counter()
    losses = train_projector(
        chat, examples, tokens[drawn], stage1, each_step=_say(part, "stage 1"), folder=folder / "stage1"
    )
    about["loss"]["stage1"] = losses
    about["times"]["stage1_seconds"] = time.perf_counter() - started

    add_lora(chat, rank=config.rank, alpha=2 * config.rank, dropout=0.0, seed=config.seed)  # each is seen once
    examples, drawn = make_examples(material, chat, stage2.steps * per_step(stage2), config, seed=config.seed + 1)
    table = fading_table(material, tokens, drawn, spelling, config)
    projector = chat.projector
    chat.projector = Reading(projector, embeddings)  # type: ignore[assignment]
    examples = in_order(examples, table.shape[1], stage2)
    started = time.perf_counter()
    losses = train_chat(chat, examples, table, stage2, each_step=_say(part, "stage 2"), folder=folder / "stage2")
    chat.projector = projector
    about["loss"]["stage2"] = losses
    about["times"]["stage2_seconds"] = time.perf_counter() - started  # of this call: a resumed one did fewer steps
    about["tokens_per_sequence"] = float(np.mean([len(e.encoded.ids) - 1 + table.shape[1] for e in examples]))
    save_chat(
        chat,
        folder / SAVED,
        lm,
        encoder=origin,
        about={"recipe": _plain(config), "part": part},
        grounding=["tokens", "measurements", "labels"],
    )
    write_text(folder / ABOUT, json.dumps(about) + "\n")
    return folder / SAVED


def finished_part(work: Path, part: str, config: RecipeConfig) -> dict[str, Any]:
    """Return what is recorded of a finished training.

    Raises:
        MissingPartError: it isn't finished.
        EcgChatError: it was trained with other settings.
    """
    path = work / part / ABOUT
    if not path.is_file():
        raise MissingPartError(str(path), "no such file", f"Train the part: --part {part}")
    about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    now = _plain(config)
    changed = sorted(name for name in now if about["recipe"].get(name) != now[name])
    if changed:
        raise EcgChatError(f"{path}: trained with another {', '.join(changed)}. Use another --work folder")
    return about


def spell(
    chat: EcgChat, material: Material, tokens: torch.Tensor, spelling: Spelling, config: RecipeConfig
) -> list[float]:
    """Teach the chat model's projector to spell what the training recordings show; return the loss of each step."""
    rows = material.rows("train")
    words = spelling.words(presence_table(material.manifest.iloc[rows]), known_rates(material)[rows])
    return train_spelling(
        chat.projector,
        chat.language_model.get_input_embeddings().weight,
        tokens[rows],
        words,
        spelling,
        steps=config.spelling_steps,
        noise=config.spelling_noise,
        chances=torch.from_numpy(row_chances(material.manifest.iloc[rows], config.synthetic_weight)),
        seed=config.seed,
    )


def open_encoder() -> tuple[EcgCoca, dict[str, str]]:
    """Return the mini ECG-CoCa, and its name and hash."""
    folder = data_folder() / ENCODER_FOLDER
    return load_coca(folder), {"name": ENCODER_FOLDER.name, "sha256": read_manifest(folder)["sha256"][WEIGHTS]}


def ask_part(real: Path, work: Path, part: str, config: RecipeConfig) -> None:
    """Ask a trained part all test questions, and keep what it said in the work folder."""
    place = work / part / OUTCOMES
    if place.is_file():
        return
    finished_part(work, part, config)
    encoder, origin = open_encoder()
    material = read_material(real, encoder, config, origin["sha256"], work / "material")
    train_reader(material, config)
    chat, _ = load_chat_model(work / part / SAVED, encoder_sha256=origin["sha256"])
    sets = mini_test_sets(material, encoder, chat.reader, config.seed)
    said = {"own_tokens": outcomes_to_json(answers_of(chat, sets))}
    if part == "own":
        said["other_tokens"] = outcomes_to_json(answers_of(chat, sets, exchanged=True))
    write_text(place, json.dumps(said) + "\n")


def write_results(real: Path, work: Path, out: Path, config: RecipeConfig) -> dict[str, Any]:
    """Put the figures of model, twin and rules together, and ship the model: weights, card, results."""
    about = {part: finished_part(work, part, config) for part in ("own", "twin")}
    encoder, origin = open_encoder()
    material = read_material(real, encoder, config, origin["sha256"], work / "material")
    reader = train_reader(material, config)
    sets = mini_test_sets(material, encoder, reader, config.seed)
    own, twin = (json.loads((work / part / OUTCOMES).read_text(encoding="utf-8")) for part in ("own", "twin"))
    models = {
        "own_ecg": outcomes_from_json(own["own_tokens"], sets, generated=True),
        "other_tokens": outcomes_from_json(own["other_tokens"], sets, generated=False),
        "twin": outcomes_from_json(twin["own_tokens"], sets, generated=True),
        "template": template_answers(sets, material),
    }
    results: dict[str, Any] = {
        "recipe": _plain(config),
        "groundings": [[sorted(names), share] for names, share in GROUNDINGS.items()],
        "encoder": origin,
        "data": _counts(material),
        "training": {
            part: {
                "spelling": found["spelling"],
                "loss": {name: _smooth(losses) for name, losses in found["loss"].items()},
                "tokens_per_sequence": round(found["tokens_per_sequence"]),
                "threads": found["threads"],
                **found["times"],
            }
            for part, found in about.items()
        },
        "device": f"{platform.machine()} CPU",
        "results": figures(models, seed=config.seed),
    }
    saved = work / "own" / SAVED
    out.mkdir(parents=True, exist_ok=True)
    for file in saved.iterdir():
        shutil.copyfile(file, out / file.name)
    save_results(results)
    write_card(out, results)
    return results


def results_path() -> Path:
    """Return the file of the recorded results."""
    return data_folder() / "results" / "ecg-chat-mini.json"


def save_results(results: dict[str, Any]) -> Path:
    """Write data/results/ecg-chat-mini.json."""
    path = results_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(results, indent=1, sort_keys=True) + "\n")
    return path


def _plain(config: RecipeConfig) -> dict[str, Any]:
    """Return the config as JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def _counts(material: Material) -> dict[str, int]:
    synthetic = is_synthetic(material.manifest)
    train = (material.manifest["split"] == "train").to_numpy()
    return {
        "real_train": int((train & ~synthetic).sum()),
        "synthetic_train": int(synthetic.sum()),
        "real_validation": int((material.manifest["split"] == "validation").sum()),
    }


def _smooth(losses: Sequence[float]) -> list[float]:
    """Return the means of at most 25 equal parts of a loss curve."""
    parts = np.array_split(np.asarray(losses), min(25, len(losses)))
    return [round(float(np.mean(part)), 4) for part in parts]


def _say(part: str, stage: str) -> Any:
    started = time.perf_counter()

    def say(step: int, loss: float) -> None:
        if step % 10 == 0:
            print(
                f"{part}, {stage}, step {step}: loss {loss:.3f} after {time.perf_counter() - started:.0f} s", flush=True
            )

    return say


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the recipe from the command line.

    Raises:
        MissingPartError: ECGCHAT_REAL_DATA isn't set.
    """
    parser = argparse.ArgumentParser(description="Train and evaluate the course's mini chat model and its twin.")
    parser.add_argument("--work", type=Path, required=True, help="where material, states and answers are kept")
    parser.add_argument("--out", type=Path, default=data_folder() / "weights" / "ecg-chat-mini")
    parser.add_argument("--part", choices=PARTS, action="append", help="do this part alone; again for another one")
    parser.add_argument("--stage2", type=int, default=RecipeConfig.stage2.steps, help="optimizer steps of stage 2")
    parser.add_argument("--seed", type=int, default=RecipeConfig.seed)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's own choice")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    folder = os.environ.get("ECGCHAT_REAL_DATA")
    if not folder:
        raise MissingPartError("ECGCHAT_REAL_DATA", "not set", "Set it to the folder that holds ptbxl/")
    stage2 = replace(RecipeConfig.stage2, steps=chosen.stage2)
    config = replace(RecipeConfig(), stage2=stage2, seed=chosen.seed)
    for part in chosen.part or PARTS:
        if part == "evaluate":
            write_results(Path(folder), chosen.work, chosen.out, config)
        else:
            train_part(Path(folder), chosen.work, part, config)
            ask_part(Path(folder), chosen.work, part, config)


if __name__ == "__main__":
    main()
