"""Exercises of notebook 01: four leads from two, millivolts from integers, and leads by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ecgchat_lib.course import Exercise, Misconception, expect_equal
from ecgchat_lib.ecg.leads import LEADS, canonical_lead

Array = np.ndarray[Any, Any]


def derive_leads(lead_i: Array, lead_ii: Array) -> tuple[Array, Array, Array, Array]:
    """Reference of 01.1: III, aVR, aVL, aVF from I and II (Einthoven 1913, Goldberger 1942)."""
    return lead_ii - lead_i, -(lead_i + lead_ii) / 2, lead_i - lead_ii / 2, lead_ii - lead_i / 2


def _verify_derived(answer: Callable[..., Any], rng: Any) -> None:
    for size in (1, 7, 500):
        right, left, foot = rng.normal(size=(3, size))  # potentials at the electrodes
        found = answer(left - right, foot - right)
        if found is None or len(found) != 4:
            raise Misconception("Return four leads: III, aVR, aVL, aVF.")
        iii, avr, avl, avf = found
        expect_equal(iii, foot - left, "lead III", "Einthoven: II = I + III, so III is what II has more than I.")
        wilson = (right + left + foot) / 3
        if np.allclose(avr, right - wilson) or np.allclose(avr, -(left + foot - 2 * right) / 3):
            raise Misconception(
                "That is Wilson's VR. Goldberger's aVR is compared with the mean of the other two only."
            )
        expect_equal(
            avr, right - (left + foot) / 2, "lead aVR", "aVR looks from the right arm: minus the mean of I and II."
        )
        expect_equal(avl, left - (right + foot) / 2, "lead aVL", "aVL looks from the left arm: (I - III) / 2.")
        expect_equal(avf, foot - (right + left) / 2, "lead aVF", "aVF looks from the foot: (II + III) / 2.")


def _sum_for_iii(lead_i: Array, lead_ii: Array) -> tuple[Array, Array, Array, Array]:
    return (lead_i + lead_ii, *derive_leads(lead_i, lead_ii)[1:])


def _wilson(lead_i: Array, lead_ii: Array) -> tuple[Array, ...]:
    return (lead_ii - lead_i, *(lead * 2 / 3 for lead in derive_leads(lead_i, lead_ii)[1:]))


def _upright_avr(lead_i: Array, lead_ii: Array) -> tuple[Array, ...]:
    iii, avr, avl, avf = derive_leads(lead_i, lead_ii)
    return iii, -avr, avl, avf


def to_millivolts(counts: Array, gain: float, baseline: int) -> Array:
    """Reference of 01.2: (count - baseline) / gain, and NaN for WFDB's mark of a missing sample."""
    values = (np.asarray(counts, dtype=np.float64) - baseline) / gain
    values[np.asarray(counts) == -32768] = np.nan
    return values


def _verify_millivolts(answer: Callable[..., Any], rng: Any) -> None:
    counts = np.array([-100, 0, 100, 1100], dtype=np.int16)
    found = np.asarray(answer(counts.copy(), 1000.0, 100), dtype=float)
    right = to_millivolts(counts, 1000.0, 100)
    for wrong, reason in (
        (counts * 1000.0 - 100, "The gain is ADC units per millivolt: divide by it."),
        (counts / 1000.0 - 100, "The baseline is in ADC units, so subtract it before you divide by the gain."),
        (counts / 1000.0, "The baseline is the ADC value of 0 mV: subtract it first."),
        ((counts + 100) / 1000.0, "Subtract the baseline; a count equal to it is 0 mV."),
    ):
        if found.shape == right.shape and np.allclose(found, wrong):
            raise Misconception(reason)
    expect_equal(found, right, "four counts with gain 1000 and baseline 100")
    big = np.array([32767, -32767], dtype=np.int16)
    overflow = "A 16-bit integer can't hold 32767 + 500: convert to float before you subtract."
    expect_equal(answer(big, 200.0, -500), to_millivolts(big, 200.0, -500), "counts near the limit", overflow)
    gap = np.array([5, -32768, 7], dtype=np.int16)
    missing = "In WFDB's format 16 the count -32768 marks a missing sample: NaN, not a huge negative voltage."
    expect_equal(answer(gap, 1000.0, 0), to_millivolts(gap, 1000.0, 0), "a missing sample", missing)
    for _ in range(10):
        many = rng.integers(-32767, 32768, size=int(rng.integers(1, 200))).astype(np.int16)
        gain, baseline = float(rng.uniform(50, 5000)), int(rng.integers(-2000, 2000))
        expect_equal(answer(many, gain, baseline), to_millivolts(many, gain, baseline), f"gain {gain:.0f}")


def rows_by_name(names: Sequence[str]) -> list[int | None]:
    """Reference of 01.3: for each of the twelve leads, the row that holds it, or None."""
    found = [canonical_lead(name) for name in names]
    return [found.index(lead) if lead in found else None for lead in LEADS]


def _verify_rows(answer: Callable[[Sequence[str]], Any], rng: Any) -> None:
    if list(answer(list(LEADS))) != list(range(12)):
        raise Misconception("Names that already stand in order must give 0, 1, 2, … 11.")
    backward = list(LEADS[::-1])
    found = answer(list(backward))
    if list(found) == list(range(12)):
        raise Misconception("You took the leads by position. This file begins with V6, so lead I is row 11.")
    _compare(found, backward)
    for case in (str.upper, str.lower):
        _compare(answer([case(lead) for lead in backward]), backward, "'AVR', 'avr' and 'aVR' are the same lead.")
    _compare(answer(["vx", *LEADS]), ["vx", *LEADS], "Other signals may stand between the leads.")
    seven = "Where a lead isn't there, say None. (-1 would silently be numpy's last row, and 0 its first.)"
    _compare(answer(list(LEADS[:7])), list(LEADS[:7]), seven)
    for _ in range(20):
        names = [str(rng.choice([lead, lead.upper(), lead.lower()])) for lead in (*LEADS, "V7", "resp")]
        rng.shuffle(names)
        _compare(answer(list(names)), names)


def _compare(found: Any, names: Sequence[str], reason: str = "") -> None:
    expected = rows_by_name(names)
    if found is None or len(found) != 12:
        raise Misconception("Return twelve rows, one for each lead in the course's order.")
    for lead, right, row in zip(LEADS, expected, found, strict=True):
        if row is not None and right is not None and int(row) == right:
            continue
        if row is not None or right is not None:
            raise Misconception(f"In the file {list(names)}, lead {lead} is row {right}, not {row}. {reason}".strip())


def _exactly(names: Sequence[str]) -> list[int | None]:
    return [names.index(lead) if lead in names else None for lead in LEADS]


def _minus_one(names: Sequence[str]) -> list[int]:
    lower = [name.lower() for name in names]
    return [lower.index(lead.lower()) if lead.lower() in lower else -1 for lead in LEADS]


def _part_of(names: Sequence[str]) -> list[int | None]:
    return [next((k for k, name in enumerate(names) if lead.lower() in name.lower()), None) for lead in LEADS]


EXERCISES = (
    Exercise(
        id="01.1",
        title="Four leads from two",
        difficulty=1,
        minutes=10,
        verify=_verify_derived,
        reference=derive_leads,
        wrong=(
            ("adds where Einthoven subtracts", _sum_for_iii),
            ("takes Wilson's central terminal", _wilson),
            ("turns aVR upright", _upright_avr),
        ),
    ),
    Exercise(
        id="01.2",
        title="Millivolts from integers",
        difficulty=1,
        minutes=8,
        verify=_verify_millivolts,
        reference=to_millivolts,
        wrong=(
            ("divides first", lambda counts, gain, baseline: counts / gain - baseline),
            ("multiplies by the gain", lambda counts, gain, baseline: counts * gain - baseline),
            ("keeps missing samples", lambda counts, gain, baseline: (counts.astype(float) - baseline) / gain),
        ),
    ),
    Exercise(
        id="01.3",
        title="Leads by name",
        difficulty=2,
        minutes=12,
        verify=_verify_rows,
        reference=rows_by_name,
        wrong=(
            ("by position", lambda names: list(range(12))),
            ("exact spelling only", _exactly),
            ("-1 for a missing lead", _minus_one),
            ("a lead's name as part of another's", _part_of),
        ),
    ),
)
