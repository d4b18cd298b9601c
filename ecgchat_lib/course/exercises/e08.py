"""Exercises of notebook 08: recall when reports repeat, an honest threshold, and another patient's numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ecgchat_lib.course import Exercise, Misconception, expect_equal

# --- 08.1 --------------------------------------------------------------------------------------------------------


def recall(similarity: np.ndarray, k: int, says: Sequence[object]) -> float:
    """Reference of 08.1: the library's duplicate-aware recall from ECG to report."""
    from ecgchat_lib.evaluate.retrieval import recall_at

    return recall_at(similarity, k, list(says))["ecg_to_report"][k]


def _verify_recall(answer: Callable[..., float], rng: Any) -> None:
    for _ in range(12):
        n, k = int(rng.integers(8, 30)), int(rng.integers(1, 5))
        similarity = rng.normal(size=(n, n))
        says = [f"report {number}" for number in rng.integers(0, n // 2, size=n)]
        found, expected = answer(similarity.copy(), k, list(says)), recall(similarity, k, says)
        if found is not None and np.size(found) == 1 and not np.isclose(found, expected):
            for wrong, reason in (
                (_strict, "only the ECG's own report counts in your answer; one that says the same is as right"),
                (_wrong_way, "you ask which ECGs fit a report. Rows are ECGs: sort along axis 1"),
                (_least, "you take the k least similar reports. Sort the negative similarity"),
                (_share, "you count every right report. A query with two right ones among k is still one success"),
            ):
                if np.isclose(found, wrong(similarity, k, says)):
                    raise Misconception(f"{n} pairs, k = {k}: {reason}.")
        expect_equal(found, expected, f"recall at {k} of {n} pairs")


def _hits(similarity: np.ndarray, k: int, says: Sequence[object]) -> np.ndarray:
    first = np.argsort(-similarity, axis=1)[:, :k]
    return np.array([[says[j] == says[i] for j in first[i]] for i in range(len(similarity))])


def _strict(similarity: np.ndarray, k: int, says: Sequence[object]) -> float:
    return float(_hits(similarity, k, range(len(says))).any(axis=1).mean())


def _wrong_way(similarity: np.ndarray, k: int, says: Sequence[object]) -> float:
    return float(_hits(similarity.T, k, says).any(axis=1).mean())


def _least(similarity: np.ndarray, k: int, says: Sequence[object]) -> float:
    return float(_hits(-similarity, k, says).any(axis=1).mean())


def _share(similarity: np.ndarray, k: int, says: Sequence[object]) -> float:
    return float(_hits(similarity, k, says).sum(axis=1).mean())


# --- 08.2 --------------------------------------------------------------------------------------------------------


def _f1(labels: np.ndarray, scores: np.ndarray, threshold: float) -> float:
    said = scores >= threshold
    return float(2 * (labels & said).sum() / max(1, labels.sum() + said.sum()))


def _best(labels: np.ndarray, scores: np.ndarray) -> float:
    return max(sorted(set(scores)), key=lambda threshold: _f1(labels, scores, threshold))


def honest_f1(
    val_labels: np.ndarray, val_scores: np.ndarray, test_labels: np.ndarray, test_scores: np.ndarray
) -> float:
    """Reference of 08.2: F1 on test at the threshold that is best on validation."""
    return _f1(test_labels, test_scores, _best(val_labels, val_scores))


def _verify_threshold(answer: Callable[..., float], rng: Any) -> None:
    for _ in range(12):
        val, test = (_labeled(int(rng.integers(20, 60)), rng) for _ in range(2))
        found, expected = answer(*(part.copy() for part in (*val, *test))), honest_f1(*val, *test)
        if found is not None and np.size(found) == 1 and not np.isclose(found, expected):
            if np.isclose(found, _f1(*test, _best(*test))):
                raise Misconception("You chose the threshold on the test records, so they grade their own exam.")
            if np.isclose(found, _f1(*val, _best(*val))):
                raise Misconception("That is the F1 on validation. Report it on the test records.")
            if np.isclose(found, _f1(*test, 0.5)):
                raise Misconception(
                    "A threshold of 0.5 fits probabilities. These scores are cosines; choose it on validation."
                )
            if np.isclose(found, _most_accurate(*val, *test)):
                raise Misconception("You maximize the accuracy. Where a class is rare, that says no to everything.")
        expect_equal(found, expected, f"{len(val[0])} validation and {len(test[0])} test records")


def _labeled(n: int, rng: Any) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.random(n) < 0.25
    labels[:2] = True, False
    return labels, np.round(0.2 * labels + 0.2 * rng.normal(size=n), 2)


def _on_test(val_labels: np.ndarray, val_scores: np.ndarray, test_labels: np.ndarray, test_scores: np.ndarray) -> float:
    return _f1(test_labels, test_scores, _best(test_labels, test_scores))


def _half(val_labels: np.ndarray, val_scores: np.ndarray, test_labels: np.ndarray, test_scores: np.ndarray) -> float:
    return _f1(test_labels, test_scores, 0.5)


def _most_accurate(
    val_labels: np.ndarray, val_scores: np.ndarray, test_labels: np.ndarray, test_scores: np.ndarray
) -> float:
    best = max(sorted(set(val_scores)), key=lambda t: float(((val_scores >= t) == val_labels).mean()))
    return _f1(test_labels, test_scores, best)


# --- 08.3 --------------------------------------------------------------------------------------------------------


def foreign(patients: np.ndarray, rng: Any) -> np.ndarray:
    """Reference of 08.3: the library's derangement, which leaves every patient where it can."""
    from ecgchat_lib.evaluate.controls import derangement

    return derangement(list(patients), int(rng.integers(0, 2**31)))


def _verify_foreign(answer: Callable[..., Any], rng: Any) -> None:
    for _ in range(15):
        n = int(rng.integers(8, 40))
        patients = rng.permutation(np.repeat(np.arange(n), rng.integers(1, 4, n))[:n])
        found = answer(patients.copy(), np.random.default_rng(int(rng.integers(0, 2**31))))
        if found is None or np.shape(found) != (n,):
            raise Misconception(f"{n} records: expected {n} row numbers, got {np.shape(found)}.")
        rows = np.asarray(found)
        if not np.issubdtype(rows.dtype, np.integer) or rows.min() < 0 or rows.max() >= n:
            raise Misconception(f"{n} records: the answer holds something else than row numbers from 0 to {n - 1}.")
        if len(set(rows.tolist())) < n:
            raise Misconception("A row is used twice, so some numbers appear more often than before.")
        if (rows == np.arange(n)).any():
            raise Misconception("A record keeps its own numbers.")
        if (patients[rows] == patients).any():
            raise Misconception("A record gets numbers of the same patient, measured on another day: much alike.")


def _shuffled(patients: np.ndarray, rng: Any) -> np.ndarray:
    return np.asarray(rng.permutation(len(patients)))


def _rolled(patients: np.ndarray, rng: Any) -> np.ndarray:
    return np.roll(np.arange(len(patients)), 1)


def _drawn(patients: np.ndarray, rng: Any) -> np.ndarray:
    return np.array([rng.choice(np.flatnonzero(patients != one)) for one in patients])


EXERCISES = (
    Exercise(
        id="08.1",
        title="Recall when reports repeat",
        difficulty=2,
        minutes=15,
        verify=_verify_recall,
        reference=recall,
        wrong=(
            ("counts the own report only", _strict),
            ("sorts along the wrong axis", _wrong_way),
            ("counts every hit", _share),
        ),
    ),
    Exercise(
        id="08.2",
        title="A threshold that was chosen honestly",
        difficulty=2,
        minutes=15,
        verify=_verify_threshold,
        reference=honest_f1,
        wrong=(
            ("chooses on the test records", _on_test),
            ("takes 0.5", _half),
            ("maximizes accuracy", _most_accurate),
        ),
    ),
    Exercise(
        id="08.3",
        title="Another patient's numbers",
        difficulty=2,
        minutes=15,
        verify=_verify_foreign,
        reference=foreign,
        wrong=(
            ("shuffles, so that some keep their own", _shuffled),
            ("takes the next record, whoever it is of", _rolled),
            ("draws with repetition", _drawn),
        ),
    ),
)
