"""How good are a chat model's answers? Yes/no questions by the first word, rhythm and rate by what is generated.

Each figure comes with its number of answers and an interval from resampling patients, since the answers about one
recording hang together. Taught in: 12 §6.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.template import encode, opening, pack
from ecgchat_lib.errors import ParameterError
from ecgchat_lib.instruct.build import Turn
from ecgchat_lib.instruct.facts import claims, numbers
from ecgchat_lib.instruct.findings import rhythm_class

GENERATION_BATCH = 12
RATE_TOLERANCE = 5  # beats per minute


@dataclass(frozen=True)
class Outcome:
    """One answered question.

    Attributes:
        turn: the question with its right answer.
        said: what the model said, reduced to what counts: True or False for presence (None: neither), the coarse
            rhythm class, or the number.
        patient: whose recording it is about; answers without one count as a patient each.
    """

    turn: Turn
    said: bool | str | float | None
    patient: str = ""


@dataclass(frozen=True)
class Asked:
    """What a chat model is asked about one recording.

    Attributes:
        turns: the questions with their right answers.
        lines: what the prompt says about the recording in words.
        tokens: (ecg tokens, width) from the encoder.
        patient: whose it is.
    """

    turns: Sequence[Turn]
    lines: Sequence[str]
    tokens: torch.Tensor
    patient: str


def evaluate_answers(chat: EcgChat, asked: Sequence[Asked], *, generate: bool = True) -> list[Outcome]:
    """Ask a chat model questions with known answers.

    Args:
        chat: the model.
        asked: the questions about each recording.
        generate: whether the questions for rhythm and rate are asked too, whose answers have to be generated.

    Returns:
        The outcomes of all yes/no questions, then of those for rhythm and rate, in the order in which they were asked.
    """
    outcomes = []
    for item in asked:
        yes_no = [turn for turn in item.turns if turn.kind == "presence"]
        if yes_no:
            said = first_words(chat, yes_no, item.lines, item.tokens)
            outcomes += [Outcome(turn, word, item.patient) for turn, word in zip(yes_no, said, strict=True)]
    open_ones = [(turn, item) for item in asked for turn in item.turns if turn.kind in ("rhythm", "rate")]
    for start in range(0, len(open_ones) if generate else 0, GENERATION_BATCH):
        part = open_ones[start : start + GENERATION_BATCH]
        prompts = [
            encode([(opening(item.lines) + turn.question, None)], chat.tokenizer, chat.template) for turn, item in part
        ]
        texts = chat.generate(prompts, torch.stack([item.tokens for _, item in part]), max_new_tokens=24)
        outcomes += [
            Outcome(turn, reduce_answer(turn, text), item.patient)
            for (turn, item), text in zip(part, texts, strict=True)
        ]
    return outcomes


@torch.no_grad()
def first_words(chat: EcgChat, turns: Sequence[Turn], lines: Sequence[str], tokens: torch.Tensor) -> list[bool | None]:
    """Return whether the greedy answer to each question starts with Yes (True), No (False) or neither (None).

    One forward pass for all questions about a recording, packed as a tree.
    """
    items = [encode([(opening(lines) + turn.question, turn.answer)], chat.tokenizer, chat.template) for turn in turns]
    tree = pack(items) if len(items) > 1 else items[0]
    logits, _ = chat.answer_logits(chat.prepare([tree], tokens[None]))
    lengths = [sum(label >= 0 for label in item.labels) for item in items]
    starts = np.cumsum([0, *lengths[:-1]])
    words = [chat.tokenizer.decode([int(logits[int(place)].argmax())]).strip() for place in starts]
    return [{"Yes": True, "No": False}.get(word) for word in words]


def reduce_answer(turn: Turn, text: str) -> str | float | None:
    """Reduce a generated answer to the rhythm class or the number that it names; None if it names none."""
    if turn.kind == "rate":
        found = numbers(text)
        return found[0][1] if found else None
    named = [finding.name for finding, affirmed in claims(text) if affirmed and finding.rhythm]
    return rhythm_class(named[0]) if named else None


def summarize(outcomes: Sequence[Outcome], *, seed: int = 0) -> dict[str, Any]:
    """Turn outcomes into figures with their numbers of answers.

    Args:
        outcomes: from `evaluate_answers`.
        seed: of the bootstrap.

    Returns:
        "presence": balanced accuracy over all yes/no answers, per finding and their mean; "rhythm": accuracy over
        sinus, afib, other, what always saying the commonest one would give, and the mean of the classes' recalls;
        "rate": share within 5/min of the measured rate. "interval_95" is from resampled patients.
    """
    out: dict[str, Any] = {}
    yes_no = [o for o in outcomes if o.turn.kind == "presence"]
    if yes_no:
        by_name: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in yes_no:
            by_name[outcome.turn.about].append(outcome)
        per = {name: _finding_figure(found) for name, found in sorted(by_name.items())}
        enough = [f["balanced_accuracy"] for f in per.values() if min(f["present"], f["absent"]) >= 5]
        truth, right = _sides(yes_no)
        out["presence"] = {
            "n": len(yes_no),
            "balanced_accuracy": _mean_share(truth, right),
            "interval_95": _interval(yes_no, truth, [right], seed),
            "neither_yes_nor_no": sum(o.said is None for o in yes_no),
            "findings_with_5_or_more_of_each": len(enough),
            "mean_over_these_findings": round(float(np.mean(enough)), 4) if enough else None,
            "findings": per,
        }
    rhythm = [o for o in outcomes if o.turn.kind == "rhythm"]
    if rhythm:
        truth = np.array([str(rhythm_class(str(o.turn.about))) for o in rhythm])
        right = truth == np.array([str(o.said) for o in rhythm])
        names, counts = np.unique(truth, return_counts=True)
        out["rhythm"] = {
            "n": len(rhythm),
            "accuracy": round(float(right.mean()), 4),
            "always_the_commonest": round(float(counts.max()) / len(rhythm), 4),
            "mean_recall": _mean_share(truth, right),
            "interval_95": _interval(rhythm, truth, [right], seed),
            **{f"recall_{name}": [int(right[truth == name].sum()), int((truth == name).sum())] for name in names},
        }
    rates = [o for o in outcomes if o.turn.kind == "rate" and o.turn.truth is not None]
    if rates:
        wrong = [math.inf if o.said is None else abs(float(o.said) - float(str(o.turn.truth))) for o in rates]
        close = np.array(wrong) <= RATE_TOLERANCE
        out["rate"] = {
            "n": len(rates),
            "within_5_per_minute": round(float(close.mean()), 4),
            "interval_95": _interval(rates, np.zeros(len(rates)), [close], seed),
            "exact": round(float(np.mean(np.array(wrong) == 0)), 4),
        }
    return out


def compare(first: Sequence[Outcome], second: Sequence[Outcome], *, seed: int = 0) -> dict[str, Any]:
    """Return how much better the first model's yes/no answers are, with an interval from patients drawn for both.

    Args:
        first: outcomes of one model.
        second: those of another one, to the same questions in the same order.
        seed: of the bootstrap.

    Raises:
        ParameterError: the questions differ.
    """
    pairs = [[o for o in outcomes if o.turn.kind == "presence"] for outcomes in (first, second)]
    if [(o.turn, o.patient) for o in pairs[0]] != [(o.turn, o.patient) for o in pairs[1]]:
        raise ParameterError("compare: the two models were asked different questions, expected the same in one order")
    (truth, better), (_, worse) = map(_sides, pairs)
    return {
        "balanced_accuracy": round(_mean_share(truth, better) - _mean_share(truth, worse), 4),
        "interval_95": _interval(pairs[0], truth, [better, worse], seed),
    }


def _sides(outcomes: Sequence[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    """Return what is true of yes/no questions, and which answers are right."""
    truth = np.array([bool(o.turn.truth) for o in outcomes])
    return truth, np.array([o.said is bool(o.turn.truth) for o in outcomes])


def _finding_figure(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    truth, right = _sides(outcomes)
    return {
        "present": int(truth.sum()),
        "absent": int((~truth).sum()),
        "balanced_accuracy": _mean_share(truth, right),
    }


def _mean_share(truth: np.ndarray, right: np.ndarray) -> float:
    """Return the mean of the shares right, one for each value of `truth` that occurs."""
    return round(float(np.mean([right[truth == side].mean() for side in np.unique(truth)])), 4)


def _interval(
    outcomes: Sequence[Outcome], truth: np.ndarray, rights: Sequence[np.ndarray], seed: int, times: int = 2000
) -> list[float]:
    """Return the middle 95 % of `_mean_share`, or of the difference between two, over samples of patients.

    A sample in which a value of `truth` is missing has no such mean, and isn't counted.
    """
    patients = np.unique([o.patient or f"answer {k}" for k, o in enumerate(outcomes)], return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    count = int(patients.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=times)[:, patients]  # (times, answers)
    sides = [truth == side for side in np.unique(truth)]
    drawn = drawn[np.all([drawn[:, side].any(1) for side in sides], axis=0)]
    values = np.zeros(len(drawn))
    for sign, right in zip((1, -1), rights, strict=False):
        shares = [(drawn[:, side] * right[side]).sum(1) / drawn[:, side].sum(1) for side in sides]
        values += sign * np.mean(shares, axis=0)
    return [round(float(q), 4) for q in np.quantile(values, [0.025, 0.975])]
