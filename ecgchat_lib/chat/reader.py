"""The reader: a linear classifier on pooled ECG tokens and measured values, whose findings are written into the prompt.

This is the thin form of the paper's *diagnosis-driven prompt*: supervised, not zero-shot. A small language model copies
and compares words long before it learns to read vectors, so the reader puts the ECG's findings into words for it.
Taught in: 12 §6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ecgchat_lib.errors import ParameterError
from ecgchat_lib.instruct.findings import FINDINGS

if TYPE_CHECKING:
    from ecgchat_lib.ecg.measure import Measurements

SIGNS = "Signs: "
_RHYTHMS = [k for k, finding in enumerate(FINDINGS) if finding.rhythm]
_SCALES = (("heart_rate_bpm", 75.0, 25.0), ("pr_ms", 160.0, 30.0), ("qrs_ms", 95.0, 20.0), ("qtc_ms", 420.0, 30.0))


def measured_features(measurements: Measurements) -> list[float]:
    """Return measured values as 11 numbers of about size one; a missing value is 0 beside a flag that says so."""
    out: list[float] = []
    for name, middle, spread in _SCALES:
        value = measurements.judged(name)
        out += [0.0, 1.0] if math.isnan(value) else [max(-4.0, min(4.0, (value - middle) / spread)), 0.0]
    unevenness = measurements.rr_sd_ms / measurements.rr_ms
    out.append(0.0 if math.isnan(unevenness) else min(4.0, 10 * unevenness))
    return [*out, float(measurements.regular is False), float(measurements.regular is None)]


def reader_features(tokens: torch.Tensor, measurements: Sequence[Measurements]) -> torch.Tensor:
    """Return what the reader looks at: CLS, the mean of the patch tokens, and the measured values.

    Args:
        tokens: (n, ecg tokens, width) from the encoder.
        measurements: of the same n recordings.

    Returns:
        (n, 2 × width + 11).
    """
    measured = torch.tensor([measured_features(item) for item in measurements], dtype=torch.float32)
    return torch.cat([tokens[:, 0].float().cpu(), tokens[:, 1:].float().mean(1).cpu(), measured], dim=1)


class FindingReader(nn.Module):
    """One linear score per finding of `instruct.findings.FINDINGS`.

    The rhythm with the highest score is listed, and each other finding whose score is above 0.

    Args:
        features: length of the feature vector.
    """

    middle: torch.Tensor
    spread: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("middle", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.register_buffer("weight", torch.zeros(len(FINDINGS), features))
        self.register_buffer("bias", torch.full((len(FINDINGS),), -1.0))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return scores (n, findings) of features (n, features)."""
        if features.shape[-1] != len(self.middle):
            raise ParameterError(f"the reader was fitted on {len(self.middle)} features, but got {features.shape[-1]}")
        return (features - self.middle) / self.spread @ self.weight.T + self.bias

    def read(self, tokens: torch.Tensor, measurements: Sequence[Measurements]) -> list[str]:
        """Return the line for the prompt of each recording; see `signs_line`.

        Args:
            tokens: (n, ecg tokens, width) from the encoder.
            measurements: of the same n recordings.
        """
        with torch.no_grad():
            return [signs_line(row) for row in self(reader_features(tokens, measurements))]


def signs_line(scores: torch.Tensor) -> str:
    """Write scores (findings,) as a line: the likeliest rhythm, then every other finding with a score above 0."""
    rhythm = max(_RHYTHMS, key=lambda k: float(scores[k]))
    others = [k for k, finding in enumerate(FINDINGS) if not finding.rhythm and float(scores[k]) > 0]
    return SIGNS + ", ".join(FINDINGS[k].phrase for k in [rhythm, *others])


def fit_reader(
    features: torch.Tensor,
    targets: torch.Tensor,
    groups: Sequence[str],
    *,
    strength: float = 0.01,
    folds: int = 5,
    trusted: np.ndarray | None = None,
) -> tuple[FindingReader, torch.Tensor]:
    """Fit the rhythms as one multinomial logistic regression, and one for each other finding.

    A finding's border is the score that gives the best F1 on recordings left out of the fit.

    Args:
        features: (n, features).
        targets: (n, findings) 1 present, 0 absent, NaN unsaid.
        groups: the patient of each recording; nobody is in two folds.
        strength: inverse of the regularization (scikit-learn's C).
        folds: parts for the scores of recordings left out.
        trusted: (n,) bool, which recordings count for the borders (the real ones); all if None.

    Returns:
        The reader fitted on everything, and the scores (n, findings) that each recording got while it was left out;
        a language model should be trained on these, or it would trust the reader too much.
    """
    from sklearn.model_selection import GroupKFold

    x, y = features.double().numpy(), targets.double().numpy()
    reader = FindingReader(x.shape[1])
    middle, spread = x.mean(0), np.maximum(x.std(0), 1e-6)
    z = (x - middle) / spread
    out = np.zeros_like(y)
    for train, test in GroupKFold(folds).split(z, groups=list(groups)):
        weight, bias = _fit(z[train], y[train], strength)
        out[test] = z[test] @ weight.T + bias
    weight, bias = _fit(z, y, strength)
    counted = np.ones(len(y), bool) if trusted is None else trusted
    borders = np.array([_best_border(out[counted, k], y[counted, k]) for k in range(len(FINDINGS))])
    borders[_RHYTHMS] = 0.0  # the rhythms compete with each other
    for name, value in (("middle", middle), ("spread", spread), ("weight", weight), ("bias", bias - borders)):
        getattr(reader, name).copy_(torch.from_numpy(value))
    return reader, torch.from_numpy(out - borders).float()


def _fit(z: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    weight, bias = np.zeros((y.shape[1], z.shape[1])), np.full(y.shape[1], -20.0)
    rhythm = np.array([_rhythm(row) for row in y])
    model = LogisticRegression(C=strength, max_iter=500).fit(z[rhythm >= 0], rhythm[rhythm >= 0])
    weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    for k in sorted(set(range(y.shape[1])) - set(_RHYTHMS)):
        said = ~np.isnan(y[:, k])
        if len(set(y[said, k])) == 2:
            model = LogisticRegression(C=strength, max_iter=500).fit(z[said], y[said, k])
            weight[k], bias[k] = model.coef_[0], model.intercept_[0]
    return weight, bias


def _rhythm(row: np.ndarray) -> int:
    """Return the column of the stated rhythm, or -1 if none or several are stated; special kinds go before sinus."""
    stated = [k for k in _RHYTHMS if row[k] == 1]
    if len(stated) > 1:
        stated = [k for k in stated if FINDINGS[k].name != "sinus"]
    return stated[0] if len(stated) == 1 else -1


def _best_border(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the score from which on calling a finding present gives the best F1."""
    said = ~np.isnan(truth)
    order = np.argsort(-scores[said])
    ranked, hits = scores[said][order], truth[said][order]
    if not hits.any():
        return 0.0
    right = np.cumsum(hits)
    f1 = 2 * right / (np.arange(1, len(hits) + 1) + hits.sum())
    best = int(f1.argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else ranked[best] - 1.0
    return float((ranked[best] + below) / 2)
