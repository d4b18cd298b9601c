"""Train a model of Vicuna's exact shape with random weights in NF4 on a GPU: memory beside the plan, tokens per second.

    python benchmarks/chat_vicuna.py [--model vicuna-13b] [--memory-gb 15] [--out data/results/chat_vicuna.json]
    python benchmarks/chat_vicuna.py --layers 2 --hidden 256 --middle 704 --heads 4 --vocabulary 600   # on a CPU

The weights are random, made layer by layer on the device and quantized at once, so that the whole is never held in 16
or 32 bits. That changes neither memory nor time, and says nothing about what a trained model answers. `--memory-gb`
imposes a smaller GPU's memory by `torch.cuda.set_per_process_memory_fraction`. The loop is the library's: LoRA,
gradient checkpointing, paged 8-bit AdamW, bf16 and fp16 in turn. Without CUDA only a small shape is tried, in float32.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ecgchat_lib.chat.language_model import compute_dtype, nf4_config, quiet_loading
from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.plan import SIZES, MemoryPlan, Peak, known_config, plan
from ecgchat_lib.chat.projector import Projector
from ecgchat_lib.chat.template import ECG_ID, IGNORED, Encoded, get_template
from ecgchat_lib.chat.train import Example, TrainConfig, add_lora, train_chat
from ecgchat_lib.course.provenance import device, git_commit, library_hash, versions
from ecgchat_lib.paths import data_folder, project_root

PAPER_CONVERSATIONS = 19_000 + 25_000  # diagnoses and dialogues of ECG-Instruct (Zhao et al. 2024, arXiv 2408.08849)
ECG_TOKENS, WIDTH, SEED = 101, 768, 7
NUMBERS = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}


def shape(options: argparse.Namespace) -> Any:
    """Return the config of the model asked for, with the sizes given on the command line in place of its own."""
    config = known_config(options.model)
    given = {
        "num_hidden_layers": options.layers,
        "hidden_size": options.hidden,
        "intermediate_size": options.middle,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.heads,
        "vocab_size": options.vocabulary,
    }
    for name, value in given.items():
        if value is not None:
            setattr(config, name, value)
    config.head_dim = config.hidden_size // config.num_attention_heads
    return config


def random_in_nf4(config: Any, dtype: torch.dtype, target: str) -> Any:
    """Return a causal language model with random weights in NF4, made one layer at a time on the device."""
    import bitsandbytes as bnb
    from transformers import AutoModelForCausalLM
    from transformers.integrations import replace_with_bnb_linear

    with torch.device("meta"), quiet_loading():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model = replace_with_bnb_linear(model, ["lm_head"], quantization_config=nf4_config(dtype))
    generator = torch.Generator(target).manual_seed(SEED)

    def draw(like: torch.Tensor) -> torch.Tensor:
        if like.ndim == 1:
            return torch.ones(like.shape, dtype=dtype, device=target)
        return torch.empty(like.shape, dtype=dtype, device=target).normal_(0, 0.02, generator=generator)

    for module in list(model.modules()):
        if isinstance(module, bnb.nn.Linear4bit):
            weight: Any = bnb.nn.Params4bit(
                draw(torch.empty(module.out_features, module.in_features, device="meta")),
                requires_grad=False,
                quant_type="nf4",
                compress_statistics=True,
                module=module,
            )
            module.weight = weight.to(target)
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(draw(parameter), requires_grad=False))
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(target)
    model.is_loaded_in_4bit = True  # peft asks for it
    return model.eval()


def examples(options: argparse.Namespace, vocabulary: int) -> list[Example]:
    """Return as many sequences of random words as a step takes, each with one ECG."""
    generator = torch.Generator().manual_seed(SEED)
    words = options.length - ECG_TOKENS + 1
    made = []
    for row in range(options.batch):
        ids = torch.randint(5, vocabulary, (words,), generator=generator).tolist()
        ids[3] = ECG_ID
        labels = (IGNORED,) * (words - options.learned) + tuple(ids[-options.learned :])
        made.append(Example(Encoded(tuple(ids), labels, ()), (row,)))
    return made


def train(options: argparse.Namespace, config: Any, precision: str, target: str) -> dict[str, Any]:
    """Train some steps in one number type; return peak, plan and speed."""
    dtype = NUMBERS[precision]
    planned = planned_memory(options, config, dtype, target)
    row: dict[str, Any] = {"precision": precision, "planned": planned.parts | {"total": planned.total}}
    gc.collect()
    if target == "cuda":
        torch.cuda.empty_cache()
    begun = time.perf_counter()
    try:
        with Peak(target) as whole:
            model = random_in_nf4(config, dtype, target)
            row["seconds_to_make_it"] = round(time.perf_counter() - begun, 1)
            chat: Any = EcgChat(model, None, Projector(WIDTH, config.hidden_size).to(target), get_template("vicuna_v1"))
            add_lora(chat, rank=options.rank, seed=SEED)
            times = [time.perf_counter()]
            settings = TrainConfig(
                steps=options.steps,
                batch=options.batch,
                precision=precision,  # type: ignore[arg-type]
                checkpoint_blocks=True,
                optimizer="paged_adamw_8bit" if target == "cuda" else "adamw",
                seed=SEED,
            )
            tokens = torch.randn(options.batch, ECG_TOKENS, WIDTH, generator=torch.Generator().manual_seed(SEED))
            losses = train_chat(
                chat,
                examples(options, config.vocab_size),
                tokens,
                settings,
                each_step=lambda step, loss: times.append(now(target)),
            )
    except torch.OutOfMemoryError as error:
        return row | {"fits": False, "error": str(error).splitlines()[0]}
    seconds = statistics.median(later - sooner for sooner, later in itertools.pairwise(times[1:]))
    per_second = options.batch * options.length / seconds
    if target == "cuda":
        row["reserved_bytes"] = torch.cuda.max_memory_reserved()
    return row | {
        "fits": True,
        "measured_bytes": whole.bytes,
        "planned_without_context": planned.total - planned.reserve,
        "ratio": round((planned.total - planned.reserve) / whole.bytes, 4),
        "seconds_per_step": round(seconds, 4),
        "tokens_per_second": round(per_second, 1),
        "hours_per_epoch_of_the_papers_data": round(PAPER_CONVERSATIONS * options.length / per_second / 3600, 2),
        "losses": [round(loss, 4) for loss in losses],
    }


def planned_memory(options: argparse.Namespace, config: Any, dtype: torch.dtype, target: str) -> MemoryPlan:
    """Return the plan of what `train` does."""
    return plan(
        config,
        quantized=True,
        dtype=dtype,
        rank=options.rank,
        batch=options.batch,
        length=options.length,
        answer_tokens=options.learned,
        checkpointing=True,
        optimizer="paged_adamw_8bit" if target == "cuda" else "adamw",
        ecg_tokens=ECG_TOKENS,
        ecg_width=WIDTH,
        device=target,
    )


def now(target: str) -> float:
    """Return the time after all that was asked of the device is done."""
    if target == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=sorted(SIZES), default="vicuna-13b")
    for name in ("layers", "hidden", "middle", "heads", "vocabulary"):
        parser.add_argument(f"--{name}", type=int, help="instead of the model's own")
    parser.add_argument("--batch", type=int, default=1, help="sequences per step")
    parser.add_argument("--length", type=int, default=512, help="places per sequence, 101 of them the ECG's")
    parser.add_argument("--learned", type=int, default=96, help="learned tokens per sequence")
    parser.add_argument("--rank", type=int, default=16, help="LoRA's rank")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps; the first isn't timed")
    parser.add_argument("--memory-gb", type=float, help="GB (1e9 bytes) that torch may take of the GPU")
    parser.add_argument("--out", type=Path, help="file of results; with CUDA data/results/chat_vicuna.json by default")
    options = parser.parse_args(arguments)
    if options.learned >= options.length - ECG_TOKENS - 4 or options.steps < 2:
        parser.error(f"--length must be above --learned + {ECG_TOKENS + 4}, and --steps at least 2")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run it; return the exit code."""
    options = parse(arguments)
    target = "cuda" if torch.cuda.is_available() else "cpu"
    small = options.layers is not None and options.hidden is not None
    if target == "cpu" and not small:
        print(
            f"no CUDA: a model of {options.model}'s size isn't trained on a CPU. "
            "Give --layers, --hidden, --middle, --heads and --vocabulary to try the same path on a small one",
            file=sys.stderr,
        )
        return 2
    config = shape(options)
    if target == "cuda" and options.memory_gb:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.memory_gb * 1e9 / total))
    names = [name for name in ("bf16", "fp16") if name != "bf16" or compute_dtype("cuda") == torch.bfloat16]
    runs = [train(options, config, name, target) for name in (names if target == "cuda" else ["no"])]
    content = {
        "what": "LoRA training of a model of Vicuna's shape in NF4; its weights are random",
        "note": "" if target == "cuda" else "no CUDA: a small shape on a CPU in float32, to try the path",
        "model": options.model,
        "own_sizes": not any(getattr(options, name) for name in ("layers", "hidden", "middle", "heads", "vocabulary")),
        "layers": config.num_hidden_layers,
        "hidden": config.hidden_size,
        "settings": {name: getattr(options, name) for name in ("batch", "length", "learned", "rank", "steps")},
        "imposed_gb": options.memory_gb if target == "cuda" else None,
        "runs": runs,
        "stamp": {
            "commit": git_commit(project_root()),
            "library_sha256": library_hash(),
            "device": torch.cuda.get_device_name() if target == "cuda" else device(),
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "versions": {
                name: version
                for name, version in versions().items()
                if name in ("python", "torch", "transformers", "peft", "bitsandbytes")
            },
        },
    }
    for run in runs:
        print(describe(run), flush=True)
    if content["note"]:
        print(content["note"])
    out = options.out or (data_folder() / "results" / "chat_vicuna.json" if target == "cuda" else None)
    if out is not None:
        write(out, content)
    return 0 if all(run["fits"] for run in runs) else 1


def describe(run: dict[str, Any]) -> str:
    """Return a line for people."""
    if not run["fits"]:
        return f"{run['precision']}: doesn't fit ({run['error']}); planned {run['planned']['total'] / 1e9:.2f} GB"
    return (
        f"{run['precision']}: {run['measured_bytes'] / 1e9:.3f} GB at most, planned "
        f"{run['planned_without_context'] / 1e9:.3f} GB; {run['tokens_per_second']:.0f} tokens/s, "
        f"{run['hours_per_epoch_of_the_papers_data']:.1f} h per epoch of {PAPER_CONVERSATIONS:,} conversations"
    )


def write(path: Path, content: dict[str, Any]) -> None:
    """Write results in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(partial, path)


if __name__ == "__main__":
    sys.exit(main())
