"""Maps of embeddings: two dimensions to look at, and numbers that say whether the picture is true.

A map by t-SNE keeps neighbors and invents distances; a map by principal components keeps the largest spread and hides
the rest. So the share of neighbors of the same class is counted in the space itself and on the map. Taught in: 08 §8.
Source: van der Maaten and Hinton 2008, Visualizing Data using t-SNE.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ecgchat_lib.errors import ParameterError


def principal_map(embeddings: np.ndarray) -> np.ndarray:
    """Return the first two principal components (n, 2); of each, the largest loading is positive.

    Raises:
        ParameterError: fewer than three rows, or a value that isn't finite.
    """
    from sklearn.decomposition import PCA

    return np.asarray(PCA(2, svd_solver="full").fit_transform(_checked(embeddings)))


def neighbor_map(embeddings: np.ndarray, *, perplexity: float = 30.0, seed: int = 7) -> np.ndarray:
    """Return a t-SNE map (n, 2) by cosine, started from the principal components.

    Args:
        embeddings: (n, dim).
        perplexity: about how many neighbors count; lowered to a third of n where n is small.
        seed: of the optimization.

    Raises:
        ParameterError: as `principal_map`.
    """
    from sklearn.manifold import TSNE

    found = _checked(embeddings)
    lowered = min(perplexity, (len(found) - 1) / 3)
    unit = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)  # then distance is by cosine
    return np.asarray(TSNE(2, perplexity=lowered, init="pca", random_state=seed, n_jobs=1).fit_transform(unit))


def neighbor_purity(embeddings: np.ndarray, classes: Sequence[object], *, k: int = 10) -> tuple[float, float]:
    """Return the share of the k nearest neighbors (by Euclid) that have the row's class, and what chance gives.

    Every class counts alike: the share is the mean over the classes, so chance is one over their number, about.

    Args:
        embeddings: (n, dim): embeddings of length 1, or a map (n, 2).
        classes: n of them, each with two rows at least.
        k: neighbors; fewer where there are fewer rows.

    Raises:
        ParameterError: numbers differ, k below 1, a class of one row, or as `principal_map`.
    """
    from sklearn.neighbors import NearestNeighbors

    found = _checked(embeddings)
    order = {one: number for number, one in enumerate(dict.fromkeys(classes))}
    group = np.array([order[one] for one in classes])
    if len(group) != len(found) or k < 1:
        raise ParameterError(f"{len(group)} classes for {len(found)} embeddings, k = {k}")
    sizes = np.bincount(group)
    if sizes.min() < 2:
        raise ParameterError("a class has one record, so no neighbor can share it; leave it out")
    k = min(k, len(found) - 1)
    near = NearestNeighbors(n_neighbors=k).fit(found).kneighbors(return_distance=False)  # without the row itself
    same = (group[near] == group[:, None]).mean(axis=1)
    by_class = np.bincount(group, same) / sizes
    return float(by_class.mean()), float(((sizes - 1) / (len(found) - 1)).mean())


def silhouette(embeddings: np.ndarray, classes: Sequence[object]) -> float:
    """Return scikit-learn's silhouette by cosine, from -1 to 1: 0 where the classes lie on top of each other.

    Raises:
        ParameterError: numbers differ, fewer than two classes, or as `principal_map`.
    """
    from sklearn.metrics import silhouette_score

    found = _checked(embeddings)
    order = {one: number for number, one in enumerate(dict.fromkeys(classes))}
    if len(classes) != len(found) or not 2 <= len(order) < len(found):
        raise ParameterError(f"{len(classes)} labels of {len(order)} classes for {len(found)} embeddings")
    return float(silhouette_score(found, [order[one] for one in classes], metric="cosine"))


def _checked(embeddings: np.ndarray) -> np.ndarray:
    found = np.asarray(embeddings, dtype=np.float64)
    if found.ndim != 2 or len(found) < 3 or not np.isfinite(found).all():
        raise ParameterError(f"a map needs at least three finite rows, but got {found.shape}")
    return found
