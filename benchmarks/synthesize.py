"""Measure how many synthetic ECGs of 12 x 5000 samples are made per second with one and two processes.

    python benchmarks/synthesize.py [--records 400] [--rounds 5] [--out data/results/synthesize.json]

A round makes every record once; the pool is started before the clock. The arrays come back to the main process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.datasets.synthetic import VERSION, synthesize
from ecgchat_lib.paths import data_folder, project_root


def rates(processes: int, records: int, rounds: int) -> list[float]:
    """Return records per second of each round."""
    found = []
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(synthesize, range(8 * processes)))  # imports, first draws
        for number in range(rounds):
            first = 1000 + number * records
            begun = time.perf_counter()
            made = sum(1 for _ in pool.map(synthesize, range(first, first + records), chunksize=16))
            found.append(made / (time.perf_counter() - begun))
    return found


def main() -> None:
    """Run it and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "synthesize.json")
    given = parser.parse_args()
    load = os.getloadavg()[0]
    content = {
        "what": "synthetic ECGs of 12 x 5000 samples made per second, findings drawn, with marks, truth and report",
        "generator_version": VERSION,
        "records": given.records,
        "rounds": given.rounds,
        "per_second": {
            str(processes): {
                "median": round(statistics.median(found), 1),
                "lowest": round(min(found), 1),
                "highest": round(max(found), 1),
            }
            for processes in (1, 2)
            for found in [rates(processes, given.records, given.rounds)]
        },
        "load_before": round(load, 2),
        "stamp": {
            "commit": git_commit(project_root()),
            "library_sha256": library_hash(),
            "device": device(),
            "versions": {k: v for k, v in versions().items() if k in ("python", "numpy")},
        },
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = given.out.with_name(f".{given.out.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, given.out)
    print(json.dumps(content["per_second"]), "load", content["load_before"])


if __name__ == "__main__":
    main()
