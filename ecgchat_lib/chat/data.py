"""Conversations from a file as training sequences, read line by line: only places and lengths stay in memory.

The file is what `ecgchat instruct build` writes, one JSON object per line, or the original's list. It is gone through
once to check every line (format, labels, recordings) and to learn the lengths; after that a sequence is read and
encoded when it is drawn. Taught in: 12 §4.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from tqdm import tqdm

from ecgchat_lib.chat.batches import Example, example_bytes
from ecgchat_lib.chat.template import ECG_ID, Encoded, Template, encode_conversation, pack
from ecgchat_lib.errors import EcgChatError, MissingPartError
from ecgchat_lib.instruct.build import validate_conversations

LONGEST_LINE = 4 << 20  # bytes of a conversation


class ConversationFile(Sequence[Example]):
    """The training sequences of one file.

    Args:
        path: the conversations.
        tokenizer: the language model's.
        template: the chat template.
        root: where relative paths of recordings start; the file's own folder if None. What isn't there is looked for
            in the current folder.
        together: most conversations about one ECG, on consecutive lines, that are packed into one tree.
        after: another file whose recordings come first, so that both files' rows point into one table.

    Attributes:
        recordings: paths of the recordings, one row each.
        lengths: of each sequence, its tokens (marks included) and how many of them are marks.
        content: hash of all sequences, `batches.content_hash` of the list of them.
        measured: share of the conversations whose prompt tells measured values.

    Raises:
        MissingPartError: there is no such file.
        EcgChatError: a line isn't a conversation, can't be encoded, or names a recording that isn't there; with the
            line's number.
    """

    def __init__(
        self,
        path: Path,
        tokenizer: Any,
        template: Template,
        *,
        root: Path | None = None,
        together: int = 1,
        after: ConversationFile | None = None,
    ) -> None:
        if not path.is_file():
            raise MissingPartError(str(path), "no such file", "Make one with 'ecgchat instruct build'")
        self.path, self._tokenizer, self._template, self._together = path, tokenizer, template, together
        self._roots = (root or path.parent, Path())
        self._list = _read_list(path)
        self.recordings: list[Path] = after.recordings if after else []
        self.lengths: list[tuple[int, int]] = []
        self.measured = 0.0
        self._rows: dict[str, int] = after._rows if after else {}
        self._places: list[tuple[int, ...]] = []  # of each sequence, where its conversations start
        self._digest = hashlib.sha256()
        self._scan()
        self.content = self._digest.hexdigest()

    def __len__(self) -> int:
        """Return how many sequences there are."""
        return len(self._places)

    @overload
    def __getitem__(self, number: int) -> Example: ...
    @overload
    def __getitem__(self, number: slice) -> list[Example]: ...
    def __getitem__(self, number: int | slice) -> Example | list[Example]:
        """Read and encode a sequence."""
        if isinstance(number, slice):
            return [self[k] for k in range(*number.indices(len(self)))]
        items = [self._read(place) for place in self._places[number]]
        encoded = [encode_conversation(item, self._tokenizer, self._template) for item in items]
        whole = encoded[0] if len(encoded) == 1 else pack(encoded)
        return Example(whole, self._rows_of(items[0], whole))

    def _scan(self) -> None:
        seen: set[str] = set()
        open_places: list[int] = []
        open_encoded: list[Encoded] = []
        previous: dict[str, Any] | None = None
        count = told = 0
        for line, place, item in self._items():
            where = f"{self.path}, line {line}"
            try:
                validate_conversations([item])
                encoded = encode_conversation(item, self._tokenizer, self._template)
            except EcgChatError as error:
                raise EcgChatError(f"{where}: {error}") from error
            if item["id"] in seen:
                raise EcgChatError(f"{where}: the id {item['id']!r} stands twice. Give each conversation its own")
            seen.add(item["id"])
            for name in _ecgs(item):
                self._add_recording(name, where)
            if previous is None or len(open_places) >= self._together or not _alike(previous, item):
                self._close(open_places, open_encoded, previous)
                open_places, open_encoded = [], []
            open_places.append(place)
            open_encoded.append(encoded)
            previous = item
            count += 1
            told += "\nMeasured:" in item["conversations"][0]["value"]
        self._close(open_places, open_encoded, previous)
        if not count:
            raise EcgChatError(f"{self.path}: no conversation in it. Name another file")
        self.measured = told / count

    def _close(self, places: list[int], encoded: list[Encoded], item: dict[str, Any] | None) -> None:
        """Note a sequence whose conversations are known now."""
        if item is None:
            return
        whole = encoded[0] if len(encoded) == 1 else pack(encoded)
        self._places.append(tuple(places))
        self.lengths.append((len(whole.ids), whole.ids.count(ECG_ID)))
        self._digest.update(example_bytes(Example(whole, self._rows_of(item, whole))))

    def _items(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Yield line number (or place in the list), where it starts, and what stands there."""
        if self._list is not None:
            for number, item in enumerate(self._list):
                yield number + 1, number, item
            return
        with self.path.open("rb") as file, tqdm(desc="conversations", unit="line", disable=None) as bar:
            number, place = 0, 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                bar.update()
                if line.strip():
                    yield number, place, _parse(line, f"{self.path}, line {number}")
                place = file.tell()

    def _read(self, place: int) -> dict[str, Any]:
        if self._list is not None:
            item: dict[str, Any] = self._list[place]
            return item
        with self.path.open("rb") as file:
            file.seek(place)
            return _parse(file.readline(LONGEST_LINE + 1), f"{self.path}, byte {place} (changed since it was checked?)")

    def _add_recording(self, name: str, where: str) -> None:
        if name in self._rows:
            return
        for root in self._roots:
            path = root / name
            if path.is_file() or path.with_name(path.name + ".hea").is_file():
                self._rows[name] = len(self.recordings)
                self.recordings.append(path)
                return
        raise EcgChatError(
            f"{where}: the recording {name!r} is neither in {self._roots[0]} nor in the current folder. "
            "Say with --records where the recordings lie"
        )

    def _rows_of(self, item: dict[str, Any], encoded: Encoded) -> tuple[int, ...]:
        rows = tuple(self._rows[name] for name in _ecgs(item))
        marks = encoded.ids.count(ECG_ID)
        # branches that begin differently have a mark each, all for the one ECG
        return rows * marks if len(rows) == 1 else rows


def _read_list(path: Path) -> list[Any] | None:
    """Return the content of a file that holds one JSON list, the original's format; None for lines."""
    with path.open("rb") as file:
        if file.read(64).lstrip()[:1] != b"[":
            return None
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise EcgChatError(f"{path}: no JSON ({error}). Expected one object per line, or a list") from error
    return list(found)


def _parse(line: bytes, where: str) -> dict[str, Any]:
    if len(line) > LONGEST_LINE:
        raise EcgChatError(f"{where}: longer than {LONGEST_LINE} bytes, expected one conversation")
    try:
        found: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EcgChatError(f"{where}: no JSON ({error}). Expected one conversation per line") from error
    return found


def _ecgs(item: dict[str, Any]) -> list[str]:
    return item["ecg"] if isinstance(item["ecg"], list) else [item["ecg"]]


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two conversations can share a trunk: about the same, single ECG, and alike up to the last line."""
    if one["ecg"] != other["ecg"] or len(_ecgs(one)) != 1:
        return False
    starts = [item["conversations"][0]["value"].rpartition("\n")[0] for item in (one, other)]
    return starts[0] == starts[1]
