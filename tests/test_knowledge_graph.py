"""The graph: what the library computes with networkx equals what plain loops compute."""

import os
import subprocess
import sys

import networkx as nx
import pytest
from knowledge_by_hand import entities, leads, louvain, make_graph, modularity, summary, walk

from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.knowledge import graph as library
from ecgchat_lib.knowledge.entries import load_entries


@pytest.fixture(scope="module")
def base():
    """Every sixth entry and what it is related to: enough for communities, small enough for plain loops."""
    shipped = load_entries()
    chosen = list(shipped)[::6]
    names = sorted({*chosen, *(name for one in chosen for name in shipped[one].related[:1])})
    kept = {name: shipped[name] for name in names}
    from dataclasses import replace

    return {n: replace(e, related=tuple(r for r in e.related if r in kept)) for n, e in kept.items()}


@pytest.fixture(scope="module")
def both(base):
    terms = library.load_terms()
    return library.build_graph(base, terms), make_graph(base, terms)


def plain(graph):
    return {node: {other: edge["weight"] for other, edge in graph[node].items()} for node in graph}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ST elevation in leads II, III and aVF", {"II", "III", "aVF"}),
        ("lead I", {"I"}),
        ("a type II block, part III", set()),
        ("from V1 to V3, and in V6", {"V1", "V2", "V3", "V6"}),
        ("V4–V6", {"V4", "V5", "V6"}),
        ("lead V4R or aVR", {"V4R", "aVR"}),
        ("leads I and aVL", {"I", "aVL"}),
    ],
)
def test_leads(text, expected):
    assert library.leads_in(text) == leads(text) == expected


@pytest.mark.parametrize(
    ("text", "names", "found"),
    [
        ("T-wave inversion", ["T wave"], True),
        ("two premature beats", ["premature beat"], True),
        ("a paced rhythm", ["pace"], False),
        ("VT is wide", ["VT"], True),
        ("at rest", ["AT"], False),  # short names are read as they are written
        ("Digoxin", ["digoxin"], True),
        ("", ["digoxin"], False),
    ],
)
def test_names_are_whole_words(text, names, found):
    assert library.mentions(text, names) == found


def test_entities_of_a_question(base):
    terms = library.load_terms()
    text = "Which drugs such as digoxin change the T wave in V5 within minutes?"
    found = library.entities_in(text, base, terms)
    assert {"drug:digoxin", "finding:T wave", "lead:V5", "urgency:emergency"} <= set(found)
    assert found == entities(text, base, terms)


def test_graph_by_hand(both):
    graph, by_hand = both
    assert list(graph.nodes) == list(by_hand)
    assert plain(graph) == by_hand
    assert all(weight > 0 for near in by_hand.values() for weight in near.values())
    assert nx.is_connected(graph)


def test_louvain_by_hand(both):
    graph, by_hand = both
    found = library.find_communities(graph, seed=7)
    assert louvain(by_hand, seed=7) == found
    reached = nx.community.modularity(graph, found, weight="weight")
    assert modularity(by_hand, found) == pytest.approx(reached, abs=1e-9)
    assert reached > 0.2
    assert sorted(node for members in found for node in members) == sorted(graph.nodes)


@pytest.mark.parametrize("seed", range(5))
def test_louvain_by_hand_on_the_karate_club(seed):
    club = nx.karate_club_graph()
    assert louvain(plain(club), seed) == library.find_communities(club, seed=seed)


def test_summaries_by_hand(both, base):
    graph, by_hand = both
    for community in library.communities(graph, base):
        ids, text = summary(by_hand, set(community.members), base)
        assert (list(community.entries), community.summary) == (ids, text)
        assert base[ids[0]].statement in text


@pytest.mark.parametrize("damping", [0.0, 0.1, 0.5])
def test_walk_by_hand(both, damping):
    graph, by_hand = both
    start = {next(node for node in graph if node.startswith("entry:")): 2.0, "kind:rhythm": 1.0, "lead:none": 5.0}
    found = library.local_search(graph, start, damping=damping)
    expected = walk(by_hand, {node: weight for node, weight in start.items() if node in graph}, damping)
    assert found == pytest.approx(expected, abs=1e-9)


def test_walk_needs_a_start_and_a_damping(both):
    assert library.local_search(both[0], {"drug:none": 1.0}) == {}
    with pytest.raises(ParameterError, match="damping"):
        library.local_search(both[0], {"kind:rhythm": 1.0}, damping=1.0)


def test_global_search_opens_the_nearest_communities():
    found = [library.Community((), (name,), "") for name in "abc"]
    assert library.global_search(found, [0.1, 0.9, 0.5], {"b": 0.2}, most=2) == {"b": 1.1, "c": 0.5}


def test_a_base_of_one_entry_has_a_graph():
    entry = load_entries()["sinus-rhythm"]
    graph = library.build_graph({entry.id: entry})
    assert "kind:rhythm" in graph["entry:sinus-rhythm"]
    assert [c.entries for c in library.communities(graph, {entry.id: entry})] == [("sinus-rhythm",)]


def test_communities_do_not_depend_on_the_order_of_hashes():
    code = (
        "from ecgchat_lib.knowledge.entries import load_entries as load; from ecgchat_lib.knowledge import graph as g;"
        "e = dict(list(load().items())[::8]); e = {k: v for k, v in e.items()};"
        "import dataclasses; e = {k: dataclasses.replace(v, related=()) for k, v in e.items()};"
        "print([c.entries for c in g.communities(g.build_graph(e), e)])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("finding: {}", "expected the parts"),
        ("finding: {a: [b]}\ndrug: {c: 5}\nurgency: {d: [e]}", "drug, c"),
        ("finding: {a: [1.5]}\ndrug: {}\nurgency: {}", "finding, a"),
        ("finding: [a]\ndrug: {}\nurgency: {}", "finding"),
    ],
)
def test_terms_are_checked(tmp_path, text, message):
    path = tmp_path / "terms.yml"
    path.write_text(text)
    with pytest.raises(EcgChatError, match=message):
        library.load_terms(path)
