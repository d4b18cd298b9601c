"""Measured numbers in a report: read from the text, and encoded by a small network of their own.

A report with waveform data enhancement ends in ` RR: 832 PR: 160 QRS: 92 QT/QTc: 380/416 P/R/T Wave: 0.11/1.02/0.25`. A
sentence encoder hardly tells 380 from 420, so the numbers are read out and go their own way. Taught in: 06 §6.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import nn

NUMBERS = ("rr_ms", "pr_ms", "qrs_ms", "qt_ms", "qtc_ms", "p_mv", "r_mv", "t_mv")
# A typical value and a typical spread of each among adults; heights are compared on a scale that is linear around 0 and
# logarithmic above 0.1 mV. They only bring the numbers to a common size.
CENTER = (850.0, 160.0, 95.0, 390.0, 425.0, 0.9, 3.0, 1.7)
SPREAD = (180.0, 30.0, 20.0, 40.0, 30.0, 0.5, 0.8, 0.9)
HEIGHT_UNIT = 0.1  # mV
FREQUENCIES = (0.125, 0.25, 0.5, 1.0)  # periods per spread
LARGEST = {"ms": 5000.0, "mV": 50.0}  # what is beyond isn't a measurement

_VALUE = r"(-?\d+(?:\.\d+)?|n/a|nan)"
_UNIT = r"(?:\s*(?:ms|mv))?"
_ENDING = re.compile(
    rf"\s*RR:?\s*{_VALUE}{_UNIT}[\s,;]+PR:?\s*{_VALUE}{_UNIT}[\s,;]+QRS:?\s*{_VALUE}{_UNIT}[\s,;]+"
    rf"QT/QTc:?\s*{_VALUE}{_UNIT}\s*/\s*{_VALUE}{_UNIT}"
    rf"(?:[\s,;]+P/R/T(?:\s+Wave)?:?\s*{_VALUE}{_UNIT}\s*/\s*{_VALUE}{_UNIT}\s*/\s*{_VALUE}{_UNIT})?[\s.]*$",
    re.IGNORECASE,
)


def split_numbers(text: str) -> tuple[str, list[float]]:
    """Return a report's words, and the eight `NUMBERS` of its ending; NaN where one is absent.

    Times are ms and heights mV. `n/a`, 0 (the original's mark for unknown) and impossible values are NaN.
    """
    found = _ENDING.search(text)
    if found is None:
        return text, [math.nan] * len(NUMBERS)
    return text[: found.start()], [_number(value, name) for value, name in zip(found.groups(), NUMBERS, strict=True)]


def _number(value: str | None, name: str) -> float:
    try:
        number = float(value or "nan")
    except ValueError:  # n/a
        return math.nan
    is_time = name.endswith("_ms")
    possible = 0 < number <= LARGEST["ms"] if is_time else 0 < abs(number) <= LARGEST["mV"]
    return number if possible else math.nan


def standardize(numbers: torch.Tensor) -> torch.Tensor:
    """Return numbers (..., 8) of `NUMBERS` as multiples of their spread around their center; NaN stays NaN."""
    times, heights = numbers[..., :5], numbers[..., 5:]
    values = torch.cat([times, torch.asinh(heights / HEIGHT_UNIT)], dim=-1)
    return (values - values.new_tensor(CENTER)) / values.new_tensor(SPREAD)


class NumberEncoder(nn.Module):
    """Encode the eight numbers: sines and cosines of several periods each, then a two-layer network.

    The fast waves tell near values apart, the slow ones far ones. A number that is absent adds nothing but a mark.

    Args:
        hidden: width of the hidden layer.
        out: length of the result.
    """

    def __init__(self, hidden: int, out: int) -> None:
        super().__init__()
        features = len(NUMBERS) * (2 + 2 * len(FREQUENCIES))
        self.network = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, out))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return (B, out) of numbers (B, 8) in ms and mV; a row without any number gives zeros."""
        values = standardize(numbers)
        known = ~torch.isnan(values)
        values = values.nan_to_num(0.0).clamp(-8, 8)
        angles = 2 * math.pi * values[..., None] * values.new_tensor(FREQUENCIES)  # (B, 8, F)
        features = torch.cat([values[..., None], angles.sin(), angles.cos()], dim=-1) * known[..., None]
        encoded = self.network(torch.cat([features.flatten(1), known.to(values)], dim=1))
        return encoded * known.any(dim=1, keepdim=True)


def numbers_of(texts: Sequence[str]) -> tuple[list[str], torch.Tensor]:
    """Return the words of texts and their numbers, float32 (n, 8)."""
    parts = [split_numbers(text) for text in texts]
    return [words for words, _ in parts], torch.tensor([numbers for _, numbers in parts]).reshape(-1, len(NUMBERS))
