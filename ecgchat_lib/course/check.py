"""Exercises: what is asked, how an attempt is judged, and which misconceptions are known by name.

`check("07.1", f)` prints one line and never raises for a learner's mistake. An exercise brings its own reference and
two or more typical wrong answers; tests prove that the first passes and that each of the others is named.
Taught in: every notebook's exercises.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ecgchat_lib.errors import EcgChatError

PLACEHOLDER = "...  # your code here"
_PLACEHOLDER_LINE = re.compile(r"\.\.\.\s*# your code here\s*$", re.MULTILINE)


class Misconception(AssertionError):
    """A wrong answer whose cause has a name: the message says what was probably thought, and what holds instead."""


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        id: e.g. "07.1".
        title: as in the notebook's heading.
        difficulty: 1 to 3 stars.
        minutes: how long it takes.
        verify: called with the learner's answer and a seeded generator; raises `Misconception` if it isn't right.
        reference: the right answer.
        wrong: typical wrong answers, each with the reason why people give it.
    """

    id: str
    title: str
    difficulty: int
    minutes: int
    verify: Callable[[Any, Any], None]
    reference: Any
    wrong: tuple[tuple[str, Any], ...]


def exercises(number: str) -> tuple[Exercise, ...]:
    """Return the exercises of a notebook, from `ecgchat_lib/course/exercises/eNN.py`; none if there is no such file."""
    name = f"ecgchat_lib.course.exercises.e{number}"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return ()
    return tuple(module.EXERCISES)


def find(exercise_id: str) -> Exercise:
    """Return one exercise.

    Raises:
        EcgChatError: there is no such exercise.
    """
    for exercise in exercises(exercise_id.partition(".")[0]):
        if exercise.id == exercise_id:
            return exercise
    raise EcgChatError(f"there is no exercise {exercise_id}")


def check(exercise_id: str, answer: object) -> None:
    """Judge an answer and print one line: passed, not attempted yet, or what is misunderstood."""
    print(verdict(find(exercise_id), answer))


def verdict(exercise: Exercise, answer: object) -> str:
    """Return the line that `check` prints."""
    import numpy as np

    name = f"Exercise {exercise.id}"
    if answer is Ellipsis:
        return f"{name}: not attempted yet"
    try:
        exercise.verify(answer, np.random.default_rng(0))
    except Misconception as error:
        problem = _one_line(error)
    except Exception as error:  # whatever a learner's function raises is told, not thrown
        problem = f"your answer raised {type(error).__name__}: {_one_line(error)}"
    else:
        return f"{name} passed: {exercise.title}"
    return f"{name}: not attempted yet" if has_placeholder(answer) else f"{name}: not yet. {problem}"


def has_placeholder(answer: object) -> bool:
    """Return whether the answer is a function in whose source the line to be replaced still stands."""
    try:
        return bool(_PLACEHOLDER_LINE.search(inspect.getsource(answer)))  # type: ignore[arg-type]
    except (TypeError, OSError):
        return False


def expect_equal(found: object, expected: object, what: str, misconception: str = "", tolerance: float = 1e-5) -> None:
    """Raise a `Misconception` that shows found beside expected (shape first, then type, then values) if they differ.

    Args:
        found: the learner's value: a number, text, sequence, array or tensor.
        expected: the reference's value.
        what: what it is, e.g. "the loss of a batch of 4".
        misconception: the named reason, told where the shapes agree and the values don't.
        tolerance: absolute and relative tolerance of numbers.
    """
    import numpy as np

    if found is None or found is Ellipsis:
        raise Misconception(f"{what}: your function returned nothing; end it with return")
    wanted, got = np.asarray(_plain(expected)), np.asarray(_plain(found))
    reason = f" {misconception}" if misconception else ""
    if got.shape != wanted.shape:
        raise Misconception(f"{what}: expected shape {wanted.shape}, found {got.shape}.{reason}")
    numbers = np.issubdtype(wanted.dtype, np.number) or wanted.dtype == bool
    if numbers and not (np.issubdtype(got.dtype, np.number) or got.dtype == bool):
        raise Misconception(f"{what}: expected numbers, found {type(found).__name__}.{reason}")
    if numbers:
        same = np.allclose(got, wanted, rtol=tolerance, atol=tolerance, equal_nan=True)
    else:
        same = bool(np.all(got == wanted))
    if not same:
        shown = f": expected {_shown(wanted)}, found {_shown(got)}" if wanted.size == 1 else ": the values differ"
        raise Misconception(f"{what}{shown}.{reason}")


def _plain(value: Any) -> Any:
    """A torch tensor as a numpy array; everything else as it is. Torch isn't imported for it."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return value.float().numpy() if value.is_floating_point() else value.numpy()
    return value


def _shown(array: Any) -> str:
    value = array.reshape(-1)[0].item()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if len(text) <= 300 else text[:297] + "..."
