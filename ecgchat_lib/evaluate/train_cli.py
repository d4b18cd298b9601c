"""`ecgchat train`: train ECG-CoCa at a profile's size, on given data or on synthetic ECGs; killed, it goes on.

Only typer is imported at the start. It lies in this room because choosing the step needs the zero-shot score. Exit
codes: 0 done, 2 the input or the call can't be used. Taught in: 07 §9.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ecgchat_lib.errors import MissingPartError, ParameterError, printable

if TYPE_CHECKING:
    from ecgchat_lib.coca.workers import Workers
    from ecgchat_lib.evaluate.train_run import Records, TrainProfile

train_app = typer.Typer(
    help="Train the models of the course.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@train_app.callback()
def _group() -> None:
    """Make `train` a group; the chat model's commands join it in `cli.py`, which stands above both rooms."""


@train_app.command()
def coca(
    out: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where everything is written.", show_default=False)
    ],
    profile: Annotated[Literal["ci", "cpu", "t4", "h100"], typer.Option(help="Sizes for this machine.")] = "ci",
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="SOURCE", help="A manifest (.parquet), or a dataset's folder with --dataset."),
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", metavar="NAME", help="Which dataset SOURCE is.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", show_default="the profile's")] = None,
    batch: Annotated[int | None, typer.Option(help="Pairs per step.", show_default="the profile's")] = None,
    chunk: Annotated[
        int | None, typer.Option(help="Pairs that go through the model at once.", show_default="the profile's")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 7,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in FOLDER, if there is one.")] = False,
    tensorboard: Annotated[bool, typer.Option(help="Write TensorBoard's files too.")] = True,
) -> None:
    """Train ECG-CoCa and keep the best step in FOLDER/best. For several processes start it with torchrun."""
    from dataclasses import replace
    from importlib.util import find_spec

    from ecgchat_lib.coca.plan import plan_training
    from ecgchat_lib.coca.train import STATE
    from ecgchat_lib.coca.workers import join_workers, leave_workers
    from ecgchat_lib.evaluate.train_run import PROFILES, build_pairs, run_training

    if (out / STATE).is_file() and not resume:
        raise ParameterError(f"{out}: holds a run already. Add --resume to go on with it, or name another folder.")
    sizes = PROFILES[profile]
    changed: dict[str, Any] = {"steps": steps, "batch": batch, "chunk": chunk, "seed": seed}
    config = replace(sizes.train, **{name: value for name, value in changed.items() if value is not None})
    config = replace(config, warmup=min(config.warmup, config.steps // 6))
    workers = join_workers()

    def tell(text: str) -> None:
        if workers.index == 0:
            typer.echo(printable(text), err=True)

    workers.rows(config.batch)
    if workers.index:
        workers.wait()  # the first process reads the data, the others find them read
    records = _read(data, dataset, sizes, profile, seed, out, tell)
    model, pairs = build_pairs(records, sizes, seed, out / f"report-states-{workers.index}.npz")
    if not workers.index:
        workers.wait()
    plan = plan_training(model, pairs, config, workers)
    for line in plan.lines():
        _say(line, workers)
    plan.check()
    if tensorboard and find_spec("tensorboard") is None:
        tell("TensorBoard isn't installed (pip install 'ecgchat[train]'): the curve is in curve.jsonl alone")
        tensorboard = False
    result = run_training(model, pairs, records, config, out, tell=tell, tensorboard=tensorboard)
    _say(f"{out / 'best'}: step {result.best_step} of {config.steps}, validation {result.best_value:.4f}", workers)
    leave_workers()


def _say(line: str, workers: Workers) -> None:
    """Write a result line to standard output, once and not from every process."""
    if workers.index == 0:
        typer.echo(line)


def _read(
    data: Path | None, dataset: str | None, sizes: TrainProfile, profile: str, seed: int, out: Path, tell: Any
) -> Records:
    """Return the recordings that were asked for, or synthetic ones where the profile has them."""
    from ecgchat_lib.datasets import load
    from ecgchat_lib.datasets.manifest_file import read_manifest
    from ecgchat_lib.evaluate.train_run import manifest_records, synthetic_records

    encoder = sizes.model.encoder
    if data is None:
        if not sizes.synthetic:
            raise ParameterError(
                f"profile {profile} trains on recordings: name them with --data. A manifest is made by "
                "'ecgchat data manifest NAME FOLDER --out m.parquet'; or give a dataset's folder and --dataset NAME."
            )
        return synthetic_records(sizes.synthetic, seed, encoder)
    if data.is_dir() and dataset is None:
        raise ParameterError(f"--data {data} is a folder: say which dataset it is with --dataset NAME.")
    if not data.exists():
        raise MissingPartError(str(data), "no such file or folder", "Make it with 'ecgchat data manifest'")
    manifest = load(dataset, data) if dataset is not None else read_manifest(data)
    return manifest_records(manifest, encoder, out / "data", tell)
