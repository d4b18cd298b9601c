"""Time the first token of each turn of a conversation, the cache kept and not, and answers alone and in batches.

    python benchmarks/chat_turns.py [--repeats 5] [--turns 5] [--out data/results/chat_turns.json]

The mini model talks about the real sample recordings, greedily. "Kept": `Conversation`, which reads what is new only.
"Anew": the same prompts, each read from its start. Both take the same turn one after the other, so that a busy machine
slows both; the figures to quote are the ratios. Encoding the ECG isn't timed, nor loading the model.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgchat_lib.chat.generate import Conversation, Decoding
from ecgchat_lib.chat.session import hear, load_chat
from ecgchat_lib.chat.template import encode, opening
from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.datasets.cpsc2018 import load_real_sample
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.paths import data_folder, project_root

if TYPE_CHECKING:
    import torch

    from ecgchat_lib.chat.model import EcgChat

QUESTIONS = (
    "What is the heart rhythm?",
    "Does this ECG show atrial fibrillation?",
    "Does this ECG show sinus bradycardia?",
    "Does this ECG show sinus tachycardia?",
    "Does this ECG show first degree AV block?",
    "Does this ECG show left bundle branch block?",
    "Does this ECG show right bundle branch block?",
    "Does this ECG show premature ventricular beats?",
)
NEW_TOKENS = 12
BATCH = 8


def spread(seconds: list[float]) -> dict[str, float]:
    """Return the median and the quartiles in milliseconds."""
    low, middle, high = 1000 * np.percentile(seconds, (25, 50, 75))
    names = ("median_ms", "lower_quartile_ms", "upper_quartile_ms")
    return {name: round(float(value), 1) for name, value in zip(names, (middle, low, high), strict=True)}


def time_turns(chat: EcgChat, heard: list[tuple[torch.Tensor, tuple[str, ...]]], turns: int) -> list[dict[str, Any]]:
    """Return, for each turn, the seconds to the first token in both ways and how much was read."""
    kept: list[list[float]] = [[] for _ in range(turns)]
    anew: list[list[float]] = [[] for _ in range(turns)]
    read: list[list[int]] = [[] for _ in range(turns)]
    for tokens, lines in heard:
        talk = Conversation(chat, Decoding(max_new_tokens=NEW_TOKENS))
        talk.add(tokens, lines)
        for number, question in enumerate(QUESTIONS[:turns]):
            pairs = [*talk.turns, (question, None)]
            pairs[0] = (opening(lines) + pairs[0][0], pairs[0][1])
            begun = time.perf_counter()
            chat.generate([encode(pairs, chat.tokenizer, chat.template)], tokens[None], max_new_tokens=1)
            anew[number].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            pieces = talk.say(question)
            next(pieces)
            kept[number].append(time.perf_counter() - begun)
            for _ in pieces:
                pass
            read[number].append(talk.prefilled[number])
    return [
        {"turn": k + 1, "kept": spread(kept[k]), "anew": spread(anew[k]), "places_read": int(np.median(read[k]))}
        for k in range(turns)
    ]


def time_batches(chat: EcgChat, heard: list[tuple[torch.Tensor, tuple[str, ...]]], repeats: int) -> dict[str, Any]:
    """Return the seconds that `BATCH` answers take one by one and together."""
    import torch

    chosen = [heard[k % len(heard)] for k in range(BATCH)]
    prompts = [
        encode([(opening(lines) + question, None)], chat.tokenizer, chat.template)
        for (_, lines), question in zip(chosen, QUESTIONS, strict=False)
    ]
    ecg = torch.stack([tokens for tokens, _ in chosen])
    alone, together = [], []
    for _ in range(repeats):
        begun = time.perf_counter()
        one_by_one = [chat.generate([p], ecg[k : k + 1])[0] for k, p in enumerate(prompts)]
        alone.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        batched = chat.generate(prompts, ecg)
        together.append(time.perf_counter() - begun)
    return {
        "questions": BATCH,
        "one_by_one": spread(alone),
        "together": spread(together),
        "times_faster": round(float(np.median(alone) / np.median(together)), 2),
        "equal_answers": sum(a == b for a, b in zip(one_by_one, batched, strict=True)),
    }


def main() -> int:
    """Run the comparison; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "chat_turns.json")
    parser.add_argument("--repeats", type=int, default=5, help="conversations, each about another recording")
    parser.add_argument("--turns", type=int, default=5, choices=range(2, len(QUESTIONS) + 1))
    parser.add_argument("--note", default="", help="what else the machine did")
    options = parser.parse_args()
    session = load_chat()
    heard = []
    for path in list(load_real_sample()["path"])[: options.repeats + 1]:
        one = hear(read_recording(path), session.encoder, session.chat.reader)
        assert one.tokens is not None
        heard.append((one.tokens[0], one.lines(session.with_)))
    time_turns(session.chat, heard[:1], 2)  # warm up
    turns = time_turns(session.chat, heard[1:], options.turns)
    second, last = turns[1]["kept"]["median_ms"], turns[-1]["kept"]["median_ms"]
    content = {
        "what": "time from a question to its answer's first token; n conversations about n recordings",
        "n": len(heard) - 1,
        "new_tokens_per_answer": NEW_TOKENS,
        "turns": turns,
        "last_turn_over_second": {
            "kept": round(last / second, 3),
            "anew": round(turns[-1]["anew"]["median_ms"] / turns[1]["anew"]["median_ms"], 3),
        },
        "batch": time_batches(session.chat, heard[1:], max(1, options.repeats // 2)),
        "note": options.note,
        "stamp": {
            "commit": git_commit(project_root()),
            "library_sha256": library_hash(),
            "device": device(),
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "versions": {k: v for k, v in versions().items() if k in ("python", "numpy", "torch", "transformers")},
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, options.out)
    for row in turns:
        print(
            f"turn {row['turn']}: kept {row['kept']['median_ms']:7.1f} ms ({row['places_read']} places read)   "
            f"anew {row['anew']['median_ms']:7.1f} ms"
        )
    print("last turn over second:", content["last_turn_over_second"], " batch:", content["batch"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
