"""An index of embeddings: which of many recordings are nearest to a text or to another recording, by cosine.

Small sets are searched exactly. Beyond `EXACT_MOST`, faiss (MIT) proposes candidates out of a few of many lists, in
codes of 8 bits, and these are ranked by their exact cosines; without faiss the search stays exact and only takes
longer. It holds vectors and names, no signals. Taught in: 08 §9.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ecgchat_lib.errors import MissingPartError, ParameterError, RecordError

EXACT_MOST = 100_000  # a search through so many takes some hundredths of a second
CANDIDATES = 4  # times as many as asked for, ranked by their exact cosines
BLOCK = 65_536  # rows that are multiplied, checked or hashed at a time
NEAR = 1e-6  # cosines closer than this are ties, ranked by row: a matrix product is not exact to the last digit

VECTORS, KEYS, LISTS, MANIFEST = "embeddings.npy", "keys.json", "lists.npy", "index.json"


class Hits(NamedTuple):
    """What a search found, best first.

    Attributes:
        scores: (queries, top) cosines; NaN where there are fewer rows than asked for.
        rows: (queries, top) rows of the index; -1 there.
    """

    scores: np.ndarray
    rows: np.ndarray


class EmbeddingIndex:
    """Named vectors of length 1, and the search for the nearest.

    Args:
        dim: the vectors' width.
        kind: `exact`, `ivf` (inverted lists, needs faiss), or `auto`: exact up to `EXACT_MOST` rows or without faiss.
        probes: of the square root of n many lists, how many are looked into; more find more and take longer.
        seed: of the choice of lists.

    Raises:
        ParameterError: a width or number of probes below 1, or an unknown kind.
        MissingPartError: `ivf` without faiss.
    """

    def __init__(self, dim: int, *, kind: str = "auto", probes: int = 16, seed: int = 7) -> None:
        if dim < 1 or probes < 1:
            raise ParameterError(f"an index needs dim and probes of at least 1, but got {dim} and {probes}")
        if kind not in ("auto", "exact", "ivf"):
            raise ParameterError(f"index kind {kind!r}: expected auto, exact or ivf")
        if kind == "ivf":
            _faiss()
        self.dim, self.kind, self.probes, self.seed = dim, kind, probes, seed
        self.keys: list[str] = []
        self._blocks: list[np.ndarray] = []
        self._lists: np.ndarray | None = None
        self._ivf: Any = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def exact(self) -> bool:
        """Whether a search compares with every row."""
        if self.kind == "auto":
            return len(self) <= EXACT_MOST or find_spec("faiss") is None
        return self.kind == "exact"

    @property
    def vectors(self) -> np.ndarray:
        """(n, dim) float32 of length 1, in the order in which they were added."""
        if not self._blocks:
            return np.zeros((0, self.dim), dtype=np.float32)
        if len(self._blocks) > 1:
            self._blocks = [np.concatenate(self._blocks)]
        return self._blocks[0]

    def add(self, keys: Sequence[str], embeddings: np.ndarray) -> None:
        """Add named embeddings (n, dim), which are brought to length 1.

        Raises:
            ParameterError: numbers or widths don't fit, or a vector isn't finite or has length 0.
        """
        found = self._checked(embeddings, "embeddings")
        if len(keys) != len(found):
            raise ParameterError(f"{len(keys)} keys for {len(found)} embeddings; each needs one")
        self.keys += [str(key) for key in keys]
        self._blocks.append(found)
        self._ivf = self._lists = None  # the lists are made anew at the next search

    def search(self, queries: np.ndarray, top: int = 10) -> Hits:
        """Return the `top` nearest rows of each query.

        Args:
            queries: (q, dim), or (dim,) for one; brought to length 1.
            top: how many, at least 1.

        Raises:
            ParameterError: as `add`, or `top` below 1.
        """
        if top < 1:
            raise ParameterError(f"top: {top}, expected at least 1")
        queries = self._checked(np.atleast_2d(queries), "queries")
        scores = np.full((len(queries), top), np.nan, dtype=np.float32)
        rows = np.full((len(queries), top), -1, dtype=np.int64)
        vectors = self.vectors
        proposed = None if self.exact or not len(self) else self._propose(queries, top)
        for first in range(0, len(queries), 64):
            part = queries[first : first + 64]
            cosines = part @ vectors.T if proposed is None else None
            for place, query in enumerate(part, first):
                near = None if proposed is None else proposed[place][proposed[place] >= 0]
                values = cosines[place - first] if cosines is not None else vectors[near] @ query
                best = _best(values, top, near)
                rows[place, : len(best)] = best if near is None else near[best]
                scores[place, : len(best)] = values[best]
        return Hits(scores, rows)

    def nearest(self, query: np.ndarray, top: int = 10) -> list[tuple[str, float]]:
        """Return (key, cosine) of the rows nearest to one query (dim,), best first."""
        hits = self.search(query, top)
        return [
            (self.keys[row], float(score)) for row, score in zip(hits.rows[0], hits.scores[0], strict=True) if row >= 0
        ]

    def build(self) -> None:
        """Make the lists now, if the search will need them, so that the first search doesn't wait for them."""
        if not self.exact and len(self) and self._ivf is None:
            self._ivf = self._make_lists()

    def _checked(self, vectors: np.ndarray, name: str) -> np.ndarray:
        made = np.array(vectors, dtype=np.float32, ndmin=2)
        if made.ndim != 2 or made.shape[1] != self.dim:
            raise ParameterError(f"{name} {made.shape}: expected (n, {self.dim})")
        for first in range(0, len(made), BLOCK):
            lengths = np.linalg.norm(made[first : first + BLOCK], axis=1, keepdims=True)
            if not (np.isfinite(lengths) & (lengths > 0)).all():
                raise ParameterError(f"{name}: a vector isn't finite or has length 0, so it has no direction")
            made[first : first + BLOCK] /= lengths
        return made

    def _propose(self, queries: np.ndarray, top: int) -> np.ndarray:
        self.build()
        self._ivf.nprobe = self.probes
        return np.asarray(self._ivf.search(queries, min(len(self), CANDIDATES * top))[1])

    def _make_lists(self) -> Any:
        faiss, vectors = _faiss(), self.vectors
        n_lists = len(self._lists) if self._lists is not None else max(1, round(math.sqrt(len(vectors))))
        flat = faiss.IndexFlatIP(self.dim)
        code = faiss.ScalarQuantizer.QT_8bit
        ivf = faiss.IndexIVFScalarQuantizer(flat, self.dim, n_lists, code, faiss.METRIC_INNER_PRODUCT)
        sample = vectors[np.random.default_rng(self.seed).permutation(len(vectors))[: 64 * n_lists]]
        if self._lists is None:
            clusters = faiss.Kmeans(
                self.dim, n_lists, niter=8, spherical=True, seed=self.seed, min_points_per_centroid=1
            )
            clusters.train(sample)
            self._lists = np.array(clusters.centroids, dtype=np.float32)
        flat.add(self._lists)
        ivf.train(sample)  # the lists are there, so only the code's ranges are learned
        for first in range(0, len(vectors), BLOCK):
            ivf.add(np.ascontiguousarray(vectors[first : first + BLOCK]))
        return ivf

    def save(self, folder: Path) -> Path:
        """Write vectors, keys and the lists' centers into a folder; the manifest with their hashes comes last.

        No file holds code: the lists are filled anew when they are loaded.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.build()
        _write(folder / VECTORS, lambda file: np.save(file, self.vectors))
        _write(folder / KEYS, lambda file: file.write(json.dumps(self.keys).encode()))
        names = [VECTORS, KEYS]
        if self._lists is not None:
            lists = self._lists
            _write(folder / LISTS, lambda file: np.save(file, lists))
            names.append(LISTS)
        facts = {"format": 1, "dim": self.dim, "rows": len(self), "kind": self.kind, "probes": self.probes}
        facts |= {"seed": self.seed, "sha256": {name: _sha256(folder / name) for name in names}}
        _write(folder / MANIFEST, lambda file: file.write(json.dumps(facts, indent=1).encode()))
        return folder

    @classmethod
    def load(cls, folder: Path) -> EmbeddingIndex:
        """Read what `save` wrote; the vectors stay in their file until they are read.

        Raises:
            RecordError: a file is missing, damaged, or doesn't fit the others.
            MissingPartError: the index is of kind `ivf` and faiss isn't installed.
        """
        folder = Path(folder)
        facts = _manifest(folder)
        try:
            index = cls(facts["dim"], kind=facts["kind"], probes=facts["probes"], seed=facts["seed"])
            vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
            keys = json.loads((folder / KEYS).read_bytes())
            lists = np.load(folder / LISTS, allow_pickle=False) if LISTS in facts["sha256"] else None
        except (OSError, ValueError, EOFError, RecursionError, TypeError, ParameterError) as error:
            raise RecordError(folder, f"not an index: {error}", REMEDY) from None
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise RecordError(folder / KEYS, "not a list of names", REMEDY)
        _check_vectors(folder / VECTORS, vectors, (len(keys), index.dim))
        if lists is not None:
            _check_vectors(folder / LISTS, lists, (len(lists) if lists.ndim else 0, index.dim))
        index.keys, index._blocks, index._lists = keys, [vectors], lists
        return index


REMEDY = "Make the index again."


def _best(values: np.ndarray, top: int, rows: np.ndarray | None) -> np.ndarray:
    """Return the places of the `top` greatest values, greatest first; ties by row, so that any machine agrees."""
    top = min(top, len(values))
    if not top:
        return np.zeros(0, dtype=np.int64)
    last = np.partition(values, len(values) - top)[len(values) - top]
    among = np.flatnonzero(values >= last - NEAR)
    rounded = np.round(values[among].astype(np.float64) / NEAR)
    order = np.lexsort((among if rows is None else rows[among], -rounded))
    return among[order[:top]]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise MissingPartError(
            "faiss", "not installed, and an index of kind ivf needs it", "pip install 'ecgchat[scale]', or kind='exact'"
        ) from None
    return faiss


def _write(path: Path, write: Any) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / MANIFEST).read_bytes())
        wanted = {"format": int, "dim": int, "rows": int, "kind": str, "probes": int, "seed": int, "sha256": dict}
        wrong = [name for name, kind in wanted.items() if not isinstance(facts[name], kind)]
        if wrong or facts["format"] != 1:
            raise RecordError(folder / MANIFEST, f"unexpected {', '.join(wrong) or 'format'}", REMEDY)
        hashes = {name: facts["sha256"].get(name) for name in (VECTORS, KEYS, LISTS) if name in facts["sha256"]}
        if not {VECTORS, KEYS} <= set(hashes):
            raise RecordError(folder / MANIFEST, "names no vectors or no keys", REMEDY)
        for name, expected in hashes.items():
            if _sha256(folder / name) != expected:
                raise RecordError(folder / name, "is not the file that the manifest names (sha256 differs)", REMEDY)
    except OSError as error:
        raise RecordError(folder, f"not an index: {error.strerror or error}", REMEDY) from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise RecordError(folder / MANIFEST, f"not an index's manifest: {error!r}", REMEDY) from None
    return dict(facts)


def _check_vectors(path: Path, vectors: np.ndarray, shape: tuple[int, int]) -> None:
    if vectors.dtype != np.float32 or vectors.shape != shape:
        raise RecordError(path, f"holds {vectors.dtype} {vectors.shape}, expected float32 {shape}", REMEDY)
    for first in range(0, len(vectors), BLOCK):
        lengths = np.linalg.norm(vectors[first : first + BLOCK], axis=1)
        if not (np.abs(lengths - 1) < 1e-3).all():
            raise RecordError(path, "holds vectors that don't have length 1", REMEDY)
