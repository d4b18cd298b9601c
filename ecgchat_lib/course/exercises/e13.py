"""Exercises of notebook 13: LaTeX escaping, a flag with its borders, an answer against a measurement, and margins."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from ecgchat_lib.course import Exercise, Misconception, expect_equal
from ecgchat_lib.knowledge.limits import flag

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
}


def escape_latex(text: str) -> str:
    """Reference of 13.1: one character at a time, so that no replacement is replaced again."""
    return "".join(SPECIAL.get(character, character) for character in text)


def _verify_escape(answer: Callable[[str], str], rng: Any) -> None:
    expect_equal(answer("100 mmHg"), "100 mmHg", "a text without special characters", "It must stay as it is.")
    for character, latex in SPECIAL.items():
        found = answer(character)
        if found == "":
            raise Misconception(f"{character!r} is gone. Escaping shows every character; it removes none.")
        if character in "\\^~" and found == "\\" + character:
            raise Misconception(
                f"A backslash in front isn't enough for {character!r}: LaTeX reads {found} as a command "
                r"(\\ ends a line, \^ and \~ set accents)."
            )
        if character == "\\" and found == r"\textbackslash\{\}":
            raise Misconception(
                "You replaced the backslash, and then the braces of your own replacement. "
                "Go through the text once, character by character."
            )
        expect_equal(found, latex, f"the character {character!r}")
    alphabet = [*SPECIAL, "a", " ", "1"]
    for _ in range(20):
        text = "".join(rng.choice(alphabet, size=int(rng.integers(0, 30))))
        expect_equal(answer(text), escape_latex(text), f"the text {text!r}", "Each character counts on its own.")


def _chained(text: str) -> str:
    for character, latex in SPECIAL.items():
        text = text.replace(character, latex)
    return text


def flag_qtc(qtc_ms: float, sex: str | None) -> str:
    """Reference of 13.2: the library's own answer."""
    return flag("qtc_ms", qtc_ms, sex=sex).status


def _verify_flag(answer: Callable[[float, str | None], str], rng: Any) -> None:
    if answer(math.nan, "male") != "unknown":
        raise Misconception(
            "NaN means that nothing was measured, and every comparison with NaN is False. "
            "Test it first (math.isnan): what wasn't measured is 'unknown', never normal."
        )
    for value, sex, status in ((450, "male", "high"), (460, "female", "high"), (390, "male", "low")):
        if answer(float(value), sex) != status:
            raise Misconception(
                f"QTc {value} ms, {sex}: expected '{status}', found {answer(float(value), sex)!r}. "
                "These limits are part of the abnormal side: at least 450 or 460, at most 390."
            )
    if answer(455.0, None) != "unknown":
        raise Misconception(
            f"QTc 455 ms, sex not recorded: found {answer(455.0, None)!r}. It is prolonged in a man and normal "
            "in a woman; the only honest answer is 'unknown'."
        )
    for _ in range(40):
        qtc, who = float(rng.integers(360, 500)), (None, "male", "female")[int(rng.integers(3))]
        expect_equal(answer(qtc, who), flag_qtc(qtc, who), f"QTc {qtc:g} ms, sex {who}")


def _flag(qtc_ms: float, sex: str | None, *, default: str | None = None, inclusive: bool = True) -> str:
    limits = {"male": 450.0, "female": 460.0}
    sex = sex or default
    edges = [limits[sex]] if sex else list(limits.values())
    found = {qtc_ms > edge or (inclusive and qtc_ms == edge) for edge in edges}
    if math.isnan(qtc_ms) or len(found) > 1:
        return "unknown"
    if qtc_ms < 390 or (inclusive and qtc_ms == 390):
        return "low"
    return "high" if found.pop() else "normal"


def _flag_nan_is_normal(qtc_ms: float, sex: str | None) -> str:
    return "normal" if math.isnan(qtc_ms) else _flag(qtc_ms, sex)


def contradicts(answer: str, measured_bpm: float) -> bool:
    """Reference of 13.3: a heart rate with its unit that is more than 5 bpm off; no measurement, no contradiction."""
    found = re.search(r"(\d+(?:\.\d+)?)\s*(?:bpm|beats per minute)", answer)
    return found is not None and abs(float(found.group(1)) - measured_bpm) > 5


def _verify_contradicts(answer: Callable[[str, float], bool], rng: Any) -> None:
    cases = (
        ("Sinus rhythm at 72 bpm.", 120.0, True, "72 bpm isn't 120 bpm."),
        ("Sinus rhythm at 118 beats per minute.", 120.0, False, "Within 5 bpm it counts as the same rate."),
        ("A normal ECG.", 120.0, False, "An answer without a rate contradicts no rate."),
        ("QRS 92 ms, rate 120 bpm.", 120.0, False, "Take the number with the unit of a rate, not the first one."),
        ("Sinus rhythm at 72 bpm.", math.nan, False, "NaN: nothing was measured, so nothing can contradict it."),
        ("Sinus rhythm at 120 bpm.", 12.0, True, "'12' occurs in '120'; compare numbers, not texts."),
    )
    for text, measured, expected, why in cases:
        found = answer(text, measured)
        if bool(found) != expected or found is None:
            raise Misconception(f"{text!r} with {measured:g} bpm measured: expected {expected}, found {found!r}. {why}")
    for _ in range(30):
        said, measured = int(rng.integers(30, 200)), float(rng.integers(30, 200))
        text = f"The PR interval is {int(rng.integers(100, 300))} ms; the heart rate is {said} bpm."
        expect_equal(
            bool(answer(text, measured)), contradicts(text, measured), f"{said} bpm said, {measured:g} measured"
        )


def _first_number(answer: str, measured_bpm: float) -> bool:
    found = re.search(r"\d+", answer)
    return found is not None and abs(float(found.group()) - measured_bpm) > 5


def _substring(answer: str, measured_bpm: float) -> bool:
    return not math.isnan(measured_bpm) and "bpm" in answer and f"{measured_bpm:.0f}" not in answer


def _nan_contradicts(answer: str, measured_bpm: float) -> bool:
    found = re.search(r"(\d+)\s*(?:bpm|beats per minute)", answer)
    return found is not None and not abs(float(found.group(1)) - measured_bpm) <= 5


def disputes(affirmed: bool, probability: float | None, threshold: float, margin: float) -> bool:
    """Reference of 13.4: whether a classifier is sure enough to contradict a statement of a finding."""
    if probability is None:
        return False
    if affirmed:
        return probability < margin * threshold
    return probability >= threshold + margin * (1 - threshold)


_Disputes = Callable[[bool, float | None, float, float], bool]


def _verify_disputes(answer: _Disputes, rng: Any) -> None:
    cases = (
        (True, 0.31, 0.36, False, "It is below the threshold, but not below a quarter of it: too near to be sure."),
        (True, 0.01, 0.36, True, "An affirmed finding that is far below its threshold is disputed."),
        (False, 0.55, 0.5, False, "It is above the threshold, but the way to 1 has only begun."),
        (False, 0.9, 0.5, True, "A denied finding that is far above its threshold is disputed."),
        (True, 0.9, 0.5, False, "The answer affirms what the classifier says; they agree."),
        (False, 0.01, 0.5, False, "The answer denies what the classifier doesn't say; they agree."),
        (True, 0.0, 0.5, True, "0.0 is a probability, and a sure one; only None means that nobody knows."),
        (False, 0.625, 0.5, True, "The border belongs to the disputed side: at least a quarter of the way."),
        (True, None, 0.5, False, "None: the classifier doesn't know the finding, so it has nothing to say."),
        (False, None, 0.5, False, "None: the classifier doesn't know the finding, so it has nothing to say."),
    )
    for affirmed, probability, threshold, expected, why in cases:
        try:
            found = answer(affirmed, probability, threshold, 0.25)
        except TypeError:
            if probability is not None:
                raise
            raise Misconception("None can't be compared with a number. Ask `probability is None` first.") from None
        if found is None or bool(found) != expected:
            raise Misconception(
                f"affirmed {affirmed}, probability {probability}, threshold {threshold}, margin 0.25: expected "
                f"{expected}, found {found!r}. {why}"
            )
    for _ in range(40):
        affirmed, (chance, limit, margin) = bool(rng.integers(2)), (float(x) for x in rng.uniform(0, 1, 3))
        expected = disputes(affirmed, chance, limit, margin)
        what = f"affirmed {affirmed}, probability {chance:.3f}, threshold {limit:.3f}, margin {margin:.3f}"
        expect_equal(bool(answer(affirmed, chance, limit, margin)), expected, what)


def _no_margin(affirmed: bool, probability: float | None, threshold: float, margin: float) -> bool:
    return probability is not None and (probability < threshold if affirmed else probability >= threshold)


def _one_direction(affirmed: bool, probability: float | None, threshold: float, margin: float) -> bool:
    return probability is not None and probability < margin * threshold


def _zero_is_unknown(affirmed: bool, probability: float | None, threshold: float, margin: float) -> bool:
    return bool(probability) and disputes(affirmed, probability, threshold, margin)


EXERCISES = (
    Exercise(
        id="13.1",
        title="Escape a text for LaTeX",
        difficulty=1,
        minutes=8,
        verify=_verify_escape,
        reference=escape_latex,
        wrong=(
            ("replaces one character after another, and so its own replacements", _chained),
            ("puts a backslash in front of each", lambda t: "".join("\\" + c if c in SPECIAL else c for c in t)),
            ("removes what could do harm", lambda text: "".join(c for c in text if c not in SPECIAL)),
        ),
    ),
    Exercise(
        id="13.2",
        title="Flag a QTc against its limits",
        difficulty=2,
        minutes=10,
        verify=_verify_flag,
        reference=flag_qtc,
        wrong=(
            ("takes the limit itself for normal", lambda qtc, sex: _flag(qtc, sex, inclusive=False)),
            ("takes an unknown sex for male", lambda qtc, sex: _flag(qtc, sex, default="male")),
            ("takes what wasn't measured for normal", _flag_nan_is_normal),
        ),
    ),
    Exercise(
        id="13.3",
        title="Find a heart rate that contradicts the measurement",
        difficulty=2,
        minutes=12,
        verify=_verify_contradicts,
        reference=contradicts,
        wrong=(
            ("takes the first number for the rate", _first_number),
            ("compares texts, not numbers", _substring),
            ("lets NaN contradict", _nan_contradicts),
        ),
    ),
    Exercise(
        id="13.4",
        title="Contradict with a margin",
        difficulty=2,
        minutes=10,
        verify=_verify_disputes,
        reference=disputes,
        wrong=(
            ("disputes whatever lies on the other side of the threshold", _no_margin),
            ("forgets whether the answer affirms or denies", _one_direction),
            ("takes 0.0 for unknown", _zero_is_unknown),
        ),
    ),
)
