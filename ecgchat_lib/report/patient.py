"""A file with what the reader knows of the patient, or of several: YAML or JSON, hostile until checked.

One person's file holds the fields of `PatientDetails`. A file for several recordings holds them by the recordings'
names. Nothing is guessed: an unknown field, a wrong type or an impossible date is an error that names it.

Taught in: 13 §7
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import date, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.report.sections import PatientDetails

MAX_BYTES = 64 * 1024
MAX_RECORDS = 1000  # in one file
OLDEST = 130.0  # years
YEARS = (1880, 2300)  # ECGs exist since the 1880s; dates that were shifted to hide a patient may lie in the future
LENGTHS = {  # most characters of each text
    "name": 200,
    "identifier": 100,
    "sex": 20,
    "recorded_at": 40,
    "history": 4000,
    "medication": 4000,
    "symptoms": 4000,
}
FIELDS = tuple(item.name for item in fields(PatientDetails))
_LISTS = ("history", "medication", "symptoms")  # these may be lists of texts, too
_SEXES = {"female": "female", "f": "female", "woman": "female", "male": "male", "m": "male", "man": "male"}
_DEEPEST = 4  # mapping of records, of fields, a list


@dataclass(frozen=True)
class Patients:
    """The details of a file: one person's, or several by the recordings' names.

    Attributes:
        one: the only person's, or None.
        by_record: recording's name → details; None if there is only one person. `batch.match_patients` says whose
            they are.
    """

    one: PatientDetails | None = None
    by_record: Mapping[str, PatientDetails] | None = None


def read_patient(path: str | Path) -> PatientDetails:
    """Read one person's details.

    Args:
        path: a YAML or JSON file (.json), in UTF-8, of at most `MAX_BYTES`.

    Raises:
        EcgChatError: the file can't be read, or holds something else; the message names the field.
    """
    found = read_patients(path)
    if found.one is None:
        raise EcgChatError(
            f"{path}: details of several recordings, expected one person's ({', '.join(FIELDS)}). Keep one"
        )
    return found.one


def read_patients(path: str | Path) -> Patients:
    """Read one person's details, or those of several by recording.

    Args:
        path: a YAML or JSON file (.json), in UTF-8, of at most `MAX_BYTES`. Either the fields of `PatientDetails`, or
            a mapping from recordings' names to such fields.

    Raises:
        EcgChatError: the file can't be read, or holds something else; the message names the field.
    """
    path = Path(path)
    content = _load(path)
    if not isinstance(content, dict) or not content:
        raise EcgChatError(f"{path}: {_kind(content)}, expected fields such as 'name: Ada' ({', '.join(FIELDS)})")
    if all(isinstance(value, dict) for value in content.values()):
        if len(content) > MAX_RECORDS:
            raise EcgChatError(f"{path}: {len(content):,} recordings, expected at most {MAX_RECORDS:,}. Split the file")
        return Patients(by_record={key: _details(path, value, f"{key}, ") for key, value in content.items()})
    return Patients(one=_details(path, content, ""))


def _load(path: Path) -> Any:
    """Return what the file holds, as mappings, lists, texts and (in JSON) numbers."""
    try:
        if not path.is_file():
            raise EcgChatError(f"{path}: no such file. Check the path given to --patient")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EcgChatError(f"{path}: can't be read ({reason}). Check the path given to --patient") from None
    if len(content) > MAX_BYTES:
        raise EcgChatError(f"{path}: more than {MAX_BYTES:,} bytes, expected a few lines. Is it the right file?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EcgChatError(f"{path}: not UTF-8 at byte {error.start:,}. Save it as UTF-8") from None
    return _from_json(path, text) if path.suffix.lower() == ".json" else _from_yaml(path, text)


def _from_json(path: Path, text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            doubled = next(key for key, _ in pairs if [one for one, _ in pairs].count(key) > 1)
            raise EcgChatError(f"{path}: the field {doubled[:60]!r} stands there twice. Keep one of them")
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError, too
        raise EcgChatError(f"{path}: not JSON ({_short(str(error))}). Mend it, or write YAML") from None


def _from_yaml(path: Path, text: str) -> Any:
    """Read plain YAML: every value stays the text that it is (no 007 that turns 7), no aliases, no tags."""
    import yaml

    class Loader(yaml.BaseLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(keys) != len(node.value):
                raise EcgChatError(f"{path}: a field whose name is no text. Write 'field: value'")
            if doubled := [key for key in keys if keys.count(key) > 1]:
                raise EcgChatError(f"{path}: the field {doubled[0][:60]!r} stands there twice. Keep one of them")
            return super().construct_mapping(node, deep)

    try:
        _check_events(path, yaml.parse(text, Loader=yaml.BaseLoader))
        return yaml.load(text, Loader=Loader)  # BaseLoader makes texts, lists and mappings, nothing else
    except (yaml.YAMLError, RecursionError) as error:
        raise EcgChatError(f"{path}: not YAML ({_short(str(error))}). Write lines such as 'name: Ada'") from None


def _check_events(path: Path, events: Any) -> None:
    """Refuse what plain YAML of a patient has no use for, before anything is built from it."""
    import yaml

    depth = documents = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise EcgChatError(f"{path}: an alias or anchor (* or &), expected plain fields. Write each value out")
        if getattr(event, "tag", None) is not None:
            raise EcgChatError(f"{path}: a tag ({_short(event.tag)}), expected plain fields. Leave the tag out")
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST or documents > 1:
            raise EcgChatError(f"{path}: nested too deeply, or several documents; expected fields of one patient")


def _details(path: Path, content: Mapping[str, Any], where: str) -> PatientDetails:
    """Check the fields of one person; `where` stands before their names in messages."""
    for field in content:
        if field not in FIELDS:
            near = get_close_matches(field, FIELDS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise EcgChatError(
                f"{path}: {where}{_short(field)}: an unknown field, expected one of {', '.join(FIELDS)}.{hint}"
            )

    def wrong(field: str, found: str, expected: str) -> NoReturn:
        raise EcgChatError(f"{path}: {where}{field}: {found}, expected {expected}")

    checks = {"age": _age, "sex": _sex, "recorded_at": _recorded_at}
    values: dict[str, Any] = {}
    for field, value in content.items():
        if value is None or (isinstance(value, str) and value.strip().lower() in ("", "null", "~")):
            continue
        values[field] = checks.get(field, _text)(field, value, wrong)
    return PatientDetails(**values)


def _text(field: str, value: Any, wrong: Any) -> str:
    if isinstance(value, list) and field in _LISTS and all(isinstance(one, str | int | float) for one in value):
        value = "; ".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        wrong(field, _kind(value), "a text" + (" or a list of texts" if field in _LISTS else ""))
    text = str(value).strip()
    if len(text) > LENGTHS[field]:
        wrong(field, f"{len(text):,} characters", f"at most {LENGTHS[field]:,}. Shorten it")
    return text


def _age(field: str, value: Any, wrong: Any) -> float:
    expected = f"years as a number from 0 to {OLDEST:g}, such as 63 or 0.5"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        wrong(field, _kind(value), expected)
    try:
        years = float(value)
    except (ValueError, OverflowError):
        wrong(field, repr(_short(str(value))), expected)
    if not (math.isfinite(years) and 0 <= years <= OLDEST):
        wrong(field, repr(_short(str(value))), expected)
    return years


def _sex(field: str, value: Any, wrong: Any) -> str:
    found = _SEXES.get(value.strip().lower()) if isinstance(value, str) else None
    if found is None:
        shown = repr(_short(value)) if isinstance(value, str) else _kind(value)
        wrong(field, shown, "female or male (normal limits are known for these). Leave it out if unknown")
    return str(found)


def _recorded_at(field: str, value: Any, wrong: Any) -> str:
    expected = f"a date such as 2024-05-31 or 2024-05-31 13:20, of the years {YEARS[0]} to {YEARS[1]}"
    if not isinstance(value, str):
        wrong(field, _kind(value), expected)
    text = value.strip()
    try:
        when = date.fromisoformat(text) if len(text) <= 10 else datetime.fromisoformat(text)
    except ValueError:
        wrong(field, repr(_short(text)), expected)
    if not YEARS[0] <= when.year <= YEARS[1]:
        wrong(field, repr(_short(text)), expected)
    return text


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", bool: "yes or no", type(None): "nothing"}
    return names.get(type(value), "a number")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:77] + "..."
