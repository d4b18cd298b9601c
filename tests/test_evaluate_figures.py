"""AUC, average precision, F1, thresholds, retrieval reports and controls: against scikit-learn and torchmetrics."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score
from torchmetrics.classification import MultilabelAUROC, MultilabelAveragePrecision, MultilabelF1Score
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalRecall

from ecgchat_lib.errors import ParameterError
from ecgchat_lib.evaluate.bootstrap import bootstrap_interval, resample_counts
from ecgchat_lib.evaluate.controls import VARIANTS, derangement, wde_controls
from ecgchat_lib.evaluate.metrics import choose_thresholds, class_figures, floors, score_report
from ecgchat_lib.evaluate.retrieval import chance_median_rank, chance_recall, ranks_of_right, retrieval_report
from ecgchat_lib.evaluate.zero_shot import macro_auc


def f1_by_hand(labels, said):
    return 2 * (labels * said).sum() / (labels.sum() + said.sum())


def drawn(n, classes, levels, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, (n, classes))
    labels[:2] = [[0], [1]]
    return labels, generator.integers(0, levels, (n, classes)) / levels + 0.2 * labels, generator


@settings(max_examples=12, deadline=None)
@given(n=st.integers(4, 60), levels=st.integers(2, 40), seed=st.integers(0, 10**6), weighted=st.booleans())
def test_figures_equal_scikit_learns(n, levels, seed, weighted):
    labels, scores, generator = drawn(n, 3, levels, seed)
    weights = generator.integers(0, 4, (2, n)) if weighted else np.ones((1, n), dtype=int)
    weights[:, :2] += 1
    thresholds = np.array([0.3, 0.5, 0.7])
    ours = class_figures(labels, scores, thresholds, weights)
    for row, w in enumerate(weights):
        for k in range(3):
            y, s = labels[:, k], scores[:, k]
            assert ours["auc"][row, k] == pytest.approx(roc_auc_score(y, s, sample_weight=w))
            assert ours["auprc"][row, k] == pytest.approx(average_precision_score(y, s, sample_weight=w))
            assert ours["f1"][row, k] == pytest.approx(f1_score(y, s >= thresholds[k], sample_weight=w))
            precision, recall, _ = precision_recall_curve(y, s, sample_weight=w)
            with np.errstate(invalid="ignore"):
                best = np.nanmax(2 * precision * recall / (precision + recall))
            assert ours["oracle_f1"][row, k] == pytest.approx(best)


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_torchmetrics(seed):
    labels, scores, _ = drawn(80, 4, 1000, seed)
    scores = scores / scores.max()  # torchmetrics reads probabilities
    ours = class_figures(labels, scores, np.full(4, 0.5))
    given_to = torch.from_numpy(scores), torch.from_numpy(labels)
    for name, other in {
        "auc": MultilabelAUROC(4, average=None),
        "auprc": MultilabelAveragePrecision(4, average=None),
        "f1": MultilabelF1Score(4, average=None, threshold=0.5 - 1e-9),
    }.items():
        np.testing.assert_allclose(ours[name], other(*given_to).numpy(), atol=1e-5, err_msg=name)


def test_a_class_without_positives_has_no_figure_and_is_named():
    labels, scores, _ = drawn(40, 4, 50, 0)
    labels[:, 1], labels[:, 2] = 0, 1
    ours = class_figures(labels, scores, np.full(4, 0.5))
    assert [math.isnan(v) for v in ours["auprc"]] == [False, True, False, False]
    assert [math.isnan(v) for v in ours["auc"]] == [False, True, True, False]
    report = score_report(labels, scores, list("abcd"), thresholds=np.array([0.5, np.nan, 0.5, np.nan]), draws=50)
    assert report["without_positives"] == ["b"]
    assert report["without_threshold"] == ["d"]
    assert report["classes"]["b"] == {"positives": 0}
    assert "auc" not in report["classes"]["c"]
    assert report["macro"]["auc"]["value"] == pytest.approx(macro_auc(labels, scores))
    assert report["macro"]["f1"]["value"] == pytest.approx(np.nanmean([ours["f1"][0], ours["f1"][2]]))
    none = score_report(np.zeros((5, 1), int), np.zeros((5, 1)), ["x"], draws=10)
    assert none["macro"] == {}
    assert none["without_positives"] == ["x"]


def test_intervals_are_those_of_the_plain_bootstrap():
    labels, scores, generator = drawn(60, 3, 100, 3)
    patients = generator.integers(0, 25, 60).tolist()
    report = score_report(labels, scores, list("abc"), groups=patients, draws=80, seed=5)
    plain = bootstrap_interval(macro_auc, labels, scores, groups=patients, draws=80, seed=5)
    assert report["macro"]["auc"] == pytest.approx(plain.as_dict())
    one = bootstrap_interval(
        lambda y, s: average_precision_score(y, s), labels[:, 1], scores[:, 1], groups=patients, draws=80, seed=5
    )
    assert report["classes"]["b"]["auprc"] == pytest.approx(one.as_dict())
    assert report["groups"] == len(set(patients))


def test_resamples_draw_whole_groups():
    counts = resample_counts(["a", "b", "a", "c"], draws=30, seed=1)
    assert counts.shape == (30, 4)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    assert (counts[:, [0, 1, 3]].sum(axis=1) == 3).all()


@settings(max_examples=15, deadline=None)
@given(n=st.integers(3, 25), levels=st.integers(2, 30), seed=st.integers(0, 10**6))
def test_no_threshold_beats_the_chosen_one(n, levels, seed):
    labels, scores, _ = drawn(n, 2, levels, seed)
    chosen = choose_thresholds(labels, scores)
    for k in range(2):
        others = {t: f1_by_hand(labels[:, k], scores[:, k] >= t) for t in scores[:, k]}
        best = others[chosen[k]]
        assert best == pytest.approx(max(others.values()))
        assert chosen[k] == min(t for t, value in others.items() if value == pytest.approx(best))
    frozen = class_figures(labels, scores, chosen)
    np.testing.assert_allclose(frozen["f1"], frozen["oracle_f1"])  # on the very records they were chosen on


def test_thresholds_of_missing_classes_are_unknown():
    chosen = choose_thresholds(np.array([[0, 1], [0, 0]]), np.array([[0.1, 0.9], [0.2, 0.3]]))
    assert math.isnan(chosen[0])
    assert chosen[1] == 0.9


def test_floors_are_what_random_scores_reach():
    generator = np.random.default_rng(0)
    labels = (generator.random((400, 3)) < (0.05, 0.3, 0.7)).astype(int)
    floor = floors(labels, draws=100)
    measured = [class_figures(labels, generator.normal(size=labels.shape)) for _ in range(100)]
    for name in ("auc", "auprc", "oracle_f1"):
        np.testing.assert_allclose(
            floor[name], np.mean([m[name] for m in measured], axis=0), atol=0.03 if name == "auprc" else 0.012
        )
    yes = [f1_score(labels[:, k], np.ones(400)) for k in range(3)]
    np.testing.assert_allclose(floor["f1"], yes)
    assert (floor["oracle_f1"] >= floor["f1"] - 1e-9).all()
    assert np.isnan(floors(np.zeros((4, 1)))["auprc"]).all()


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3)), "expected both"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "not empty"),
        (np.array([[0.5]]), np.zeros((1, 1)), "0 and 1"),
        (np.ones((1, 1)), np.full((1, 1), np.nan), "NaN"),
    ],
)
def test_what_cannot_be_measured(labels, scores, message):
    with pytest.raises(ParameterError, match=message):
        choose_thresholds(labels, scores)
    with pytest.raises(ParameterError, match=message):
        class_figures(labels, scores)


def test_reports_refuse_what_does_not_fit():
    labels, scores, _ = drawn(6, 2, 5, 0)
    with pytest.raises(ParameterError, match="1 class names"):
        score_report(labels, scores, ["a"])
    with pytest.raises(ParameterError, match="2 groups for 6"):
        score_report(labels, scores, ["a", "b"], groups=[1, 2])
    with pytest.raises(ParameterError, match="don't fit"):
        class_figures(labels, scores, np.zeros(3))
    with pytest.raises(ParameterError, match="one group for each"):
        retrieval_report(np.eye(3), groups=[1])


# --- retrieval ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_retrieval_equals_torchmetrics(seed):
    generator = np.random.default_rng(seed)
    n = 40
    similarity, keys = generator.normal(size=(n, n)), generator.integers(0, 25, n).tolist()
    same = np.array(keys)[:, None] == np.array(keys)[None, :]
    report = retrieval_report(similarity, keys, draws=20)
    for name, matrix in {"ecg_to_report": similarity, "report_to_ecg": similarity.T}.items():
        index = torch.arange(n).repeat_interleave(n)
        scores = torch.from_numpy(np.exp(matrix)).flatten()  # torchmetrics takes what is not above 0 for no answer
        for k in (1, 5, 10):
            hit = RetrievalHitRate(top_k=k)(scores, torch.from_numpy(same).flatten(), indexes=index)
            assert report[name][f"recall_at_{k}"]["value"] == pytest.approx(float(hit), abs=1e-6)
            strict = RetrievalRecall(top_k=k)(scores, torch.eye(n, dtype=torch.bool).flatten(), indexes=index)
            assert report["strict"]["recall"][name][f"recall_at_{k}"] == pytest.approx(float(strict), abs=1e-6)
        mrr = RetrievalMRR()(scores, torch.from_numpy(same).flatten(), indexes=index)
        assert float(mrr) == pytest.approx((1 / (ranks_of_right(matrix, keys) + 1)).mean(), abs=1e-6)


def test_retrieval_intervals_are_those_of_the_plain_bootstrap():
    generator = np.random.default_rng(1)
    similarity, patients = generator.normal(size=(30, 30)) + np.eye(30), generator.integers(0, 12, 30).tolist()
    report = retrieval_report(similarity, groups=patients, draws=60, seed=3)
    ranks = ranks_of_right(similarity) + 1
    for name, metric in {
        "recall_at_5": lambda r: float((r <= 5).mean()),
        "median_rank": lambda r: float(np.median(r)),
    }.items():
        plain = bootstrap_interval(metric, ranks, groups=patients, draws=60, seed=3)
        assert report["ecg_to_report"][name] == pytest.approx(plain.as_dict())
    assert report["strict"]["median_rank"]["ecg_to_report"] == report["ecg_to_report"]["median_rank"]["value"]
    assert report["chance"]["distinct_reports"] == report["pairs"] == 30


def test_chance_median_rank_is_what_random_orders_reach():
    keys = ["normal"] * 6 + list(range(35))
    generator = np.random.default_rng(0)
    medians = [np.median(ranks_of_right(generator.normal(size=(41, 41)), keys) + 1) for _ in range(200)]
    assert chance_median_rank(keys) == pytest.approx(np.mean(medians), abs=1.0)
    rank = chance_median_rank(keys)
    assert chance_recall(keys, rank) >= 0.5 > chance_recall(keys, rank - 1)
    assert chance_median_rank(["same"] * 9) == 1


# --- controls of WDE ---------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(groups=st.lists(st.integers(0, 8), min_size=2, max_size=40), seed=st.integers(0, 99))
def test_a_derangement_moves_everyone_out_of_the_group_where_it_can(groups, seed):
    other = derangement(groups, seed)
    assert sorted(other) == list(range(len(groups)))
    assert (other != np.arange(len(groups))).all()
    if 2 * max(groups.count(g) for g in groups) <= len(groups):
        assert all(groups[a] != groups[b] for a, b in enumerate(other))


def test_wde_controls():
    words, wde = ["Normal ECG.", "Normal ECG.", "AF."], [" RR: 800", " RR: 900", " RR: 400"]
    variants = wde_controls(words, wde, ["n", "n", "af"], seed=2)
    assert tuple(variants) == tuple(VARIANTS)
    assert variants["words"] == (words, ["n", "n", "af"])
    assert variants["words_wde"].texts[0] == "Normal ECG. RR: 800"
    assert variants["words_wde"].keys == [("n", "RR: 800"), ("n", "RR: 900"), ("af", "RR: 400")]
    assert variants["numbers"].texts == variants["numbers"].keys == ["RR: 800", "RR: 900", "RR: 400"]
    for own, foreign in zip(variants["words_wde"].texts, variants["shuffled"].texts, strict=True):
        assert own != foreign
        assert own.split(" RR")[0] == foreign.split(" RR")[0]
    assert wde_controls(words, wde, ["n", "n", "af"], seed=2) == variants
    with pytest.raises(ParameterError, match="as many"):
        wde_controls(words, wde[:2], ["n", "n", "af"])


def test_figures_warn_about_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels, scores, _ = drawn(30, 3, 4, 0)
        labels[2:, 0] = 0
        score_report(labels, scores, list("abc"), thresholds=np.array([0.5, 0.5, np.nan]), draws=100)
