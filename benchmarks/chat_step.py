"""Trained answer tokens per second of stage 2: our loop beside a naive one, on the same questions, in turn.

    python benchmarks/chat_step.py [--records 2] [--questions 3] [--repeats 3] [--threads 1] [--out FILE]

Both train SmolLM2-135M with LoRA on every linear layer and the projector, with AdamW, on the same questions about
synthetic ECGs, and take the same number of optimizer steps. A repeat is one pass over all questions.

- *naive*: the encoder runs in each step; a sequence per question, in random batches padded to their longest; logits for
  every place; float32 everywhere;
- *ours*: `train_chat`: tokens from `TokenStore`, questions about one ECG in one tree, the head on answers alone, the
  number type by the device (`compute_dtype`; float32 on a CPU, so there it gives nothing).

Before timing, both losses over all answer tokens are compared: the work is the same. Where other programs run beside,
the rates by processor time tell more than those by the clock; both are written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ecgchat_lib.chat.batches import Example, answer_tokens
from ecgchat_lib.chat.language_model import compute_dtype, load_language_model
from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.template import IGNORED, Encoded, encode, opening, pack
from ecgchat_lib.chat.tokens import cached_tokens
from ecgchat_lib.chat.train import TrainConfig, add_lora, train_chat, trained_parameters
from ecgchat_lib.chat.train_run import fresh_chat
from ecgchat_lib.coca.checkpoint import load_mini
from ecgchat_lib.coca.embed import encoder_tokens
from ecgchat_lib.coca.preprocess import recording_windows
from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.ecg.measure import measure
from ecgchat_lib.ecg.recording import Recording, write_recording
from ecgchat_lib.instruct.build import questions_about
from ecgchat_lib.instruct.wording import measured_line
from ecgchat_lib.paths import data_folder, project_root

SEED = 7
Rows = list[tuple[Encoded, int]]


def make_questions(chat: EcgChat, records: int, questions: int, folder: Path) -> tuple[list[Rows], list[Recording]]:
    """Return each record's encoded questions, and the recordings, which are written to `folder`."""
    rows: list[Rows] = []
    recordings = []
    for number in range(records):
        made = synthesize(SEED + number)
        recording = Recording(f"synthetic-{number}", made.signal, made.fs)
        write_recording(recording, folder)
        measured = measure(recording)
        start = opening([measured_line(measured)])
        turns = questions_about(recording.name, made.statements, measured, {}, seed=SEED)[:questions]
        coded = [encode([(start + t.question, t.answer)], chat.tokenizer, chat.template) for t in turns]
        rows.append([(item, number) for item in coded])
        recordings.append(recording)
    return rows, recordings


def full_logits_loss(chat: EcgChat, items: Sequence[Encoded], ecg: torch.Tensor) -> torch.Tensor:
    """Return the mean loss from logits of every place, as transformers' own loss computes it."""
    batch = chat.prepare(items, ecg)
    out = chat.language_model(
        inputs_embeds=batch.embeddings, attention_mask=batch.mask.long(), position_ids=batch.positions, use_cache=False
    )
    logits = out.logits.float()[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED)


def naive_pass(chat: EcgChat, rows: list[Rows], windows: torch.Tensor, steps: int) -> None:
    """Train once on every question, in `steps` random batches."""
    flat = [row for record in rows for row in record]
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(SEED)).tolist()
    optimizer = torch.optim.AdamW(trained_parameters(chat).values(), lr=1e-4)
    size = len(flat) // steps
    chat.train()
    for start in range(0, size * steps, size):
        items = [flat[k] for k in order[start : start + size]]
        tokens = encoder_tokens(windows[[record for _, record in items]], load_mini())
        full_logits_loss(chat, [item for item, _ in items], tokens).backward()
        nn.utils.clip_grad_norm_(list(trained_parameters(chat).values()), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    chat.eval()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds by the clock and of this process' processor time."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - clock, time.process_time() - cpu


def summarize(tokens: int, seconds: Sequence[float]) -> dict[str, float]:
    """Return tokens per second: median, slowest and fastest."""
    rates = sorted(tokens / value for value in seconds)
    return {"median": round(statistics.median(rates), 3), "slowest": round(rates[0], 3), "fastest": round(rates[-1], 3)}


def build(place: str, dtype: torch.dtype) -> EcgChat:
    """Return SmolLM2 with a fresh projector and adapters."""
    lm = load_language_model(quantized=False, device=place, dtype=dtype)
    chat = fresh_chat(lm, load_mini().config.encoder.width, SEED)
    add_lora(chat, rank=8, alpha=16, dropout=0.0, seed=SEED)
    return chat.eval()


def measure_both(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time both ways in turn and return what the file says."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    ours = build(place, compute_dtype(place))
    naive = ours if place == "cpu" else build(place, torch.float32)
    rows, recordings = make_questions(ours, given.records, given.questions, folder)
    paths = [folder / recording.name for recording in recordings]
    store = cached_tokens(paths, load_mini(), "0" * 64, folder / "tokens")
    windows = recording_windows(recordings, load_mini().config.encoder)
    examples = [Example(pack([item for item, _ in record]), (number,)) for number, record in enumerate(rows)]
    single = [Example(item, (number,)) for record in rows for item, number in record]
    learned = answer_tokens(examples)
    assert learned == answer_tokens(single)
    with torch.no_grad():  # the same work: sum of all losses
        tokens = encoder_tokens(windows, load_mini())
        one = full_logits_loss(naive, [e.encoded for e in single], tokens[[e.ecg[0] for e in single]]) * learned
        other = ours([e.encoded for e in examples], store[list(range(len(examples)))]) * learned
    assert abs(float(one - other)) < 0.02 * float(one), (float(one), float(other))
    config = TrainConfig(steps=len(examples), batch=1, learning_rate=1e-4, seed=SEED)
    ways = {
        "naive": lambda: naive_pass(naive, rows, windows, len(examples)),
        "ours": lambda: train_chat(ours, examples, store, config),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(given.repeats + 1):
        for name, work in ways.items():
            found = timed(work)
            print(
                f"{name:6} {learned / found[0]:7.2f} tokens/s, {learned / found[1]:7.2f} by processor time", flush=True
            )
            if repeat:  # the first one warms up
                seconds[name].append(found)
    places = {
        "naive": sum(len(e.encoded.ids) + store.shape[1] - 1 for e in single),
        "ours": sum(len(e.encoded.ids) + store.shape[1] - 1 for e in examples),
    }
    result: dict[str, Any] = {
        name: {
            "answer_tokens_per_second": summarize(learned, [clock for clock, _ in seconds[name]]),
            "answer_tokens_per_cpu_second": summarize(learned, [cpu for _, cpu in seconds[name]]),
            "places_without_padding": places[name],
        }
        for name in ways
    }
    for key, kind in (("times_naive", "second"), ("times_naive_by_cpu", "cpu_second")):
        rates = [result[name][f"answer_tokens_per_{kind}"]["median"] for name in ("ours", "naive")]
        result[key] = round(rates[0] / rates[1], 2)
    return result | {"answer_tokens": learned, "loss_per_token": round(float(one) / learned, 4), "place": place}


def main() -> int:
    """Measure and write one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=2)
    parser.add_argument("--questions", type=int, default=3, help="about each record")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "chat_step.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    os.environ["TQDM_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        found = measure_both(given, Path(folder))
    report = {
        "what": "trained answer tokens per second of stage 2, SmolLM2-135M with LoRA, ours beside a naive loop",
        "records": given.records,
        "questions_per_record": given.questions,
        "repeats": given.repeats,
        **found,
        "stamp": {
            "commit": git_commit(project_root()),
            "library_sha256": library_hash(),
            "device": device(),
            "threads": given.threads,
            "load": round(os.getloadavg()[0], 1),  # a machine that others use, too, if it is above the threads
            "versions": {k: v for k, v in versions().items() if k in ("python", "torch", "transformers", "peft")},
        },
    }
    partial = given.out.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, given.out)
    print(f"ours {report['times_naive']} times the naive rate, {report['times_naive_by_cpu']} by processor time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
