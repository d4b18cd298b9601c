"""The numbers at a report's end: read as `wde_text` writes them, told from words; near ones are encoded near."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ecgchat_lib.coca.numbers import NUMBERS, NumberEncoder, numbers_of, split_numbers, standardize
from ecgchat_lib.coca.objective import number_loss
from ecgchat_lib.ecg.measure import Measurements, wde_text

times = st.integers(1, 4000).map(float)
heights = st.integers(-300, 300).map(lambda n: n / 100)


@given(st.lists(times | st.just(math.nan), min_size=5, max_size=5), st.lists(heights, min_size=3, max_size=3))
def test_reads_what_wde_text_writes(some_times, some_heights):
    values = dict(zip(NUMBERS, some_times + some_heights, strict=True))
    words, found = split_numbers("Sinus rhythm. Normal ECG." + wde_text(Measurements(**values)))
    assert words == "Sinus rhythm. Normal ECG."
    expected = [math.nan if value == 0 else value for value in values.values()]
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    "ending",
    [
        " RR: 832 PR: 160 QRS: 92 QT/QTc: 380/416 P/R/T Wave: 0.11/1.02/-0.25",
        " RR 832 ms, PR 160 ms, QRS 92 ms, QT/QTc 380/416 ms, P/R/T 0.11/1.02/-0.25 mV.",
        "RR: 832 PR: 160 QRS: 92 QT/QTc: 380/416 P/R/T Wave: 0.11/1.02/-0.25",  # joined without a blank
        "\nrr: 832; pr: 160; qrs: 92; qt/qtc: 380 / 416; p/r/t wave: 0.11 / 1.02 / -0.25",
    ],
)
def test_other_spellings(ending):
    words, found = split_numbers("Normal ECG." + ending)
    assert words == "Normal ECG."
    assert found == [832, 160, 92, 380, 416, 0.11, 1.02, -0.25]


def test_unknown_zero_and_impossible_are_nan():
    _, found = split_numbers("RR: 832 PR: n/a QRS: 0 QT/QTc: 99999/416 P/R/T Wave: 0/1.02/4000")
    assert found == pytest.approx([832, math.nan, math.nan, math.nan, 416, math.nan, 1.02, math.nan], nan_ok=True)


@pytest.mark.parametrize("text", ["Normal ECG.", "PR: 160 ms is long.", "QT/QTc: 380/416 was seen before. Rate 60."])
def test_words_about_numbers_stay_words(text):
    words, found = split_numbers(text)
    assert words == text
    assert all(math.isnan(value) for value in found)


def test_encoded_numbers_absent_ones_and_neighbors():
    torch.manual_seed(0)
    encoder = NumberEncoder(16, 8)
    typical = [850.0, 160, 95, 390, 425, 0.1, 1.0, 0.3]
    near, far = [860.0, *typical[1:]], [1200.0, *typical[1:]]
    _, numbers = numbers_of([])
    assert numbers.shape == (0, 8)
    given_ = torch.tensor([typical, near, far, [math.nan] * 8])
    encoded = encoder(given_)
    assert not encoded[3].any()
    assert (encoded[0] - encoded[1]).norm() < (encoded[0] - encoded[2]).norm()
    assert torch.isfinite(encoded).all()


def test_number_loss_leaves_unknown_ones_out():
    numbers = torch.tensor([[850.0, math.nan, 95, 390, 425, 0.1, 1.0, math.nan]])
    exact = standardize(numbers).nan_to_num(5.0)
    assert number_loss(exact, numbers) == 0
    assert number_loss(exact + 1, numbers) == pytest.approx(0.95)
    assert number_loss(exact, torch.full((1, 8), math.nan)) == 0
