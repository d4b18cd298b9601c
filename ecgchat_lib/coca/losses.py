"""The two losses of CoCa, built by hand: contrastive (which report belongs to which ECG) and caption (next piece).

With one report per ECG they equal those of open_clip (a test asserts it). They add one thing that open_clip has not:
targets for batches in which several records share one report. `objective` adds them up. Taught in: 06 §1–3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # the logarithm of an inverse temperature of 0.07
MAXIMUM_LOGIT_SCALE = math.log(100)


def shared_targets(keys: Sequence[object]) -> torch.Tensor:
    """Return targets (B, B) for records that share a report: each row spreads its weight over the equal keys.

    Half of a hospital's ECGs are normal. With one-hot targets, two records with the same report are pushed apart
    although nothing tells them apart; with these they are not.

    Args:
        keys: one hashable per record, equal where the reports say the same.
    """
    order = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group = torch.tensor([order[key] for key in keys])
    same = (group[:, None] == group[None, :]).float()
    return same / same.sum(dim=1, keepdim=True)


def contrastive_loss(
    ecg: torch.Tensor, text: torch.Tensor, scale: torch.Tensor | float, targets: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the symmetric InfoNCE loss: the mean of ECG → report and report → ECG.

    Args:
        ecg: (B, dim) embeddings, L2-normalized.
        text: (B, dim) embeddings, L2-normalized; row i belongs to ECG i.
        scale: the inverse temperature, exp(logit_scale).
        targets: (B, B) probabilities per row, symmetric in meaning (`shared_targets`); None for one report per ECG.

    Source: Radford et al. 2021 (arXiv 2103.00020), figure 3.
    """
    logits = scale * ecg @ text.T  # (B, B)
    if targets is None:
        matches = torch.arange(len(logits), device=logits.device)
        return (functional.cross_entropy(logits, matches) + functional.cross_entropy(logits.T, matches)) / 2
    targets = targets.to(logits)
    return (functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets)) / 2


def caption_loss(logits: torch.Tensor, labels: torch.Tensor, padding: int = 0) -> torch.Tensor:
    """Return the mean cross-entropy of the next piece, padding left out.

    Args:
        logits: (B, L, vocabulary); position t predicts `labels[:, t]`.
        labels: (B, L) ids: the pieces shifted by one.
        padding: the id that does not count.
    """
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=padding)
