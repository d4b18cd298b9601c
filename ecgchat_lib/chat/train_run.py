"""Stage 1 and stage 2 from a file of conversations, at the size of a profile: data, model, plan, training, folder.

It is what `ecgchat train projector` and `ecgchat train chat` run, alone or in several processes under
`accelerate launch`. The shipped mini has a recipe of its own (`mini_recipe`). Taught in: 12 §4–5.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from tqdm import tqdm

from ecgchat_lib.chat.batches import Example, sequence_lengths
from ecgchat_lib.chat.checkpoint import ADAPTER, load_chat_model, read_manifest, save_chat, write_text
from ecgchat_lib.chat.data import ConversationFile
from ecgchat_lib.chat.language_model import LanguageModel, compute_dtype, load_language_model
from ecgchat_lib.chat.model import EcgChat
from ecgchat_lib.chat.plan import MemoryPlan, known_config, plan
from ecgchat_lib.chat.projector import Projector
from ecgchat_lib.chat.template import get_template
from ecgchat_lib.chat.tokens import TokenStore, cached_tokens
from ecgchat_lib.chat.train import TrainConfig, add_lora, train_chat, train_projector
from ecgchat_lib.coca.checkpoint import WEIGHTS, load_coca
from ecgchat_lib.coca.checkpoint import read_manifest as read_encoder_manifest
from ecgchat_lib.coca.config import EcgEncoderConfig
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.datasets.manifest import make_manifest
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.ecg.measure import measure
from ecgchat_lib.ecg.recording import Recording, write_recording
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError
from ecgchat_lib.instruct.build import build_conversations, split_conversations
from ecgchat_lib.paths import cache_folder

Stage = Literal["projector", "chat"]


@dataclass(frozen=True)
class ChatProfile:
    """The sizes of one kind of machine.

    Attributes:
        language_model: the part's name.
        quantized: NF4 or as it is.
        rank: LoRA's rank.
        alpha: LoRA's scale.
        dropout: LoRA's dropout.
        together: most conversations about one ECG in one tree.
        projector: stage 1's settings.
        chat: stage 2's settings.
        epochs: rounds over the data in stages 1 and 2, which set the steps; None: the steps of the settings.
        synthetic: ECGs that are made where no data are given; 0 where data must be given.
    """

    language_model: str
    quantized: bool
    rank: int
    alpha: int
    dropout: float
    together: int
    projector: TrainConfig
    chat: TrainConfig
    epochs: tuple[float, float] | None = None
    synthetic: int = 0


_T4 = TrainConfig(
    steps=1,
    batch=1,
    accumulate=16,
    learning_rate=1e-3,
    warmup=0.03,
    checkpoint_blocks=True,
    optimizer="paged_adamw_8bit",
    token_mean=True,
    max_length=512,
    evaluate_every=50,
    save_every=20,
)
_H100 = TrainConfig(  # 16 sequences per step, as the paper's
    steps=1,
    batch=4,
    accumulate=4,
    learning_rate=2e-3,
    warmup=0.03,
    checkpoint_blocks=True,
    group_lengths=True,
    fused=True,
    token_mean=True,
    max_length=2048,
    evaluate_every=500,
    save_every=200,
)
_CI = TrainConfig(steps=4, batch=2, learning_rate=1e-3, group_lengths=True, max_length=640, save_every=2)
_CPU = TrainConfig(steps=60, batch=1, learning_rate=1e-3, max_length=768, evaluate_every=20, save_every=10)

PROFILES: MappingProxyType[str, ChatProfile] = MappingProxyType(
    {
        "ci": ChatProfile("language-model", False, 4, 8, 0.0, 3, _CI, _CI, synthetic=6),
        "cpu": ChatProfile(
            "language-model",
            True,
            8,
            16,
            0.0,
            7,
            replace(_CPU, steps=20),
            replace(_CPU, projector_rate=3e-4),
            None,
            100,
        ),
        "t4": ChatProfile("vicuna-7b", True, 16, 16, 0.05, 1, _T4, replace(_T4, learning_rate=2e-4), (1, 1)),
        # the paper reports rank 32, its code's default is 64
        "h100": ChatProfile("vicuna-13b", True, 64, 16, 0.05, 1, _H100, replace(_H100, learning_rate=2e-4), (1, 3)),
    }
)


class Job(NamedTuple):
    """Where a stage runs.

    Attributes:
        device: such as "cpu" or "cuda:1".
        rank: which process this is.
        world: how many there are.
        wait: returns when all have called it.
        whole: the optimizer isn't cut over the processes (DeepSpeed), so a state can be saved.
    """

    device: str
    rank: int
    world: int
    wait: Callable[[], None]
    whole: bool


def join_job() -> Job:
    """Join the processes that `accelerate launch` started; without it, this one is all.

    Raises:
        ParameterError: the launch asks for FSDP, whose pieces of the weights `save_chat` can't gather.
    """
    from accelerate import PartialState

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise ParameterError(
            "FSDP cuts the weights into pieces, and the trained ones couldn't be saved at the end. Launch with "
            "ddp.yaml or deepspeed_zero2.yaml; for a model that doesn't fit one GPU, take NF4 (profile t4 or h100)"
        )
    state = PartialState(cpu=not torch.cuda.is_available())
    whole = os.environ.get("ACCELERATE_USE_DEEPSPEED") != "true"
    return Job(str(state.device), state.process_index, state.num_processes, state.wait_for_everyone, whole)


def plan_stage(
    profile: ChatProfile, stage: Stage, config: TrainConfig, encoder: EcgEncoderConfig, device: str
) -> MemoryPlan:
    """Return what a stage will take, from the language model's config alone; its longest sequences are assumed."""
    return plan(
        known_config(profile.language_model),
        quantized=profile.quantized,
        dtype=compute_dtype(device),
        rank=profile.rank if stage == "chat" else 1,  # stage 1 has no adapters; the smallest rank stands for none
        dropout=profile.dropout if stage == "chat" else 0.0,
        batch=config.batch,
        length=config.max_length or 512,
        answers=profile.together,
        accumulate=config.accumulate,
        checkpointing=config.checkpoint_blocks,
        optimizer=config.optimizer,
        ecg_width=encoder.width,
        device=torch.device(device).type,
    )


def check_memory(planned: MemoryPlan, device: str) -> None:
    """Raise if a plan doesn't fit into what is free now.

    Raises:
        EcgChatError: with what could be given up.
    """
    import psutil

    memory: Any = psutil.virtual_memory()
    if torch.device(device).type == "cuda":
        planned.check(torch.cuda.mem_get_info(torch.device(device))[0], memory.available, name=device)
    else:
        planned.check(memory.available, name="this machine")


def synthetic_data(folder: Path, count: int, seed: int) -> Path:
    """Write synthetic recordings and conversations about them, as `ecgchat instruct build` would; once.

    Args:
        folder: gets `records/`, `train.jsonl` and, of a quarter as many ECGs more, `validation.jsonl`.
        count: training ECGs.
        seed: of everything random.

    Returns:
        The folder.
    """
    note = folder / "synthetic.json"
    made_by = {"count": count, "seed": seed}
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == made_by:
        return folder
    (folder / "records").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    measured = {}
    for number in tqdm(range(count + max(2, count // 4)), desc="synthetic ECGs", disable=None):
        made = synthesize(seed * 1_000_000 + 700_000 + number)
        name = f"synthetic-{number:05d}"
        recording = Recording(name, made.signal, made.fs)
        write_recording(recording, folder / "records")
        measured[name] = measure(recording)
        rows.append(
            {
                "record": name,
                "path": f"records/{name}",
                "patient": name,
                "split": "train" if number < count else "validation",
                "report": made.report,
                "statements": made.statements,
                "language": "en",
            }
        )
    manifest = make_manifest(rows)
    parts = split_conversations(build_conversations(manifest, measured, seed=seed), manifest)
    for split in ("train", "validation"):
        write_text(folder / f"{split}.jsonl", "".join(json.dumps(item) + "\n" for item in parts[split]))
    write_text(note, json.dumps(made_by))
    return folder


class Material(NamedTuple):
    """What a stage trains on."""

    train: ConversationFile
    validation: Sequence[Example]
    tokens: TokenStore


def open_material(
    data: Path,
    records: Path | None,
    chat: EcgChat,
    profile: ChatProfile,
    encoder: EcgCoca,
    encoder_sha256: str,
    job: Job,
) -> Material:
    """Check the conversations and compute the tokens of their recordings that aren't kept yet.

    Args:
        data: a file, or a folder with `train.jsonl` and perhaps `validation.jsonl`.
        records: where relative paths of recordings start; the file's folder if None.
        chat: for its tokenizer and template.
        profile: how many conversations share a tree.
        encoder: the frozen tower.
        encoder_sha256: hash of its weights.
        job: the processes, which share the work.
    """
    file = data / "train.jsonl" if data.is_dir() else data
    train = ConversationFile(file, chat.tokenizer, chat.template, root=records, together=profile.together)
    held_out: Sequence[Example] = ()
    other = data / "validation.jsonl"
    if data.is_dir() and other.is_file() and other.stat().st_size:
        held_out = ConversationFile(
            other, chat.tokenizer, chat.template, root=records, together=profile.together, after=train
        )
    tokens = cached_tokens(
        train.recordings,
        encoder.to(job.device),
        encoder_sha256,
        cache_folder() / "ecg-tokens",
        share=(job.rank, job.world),
        wait=job.wait,
    )
    return Material(train, held_out, tokens)


def fresh_chat(lm: LanguageModel, width: int, seed: int, *, places: int = 0) -> EcgChat:
    """Return an untrained chat model: the language model, and a new projector in float32."""
    torch.manual_seed(seed)
    embeddings = lm.model.get_input_embeddings().weight
    projector = Projector(width, embeddings.shape[1], places=places)
    projector.scale_to(embeddings.detach().float().cpu())
    template = get_template("vicuna_v1" if lm.name.startswith("vicuna") else "smollm2")
    return EcgChat(lm.model, lm.tokenizer, projector.to(embeddings.device), template)


def stage_config(profile: ChatProfile, stage: Stage, changed: dict[str, Any]) -> TrainConfig:
    """Return a stage's settings with the caller's changes."""
    config = profile.projector if stage == "projector" else profile.chat
    return replace(config, **{name: value for name, value in changed.items() if value is not None})


def run_stage(
    stage: Stage,
    profile: ChatProfile,
    config: TrainConfig,
    out: Path,
    *,
    data: Path,
    encoder_folder: Path,
    job: Job,
    records: Path | None = None,
    projector: Path | None = None,
    download: bool = False,
    epochs: float | None = None,
    tell: Callable[[str], None],
) -> list[float]:
    """Train one stage and write its folder; the state is in `out/run`, and a later call goes on from there.

    Args:
        stage: "projector" or "chat".
        profile: the model and its sizes.
        config: the settings.
        out: gets the chat model's folder.
        data: the conversations.
        encoder_folder: the ECG tower's checkpoint.
        job: where it runs.
        records: where relative paths of recordings start.
        projector: stage 2: stage 1's folder.
        download: fetch the language model if it isn't on this machine.
        epochs: rounds over the data, which set the steps; None: `config.steps`.
        tell: is told what happens.

    Returns:
        The loss of each step.

    Raises:
        EcgChatError: as `train_chat`; or stage 1's folder belongs to another encoder or language model.
    """
    encoder = load_coca(encoder_folder)
    digest = read_encoder_manifest(encoder_folder)["sha256"][WEIGHTS]
    lm = load_language_model(profile.language_model, quantized=profile.quantized, device=job.device, download=download)
    if stage == "projector":
        chat = fresh_chat(lm, encoder.config.encoder.width, config.seed)
    else:
        chat = _after_stage_1(projector, lm, digest, job.device)
        add_lora(chat, rank=profile.rank, alpha=profile.alpha, dropout=profile.dropout, seed=config.seed)
    material = open_material(data, records, chat, profile, encoder, digest, job)
    if epochs is not None:
        per_step = config.batch * config.accumulate * job.world
        config = replace(config, steps=max(1, math.ceil(epochs * len(material.train) / per_step)))
    lengths = sequence_lengths(material.train, material.tokens.shape[1])
    tell(
        f"{len(lengths)} training sequences of {min(lengths)} to {max(lengths)} tokens about "
        f"{len(material.train.recordings)} recordings, {len(material.validation)} to validate on; {config.steps} steps"
    )
    folder = out / "run" if job.whole else None
    train = train_projector if stage == "projector" else train_chat
    losses = train(chat, material.train, material.tokens, config, folder=folder, validation=material.validation)
    if job.rank == 0:
        save_chat(
            chat,
            out,
            lm,
            encoder={"name": encoder_folder.name, "sha256": digest},
            about={"stage": stage, "train": asdict(config), "sequences": len(lengths)},
            grounding=["tokens", *(["measurements"] if material.train.measured > 0.5 else [])],
            preprocessing=_front_end(encoder.config.encoder),
        )
    job.wait()
    return losses


def _after_stage_1(folder: Path | None, lm: LanguageModel, encoder_sha256: str, device: str) -> EcgChat:
    if folder is None:
        raise ParameterError("stage 2 starts from stage 1's projector: name its folder with --projector")
    if ADAPTER in read_manifest(folder)["sha256"]:
        raise EcgChatError(
            f"{folder}: holds adapters already, expected stage 1's folder with a projector alone. "
            "To go on with an unfinished stage 2, add --resume"
        )
    chat, _ = load_chat_model(folder, language_model=lm, encoder_sha256=encoder_sha256, device=device, trainable=True)
    return chat


def _front_end(config: EcgEncoderConfig) -> dict[str, Any]:
    names = ("fs", "seconds", "band", "z_score", "keep_scale")
    plain: dict[str, Any] = json.loads(json.dumps({name: getattr(config, name) for name in names}))
    return plain


def find_data(data: Path | None, profile: ChatProfile, name: str, out: Path, seed: int, job: Job) -> Path:
    """Return where the conversations are: those given, or synthetic ones where the profile has them.

    Raises:
        ParameterError: the profile needs data.
        MissingPartError: what was named isn't there.
    """
    if data is not None:
        if not (data / "train.jsonl" if data.is_dir() else data).is_file():
            raise MissingPartError(
                str(data), "no such file, and no folder with train.jsonl", "Run 'ecgchat instruct build'"
            )
        return data
    if not profile.synthetic:
        raise ParameterError(
            f"profile {name} trains on conversations about recordings: name them with --data. "
            "They are made by 'ecgchat instruct build'"
        )
    if job.rank == 0:
        synthetic_data(out / "data", profile.synthetic, seed)
    job.wait()
    return out / "data"
