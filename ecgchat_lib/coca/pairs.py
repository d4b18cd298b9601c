"""Pairs of ECG and report for the training: windows, wordings encoded once, measured numbers, single statements.

It draws batches; it doesn't train and doesn't augment. Taught in: 07 §1.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.coca.numbers import NUMBERS
from ecgchat_lib.coca.text import TextBatch, text_batch
from ecgchat_lib.errors import ParameterError


class StatementBatch(NamedTuple):
    """Single statements that every ECG of a batch is asked about.

    Attributes:
        text: S phrases, one per statement.
        present: (B, S), 1 where the ECG's report makes the statement.
        log_odds: (S,), of each statement among all training records.
    """

    text: TextBatch
    present: torch.Tensor
    log_odds: torch.Tensor


class Batch(NamedTuple):
    """B pairs.

    Attributes:
        ecg: (B, 12, samples) windows.
        text: the reports' words and numbers.
        pieces: (B, L) ids of the words, for the caption.
        keys: what each report says; equal keys are equally right.
        statements: single statements and which of them each report makes, or None.
    """

    ecg: torch.Tensor
    text: TextBatch
    pieces: torch.Tensor
    keys: list[Hashable]
    statements: StatementBatch | None = None

    def rows(self, start: int, stop: int) -> Batch:
        """Return the records from `start` to before `stop`."""
        part = slice(start, stop)
        statements = self.statements and self.statements._replace(present=self.statements.present[part])
        return Batch(
            self.ecg[part],
            TextBatch(*(tensor[part] for tensor in self.text)),
            self.pieces[part],
            self.keys[part],
            statements,
        )

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        statements = self.statements and StatementBatch(
            TextBatch(*(tensor.to(device) for tensor in self.statements.text)),
            self.statements.present.to(device),
            self.statements.log_odds.to(device),
        )
        text = TextBatch(*(tensor.to(device) for tensor in self.text))
        return Batch(self.ecg.to(device), text, self.pieces.to(device), self.keys, statements)


@dataclass
class PairedEcgs:
    """Windows with one or more wordings of each one's report, encoded once.

    Args:
        windows: (n, 12, samples), as `front_end` makes them; float16 is fine.
        texts: one or more wordings per record.
        model: whose report encoder and tokenizer encode the texts.
        keys: what the report says, per record, for shared targets; the first wording if None.
        weights: how likely each record is drawn; all alike if None.
        numbers: (n, 8) measured `NUMBERS`, ms and mV, NaN where unknown; none if None.
        phrases: per single statement, one or more phrases for it; none if None.
        present: (n, statements), 1 where the record's report makes the statement; with `phrases`.
        captions: what the decoder should write for each wording; the wording itself if None.

    Raises:
        ParameterError: the lengths differ, or a record has no text.
    """

    windows: torch.Tensor
    texts: Sequence[Sequence[str]]
    model: EcgCoca
    keys: Sequence[Hashable] | None = None
    weights: Sequence[float] | None = None
    numbers: torch.Tensor | None = None
    phrases: Sequence[Sequence[str]] = ()
    present: torch.Tensor | None = None
    captions: Sequence[Sequence[str]] | None = None
    states: list[torch.Tensor] = field(init=False, repr=False)
    pieces: torch.Tensor = field(init=False, repr=False)
    rows: list[list[int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        given = (self.texts, self.keys, self.weights, self.numbers, self.present, self.captions)
        lengths = {len(self.windows), *(len(one) for one in given if one is not None)}
        if len(lengths) > 1 or not all(self.texts):
            raise ParameterError(f"windows, texts and what goes with them differ in length ({lengths}), or lack a text")
        if self.model.tokenizer is None:
            raise ParameterError("the model has no vocabulary, so its reports can't be encoded")
        if (self.present is not None) != bool(self.phrases) or (
            self.present is not None and self.present.shape[1] != len(self.phrases)
        ):
            raise ParameterError(f"{len(self.phrases)} statements have phrases: `present` must have as many columns")
        captions = self.captions or self.texts
        if any(len(ways) != len(written) for ways, written in zip(self.texts, captions, strict=True)):
            raise ParameterError("`captions` must name one caption for each wording of `texts`")
        said = [
            pair for ways, written in zip(self.texts, captions, strict=True) for pair in zip(ways, written, strict=True)
        ]
        distinct = {pair: row for row, pair in enumerate(dict.fromkeys(said))}
        counted = iter(said)
        self.rows = [[distinct[next(counted)] for _ in ways] for ways in self.texts]
        self.states = self.model.report_encoder.states([text for text, _ in distinct])
        length = self.model.config.decoder.context + 1
        self.pieces = self.model.tokenizer.encode([caption for _, caption in distinct], length)
        self.keys = list(self.keys or (wordings[0] for wordings in self.texts))
        self._weights = torch.ones(len(self)) if self.weights is None else torch.tensor(self.weights)
        if self.numbers is None:
            self.numbers = torch.full((len(self), len(NUMBERS)), torch.nan)
        if self.present is not None:
            share = self.present.float().mean(dim=0).clamp(1 / len(self), 1 - 1 / len(self))
            self._log_odds = torch.logit(share)
            self._phrase_states = [self.model.report_encoder.states(list(ways)) for ways in self.phrases]

    def __len__(self) -> int:
        return len(self.windows)

    def draw(self, size: int, generator: torch.Generator) -> Batch:
        """Return `size` different records, each with one of its wordings, drawn with `generator`.

        Raises:
            ParameterError: there are fewer records than that.
        """
        if size > len(self):
            raise ParameterError(f"batch={size} is larger than the {len(self)} records. Choose a smaller batch.")
        chosen = torch.multinomial(self._weights, size, generator=generator).tolist()
        wording = torch.rand(size, generator=generator).tolist()
        rows = [self.rows[i][int(w * len(self.rows[i]))] for i, w in zip(chosen, wording, strict=True)]
        pieces = self.pieces[rows]
        longest = int((pieces != 0).sum(dim=1).max())
        assert self.keys is not None  # set in __post_init__
        assert self.numbers is not None
        return Batch(
            self.windows[chosen].float(),
            text_batch([self.states[row] for row in rows], self.numbers[chosen]),
            pieces[:, :longest],
            [self.keys[i] for i in chosen],
            self._draw_statements(chosen, generator),
        )

    def _draw_statements(self, chosen: list[int], generator: torch.Generator) -> StatementBatch | None:
        """Return one phrase for each statement, drawn with `generator`."""
        if self.present is None:
            return None
        pick = torch.rand(len(self.phrases), generator=generator).tolist()
        states = [ways[int(p * len(ways))] for ways, p in zip(self._phrase_states, pick, strict=True)]
        text = text_batch(states, torch.full((len(states), len(NUMBERS)), torch.nan))
        return StatementBatch(text, self.present[chosen].float(), self._log_odds)
