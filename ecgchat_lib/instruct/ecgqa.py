"""ECG-QA's question and answer pairs as conversations in the same format: another source of instructions.

ECG-QA (Oh et al. 2023, arXiv 2306.15681, CC BY 4.0) has 70 templates of questions about PTB-XL's ECGs, with answers out
of 104 words; some compare two ECGs. Its answers rest on more than statements (noise, lead by lead), so this reader
checks their form and not their truth. Taught in: 10 §3.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ecgchat_lib.errors import EcgChatError, MissingPartError
from ecgchat_lib.instruct.build import ECG_MARK, Conversation, validate_conversations

MAX_BYTES = 500_000_000
MAX_TEXT = 2000  # characters of a question or an answer
MAX_ANSWERS = 30
TEMPLATES = 70  # in the whole set
KINDS = ("verify", "choose", "query")


def ptbxl_path(number: int) -> str:
    """Return where PTB-XL has a recording of 500 Hz, relative to its folder."""
    return f"records500/{number // 1000 * 1000:05d}/{number:05d}_hr"


def read_ecgqa(path: str | Path, path_of: Callable[[int], str] = ptbxl_path) -> list[Conversation]:
    """Read one of ECG-QA's json files as conversations of one round, one or two ECGs each.

    Args:
        path: such as `ecgqa/ptbxl/template/train/00000.json` of the published set.
        path_of: PTB-XL's number of an ECG → the path to write.

    Returns:
        Conversations in the original's format; their provenance names template, question and kinds.

    Raises:
        MissingPartError: there is no such file.
        EcgChatError: it isn't one of ECG-QA's, or an item is strange; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingPartError(str(path), "no such file", "Get it from https://github.com/Jwoo5/ecg-qa")
    if path.stat().st_size > MAX_BYTES:
        raise EcgChatError(f"{path}: {path.stat().st_size} bytes, expected {MAX_BYTES} at most. Split the file")
    try:
        items = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise EcgChatError(f"{path}: no JSON ({type(error).__name__}). Name one of ECG-QA's files") from None
    if not isinstance(items, list) or not items:
        raise EcgChatError(
            f"{path}: found {type(items).__name__}, expected a list of items. Name one of ECG-QA's files"
        )
    made = [_conversation(item, f"{path.name}, item {number}", path_of) for number, item in enumerate(items)]
    seen: dict[str, int] = {}
    for one in made:  # the same question may be asked of the same ECG in other words
        again = seen.get(one["id"], 0)
        seen[one["id"]] = again + 1
        one["id"] += f"-{again}" if again else ""
    return validate_conversations(made)


def _conversation(item: Any, where: str, path_of: Callable[[int], str]) -> Conversation:
    if not isinstance(item, dict):
        raise EcgChatError(f"{where}: found {item!r:.60}, expected an object. Name one of ECG-QA's files")
    template, sample = (_whole(item, name, where) for name in ("template_id", "sample_id"))
    if not 1 <= template <= TEMPLATES:
        raise EcgChatError(f"{where}: template_id {template}, expected 1 to {TEMPLATES}")
    kind = _text(item.get("question_type"), "question_type", where)
    if not kind.endswith(KINDS):
        raise EcgChatError(f"{where}: question_type {kind[:40]!r}, expected one that ends in {', '.join(KINDS)}")
    ecgs = item.get("ecg_id")
    if not isinstance(ecgs, list) or not 1 <= len(ecgs) <= 2:
        raise EcgChatError(f"{where}: ecg_id {ecgs!r:.60}, expected one or two numbers")
    numbers = [_number(one, "ecg_id", where) for one in ecgs]
    question = _text(item.get("question"), "question", where)
    answer = answer_text(_answers(item.get("answer"), where), kind)
    paths = [path_of(number) for number in numbers]
    made = {
        "teacher": {"name": "ECG-QA"},
        "kind": "ecgqa",
        "dataset": "ptbxl",
        "records": [f"{number:05d}" for number in numbers],
        "rounds": [{"wording": f"template {template}", "reworded": False, "check": "not made"}],
        "question_type": kind,
        "attribute_type": _text(item.get("attribute_type"), "attribute_type", where),
    }
    return {
        "id": f"ecgqa-{template}-{sample}",
        "ecg": paths[0] if len(paths) == 1 else paths,
        "conversations": [
            {"from": "human", "value": f"{ECG_MARK}\n" * len(paths) + question},
            {"from": "gpt", "value": answer},
        ],
        "provenance": made,
    }


def answer_text(answers: list[str], kind: str) -> str:
    """Write ECG-QA's answers, such as ["yes"] or ["rr interval", "qt interval"], as a sentence.

    They are sorted, since the set gives them in no order; "none" stands alone.
    """
    names = sorted(dict.fromkeys(answers))
    text = "None of them" if names == ["none"] else "; ".join(names)
    text = text if kind.endswith("verify") else text.replace("; ", ", ")
    return f"{text[0].upper()}{text[1:]}."


def _answers(found: Any, where: str) -> list[str]:
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_ANSWERS:
        raise EcgChatError(f"{where}: answer {found!r:.60}, expected a list of 1 to {MAX_ANSWERS} texts")
    return [_text(one, "answer", where) for one in found]


def _text(found: Any, name: str, where: str) -> str:
    if not isinstance(found, str) or not found.strip() or len(found) > MAX_TEXT or ECG_MARK in found:
        raise EcgChatError(
            f"{where}: {name} {found!r:.60}, expected a text of 1 to {MAX_TEXT} characters without marks"
        )
    return found.strip()


def _whole(item: dict[str, Any], name: str, where: str) -> int:
    return _number(item.get(name), name, where)


def _number(found: Any, name: str, where: str) -> int:
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < 10**9:
        raise EcgChatError(f"{where}: {name} {found!r:.40}, expected a whole number ≥ 0")
    return found
