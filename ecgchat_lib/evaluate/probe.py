"""The linear probe: how much of the labels can be read from frozen embeddings by a straight line.

scikit-learn's logistic regression, one per class, on standardized embeddings. It is supervised, so it is no zero-shot
result; and a random encoder must be probed beside it, because that scores well too. Taught in: 08 §5.
"""

from __future__ import annotations

import numpy as np

from ecgchat_lib.errors import ParameterError


def linear_probe(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, strength: float = 0.05, iterations: int = 1000
) -> np.ndarray:
    """Fit one logistic regression per class and return its scores on the test rows.

    Args:
        train: (n, width) embeddings.
        labels: (n, classes) 0/1.
        test: (m, width) embeddings; standardized with the training rows' mean and deviation.
        strength: inverse of the L2 penalty (scikit-learn's `C`).
        iterations: most iterations of the solver.

    Returns:
        (m, classes) log-odds.

    Raises:
        ParameterError: a class is constant in the training rows, or shapes don't fit.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    labels = np.asarray(labels).astype(int)
    if len(train) != len(labels) or train.shape[1] != test.shape[1]:
        raise ParameterError(f"probe shapes don't fit: train {train.shape}, labels {labels.shape}, test {test.shape}")
    constant = [k for k in range(labels.shape[1]) if len(set(labels[:, k])) < 2]
    if constant:
        raise ParameterError(f"label columns {constant} never change in the training rows, so nothing can be learned")
    scaler = StandardScaler().fit(np.asarray(train, dtype=np.float64))
    columns = []
    for k in range(labels.shape[1]):
        model = LogisticRegression(C=strength, max_iter=iterations).fit(scaler.transform(train), labels[:, k])
        columns.append(model.decision_function(scaler.transform(np.asarray(test, dtype=np.float64))))
    return np.stack(columns, axis=1)
