"""The data cards of the course: for each dataset its size, license, source and traps, as facts in `data/cards/`.

The head of a card is read by programs, its text by people. A card holds no data. Taught in: 02 §1.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import yaml

from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.paths import data_folder

FIELDS = (
    *("name", "records", "patients", "signal", "text", "labels", "license", "access", "source", "splits", "role"),
    *("loader", "traps"),
)


def read_card(path: Path) -> dict[str, object]:
    """Read the head of one card, the YAML between two lines of `---`.

    Returns:
        The fields `FIELDS`; `traps` is a list of short texts, the others are texts or numbers.

    Raises:
        EcgChatError: the card has no head, or a field is missing.
    """
    parts = path.read_text(encoding="utf-8").split("---\n", 2)
    try:
        head = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    except yaml.YAMLError as error:
        raise EcgChatError(f"{path}: the head is no YAML ({str(error)[:120]})") from None
    if not isinstance(head, dict):
        raise EcgChatError(f"{path}: no head between two lines of '---'; expected the fields {', '.join(FIELDS)}")
    missing = [name for name in FIELDS if name not in head]
    if missing:
        raise EcgChatError(f"{path}: the fields {missing} are missing in the head")
    return {name: head[name] for name in FIELDS}


def read_cards() -> pd.DataFrame:
    """Return all cards as a table, one dataset a row, sorted by size; columns `FIELDS`; sizes nobody states are texts.

    Raises:
        EcgChatError: as `read_card`.
    """
    cards = [read_card(path) for path in sorted((data_folder() / "cards").glob("*.md")) if path.name != "README.md"]
    order = sorted(cards, key=lambda card: -card["records"] if isinstance(card["records"], int) else 1)
    return pd.DataFrame(order, columns=list(FIELDS))


def card_text(name: str) -> str:
    """Return a card as people read it: the text after the head, with the head's facts as a list above.

    Args:
        name: the card's file name without `.md`, or its beginning, such as `chapman`.

    Raises:
        EcgChatError: there is no such card, or several.
    """
    paths = {path.stem: path for path in sorted((data_folder() / "cards").glob("*.md")) if path.name != "README.md"}
    found = [stem for stem in paths if stem == name] or [stem for stem in paths if name and stem.startswith(name)]
    if len(found) != 1:
        raise EcgChatError(f"no card {name!r}; there are {', '.join(paths)}")
    facts = read_card(paths[found[0]])
    lines = [f"{key:9} {value}" for key, value in facts.items() if key != "traps"]
    traps = facts["traps"] if isinstance(facts["traps"], list) else [facts["traps"]]
    lines += ["", "before using it:", *(f"  - {trap}" for trap in traps)]
    text = paths[found[0]].read_text(encoding="utf-8").split("---\n", 2)[2].strip()
    return "\n".join([*lines, "", text])
