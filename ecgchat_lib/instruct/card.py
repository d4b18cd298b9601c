"""The card of an instruction data set: counts and word statistics, beside those that the paper reports.

Taught in: 10 §7.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ecgchat_lib.instruct.build import Conversation, ecgs_of
from ecgchat_lib.instruct.facts import claims
from ecgchat_lib.instruct.findings import BY_NAME

REPORTED = {"diagnoses": 20_258, "dialogues": 24_786, "least_rounds": 4, "most_rounds": 30}
"""As reported in the paper (arXiv 2408.08849); its abstract rounds to 19 K and 25 K."""

_WORD = re.compile(r"[\w'’-]+")
_ASKS = ("presence", "checked diagnosis", "either", "which")  # kinds of question that affirm or deny findings


def count_words(splits: Mapping[str, Sequence[Conversation]]) -> dict[str, Any]:
    """Return a data set's statistics, ready for JSON.

    Args:
        splits: split → conversations in the original's format; kinds are taken from their provenance.

    Returns:
        "items" (per split and kind), "rounds", "words" (per question and answer), "vocabulary", "distinct_n" (share of
        different 1-, 2- and 3-grams among the answers' n-grams), "negatives" and "findings".
    """
    every = [item for items in splits.values() for item in items]
    questions = [_bare(turn["value"]) for item in every for turn in item["conversations"][0::2]]
    answers = [turn["value"] for item in every for turn in item["conversations"][1::2]]
    rounds = [len(item["conversations"]) // 2 for item in every if _kind(item) != "diagnosis"]
    findings = _findings(every)
    denied = sum(counts[1] for counts in findings.values())
    total = sum(map(sum, findings.values()))
    return {
        "items": {split: dict(sorted(Counter(map(_kind, items)).items())) for split, items in splits.items()},
        "records": {split: len({path for item in items for path in ecgs_of(item)}) for split, items in splits.items()},
        "rounds": _spread(rounds) | {"how_many": {str(k): n for k, n in sorted(Counter(rounds).items())}},
        "words": {
            "question": _spread([_length(q) for q in questions]),
            "answer": _spread([_length(a) for a in answers]),
        },
        "vocabulary": {"questions": len(_vocabulary(questions)), "answers": len(_vocabulary(answers))},
        "distinct_n": {str(n): _distinct(answers, n) for n in (1, 2, 3)},
        "different_answers": len(set(answers)),
        "negatives": {
            "denied": denied,
            "affirmed": total - denied,
            "share": round(denied / total, 4) if total else None,
        },
        "findings": {name: list(counts) for name, counts in sorted(findings.items())},
        "kinds": dict(Counter(name for item in every for name in _round_kinds(item)).most_common()),
    }


def _bare(question: str) -> str:
    """Return a question without marks and measured values."""
    lines = [line for line in question.split("\n") if line != "<ecg>" and not line.startswith("Measured: ")]
    return "\n".join(lines).replace("<ecg>", "")


def _kind(item: Conversation) -> str:
    made = item.get("provenance")
    if isinstance(made, dict) and isinstance(made.get("kind"), str):
        return str(made["kind"])
    return "diagnosis" if len(item["conversations"]) == 2 else "dialogue"


def _round_kinds(item: Conversation) -> list[str]:
    made = item.get("provenance")
    rounds = made.get("rounds") if isinstance(made, dict) else None
    if not isinstance(rounds, list):
        return []
    return [str(one.get("wording", "")).partition(":")[0] for one in rounds if isinstance(one, dict)]


def _findings(items: Iterable[Conversation]) -> dict[str, tuple[int, int]]:
    """Return how often each finding is affirmed and denied in answers to questions about findings."""
    counts: Counter[tuple[str, bool]] = Counter()
    for item in items:
        kinds = _round_kinds(item)
        for number, turn in enumerate(item["conversations"][1::2]):
            kind = kinds[number] if number < len(kinds) else "presence"
            if not kind.startswith(_ASKS):
                continue
            said = turn["value"].split(". ")[0] if kind == "checked diagnosis" else turn["value"]
            twice = 2 if re.match(r"(?:both|neither)\b", said, re.IGNORECASE) else 1
            for finding, affirmed in claims(said):
                counts[finding.name, affirmed] += twice if finding.name in BY_NAME else 0
    names = {name for (name, _), count in counts.items() if count}
    return {name: (counts[name, True], counts[name, False]) for name in names}


def _length(text: str) -> int:
    return len(_WORD.findall(text))


def _vocabulary(texts: Iterable[str]) -> set[str]:
    return {word for text in set(texts) for word in _WORD.findall(text.lower())}


def _distinct(texts: Sequence[str], n: int) -> float | None:
    grams: set[tuple[str, ...]] = set()
    total = 0
    for text, times in Counter(texts).items():
        words = _WORD.findall(text.lower())
        here = list(zip(*(words[k:] for k in range(n)), strict=False))
        grams.update(here)
        total += times * len(here)
    return round(len(grams) / total, 4) if total else None


def _spread(numbers: Sequence[int]) -> dict[str, float | int | None]:
    if not numbers:
        return {"least": None, "median": None, "mean": None, "most": None}
    mean = round(statistics.fmean(numbers), 2)
    return {"least": min(numbers), "median": statistics.median(numbers), "mean": mean, "most": max(numbers)}


def card_text(facts: Mapping[str, Any]) -> str:
    """Return the card of a data set as Markdown.

    Args:
        facts: what `dataset.build_dataset` writes into `manifest.json`.
    """
    made, told = facts["statistics"], facts["teacher"]
    kinds = Counter[str]()
    for items in made["items"].values():
        kinds.update(items)
    dialogues = kinds["dialogue"] + kinds["comparison"]
    rows = [
        ("single-turn diagnoses", kinds["diagnosis"], f"{REPORTED['diagnoses']:,}"),
        ("dialogues", dialogues, f"{REPORTED['dialogues']:,}"),
        ("of them about two ECGs", kinds["comparison"], "not reported"),
        (
            "rounds of a dialogue",
            f"{made['rounds']['least']} to {made['rounds']['most']}, mean {made['rounds']['mean']}",
            f"{REPORTED['least_rounds']} to {REPORTED['most_rounds']}",
        ),
        ("words per question, mean", made["words"]["question"]["mean"], "not reported"),
        ("words per answer, mean", made["words"]["answer"]["mean"], "not reported"),
        ("different words in answers", made["vocabulary"]["answers"], "not reported"),
        ("distinct 1-, 2-, 3-grams", ", ".join(str(v) for v in made["distinct_n"].values()), "not reported"),
        ("denied, of yes/no answers", made["negatives"]["share"], "not reported"),
        ("writer", told["name"] + (f" ({told['model']})" if "model" in told else ""), "GPT-4o"),
    ]
    table = "\n".join(f"| {name} | {ours} | {theirs} |" for name, ours, theirs in rows)
    splits = "\n".join(
        f"| {split} | {made['records'][split]} | {sum(items.values())} | {_digest(facts, split)} |"
        for split, items in made["items"].items()
    )
    found = "\n".join(f"| {BY_NAME[name].phrase} | {yes} | {no} |" for name, (yes, no) in made["findings"].items())
    checks = facts["checks"]
    return f"""# ECG-Instruct, built from {facts["dataset"] or "a manifest"}

Conversations about ECGs in ECG-Chat's format, one JSON object per line: `id`, `ecg` (a path, or several in the order
of the marks `<ecg>`), `conversations` (`from`, `value`), and `provenance` (teacher, seed, wording and fact check of
each round). Made by `ecgchat instruct build`; the same recordings and settings give the same files.

| | here | as reported in the paper |
| --- | --- | --- |
{table}

The paper's figures are from arXiv 2408.08849; its abstract says 19 K and 25 K. Word statistics leave out marks and
measured values.

| split | ECGs | conversations | sha256 |
| --- | --- | --- | --- |
{splits}

No patient is in two splits. {facts["unreadable"]} recordings couldn't be read and are left out;
{"values were measured" if facts["measured"] else "nothing was measured, so no number is asked for or said"}.

## Fact check

Of {checks["answers"]} answers, {checks["reworded"]} are in the teacher's own words; {checks["replaced"]} rewordings
were turned down, and the template's text stands instead ({_reasons(checks["reasons"])}). Every answer in the files
passes: no finding that the statements deny or leave open, no number that wasn't measured. The check reads words, it
doesn't understand; `tests/test_instruct_facts.py` has its precision and recall.

## How often each finding is affirmed and denied

| finding | affirmed | denied |
| --- | --- | --- |
{found}

## Limits

- Answers repeat the statements, with their errors; for PTB-XL these are partly unvalidated machine reports.
- Whatever the statements leave open isn't asked, or is answered with "I can't say".
- For training and study. It is no medical advice, and neither is what a model says that learned from it.
- License: that of the recordings' data set.
"""


def _digest(facts: Mapping[str, Any], split: str) -> str:
    return f"{facts['files'][f'{split}.jsonl']['sha256'][:16]}…"


def _reasons(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in reasons.items()) or "none"
