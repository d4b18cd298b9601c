"""A chat model's folder: projector, reader, LoRA adapter, and a manifest that says what they belong to, with hashes.

The language model and the encoder aren't in it; the manifest holds their hashes, and weights that were trained on
others are refused instead of answering nonsense. A folder comes from anywhere, so nothing in it is believed: names,
sizes and settings are checked before anything is built from them. Taught in: 12 §5.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ecgchat_lib.chat.language_model import LanguageModel, load_language_model, quiet_loading
from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.projector import Projector
from ecgchat_lib.chat.reader import FindingReader
from ecgchat_lib.chat.template import get_template
from ecgchat_lib.chat.train_state import write_tensors
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError
from ecgchat_lib.instruct.findings import FINDINGS
from ecgchat_lib.models import sha256_of

FORMAT = "ecg-chat-1"
PROJECTOR, READER, ADAPTER, ADAPTER_CONFIG, MANIFEST = (
    "projector.safetensors",
    "reader.safetensors",
    "adapter_model.safetensors",  # this name and the next one are peft's
    "adapter_config.json",
    "manifest.json",
)
FILES = (PROJECTOR, READER, ADAPTER, ADAPTER_CONFIG)
MOST_BYTES = 4 << 20  # of a manifest or an adapter's settings
MOST_RANK = 1024
SHA256 = re.compile("[0-9a-f]{64}")
LORA_TENSOR = re.compile(r"base_model\.model\.[\w.]+\.lora_[AB]\.weight")


def save_chat(
    chat: EcgChat,
    folder: Path,
    language_model: LanguageModel,
    *,
    encoder: Mapping[str, str],
    about: Mapping[str, Any] | None = None,
    adapter_dtype: torch.dtype = torch.float32,
    grounding: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> Path:
    """Write the trained parts of a chat model. The manifest comes last, so a folder without one is unfinished.

    Args:
        chat: the model; its adapters are saved if it has any.
        folder: made if missing.
        language_model: what it was built on.
        encoder: "name" and "sha256" of the ECG encoder's weights.
        about: what else the manifest should tell (data, seed, results).
        adapter_dtype: float32, or float16 for a folder of nearly half the size (an adapter adds small numbers to
            large ones; what float16 rounds off shows in the sixth digit of the logits).
        grounding: what the prompts held in training ("tokens", "measurements", "labels").
        preprocessing: the encoder's front end (band, rate, scaling), so that others can feed it alike.

    Raises:
        ParameterError: another dtype, or a hash of the encoder's or the language model's weights isn't known.
        EcgChatError: a weight isn't a finite number, in this dtype.
    """
    if adapter_dtype not in (torch.float32, torch.float16):
        raise ParameterError(f"adapter_dtype={adapter_dtype}: expected torch.float32 or torch.float16")
    for what, digest in (("encoder", encoder.get("sha256", "")), ("language model", language_model.sha256)):
        if not SHA256.fullmatch(digest):
            raise ParameterError(
                f"{folder}: the {what}'s sha256 is {digest!r}, expected 64 hexadecimal digits. Without it nobody could "
                "tell later whether the weights belong together; name the hash of its weights"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, READER, ADAPTER, ADAPTER_CONFIG):
        (folder / name).unlink(missing_ok=True)
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in chat.projector.state_dict().items()}
    _save_tensors(folder / PROJECTOR, tensors, FORMAT)
    files = [PROJECTOR]
    if chat.reader is not None:
        read = {name: value.contiguous().cpu() for name, value in chat.reader.state_dict().items()}
        _save_tensors(folder / READER, read, ",".join(finding.name for finding in FINDINGS))
        files.append(READER)
    if hasattr(chat.language_model, "peft_config"):
        _save_adapter(chat.language_model, folder, language_model.name, adapter_dtype)
        files += [ADAPTER, ADAPTER_CONFIG]
    manifest = {
        "format": FORMAT,
        "template": chat.template.name,
        "language_model": {
            "part": language_model.name,
            "sha256": language_model.sha256,
            "revision": language_model.revision,
            "quantized": language_model.quantized,
        },
        "encoder": dict(encoder),
        "projector": {
            "width": chat.projector.width,
            "hidden": chat.projector.hidden,
            "input_norm": any(name.startswith("norm.") for name in tensors),
            "places": chat.projector.places,
        },
        "about": dict(about or {}),
        "sha256": {name: sha256_of(folder / name) for name in files},
    }
    if grounding is not None:
        manifest["grounding"] = sorted(grounding)
    if preprocessing is not None:
        manifest["preprocessing"] = dict(preprocessing)
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return folder


def _save_adapter(model: Any, folder: Path, part: str, dtype: torch.dtype) -> None:
    from peft import get_peft_model_state_dict

    tensors = {k: v.detach().to(dtype).cpu().contiguous() for k, v in get_peft_model_state_dict(model).items()}
    if not tensors:
        raise EcgChatError("the language model is wrapped by peft but has no adapter weights; nothing to save")
    _save_tensors(folder / ADAPTER, tensors, "pt")
    config = model.peft_config["default"].to_dict()
    config["base_model_name_or_path"] = part  # peft writes a path of this machine
    config["inference_mode"] = True
    if isinstance(config["target_modules"], set | list | tuple):
        config["target_modules"] = sorted(config["target_modules"])
    write_text(folder / ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(getattr(value, "value", value))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a chat folder's manifest, after checking the hash of every file in it.

    Raises:
        MissingPartError: the folder, its manifest or a file isn't there.
        EcgChatError: the manifest is of another format, or a file's sha256 differs.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise MissingPartError(
            folder.name, f"no {MANIFEST} in {folder}", "Train it (notebook 12), or take the folder from the project"
        )
    manifest = _read_json(path)
    if manifest.get("format") != FORMAT or PROJECTOR not in manifest.get("sha256", {}):
        raise EcgChatError(f"{path}: another format than {FORMAT}. Use the library version that wrote it")
    _check_manifest(path, manifest)
    for name, expected in manifest["sha256"].items():
        file = folder / name
        if not file.is_file():
            raise MissingPartError(folder.name, f"{file} is missing", "Take the folder from the project again")
        if sha256_of(file) != expected:
            raise EcgChatError(
                f"{file}: sha256 {sha256_of(file)[:12]}…, the manifest says {expected[:12]}…. "
                "The file was changed or cut off; take the folder from the project again"
            )
    return manifest


def _read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of bounded size."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"{size} bytes, expected at most {MOST_BYTES}")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}, expected an object")
    except (ValueError, OSError, RecursionError) as error:
        raise EcgChatError(f"{path}: not a readable {path.stem} ({error}). Take the folder from the project") from error
    return found


def _check_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise unless the manifest names only this format's files and says everything that loading needs."""

    def refuse(field: str, found: object, expected: str) -> None:
        raise EcgChatError(
            f"{path}: {field} is {str(found)[:80]!r}, expected {expected}. Take the folder from the project again"
        )

    hashes = manifest["sha256"]
    if not isinstance(hashes, dict):
        refuse("sha256", hashes, "file names and hashes")
    for name, digest in hashes.items():
        if name not in FILES:
            refuse("a file in sha256", name, f"one of {', '.join(FILES)}")
        if not isinstance(digest, str) or not SHA256.fullmatch(digest):
            refuse(f"sha256 of {name}", digest, "64 hexadecimal digits")
    if (ADAPTER in hashes) != (ADAPTER_CONFIG in hashes):
        refuse("sha256", sorted(hashes), f"{ADAPTER} and {ADAPTER_CONFIG} together")
    for field in ("language_model", "encoder", "projector"):
        if not isinstance(manifest.get(field), dict):
            refuse(field, manifest.get(field), "an object")
    base, projector = manifest["language_model"], manifest["projector"]
    if not isinstance(base.get("part"), str):
        refuse("language_model.part", base.get("part"), "a text")
    for field in ("language_model", "encoder"):
        digest = manifest[field].get("sha256")
        if not isinstance(digest, str) or not SHA256.fullmatch(digest):
            refuse(f"{field}.sha256", digest, "64 hexadecimal digits")
    needed = {"width", "hidden", "input_norm"}
    usual = needed <= set(projector) <= needed | {"places"}  # older folders don't say "places": they have none
    if not usual or not isinstance(projector["input_norm"], bool):
        refuse("projector", projector, "width, hidden, input_norm and places")
    for key, least in (("width", 1), ("hidden", 1), ("places", 0)):
        if type(projector.get(key, 0)) is not int or not least <= projector.get(key, 0) <= 65536:
            refuse(f"projector.{key}", projector[key], f"a whole number from {least} to 65536")
    if not isinstance(manifest.get("template"), str):
        refuse("template", manifest.get("template"), "a template's name")


def load_chat_model(
    folder: Path,
    *,
    language_model: LanguageModel | None = None,
    encoder_sha256: str | None = None,
    quantized: bool = False,
    device: str = "cpu",
    trainable: bool = False,
) -> tuple[EcgChat, LanguageModel]:
    """Load a chat model from its folder, onto its language model.

    Args:
        folder: what `save_chat` wrote.
        language_model: an already loaded, not yet adapted language model to use.
        encoder_sha256: the hash of the encoder's weights that will be used; checked against the manifest if given.
        quantized: load the language model in NF4.
        device: "cpu" or "cuda".
        trainable: keep the adapters apart, for further training; False merges them into the weights where these
            aren't quantized, which answers faster.

    Returns:
        The model in evaluation mode, and what it was built on.

    Raises:
        MissingPartError: a file or the language model isn't there.
        EcgChatError: a hash differs, or the encoder or language model isn't the one that was trained with.
    """
    manifest = read_manifest(folder)
    template = get_template(manifest["template"])
    _check_origin(folder, "encoder", manifest["encoder"]["sha256"], encoder_sha256)
    base = manifest["language_model"]
    lm = language_model or load_language_model(base["part"], quantized=quantized, device=device)
    _check_origin(folder, "language model", base["sha256"], lm.sha256)
    model = lm.model
    projector = _load_projector(folder, manifest["projector"], model.get_input_embeddings().weight.shape[1]).to(device)
    reader = _load_reader(folder) if READER in manifest["sha256"] else None
    if ADAPTER in manifest["sha256"]:
        model = _load_adapter(model, folder, trainable)
        if not trainable and not lm.quantized:
            model = model.merge_and_unload()
    return EcgChat(model, lm.tokenizer, projector, template, reader).eval(), lm


def _load_projector(folder: Path, sizes: Mapping[str, Any], hidden: int) -> Projector:
    if sizes["hidden"] != hidden:
        raise EcgChatError(
            f"{folder}: its projector makes vectors of {sizes['hidden']}, but the language model's are {hidden} wide. "
            "Use the language model it was trained for"
        )
    with torch.device("meta"):  # shapes without memory
        expected = {name: tuple(tensor.shape) for name, tensor in Projector(**sizes).state_dict().items()}
    tensors, _ = _read_tensors(folder / PROJECTOR, expected)
    projector = Projector(**sizes)
    projector.load_state_dict(tensors)
    return projector


def _read_tensors(
    path: Path, expected: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return a file's tensors in float32 and its notes, after a look at names, shapes and values.

    Raises:
        EcgChatError: it isn't a safetensors file, or a name, shape, type or value isn't what it should be.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            wanted = shapes if expected is None else expected
            odd = sorted(set(shapes) ^ set(wanted)) + [k for k in shapes if k in wanted and shapes[k] != wanted[k]]
            if odd:
                raise EcgChatError(
                    f"{path}: {odd[0]} is {shapes.get(odd[0], 'missing')}, expected "
                    f"{wanted.get(odd[0], 'no such tensor')} ({len(odd)} tensors differ). "
                    "It belongs to another model; take the folder from the project again"
                )
            tensors = {name: file.get_tensor(name) for name in shapes}
            notes = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise EcgChatError(f"{path}: not a readable safetensors file ({error})") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise EcgChatError(f"{path}: {name} ({tensor.dtype}) isn't made of finite real numbers, expected weights")
    return {name: tensor.float() for name, tensor in tensors.items()}, notes


def _load_reader(folder: Path) -> FindingReader:
    tensors, notes = _read_tensors(folder / READER)
    names = notes.get("format", "").split(",")
    known = [finding.name for finding in FINDINGS]
    if names != known:
        raise EcgChatError(
            f"{folder / READER}: fitted for the findings {', '.join(names)}, but this library has {', '.join(known)}. "
            "Use the library version that wrote it, or train it again"
        )
    try:
        reader = FindingReader(tensors["weight"].shape[1])
        reader.load_state_dict(tensors)
    except (KeyError, IndexError, RuntimeError) as error:
        raise EcgChatError(f"{folder / READER}: not a reader's weights ({error})") from error
    return reader


def _load_adapter(model: Any, folder: Path, trainable: bool) -> Any:
    from peft import get_peft_model, set_peft_model_state_dict

    tensors, _ = _read_tensors(folder / ADAPTER)
    config = _read_adapter_config(folder / ADAPTER_CONFIG)
    strange = [name for name in tensors if not LORA_TENSOR.fullmatch(name)]
    if strange or not tensors:
        found = strange[0] if strange else "nothing"
        raise EcgChatError(f"{folder / ADAPTER}: holds {found}, expected only the matrices A and B of LoRA")
    ranks = {t.shape[0 if name.endswith("A.weight") else -1] for name, t in tensors.items()}
    if ranks != {config.r}:
        raise EcgChatError(f"{folder / ADAPTER}: matrices of rank {sorted(ranks)}, expected {config.r} by its settings")
    config.inference_mode = not trainable
    config.base_model_name_or_path = vars(model).get("name_or_path") or None  # as peft has it
    try:
        with quiet_loading():
            model = get_peft_model(model, config)
            result: Any = set_peft_model_state_dict(model, tensors)
    except (ValueError, RuntimeError) as error:
        raise EcgChatError(f"{folder / ADAPTER}: doesn't fit this language model ({str(error)[:200]})") from error
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        raise EcgChatError(
            f"{folder / ADAPTER}: {len(missing)} adapters missing, {len(result.unexpected_keys)} that fit nowhere; "
            "expected none. It belongs to another language model"
        )
    return model


def _read_adapter_config(path: Path) -> Any:
    """Return peft's settings of plain LoRA; any other setting (some import modules, some download) is refused."""
    from peft import LoraConfig

    found = _read_json(path)
    kwargs: dict[str, Any] = {k: found.get(k) for k in ("r", "lora_alpha", "lora_dropout", "target_modules")}
    rank, alpha, dropout, modules = kwargs.values()
    good = type(rank) is int and 1 <= rank <= MOST_RANK and type(alpha) in (int, float) and 0 < alpha <= 1e6
    good = good and type(dropout) in (int, float) and 0 <= dropout < 1
    good = good and isinstance(modules, list) and 0 < len(modules) <= 64
    if not good or not all(isinstance(name, str) and re.fullmatch(r"\w{1,64}", name) for name in modules):
        raise EcgChatError(
            f"{path}: r={rank!r}, lora_alpha={alpha!r}, lora_dropout={dropout!r}, target_modules="
            f"{str(modules)[:80]}: expected a rank up to {MOST_RANK}, positive numbers and names of layers"
        )
    config = LoraConfig(**kwargs, task_type="CAUSAL_LM")
    usual = json.loads(json.dumps(config.to_dict(), default=_plain))
    ours = {*kwargs, "base_model_name_or_path", "inference_mode", "peft_version"}
    odd = [k for k, value in found.items() if k not in ours and value != usual.get(k) and value not in (None, False)]
    if odd:
        raise EcgChatError(f"{path}: {odd[0]} is {str(found[odd[0]])[:80]!r}, expected peft's default; only plain LoRA")
    return config


def _check_origin(folder: Path, what: str, expected: str, found: str | None) -> None:
    if found is not None and expected != found:
        raise EcgChatError(
            f"{folder}: trained with the {what} {expected[:12]}…, but this one is {found[:12] or 'unknown'}…. "
            f"Use the {what} it was trained with, or train it again (python -m ecgchat_lib.chat.mini_recipe)"
        )


def _save_tensors(path: Path, tensors: dict[str, Any], form: str) -> None:
    wrong = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if wrong:
        raise EcgChatError(f"{path}: {wrong[0]} isn't finite in {tensors[wrong[0]].dtype}; not saved. Train it again")
    write_tensors(path, tensors, {"format": form})


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
