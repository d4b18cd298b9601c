"""Exercises of notebook 10: present, absent or open; wrong numbers; which tokens to learn; how far a no reaches."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from ecgchat_lib.course import Exercise, Misconception, expect_equal

# --- 10.1 --------------------------------------------------------------------------------------------------------

_CODES = ("AFIB", "SR", "LVH", "VCLVH", "IMI", "NORM", "PVC")


def is_present(codes: set[str], blurs: set[str], statements: list[tuple[str, float]]) -> bool | None:
    """Reference of 10.1: True, False, or None where the statements leave it open."""
    if any(code in codes and (likelihood == 0 or likelihood >= 50) for code, likelihood in statements):
        return True
    stated = {code for code, _ in statements}
    if not stated or stated & (codes | blurs):
        return None
    return False


def _verify_presence(answer: Callable[..., bool | None], rng: Any) -> None:
    cases: list[tuple[set[str], set[str], list[tuple[str, float]], str]] = [
        (
            {"AFIB"},
            set(),
            [("AFIB", 0.0)],
            "A likelihood of 0 means 'not given', and such a statement counts.",
        ),
        ({"IMI"}, set(), [("SR", 0.0), ("IMI", 15.0)], "At 15 percent nobody can say yes, and nobody can say no."),
        ({"LVH"}, {"VCLVH"}, [("VCLVH", 0.0)], "High voltages alone blur it: leave it open."),
        ({"LVH"}, set(), [], "A recording without any statement says nothing; absent is something to be known."),
        ({"AFIB"}, set(), [("SR", 0.0), ("NORM", 100.0)], "Stated things, none of them the finding: it is absent."),
        ({"IMI"}, set(), [("IMI", 50.0)], "From 50 percent on a statement counts as present."),
    ]
    for codes, blurs, statements, why in cases:
        _compare(answer, codes, blurs, statements, why)
    for _ in range(200):
        order = [str(code) for code in rng.permutation(_CODES)]
        statements = [(code, float(rng.choice([0, 15, 35, 50, 100]))) for code in order[: rng.integers(0, 4)]]
        chosen = [str(code) for code in rng.permutation(_CODES)]
        _compare(answer, set(chosen[:2]), set(chosen[2:3]), statements, "")


def _compare(
    answer: Callable[..., bool | None], codes: set[str], blurs: set[str], statements: list[tuple[str, float]], why: str
) -> None:
    found, expected = answer(set(codes), set(blurs), list(statements)), is_present(codes, blurs, statements)
    if found is not expected:
        raise Misconception(
            f"codes {sorted(codes)}, blurs {sorted(blurs)}, statements {statements}: expected {expected}, "
            f"found {found!r}. {why}"
        )


def _absent_unless_listed(codes: set[str], blurs: set[str], statements: list[tuple[str, float]]) -> bool:
    return any(code in codes and (p == 0 or p >= 50) for code, p in statements)


def _zero_is_unlikely(codes: set[str], blurs: set[str], statements: list[tuple[str, float]]) -> bool | None:
    if any(code in codes and p >= 50 for code, p in statements):
        return True
    stated = {code for code, _ in statements}
    return None if not stated or stated & (codes | blurs) else False


# --- 10.2 --------------------------------------------------------------------------------------------------------


def wrong_numbers(answer: str, measured: list[int]) -> list[int]:
    """Reference of 10.2: the whole numbers in an answer that weren't measured, in their order."""
    import re

    return [int(text) for text in re.findall(r"(?<![\w-])-?\d+", answer) if int(text) not in measured]


def _verify_numbers(answer: Callable[[str, list[int]], list[int]], rng: Any) -> None:
    cases: list[tuple[str, list[int], str]] = [
        ("The heart rate is 72 beats per minute.", [72, 160], ""),
        ("The heart rate is 72 beats per minute.", [7, 2, 172], "72 is one number, not two digits or a part of 172."),
        ("The QRS axis is -35 degrees.", [35], "-35 and 35 are different directions: mind the sign."),
        ("This 12-lead ECG shows no AV block.", [12], ""),
        ("It is a normal ECG.", [72], "No number, nothing wrong: return an empty list."),
    ]
    for text, measured, why in cases:
        _compare_numbers(answer, text, measured, why)
    for _ in range(30):
        said = [int(n) for n in rng.integers(-180, 500, size=3)]
        text = f"The PR interval is {said[0]} ms, the QT interval {said[1]} ms, the axis {said[2]} degrees."
        _compare_numbers(answer, text, [n for n in said if rng.random() < 0.6], "")


def _compare_numbers(answer: Callable[[str, list[int]], list[int]], text: str, measured: list[int], why: str) -> None:
    found, expected = answer(text, list(measured)), wrong_numbers(text, measured)
    if not isinstance(found, list) or found != expected:
        raise Misconception(f"{text!r} with {measured} measured: expected {expected}, found {found!r}. {why}")


def _substring(answer: str, measured: list[int]) -> list[int]:
    import re

    known = " ".join(map(str, measured))
    return [int(text) for text in re.findall(r"-?\d+", answer) if text not in known]


def _unsigned(answer: str, measured: list[int]) -> list[int]:
    import re

    return [int(text) for text in re.findall(r"\d+", answer) if int(text) not in measured]


# --- 10.4 --------------------------------------------------------------------------------------------------------


def mask_labels(ids: list[int], offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    """Reference of 10.4: the token's id where it lies wholly inside an answer, else -100."""
    return [
        token if any(start <= low and high <= end for start, end in spans) else -100
        for token, (low, high) in zip(ids, offsets, strict=True)
    ]


def _verify_mask(answer: Callable[..., list[int]], rng: Any) -> None:
    for _ in range(30):
        lengths = rng.integers(1, 5, size=int(rng.integers(6, 14)))
        edges = [0, *lengths.cumsum().tolist()]
        offsets = list(pairwise(edges))
        ids = [int(n) for n in rng.integers(1000, 2000, size=len(offsets))]
        first, second = sorted(int(k) for k in rng.choice(len(offsets) - 1, 2, replace=False))
        spans = [(edges[first], edges[first + 1]), (edges[second], edges[-1])]
        if first + 1 == second:
            spans = [(edges[first], edges[-1])]
        found, expected = list(answer(ids, offsets, spans)), mask_labels(ids, offsets, spans)
        if len(found) != len(ids):
            raise Misconception(f"expected one label per token, {len(ids)}, found {len(found)}.")
        if found == _questions_learned(ids, offsets, spans):
            raise Misconception("You learn the questions and mask the answers: it is the other way round.")
        if found == _without_last(ids, offsets, spans) != expected:
            raise Misconception(
                "The last token of each answer is masked. It is the end mark; a model that never learns it never stops."
            )
        if found == _only_last_span(ids, offsets, spans) != expected:
            raise Misconception("Only the last answer is learned. Every answer of the conversation should be.")
        expect_equal(found, expected, "the labels", "A token counts if it lies wholly inside an answer's span.")


def _without_last(ids: list[int], offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    return [
        token if any(start <= low and high < end for start, end in spans) else -100
        for token, (low, high) in zip(ids, offsets, strict=True)
    ]


def _only_last_span(ids: list[int], offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    return mask_labels(ids, offsets, spans[-1:])


def _questions_learned(ids: list[int], offsets: list[tuple[int, int]], spans: list[tuple[int, int]]) -> list[int]:
    masked = mask_labels(ids, offsets, spans)
    return [token if label == -100 else -100 for token, label in zip(ids, masked, strict=True)]


# --- 10.3 --------------------------------------------------------------------------------------------------------


def is_denied(sentence: str, finding: str) -> bool:
    """Reference of 10.3: whether a negation before the finding reaches it, with no "but" between."""
    import re

    before = sentence.split(finding)[0]
    reach = re.split(r"\b(?:but|however|although)\b", before)[-1]
    return bool(re.search(r"\b(?:no|not|without|neither|nor)\b", reach))


_NAMES = ("atrial fibrillation", "left bundle branch block", "st depression", "sinus rhythm")
_FRAMES = (
    "there is no {0}.",
    "no {0}, but {1} is present.",
    "this is {0} without {1}.",
    "neither {0} nor {1} is seen.",
    "{0} is present, not {1}.",
    "it does not show {0}, however {1} is there.",
    "a normal axis and {0}.",
    "notable findings: {0} and {1}.",
    "no {0} is seen, although {1} is present.",
)


def _verify_denied(answer: Callable[[str, str], bool], rng: Any) -> None:
    for frame in _FRAMES:
        names = [str(name) for name in rng.permutation(_NAMES)[:2]]
        sentence = frame.format(*names)
        for finding in names:
            if finding not in sentence:
                continue
            found, expected = answer(sentence, finding), is_denied(sentence, finding)
            if found is not expected:
                raise Misconception(
                    f"{sentence!r}, {finding!r}: expected {expected}, found {found!r}. {_why(sentence)}"
                )


def _why(sentence: str) -> str:
    if any(word in sentence for word in ("but", "however", "although")):
        return "A negation ends where 'but', 'however' or 'although' begins."
    if "normal" in sentence or "notable" in sentence:
        return "'normal' and 'notable' hold no word 'no' or 'not'."
    return "Only a negation before the finding reaches it."


def _anywhere(sentence: str, finding: str) -> bool:
    import re

    return bool(re.search(r"\b(?:no|not|without|neither|nor)\b", sentence))


def _through_but(sentence: str, finding: str) -> bool:
    return _anywhere(sentence.split(finding)[0], finding)


def _inside_words(sentence: str, finding: str) -> bool:
    before = sentence.split(finding)[0]
    for stop in ("but", "however", "although"):
        before = before.split(stop)[-1]
    return any(word in before for word in ("no", "not", "without", "neither", "nor"))


EXERCISES = (
    Exercise(
        id="10.1",
        title="present, absent, or left open",
        difficulty=2,
        minutes=10,
        verify=_verify_presence,
        reference=is_present,
        wrong=(
            ("what isn't stated is taken for absent", _absent_unless_listed),
            ("a likelihood of 0 is taken for unlikely", _zero_is_unlikely),
        ),
    ),
    Exercise(
        id="10.2",
        title="numbers that nobody measured",
        difficulty=1,
        minutes=5,
        verify=_verify_numbers,
        reference=wrong_numbers,
        wrong=(
            ("numbers are looked up as text", _substring),
            ("the sign is lost", _unsigned),
        ),
    ),
    Exercise(
        id="10.4",
        title="learn the answers and nothing else",
        difficulty=2,
        minutes=10,
        verify=_verify_mask,
        reference=mask_labels,
        wrong=(
            ("the end mark of each answer is left out", _without_last),
            ("only the last answer counts", _only_last_span),
            ("questions and answers are confused", _questions_learned),
        ),
    ),
    Exercise(
        id="10.3",
        title="how far a no reaches",
        difficulty=2,
        minutes=10,
        verify=_verify_denied,
        reference=is_denied,
        wrong=(
            ("a negation anywhere in the sentence counts", _anywhere),
            ("a negation goes on after 'but'", _through_but),
            ("'normal' is taken for a 'no'", _inside_words),
        ),
    ),
)
