"""Check a file of conversations, whoever made it: its format, and its facts where statements are known.

Taught in: 10 §7.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgchat_lib.errors import EcgChatError, MissingPartError
from ecgchat_lib.instruct.build import ECG_MARK, Conversation, ecgs_of, validate_conversations
from ecgchat_lib.instruct.compare import Facts, find_pair_errors
from ecgchat_lib.instruct.facts import find_errors

if TYPE_CHECKING:
    from ecgchat_lib.datasets.manifest import Manifest
    from ecgchat_lib.ecg.measure import Measurements

MAX_BYTES = 4_000_000_000


def read_conversations(path: str | Path) -> list[Conversation]:
    """Read and check a file of conversations: one JSON list (the original's), or one conversation per line.

    Raises:
        MissingPartError: there is no such file.
        EcgChatError: it holds something else; the message names the line or the conversation and turn.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingPartError(str(path), "no such file", "Make one with 'ecgchat instruct build'")
    if path.stat().st_size > MAX_BYTES:
        raise EcgChatError(f"{path}: {path.stat().st_size} bytes, expected {MAX_BYTES} at most. Split the file")
    content = path.read_bytes()
    if content.lstrip()[:1] == b"[":
        found = _parse(content, str(path))
    else:
        lines = [line for line in content.split(b"\n") if line.strip()]
        found = [_parse(line, f"{path}, line {number + 1}") for number, line in enumerate(lines)]
    if not found:
        raise EcgChatError(f"{path}: no conversation in it. Name another file")
    try:
        return validate_conversations(found)
    except EcgChatError as error:
        raise EcgChatError(f"{path}: {error}") from None


def _parse(content: bytes, where: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EcgChatError(
            f"{where}: no JSON ({type(error).__name__}). Expected one object per line, or a list"
        ) from None


def find_false(
    conversations: list[Conversation], manifest: Manifest, measurements: Mapping[str, Measurements] | None = None
) -> tuple[list[str], int]:
    """Return what is wrong with the answers, each with its place, and how many answers were checked.

    An answer after one mark is compared with that recording; after two, with the one that it names.

    Args:
        conversations: checked ones.
        manifest: its recordings, found by the paths or else by the provenance's record names.
        measurements: record name → what was measured; a recording without: every number about it is wrong.

    Raises:
        EcgChatError: a conversation is about a recording that the manifest doesn't hold.
    """
    by_path: dict[str, Facts] = {}
    for record, path, statements in zip(manifest["record"], manifest["path"], manifest["statements"], strict=True):
        by_path[path] = by_path[record] = (statements, (measurements or {}).get(record))
    wrong, count = [], 0
    for item in conversations:
        made = item.get("provenance")
        records = made.get("records", []) if isinstance(made, dict) else []
        facts = [_facts(item, k, records, by_path) for k in range(len(ecgs_of(item)))]
        seen = 0
        for number, turn in enumerate(item["conversations"]):
            if turn["from"] == "human":
                seen += turn["value"].count(ECG_MARK)
                continue
            count += 1
            text = turn["value"]
            errors = find_errors(text, *facts[0]) if seen == 1 else find_pair_errors(text, facts)
            if errors:
                wrong.append(f"{item['id']}, turn {number}: {text!r:.200} {'; it '.join(errors)}")
    return wrong, count


def _facts(item: Conversation, number: int, records: Any, known: Mapping[str, Facts]) -> Facts:
    names = [ecgs_of(item)[number]]
    if isinstance(records, list) and number < len(records):
        names.append(str(records[number]))
    for name in names:
        if name in known:
            return known[name]
    raise EcgChatError(
        f"conversation {item['id']}: its ECG {names[0]} is not in the manifest. Name the one it was built from"
    )


def read_card(folder: Path) -> str:
    """Return the card of a finished build, after checking its files against the hashes in `manifest.json`.

    Raises:
        MissingPartError: the folder holds no finished build.
        EcgChatError: a file was changed, or the manifest can't be read.
    """
    from ecgchat_lib.instruct.dataset import CARD, FINISHED

    path = folder / FINISHED
    if not path.is_file() or not (folder / CARD).is_file():
        raise MissingPartError(str(folder), f"no {FINISHED} and {CARD} in it", "Build it with 'ecgchat instruct build'")
    try:
        expected = {str(name): str(file["sha256"]) for name, file in json.loads(path.read_bytes())["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise EcgChatError(f"{path}: no manifest of a build. Build it again") from None
    for name, digest in expected.items():
        place = folder / Path(name).name
        found = hashlib.sha256(place.read_bytes()).hexdigest() if place.is_file() else "nothing"
        if found != digest:
            raise EcgChatError(f"{place}: sha256 {found[:12]}, expected {digest[:12]}. Build it again with --resume")
    return (folder / CARD).read_text(encoding="utf-8")
