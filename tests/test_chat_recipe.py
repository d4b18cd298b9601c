"""The mini's recipe at toy size: material from synthetic recordings, both stages, evaluation, card."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_chat import tiny_llama, tiny_tokenizer

from ecgchat_lib.chat import mini_recipe as recipe
from ecgchat_lib.chat.language_model import LanguageModel
from ecgchat_lib.chat.template import IGNORED
from ecgchat_lib.chat.train import TrainConfig, add_lora, train_chat, train_projector, warm_start
from ecgchat_lib.coca.config import MINI
from ecgchat_lib.coca.embed import encoder_tokens
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.datasets.manifest import make_manifest
from ecgchat_lib.errors import MissingPartError, ParameterError
from ecgchat_lib.instruct.findings import FINDINGS

CONFIG = recipe.RecipeConfig(synthetic=24, generated=2)
NAMES = [finding.name for finding in FINDINGS]


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    encoder = EcgCoca(MINI, vocabulary=None).eval()
    rows, windows, measured = recipe._synthetic(CONFIG, encoder)
    material = recipe.Material(make_manifest(rows), torch.cat(windows), measured)
    return encoder, material, encoder_tokens(material.windows, encoder)


def language_model():
    return LanguageModel(tiny_llama(), tiny_tokenizer(), "language-model", "0" * 64, False)


def test_rare_findings_are_drawn_more_often_and_synthetic_ones_less():
    rows = [(f"r{k}", (("NORM", 100.0), ("SR", 0.0))) for k in range(9)] + [("r9", (("CLBBB", 100.0), ("SR", 0.0)))]
    rows.append(("synthetic-1", (("CLBBB", 100.0), ("SR", 0.0))))
    common = {"path": "x", "split": "train", "report": "", "language": "en"}
    table = make_manifest([{"record": n, "patient": n, "statements": s, **common} for n, s in rows])
    chances = recipe.row_chances(table, 0.5)
    assert chances.sum() == pytest.approx(1)
    assert chances[9] == pytest.approx(2 * chances[10])
    assert chances[9] > 2 * chances[0]


def test_presence_table_has_three_states(setting):
    _, material, _ = setting
    table = recipe.presence_table(material.manifest)
    assert table.shape == (24, len(FINDINGS))
    assert set(table[~table.isnan()].tolist()) == {0.0, 1.0}


def test_warm_start_moves_tokens_towards_their_words(setting):
    _, material, tokens = setting
    chat = recipe.build_chat(language_model(), tokens.shape[-1], 0)
    before = {name: p.clone() for name, p in chat.language_model.named_parameters()}
    targets, phrases = recipe.presence_table(material.manifest), [finding.phrase for finding in FINDINGS]
    losses = warm_start(chat, tokens, targets, phrases, steps=40, batch=16)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert all(torch.equal(p, before[name]) for name, p in chat.language_model.named_parameters())
    with pytest.raises(ParameterError, match="targets of shape"):
        warm_start(chat, tokens, targets[:, :3], phrases)


def test_the_whole_recipe_at_toy_size(setting, tmp_path):
    encoder, material, tokens = setting
    chat = recipe.build_chat(language_model(), tokens.shape[-1], 0)
    rows = material.rows("train")
    chat.reader = recipe.train_reader(material, tokens, rows, recipe.presence_table(material.manifest), CONFIG)
    assert len(material.signs) == len(rows)
    assert all(line.startswith("Signs: ") for line in material.signs)
    examples = recipe.make_examples(material, chat, rows, 12, CONFIG)
    assert len(examples) == 12
    assert examples == recipe.make_examples(material, chat, rows, 12, CONFIG)
    assert all(any(label != IGNORED for label in example.encoded.labels) for example in examples)
    assert any(example.encoded.branches for example in examples)
    train_projector(chat, examples, tokens, TrainConfig(steps=1, batch=1))
    add_lora(chat, rank=2)
    train_chat(chat, examples, tokens, TrainConfig(steps=3, batch=2))
    split = material.manifest["split"].to_numpy().copy()
    split[:10] = "validation"
    held_out = replace(material, manifest=material.manifest.assign(split=split))
    found = recipe.evaluate_mini(chat, encoder, held_out, tokens, CONFIG)
    assert set(found) == {"fold9", "real_sample"}
    assert set(found["fold9"]) == {"own_ecg", "other_tokens", "other_ecg", "reader_alone"}
    assert found["fold9"]["own_ecg"]["presence"]["n"] == found["fold9"]["other_ecg"]["presence"]["n"] > 0
    results = {
        "recipe": recipe._plain(CONFIG),
        "data": recipe._counts(held_out),
        "times": {"training_seconds": 60.0, "stage2_seconds_per_step": 1.0},
        "encoder": {"name": "ecg-coca-mini"},
        **found,
    }
    json.dumps(results)
    card = recipe.write_card(tmp_path, results).read_text(encoding="utf-8")
    assert f"{found['fold9']['own_ecg']['presence']['balanced_accuracy']:.3f}" in card
    assert "no medical device" in card


def test_heights_are_dropped_where_leads_were_scaled(setting):
    _, material, _ = setting
    measured = recipe.without_heights(material.measurements["synthetic-00000"])
    assert np.isnan([measured.axis_deg, measured.r_mv]).all()
    assert measured.reasons["axis_deg"] == "the leads were scaled one by one"
    assert np.isfinite(measured.heart_rate_bpm)


def test_without_the_real_recordings_it_says_so(monkeypatch):
    monkeypatch.delenv("ECGCHAT_REAL_DATA", raising=False)
    with pytest.raises(MissingPartError, match="ECGCHAT_REAL_DATA: not set"):
        recipe.main(["--stage2", "1"])


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not os.environ.get("ECGCHAT_REAL_DATA"), reason="ECGCHAT_REAL_DATA is not set")
def test_z_scored_records_measure_like_their_raw_twins():
    import lzma

    import pandas as pd

    from ecgchat_lib.ecg.measure import measure
    from ecgchat_lib.ecg.recording import Recording

    folder = Path(os.environ["ECGCHAT_REAL_DATA"]) / "ptbxl"
    index = pd.read_csv(folder / "index.csv")
    both = index[index["has_raw500"] & index["has_processed"]].head(6)
    with lzma.open(folder / "processed_125hz.npy.xz") as file:
        differences = np.load(file)
    manifest = pd.DataFrame({"record": [f"{number:05d}" for number in both["ecg_id"]]})
    raw = recipe._measure_real(folder, manifest)
    for row in both.to_dict("records"):
        signal = np.cumsum(np.cumsum(differences[row["processed_row"]].astype(np.int32), -1), -1) / 500
        scaled = measure(Recording("x", (signal * recipe.Z_SCORE_MV).astype(np.float32), 125.0))
        assert scaled.heart_rate_bpm == pytest.approx(raw[f"{row['ecg_id']:05d}"].heart_rate_bpm, abs=1)
        assert scaled.qrs_ms == pytest.approx(raw[f"{row['ecg_id']:05d}"].qrs_ms, abs=25)
