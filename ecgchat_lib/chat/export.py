"""A chat model's adapters merged into its language model, in files that other programs read without this library.

transformers loads the folder as it is; llama.cpp turns it into a GGUF with its own converter. The ECG's way in stays
ours: the projector lies beside, and its vectors take the place of word embeddings. Taught in: 12 §5.

An adapter that was trained on NF4 weights belongs to those weights, not to the ones they were rounded from. So its base
is loaded in NF4 and taken out of NF4 again, and the merged model gives the logits that were trained. Merging into the
unrounded weights would change each layer by NF4's rounding error instead.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ecgchat_lib.chat.checkpoint import MANIFEST, PROJECTOR, load_chat_model, read_manifest
from ecgchat_lib.chat.language_model import LanguageModel, load_language_model, quiet_loading
from ecgchat_lib.chat.template import encode
from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.models import sha256_of

EXPORT = "export.json"
PROBE = "Is this ECG normal?"  # what both models are asked, to compare their logits
MOST_OFF = {torch.float32: 1e-3, torch.float16: 5e-2}  # of the logits' spread


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        largest_difference: between the merged and the unmerged model's logits on one prompt.
        spread: standard deviation of these logits.
        from_nf4: the weights were taken out of NF4.
        bytes: size of all files.
    """

    folder: Path
    largest_difference: float
    spread: float
    from_nf4: bool
    bytes: int

    def lines(self) -> list[str]:
        """Say it, and what to do next."""
        origin = "taken out of NF4, as trained" if self.from_nf4 else "as they were loaded"
        return [
            f"{self.folder}: {self.bytes / 1e9:.2f} GB, weights {origin}; logits differ by at most "
            f"{self.largest_difference:.2g} from the unmerged model's (their spread is {self.spread:.2g})",
            f"load it      AutoModelForCausalLM.from_pretrained({str(self.folder)!r})",
            f"for llama.cpp  python convert_hf_to_gguf.py {self.folder} --outfile model.gguf",
        ]


def export_chat(
    folder: Path,
    out: Path,
    *,
    language_model: LanguageModel | None = None,
    half: bool = False,
    device: str = "cpu",
) -> Exported:
    """Write the merged language model, its tokenizer and the projector.

    Args:
        folder: what `save_chat` wrote.
        out: a new folder.
        language_model: an already loaded, not yet adapted base to use.
        half: float16 files; float32 otherwise.
        device: where the merging is done.

    Returns:
        What was written, with the measured difference.

    Raises:
        ParameterError: `out` isn't empty.
        EcgChatError: as `load_chat_model`; or the merged model answers otherwise than the unmerged one.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ParameterError(f"{out}: isn't an empty folder; expected a new one, so that nothing in it is mixed up")
    manifest = read_manifest(folder)
    base = manifest["language_model"]
    lm = language_model or load_language_model(
        base["part"], quantized=bool(base.get("quantized", False)), device=device
    )
    chat, _ = load_chat_model(folder, language_model=lm, device=device, trainable=True)
    prompt = encode([(PROBE, None)], chat.tokenizer, chat.template)
    ids = torch.tensor([prompt.ids], device=chat.device)
    before = _logits(chat.language_model, ids)
    dtype = torch.float16 if half else torch.float32
    merged = merge(chat.language_model, dtype)
    after = _logits(merged, ids)
    difference, spread = float((after - before).abs().max()), float(before.std())
    if not difference <= MOST_OFF[dtype] * spread:
        raise EcgChatError(
            f"{folder}: the merged model's logits differ by {difference:.3g}, expected at most "
            f"{MOST_OFF[dtype] * spread:.3g}. Nothing was written"
        )
    found = {"largest_difference": difference, "spread": spread, "from_nf4": lm.quantized}
    _write_folder(merged, chat.tokenizer, folder, out, manifest, found)
    size = sum(path.stat().st_size for path in out.iterdir())
    return Exported(out, difference, spread, lm.quantized, size)


def merge(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Return a plain transformers model: each adapter's (alpha / r) B A is added to its layer, NF4 layers are unpacked.

    The adapted model is used up by it. Sums are computed in float32 and then rounded to `dtype`.

    Args:
        model: adapted by peft, or not adapted at all.
        dtype: of the weights.
    """
    from peft.tuners.lora.layer import LoraLayer

    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            plain = _plain_linear(module.get_base_layer())
            with torch.no_grad():
                for one in module.active_adapters:
                    up, down = module.lora_B[one].weight.float(), module.lora_A[one].weight.float()
                    plain.weight += module.scaling[one] * up @ down
        elif _is_nf4(module) and not name.endswith(".base_layer"):
            plain = _plain_linear(module)
        else:
            continue
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, plain)
    return nn.Module.to(model, dtype).eval()


def _is_nf4(module: Any) -> bool:
    return type(getattr(module, "weight", None)).__name__ == "Params4bit"


def _plain_linear(layer: Any) -> nn.Linear:
    """Return a linear layer in float32 with the numbers that a layer multiplies with."""
    if _is_nf4(layer):
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    else:
        weight = layer.weight.detach().float().clone()
    with torch.device("meta"):
        plain = nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().float().clone(), requires_grad=False)
    return plain


@torch.no_grad()
def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids, use_cache=False).logits.float()
    return found


def _write_folder(
    merged: Any, tokenizer: Any, folder: Path, out: Path, manifest: dict[str, Any], found: dict[str, Any]
) -> None:
    """Write into a folder beside and rename it, so that a half-written one is never taken for a whole one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = merged.config.to_dict()
    for name in ("quantization_config", "_name_or_path"):
        config.pop(name, None)
    clean = AutoConfig.for_model(**config)
    clean.dtype = merged.get_input_embeddings().weight.dtype
    work = out.with_name(f".{out.name}.part")
    shutil.rmtree(work, ignore_errors=True)
    with quiet_loading():
        with torch.device("meta"):
            plain = AutoModelForCausalLM.from_config(clean)  # a model that never was in NF4, nor in a GGUF
        plain.load_state_dict(merged.state_dict(), assign=True)
        plain.tie_weights()
        plain.generation_config = merged.generation_config
        plain.save_pretrained(work)
        tokenizer.save_pretrained(work)
    shutil.copyfile(folder / PROJECTOR, work / PROJECTOR)
    kept = ("template", "language_model", "encoder", "projector", "grounding", "preprocessing")
    about = {name: manifest[name] for name in kept if name in manifest} | found
    about["chat_manifest_sha256"] = sha256_of(folder / MANIFEST)
    (work / EXPORT).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if out.is_dir():
        out.rmdir()
    os.replace(work, out)
