"""The knowledge base: what an ECG finding is, how it is told, what causes it and what to do next, each with its source.

An entry is a Markdown file with front matter in `data/knowledge/entries/`; citations stand once, in `sources.yml`.
Everything is read strictly, so that a typing error can't become a medical statement. It isn't a diagnosis of anybody.

Taught in: 14 §1
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.paths import data_folder

KINDS = (
    "rhythm",
    "conduction",
    "infarction",
    "ischemia",
    "hypertrophy",
    "repolarization",
    "drug-or-electrolyte",
    "syndrome",
    "pacing",
    "recording",
    "measurement",
    "normal-variant",
)
URGENCIES = ("none", "routine", "soon", "emergency")
URGENCY_WORDS: Mapping[str, str] = {
    "none": "no action needed",
    "routine": "routine, at the next visit",
    "soon": "soon, within hours to days",
    "emergency": "emergency, act within minutes",
}
PARTS: Mapping[str, str] = {  # heading in the file → field of `Entry`
    "Criteria": "criteria",
    "Look-alikes": "look_alikes",
    "Causes": "causes",
    "What to do next": "next_steps",
}
LINE_PARTS: Mapping[str, str] = {  # field of `Entry` → its heading, in the order of the file
    "statement": "What it is",
    **{name: heading for heading, name in PARTS.items()},
}
FRONT = ("title", "kind", "aliases", "codes", "urgency", "sources", "related")
MAX_BYTES = 64_000  # of one file; an entry has 1 to 4 kB
_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_DOI = re.compile(r"10\.\d{4,9}/\S+")


@dataclass(frozen=True)
class Citation:
    """A document that an entry rests on."""

    cite: str
    doi: str | None

    def __str__(self) -> str:
        return f"{self.cite}, doi {self.doi}" if self.doi else self.cite


@dataclass(frozen=True)
class Entry:
    """What is known of one finding.

    Attributes:
        id: the file's name without its ending, such as "left-bundle-branch-block".
        title: its name.
        kind: one of `KINDS`.
        aliases: other names and abbreviations.
        codes: SCP-ECG statements that say it, of `ecgchat_lib.datasets.labels.STATEMENTS`; may be empty.
        urgency: one of `URGENCIES`.
        statement: what it is, in one to three sentences.
        criteria: how it is told on an ECG, with numbers and units.
        look_alikes: each "other thing: how to tell it apart".
        causes: what brings it about.
        next_steps: what a clinician does next, without doses.
        citations: the documents that say so, at least one.
        related: ids of other entries.
    """

    id: str
    title: str
    kind: str
    aliases: tuple[str, ...]
    codes: tuple[str, ...]
    urgency: str
    statement: str
    criteria: tuple[str, ...]
    look_alikes: tuple[str, ...]
    causes: tuple[str, ...]
    next_steps: tuple[str, ...]
    citations: tuple[Citation, ...]
    related: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The title and the aliases."""
        return (self.title, *self.aliases)


class _StrictLoader(yaml.SafeLoader):
    """YAML in which no key may occur twice; plain YAML silently keeps the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if doubled := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise yaml.YAMLError(f"the key {doubled[0]!r} stands there twice")
        return super().construct_mapping(node, deep)


def read_yaml(text: str, where: str) -> Any:
    """Return what a YAML text holds.

    Args:
        text: the YAML.
        where: the file, for the message.

    Raises:
        EcgChatError: it isn't YAML, or a key stands there twice.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader: plain values alone, no objects
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        words = " ".join(str(error).split())[:200]
        raise EcgChatError(f"{where}: not YAML ({words}). Mend the file, or restore it from the project") from None


def read_text(path: Path) -> str:
    """Return a small text file's content.

    Raises:
        EcgChatError: it can't be read, isn't UTF-8, is larger than `MAX_BYTES`, or holds control characters.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8").replace("\r\n", "\n")
    except OSError as error:
        raise EcgChatError(f"{path}: can't be read ({error.strerror}). Restore it from the project") from None
    except UnicodeDecodeError as error:
        raise EcgChatError(f"{path}: byte {error.start} isn't UTF-8. Save the file as UTF-8") from None
    if len(content) > MAX_BYTES:
        raise EcgChatError(f"{path}: more than {MAX_BYTES} bytes, expected a few thousand. Split it")
    wrong = next((sign for sign in text if not sign.isprintable() and sign != "\n"), None)
    if wrong is not None:
        raise EcgChatError(f"{path}: holds the character {wrong!r}, expected printable text. Remove it")
    return text


def sources(path: Path | None = None) -> dict[str, Citation]:
    """Read the documents that entries may cite.

    Args:
        path: a YAML file, key → {cite, doi}; `data/knowledge/sources.yml` by default.

    Returns:
        Key → citation, in the file's order.

    Raises:
        EcgChatError: the file is missing, or a field is missing, unknown or can't be; the message names it.
    """
    path = path or data_folder() / "knowledge" / "sources.yml"
    return dict(_sources(str(path), read_text(path)))


@lru_cache(maxsize=4)
def _sources(where: str, text: str) -> dict[str, Citation]:
    content = read_yaml(text, where)
    if not isinstance(content, dict) or not content:
        raise EcgChatError(f"{where}: found {type(content).__name__}, expected key: {{cite, doi}} for each document")
    found = {}
    for key, fields in content.items():
        if not isinstance(key, str) or not _ID.fullmatch(key):
            raise EcgChatError(f"{where}: key {key!r}, expected lower-case words joined by hyphens")
        if not isinstance(fields, dict) or set(fields) != {"cite", "doi"}:
            raise EcgChatError(f"{where}, {key}: found {_shown(fields)}, expected the fields cite and doi")
        cite, doi = fields["cite"], fields["doi"]
        if not isinstance(cite, str) or not cite.strip():
            raise EcgChatError(f"{where}, {key}, cite: found {_shown(cite)}, expected authors, year and subject")
        if doi is not None and (not isinstance(doi, str) or not _DOI.fullmatch(doi)):
            raise EcgChatError(f"{where}, {key}, doi: found {_shown(doi)}, expected 10.<number>/<name> or null")
        found[key] = Citation(cite.strip(), doi)
    return found


def load_entries(folder: Path | None = None, *, citations: Mapping[str, Citation] | None = None) -> dict[str, Entry]:
    """Read and check a folder of entries.

    Args:
        folder: with `<id>.md` files; `data/knowledge/entries` by default.
        citations: what may be cited, by key; `sources()` by default.

    Returns:
        Id → entry, sorted by id. The files are read at each call, but parsed again only if one has changed.

    Raises:
        EcgChatError: the folder holds no entry, or one breaks a rule; the message names file and field, what was found
            and what was expected.
    """
    folder = folder or data_folder() / "knowledge" / "entries"
    files = sorted(path for path in folder.glob("*.md") if not path.name.startswith("."))
    if not files:
        raise EcgChatError(f"{folder}: holds no entry (*.md). Restore data/knowledge from the project")
    texts = tuple((str(path), read_text(path)) for path in files)
    known = tuple((sources() if citations is None else citations).items())
    return dict(_parse(texts, known))


@lru_cache(maxsize=4)
def _parse(texts: tuple[tuple[str, str], ...], known: tuple[tuple[str, Citation], ...]) -> dict[str, Entry]:
    entries = {entry.id: entry for entry in (_entry(Path(path), text, dict(known)) for path, text in texts)}
    names: dict[str, str] = {}
    for path, _ in texts:
        entry = entries[Path(path).stem]
        for name in entry.related:
            if name not in entries:
                raise EcgChatError(f"{path}, related: {name!r} is no entry. Expected the id of a file in this folder")
        for name in {name.casefold() for name in entry.names}:
            if name in names:
                raise EcgChatError(f"{path}, aliases: {name!r} also names {names[name]}. A name belongs to one entry")
            names[name] = entry.id
    return dict(sorted(entries.items()))


def _entry(path: Path, text: str, known: Mapping[str, Citation]) -> Entry:
    """Read one file."""
    if not _ID.fullmatch(path.stem):
        raise EcgChatError(f"{path}: named {path.stem!r}, expected lower-case words joined by hyphens")
    pieces = re.split(r"^---[ ]*\n", text, maxsplit=2, flags=re.MULTILINE)
    if len(pieces) != 3 or pieces[0]:
        raise EcgChatError(f"{path}: no front matter. Expected '---', the fields {', '.join(FRONT)}, and '---'")
    front = read_yaml(pieces[1], str(path))
    found = sorted(map(str, front)) if isinstance(front, dict) else [type(front).__name__]
    if found != sorted(FRONT):
        raise EcgChatError(f"{path}: front matter with {', '.join(found)}; expected exactly {', '.join(FRONT)}")
    keys = _words(path, "sources", front["sources"], least=1)
    for key in keys:
        if key not in known:
            raise EcgChatError(f"{path}, sources: {key!r} is unknown. Expected a key of data/knowledge/sources.yml")
    related = _words(path, "related", front["related"])
    if path.stem in related:
        raise EcgChatError(f"{path}, related: names the entry itself. Name others")
    body = _body(path, pieces[2])
    return Entry(
        id=path.stem,
        title=_line(path, "title", front["title"]),
        kind=_one_of(path, "kind", front["kind"], KINDS),
        aliases=_words(path, "aliases", front["aliases"]),
        codes=_codes(path, front["codes"]),
        urgency=_one_of(path, "urgency", front["urgency"], URGENCIES),
        citations=tuple(known[key] for key in keys),
        related=related,
        statement=body.pop("statement")[0],
        **body,
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(path: Path, field: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or "\n" in value:
        raise EcgChatError(f"{path}, {field}: found {_shown(value)}, expected one line of text (in quotes if a number)")
    return value.strip()


def _words(path: Path, field: str, value: object, least: int = 0) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < least:
        raise EcgChatError(f"{path}, {field}: found {_shown(value)}, expected a list of at least {least}")
    found = tuple(_line(path, field, one) for one in value)
    if doubled := sorted({one for one in found if found.count(one) > 1}):
        raise EcgChatError(f"{path}, {field}: {doubled[0]!r} stands there twice. Name it once")
    return found


def _one_of(path: Path, field: str, value: object, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise EcgChatError(f"{path}, {field}: found {_shown(value)}, expected one of {', '.join(allowed)}")
    return value


def _codes(path: Path, value: object) -> tuple[str, ...]:
    from ecgchat_lib.datasets.labels import STATEMENTS

    codes = _words(path, "codes", value)
    for code in codes:
        if code not in STATEMENTS:
            raise EcgChatError(f"{path}, codes: {code!r} is no SCP-ECG statement of PTB-XL's. See datasets/labels.py")
    return codes


def _body(path: Path, text: str) -> dict[str, Any]:
    """Return the statement and the four lists of a file's text below the front matter."""
    blocks = re.split(r"^##[ ]+(.*)$", text, flags=re.MULTILINE)  # statement, heading, text, heading, text, ...
    headings = [heading.strip() for heading in blocks[1::2]]
    if headings != list(PARTS):
        raise EcgChatError(f"{path}: parts {', '.join(headings) or 'none'}; expected {', '.join(PARTS)}, in this order")
    statement = " ".join(blocks[0].split())
    if not statement or statement.startswith(("- ", "#")):
        raise EcgChatError(f"{path}, statement: found {_shown(statement)}, expected one to three sentences")
    body: dict[str, Any] = {"statement": (statement,)}
    for heading, block in zip(headings, blocks[2::2], strict=True):
        items = tuple(_items(path, heading, block))
        if not items:
            raise EcgChatError(f"{path}, {heading}: is empty, expected at least one line '- ...'")
        body[PARTS[heading]] = items
    for item in body["look_alikes"]:
        if not re.search(r"\w.*: \S", item):  # "2:1 block: ..." has another colon
            raise EcgChatError(f"{path}, Look-alikes: found {_shown(item)}, expected 'other thing: how to tell it'")
    return body


def _items(path: Path, heading: str, block: str) -> Iterator[str]:
    """Yield the items of a Markdown list; an indented line goes on with the item above it."""
    lines: list[str] = []
    for line in [*block.split("\n"), "- "]:
        if line.startswith("- "):
            if lines:
                yield " ".join(lines)
            lines = line[2:].split()
        elif line.strip() and (not lines or not line.startswith(" ")):
            raise EcgChatError(
                f"{path}, {heading}: found {_shown(line)}, expected '- ...' or an indented line after it"
            )
        else:
            lines += line.split()


def parts_of(entry: Entry) -> tuple[tuple[str, str], ...]:
    """Return (part, line) of each line of an entry, in the order of the file; the part is one of `LINE_PARTS`."""
    items = ((name, line) for name in PARTS.values() for line in getattr(entry, name))
    return (("statement", entry.statement), *items)


def lines_of(entry: Entry) -> tuple[str, ...]:
    """Return the entry's statement and each item of its parts: what can be quoted, in the order of the file."""
    return tuple(line for _, line in parts_of(entry))


def heading_of(entry: Entry) -> str:
    """Return the title with the other names in brackets."""
    return f"{entry.title} ({', '.join(entry.aliases)})" if entry.aliases else entry.title


def passage(entry: Entry) -> str:
    """Return the whole entry as plain text: what is indexed, and what a prompt shows. The citations stay outside."""
    parts = [
        f"{heading}:\n" + "\n".join(f"- {item}" for item in getattr(entry, name)) for heading, name in PARTS.items()
    ]
    urgency = f"Urgency: {URGENCY_WORDS[entry.urgency]}"
    return "\n".join([heading_of(entry), entry.statement, *parts, urgency])


def summary(entry: Entry, limit: int = 400) -> str:
    """Return title, statement and as many criteria as fit into `limit` characters: for a prompt with little room.

    A statement that is too long by itself is cut at a word, with "..." at its end.
    """
    text = f"{entry.title}: {entry.statement}"
    if len(text) > limit:
        return text[: max(limit - 3, 0)].rsplit(" ", 1)[0].rstrip(" ,;:") + "..."
    for item in entry.criteria:
        if len(text) + 1 + len(item) > limit:
            break
        text += " " + item
    return text
