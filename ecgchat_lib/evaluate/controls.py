"""Controls of waveform data enhancement: what the words find, what the numbers find, and whose numbers they are.

Reports with measured numbers (WDE) are retrieved far better. But the numbers were measured on the very ECG that is
asked for, so a high recall may be number matching. Four texts per record tell: words, words with numbers, numbers
alone, words with another record's numbers. Taught in: 08 §3.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ecgchat_lib.errors import ParameterError

VARIANTS: Mapping[str, str] = {
    "words": "words only",
    "words_wde": "words and own numbers",
    "numbers": "numbers only",
    "shuffled": "words and another ECG's numbers",
}


class TextVariant(NamedTuple):
    """One text per record, and what each says: records with equal keys can't be told apart by their texts."""

    texts: list[str]
    keys: list[Hashable]


def wde_controls(
    words: Sequence[str],
    wde: Sequence[str],
    keys: Sequence[Hashable],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 7,
) -> dict[str, TextVariant]:
    """Return the four variants of each record's text, in the order of `VARIANTS`.

    Args:
        words: the reports without numbers.
        wde: the endings, as `ecg.measure.wde_text` writes them.
        keys: what each report's words say (its statements).
        groups: one key per record (the patient); foreign numbers come from another group where there is one.
        seed: of who gets whose numbers.

    Raises:
        ParameterError: the numbers of texts, endings, keys and groups differ, or there are fewer than two records.
    """
    n = len(words)
    sizes = {n, len(wde), len(keys), n if groups is None else len(groups)}
    if len(sizes) != 1 or n < 2:
        raise ParameterError(f"wde_controls needs as many words, endings and keys, two at least; got {sorted(sizes)}")
    other = derangement(range(n) if groups is None else groups, seed)
    foreign = [wde[k] for k in other]
    endings = [ending.strip() for ending in wde]
    return {
        "words": TextVariant(list(words), list(keys)),
        "words_wde": TextVariant(_joined(words, wde), list(zip(keys, endings, strict=True))),
        "numbers": TextVariant(list(endings), list(endings)),
        "shuffled": TextVariant(
            _joined(words, foreign), [(key, e.strip()) for key, e in zip(keys, foreign, strict=True)]
        ),
    }


def _joined(words: Sequence[str], wde: Sequence[str]) -> list[str]:
    return [f"{text.rstrip()} {ending.strip()}" for text, ending in zip(words, wde, strict=True)]


def derangement(groups: Sequence[Hashable], seed: int = 7) -> np.ndarray:
    """Return a permutation that sends every row to another one, of another group where that can be.

    Rows are shuffled, sorted by group, and rotated by the largest group's size: then no row meets its own group, unless
    that one has more than half of all rows.
    """
    n = len(groups)
    order = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    place = np.array([order[group] for group in groups], dtype=np.int64)
    generator = np.random.default_rng(seed)
    number = generator.permutation(len(order))[place]
    rows = np.lexsort((generator.permutation(n), number))  # group by group, in random order
    largest = int(np.bincount(place).max())
    taken = np.empty(n, dtype=np.int64)
    taken[rows] = np.roll(rows, -(largest if largest < n else 1))
    return taken
