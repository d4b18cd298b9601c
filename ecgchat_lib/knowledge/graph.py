"""GraphRAG over the knowledge base: entities and relations, communities, their summaries, local and global search.

Edge et al. let a language model read the entities and write the summaries. This base is written by rules, so rules find
its entities (entries, leads, findings, drugs, urgencies, kinds, documents), and a community's summary is made of the
statements of its most central entries: nothing here is made up, and the same base gives the same graph everywhere.

Taught in: 14 §5. Source: Edge et al. 2024, From Local to Global: a GraphRAG approach, arXiv 2404.16130.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.knowledge.entries import Entry, passage, read_text, read_yaml
from ecgchat_lib.knowledge.naming import SHORT
from ecgchat_lib.paths import data_folder

if TYPE_CHECKING:
    from networkx import Graph

TERM_KINDS = ("finding", "drug", "urgency")
_LEAD = r"(?:aV[RLF]|V[1-9]R?|I{1,3})"
_LEADS = re.compile(
    rf"\b[Ll]eads?\s+({_LEAD}(?:(?:\s*,\s*(?:and\s+|or\s+)?|\s+(?:and|or|to|through)\s+|\s*[-–]\s*){_LEAD})*)\b"
)
_LEAD_ALONE = re.compile(r"\b(?:aV[RLF]|V[1-9]R?)\b")
_LEAD_RANGE = re.compile(r"\bV([1-9])\s*(?:-|–|to|through)\s*V([1-9])\b")


@dataclass(frozen=True)
class Community:
    """Entities that belong together.

    Attributes:
        members: node names, sorted.
        entries: ids of its entries, the most central first.
        summary: the statements of the most central ones.
    """

    members: tuple[str, ...]
    entries: tuple[str, ...]
    summary: str


def load_terms(path: Path | None = None) -> dict[str, dict[str, tuple[str, ...]]]:
    """Read the entities that are no entries: kind → name → spellings.

    Args:
        path: a YAML file; `data/knowledge/terms.yml` by default.

    Raises:
        EcgChatError: the file is missing or holds something else; the message names the field.
    """
    path = path or data_folder() / "knowledge" / "terms.yml"
    content = read_yaml(read_text(path), str(path))
    if not isinstance(content, dict) or set(content) != set(TERM_KINDS):
        raise EcgChatError(f"{path}: expected the parts {', '.join(TERM_KINDS)}, each name: [spellings]")
    for kind, names in content.items():
        for name, spellings in names.items() if isinstance(names, dict) else [(str(names)[:40], None)]:
            texts = [name, *spellings] if isinstance(spellings, list) and spellings else [None]
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise EcgChatError(
                    f"{path}, {kind}, {name}: expected a list of spellings, in quotes if they are numbers"
                )
    return {kind: {name: tuple(spellings) for name, spellings in names.items()} for kind, names in content.items()}


def leads_in(text: str) -> set[str]:
    """Return the leads that a text names: "V1", "aVR", "leads II, III and aVF", "V1 to V3".

    "I", "II" and "III" count only after the word lead or in a list that it begins; elsewhere they number types.
    """
    found = set(_LEAD_ALONE.findall(text))
    for match in _LEADS.finditer(text):
        found |= set(re.findall(_LEAD, match[1]))
    for first, last in _LEAD_RANGE.findall(text):
        found |= {f"V{number}" for number in range(int(first), int(last) + 1)}
    return found


@lru_cache(maxsize=4096)
def _spaced(text: str) -> str:
    """Return the words of a text with one space around each: "T-wave" and "T wave" are the same."""
    return " " + " ".join(re.findall(r"[^\W_]+", text)) + " "


def mentions(text: str, names: Iterable[str]) -> bool:
    """Return whether a text holds one of the names as whole words; a plural "s" may follow.

    Upper and lower case are the same, but for names of up to `SHORT` characters.
    """
    as_written = _spaced(text)
    lowered = as_written.lower()
    for name in names:
        spaced, wanted = (as_written, _spaced(name)) if len(name) <= SHORT else (lowered, _spaced(name).lower())
        if wanted.strip() and (wanted in spaced or f"{wanted[:-1]}s " in spaced):
            return True
    return False


def entities_in(text: str, entries: Mapping[str, Entry], terms: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """Return the nodes that a text names: "entry:<id>", "lead:<lead>", "finding:<name>", ..., sorted."""
    found = [f"lead:{lead}" for lead in leads_in(text)]
    found += [f"entry:{entry.id}" for entry in entries.values() if mentions(text, entry.names)]
    found += [f"{kind}:{name}" for kind, names in terms.items() for name, ways in names.items() if mentions(text, ways)]
    return sorted(found)


def build_graph(
    entries: Mapping[str, Entry], terms: Mapping[str, Mapping[str, Sequence[str]]] | None = None
) -> Graph[str]:
    """Return the graph of entities and relations.

    Two entries are joined with weight 1 for each of these: one lists the other as related, one's text names the other.
    An entry is joined to each lead, finding, drug and document that it names, to its kind and to its urgency; the
    weight ln(N/n)/ln(N) is 1 for what only one of the N entries has and 0 (no edge) for what all n = N have.

    Args:
        entries: id → entry, as `load_entries` returns them; related ids that it lacks are left out.
        terms: as `load_terms` returns them, which is the default.

    Returns:
        An undirected networkx graph; edges carry `weight`. Nodes and edges are in sorted order.
    """
    import networkx as nx

    terms = load_terms() if terms is None else terms
    weights: dict[tuple[str, str], float] = {}
    holders: dict[str, set[str]] = {}  # entity that is no entry → the entries that have it
    for entry in entries.values():
        here = f"entry:{entry.id}"
        named = [f"entry:{name}" for name in entry.related if name in entries]
        named += entities_in(passage(entry), entries, terms)
        for other in named:
            if other.startswith("entry:") and other != here:
                pair = (min(here, other), max(here, other))
                weights[pair] = weights.get(pair, 0.0) + 1.0
        facts = [name for name in named if not name.startswith(("entry:", "urgency:"))]
        facts += [f"kind:{entry.kind}", f"urgency:{entry.urgency}", *(f"source:{one.cite}" for one in entry.citations)]
        for name in facts:
            holders.setdefault(name, set()).add(here)
    for name, having in holders.items():
        rare = math.log(len(entries) / len(having)) / math.log(len(entries)) if len(entries) > 1 else 1.0
        weights.update({(here, name): rare for here in having if rare > 0})
    graph: Graph[str] = nx.Graph()
    graph.add_nodes_from(sorted({f"entry:{name}" for name in entries} | {node for pair in weights for node in pair}))
    graph.add_weighted_edges_from((*pair, weight) for pair, weight in sorted(weights.items()))
    return graph


def find_communities(graph: Graph[str], *, seed: int = 7, resolution: float = 1.0) -> list[list[str]]:
    """Return Louvain's communities, each sorted, the largest first.

    Args:
        graph: from `build_graph`.
        seed: of the order in which nodes are moved.
        resolution: above 1 gives more and smaller communities.

    Source: Blondel et al. 2008, Fast unfolding of communities in large networks, by networkx.
    """
    import networkx as nx

    found = nx.community.louvain_communities(graph, weight="weight", resolution=resolution, seed=seed)
    return sorted((sorted(members) for members in found), key=lambda members: (-len(members), members))


def summarize(graph: Graph[str], members: Sequence[str], entries: Mapping[str, Entry], most: int = 4) -> Community:
    """Return a community with its summary: title and statement of its `most` most central entries.

    Central is who has the greatest weight of edges inside the community; ties go by id.
    """
    inside = set(members)
    weight = {node: sum(edge["weight"] for other, edge in graph[node].items() if other in inside) for node in members}
    nodes = sorted(
        (node for node in members if node.startswith("entry:")), key=lambda node: (-round(weight[node], 9), node)
    )
    ids = tuple(node.removeprefix("entry:") for node in nodes)
    text = " ".join(f"{entries[name].title}: {entries[name].statement}" for name in ids[:most])
    return Community(tuple(members), ids, text)


def communities(
    graph: Graph[str], entries: Mapping[str, Entry], *, seed: int = 7, resolution: float = 1.0, most: int = 4
) -> list[Community]:
    """Return all communities that hold an entry, with their summaries, the largest first."""
    found = (
        summarize(graph, members, entries, most)
        for members in find_communities(graph, seed=seed, resolution=resolution)
    )
    return [community for community in found if community.entries]


def local_search(graph: Graph[str], start: Mapping[str, float], *, damping: float = 0.5) -> dict[str, float]:
    """Return how near each entry is to the entities that a question starts from.

    A walker starts at one of them, follows an edge with probability `damping` (heavier edges more often), and starts
    again otherwise; an entry's score is the share of time spent on it (personalized PageRank).

    Args:
        graph: from `build_graph`.
        start: node → weight, not negative; nodes that the graph lacks are left out.
        damping: from 0 (stay at the start) to below 1.

    Returns:
        Entry id → score; empty if no start is in the graph.

    Raises:
        ParameterError: damping out of range.
    """
    import networkx as nx

    if not 0 <= damping < 1:
        raise ParameterError(f"damping: {damping}, expected from 0 to below 1")
    begin = {node: weight for node, weight in start.items() if node in graph and weight > 0}
    if not begin:
        return {}
    ranks: dict[Any, float] = nx.pagerank(
        graph, alpha=damping, personalization=begin, weight="weight", tol=1e-12, max_iter=500
    )
    return {node.removeprefix("entry:"): rank for node, rank in ranks.items() if node.startswith("entry:")}


def global_search(
    found: Sequence[Community], similarity: Sequence[float], entry_scores: Mapping[str, float], *, most: int = 3
) -> dict[str, float]:
    """Return the entries of the communities whose summaries are most like a question.

    Args:
        found: the communities.
        similarity: of the question to each one's summary.
        entry_scores: entry id → similarity of the question to it; it orders the entries inside the communities.
        most: how many communities are opened.

    Returns:
        Entry id → community's similarity plus the entry's own.
    """
    best = sorted(range(len(found)), key=lambda k: (-round(similarity[k], 6), k))[:most]
    return {name: similarity[k] + entry_scores.get(name, 0.0) for k in best for name in found[k].entries}
