"""One training step at the paper's size, 403 million parameters: the original's way beside the course's, on a CPU.

    [ECGCHAT_REAL_DATA=<folder>] python benchmarks/coca_step.py [--threads 2] [--steps 5] [--out FILE]

Each way runs in a process of its own, one after the other, with the same threads, batch and losses' weights, with
AdamW (the original's as its script makes it, ours fused, as the h100 profile has it):

- *original*: all three towers each step, everything trained, texts padded to 77 pieces (`PaperCoca`, open_clip's loss);
- *ours, numbers as words*: `train_coca` with `PAPER`: the report encoder is frozen and its states were kept, captions
  end with the batch's longest;
- *ours*: as the mini is built: numbers measured in the ECG go through a network of their own and not into the caption;
- *ours, patches dropped*: the same with the mini's patch dropout, which is there against overfitting and saves time;
- *ours, checkpointed*: *ours* with gradient checkpointing.

Signals and report encoder's states are random (neither changes the time); texts are PTB-XL's statements in English with
measured numbers at the end, so their lengths are real ones; without the data, texts of synthetic ECGs. What ours leaves
out of the step, to encode each distinct text once, is measured too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ecgchat_lib.coca.config import MINI, PAPER
from ecgchat_lib.coca.model import EcgCoca, count_parameters
from ecgchat_lib.coca.numbers import numbers_of
from ecgchat_lib.coca.pairs import Batch, PairedEcgs
from ecgchat_lib.coca.paper import PaperCoca, paper_pieces
from ecgchat_lib.coca.text import ReportEncoder, build_vocabulary
from ecgchat_lib.coca.train import TrainConfig, train_coca
from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.datasets.ptbxl import parse_scp_codes
from ecgchat_lib.datasets.reports import report_from_statements
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.ecg.measure import Measurements, wde_text
from ecgchat_lib.models import resolve
from ecgchat_lib.paths import data_folder, project_root

WAYS = ("original", "ours, numbers as words", "ours", "ours, patches dropped", "ours, checkpointed")
TEXTS, SEED = 64, 7
CONFIG = TrainConfig(learning_rate=1e-4, warmup=10_000, clip=0.5, save_every=10**9, evaluate_every=10**9, seed=SEED)


def read_texts() -> tuple[list[str], str]:
    """Return English reports with measured numbers at the end, and where they are from."""
    draw = random.Random(SEED)
    folder = os.environ.get("ECGCHAT_REAL_DATA")
    if folder:
        codes = pd.read_csv(Path(folder) / "ptbxl" / "ptbxl_database.csv.gz", usecols=["scp_codes"])["scp_codes"]
        said = [parse_scp_codes(codes[row]) for row in draw.sample(range(len(codes)), TEXTS)]
        reports = [report_from_statements(statements, seed=SEED + n) for n, statements in enumerate(said)]
    else:
        reports = [synthesize(SEED + number).report for number in range(TEXTS)]
    source = "statements of PTB-XL in English (Wagner et al. 2020, CC BY 4.0)" if folder else "synthetic ECGs' reports"
    return [report + ending(draw) for report in reports], source


def ending(draw: random.Random) -> str:
    """Return measured numbers as a report ends with them."""
    rr, qt = draw.gauss(850, 150), draw.gauss(390, 30)
    heights = {"p_mv": draw.gauss(0.1, 0.04), "r_mv": draw.gauss(0.9, 0.4), "t_mv": draw.gauss(0.25, 0.15)}
    qtc = qt / math.sqrt(rr / 1000)
    return wde_text(
        Measurements(rr_ms=rr, pr_ms=draw.gauss(160, 20), qrs_ms=draw.gauss(95, 12), qt_ms=qt, qtc_ms=qtc, **heights)
    )


class RandomStates(ReportEncoder):
    """A report encoder of the paper's width whose states are random; lengths, cache and all else are the library's."""

    width = PAPER.text_width

    def _encode(self, texts: list[str]) -> list[torch.Tensor]:
        _, tokenizer = self._load()
        return [torch.randn(sum(line.attention_mask), self.width).half() for line in tokenizer.encode_batch(texts)]


def plain_optimizer(model: torch.nn.Module) -> torch.optim.AdamW:
    """Return AdamW as the original's script makes it."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": CONFIG.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=CONFIG.learning_rate, betas=CONFIG.betas, eps=CONFIG.epsilon)


def run_original(texts: list[str], batch: int, steps: int) -> dict[str, Any]:
    """Train the original's model as its script does; return the times at which the steps after the first begin."""
    from open_clip.loss import CoCaLoss

    model, draw = PaperCoca().train(), torch.Generator().manual_seed(SEED)
    loss = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
    optimizer, pieces = plain_optimizer(model), paper_pieces(texts, folder=resolve("report-encoder"))
    times = [now()]
    for _ in range(steps + 1):
        rows = torch.randperm(len(texts), generator=draw)[:batch]
        optimizer.zero_grad()
        out = model(torch.randn(batch, 12, 5000, generator=draw), pieces[rows])
        sum(loss(out.ecg, out.text, out.logits, out.labels, out.scale)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CONFIG.clip)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        times.append(now())
    begun = time.perf_counter()
    with torch.inference_mode():
        model.eval().encode_text(pieces[:batch])
    return {
        "trained": count_parameters(model),
        "pieces": pieces.shape[1],
        "times": times[1:],
        "text_tower_seconds_per_text": round((time.perf_counter() - begun) / batch, 4),
    }


def run_ours(texts: list[str], batch: int, steps: int, way: str) -> dict[str, Any]:
    """Train the course's model with its own loop; return the times at which the steps after the first begin."""
    words, numbers = numbers_of(texts)
    as_words = way == "ours, numbers as words"
    config = PAPER if as_words else replace(PAPER, token_hidden=MINI.token_hidden, number_hidden=MINI.number_hidden)
    if way == "ours, patches dropped":
        config = replace(config, encoder=replace(config.encoder, patch_dropout=MINI.encoder.patch_dropout))
    known = build_vocabulary(texts)
    vocabulary = (*known, *(f"unused-{n}" for n in range(PAPER.decoder.vocabulary - len(known))))
    model = EcgCoca(config, vocabulary, RandomStates())
    windows = torch.randn(len(texts), 12, 5000, generator=torch.Generator().manual_seed(SEED)).half()
    said = [[text] for text in (texts if as_words else words)]
    pairs = PairedEcgs(windows, said, model, numbers=None if as_words else numbers)
    times, lengths = [], []

    def note(drawn: Batch, _: torch.Generator) -> Batch:
        times.append(now())
        lengths.append(drawn.pieces.shape[1])
        return drawn

    asked = replace(CONFIG, steps=steps + 2, batch=batch, fused=True, checkpoint_blocks=way == "ours, checkpointed")
    train_coca(model, pairs, asked, augment=note)
    return {
        "trained": count_parameters(model),
        "pieces": statistics.median(lengths),
        "times": times[1:],
    }


def now() -> tuple[float, float]:
    """Return the time by the clock, and the processor time that this process has had: what others take isn't in it."""
    return time.perf_counter(), time.process_time()


def rates(values: Iterable[float]) -> dict[str, float]:
    """Return the median, the slowest and the fastest of some rates."""
    found = sorted(values)
    middle = statistics.median(found)
    return {
        "median": round(middle, 3),
        "slowest": round(found[0], 3),
        "fastest": round(found[-1], 3),
        "steps": len(found),
    }


def run_way(way: str, batch: int, steps: int) -> dict[str, Any]:
    """Run one way in this process and summarize it."""
    torch.manual_seed(SEED)
    texts, _ = read_texts()
    found = run_original(texts, batch, steps) if way == "original" else run_ours(texts, batch, steps, way)
    steps_taken = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(found.pop("times"))]
    return found | {
        "samples_per_second": rates(batch / clock for clock, _ in steps_taken),
        "samples_per_cpu_second": rates(batch / cpu for _, cpu in steps_taken),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def run_apart(way: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run one way in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--way", way, "--batch", str(given.batch), "--steps", str(given.steps)]
    threads = {"OMP_NUM_THREADS": str(given.threads), "TQDM_DISABLE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env={**os.environ, **threads}, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    rate, cpu = result["samples_per_second"], result["samples_per_cpu_second"]["median"]
    print(
        f"{way:24} {rate['median']:6.3f} samples/s ({rate['slowest']:.3f} to {rate['fastest']:.3f}; {cpu:.3f} by CPU), "
        f"{result['peak_memory_gb']:.2f} GB, {result['trained']:,} trained, {result['pieces']:g} pieces",
        flush=True,
    )
    return result


def main() -> int:
    """Measure each way and write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each way, after one that doesn't count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "coca_step.json")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # in the child process: run this one
    given = parser.parse_args()
    if given.way:
        print(json.dumps(run_way(given.way, given.batch, given.steps)))
        return 0
    ways = {way: run_apart(way, given) for way in given.ways}
    first = ways.get("original")
    for result in ways.values():
        if first:
            for name, rate in (
                ("times_original", "samples_per_second"),
                ("times_original_by_cpu", "samples_per_cpu_second"),
            ):
                result[name] = round(result[rate]["median"] / first[rate]["median"], 2)
    load = round(os.getloadavg()[0], 1)
    report = {
        "what": f"one training step at the paper's size, batch {given.batch}, float32, {given.threads} thread(s)",
        "texts": read_texts()[1] + ", measured numbers appended",
        "ways": ways,
        "load_average_at_the_end": load,
        "device": device(),
        "versions": versions(),
        "commit": git_commit(project_root()),
        "library_sha256": library_hash(),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = given.out.with_name(f".{given.out.name}.part")
    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
