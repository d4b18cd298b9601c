"""The embedding index: exact search equals faiss's, lists find nearly the same, and damaged files are refused."""

from __future__ import annotations

import builtins
import json

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgchat_lib.errors import MissingPartError, ParameterError, RecordError
from ecgchat_lib.evaluate import index as module
from ecgchat_lib.evaluate.index import KEYS, LISTS, MANIFEST, VECTORS, EmbeddingIndex


def clustered(n, dim=32, centers=40, seed=0):
    generator = np.random.default_rng(seed)
    middle = generator.normal(size=(centers, dim))
    return (middle[generator.integers(centers, size=n)] + 0.4 * generator.normal(size=(n, dim))).astype(np.float32)


def filled(n=3000, kind="exact", **settings):
    vectors = clustered(n)
    index = EmbeddingIndex(vectors.shape[1], kind=kind, **settings)
    index.add([f"record {row}" for row in range(n)], vectors)
    return index, vectors


def recall(found, exact):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.rows, exact.rows, strict=True)])


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 200), top=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_exact_search_equals_faiss_flat(n, top, seed):
    generator = np.random.default_rng(seed)
    vectors, queries = generator.normal(size=(n, 8)).astype("f4"), generator.normal(size=(5, 8)).astype("f4")
    index = EmbeddingIndex(8)
    index.add([str(k) for k in range(n)], vectors)
    hits = index.search(queries, top)
    flat = faiss.IndexFlatIP(8)
    flat.add(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    scores, rows = flat.search(queries / np.linalg.norm(queries, axis=1, keepdims=True), top)
    known = rows >= 0
    np.testing.assert_array_equal(hits.rows >= 0, known)
    np.testing.assert_allclose(hits.scores[known], scores[known], atol=1e-5)
    assert np.isnan(hits.scores[~known]).all()


def test_ties_go_by_row():
    index = EmbeddingIndex(2)
    index.add(list("abcd"), np.array([[1, 0], [0, 1], [2, 0], [3, 0]]))
    assert index.search(np.array([1.0, 0]), 2).rows.tolist() == [[0, 2]]
    assert index.nearest(np.array([0, 5.0]), 1) == [("b", 1.0)]
    assert [key for key, _ in index.nearest(np.array([0, 5.0]), 9)] == ["b", "a", "c", "d"]


def test_lists_find_nearly_what_the_exact_search_finds():
    index, vectors = filled(4000, "ivf", probes=8)
    assert not index.exact
    queries = vectors[::40] + 0.1
    found = index.search(queries, 10)
    exact = filled(4000)[0].search(queries, 10)
    assert recall(found, exact) > 0.95
    same = found.rows == exact.rows
    np.testing.assert_allclose(found.scores[same], exact.scores[same], atol=1e-6)  # codes propose, cosines rank
    assert (np.diff(found.scores, axis=1) <= 2e-6).all()
    index.add(["new"], queries[:1])
    assert index.search(queries[0], 1).rows[0, 0] == 4000  # what is added later is found


def test_more_probes_find_more():
    few, vectors = filled(4000, "ivf", probes=1)
    many = filled(4000, "ivf", probes=63)[0]
    exact = filled(4000)[0].search(vectors[:200] + 0.3, 10)
    assert recall(few.search(vectors[:200] + 0.3, 10), exact) <= recall(many.search(vectors[:200] + 0.3, 10), exact)
    assert recall(many.search(vectors[:200] + 0.3, 10), exact) > 0.99


def test_auto_is_exact_until_it_is_large_and_without_faiss(monkeypatch):
    index, vectors = filled(500, "auto")
    assert index.exact
    exact = index.search(vectors[:5])
    monkeypatch.setattr(module, "EXACT_MOST", 100)
    assert not index.exact
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert index.exact
    np.testing.assert_array_equal(index.search(vectors[:5]).rows, exact.rows)


def test_without_faiss_lists_say_what_to_install(monkeypatch):
    real = builtins.__import__

    def no_faiss(name, *rest):
        if name == "faiss":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_faiss)
    with pytest.raises(MissingPartError, match=r"ecgchat\[scale\]"):
        EmbeddingIndex(4, kind="ivf")


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_saved_and_loaded_index_finds_the_same(tmp_path, kind):
    index, vectors = filled(2000, kind)
    loaded = EmbeddingIndex.load(index.save(tmp_path / "index"))
    assert loaded.keys == index.keys
    for got, expected in zip(loaded.search(vectors[:20]), index.search(vectors[:20]), strict=True):
        np.testing.assert_array_equal(got, expected)
    loaded.add(["more"], vectors[:1])
    assert len(loaded) == 2001
    loaded.save(tmp_path / "index")  # over the file that it reads from
    assert len(EmbeddingIndex.load(tmp_path / "index")) == 2001


def test_an_empty_index_finds_nothing(tmp_path):
    index = EmbeddingIndex(4)
    assert index.nearest(np.ones(4)) == []
    assert EmbeddingIndex.load(index.save(tmp_path)).nearest(np.ones(4)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / VECTORS).unlink(), "not an index"),
        (lambda f: (f / KEYS).write_text("[]"), "sha256 differs"),
        (lambda f: (f / MANIFEST).write_text("{"), "manifest"),
        (lambda f: (f / MANIFEST).write_text("[]"), "manifest"),
        (lambda f: (f / MANIFEST).unlink(), "not an index"),
        (lambda f: edit(f, dim=5), "expected float32"),
        (lambda f: edit(f, dim=-1), "at least 1"),
        (lambda f: edit(f, kind="exec"), "expected auto, exact or ivf"),
        (lambda f: edit(f, format=2), "format"),
        (lambda f: replaced(f, KEYS, b"[1, 2, 3, 4]"), "not a list of names"),
        (lambda f: replaced(f, KEYS, b'["a"]'), "expected float32"),
        (lambda f: replaced(f, VECTORS, b"no array"), "not an index"),
        (lambda f: replaced_array(f, np.ones((4, 4), dtype="f4")), "length 1"),
        (lambda f: replaced_array(f, np.full((4, 4), np.nan, dtype="f4")), "length 1"),
        (lambda f: replaced_array(f, np.array([{}], dtype=object)), "not an index"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, change, message):
    index = EmbeddingIndex(4)
    index.add(list("abcd"), np.eye(4))
    index.save(tmp_path)
    change(tmp_path)
    with pytest.raises(RecordError, match=message):
        EmbeddingIndex.load(tmp_path)


def edit(folder, **facts):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **facts}))


def replaced(folder, name, content):
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    edit(folder, sha256={**manifest["sha256"], name: module._sha256(folder / name)})


def replaced_array(folder, array):
    np.save(folder / VECTORS, array, allow_pickle=True)
    replaced(folder, VECTORS, (folder / VECTORS).read_bytes())


@pytest.mark.parametrize(
    ("keys", "vectors", "message"),
    [
        (["a"], np.ones((2, 4)), "1 keys for 2"),
        (["a"], np.ones((1, 3)), r"expected \(n, 4\)"),
        (["a"], np.zeros((1, 4)), "length 0"),
        (["a"], np.full((1, 4), np.inf), "finite"),
    ],
)
def test_what_cannot_be_added(keys, vectors, message):
    with pytest.raises(ParameterError, match=message):
        EmbeddingIndex(4).add(keys, vectors)


def test_what_cannot_be_asked():
    with pytest.raises(ParameterError, match="top"):
        EmbeddingIndex(4).search(np.ones(4), 0)
    with pytest.raises(ParameterError, match="kind"):
        EmbeddingIndex(4, kind="hnsw")
    with pytest.raises(ParameterError, match="at least 1"):
        EmbeddingIndex(0)
    assert LISTS == "lists.npy"
