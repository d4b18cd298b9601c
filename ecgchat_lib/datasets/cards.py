"""The data cards of the course: for each dataset its size, license, source and traps, as facts in `data/cards/`.

The head of a card is read by programs, its text by people. A card holds no data. Taught in: 02 §1.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import yaml

from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.paths import data_folder

FIELDS = ("name", "records", "patients", "signal", "text", "labels", "license", "source", "role", "loader")


def read_card(path: Path) -> dict[str, object]:
    """Read the head of one card, the YAML between two lines of `---`.

    Raises:
        EcgChatError: the card has no head, or a field is missing.
    """
    parts = path.read_text(encoding="utf-8").split("---\n", 2)
    head = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
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
