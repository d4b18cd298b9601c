"""Calibration against scikit-learn and torchmetrics, and a classifier that refuses what it doesn't belong to."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from sklearn.metrics import f1_score as sklearn_f1

from ecgchat_lib.coca.config import EcgCocaConfig, EcgEncoderConfig
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.datasets.labels import STATEMENTS, label_matrix
from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.evaluate.calibration import (
    best_threshold,
    brier,
    calibration_error,
    f1_score,
    platt,
    probability,
    reliability,
    shrunk_platt,
)
from ecgchat_lib.evaluate.classifier import (
    MANIFEST,
    MINI_FOLDER,
    WEIGHTS,
    DiagnosisClassifier,
    Heads,
    Label,
    all_labels,
    encoder_digest,
    fit_classifier,
    fit_heads,
    label_targets,
    load_classifier,
    save_classifier,
)
from ecgchat_lib.paths import data_folder

RESULTS = data_folder() / "results" / "ecg-classifier-mini.json"
TINY = EcgCocaConfig(encoder=EcgEncoderConfig(width=24, layers=1, heads=3, embedding=8))


def draw(seed, n=80, rate=0.3):
    generator = np.random.default_rng(seed)
    labels = generator.random(n) < rate
    labels[:2] = True, False
    return labels, 1.5 * labels + generator.normal(size=n) - 1


# --- calibration


@pytest.mark.parametrize("seed", range(5))
def test_platt_equals_scikit_learns(seed):
    generator = np.random.default_rng(seed)
    x, labels = generator.normal(size=(120, 3)), generator.random(120) < 0.25
    x[labels] += 0.7
    model = LogisticRegression().fit(x[:60], labels[:60])
    expected = CalibratedClassifierCV(FrozenEstimator(model), method="sigmoid").fit(x[60:], labels[60:])
    slope, intercept = platt(model.decision_function(x[60:]), labels[60:])
    found = probability(slope * model.decision_function(x) + intercept)
    np.testing.assert_allclose(found, expected.predict_proba(x)[:, 1], atol=1e-4)


def test_shrunk_platt_lies_between_the_plain_fit_and_nothing():
    labels, odds = draw(0)
    plain = LogisticRegression(C=np.inf, tol=1e-10).fit(odds[:, None], labels)
    np.testing.assert_allclose(
        shrunk_platt(odds, labels, pull=1e-9), (plain.coef_[0, 0], plain.intercept_[0]), atol=1e-3
    )
    np.testing.assert_allclose(shrunk_platt(odds, labels, pull=1e9), (1, 0), atol=1e-5)
    away = [np.hypot(a - 1, b) for a, b in (shrunk_platt(odds, labels, pull=p) for p in (1e-9, 1.0, 10.0, 1000.0))]
    assert away == sorted(away, reverse=True)


def test_what_has_no_end_or_no_sense_is_an_error():
    with pytest.raises(ParameterError, match="pull"):
        shrunk_platt(np.array([-2.0, -1, 1, 2]), np.array([0, 0, 1, 1]), pull=0.0)
    with pytest.raises(ParameterError, match="positives and negatives"):
        platt(np.arange(3.0), np.ones(3))
    for odds in (np.zeros(4), np.array([0, 1, np.nan, 2])):
        with pytest.raises(ParameterError, match="finite"):
            platt(odds, np.array([0, 1, 0, 1]))
    with pytest.raises(ParameterError, match="finite"):
        shrunk_platt(np.array([0, np.inf]), np.array([0, 1]))
    with pytest.raises(ParameterError, match="0 to 1"):
        brier(np.array([1]), np.array([1.5]))
    with pytest.raises(ParameterError, match="fit"):
        reliability(np.ones(3), np.ones(4))
    with pytest.raises(ParameterError, match="without a positive"):
        best_threshold(np.zeros(3), np.arange(3.0))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(5, 200), bins=st.integers(2, 15))
def test_reliability_and_brier_equal_scikit_learns_and_torchmetrics(seed, n, bins):
    from torchmetrics.functional.classification import binary_calibration_error

    labels, odds = draw(seed, n)
    chances = probability(odds)
    curve = reliability(labels, chances, bins)
    found, said = calibration_curve(labels, chances, n_bins=bins)
    np.testing.assert_allclose(curve.found, found)
    np.testing.assert_allclose(curve.said, said)
    assert curve.n.sum() == n
    assert brier(labels, chances) == pytest.approx(brier_score_loss(labels, chances))
    expected = binary_calibration_error(
        torch.from_numpy(chances), torch.from_numpy(labels).int(), n_bins=bins, norm="l1"
    )
    assert calibration_error(labels, chances, bins) == pytest.approx(float(expected), abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 25), levels=st.integers(1, 8))
def test_no_threshold_beats_the_best_one_also_with_ties(seed, n, levels):
    generator = np.random.default_rng(seed)
    labels = generator.random(n) < 0.4
    labels[0] = True
    scores = generator.integers(0, levels, n) / levels
    chosen = best_threshold(labels, scores)
    assert not np.isin(chosen, scores)
    best = max(sklearn_f1(labels, scores >= t) for t in [*scores, 2.0])
    assert f1_score(labels, scores >= chosen) == pytest.approx(best)


def test_f1_of_nothing_is_unknown():
    assert np.isnan(f1_score(np.zeros(3), np.zeros(3)))
    assert f1_score(np.array([1, 0]), np.array([0, 1])) == 0


# --- labels and heads


def test_labels_are_those_of_the_published_sets():
    labels = all_labels()
    assert len(labels) == len(set(labels)) == 5 + 23 + 71
    rows = [(("IMI", 100.0), ("SR", 0.0), ("NDT", 15.0)), (("NORM", 100.0), ("SR", 0.0)), ()]
    found = label_targets(labels, rows)
    for level in ("super", "sub"):
        columns = [k for k, label in enumerate(labels) if label.level == level]
        np.testing.assert_array_equal(found[:, columns], label_matrix(rows, level).astype(bool))
    said = [
        {label.code for label, yes in zip(labels, row, strict=True) if yes and label.level == "statement"}
        for row in found
    ]
    assert said == [{"IMI", "SR", "NDT"}, {"NORM", "SR"}, set()]


def test_groups_are_the_kinds():
    for label in all_labels():
        if label.level != "statement":
            assert label.group is None
        else:
            kind = {"Disease": "diagnostic", "Form": "form", "Rhythm": "rhythm"}[label.group]
            assert kind in STATEMENTS[label.code].kinds
            assert kind == "diagnostic" or "diagnostic" not in STATEMENTS[label.code].kinds


def test_heads_equal_scikit_learns_and_a_constant_feature_is_harmless():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(150, 6)) * [1, 2, 3, 4, 5, 0] + 3
    targets = np.stack([x[:, 0] + generator.normal(size=150) > 3, x[:, 1] > 5], axis=1)
    heads = fit_heads(x, targets, strength=0.1)
    z = (x - x.mean(axis=0)) / np.where(x.std(axis=0) == 0, 1, x.std(axis=0))
    for k in range(2):
        expected = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(z, targets[:, k]).decision_function(z)
        np.testing.assert_allclose(heads.log_odds(x)[:, k], expected, atol=2e-3)
    with pytest.raises(ParameterError, match="never change"):
        fit_heads(x, np.ones((150, 1)))
    with pytest.raises(ParameterError, match="reads"):
        heads.log_odds(x[:, :3])


def made(labels, thresholds):
    count = len(labels)
    one, zero = np.ones(count), np.zeros(count)
    heads = Heads(np.zeros(2), np.ones(2), np.zeros((count, 2)), zero, one, zero, thresholds)
    return DiagnosisClassifier(labels, heads, model=None)


def test_of_the_rhythms_one_is_said_and_the_rest_goes_by_thresholds():
    statements = [Label("statement", code) for code in ("NORM", "PVC", "SR", "AFIB")]
    labels = (*statements, Label("super", "MI"))
    classifier = made(labels, [0.5, 0.25, 0.9, 0.9, 0.5])
    chances = np.array([[0.5, 0.2, 0.1, 0.2, 0.9], [0.4, 0.25, 0.99, 0.95, 0.1]])
    assert classifier.said(chances).tolist() == [[True, False, False, True, True], [False, True, True, False, False]]
    assert classifier.said(chances[:0]).shape == (0, 5)


def test_the_prompt_is_worded_as_the_originals():
    labels = tuple(Label("statement", code) for code in ("LVH", "PVC", "SR", "AFIB"))
    reading = made(labels, [0.5, 0.9, 0.5, 0.5]).read_features(np.zeros((1, 2)))[0]
    assert reading.present == ("LVH", "SR")
    assert reading.prompt() == (
        "Disease: The left ventricular hypertrophy is present.\nRhythm: The sinus rhythm is present."
    )
    assert reading.probabilities == dict.fromkeys(("LVH", "PVC", "SR", "AFIB"), 0.5)


def test_labels_must_fit_the_heads_and_numbers_must_be_finite():
    with pytest.raises(ParameterError, match="labels"):
        made((Label("super", "MI"),) * 2, [0.5, 0.5])
    for field, value in (("spread", np.zeros(2)), ("bias", np.array([np.nan])), ("slope", np.ones(3))):
        good = {"middle": np.zeros(2), "spread": np.ones(2), "weight": np.zeros((1, 2)), "bias": np.zeros(1)}
        good |= {"slope": np.ones(1), "intercept": np.zeros(1), "threshold": np.full(1, 0.5)}
        with pytest.raises(ParameterError, match=r"shape|finite"):
            Heads(**good | {field: value})


# --- the folder


@pytest.fixture(scope="module")
def material():
    """A tiny random encoder, and windows in which two findings can be seen."""
    torch.manual_seed(0)
    model = EcgCoca(TINY).eval().requires_grad_(False)
    generator = np.random.default_rng(0)
    has = generator.random((120, 2)) < 0.4
    wave = np.sin(np.arange(1000) / 7)
    ecg = generator.normal(size=(120, 12, 1000)) * 0.3
    ecg[:, :6] += np.where(has[:, 0, None, None], wave, 0)
    ecg[:, 6:] += np.where(has[:, 1, None, None], np.roll(wave, 3), 0)
    statements = [(("IMI", 100.0) if mi else ("NORM", 100.0), ("AFIB", 0.0) if af else ("SR", 0.0)) for mi, af in has]
    parts = [(torch.from_numpy(ecg[part]).float(), statements[part]) for part in (slice(70), slice(70, None))]
    return model, parts


@pytest.fixture(scope="module")
def classifier(material):
    model, parts = material
    return fit_classifier(model, *parts, least_train=10, strength=1.0, about={"license": "CC BY 4.0"})


@pytest.fixture
def folder(classifier, tmp_path):
    return save_classifier(classifier, tmp_path / "classifier")


def test_it_learns_names_what_it_left_out_and_counts(classifier, material):
    codes = [(label.level, label.code) for label in classifier.labels]
    assert {("super", "NORM"), ("super", "MI"), ("statement", "IMI"), ("statement", "AFIB")} <= set(codes)
    assert classifier.about["positives"]["super:MI"]["train"] == sum(s[0][0] == "IMI" for s in material[1][0][1])
    assert "0 training records have it" in classifier.about["left_out"]["statement:LVH"]
    assert len(classifier.about["left_out"]) + len(codes) == 5 + 23 + 71
    assert (classifier.heads.threshold <= 0.5).all()
    windows, statements = material[1][1]
    said = classifier.said(classifier.heads.probabilities(classifier.features(windows)))
    assert (said == label_targets(classifier.labels, statements)).mean() > 0.8


def test_scores_of_a_label_set_are_nan_where_unknown(classifier, material):
    windows = material[1][1][0][:5]
    scores = classifier.scores(windows, "rhythm")
    known = {"SR", "AFIB"}
    from ecgchat_lib.datasets.labels import LABEL_SETS

    for column, code in enumerate(LABEL_SETS["rhythm"].classes):
        assert np.isnan(scores[:, column]).all() == (code not in known)
    assert classifier.scores(windows[:0], "super").shape == (0, 5)
    with pytest.raises(ParameterError, match="form"):
        classifier.scores(windows, "form")
    with pytest.raises(EcgChatError, match="unknown label set"):
        classifier.scores(windows, "nonsense")


def test_reloaded_it_says_the_same_and_the_files_hold_no_code(folder, classifier, material):
    again = load_classifier(folder, material[0])
    windows = material[1][1][0]
    np.testing.assert_array_equal(again.scores(windows, "super"), classifier.scores(windows, "super"))
    assert again.labels == classifier.labels
    assert again.about["license"] == "CC BY 4.0"
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["front_end"]["fs"] == 100.0
    assert sorted(path.name for path in folder.iterdir()) == sorted([MANIFEST, WEIGHTS])
    first = (folder / WEIGHTS).read_bytes(), (folder / MANIFEST).read_bytes()
    save_classifier(again, folder)
    assert ((folder / WEIGHTS).read_bytes(), (folder / MANIFEST).read_bytes()) == first


def test_another_encoder_or_front_end_is_refused(folder, material):
    model, _ = material
    torch.manual_seed(1)
    with pytest.raises(EcgChatError, match="fitted on an encoder with sha256"):
        load_classifier(folder, EcgCoca(TINY))
    other = EcgCoca(replace(TINY, encoder=replace(TINY.encoder, band=None)))
    other.load_state_dict(model.state_dict())
    assert encoder_digest(other) == encoder_digest(model)
    with pytest.raises(EcgChatError, match="front end"):
        load_classifier(folder, other)


def edited(**changes):
    def change(folder):
        path = folder / MANIFEST
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def flipped(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def resealed(content):
    """Replace the weights by `content`, with a hash that fits."""
    import hashlib

    def change(folder):
        (folder / WEIGHTS).write_bytes(content)
        edited(sha256={WEIGHTS: hashlib.sha256(content).hexdigest()})(folder)

    return change


BAD = {
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "a changed byte": flipped,
    "not json": lambda folder: (folder / MANIFEST).write_bytes(b"{"),
    "not utf-8": lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe"),
    "a list": lambda folder: (folder / MANIFEST).write_text("[]"),
    "another format": edited(format="ecg-classifier-99"),
    "an unknown label": edited(labels=[["super", "FINE"]]),
    "too few labels": edited(labels=[["super", "NORM"]]),
    "labels of a wrong form": edited(labels=[["super"]]),
    "a hash that is a number": edited(encoder_sha256=3),
    "no front end": edited(front_end=None),
    "garbage weights": resealed(b"\x00" * 100),
    "empty weights": resealed(b""),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_folder_is_an_error_that_names_it(folder, material, name):
    BAD[name](folder)
    with pytest.raises(EcgChatError, match="classifier") as caught:
        load_classifier(folder, material[0])
    assert len(str(caught.value)) < 600


def test_too_little_to_learn_from_is_an_error(material):
    model, parts = material
    with pytest.raises(ParameterError, match="no label has"):
        fit_classifier(model, *parts, least_train=1000)


# --- what the course ships


def test_the_shipped_classifier_reads_the_real_sample():
    from ecgchat_lib.ecg.recording import read_recording

    classifier = load_classifier()
    recordings = [read_recording(data_folder() / "real_sample" / f"A{k:04d}") for k in (1, 2, 3)]
    readings = classifier.predict(recordings)
    for reading, recording in zip(readings, recordings, strict=True):
        assert all(0 < value < 1 for value in reading.probabilities.values())
        assert reading.prompt().count("Rhythm: The ") == 1
        assert classifier.prompt(recording) == reading.prompt()
    assert classifier.predict([]) == []


def test_the_shipped_folder_its_card_and_its_results_say_the_same():
    folder = data_folder() / MINI_FOLDER
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert results["about"] == manifest["about"]
    assert results["encoder_sha256"] == manifest["encoder_sha256"]
    assert (folder / WEIGHTS).stat().st_size < 200_000
    card = (folder / "README.md").read_text(encoding="utf-8")
    for level in results["metrics"]["levels"].values():
        for name in ("macro_auc", "macro_f1"):
            assert f"{level[name]['value']:.3f} [{level[name]['low']:.3f}, {level[name]['high']:.3f}]" in card
        assert level["macro_f1"]["value"] <= level["macro_f1_thresholds_from_these_records"] + 1e-9
    for word in ("CC BY 4.0", "Wagner", "not a medical device", f"n = {results['metrics']['records']}"[4:]):
        assert word in " ".join(card.split()), word
    assert results["metrics"]["levels"]["super"]["macro_auc"]["value"] > 0.85


@pytest.mark.real_data
@pytest.mark.slow
def test_the_recipe_gives_the_shipped_weights_again(tmp_path):
    from ecgchat_lib.coca.checkpoint import load_mini
    from ecgchat_lib.evaluate.classifier_recipe import run

    place = os.environ.get("ECGCHAT_REAL_DATA")
    if not place:
        pytest.skip("ECGCHAT_REAL_DATA isn't set: the real recordings lie outside the project")
    model = load_mini()
    record = run(Path(place) / "ptbxl", tmp_path / "again", model)
    shipped, again = load_classifier(model=model), load_classifier(tmp_path / "again", model)
    assert shipped.labels == again.labels
    np.testing.assert_allclose(shipped.heads.weight, again.heads.weight, atol=2e-3)
    expected = json.loads(RESULTS.read_text(encoding="utf-8"))["metrics"]["levels"]["super"]["macro_auc"]["value"]
    assert record["metrics"]["levels"]["super"]["macro_auc"]["value"] == pytest.approx(expected, abs=0.005)
