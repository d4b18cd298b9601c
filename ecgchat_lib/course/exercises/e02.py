"""Exercises of notebook 02: superclasses, AHA codes, abbreviations by words, what a statement claims, and a split."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ecgchat_lib.course import Exercise, Misconception, expect_equal
from ecgchat_lib.datasets.labels import STATEMENTS, SUPERCLASSES
from ecgchat_lib.datasets.labels import superclasses as library_superclasses


def _given(value: Any) -> Any:
    if value is None or value is Ellipsis:
        raise Misconception("Your function returned nothing; end it with return.")
    return value


# --- 02.1 --------------------------------------------------------------------------------------------------------


def superclasses_of(cell: str) -> tuple[str, ...]:
    """Reference of 02.1: the superclasses of a `scp_codes` cell, in the order of SUPERCLASSES."""
    found = {STATEMENTS[code].superclass for code in ast.literal_eval(cell)}
    return tuple(name for name in SUPERCLASSES if name in found)


def _verify_superclasses(answer: Callable[[str], tuple[str, ...]], rng: Any) -> None:
    got = tuple(_given(answer("{'NDT': 0.0, 'SR': 0.0}")))
    if got == ():
        raise Misconception(
            "NDT with likelihood 0 got lost. In PTB-XL 0 means that the likelihood is unknown, not 'absent'."
        )
    if None in got:
        raise Misconception(
            "A None is among the classes: rhythm and form statements have no superclass; leave them out."
        )
    if len(tuple(answer("{'IMI': 100.0, 'ASMI': 50.0}"))) == 2:
        raise Misconception("Two infarctions are still one superclass, MI: each class is named once.")
    codes = sorted(STATEMENTS)
    for _ in range(40):
        chosen = rng.choice(codes, size=int(rng.integers(0, 7)), replace=False)
        cell = str({str(code): float(rng.choice([0, 15, 50, 80, 100])) for code in chosen})
        expected, found = library_superclasses(str(code) for code in chosen), tuple(answer(cell))
        if found != expected and sorted(found) == sorted(expected):
            raise Misconception("The classes are right but their order isn't: give them in the order of SUPERCLASSES.")
        expect_equal(list(found), list(expected), f"the superclasses of {cell}")


def _only_likely(cell: str) -> tuple[str, ...]:
    codes = ast.literal_eval(cell)
    found = {STATEMENTS[code].superclass for code, likelihood in codes.items() if likelihood > 0}
    return tuple(name for name in SUPERCLASSES if name in found)


def _one_per_statement(cell: str) -> tuple[str, ...]:
    found = [STATEMENTS[code].superclass for code in ast.literal_eval(cell)]
    return tuple(name for name in found if name is not None)


def _alphabetical(cell: str) -> tuple[str, ...]:
    return tuple(sorted(superclasses_of(cell)))


# --- 02.2 --------------------------------------------------------------------------------------------------------


def parse_aha(cell: str) -> list[tuple[str, tuple[str, ...]]]:
    """Reference of 02.2: the statements of a cell of AHA codes, each with its modifiers."""
    parts = [part.split("+") for part in cell.split(";")]
    return [(first, tuple(modifiers)) for first, *modifiers in parts]


def _verify_aha(answer: Callable[[str], Any], rng: Any) -> None:
    got = list(_given(answer("145+362")))
    if len(got) == 2:
        raise Misconception("145+362 is one statement, an ST deviation (145) that goes down (362): 362 modifies 145.")
    if len(got) == 1 and len(got[0]) == 2 and not got[0][1]:
        raise Misconception(
            "The modifier 362 got lost. Without it nobody knows whether the ST segment goes up or down."
        )
    if len(list(answer("22;23"))) == 1:
        raise Misconception("22;23 are two statements: a semicolon parts them, a plus sign doesn't.")
    if not isinstance(got[0][0], str):
        raise Misconception("Keep the codes as texts, as the label tables have them.")
    for _ in range(40):
        parts = [
            "+".join(str(code) for code in rng.integers(1, 400, int(rng.integers(1, 4))))
            for _ in range(int(rng.integers(1, 4)))
        ]
        cell = ";".join(parts)
        found = [(first, tuple(modifiers)) for first, modifiers in answer(cell)]
        expect_equal(repr(found), repr(parse_aha(cell)), f"the statements of {cell}")


def _every_code_a_statement(cell: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(code, ()) for code in re.split("[;+]", cell)]


def _without_modifiers(cell: str) -> list[tuple[str, tuple[str, ...]]]:
    return [(part.split("+")[0], ()) for part in cell.split(";")]


def _one_statement(cell: str) -> list[tuple[str, tuple[str, ...]]]:
    first, *rest = re.split("[;+]", cell)
    return [(first, tuple(rest))]


# --- 02.3 --------------------------------------------------------------------------------------------------------


def expand(text: str, abbreviations: Mapping[str, str]) -> str:
    """Reference of 02.3: each abbreviation written out where it stands as a whole word, in any case."""
    return re.sub(r"[A-Za-z]+", lambda word: abbreviations.get(word[0].lower(), word[0]), text)


_KNOWN = {"mi": "myocardial infarction", "af": "atrial fibrillation", "lbbb": "left bundle branch block"}


def _verify_expand(answer: Callable[[str, Mapping[str, str]], str], rng: Any) -> None:
    if "infarctionn" in _given(answer("minimal changes", _KNOWN)):
        raise Misconception("'minimal' was taken apart: 'mi' counts only where it is the whole word, not inside one.")
    if answer("old mi.", _KNOWN) == "old mi." or answer("old mi, af", _KNOWN) == "old mi, atrial fibrillation":
        raise Misconception(
            "'mi.' and 'mi,' were missed: a word also ends at a full stop or comma, not only at a space."
        )
    if answer("old MI", _KNOWN) == "old MI":
        raise Misconception("'MI' was missed: reports write abbreviations in capitals too.")
    words = ["mi", "MI", "af", "LBBB", "limb", "minimal", "after", "sinus", "rhythm", "62.5", "st"]
    ends = [" ", ", ", ". ", "; ", " (", ") "]
    for _ in range(40):
        picks = rng.integers(0, len(words), size=int(rng.integers(1, 8)))
        text = "".join(words[k] + ends[int(rng.integers(len(ends)))] for k in picks).strip()
        expect_equal(answer(text, _KNOWN), expand(text, _KNOWN), f"the text '{text}'")


def _replace(text: str, abbreviations: Mapping[str, str]) -> str:
    for short, long in abbreviations.items():
        text = text.replace(short, long)
    return text


def _split_at_spaces(text: str, abbreviations: Mapping[str, str]) -> str:
    return " ".join(abbreviations.get(word.lower(), word) for word in text.split(" "))


def _lower_only(text: str, abbreviations: Mapping[str, str]) -> str:
    return re.sub(r"[A-Za-z]+", lambda word: abbreviations.get(word[0], word[0]), text)


# --- 02.4 --------------------------------------------------------------------------------------------------------

HEDGES = {"cannot rule out": 35, "consider": 35, "possible": 50, "probable": 80}


def claim(statement: str, finding: str, hedges: Mapping[str, int]) -> int | None:
    """Reference of 02.4: how likely a statement calls a finding, in percent; None where it doesn't claim it."""
    text = statement.lower()
    found = re.search(rf"\b{finding}\b", text)
    if found is None:
        return None
    before = text[: found.start()]
    for hedge, likelihood in hedges.items():
        if re.search(rf"\b{hedge}\b", before):
            return likelihood
    return None if re.search(r"\b(no|not|without)\b", before) else 100


def _verify_claim(answer: Callable[[str, str, Mapping[str, int]], Any], rng: Any) -> None:
    if answer("Inferior infarct", "infarct", HEDGES) is None:
        raise Misconception("A plain statement claims its finding: return 100 at the end.")
    if answer("Cannot rule out inferior infarct", "infarct", HEDGES) is None:
        raise Misconception(
            "'cannot' was taken for a 'not'. Look for the hedges first, and for negations by whole words."
        )
    if answer("Nonspecific changes, old infarct", "infarct", HEDGES) is None:
        raise Misconception("'Nonspecific' was taken for a 'no'. A negation is a whole word.")
    if answer("Possible inferior infarct", "infarct", HEDGES) == 100:
        raise Misconception("The hedge got lost: 'possible' is 50, not 100.")
    if answer("Inferior infarct, no lvh", "infarct", HEDGES) is None:
        raise Misconception("The 'no' belongs to what follows it. Look only at the text before the finding.")
    if answer("No infarct", "infarct", HEDGES) is not None:
        raise Misconception("'No infarct' claims nothing: return None.")
    findings = ("infarct", "ischemia", "lvh", "flutter")
    openings = (
        "",
        "no ",
        "possible ",
        "probable ",
        "consider ",
        "cannot rule out ",
        "without ",
        "nonspecific ",
        "abnormal ",
    )
    for _ in range(60):
        parts = [openings[int(rng.integers(len(openings)))] + findings[int(rng.integers(4))] for _ in range(2)]
        text, finding = f"{parts[0]} - age undetermined. {parts[1]}".capitalize(), findings[int(rng.integers(4))]
        got, expected = answer(text, finding, HEDGES), claim(text, finding, HEDGES)
        expect_equal(str(got), str(expected), f"the claim of '{finding}' in '{text}'")


def _negation_inside_words(statement: str, finding: str, hedges: Mapping[str, int]) -> int | None:
    before, found, _ = statement.lower().partition(finding)
    if not found or "no" in before:
        return None
    return next((likelihood for hedge, likelihood in hedges.items() if hedge in before), 100)


def _no_hedges(statement: str, finding: str, hedges: Mapping[str, int]) -> int | None:
    likelihood = claim(statement, finding, hedges)
    return None if likelihood is None else 100


def _negation_anywhere(statement: str, finding: str, hedges: Mapping[str, int]) -> int | None:
    if re.search(r"\b(no|not|without)\b", statement.lower()):
        return None
    return claim(statement, finding, hedges)


# --- 02.5 --------------------------------------------------------------------------------------------------------


def rows_for_test(patients: Sequence[str], share: float, rng: Any) -> np.ndarray:
    """Reference of 02.2: True for the recordings of a random `share` of the patients."""
    unique = sorted(set(patients))
    drawn = set(rng.permutation(unique)[: round(share * len(unique))])
    return np.array([patient in drawn for patient in patients])


def _verify_split(answer: Callable[[Sequence[str], float, Any], Any], rng: Any) -> None:
    for _ in range(10):
        people = int(rng.integers(20, 60))
        patients = [f"p{k}" for k in rng.integers(0, people, size=4 * people)]
        found = answer(patients, 0.25, np.random.default_rng(int(rng.integers(1000))))
        mask = np.asarray(_given(found))
        if mask.shape != (len(patients),) or mask.dtype != bool:
            raise Misconception("Return one True or False per recording: a boolean array as long as `patients`.")
        test = {patient for patient, here in zip(patients, mask, strict=True) if here}
        train = {patient for patient, here in zip(patients, mask, strict=True) if not here}
        both = len(test & train)
        if both:
            raise Misconception(f"{both} patients have recordings on both sides. Draw patients, not recordings.")
        wanted = round(0.25 * len(set(patients)))
        if len(train) == wanted and len(test) != wanted:
            raise Misconception("True marks the test side; yours marks the training side.")
        expect_equal(len(test), wanted, "the number of test patients")
    patients = [f"p{k}" for k in range(40)]
    drawn = [tuple(np.asarray(answer(patients, 0.25, np.random.default_rng(k)))) for k in range(5)]
    if len(set(drawn)) == 1:
        raise Misconception("Every generator gives the same patients: draw them with `rng`, don't take the first ones.")


def _by_recording(patients: Sequence[str], share: float, rng: Any) -> np.ndarray:
    mask = np.zeros(len(patients), dtype=bool)
    mask[rng.permutation(len(patients))[: round(share * len(patients))]] = True
    return mask


def _first_patients(patients: Sequence[str], share: float, rng: Any) -> np.ndarray:
    unique = sorted(set(patients))
    return np.isin(patients, unique[: round(share * len(unique))])


EXERCISES = (
    Exercise(
        id="02.1",
        title="From a cell of statements to superclasses",
        difficulty=1,
        minutes=10,
        verify=_verify_superclasses,
        reference=superclasses_of,
        wrong=(
            ("takes likelihood 0 for absent", _only_likely),
            ("names a class once per statement", _one_per_statement),
            ("sorts by alphabet", _alphabetical),
        ),
    ),
    Exercise(
        id="02.2",
        title="A cell of AHA codes",
        difficulty=1,
        minutes=8,
        verify=_verify_aha,
        reference=parse_aha,
        wrong=(
            ("takes modifiers for statements", _every_code_a_statement),
            ("drops the modifiers", _without_modifiers),
            ("makes one statement of all", _one_statement),
        ),
    ),
    Exercise(
        id="02.3",
        title="Abbreviations by words",
        difficulty=2,
        minutes=10,
        verify=_verify_expand,
        reference=expand,
        wrong=(
            ("replaces inside words", _replace),
            ("splits at spaces only", _split_at_spaces),
            ("misses capitals", _lower_only),
        ),
    ),
    Exercise(
        id="02.4",
        title="What a statement claims",
        difficulty=3,
        minutes=15,
        verify=_verify_claim,
        reference=claim,
        wrong=(
            ("finds negations inside words", _negation_inside_words),
            ("loses the hedges", _no_hedges),
            ("lets a negation reach back", _negation_anywhere),
        ),
    ),
    Exercise(
        id="02.5",
        title="A split by patient",
        difficulty=2,
        minutes=10,
        verify=_verify_split,
        reference=rows_for_test,
        wrong=(
            ("draws recordings", _by_recording),
            ("takes the first patients", _first_patients),
            ("marks the training side", lambda patients, share, rng: ~rows_for_test(patients, share, rng)),
        ),
    ),
)
