"""GraphRAG by hand: the functions of notebook 14, read from its source, so that what is taught is what is tested."""

import ast
import math
import random
import re
from functools import cache
from pathlib import Path

from ecgchat_lib.knowledge.entries import passage

SOURCE = Path(__file__).parents[1] / "notebooks" / "py" / "14_knowledge.py"
CONSTANTS = {"LEAD", "BETWEEN"}
FUNCTIONS = {"leads_by_hand", "spelling", "entities_by_hand", "relations", "as_graph", "modularity", "move", "merge"}
FUNCTIONS |= {"louvain", "summary", "walk"}


def _taught():
    """Return name → function, as the notebook's cells define them."""
    names = {"re": re, "cache": cache, "log": math.log, "random": random, "passage": passage}
    kept = []
    for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body:
        targets = {one.id for one in getattr(node, "targets", []) if isinstance(one, ast.Name)}
        if targets & CONSTANTS or getattr(node, "name", "") in FUNCTIONS:
            kept.append(node)
    exec(compile(ast.Module(kept, []), str(SOURCE), "exec"), names)
    return names


_NAMES = _taught()
leads, entities, modularity = (_NAMES[name] for name in ("leads_by_hand", "entities_by_hand", "modularity"))
louvain, summary = _NAMES["louvain"], _NAMES["summary"]


def make_graph(entries, terms):
    """Return node → {neighbor: weight}."""
    return _NAMES["as_graph"](_NAMES["relations"](entries, terms))


def walk(graph, start, damping):
    """Return id → the share of a walker's time at this entry."""
    shares = _NAMES["walk"](graph, start, damping)
    return {node.removeprefix("entry:"): share for node, share in shares.items() if node.startswith("entry:")}
