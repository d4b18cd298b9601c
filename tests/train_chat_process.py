"""What the tests of the chat model's training start as a process of its own: `train_chat_process.py MODE FOLDER`.

`slow` trains with a folder, tells each step on standard output and sleeps in the middle, so that it can be killed
there; `whole` does the same without sleeping. `together` is one of several processes, or the one that they are compared
with (`alone`, with the doubled batch or the doubled number of passes); it writes losses and weights to FOLDER.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from chat_examples import examples, snapshot
from tiny_chat import random_ecg, tiny_chat

from ecgchat_lib.chat.template import encode
from ecgchat_lib.chat.train import Example, TrainConfig, add_lora, make_accelerator, train_chat

KILLED = TrainConfig(steps=8, batch=2, learning_rate=1e-2, save_every=2, evaluate_every=3, checkpoint_blocks=True)
SHARED = TrainConfig(steps=6, batch=2, accumulate=2, learning_rate=1e-2, save_every=3, evaluate_every=2)


def model():
    chat = tiny_chat()
    add_lora(chat, rank=2, alpha=4, dropout=0.0 if sys.argv[1] in ("together", "alone") else 0.2, seed=3)
    return chat


def killed(folder: Path, slow: bool) -> None:
    chat = model()

    def tell(step: int, loss: float) -> None:
        print("step", step, flush=True)
        if slow and step == 4:
            time.sleep(600)

    torch.rand(3 + int(slow))
    train_chat(
        chat, examples(chat), random_ecg(4), KILLED, each_step=tell, folder=folder, validation=examples(chat)[:1]
    )


def shared(folder: Path, world: int) -> None:
    """Train with `world` processes, or alone with what `world` processes have together."""
    for name, config in (
        ("tokens", replace(SHARED, token_mean=True, batch=SHARED.batch * (3 - world))),
        ("means", replace(SHARED, accumulate=SHARED.accumulate * (3 - world))),
    ):
        chat = model()
        words = encode([("<ecg>\nWhat is it?", "Sinus rhythm at 72 beats per minute.")], chat.tokenizer, chat.template)
        items = [*examples(chat), *[Example(words, (k % 4,)) for k in range(4)]]
        place = folder / name / str(world)
        losses = train_chat(chat, items, random_ecg(4), config, folder=place, validation=items[:3])
        accelerator = make_accelerator(chat, config)
        assert accelerator.num_processes == world, accelerator.num_processes
        torch.save({"losses": losses, "weights": snapshot(chat)}, place / f"rank-{accelerator.process_index}.pt")


if __name__ == "__main__":
    mode, where = sys.argv[1], Path(sys.argv[2])
    if mode in ("together", "alone"):
        shared(where, 2 if mode == "together" else 1)
    else:
        killed(where, mode == "slow")
