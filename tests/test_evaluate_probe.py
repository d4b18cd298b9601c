"""The probe with few labels: each class keeps a positive, the penalty is chosen elsewhere, and plain baselines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgchat_lib.errors import ParameterError
from ecgchat_lib.evaluate.probe import (
    STRENGTHS,
    Parts,
    linear_probe,
    probe_fractions,
    signal_components,
    spectrum_features,
    stratified_rows,
)
from ecgchat_lib.evaluate.zero_shot import macro_auc


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 300),
    share=st.floats(0.01, 0.6),
    fraction=st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 999),
)
def test_every_class_keeps_a_positive(n, share, fraction, seed):
    labels = np.random.default_rng(seed).random((n, 4)) < share
    rows = stratified_rows(labels, fraction, seed)
    assert len(rows) == len(set(rows.tolist()))
    assert len(rows) >= round(fraction * n)
    assert len(rows) <= round(fraction * n) + 6 + n * 0.12
    assert (labels[rows].any(axis=0) == labels.any(axis=0)).all()
    if fraction == 1:
        assert len(rows) == n
    np.testing.assert_array_equal(rows, stratified_rows(labels, fraction, seed))


def test_classes_keep_their_shares():
    labels = np.random.default_rng(0).random((5000, 3)) < (0.02, 0.1, 0.4)
    kept = labels[stratified_rows(labels, 0.1)].sum(axis=0)
    np.testing.assert_allclose(kept / labels.sum(axis=0), 0.1, atol=0.02)
    assert set(stratified_rows(labels, 0.1, 1)) != set(stratified_rows(labels, 0.1, 2))
    for wrong in (0, -0.1, 1.5):
        with pytest.raises(ParameterError, match="above 0 to 1"):
            stratified_rows(labels, wrong)


def made(n, seed, noise=1.0):
    generator = np.random.default_rng(seed)
    labels = generator.random((n, 3)) < (0.1, 0.3, 0.5)
    pattern = np.random.default_rng(99).normal(size=(3, 12))
    return labels @ pattern + noise * generator.normal(size=(n, 12)), labels


def parts():
    found = [made(n, seed) for seed, n in enumerate((600, 150, 150))]
    return Parts(*(x for x, _ in found)), Parts(*(y for _, y in found))


def test_more_labels_score_higher_and_better_features_score_higher():
    x, y = parts()
    noisy = Parts(*(one + 6 * np.random.default_rng(k).normal(size=one.shape) for k, one in enumerate(x)))
    report = probe_fractions({"good": x, "noisy": noisy}, y, draws=3)
    assert list(report["good"]) == ["0.01", "0.1", "1"]
    good = [report["good"][key]["macro_auc"] for key in ("0.01", "0.1", "1")]
    assert good == sorted(good)
    for key in ("0.01", "0.1", "1"):
        assert report["good"][key]["macro_auc"] > report["noisy"][key]["macro_auc"]
        assert report["good"][key]["labels"] == report["noisy"][key]["labels"]
    assert report["good"]["1"]["sd"] is None
    assert len(report["good"]["0.01"]["values"]) == 3
    interval = report["good"]["1"]["interval"]
    assert interval["low"] < report["good"]["1"]["macro_auc"] == interval["value"] < interval["high"]
    again = probe_fractions({"good": x}, y, draws=3)
    assert again["good"] == report["good"]


def test_the_penalty_is_chosen_on_the_choosing_records():
    x, y = parts()
    found = probe_fractions({"x": x}, y, fractions=[1.0])["x"]["1"]
    areas = [macro_auc(y.choose, linear_probe(x.train, y.train, x.choose, strength=one)) for one in STRENGTHS]
    best = STRENGTHS[int(np.argmax(areas))]
    assert found["strengths"] == [best]
    assert found["macro_auc"] == pytest.approx(
        macro_auc(y.report, linear_probe(x.train, y.train, x.report, strength=best))
    )


def test_what_nobody_labeled_cannot_be_learned():
    x, y = parts()
    y.train[:, 2] = False
    found = probe_fractions({"x": x}, y, fractions=[1.0])["x"]["1"]["macro_auc"]
    y.train[:] = False
    assert probe_fractions({"x": x}, y, fractions=[1.0])["x"]["1"]["macro_auc"] == 0.5 < found


def test_plain_features_of_the_signal():
    from sklearn.decomposition import PCA

    windows = np.random.default_rng(0).normal(size=(30, 12, 205))
    train, other = signal_components(windows[:20], windows[20:], components=64)
    assert train.shape == (20, 20)
    assert other.shape == (10, 20)
    generator = np.random.default_rng(1)
    low_rank = (generator.normal(size=(30, 3)) * (9, 5, 2)) @ generator.normal(size=(3, 12 * 200))
    windows = low_rank.reshape(30, 12, 200)
    pooled = windows.reshape(30, 12, 20, 10).mean(axis=3).reshape(30, -1)
    full = PCA(3, svd_solver="full").fit(pooled[:20]).transform(pooled[20:])
    ours = signal_components(windows[:20], windows[20:], components=3)[1]
    np.testing.assert_allclose(np.abs(ours), np.abs(full), atol=1e-6)

    tone = np.zeros((1, 12, 1000))
    tone[0, 3] = np.sin(2 * np.pi * 7.5 * np.arange(1000) / 100)
    spectrum = spectrum_features(tone, 100.0).reshape(1, 12, 40)
    assert spectrum[0, 3].argmax() == 7
    np.testing.assert_allclose(
        spectrum_features(np.roll(tone, 130, axis=2), 100.0), spectrum_features(tone, 100.0), atol=1e-6
    )
