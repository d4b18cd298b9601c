"""Exercises of notebook 01: four leads from two, millivolts, leads by name, swapped arms, and packed samples."""

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


def undo_arms(signal: Array) -> Array:
    """Reference of 01.4: right and left arm exchanged again, so that every cable hangs where its name says."""
    return np.stack([-signal[0], signal[2], signal[1], signal[4], signal[3], *signal[5:]])


def _verify_arms(answer: Callable[[Array], Any], rng: Any) -> None:
    right, left, foot = rng.normal(size=(3, 60))
    chest = rng.normal(size=(6, 60)) - (right + left + foot) / 3

    def recorded(r: Array, l: Array) -> Array:  # noqa: E741
        limb = (l - r, foot - r, foot - l, r - (l + foot) / 2, l - (r + foot) / 2, foot - (r + l) / 2)
        return np.stack([*limb, *chest])

    true, swapped = recorded(right, left), recorded(left, right)
    given = swapped.copy()
    found = answer(given)
    if not np.array_equal(given, swapped):
        raise Misconception("Your function changed the recording that it was given. Return a new array.")
    if found is None or np.shape(found) != swapped.shape:
        raise Misconception("Return twelve rows, as many samples as were given.")
    reasons = ["I = L - R: with R and L exchanged, it is turned over."]
    reasons += [
        "II = F - R and III = F - L: with R and L exchanged, they trade places, and neither is turned over."
    ] * 2
    reasons += ["aVR looks from the right arm and aVL from the left one: they trade places."] * 2
    reasons += ["aVF compares the foot with the mean of both arms, and doesn't care which is which: it stays."]
    reasons += ["The chest leads are measured against the mean of R, L and F, which is the same: they stay."] * 6
    for lead, row, right_row, reason in zip(LEADS, np.asarray(found), true, reasons, strict=True):
        expect_equal(row, right_row, f"lead {lead} of a recording with exchanged arms", reason)
    expect_equal(answer(np.asarray(found)), swapped, "the exchange done twice", "It must undo itself.")


def _turn_only(signal: Array) -> Array:
    return np.stack([-signal[0], *signal[1:]])


def _einthoven_only(signal: Array) -> Array:
    return np.stack([-signal[0], signal[2], signal[1], *signal[3:]])


def _turn_all(signal: Array) -> Array:
    return np.stack([-signal[0], -signal[2], -signal[1], signal[4], signal[3], *signal[5:]])


def _in_place(signal: Array) -> Array:
    signal[[1, 2]], signal[[3, 4]], signal[0] = signal[[2, 1]], signal[[4, 3]], -signal[0]
    return signal


def unpack_212(data: Array) -> Array:
    """Reference of 01.5: WFDB's format 212, two 12-bit samples in three bytes (WFDB Applications Guide, signal(5))."""
    a, b, c = np.asarray(data).reshape(-1, 3).astype(np.int64).T
    samples = np.stack([a + 256 * (b & 15), c + 256 * (b >> 4)], axis=1).ravel()
    return np.where(samples >= 2048, samples - 4096, samples)


def _verify_212(answer: Callable[[Array], Any], rng: Any) -> None:
    first = np.array([0x34, 0x52, 0x61], dtype=np.uint8)  # 0x234 and 0x561
    found = answer(first.copy())
    if found is None or np.shape(found) != (2,):
        raise Misconception("Three bytes hold two samples: return two numbers for them.")
    if list(found) == [0x534, 0x261]:
        raise Misconception("You took the upper four bits of b for the first sample. Its are the lower four.")
    if list(found) == [0x561, 0x234]:
        raise Misconception("The samples are in the wrong order: the one that begins with a comes first.")
    overflow = "Bytes overflow at 256: convert the array to integers before you multiply or shift."
    expect_equal(found, [0x234, 0x561], "the bytes 0x34 0x52 0x61 (0x234 and 0x561)", overflow)
    negative = np.array([0xFF, 0x0F, 0x00, 0x00, 0x88, 0x01], dtype=np.uint8)
    sign = "The samples are two's complement: from 2048 on they are negative, so 4095 is -1 and 2048 is -2048."
    expect_equal(answer(negative.copy()), [-1, 0, -2048, -2047], "samples below zero", sign)
    for _ in range(10):
        data = rng.integers(0, 256, size=3 * int(rng.integers(1, 100))).astype(np.uint8)
        expect_equal(answer(data.copy()), unpack_212(data), f"{len(data)} random bytes", "Are they in their order?")


def _upper_first(data: Array) -> Array:
    a, b, c = data.reshape(-1, 3).T
    return unpack_212(np.stack([a, (b >> 4) | ((b & 15) << 4), c], axis=1).ravel())


def _unsigned(data: Array) -> Array:
    return unpack_212(data) % 4096


def _overflowing(data: Array) -> Array:
    a, b, c = data.reshape(-1, 3).T
    return np.stack([a + ((b & 15) << 8), c + ((b >> 4) << 8)], axis=1).ravel()


def _one_after_the_other(data: Array) -> Array:
    return unpack_212(data).reshape(-1, 2).T.ravel()


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
    Exercise(
        id="01.4",
        title="Undo the swap",
        difficulty=2,
        minutes=12,
        verify=_verify_arms,
        reference=undo_arms,
        wrong=(
            ("turns lead I over, and that's all", _turn_only),
            ("forgets Goldberger's leads", _einthoven_only),
            ("turns II and III over", _turn_all),
            ("changes what it was given", _in_place),
        ),
    ),
    Exercise(
        id="01.5",
        title="Two samples in three bytes",
        difficulty=3,
        minutes=20,
        verify=_verify_212,
        reference=unpack_212,
        wrong=(
            ("takes the upper four bits first", _upper_first),
            ("forgets the sign", _unsigned),
            ("lets bytes overflow", _overflowing),
            ("all first samples, then all second ones", _one_after_the_other),
        ),
    ),
)
