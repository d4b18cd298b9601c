"""A chat model's folder: projector, reader, LoRA adapter, and a manifest that says what they belong to, with hashes.

The language model and the encoder aren't in it; the manifest holds their hashes, and weights that were trained on
others are refused instead of answering nonsense. Taught in: 12 §5.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecgchat_lib.chat.language_model import LanguageModel, load_language_model, quiet_loading
from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.projector import Projector
from ecgchat_lib.chat.reader import FindingReader
from ecgchat_lib.chat.template import get_template
from ecgchat_lib.errors import EcgChatError, MissingPartError
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


def save_chat(
    chat: EcgChat,
    folder: Path,
    language_model: LanguageModel,
    *,
    encoder: Mapping[str, str],
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write the trained parts of a chat model. The manifest comes last, so a folder without one is unfinished.

    Args:
        chat: the model; its adapters are saved if it has any.
        folder: made if missing.
        language_model: what it was built on.
        encoder: "name" and "sha256" of the ECG encoder's weights.
        about: what else the manifest should tell (data, seed, results).
    """
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
        _save_adapter(chat.language_model, folder, language_model.name)
        files += [ADAPTER, ADAPTER_CONFIG]
    manifest = {
        "format": FORMAT,
        "template": chat.template.name,
        "language_model": {"part": language_model.name, "sha256": language_model.sha256},
        "encoder": dict(encoder),
        "projector": {
            "width": chat.projector.width,
            "hidden": chat.projector.hidden,
            "input_norm": any(name.startswith("norm.") for name in tensors),
        },
        "about": dict(about or {}),
        "sha256": {name: sha256_of(folder / name) for name in files},
    }
    _write(folder / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return folder


def _save_adapter(model: Any, folder: Path, part: str) -> None:
    from peft import get_peft_model_state_dict

    tensors = {k: v.detach().float().cpu().contiguous() for k, v in get_peft_model_state_dict(model).items()}
    if not tensors:
        raise EcgChatError("the language model is wrapped by peft but has no adapter weights; nothing to save")
    _save_tensors(folder / ADAPTER, tensors, "pt")
    config = model.peft_config["default"].to_dict()
    config["base_model_name_or_path"] = part  # peft writes a path of this machine
    config["inference_mode"] = True
    if isinstance(config["target_modules"], set | list | tuple):
        config["target_modules"] = sorted(config["target_modules"])
    _write(folder / ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True, default=_plain) + "\n")


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
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT and PROJECTOR in manifest["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise EcgChatError(f"{path}: not a readable manifest ({error}). Take the folder from the project") from error
    if not known:
        raise EcgChatError(f"{path}: another format than {FORMAT}. Use the library version that wrote it")
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
    from safetensors.torch import load_file

    manifest = read_manifest(folder)
    _check_origin(folder, "encoder", manifest["encoder"].get("sha256"), encoder_sha256)
    base = manifest["language_model"]
    lm = language_model or load_language_model(base["part"], quantized=quantized, device=device)
    _check_origin(folder, "language model", base["sha256"], lm.sha256)
    projector = Projector(**manifest["projector"]).to(device)
    projector.load_state_dict(load_file(folder / PROJECTOR, device=device))
    model = lm.model
    if ADAPTER in manifest["sha256"]:
        model = _load_adapter(model, folder, trainable)
        if not trainable and not lm.quantized:
            model = model.merge_and_unload()
    reader = _load_reader(folder) if READER in manifest["sha256"] else None
    return EcgChat(model, lm.tokenizer, projector, get_template(manifest["template"]), reader).eval(), lm


def _load_reader(folder: Path) -> FindingReader:
    from safetensors import safe_open

    with safe_open(folder / READER, "pt") as file:
        names = file.metadata()["format"].split(",")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    known = [finding.name for finding in FINDINGS]
    if names != known:
        raise EcgChatError(
            f"{folder / READER}: fitted for the findings {', '.join(names)}, but this library has {', '.join(known)}. "
            "Use the library version that wrote it, or train it again"
        )
    reader = FindingReader(tensors["weight"].shape[1])
    reader.load_state_dict(tensors)
    return reader


def _load_adapter(model: Any, folder: Path, trainable: bool) -> Any:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    config = LoraConfig(**json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")))
    config.inference_mode = not trainable
    config.base_model_name_or_path = getattr(model, "name_or_path", None)  # peft warns if it differs
    with quiet_loading():
        model = get_peft_model(model, config)
        result: Any = set_peft_model_state_dict(model, load_file(folder / ADAPTER))
    missing = [name for name in result.missing_keys if "lora_" in name]
    if missing or result.unexpected_keys:
        raise EcgChatError(
            f"{folder / ADAPTER}: {len(missing)} adapters missing, {len(result.unexpected_keys)} that fit nowhere; "
            "expected none. It belongs to another language model"
        )
    return model


def _check_origin(folder: Path, what: str, expected: str | None, found: str | None) -> None:
    if expected and found and expected != found:
        raise EcgChatError(
            f"{folder}: trained with the {what} {expected[:12]}…, but this one is {found[:12]}…. "
            f"Use the {what} it was trained with, or train it again (python -m ecgchat_lib.chat.mini_recipe)"
        )


def _save_tensors(path: Path, tensors: dict[str, Any], form: str) -> None:
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.part")
    save_file(tensors, temporary, {"format": form})
    temporary.chmod(0o644)  # safetensors writes for the owner alone, and git and others must read it
    os.replace(temporary, path)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
