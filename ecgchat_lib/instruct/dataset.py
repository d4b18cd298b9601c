"""Build an instruction data set: plan it, let a teacher word it, check every answer, write files, hashes and a card.

A build that was killed goes on with `resume`: the plan is made again (it is the same), and what a teacher answered is
read from the journal. Finished files appear in one step each, `manifest.json` last. Taught in: 10 §6 and §7.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgchat_lib.datasets.manifest import SPLITS
from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.instruct import prompts
from ecgchat_lib.instruct.build import ECG_MARK, Conversation, split_conversations, validate_conversations
from ecgchat_lib.instruct.card import card_text, count_words
from ecgchat_lib.instruct.drafts import BuildConfig, Draft, make_drafts
from ecgchat_lib.instruct.facts import find_losses
from ecgchat_lib.instruct.journal import Journal
from ecgchat_lib.instruct.words import unknown_words

if TYPE_CHECKING:
    from ecgchat_lib.datasets.manifest import Manifest
    from ecgchat_lib.ecg.measure import Measurements
    from ecgchat_lib.instruct.teachers import ConversationTeacher, Reply

FORMAT = "ecg-instruct 1"
STARTED, FINISHED, CARD, JOURNAL = "build.json", "manifest.json", "README.md", "replies.jsonl"
LONGEST = 2000  # characters of an answer


def build_dataset(
    manifest: Manifest,
    measurements: Mapping[str, Measurements] | None,
    config: BuildConfig,
    teacher: ConversationTeacher,
    out: Path,
    *,
    dataset: str = "",
    unreadable: int = 0,
    resume: bool = False,
    progress: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """Build a data set into a folder and return what `manifest.json` says of it.

    Args:
        manifest: a checked manifest.
        measurements: record name → what was measured; None: nothing about numbers is asked.
        config: how many conversations, of what length, and the seed.
        teacher: who words the answers.
        out: the folder; made if missing.
        dataset: the recordings' data set, for provenance.
        unreadable: recordings that were left out, for the card.
        resume: go on with the build in `out`, if there is one.
        progress: called with 1 after each conversation.

    Raises:
        ParameterError: the folder holds a build that isn't to be resumed, or one with other settings.
        EcgChatError: a template is wrong (a bug), the teacher fails, or a file can't be written.
    """
    drafts = make_drafts(manifest, measurements, config)
    plan = hashlib.sha256("".join(draft.digest for draft in drafts).encode()).hexdigest()
    settings = {"format": FORMAT, "plan": plan, "teacher": teacher.about, "config": _plain(config), "dataset": dataset}
    _start(out, settings, resume)
    made: list[Conversation] = []
    checks: Counter[str] = Counter()
    for draft, reply in zip(drafts, _replies(drafts, teacher, out), strict=True):
        made.append(_finish(draft, reply, teacher.about, config.seed, dataset, checks))
        progress(1)
    parts = split_conversations(validate_conversations(made), manifest)
    files = {f"{split}.jsonl": write_conversations(out / f"{split}.jsonl", parts[split]) for split in SPLITS}
    facts = settings | {
        "files": files,
        "unreadable": unreadable,
        "measured": bool(measurements),
        "checks": {
            "answers": checks["answers"],
            "reworded": checks["reworded"],
            "replaced": sum(count for name, count in checks.items() if name.startswith("because: ")),
            "reasons": {k.removeprefix("because: "): n for k, n in sorted(checks.items()) if k.startswith("because: ")},
        },
        "statistics": count_words(parts),
    }
    _write(out / CARD, [card_text(facts)])
    _write(out / FINISHED, [json.dumps(facts, ensure_ascii=False, indent=1) + "\n"])
    return facts


def _plain(config: BuildConfig) -> dict[str, Any]:
    return asdict(config) | {"rounds": list(config.rounds)}


def _line(item: Conversation) -> str:
    return json.dumps(item, ensure_ascii=False) + "\n"


def refuse_other_build(out: Path, resume: bool) -> None:
    """Raise before anything is written into a folder that holds a build, unless it is to be resumed.

    Raises:
        ParameterError: it does.
    """
    if (out / STARTED).is_file() and not resume:
        raise ParameterError(f"{out}: holds a build already. Add --resume to go on with it, or name another folder")


def _start(out: Path, settings: Mapping[str, Any], resume: bool) -> None:
    """Note what is built in a folder; refuse a folder with another build in it."""
    refuse_other_build(out, resume)
    path = out / STARTED
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            differ = [name for name in settings if before[name] != settings[name]]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise EcgChatError(f"{path}: can't be read as the start of a build. Name another folder") from None
        if differ:
            raise ParameterError(f"{out}: was built with another {', '.join(differ)}. Use the same, or another folder")
        return
    others = [name for name in (CARD, FINISHED, *(f"{split}.jsonl" for split in SPLITS)) if (out / name).exists()]
    if others:
        raise ParameterError(f"{out}: holds {others[0]}, which isn't of a build. Name another folder")
    _write(path, [json.dumps(settings, ensure_ascii=False, indent=1) + "\n"])


def _replies(drafts: Sequence[Draft], teacher: ConversationTeacher, out: Path) -> Iterator[Reply]:
    """Yield the teacher's reply to each draft, in order; kept replies aren't asked for again."""
    if not teacher.keeps:
        yield from map(teacher.answer, drafts)
        return
    words = json.dumps([teacher.about, prompts.DIAGNOSIS_PROMPT, prompts.DIALOGUE_PROMPT, prompts.REWRITE_PROMPT])
    with Journal(out / JOURNAL) as journal:
        teacher.resume(journal.tokens)

        def ask(draft: Draft) -> Reply:
            key = hashlib.sha256(f"{words} {draft.digest}".encode()).hexdigest()[:32]
            kept = journal.get(key)
            if kept is None:
                kept = teacher.answer(draft)
                journal.add(key, kept)
            return kept

        if teacher.jobs == 1:
            yield from map(ask, drafts)
            return
        executor = ThreadPoolExecutor(teacher.jobs)
        try:
            yield from executor.map(ask, drafts)
        finally:
            executor.shutdown(cancel_futures=True)  # after an error, nothing more is asked (and paid)


def _finish(
    draft: Draft, reply: Reply, about: Mapping[str, Any], seed: int, dataset: str, checks: Counter[str]
) -> Conversation:
    """Turn a draft and a teacher's reply into a conversation; each answer that isn't proved right is the draft's."""
    turns: list[dict[str, str]] = []
    rounds = []
    for number, one in enumerate(draft.rounds):
        text = reply.answers[number].strip() if number < len(reply.answers) else ""
        reason = _refusal(draft, number, text, reply)
        answer = one.turn.answer if reason else text
        turns.append({"from": "human", "value": one.opening + one.turn.question})
        turns.append({"from": "gpt", "value": answer})
        checks["answers"] += 1
        checks["reworded"] += answer != one.turn.answer
        if reason:
            checks[f"because: {reason}"] += 1
        row: dict[str, Any] = {"wording": one.turn.wording, "reworded": answer != one.turn.answer, "check": "passed"}
        rounds.append(row | ({"replaced": reason} if reason else {}))
    paths = list(draft.paths)
    made = {
        "teacher": dict(about),
        "seed": seed,
        "kind": draft.kind,
        "dataset": dataset,
        "records": list(draft.records),
    }
    return {
        "id": draft.name,
        "ecg": paths[0] if len(paths) == 1 else paths,
        "conversations": turns,
        "provenance": made | {"rounds": rounds},
    }


def _refusal(draft: Draft, number: int, text: str, reply: Reply) -> str:
    """Return why a teacher's answer isn't taken, in a word or two; "" if it is."""
    turn = draft.rounds[number].turn
    if text == turn.answer:
        return ""
    if not text:
        return "unusable reply" if reply.problem else "empty"
    if len(text) > LONGEST or ECG_MARK in text:
        return "too long" if len(text) > LONGEST else "holds a mark"
    if draft.errors(number, text):
        return "says what isn't known"
    if find_losses(turn.answer, text):
        return "leaves something out"
    if unknown_words(text, turn.question, turn.answer):
        return "words that can't be checked"
    return ""


def write_conversations(path: Path, conversations: Iterable[Conversation]) -> dict[str, Any]:
    """Write conversations, one per line, in one step; return the file's sha256, bytes and lines.

    Raises:
        EcgChatError: the file can't be written.
    """
    return _write(path, map(_line, conversations))


def _write(path: Path, lines: Iterable[str]) -> dict[str, Any]:
    """Write a file in one step; return its sha256, bytes and lines."""
    digest, size, count = hashlib.sha256(), 0, 0
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            for line in lines:
                content = line.encode("utf-8")
                file.write(content)
                digest.update(content)
                size, count = size + len(content), count + content.count(b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise EcgChatError(f"{path}: can't be written ({error.strerror}). Choose another place with --out") from None
    finally:
        partial.unlink(missing_ok=True)
    return {"sha256": digest.hexdigest(), "bytes": size, "lines": count}
