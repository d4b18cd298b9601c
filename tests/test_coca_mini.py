"""The weights that the course ships: whole, loadable, causal, and doing what their card says."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ecgchat_lib.coca.checkpoint import MINI_FOLDER, WEIGHTS, load_mini, read_manifest
from ecgchat_lib.coca.embed import embed_recordings, embed_texts, embed_windows, encoder_tokens
from ecgchat_lib.coca.losses import caption_loss
from ecgchat_lib.coca.numbers import NUMBERS, standardize
from ecgchat_lib.coca.preprocess import front_end, recording_windows
from ecgchat_lib.coca.text import ReportEncoder, build_vocabulary, mean_pool
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.ecg.measure import measure, wde_text
from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.errors import ParameterError
from ecgchat_lib.evaluate.zero_shot import PROMPTS, auc, prompt_scores
from ecgchat_lib.paths import data_folder

RESULTS = data_folder() / "results" / "ecg-coca-mini.json"


@pytest.fixture(scope="module")
def mini():
    return load_mini()


@pytest.fixture(scope="module")
def synthetic(mini):
    """Sixty synthetic ECGs of seeds that no training run draws (the recipe's seeds are above a million)."""
    ecgs = [synthesize(seed) for seed in range(60)]
    return front_end(np.stack([e.signal for e in ecgs]), mini.config.encoder), [e.report for e in ecgs], ecgs


def sample_recordings():
    return [read_recording(data_folder() / "real_sample" / f"A{k:04d}") for k in range(1, 11)]


def test_folder_is_small_and_its_manifest_tells_where_it_comes_from():
    folder = data_folder() / MINI_FOLDER
    assert (folder / WEIGHTS).stat().st_size < 15e6
    about = read_manifest(folder)["about"]
    assert about["data"]["train_real"] > 1500
    card = " ".join((folder / "README.md").read_text(encoding="utf-8").split())
    for word in ("CC BY 4.0", "Wagner", "seed 7", "zero-shot", "not a medical device"):
        assert word.lower() in card.lower(), word


def test_card_and_results_say_the_same():
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    card = (data_folder() / MINI_FOLDER / "README.md").read_text(encoding="utf-8")
    macro = results["metrics"]["zero_shot"]["mini"]["macro_auc"]
    assert f"{macro['value']:.3f} [{macro['low']:.3f}, {macro['high']:.3f}]" in card
    assert f"n = {results['metrics']['records']}" in card
    assert results["chosen"] == read_manifest(data_folder() / MINI_FOLDER)["about"]["chosen"]


def test_tokens_and_embeddings_of_real_recordings(mini):
    recordings = sample_recordings()
    windows = recording_windows(recordings, mini.config.encoder)
    tokens = encoder_tokens(windows, mini)
    assert tokens.shape == (10, 101, mini.config.encoder.width)
    assert torch.isfinite(tokens).all()
    embeddings = embed_recordings(recordings, mini)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(10))
    assert (embeddings @ embeddings.T).fill_diagonal_(0).max() < 0.9999  # no two recordings look the same to it
    one_by_one = torch.cat([embed_recordings([r], mini) for r in recordings])
    torch.testing.assert_close(embeddings, one_by_one, rtol=1e-4, atol=1e-5)


def test_normal_text_is_nearer_to_a_normal_ecg_than_a_block(mini):
    normal = front_end(np.stack([synthesize(k, finding="NORM").signal for k in range(8)]), mini.config.encoder)
    block = front_end(np.stack([synthesize(k, finding="CLBBB").signal for k in range(8)]), mini.config.encoder)
    texts = embed_texts(["normal ECG", "left bundle branch block"], mini)
    for windows, right in ((normal, 0), (block, 1)):
        assert (embed_windows(windows, mini) @ texts.T).argmax(dim=1).eq(right).float().mean() >= 0.75


@pytest.mark.parametrize(
    ("code", "words", "least"),
    [
        ("CLBBB", "left bundle branch block", 0.9),
        ("AFIB", "atrial fibrillation", 0.9),
        ("STACH", "sinus tachycardia", 0.9),
        ("SBRAD", "sinus bradycardia", 0.9),
    ],
)
def test_zero_shot_on_synthetic_ecgs_beats_chance_by_far(mini, code, words, least):
    ecgs = [synthesize(300 + k, finding=name) for name in ("NORM", code) for k in range(12)]
    windows = front_end(np.stack([ecg.signal for ecg in ecgs]), mini.config.encoder)
    prompts = {"NORM": PROMPTS["NORM"], code: (words,)}
    scores = prompt_scores(
        embed_windows(windows, mini).numpy(), lambda t: embed_texts(t, mini).numpy(), prompts, against="NORM"
    )
    assert auc(np.arange(24) >= 12, scores[:, 1]) > least


@torch.inference_mode()
def test_swapping_the_ecgs_raises_the_caption_loss(mini, synthetic):
    windows, reports, _ = synthetic
    pieces = mini.tokenizer.encode(reports, mini.config.decoder.context + 1)
    patches = mini.caption_patches(mini.encoder(windows).tokens)
    own, other = (
        caption_loss(mini.decoder(pieces[:, :-1], p), pieces[:, 1:]).item() for p in (patches, patches.roll(7, dims=0))
    )
    assert other > own + 0.05


@torch.inference_mode()
def test_no_future_piece_moves_an_earlier_logit_of_the_trained_model(mini, synthetic):
    windows, reports, _ = synthetic
    pieces = mini.tokenizer.encode(reports[:4], 30)
    patches = mini.caption_patches(mini.encoder(windows[:4]).tokens)
    changed = pieces.clone()
    changed[:, 12:] = 5
    assert torch.equal(mini.decoder(pieces, patches)[:, :12], mini.decoder(changed, patches)[:, :12])


def test_reports_with_numbers_find_their_ecg_and_foreign_numbers_mislead(mini):
    """Forty normal hearts: their words are alike, so only the measured numbers tell them apart."""
    recordings = [Recording("", synthesize(900 + k, finding="NORM").signal, fs=500.0) for k in range(40)]
    ecg = embed_recordings(recordings, mini)
    endings = [wde_text(measure(recording)) for recording in recordings]
    for texts in (["Normal ECG." + ending for ending in endings], endings):
        found = (ecg @ embed_texts(texts, mini).T).argmax(dim=1)
        assert (found == torch.arange(40)).float().mean() > 0.4
    shuffled = (ecg @ embed_texts(["Normal ECG." + e for e in endings[1:] + endings[:1]], mini).T).argmax(dim=1)
    assert (shuffled == torch.arange(40)).float().mean() < 0.2


@torch.inference_mode()
def test_the_cls_token_tells_rate_and_height(mini):
    recordings = [Recording("", synthesize(950 + k).signal, fs=500.0) for k in range(40)]
    told = mini.predict_numbers(encoder_tokens(recording_windows(recordings, mini.config.encoder), mini)).numpy()
    found = [measure(recording) for recording in recordings]
    wanted = standardize(torch.tensor([[getattr(m, name) for name in NUMBERS] for m in found])).numpy()
    for name, least in {"rr_ms": 0.9, "r_mv": 0.9, "qrs_ms": 0.6, "qt_ms": 0.6}.items():
        column = NUMBERS.index(name)
        known = np.isfinite(wanted[:, column])
        assert np.corrcoef(told[known, column], wanted[known, column])[0, 1] > least, name


def test_millivolts_may_be_lost(mini):
    """A recording scaled lead by lead, as processed datasets have it, is embedded near the raw one."""
    recordings = sample_recordings()
    scaled = [replace(r, signal=r.signal / r.signal.std(axis=1, keepdims=True)) for r in recordings]
    likeness = embed_recordings(recordings, mini) @ embed_recordings(scaled, mini).T
    assert likeness.diagonal().mean() > likeness.mean() + 0.2


def test_captions_are_words(mini, synthetic):
    captions = mini.caption(synthetic[0][:6])
    assert len(set(captions)) > 1
    assert all(caption and "[UNK]" not in caption for caption in captions)


class TestReportEncoder:
    def test_equals_a_plain_computation_with_transformers(self):
        from transformers import AutoTokenizer, BertModel

        from ecgchat_lib.models import resolve

        folder = resolve("report-encoder")
        texts = ["Sinus rhythm. Normal ECG.", "Atrial fibrillation with a ventricular rate of 110 per minute."]
        tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder)
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            states = model.eval()(**batch).last_hidden_state
        expected = torch.nn.functional.normalize(mean_pool(states, batch["attention_mask"]), dim=-1)
        torch.testing.assert_close(ReportEncoder()(texts), expected, rtol=1e-3, atol=2e-4)  # states are kept as float16

    def test_order_case_and_neighbors_do_not_matter_and_each_text_is_encoded_once(self, monkeypatch):
        encoder = ReportEncoder()
        one = encoder(["Normal ECG", "left bundle branch block with a long text behind it", "normal  ecg"])
        assert torch.equal(one[0], one[2])
        encoded = []
        monkeypatch.setattr(encoder, "_encode", lambda texts: encoded.extend(texts) or [torch.zeros(3, 384).half()])
        again = encoder(["left bundle branch block with a long text behind it", "normal ecg", "new"])
        assert encoded == ["new"]
        assert torch.equal(again[1], one[0])

    def test_vectors_are_kept_on_disk(self, tmp_path):
        first = ReportEncoder(cache=tmp_path / "v.npz")(["normal ecg", "atrial flutter"])
        second = ReportEncoder(cache=tmp_path / "v.npz")
        second._load = None  # never needed
        assert torch.equal(second(["atrial flutter"])[0], first[1])

    def test_empty_text_is_told(self):
        with pytest.raises(ParameterError, match="text number 1 of 2 is empty"):
            ReportEncoder()(["a", "  "])
        assert ReportEncoder()([]).shape == (0, 384)


def test_vocabulary_spells_any_text():
    from ecgchat_lib.coca.text import CaptionTokenizer

    tokenizer = CaptionTokenizer(build_vocabulary(["Normal ECG.", "left bundle branch block"]))
    ids = tokenizer.encode(["normal ecg, left zebra 42"], 40)[0]
    assert 1 not in ids.tolist()
    assert tokenizer.decode(ids.tolist()) == "normal ecg, left zebra 42"


@pytest.mark.real_data
@pytest.mark.slow
def test_the_recorded_figures_are_measured_again():
    """Zero-shot on the reporting half of fold 9, from the shipped weights, equals the recorded value."""
    from ecgchat_lib.datasets.labels import label_matrix
    from ecgchat_lib.evaluate.mini_data import read_real
    from ecgchat_lib.evaluate.mini_recipe import RecipeConfig, split_fold_nine
    from ecgchat_lib.evaluate.prompts import label_set_scores
    from ecgchat_lib.evaluate.zero_shot import macro_auc

    place = os.environ.get("ECGCHAT_REAL_DATA")
    if not place:
        pytest.skip("ECGCHAT_REAL_DATA is not set: the real recordings are not here")
    model = load_mini()
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))
    recipe = recorded["recipe"]
    assert recipe.keys() == asdict(RecipeConfig()).keys()
    manifest, windows = read_real(Path(place) / "ptbxl", model.config.encoder, measured=False)
    choose, report = split_fold_nine(manifest, recipe["seed"])
    patients = manifest["patient"]
    assert not set(patients.iloc[choose]) & set(patients.iloc[report])
    assert not set(patients.iloc[report]) & set(patients[manifest["split"] == "train"])
    labels = label_matrix(manifest["statements"], "super")
    labeled = report[labels[report].any(axis=1)]
    ecg = embed_windows(windows.ecg[labeled], model).numpy()
    scores = label_set_scores(ecg, lambda texts: embed_texts(texts, model).numpy(), "super")
    measured = macro_auc(labels[labeled], scores)
    assert measured == pytest.approx(recorded["metrics"]["zero_shot"]["mini"]["macro_auc"]["value"], abs=2e-3)
