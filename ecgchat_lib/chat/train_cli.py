"""`ecgchat train projector`, `chat` and `export`: the chat model's two stages, and the way out.

Only typer is imported at the start. For several GPUs, start the same command with
`accelerate launch --config_file FILE $(which ecgchat) train chat …`; files for DDP and DeepSpeed lie in
`ecgchat_lib/chat/accelerate` (FSDP's there is for loops of your own: these commands refuse it). Exit codes: 0 done, 2
the input or the call can't be used. Taught in: 12 §4–5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ecgchat_lib.errors import ParameterError, printable

Out = Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where everything is written.", show_default=False)]
Profile = Annotated[Literal["ci", "cpu", "t4", "h100"], typer.Option(help="Sizes for this machine.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="SOURCE",
        help="Conversations (.jsonl), or a folder with train.jsonl and validation.jsonl.",
        show_default="synthetic ones, with profile ci or cpu",
    ),
]
Records = Annotated[
    Path | None,
    typer.Option(
        "--records", metavar="FOLDER", help="Where the conversations' recordings lie.", show_default="by SOURCE"
    ),
]
Encoder = Annotated[
    Path | None,
    typer.Option("--encoder", metavar="FOLDER", help="The ECG-CoCa checkpoint.", show_default="the course's mini"),
]
LanguageModelName = Annotated[
    str | None,
    typer.Option("--language-model", metavar="NAME", help="Such as vicuna-13b.", show_default="the profile's"),
]
Steps = Annotated[int | None, typer.Option(help="Optimizer steps.", show_default="the profile's")]
Batch = Annotated[int | None, typer.Option(help="Sequences per pass.", show_default="the profile's")]
Accumulate = Annotated[int | None, typer.Option(help="Passes per step.", show_default="the profile's")]
MaxLength = Annotated[int | None, typer.Option(help="Most tokens of a sequence.", show_default="the profile's")]
Seed = Annotated[int, typer.Option(help="Of every random draw.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in FOLDER, if there is one.")]
Download = Annotated[bool, typer.Option("--download", help="Fetch the language model if it isn't here.")]


def projector(
    out: Out,
    profile: Profile = "ci",
    data: Data = None,
    records: Records = None,
    encoder: Encoder = None,
    language_model: LanguageModelName = None,
    steps: Steps = None,
    batch: Batch = None,
    accumulate: Accumulate = None,
    max_length: MaxLength = None,
    seed: Seed = 7,
    resume: Resume = False,
    download: Download = False,
) -> None:
    """Stage 1: train the projector between the frozen ECG tower and the frozen language model."""
    changed = {"steps": steps, "batch": batch, "accumulate": accumulate, "max_length": max_length, "seed": seed}
    _run("projector", profile, changed, out, data, records, encoder, language_model, None, resume, download)


def chat(
    out: Out,
    from_projector: Annotated[
        Path, typer.Option("--projector", metavar="FOLDER", help="What stage 1 wrote.", show_default=False)
    ],
    profile: Profile = "ci",
    data: Data = None,
    records: Records = None,
    encoder: Encoder = None,
    language_model: LanguageModelName = None,
    steps: Steps = None,
    batch: Batch = None,
    accumulate: Accumulate = None,
    max_length: MaxLength = None,
    seed: Seed = 7,
    resume: Resume = False,
    download: Download = False,
) -> None:
    """Stage 2: train the projector and LoRA adapters on the language model's linear layers (QLoRA, where it is NF4)."""
    changed = {"steps": steps, "batch": batch, "accumulate": accumulate, "max_length": max_length, "seed": seed}
    _run("chat", profile, changed, out, data, records, encoder, language_model, from_projector, resume, download)


def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A chat model's folder.", show_default=False)],
    out: Out,
    half: Annotated[bool, typer.Option("--half", help="Write float16, half the size.")] = False,
) -> None:
    """Merge the adapters into the language model, for programs that know transformers or llama.cpp only."""
    from ecgchat_lib.chat.export import export_chat

    for line in export_chat(folder, out, half=half).lines():
        typer.echo(line)


def add_commands(app: typer.Typer) -> None:
    """Add the chat model's commands to `ecgchat train`."""
    app.command()(projector)
    app.command()(chat)
    app.command()(export)


def _run(
    stage: Literal["projector", "chat"],
    profile: str,
    changed: dict[str, Any],
    out: Path,
    data: Path | None,
    records: Path | None,
    encoder: Path | None,
    language_model: str | None,
    from_projector: Path | None,
    resume: bool,
    download: bool,
) -> None:
    from dataclasses import replace

    from ecgchat_lib.chat.train_run import (
        PROFILES,
        check_memory,
        find_data,
        join_job,
        plan_stage,
        run_stage,
        stage_config,
    )
    from ecgchat_lib.chat.train_state import STATE
    from ecgchat_lib.coca.checkpoint import MINI_FOLDER, load_coca
    from ecgchat_lib.coca.workers import leave_workers
    from ecgchat_lib.paths import data_folder

    job = join_job()

    def tell(text: str) -> None:
        if job.rank == 0:
            typer.echo(printable(text), err=True)

    if (out / "run" / STATE).is_file() and not resume:
        raise ParameterError(f"{out}: holds a run already. Add --resume to go on with it, or name another folder.")
    sizes = PROFILES[profile]
    if language_model is not None:
        sizes = replace(sizes, language_model=language_model)
    config = stage_config(sizes, stage, changed)
    tower = encoder or data_folder() / MINI_FOLDER
    planned = plan_stage(sizes, stage, config, load_coca(tower).config.encoder, job.device)
    for line in planned.lines():
        if job.rank == 0:
            typer.echo(line)
    check_memory(planned, job.device)
    epochs = sizes.epochs[0 if stage == "projector" else 1] if sizes.epochs and changed["steps"] is None else None
    losses = run_stage(
        stage,
        sizes,
        config,
        out,
        data=find_data(data, sizes, profile, out, changed["seed"], job),
        encoder_folder=tower,
        job=job,
        records=records,
        projector=from_projector,
        download=download,
        epochs=epochs,
        tell=tell,
    )
    if job.rank == 0:
        typer.echo(f"{out}: {len(losses)} steps, loss {losses[0]:.4f} at first, {losses[-1]:.4f} at last")
    leave_workers()
