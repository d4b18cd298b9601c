"""Retrieval, zero-shot, probe and bootstrap: against scikit-learn, by hand, and at their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, top_k_accuracy_score

from ecgchat_lib.errors import ParameterError
from ecgchat_lib.evaluate.bootstrap import bootstrap_interval
from ecgchat_lib.evaluate.probe import linear_probe
from ecgchat_lib.evaluate.retrieval import chance_recall, ranks_of_right, recall_at
from ecgchat_lib.evaluate.zero_shot import PROMPTS, auc, macro_auc, prompt_scores


@settings(max_examples=60, deadline=None)
@given(n=st.integers(4, 60), levels=st.integers(2, 8), seed=st.integers(0, 10**6))
def test_auc_equals_scikit_learns_with_ties(n, levels, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, n)
    labels[:2] = 0, 1
    scores = generator.integers(0, levels, n).astype(float)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_macro_auc_equals_scikit_learns_and_leaves_empty_classes_out():
    generator = np.random.default_rng(0)
    labels, scores = generator.integers(0, 2, (50, 4)), generator.normal(size=(50, 4))
    assert macro_auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores, average="macro"))
    labels[:, 2] = 0
    assert macro_auc(labels, scores) == pytest.approx(np.mean([auc(labels[:, k], scores[:, k]) for k in (0, 1, 3)]))
    assert math.isnan(auc(labels[:, 2], scores[:, 2]))
    assert math.isnan(macro_auc(labels[:, [2]], scores[:, [2]]))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 30), k=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_recall_without_duplicates_equals_scikit_learns_top_k_accuracy(n, k, seed):
    similarity = np.random.default_rng(seed).normal(size=(n, n))
    recall = recall_at(similarity, k)
    if k < n and n > 2:
        expected = top_k_accuracy_score(np.arange(n), similarity, k=k)
        assert recall["ecg_to_report"][k] == pytest.approx(expected)
    assert recall["report_to_ecg"] == recall_at(similarity.T, k)["ecg_to_report"]


def test_equal_reports_are_equally_right():
    similarity = np.array([[0.1, 0.9, 0.2], [0.8, 0.3, 0.1], [0.5, 0.6, 0.4]])
    assert ranks_of_right(similarity).tolist() == [2, 1, 2]
    assert ranks_of_right(similarity, ["normal", "normal", "AF"]).tolist() == [0, 0, 2]
    assert recall_at(similarity, 1, ["normal", "normal", "AF"])["ecg_to_report"][1] == pytest.approx(2 / 3)


def test_a_constant_similarity_earns_nothing():
    assert recall_at(np.ones((20, 20)), (1, 5))["ecg_to_report"] == {1: 0.0, 5: 0.0}


def test_chance_recall_is_what_random_similarities_reach():
    keys = ["normal"] * 30 + [f"rare {k}" for k in range(10)]
    generator = np.random.default_rng(0)
    for k in (1, 5, 10):
        measured = [recall_at(generator.normal(size=(40, 40)), k, keys)["ecg_to_report"][k] for _ in range(200)]
        assert chance_recall(keys, k) == pytest.approx(np.mean(measured), abs=0.015)
    assert chance_recall(["a", "b"], 5) == 1.0
    assert chance_recall(list(range(10)), 3) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("similarity", "k", "keys", "message"),
    [
        (np.zeros((2, 3)), 1, None, r"\(n, n\)"),
        (np.zeros((2, 2)), 1, ["a"], "and 1"),
        (np.full((2, 2), np.nan), 1, None, "NaN"),
        (np.zeros((2, 2)), 0, None, "counts from 1"),
    ],
)
def test_retrieval_tells_what_is_wrong(similarity, k, keys, message):
    with pytest.raises(ParameterError, match=message):
        recall_at(similarity, k, keys)


def one_hot(texts):
    return np.eye(4)[[("normal", "infarction", "block", "high").index(t) for t in texts]]


def test_prompt_scores_are_mean_cosines():
    ecg = np.array([[1.0, 0, 0, 0], [0, 0.6, 0.8, 0]])
    prompts = {"NORM": ["normal"], "ill": ["infarction", "block"]}
    np.testing.assert_allclose(prompt_scores(ecg, one_hot, prompts), [[1, 0], [0, 0.7]])
    np.testing.assert_allclose(prompt_scores(ecg, one_hot, prompts, against="NORM"), [[1, -1], [0, 0.7]])
    with pytest.raises(ParameterError, match="have no prompt"):
        prompt_scores(ecg, one_hot, {"NORM": []})
    with pytest.raises(ParameterError, match="not one of the classes"):
        prompt_scores(ecg, one_hot, prompts, against="MI")


def test_every_superclass_has_prompts_and_none_is_shared():
    from ecgchat_lib.datasets.labels import SUPERCLASSES

    assert tuple(PROMPTS) == SUPERCLASSES
    every = [prompt for prompts in PROMPTS.values() for prompt in prompts]
    assert len(every) == len(set(every))


def test_probe_equals_scikit_learns_pipeline():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    generator = np.random.default_rng(0)
    train, test = generator.normal(size=(80, 6)) * 3 + 1, generator.normal(size=(20, 6))
    labels = (train[:, :2] + generator.normal(size=(80, 2)) > 1).astype(int)
    ours = linear_probe(train, labels, test, strength=0.5)
    for k in range(2):
        pipe = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, max_iter=1000)).fit(train, labels[:, k])
        np.testing.assert_allclose(ours[:, k], pipe.decision_function(test), rtol=1e-6)
    with pytest.raises(ParameterError, match=r"columns \[1\] never change"):
        linear_probe(train, np.stack([labels[:, 0], np.zeros(80)], axis=1), test)
    with pytest.raises(ParameterError, match="don't fit"):
        linear_probe(train, labels[:5], test)


class TestBootstrap:
    def test_covers_the_true_mean_about_as_often_as_it_says(self):
        generator = np.random.default_rng(1)
        hits = 0
        for seed in range(100):
            sample = generator.normal(5.0, 1.0, size=60)
            interval = bootstrap_interval(lambda x: float(x.mean()), sample, draws=200, seed=seed)
            hits += interval.low <= 5.0 <= interval.high
        assert 87 <= hits <= 99

    def test_resamples_rows_of_all_arrays_together(self):
        x = np.arange(30.0)
        interval = bootstrap_interval(lambda a, b: float(np.abs(a - b).max()), x, x, draws=50)
        assert (interval.value, interval.low, interval.high, interval.n) == (0.0, 0.0, 0.0, 30)

    def test_groups_widen_the_interval(self):
        values = np.repeat(np.random.default_rng(0).normal(size=20), 10)
        patients = np.repeat(np.arange(20), 10).tolist()
        alone = bootstrap_interval(lambda x: float(x.mean()), values, draws=300)
        grouped = bootstrap_interval(lambda x: float(x.mean()), values, groups=patients, draws=300)
        assert grouped.high - grouped.low > 2 * (alone.high - alone.low)

    def test_same_seed_same_interval(self):
        values = np.random.default_rng(0).normal(size=40)
        one, two, other = (bootstrap_interval(lambda x: float(x.mean()), values, seed=s, draws=100) for s in (1, 1, 2))
        assert one == two
        assert one != other
        assert "n = 40" in str(one)

    def test_says_what_is_wrong(self):
        with pytest.raises(ParameterError, match="one length above 0"):
            bootstrap_interval(lambda a, b: 0.0, np.zeros(2), np.zeros(3))
        with pytest.raises(ParameterError, match="one length above 0"):
            bootstrap_interval(lambda a: 0.0, np.zeros(0))
        with pytest.raises(ParameterError, match="NaN on every resample"):
            bootstrap_interval(lambda a: math.nan, np.zeros(3), draws=5)
