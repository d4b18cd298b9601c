"""The memory plan beside what training steps and loading really take, on this CPU, and what fits which GPU.

    python benchmarks/chat_plan.py [--shapes "20 M,60 M,SmolLM2's"] [--out data/results/chat_plan.json]

Each step is a real one: `EcgChat` with LoRA on a Llama with random weights, forward, backward, AdamW. Its peak is taken
from torch's allocator, kind by kind where a kind can be held apart, and the process's resident memory stands beside it
(that one also counts what was freed and kept for later, or is used again and so isn't seen). A GPU would differ by
what `plan` calls the reserve: CUDA's context, cuBLAS's workspace and blocks that are rounded up.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ecgchat_lib.chat.language_model import load_folder, nf4_config, quiet_loading
from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.plan import GPUS, Peak, plan, table
from ecgchat_lib.chat.projector import Projector
from ecgchat_lib.chat.template import ECG_ID, IGNORED, Encoded, get_template
from ecgchat_lib.chat.train import add_lora, trained_parameters
from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.paths import data_folder, project_root

# hidden width, width inside the MLP, blocks, heads, heads of keys and values, vocabulary, tied
SHAPES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "20 M": (384, 1024, 8, 6, 6, 8000, False),
    "60 M": (512, 1376, 12, 8, 8, 24000, False),
    "SmolLM2's": (576, 1536, 30, 9, 3, 49152, True),
}
STEP: dict[str, Any] = {"rank": 8, "batch": 2, "length": 192, "dropout": 0.05}
ANSWERS, ANSWER_TOKENS, ECG_TOKENS, WIDTH = 2, 16, 101, 192
FULL: dict[str, Any] = {"quantized": True, "rank": 16, "batch": 4, "length": 512, "answers": 2, "ecg_width": 768}


def llama_config(sizes: tuple[int, int, int, int, int, int, bool]) -> Any:
    """Return a transformers config of these sizes."""
    from transformers import LlamaConfig

    hidden, middle, blocks, heads, groups, vocabulary, tied = sizes
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=middle,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
    )


def measure_step(
    config: Any,
    folder: Path,
    tokenizer: Any,
    *,
    quantized: bool,
    checkpointing: bool,
    dtype: torch.dtype = torch.float32,
    rank: int,
    dropout: float,
    batch: int,
    length: int,
    learned: int,
    ecg_tokens: int,
    width: int,
) -> tuple[dict[str, int], int, int]:
    """Train two steps and measure the second.

    Args:
        config: sizes of the Llama; its weights are random.
        folder: where it is saved, to be loaded from there.
        tokenizer: any; nothing is spoken.
        quantized: NF4.
        checkpointing: keep only the blocks' inputs.
        dtype: number type of the weights and of autocast.
        rank: LoRA's.
        dropout: LoRA's.
        batch: sequences; each is one place shorter than the one before, so there is padding.
        length: places of the longest, the ECG's included.
        learned: learned tokens of each.
        ecg_tokens: of each.
        width: of an ECG token.

    Returns:
        Bytes held between steps by kind, the most that a step allocates beside, and by how much resident memory grew.
    """
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    more: dict[str, Any] = {"quantization_config": nf4_config(dtype), "device_map": "cpu"} if quantized else {}
    with quiet_loading():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **more)
    chat = EcgChat(model, tokenizer, Projector(width, config.hidden_size), get_template("smollm2"))
    add_lora(chat, rank=rank, dropout=dropout)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    encoded = [random_tokens(length - n - ecg_tokens + 1, learned, config.vocab_size) for n in range(batch)]
    ecg = torch.randn(batch, ecg_tokens, width)
    trained = list(trained_parameters(chat).values())
    optimizer = torch.optim.AdamW(trained)

    def step() -> None:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            loss = chat(encoded, ecg)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    chat.train()
    step()  # the optimizer's moments are there from now on
    states = [value for state in optimizer.state.values() for value in state.values()]
    kept = {
        "weights": bytes_of(p for p in chat.parameters() if not p.requires_grad),
        "adapters": bytes_of(trained),
        "optimizer": bytes_of(states),
    }
    gc.collect()
    before = resident(reset=True)
    with Peak() as peak:
        step()
    return kept, peak.bytes, resident()[1] - before[0]


def random_tokens(count: int, learned: int, vocabulary: int) -> Encoded:
    """Return a conversation of random words with one ECG, of which the last ones are learned."""
    ids = torch.randint(5, vocabulary, (count,)).tolist()
    ids[3] = ECG_ID
    return Encoded(tuple(ids), (IGNORED,) * (count - learned) + tuple(ids[-learned:]), ())


def bytes_of(tensors: Iterable[Any]) -> int:
    """Return the bytes of some tensors, scales and tables of NF4 included, shared storage once."""
    found: dict[int, int] = {}
    for tensor in tensors:
        state = getattr(tensor, "quant_state", None)
        parts = [tensor] if state is None else [tensor, state.absmax, state.code, state.offset]
        parts += [state.state2.absmax, state.state2.code] if state is not None else []
        found |= {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
    return sum(found.values())


def resident(*, reset: bool = False) -> tuple[int, int]:
    """Return the process's resident memory now and at most (since the last reset), in bytes; zeros where unknown."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in lines)
    now, most = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def compare_step(name: str, tokenizer: Any, *, quantized: bool, checkpointing: bool) -> dict[str, Any]:
    """Return plan and measurement of one case, in bytes, and their ratio."""
    config = llama_config(SHAPES[name])
    with tempfile.TemporaryDirectory() as folder:
        kept, step, grown = measure_step(
            config,
            Path(folder),
            tokenizer,
            quantized=quantized,
            checkpointing=checkpointing,
            **STEP,
            learned=ANSWERS * ANSWER_TOKENS,
            ecg_tokens=ECG_TOKENS,
            width=WIDTH,
        )
    planned = plan(
        config,
        quantized=quantized,
        checkpointing=checkpointing,
        **STEP,
        answers=ANSWERS,
        answer_tokens=ANSWER_TOKENS,
        ecg_tokens=ECG_TOKENS,
        ecg_width=WIDTH,
        device="cpu",
    )
    by_plan = {kind: getattr(planned, kind) for kind in kept} | {"step": planned.total}
    by_plan["step"] -= sum(by_plan[kind] for kind in kept)
    found = {**kept, "step": step}
    return {
        "shape": name,
        "parameters": planned.parameters,
        "quantized": quantized,
        "checkpointing": checkpointing,
        "moment": planned.moment,
        "planned": by_plan | {"total": planned.total},
        "measured": found | {"total": sum(found.values()), "resident_growth_in_step": grown},
        "ratio": {kind: round(by_plan[kind] / found[kind], 4) for kind in found}
        | {"total": round(planned.total / sum(found.values()), 4)},
    }


def compare_loading(name: str, tokenizer: Any) -> dict[str, Any]:
    """Return the most that loading into NF4 takes from several files, beside the plan and the full size."""
    from transformers import LlamaForCausalLM

    config = llama_config(SHAPES[name])
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        LlamaForCausalLM(config).half().save_pretrained(folder, max_shard_size="50MB")
        tokenizer.save_pretrained(folder)
        files = list(Path(folder).glob("*.safetensors"))
        mapped = sum(path.stat().st_size for path in files)
        with Peak() as peak:
            load_folder(Path(folder), quantized=True, device="cpu", dtype=torch.float32)
    planned = plan(config, quantized=True, device="cpu")
    return {
        "shape": name,
        "files": len(files),
        "full_float32": 4 * planned.parameters,
        "planned_host": planned.host,
        "measured_host": peak.bytes - mapped,
        "planned_weights": planned.weights,
    }


def fits() -> list[dict[str, Any]]:
    """Return what fits which GPU, with what must be given up."""
    return [
        {
            "model": row["model"],
            "gpu": row["gpu"],
            "asked_bytes": row["asked"].total,
            "given_up": row["given_up"],
            "bytes": row["plan"].total,
            "parts": row["plan"].parts,
            "host_bytes": row["plan"].host,
            "moment": row["plan"].moment,
            "batch": row["plan"].settings.batch,
            "fits": row["fits"],
        }
        for row in table(("vicuna-7b", "vicuna-13b"), **FULL)
    ]


def main() -> int:
    """Run the comparison; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shapes", default=",".join(SHAPES), help="which of the shapes, with commas between")
    parser.add_argument("--out", type=Path, default=data_folder() / "results" / "chat_plan.json")
    options = parser.parse_args()
    names = options.shapes.split(",")
    if unknown := sorted(set(names) - set(SHAPES)):
        parser.error(f"no shape {unknown[0]!r}; there are {', '.join(SHAPES)}")
    from ecgchat_lib.chat.language_model import load_tokenizer

    tokenizer = load_tokenizer()
    steps = []
    for name in names:
        for quantized in (False, True):
            for checkpointing in (False, True):
                steps.append(compare_step(name, tokenizer, quantized=quantized, checkpointing=checkpointing))
                row = steps[-1]
                form = f"{'NF4' if quantized else 'float32'}{', checkpointed' if checkpointing else ''}"
                planned, measured = (row[kind]["total"] / 1e6 for kind in ("planned", "measured"))
                print(f"{name:10} {form:22} planned {planned:7.1f} MB, measured {measured:7.1f} MB", flush=True)
    loading = [compare_loading(name, tokenizer) for name in names]
    content = {
        "what": "bytes that a training step of EcgChat with LoRA takes at most, planned and measured on a CPU",
        "measured_by": "the profiler's record of torch's CPU allocator; a mapped file's pages left out while loading",
        "settings": {**STEP, "answers": ANSWERS, "answer_tokens": ANSWER_TOKENS, "ecg_tokens": ECG_TOKENS},
        "weights": "random",
        "steps": steps,
        "loading": loading,
        "gpus": {name: {"bytes": size, "host_bytes": host} for name, (size, host, _) in GPUS.items()},
        "fits_settings": FULL,
        "fits": fits(),
        "stamp": {
            "commit": git_commit(project_root()),
            "library_sha256": library_hash(),
            "device": device(),
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "versions": {
                name: version
                for name, version in versions().items()
                if name in ("python", "torch", "transformers", "peft", "bitsandbytes")
            },
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, options.out)
    worst = max((abs(row["ratio"]["total"] - 1) for row in steps), default=0.0)
    print(f"plan and measurement differ by {100 * worst:.1f} % at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
