"""How good are a chat model's answers? Yes/no questions by the first word, rhythm and rate by what is generated.

Each figure comes with its number of answers, and the recipe runs everything twice: with each recording's own ECG
tokens and with another's, so that what the words and measured values alone achieve can be seen. Taught in: 12 §6.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.template import encode, pack
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
    """

    turn: Turn
    said: bool | str | float | None


def evaluate_answers(
    chat: EcgChat, asked: Sequence[Sequence[Turn]], lines: Sequence[str], ecg: torch.Tensor, *, generated: int
) -> list[Outcome]:
    """Ask a chat model questions with known answers.

    Args:
        chat: the model.
        asked: the questions about each of n recordings.
        lines: their measured values as text, n.
        ecg: (n, ecg tokens, width).
        generated: recordings whose rhythm and rate answers are generated, the first ones.
    """
    outcomes = []
    for turns, line, tokens in zip(asked, lines, ecg, strict=True):
        yes_no = [turn for turn in turns if turn.kind == "presence"]
        if yes_no:
            said = first_words(chat, yes_no, line, tokens)
            outcomes += [Outcome(turn, word) for turn, word in zip(yes_no, said, strict=True)]
    open_ones = [
        (turn, lines[k], ecg[k])
        for k, turns in enumerate(asked[:generated])
        for turn in turns
        if turn.kind in ("rhythm", "rate")
    ]
    for start in range(0, len(open_ones), GENERATION_BATCH):
        part = open_ones[start : start + GENERATION_BATCH]
        prompts = [
            encode([(f"<ecg>\n{line}\n{turn.question}", None)], chat.tokenizer, chat.template) for turn, line, _ in part
        ]
        texts = chat.generate(prompts, torch.stack([tokens for *_, tokens in part]), max_new_tokens=24)
        outcomes += [Outcome(turn, reduce_answer(turn, text)) for (turn, *_), text in zip(part, texts, strict=True)]
    return outcomes


@torch.no_grad()
def first_words(chat: EcgChat, turns: Sequence[Turn], line: str, tokens: torch.Tensor) -> list[bool | None]:
    """Return whether the greedy answer to each question starts with Yes (True), No (False) or neither (None).

    One forward pass for all questions about a recording, packed as a tree.
    """
    items = [
        encode([(f"<ecg>\n{line}\n{turn.question}", turn.answer)], chat.tokenizer, chat.template) for turn in turns
    ]
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
        "presence": balanced accuracy over all yes/no answers with a bootstrap interval, per finding and their mean;
        "rhythm": accuracy over sinus, afib, other, what always saying the commonest one would give, and the mean of
        the classes' recalls; "rate": share within 5/min of the measured rate.
    """
    out: dict[str, Any] = {}
    yes_no = [(o.turn.about, bool(o.turn.truth), o.said) for o in outcomes if o.turn.kind == "presence"]
    if yes_no:
        truth = np.array([t for _, t, _ in yes_no])
        right = np.array([said is t for _, t, said in yes_no])
        by_name: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
        for (name, t, _), ok in zip(yes_no, right, strict=True):
            by_name[name].append((t, bool(ok)))
        per = {name: _finding_figure(pairs) for name, pairs in sorted(by_name.items())}
        enough = [f["balanced_accuracy"] for f in per.values() if min(f["present"], f["absent"]) >= 5]
        out["presence"] = {
            "n": len(yes_no),
            "balanced_accuracy": _balanced(truth, right),
            "interval_95": _bootstrap(truth, right, seed),
            "neither_yes_nor_no": sum(said is None for *_, said in yes_no),
            "findings_with_5_or_more_of_each": len(enough),
            "mean_over_these_findings": round(float(np.mean(enough)), 4) if enough else None,
            "findings": per,
        }
    rhythm = [(rhythm_class(str(o.turn.about)), o.said) for o in outcomes if o.turn.kind == "rhythm"]
    if rhythm:
        counts = Counter(str(t) for t, _ in rhythm)
        hits = Counter(str(t) for t, said in rhythm if t == said)
        out["rhythm"] = {
            "n": len(rhythm),
            "accuracy": _share(t == said for t, said in rhythm),
            "always_the_commonest": round(max(counts.values()) / len(rhythm), 4),
            "mean_recall": round(float(np.mean([hits[name] / counts[name] for name in counts])), 4),
            **{f"recall_{name}": [hits[name], counts[name]] for name in sorted(counts)},
        }
    rates = [(o.turn.truth, o.said) for o in outcomes if o.turn.kind == "rate" and o.turn.truth is not None]
    if rates:
        close = [s is not None and abs(float(s) - float(t)) <= RATE_TOLERANCE for t, s in rates]
        out["rate"] = {"n": len(rates), "within_5_per_minute": _share(close), "exact": _share(t == s for t, s in rates)}
    return out


def _finding_figure(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any]:
    truth, right = np.array([t for t, _ in pairs]), np.array([ok for _, ok in pairs])
    return {
        "present": int(truth.sum()),
        "absent": int((~truth).sum()),
        "balanced_accuracy": _balanced(truth, right),
    }


def _balanced(truth: np.ndarray, right: np.ndarray) -> float:
    """Return the mean of the shares right among the present and among the absent (of one, if the other is empty)."""
    shares = [right[truth == side].mean() for side in (True, False) if (truth == side).any()]
    return round(float(np.mean(shares)), 4)


def _bootstrap(truth: np.ndarray, right: np.ndarray, seed: int, times: int = 1000) -> list[float]:
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(truth), size=len(truth)) for _ in range(times))
    values = [_balanced(truth[k], right[k]) for k in draws]
    return [round(float(q), 4) for q in np.quantile(values, [0.025, 0.975])]


def _share(flags: Any) -> float:
    values = list(flags)
    return round(sum(map(bool, values)) / len(values), 4)
