"""Retrieval: scores by hand, the cache of embeddings, fusion, and the recorded comparison."""

import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from knowledge_by_hand import entities, make_graph, summary, walk

from ecgchat_lib.course.provenance import knowledge_hash
from ecgchat_lib.errors import ParameterError
from ecgchat_lib.knowledge import graph as knowledge_graph
from ecgchat_lib.knowledge import retrieve
from ecgchat_lib.knowledge.answers import QUOTING, Quoting
from ecgchat_lib.knowledge.entries import load_entries, passage
from ecgchat_lib.knowledge.retrieve import (
    CHUNKS,
    HOWS,
    SETTINGS,
    Bm25,
    GraphRetriever,
    Hybrid,
    Vectors,
    blend,
    chunks,
    embed,
    embedded,
    fuse,
    load_retriever,
    make_retriever,
    pool,
    ranking,
    words,
)
from ecgchat_lib.paths import data_folder

NAMES = (
    "atrial-fibrillation",
    "complete-av-block",
    "digitalis-effect",
    "first-degree-av-block",
    "hyperkalemia",
    "hypokalemia",
    "left-bundle-branch-block",
    "right-bundle-branch-block",
    "sinus-bradycardia",
    "sinus-tachycardia",
    "ventricular-pacing",
    "wolff-parkinson-white-pattern",
)
ASKED = "Which block of the left bundle makes the QRS wide?"


@pytest.fixture(scope="module")
def base():
    shipped = load_entries()
    return {
        name: replace(shipped[name], related=tuple(one for one in shipped[name].related if one in NAMES))
        for name in NAMES
    }


@pytest.fixture(scope="module")
def retrievers(base):
    return {how: make_retriever(how, base) for how in HOWS}


def test_words():
    assert words("The T-waves of 0.12 s, in bundles and arteries!") == ["t", "wave", "0.12", "s", "bundle", "artery"]
    assert words("focus class is") == ["focus", "class"]
    assert words("") == []


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.3), (2.0, 0.0)])
def test_bm25_by_hand(base, k1, b):
    made = Bm25(base, how="whole", k1=k1, b=b)
    texts = {name: words(passage(entry)) for name, entry in base.items()}
    mean = sum(map(len, texts.values())) / len(texts)
    expected = {}
    for name, text in texts.items():
        count, total = Counter(text), 0.0
        for word in words(ASKED):
            having = sum(word in other for other in texts.values())
            idf = math.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            total += idf * count[word] / (count[word] + k1 * (1 - b + b * len(text) / mean))
        if total:
            expected[name] = total
    assert made.scores(ASKED) == pytest.approx(expected, rel=1e-5)
    assert [hit.entry.id for hit in made.search(ASKED, top=3)] == ranking(expected)[:3]


@pytest.mark.parametrize("how", CHUNKS)
def test_chunks_hold_the_entry(base, how):
    for entry in base.values():
        made = chunks(entry, how)
        assert len(made) == {"whole": 1, "parts": 5}.get(how, len(made))
        assert all(text.startswith(entry.title) for text in made)
        assert all(line in "\n".join(made) for line in (entry.statement, *entry.criteria, *entry.next_steps))


def test_pooling_takes_the_best_chunks():
    assert pool(["a", "b", "a", "a"], [1.0, 5.0, 3.0, 2.0], 2) == {"a": 2.5, "b": 5.0}


def test_vectors_are_cosines(base):
    made = Vectors(base, how="parts", best=1)
    asked = embed([ASKED])[0]
    for name in ("left-bundle-branch-block", "hyperkalemia"):
        best = max(float(asked @ one) for one in embed(chunks(base[name], "parts")))
        assert made.scores(ASKED)[name] == pytest.approx(best, abs=1e-5)
    assert len(made.scores(ASKED)) == len(base)


def test_embeddings_are_kept_and_follow_the_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("ECGCHAT_CACHE", str(tmp_path))
    first = embedded(["a", "b"], ["atrial fibrillation", "a wide complex"])
    (kept,) = (tmp_path / "knowledge").iterdir()
    monkeypatch.setattr(retrieve, "embed", None)  # any new embedding would fail
    again = embedded(["a", "b"], ["atrial fibrillation", "a wide complex"])
    assert np.array_equal(first.vectors, again.vectors)
    monkeypatch.undo()
    monkeypatch.setenv("ECGCHAT_CACHE", str(tmp_path))
    changed = embedded(["a", "b"], ["atrial flutter", "a wide complex"])
    assert not np.allclose(first.vectors[0], changed.vectors[0])
    assert np.allclose(first.vectors[1], changed.vectors[1], atol=1e-3)
    assert len(list((tmp_path / "knowledge").iterdir())) == 2
    (kept / "embeddings.npy").write_bytes(b"damaged")
    mended = embedded(["a", "b"], ["atrial fibrillation", "a wide complex"])
    assert np.allclose(first.vectors, mended.vectors, atol=1e-3)
    assert embedded(["a", "b"], ["atrial fibrillation", "a wide complex"]).keys == ["a", "b"]
    assert not list((tmp_path / "knowledge").glob(".making-*"))


def test_another_process_that_was_first_wins(tmp_path):
    from ecgchat_lib.evaluate.index import EmbeddingIndex

    def index(value):
        made = EmbeddingIndex(2, kind="exact")
        made.add(["a"], np.array([[value, (1 - value**2) ** 0.5]], dtype=np.float32))
        return made

    folder = tmp_path / ("0" * 32)
    retrieve._keep(index(0.6), folder)
    retrieve._keep(index(0.8), folder)
    assert EmbeddingIndex.load(folder).vectors[0, 0] == pytest.approx(0.6)
    for number in range(retrieve.KEPT + 3):
        retrieve._keep(index(0.6), tmp_path / f"{number:032x}")
    assert len(list(tmp_path.iterdir())) == retrieve.KEPT


def test_fusion_of_ranks_by_hand():
    found = fuse([["a", "b"], ["b", "c"]], constant=60)
    assert found == pytest.approx({"a": 1 / 61, "b": 1 / 62 + 1 / 61, "c": 1 / 62})
    assert ranking(found) == ["b", "a", "c"]
    assert fuse([["a"], ["b"]], weights=[1.0, 2.0])["b"] == pytest.approx(2 / 61)


def test_fusion_of_scores_by_hand():
    found = blend([{"a": 4.0, "b": 2.0, "c": 3.0}, {"b": 0.5, "d": 0.1}], [1.0, 0.5])
    assert found == pytest.approx({"a": 1.0, "b": 0.5, "c": 0.5, "d": 0.0})
    assert blend([{}, {"a": 2.0}], [1.0, 1.0]) == {"a": 1.0}


@given(st.lists(st.permutations("abcdef"), min_size=1, max_size=4))
def test_what_all_put_first_stays_first(rankings):
    rankings = [["z", *one] for one in rankings]
    assert ranking(fuse(rankings))[0] == "z"


def test_hybrid_is_the_fusion(base):
    bm25, vectors = Bm25(base), Vectors(base, how="parts")
    both = [bm25.scores(ASKED), vectors.scores(ASKED)]
    expected = fuse([ranking(scores) for scores in both], constant=10)
    assert Hybrid(bm25, vectors, fusion="ranks", constant=10).scores(ASKED) == pytest.approx(expected)
    assert Hybrid(bm25, vectors, weight=0.5).scores(ASKED) == pytest.approx(blend(both, [1, 0.5]), abs=1e-6)
    with pytest.raises(ParameterError, match="ranks, scores"):
        Hybrid(bm25, vectors, fusion="luck")


def test_graph_by_hand(base):
    """The whole of GraphRAG in plain loops, question to ranking, equals the library."""
    vectors, terms = Vectors(base, how="parts"), knowledge_graph.load_terms()
    made = GraphRetriever(vectors, seeds=3, mention=0.3, damping=0.4, overview=0.5, opened=2, constant=10)
    question = "How does digoxin change the ST segment, and is that an emergency?"
    graph = make_graph(base, terms)
    asked, scores = embed([question])[0], vectors.scores(question)
    near = ranking(scores)[:3]
    named = [node for node in entities(question, base, terms) if node in graph]
    assert "drug:digoxin" in named
    start = {f"entry:{name}": 0.7 / rank / (1 + 1 / 2 + 1 / 3) for rank, name in enumerate(near, 1)}
    for node in named:
        start[node] = start.get(node, 0.0) + 0.3 / len(named)
    local = walk(graph, start, 0.4)
    groups = [summary(graph, set(c.members), base) for c in made.communities]
    likeness = embed([text for _, text in groups]) @ asked
    opened = np.argsort(-likeness)[:2]
    wide = {name: likeness[k] + scores[name] for k in opened for name in groups[k][0]}
    expected = fuse([ranking(local), ranking(wide)], constant=10, weights=[1.0, 0.5])
    found = made.search(question, top=len(base))
    assert [hit.entry.id for hit in found] == ranking(expected)[: len(found)]
    assert [hit.score for hit in found] == pytest.approx([expected[hit.entry.id] for hit in found])
    assert found[0].entry.id == "digitalis-effect"


@pytest.mark.parametrize("how", HOWS)
def test_every_way_finds_the_obvious(retrievers, how):
    hits = retrievers[how].search(ASKED, top=3)
    assert len(hits) == 3
    assert "left-bundle-branch-block" in [hit.entry.id for hit in hits]
    assert hits[0].score >= hits[1].score >= hits[2].score
    assert retrievers[how].search(ASKED, top=3) == hits


@pytest.mark.parametrize("how", HOWS)
def test_strange_questions(retrievers, how):
    for query in ("", "  \n", None, 5):
        with pytest.raises(ParameterError, match="expected a question"):
            retrievers[how].search(query)
    with pytest.raises(ParameterError, match="top"):
        retrievers[how].search(ASKED, top=0)
    for query in ("\x00\x1b[31m?", "🫀", "qzx", "a" * 100_000, "left " * 50_000, "!!!", "the of and"):
        assert len(retrievers[how].search(query, top=50)) <= len(NAMES)


def test_bm25_finds_nothing_without_a_common_word(retrievers):
    assert retrievers["bm25"].search("qzx the of") == []


def test_makers_refuse(base):
    with pytest.raises(ParameterError, match="bm25, vector"):
        make_retriever("magic", base)
    with pytest.raises(ParameterError, match="at least one entry"):
        make_retriever("bm25", {})
    with pytest.raises(ParameterError, match="whole, parts"):
        Bm25(base, how="words")


def test_the_built_in_base_answers_by_words():
    found = load_retriever("bm25").search("complete block of the left bundle branch", top=5)
    assert "left-bundle-branch-block" in [hit.entry.id for hit in found]
    assert load_retriever("bm25") is load_retriever("bm25")


def test_an_entry_that_is_named_comes_first():
    """It is asked for by each of its names."""
    made = load_retriever("hybrid")
    asks = {f"What are the criteria for {name}?": id_ for id_, entry in load_entries().items() for name in entry.names}
    vectors = dict(zip(asks, embed(list(asks)), strict=True))
    assert not [text for text, id_ in asks.items() if ranking(made.scores_of(text, vectors[text]))[0] != id_]


def test_naming_adds_to_the_fused_score(base):
    bm25, vectors = Bm25(base), Vectors(base, how="parts")
    plain, named = Hybrid(bm25, vectors), Hybrid(bm25, vectors, naming=0.5)
    question = "What causes hyperkalemia?"
    expected = plain.scores(question)
    expected["hyperkalemia"] += 0.5
    assert named.scores(question) == pytest.approx(expected, abs=1e-6)
    assert named.scores(ASKED) == pytest.approx(plain.scores(ASKED), abs=1e-6)  # it names nothing
    with pytest.raises(ParameterError, match="naming -1"):
        Hybrid(bm25, vectors, naming=-1.0)
    dropped = Hybrid(bm25, vectors, drop_intent=True, weight=0.0)
    assert dropped.scores(question) == pytest.approx(Hybrid(bm25, vectors, weight=0.0).scores("hyperkalemia"), abs=1e-6)


@pytest.fixture(scope="module")
def recorded():
    return json.loads((data_folder() / "results" / "knowledge.json").read_text(encoding="utf-8"))


def test_settings_are_those_that_were_chosen(recorded):
    chosen = recorded["chosen_on_the_tune_half"]
    assert {how: chosen[how]["settings"] for how in HOWS} == SETTINGS


def test_quotes_are_made_as_was_chosen(recorded):
    chosen = recorded["chosen_on_the_tune_half"]["quote"]["hybrid"]["settings"]
    assert Quoting(**chosen) == QUOTING


def test_the_recorded_comparison_is_of_this_base(recorded):
    assert recorded["stamp"]["knowledge_sha256"] == knowledge_hash()


def test_the_recorded_comparison_is_whole(recorded):
    for how in HOWS:
        for name in ("context_recall@3", "context_recall@5", "context_precision@3", "mrr@5"):
            found = recorded["retrieval"][how][name]
            assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
        assert recorded["quoted"][how]["faithful_to_what_was_shown"]["value"] == 1
    assert recorded["retrieval"]["hybrid"]["context_recall@5"]["value"] > 0.5
