"""The mini's recipe at toy size: material, both trainings, answers, figures, card; killed parts go on."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_chat import tiny_llama, tiny_tokenizer

from ecgchat_lib.chat import mini_data as data
from ecgchat_lib.chat import mini_evaluation as evaluation
from ecgchat_lib.chat import mini_recipe as recipe
from ecgchat_lib.chat.batches import batch_order, sequence_lengths
from ecgchat_lib.chat.language_model import LanguageModel
from ecgchat_lib.chat.spelling import Spelling
from ecgchat_lib.chat.template import IGNORED
from ecgchat_lib.chat.train import TrainConfig
from ecgchat_lib.chat.train_run import fresh_chat
from ecgchat_lib.coca.config import MINI
from ecgchat_lib.coca.embed import encoder_tokens
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.datasets.manifest import make_manifest
from ecgchat_lib.errors import EcgChatError, MissingPartError
from ecgchat_lib.instruct.findings import FINDINGS
from ecgchat_lib.paths import project_root

STAGE1, STAGE2 = TrainConfig(steps=1, batch=1), TrainConfig(steps=4, batch=1, learning_rate=1e-3)
CONFIG = data.RecipeConfig(
    synthetic=24, spelling_steps=5, questions=3, presence_questions=2, rounds=2, all_right=1, fade=2, rank=2,
    stage1=STAGE1, stage2=STAGE2,
)  # fmt: skip


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    encoder = EcgCoca(MINI, vocabulary=None).eval()
    rows, windows, measured = data._synthetic(CONFIG, encoder)
    for row in rows[:12]:
        row["split"] = "validation"
    tokens = encoder_tokens(torch.cat(windows), encoder).half().float()
    return encoder, data.Material(make_manifest(rows), tokens, measured)


@pytest.fixture(scope="module")
def spelled():
    return Spelling.of([finding.phrase for finding in FINDINGS], tiny_tokenizer(), 101)


def language_model():
    return LanguageModel(tiny_llama(), tiny_tokenizer(), "language-model", "0" * 64, False)


@pytest.fixture
def toy(setting, monkeypatch, tmp_path):
    """The recipe with the tiny model; data, encoder and results are in a folder of its own."""
    encoder, material = setting
    monkeypatch.setattr(recipe, "open_encoder", lambda: (encoder, {"name": "ecg-coca-mini", "sha256": "a" * 64}))
    monkeypatch.setattr(recipe, "read_material", lambda *_: replace(material, signs=[]))
    monkeypatch.setattr(recipe, "load_language_model", lambda **_: language_model())
    monkeypatch.setattr("ecgchat_lib.chat.checkpoint.load_language_model", lambda *_, **__: language_model())
    monkeypatch.setattr(recipe, "results_path", lambda: tmp_path / "results.json")
    return tmp_path


def test_rare_findings_are_drawn_more_often_and_synthetic_ones_less():
    rows = [(f"r{k}", (("NORM", 100.0), ("SR", 0.0))) for k in range(9)] + [("r9", (("CLBBB", 100.0), ("SR", 0.0)))]
    rows.append(("synthetic-1", (("CLBBB", 100.0), ("SR", 0.0))))
    common = {"path": "x", "split": "train", "report": "", "language": "en"}
    table = make_manifest([{"record": n, "patient": n, "statements": s, **common} for n, s in rows])
    chances = data.row_chances(table, 0.5)
    assert chances.sum() == pytest.approx(1)
    assert chances[9] == pytest.approx(2 * chances[10])
    assert chances[9] > 2 * chances[0]


def test_presence_table_has_three_states(setting):
    table = data.presence_table(setting[1].manifest)
    assert table.shape == (24, len(FINDINGS))
    assert set(table[~table.isnan()].tolist()) == {0.0, 1.0}


def test_material_is_kept_for_the_next_call_and_not_believed(setting, tmp_path):
    _, material = setting
    data.keep_material(material, tmp_path, "made of this")
    again, made_of = data._kept_material(tmp_path)
    assert made_of == "made of this"
    assert torch.equal(again.tokens, material.tokens)
    assert again.measurements == material.measurements
    assert again.manifest.equals(material.manifest)
    (tmp_path / data.ROWS).write_text('{"record": "x"}\n')
    with pytest.raises(EcgChatError, match="material can't be read"):
        data._kept_material(tmp_path)


def test_prompts_say_what_they_are_given(setting):
    _, material = setting
    material = replace(material, signs=["Signs: sinus rhythm"] * 24)
    assert material.lines(0, ("tokens",)) == []
    assert material.lines(0, ("tokens", "labels")) == ["Signs: sinus rhythm"]
    measured, signs = material.lines(0, ("tokens", "measurements", "labels"))
    assert measured.startswith("Measured: ")
    assert signs == "Signs: sinus rhythm"


def test_examples_follow_the_seed_and_ask_nothing_that_cant_be_known(setting):
    _, material = setting
    chat = fresh_chat(language_model(), material.tokens.shape[-1], 0)
    examples, drawn = data.make_examples(material, chat, 30, CONFIG, seed=1)
    assert (examples, drawn) == data.make_examples(material, chat, 30, CONFIG, seed=1)
    assert set(drawn) <= set(material.rows("train"))
    assert [item.ecg for item in examples] == [(k,) for k in range(30)]
    assert all(any(label != IGNORED for label in item.encoded.labels) for item in examples)
    assert any(item.encoded.branches for item in examples)
    for item in examples:
        text = chat.tokenizer.decode([t for t in item.encoded.ids if t >= 0])
        assert "interval" not in text.replace("long QT interval", "") or "Measured: " in text


def test_training_takes_examples_in_their_order(setting):
    _, material = setting
    chat = fresh_chat(language_model(), material.tokens.shape[-1], 0)
    examples, _ = data.make_examples(material, chat, 4, CONFIG, seed=1)
    placed = data.in_order(examples, 101, STAGE2)
    order = batch_order(sequence_lengths(placed, 101), 1, STAGE2.seed)
    assert [placed[place] for (place,) in (next(order) for _ in examples)] == examples
    with pytest.raises(EcgChatError, match="one for each place"):
        data.in_order(examples[:3], 101, STAGE2)


def test_right_words_fade_step_by_step(setting, spelled):
    _, material = setting
    config = replace(CONFIG, all_right=10, fade=40)
    drawn = [12, 13, 14] * 20
    table = data.fading_table(material, material.tokens, drawn, spelled, config)
    shown = (table[..., -1] >= 0).float().mean(1)
    known = spelled.words(data.presence_table(material.manifest.iloc[drawn]), data.known_rates(material)[drawn]) >= 0
    share = shown / known.float().mean(1)
    assert (share[:10] == 1).all()
    assert 0.3 < share[10:50].mean() < 0.7
    assert share[10:20].mean() > share[40:50].mean()
    assert (share[50:] == 0).all()
    assert torch.equal(table[..., :-1], material.tokens[drawn])


def test_the_twin_gets_tokens_of_other_training_recordings(setting):
    _, material = setting
    other = data.exchanged(material, 0)
    train = material.rows("train")
    assert torch.equal(other[material.rows("validation")], material.tokens[material.rows("validation")])
    same = [torch.equal(other[row], material.tokens[row]) for row in train]
    assert sum(same) < len(train) / 3
    assert torch.equal(other[train].sum((1, 2)).sort()[0], material.tokens[train].sum((1, 2)).sort()[0])


def test_the_whole_recipe_at_toy_size(toy, setting):
    real, work, out = toy / "real", toy / "work", toy / "out"
    for part in ("own", "twin"):
        recipe.train_part(real, work, part, CONFIG)
        recipe.ask_part(real, work, part, CONFIG)
    results = recipe.write_results(real, work, out, CONFIG)
    assert json.loads((toy / "results.json").read_text()) == json.loads(json.dumps(results))
    assert set(results["results"]) == {"fold9", "real_sample"}
    for modes in results["results"].values():
        assert set(modes) == {"tokens", "all"}
        for found in modes.values():
            counts = {found[model]["presence"]["n"] for model in ("own_ecg", "other_tokens", "twin", "template")}
            assert len(counts) == 1
            assert counts.pop() > 0
            difference = (
                found["own_ecg"]["presence"]["balanced_accuracy"] - found["twin"]["presence"]["balanced_accuracy"]
            )
            assert found["own_ecg_less_twin"]["balanced_accuracy"] == pytest.approx(difference, abs=1e-3)
            assert "rhythm" not in found["other_tokens"]
    assert results["data"] == {"real_train": 0, "synthetic_train": 24, "real_validation": 12}
    assert len(results["training"]["own"]["loss"]["stage2"]) == 4
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"{results['results']['fold9']['tokens']['own_ecg']['presence']['balanced_accuracy']:.3f} (" in card
    assert "no medical device" in card
    own = recipe.load_chat_model(out, encoder_sha256="a" * 64)[0]
    twin = recipe.load_chat_model(work / "twin" / recipe.SAVED)[0]
    assert not torch.equal(own.projector.up.weight, twin.projector.up.weight)


def test_a_killed_part_goes_on_to_the_same_weights(toy, setting, monkeypatch):
    config = replace(CONFIG, stage2=replace(STAGE2, save_every=2))
    whole = recipe.train_part(toy, toy / "whole", "own", config)
    train = recipe.train_chat

    def cut(*arguments, **more):
        train(*arguments, **more, until=2)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "train_chat", cut)
    with pytest.raises(KeyboardInterrupt):
        recipe.train_part(toy, toy / "cut", "own", config)
    monkeypatch.setattr(recipe, "train_chat", train)
    resumed = recipe.train_part(toy, toy / "cut", "own", config)
    for name in ("projector.safetensors", "adapter_model.safetensors"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    monkeypatch.setattr(recipe, "train_chat", cut)  # what is finished isn't trained again
    assert recipe.train_part(toy, toy / "cut", "own", config) == resumed


def test_rules_say_what_the_prompt_says_or_what_is_usual(setting):
    encoder, material = setting
    reader = data.train_reader(material, CONFIG)
    sets = evaluation.mini_test_sets(material, encoder, reader, CONFIG.seed)
    answers = evaluation.template_answers(sets, material)
    alone, told = answers["fold9"]["tokens"], answers["fold9"]["all"]
    assert {o.said for o in alone if o.turn.kind == "rhythm"} == {"sinus"}
    assert len({o.said for o in alone if o.turn.kind == "rate"}) == 1
    rates = [o for o in told if o.turn.kind == "rate" and o.turn.truth is not None]
    assert rates
    assert all(o.said == o.turn.truth for o in rates)


def test_answers_are_kept_and_put_beside_their_questions_again(setting):
    encoder, material = setting
    reader = data.train_reader(material, CONFIG)
    sets = evaluation.mini_test_sets(material, encoder, reader, CONFIG.seed)
    chat = fresh_chat(language_model(), material.tokens.shape[-1], 0)
    for exchanged in (False, True):
        answers = evaluation.answers_of(chat, {"real_sample": sets["real_sample"]}, exchanged=exchanged)
        kept = json.loads(json.dumps(evaluation.outcomes_to_json(answers)))
        assert evaluation.outcomes_from_json(kept, sets, generated=not exchanged) == answers


def test_a_finished_part_isn_t_taken_for_one_of_other_settings(tmp_path):
    with pytest.raises(MissingPartError, match="--part own"):
        recipe.finished_part(tmp_path, "own", CONFIG)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / recipe.ABOUT).write_text(json.dumps({"recipe": recipe._plain(CONFIG)}))
    assert recipe.finished_part(tmp_path, "own", CONFIG)
    other = replace(CONFIG, seed=8, stage2=replace(STAGE2, steps=5))
    with pytest.raises(EcgChatError, match="trained with another seed, stage2"):
        recipe.finished_part(tmp_path, "own", other)


def test_the_readme_tells_the_recorded_figures():
    found = json.loads(recipe.results_path().read_text(encoding="utf-8"))["results"]["fold9"]["tokens"]
    own, twin = found["own_ecg"]["presence"], found["twin"]["presence"]
    text = " ".join((project_root() / "README.md").read_text(encoding="utf-8").split())
    low, high = own["interval_95"]
    assert f"accuracy is {own['balanced_accuracy']:.2f} (95 %: {low:.2f} to {high:.2f}; n = {own['n']} answers)" in text
    assert f"shuffled tokens, gets {twin['balanced_accuracy']:.2f}." in text


def test_heights_are_dropped_where_leads_were_scaled(setting):
    _, material = setting
    measured = data.without_heights(material.measurements["synthetic-00000"])
    assert np.isnan([measured.axis_deg, measured.r_mv]).all()
    assert measured.reasons["axis_deg"] == "the leads were scaled one by one"
    assert np.isfinite(measured.heart_rate_bpm)


def test_without_the_real_recordings_it_says_so(monkeypatch):
    monkeypatch.delenv("ECGCHAT_REAL_DATA", raising=False)
    with pytest.raises(MissingPartError, match="ECGCHAT_REAL_DATA: not set"):
        recipe.main(["--work", "x", "--stage2", "1"])


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
    raw = data._measure_real(folder, manifest)
    for row in both.to_dict("records"):
        signal = np.cumsum(np.cumsum(differences[row["processed_row"]].astype(np.int32), -1), -1) / 500
        scaled = measure(Recording("x", (signal * data.Z_SCORE_MV).astype(np.float32), 125.0))
        assert scaled.heart_rate_bpm == pytest.approx(raw[f"{row['ecg_id']:05d}"].heart_rate_bpm, abs=1)
        assert scaled.qrs_ms == pytest.approx(raw[f"{row['ecg_id']:05d}"].qrs_ms, abs=25)
