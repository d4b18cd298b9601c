"""Search a million embeddings: exactly, by the index's lists at several settings, and faiss's HNSW beside it on fewer.

    python benchmarks/nearest.py [--rows 1000000] [--out data/results/nearest.json]

A million recordings aren't at hand: synthetic ECGs are embedded by the shipped mini model, and each embedding is copied
with noise until there are enough. Queries are noisy copies of ECG embeddings, and texts (every prompt of the course).
Everything runs on one thread, and the seconds are that thread's own, so that a busy machine changes little; each
figure is the median of several runs that are made alternately.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from ecgchat_lib.coca.checkpoint import load_mini
from ecgchat_lib.coca.embed import embed_texts, embed_windows
from ecgchat_lib.coca.preprocess import front_end
from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.datasets.labels import LABEL_SETS
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.evaluate.index import EmbeddingIndex
from ecgchat_lib.evaluate.prompts import class_prompts
from ecgchat_lib.paths import data_folder, project_root

SEED, TOP, REPEATS, QUERIES = 7, 10, 5, 100
PROBES = (4, 16, 64)
NOISE = 0.5  # length of the noise on a vector of length 1: copies are at a cosine of 0.89 to their source
HNSW_ROWS, HNSW_LINKS = 30_000, 16


def sources(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings of n synthetic ECGs and of the course's prompts."""
    mini = load_mini()
    windows = [
        front_end((ecg := synthesize(900_000 + k)).signal[None], mini.config.encoder, fs=ecg.fs) for k in range(n)
    ]
    texts = list(dict.fromkeys(w for name in LABEL_SETS for words in class_prompts(name).values() for w in words))
    return embed_windows(torch.cat(windows), mini).numpy(), embed_texts(texts, mini).numpy()


def copies(vectors: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """Return n noisy copies of rows drawn at random, float32."""
    made = vectors[generator.integers(0, len(vectors), n)]
    for first in range(0, n, 65_536):
        part = made[first : first + 65_536]
        part += generator.standard_normal(part.shape, dtype=np.float32) * (NOISE / np.sqrt(part.shape[1]))
    return made


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long a call took in seconds of this one thread, and what it returned."""
    begun = time.process_time()
    found = run()
    return time.process_time() - begun, found


def resident_mb() -> int:
    """Return the process's peak resident memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if platform.system() == "Darwin" else 2**10))


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the share of the exact neighbors that were found."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, exact, strict=True)]))


def spread(values: list[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {
        "median": float(f"{middle:.4g}"),
        "lower_quartile": float(f"{low:.4g}"),
        "upper_quartile": float(f"{high:.4g}"),
    }


def search_all(index: EmbeddingIndex, queries: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return queries per second and recall, exactly and by lists, alternately; queries come one by one, as users do."""
    kinds = {"exact": 0, **{f"lists, {probes} probes": probes for probes in PROBES}}
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    found: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in kinds}
    for repeat in range(REPEATS):
        for kind, probes in kinds.items():
            index.kind = "exact" if kind == "exact" else "ivf"
            index.probes = probes or index.probes
            for name, asked in queries.items():
                part = asked[:10] if repeat else asked  # the first round finds for recall; the others time
                took, rows = seconds(lambda part=part: [index.search(one, TOP).rows[0] for one in part])
                if repeat:
                    rates[kind].append(len(part) / took)
                else:
                    found[kind][name] = np.stack(rows)
    return {
        kind: {
            "queries_per_second": spread(rates[kind]),
            "recall_at_10": {name: round(recall(rows, found["exact"][name]), 4) for name, rows in found[kind].items()},
        }
        for kind in kinds
    }


def hnsw(vectors: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
    """Build and search faiss's HNSW beside the lists, on fewer rows: it would take long on all."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    lists, graph = EmbeddingIndex(vectors.shape[1], kind="ivf", seed=SEED), None

    def build_graph() -> Any:
        made = faiss.IndexHNSWFlat(unit.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        made.hnsw.efConstruction, made.hnsw.efSearch = 80, 64
        made.add(unit)
        return made

    lists.add([str(k) for k in range(len(unit))], unit)
    built, graph = seconds(build_graph)
    listed, _ = seconds(lists.build)
    exact = np.argsort(-(asked @ unit.T), axis=1)[:, :TOP]
    timed: dict[str, list[float]] = {"hnsw": [], "lists, 16 probes": []}
    for _ in range(REPEATS):
        for name, ask in {
            "hnsw": lambda q: graph.search(q, TOP)[1],
            "lists, 16 probes": lambda q: lists.search(q).rows,
        }.items():
            took, rows = seconds(lambda ask=ask: np.concatenate([ask(one[None]) for one in asked]))
            timed[name].append(len(asked) / took)
            exactly = recall(rows, exact)
            timed[name + " recall"] = [exactly]
    return {
        "rows": len(unit),
        "hnsw": {
            "build_seconds": round(built, 1),
            "queries_per_second": spread(timed["hnsw"]),
            "recall_at_10": round(timed["hnsw recall"][0], 4),
        },
        "lists, 16 probes": {
            "build_seconds": round(listed, 1),
            "queries_per_second": spread(timed["lists, 16 probes"]),
            "recall_at_10": round(timed["lists, 16 probes recall"][0], 4),
        },
    }


def main() -> int:
    """Run everything and write the result; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--sources", type=int, default=1000, help="synthetic ECGs that are embedded")
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "nearest.json")
    given = parser.parse_args()
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    load = [round(os.getloadavg()[0], 1)]
    generator = np.random.default_rng(SEED)
    embedded, texts = sources(given.sources)
    vectors = copies(embedded, given.rows, generator)
    queries = {"ecg": copies(embedded, QUERIES, generator), "text": texts[generator.permutation(len(texts))[:QUERIES]]}
    index, before = EmbeddingIndex(vectors.shape[1], kind="ivf", seed=SEED), resident_mb()
    small = vectors[:HNSW_ROWS].copy()
    begun = time.process_time()
    index.add([str(k) for k in range(given.rows)], vectors)
    added = time.process_time() - begun
    del vectors
    built, _ = seconds(index.build)
    content: dict[str, Any] = {
        "what": f"{given.rows:,} embeddings of width {index.dim}; the {TOP} nearest, query by query, CPU seconds",
        "data": f"noisy copies of the mini model's embeddings of {given.sources} synthetic ECGs; texts: the prompts",
        "rows": given.rows,
        "add_seconds": round(added, 1),
        "build_seconds": round(built, 1),
        "vectors_mb": round(index.vectors.nbytes / 2**20),
        "codes_mb": round(given.rows * (index.dim + 8) / 2**20),
        "peak_resident_mb": {"before_the_index": before, "with_it": resident_mb()},
        "search": search_all(index, queries),
        "beside_hnsw": hnsw(small, queries["ecg"]),
    }
    with tempfile.TemporaryDirectory() as folder:
        index.kind = "ivf"
        saved, _ = seconds(lambda: index.save(Path(folder)))
        content["saved_mb"] = round(sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20)
        content["save_seconds"] = round(saved, 1)
        content["load_seconds"] = round(seconds(lambda: EmbeddingIndex.load(Path(folder)))[0], 1)
    load.append(round(os.getloadavg()[0], 1))
    content["stamp"] = {
        "commit": git_commit(project_root()),
        "library_sha256": library_hash(),
        "device": device(),
        "load_average_before_and_after": load,
        "seed": SEED,
        "versions": {"faiss": faiss.__version__} | {k: v for k, v in versions().items() if k in ("python", "numpy")},
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    partial = given.out.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, given.out)
    print(json.dumps({name: value for name, value in content.items() if name != "stamp"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
