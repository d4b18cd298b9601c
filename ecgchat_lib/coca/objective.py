"""What the training minimizes: the contrastive loss over all records of a batch, and losses of each record for itself.

The split matters for large batches: `local` can be computed in chunks and averaged, `together` needs every embedding.
Taught in: 06 §1–3, 07 §2.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

from ecgchat_lib.coca.losses import caption_loss, contrastive_loss, shared_targets
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.coca.numbers import standardize
from ecgchat_lib.coca.pairs import Batch


class LocalLosses(NamedTuple):
    """What a chunk of a batch gives.

    Attributes:
        ecg: (B, E) embeddings.
        text: (B, V, E) embeddings of the V forms of each report: the words; then, in a model that reads numbers, the
            words with the numbers, and the numbers alone.
        parts: losses by name, each a mean: over the chunk's pieces (caption), its known numbers, or its records.
            `step.terms` counts them.
    """

    ecg: torch.Tensor
    text: torch.Tensor
    parts: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Objective:
    """The losses' weights. The defaults are the original's.

    Attributes:
        contrastive: of the contrastive loss, the mean over the forms of the reports.
        caption: of the caption loss.
        numbers: of the error with which the CLS token tells the measured numbers; for a model that reads numbers.
        statements: of the loss over single statements (is "left bundle branch block" true of this ECG?), summed over
            the statements; for pairs that have them.
        share_targets: records with the same key count as one another's reports (`shared_targets`).
    """

    contrastive: float = 1.0
    caption: float = 2.0
    numbers: float = 0.0
    statements: float = 0.0
    share_targets: bool = False

    def local(self, model: EcgCoca, batch: Batch) -> LocalLosses:
        """Return the embeddings and the losses that each record has for itself."""
        out = model(batch.ecg, batch.text, batch.pieces)
        parts = {"caption": caption_loss(out.logits, out.labels)}
        if self.numbers:
            parts["numbers"] = number_loss(model.predict_numbers(out.tokens), batch.text.numbers)
        if self.statements and batch.statements is not None:
            found = model.statement_logits(out.ecg, model.encode_text(batch.statements.text), batch.statements.log_odds)
            loss = functional.binary_cross_entropy_with_logits(found, batch.statements.present, reduction="none")
            parts["statements"] = loss.sum(dim=1).mean()
        return LocalLosses(out.ecg, out.forms, parts)

    def together(
        self, ecg: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, keys: Sequence[Hashable]
    ) -> torch.Tensor:
        """Return the contrastive loss of (n, E) ECGs and (n, V, E) texts, the mean over the V forms.

        Equal words can't be told apart, so they may share targets; measured numbers can.
        """
        targets = shared_targets(list(keys)) if self.share_targets else None
        losses = [contrastive_loss(ecg, text[:, v], scale, None if v else targets) for v in range(text.shape[1])]
        return torch.stack(losses).mean()

    def total(self, contrastive: torch.Tensor, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the weighted sum."""
        return self.contrastive * contrastive + sum(getattr(self, name) * value for name, value in parts.items())


def number_loss(predicted: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return the mean smooth absolute error of predicted standardized numbers (B, 8); unknown ones don't count.

    Args:
        predicted: (B, 8), standardized.
        numbers: (B, 8), ms and mV.
    """
    wanted = standardize(numbers).clamp(-8, 8)
    known = ~torch.isnan(wanted)
    error = functional.smooth_l1_loss(predicted, wanted.nan_to_num(0.0), reduction="none", beta=0.1)
    return (error * known).sum() / known.sum().clamp_min(1)
