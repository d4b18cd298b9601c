"""Zero-shot classes: describe each class in words, and score an ECG by its similarity to the words.

No label is used. The area under the ROC curve needs no threshold; whoever wants F1 has to choose thresholds on other
records than those reported. Taught in: 08 §4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from scipy.stats import rankdata

from ecgchat_lib.errors import ParameterError

# What each diagnostic superclass of PTB-XL covers, in a reader's words.
PROMPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "NORM": ("normal ECG", "sinus rhythm, normal ECG", "ECG within normal limits"),
        "MI": (
            "myocardial infarction",
            "inferior myocardial infarction",
            "anteroseptal myocardial infarction",
            "anterior myocardial infarction",
            "pathological Q waves",
        ),
        "STTC": (
            "ST-T changes",
            "non-specific ST changes",
            "ST segment depression",
            "T wave abnormality",
            "inverted T waves",
            "ischemic changes",
        ),
        "CD": (
            "conduction disturbance",
            "left bundle branch block",
            "right bundle branch block",
            "left anterior fascicular block",
            "first degree AV block",
            "intraventricular conduction delay",
        ),
        "HYP": (
            "hypertrophy",
            "left ventricular hypertrophy",
            "voltage criteria for left ventricular hypertrophy",
            "left atrial enlargement",
        ),
    }
)


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve: the chance that a random positive scores above a random negative.

    Args:
        labels: (n,) booleans or 0/1.
        scores: (n,); ties count half.

    Returns:
        0 to 1; NaN if only one class is there. Equals scikit-learn's `roc_auc_score`.

    Source: Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747.
    """
    labels = np.asarray(labels, dtype=bool)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def macro_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean area over the classes that have both positives and negatives; NaN if none has.

    Args:
        labels: (n, classes).
        scores: (n, classes).
    """
    areas = [auc(labels[:, k], scores[:, k]) for k in range(labels.shape[1])]
    return float(np.nanmean(areas)) if not np.all(np.isnan(areas)) else float("nan")


def prompt_scores(
    ecg: np.ndarray,
    embed: Callable[[Sequence[str]], np.ndarray],
    prompts: Mapping[str, Sequence[str]] = PROMPTS,
    *,
    against: str | None = None,
) -> np.ndarray:
    """Return scores (n, classes): each ECG's mean cosine to the prompts of each class.

    Some ECGs are near to every text, others far from all. Subtracting the score of one class (`against`, the normal
    ECG) takes that out and leaves the question "rather this than normal?".

    Args:
        ecg: (n, dim) embeddings, L2-normalized.
        embed: texts → (m, dim) embeddings, L2-normalized; `lambda texts: embed_texts(texts, model).numpy()`.
        prompts: class → its prompts.
        against: the class whose score is subtracted from all the others', or None.

    Raises:
        ParameterError: a class has no prompt, or `against` is not among the classes.
    """
    empty = [name for name, texts in prompts.items() if not texts]
    if empty:
        raise ParameterError(f"the classes {', '.join(empty)} have no prompt. Write at least one for each.")
    if against is not None and against not in prompts:
        raise ParameterError(f"against={against!r} is not one of the classes {', '.join(prompts)}")
    ecg = np.asarray(ecg, dtype=np.float64)
    means = [np.asarray(embed(list(texts)), dtype=np.float64).mean(axis=0) for texts in prompts.values()]
    scores = ecg @ np.stack(means).T  # (n, classes)
    if against is not None:
        reference = list(prompts).index(against)
        others = np.arange(scores.shape[1]) != reference
        scores[:, others] -= scores[:, [reference]]
    return scores
