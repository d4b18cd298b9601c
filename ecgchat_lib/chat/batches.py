"""Which examples train together: a random order that follows from the seed alone, grouped by length if asked for.

A batch is padded to its longest sequence, so sequences of like length waste little. Trees of questions about one ECG
are the other way to waste little; they come ready from `template.pack`. Taught in: 12 §4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ecgchat_lib.chat.template import IGNORED, Encoded
from ecgchat_lib.errors import ParameterError

POOL = 50  # batches whose sequences are sorted together; more would group better and mix worse


@dataclass(frozen=True)
class Example:
    """One training sequence.

    Attributes:
        encoded: the conversation.
        ecg: rows of its ECGs in the table of tokens, in the order of the marks.
    """

    encoded: Encoded
    ecg: tuple[int, ...]


class TokenTable(Protocol):
    """ECG tokens by row: a tensor (recordings, ecg tokens, width), or a `tokens.TokenStore` on disk."""

    def __getitem__(self, rows: list[int], /) -> torch.Tensor:
        """Return the tokens of some rows, (rows, ecg tokens, width)."""

    def __len__(self) -> int:
        """Return how many recordings there are."""

    @property
    def shape(self) -> Any:
        """Recordings, tokens of each, width."""


def sequence_lengths(examples: Sequence[Example], ecg_tokens: int) -> list[int]:
    """Return how many places each example takes in the language model, its ECGs' tokens included.

    A sequence that knows its lengths (`lengths`, as `data.ConversationFile` has them) isn't read for it.
    """
    known = getattr(examples, "lengths", None)
    if known is not None:
        return [int(text) + int(marks) * (ecg_tokens - 1) for text, marks in known]
    return [len(item.encoded.ids) + len(item.ecg) * (ecg_tokens - 1) for item in examples]


def answer_tokens(examples: Sequence[Example]) -> int:
    """Return how many tokens are learned from these examples."""
    return sum(1 for item in examples for label in item.encoded.labels[1:] if label != IGNORED)


def check_lengths(lengths: Sequence[int], most: int | None) -> None:
    """Raise if a sequence is longer than it may be.

    Raises:
        ParameterError: with the first one's number and length.
    """
    if most is None:
        return
    long = [number for number, length in enumerate(lengths) if length > most]
    if long:
        raise ParameterError(
            f"{len(long)} of {len(lengths)} training sequences are longer than {most} tokens; the first is number "
            f"{long[0]} with {lengths[long[0]]}. Raise max_length, or pack fewer questions or rounds into one sequence"
        )


def fingerprint(lengths: Sequence[int]) -> str:
    """Return a hash of a training set's sizes."""
    return hashlib.sha256(" ".join(map(str, lengths)).encode()).hexdigest()


def content_hash(examples: Sequence[Example]) -> str:
    """Return a hash of all that is learned from: token ids, labels, branches and the rows of the ECGs.

    A sequence that knows its hash (`content`, as `data.ConversationFile` has it) isn't read for it.
    """
    known = getattr(examples, "content", None)
    if known is not None:
        return str(known)
    digest = hashlib.sha256()
    for item in examples:
        digest.update(example_bytes(item))
    return digest.hexdigest()


def example_bytes(item: Example) -> bytes:
    """Return an example as bytes that differ wherever the example does."""
    coded = item.encoded
    return repr((coded.ids, coded.labels, coded.branches, item.ecg)).encode()


def batch_order(lengths: Sequence[int], size: int, seed: int, *, grouped: bool = False) -> Iterator[list[int]]:
    """Yield batches of example numbers without end, each example once per round.

    Args:
        lengths: of the examples.
        size: examples per batch.
        seed: of the order; the k-th batch depends on it and on nothing that happened before.
        grouped: put examples of like length into a batch. The batches still come in random order.
    """
    generator = torch.Generator().manual_seed(seed)
    order = _endless(len(lengths), generator)
    if not grouped:
        while True:
            yield [next(order) for _ in range(size)]
    pool = size * max(1, min(POOL, len(lengths) // size))
    while True:
        drawn = sorted((next(order) for _ in range(pool)), key=lambda number: lengths[number])
        for place in torch.randperm(pool // size, generator=generator).tolist():
            yield drawn[place * size : (place + 1) * size]


def _endless(count: int, generator: torch.Generator) -> Iterator[int]:
    """Yield 0..count-1 in random order, again and again, each once per round."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
