"""`ecgchat instruct`: build an instruction data set, check a file of conversations, read ECG-QA as another source.

Only typer is imported at the start; each command imports what it needs. Exit codes: 0 done, 1 a check found something
wrong, 2 the input or the call can't be used. Taught in: 10 §6 and §7.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ecgchat_lib.datasets.cli import tell_some

if TYPE_CHECKING:
    from ecgchat_lib.datasets.manifest import Manifest
    from ecgchat_lib.ecg.measure import Measurements
    from ecgchat_lib.instruct.teachers import ConversationTeacher

instruct_app = typer.Typer(
    help="Build, check and describe conversations about ECGs to train a chat model on.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

MEASURED, RECORDINGS = "measurements.jsonl", "recordings"

Source = Annotated[
    Path | None,
    typer.Argument(
        metavar="[MANIFEST]",
        help="A manifest (.parquet or .csv), or a dataset's folder with --dataset.",
        show_default=False,
    ),
]
Dataset = Annotated[str | None, typer.Option("--dataset", metavar="NAME", help="Which dataset the folder is.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
MetadataOnly = Annotated[
    bool, typer.Option("--metadata-only", help="Read no recording; then nothing is asked about numbers.")
]


@instruct_app.command()
def build(
    manifest: Source = None,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where everything is written.")] = Path(
        "instruct"
    ),
    dataset: Dataset = None,
    synthetic: Annotated[
        int | None, typer.Option("--synthetic", metavar="N", help="Make N synthetic ECGs instead.", show_default=False)
    ] = None,
    metadata_only: MetadataOnly = False,
    teacher: Annotated[
        Literal["template", "local", "openai"], typer.Option(help="Who words the answers.")
    ] = "template",
    diagnoses: Annotated[int | None, typer.Option(help="Of one question.", show_default="one per recording")] = None,
    dialogues: Annotated[int | None, typer.Option(help="Of several rounds.", show_default="one per recording")] = None,
    rounds: Annotated[str, typer.Option(metavar="LOW-HIGH", help="Rounds of a dialogue.")] = "4-30",
    comparisons: Annotated[float, typer.Option(help="Share of the dialogues about two ECGs of a patient.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 7,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the build in FOLDER, if there is one.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Of the teacher: a name there, or a folder.", show_default="local: language-model"),
    ] = None,
    base_url: Annotated[
        str, typer.Option("--base-url", metavar="URL", help="Of a server with OpenAI's API.")
    ] = "https://api.openai.com/v1",
    key_name: Annotated[str, typer.Option("--key-name", help="Environment variable with its key.")] = "OPENAI_API_KEY",
    jobs: Annotated[int, typer.Option(help="Requests at a time.")] = 4,
    per_minute: Annotated[float | None, typer.Option("--per-minute", help="Most requests a minute.")] = None,
    budget_tokens: Annotated[int | None, typer.Option("--budget-tokens", help="Most tokens, read and written.")] = None,
    budget_dollars: Annotated[float | None, typer.Option("--budget-dollars", help="Needs both prices.")] = None,
    price_in: Annotated[float | None, typer.Option("--price-in", help="Dollars per million tokens read.")] = None,
    price_out: Annotated[float | None, typer.Option("--price-out", help="Dollars per million written.")] = None,
    as_json: AsJson = False,
) -> None:
    """Build single-turn diagnoses and dialogues from a manifest's statements and measurements, every answer checked."""
    from tqdm import tqdm

    from ecgchat_lib.errors import ParameterError
    from ecgchat_lib.instruct.dataset import build_dataset, refuse_other_build
    from ecgchat_lib.instruct.drafts import BuildConfig
    from ecgchat_lib.instruct.teachers import Budget

    config = BuildConfig(diagnoses, dialogues, _rounds(rounds), comparisons, seed)
    if (price_in is None) != (price_out is None):
        raise ParameterError("prices: expected both --price-in and --price-out, or neither")
    prices = None if price_in is None or price_out is None else (price_in, price_out)
    budget = Budget(budget_tokens, budget_dollars, prices)
    if (manifest is None) == (synthetic is None):
        raise ParameterError("expected either a MANIFEST or --synthetic N")
    refuse_other_build(out, resume)
    writer = _teacher(teacher, model, base_url, key_name, budget, per_minute, jobs)
    table, name, measured, faults = _recordings(manifest, dataset, synthetic, metadata_only, seed, out)
    tell_some([f"{record}: {reason}" for record, reason in faults.items()], "left out")
    with tqdm(total=None, unit="conversation", disable=None) as bar:
        facts = build_dataset(
            table,
            measured,
            config,
            writer,
            out,
            dataset=name,
            unreadable=len(faults),
            resume=resume,
            progress=bar.update,
        )
    _report(out, facts, as_json)


def _report(out: Path, facts: dict[str, Any], as_json: bool) -> None:
    kinds: dict[str, int] = {}
    for items in facts["statistics"]["items"].values():
        for kind, count in items.items():
            kinds[kind] = kinds.get(kind, 0) + count
    checks = facts["checks"]
    if as_json:
        row = {"folder": str(out), **kinds, "unreadable": facts["unreadable"], **checks, "files": facts["files"]}
        typer.echo(json.dumps(row))
        return
    shown = ", ".join(f"{count} of kind {kind}" for kind, count in sorted(kinds.items()))
    typer.echo(
        f"{out}: {shown or 'nothing'}; {checks['answers']} answers, {checks['reworded']} reworded, "
        f"{checks['replaced']} rewordings turned down; {facts['unreadable']} recordings unreadable"
    )


def _rounds(text: str) -> tuple[int, int]:
    from ecgchat_lib.errors import ParameterError

    low, dash, high = text.partition("-")
    if not low.isdecimal() or (dash and not high.isdecimal()) or len(text) > 9:
        raise ParameterError(f"rounds {text[:20]!r}: expected two whole numbers such as 4-30")
    return int(low), int(high or low)


def _teacher(
    kind: str, model: str | None, base_url: str, key_name: str, budget: Any, per_minute: float | None, jobs: int
) -> ConversationTeacher:
    from ecgchat_lib.errors import ParameterError
    from ecgchat_lib.instruct.teachers import OpenAITeacher, TemplateTeacher, load_local_teacher

    if kind == "local":
        return load_local_teacher(model or "language-model")
    if kind == "openai":
        if not model:
            raise ParameterError("teacher openai: name the model with --model")
        return OpenAITeacher(model, base_url, key_name=key_name, budget=budget, per_minute=per_minute, jobs=jobs)
    return TemplateTeacher()


def _recordings(
    source: Path | None, dataset: str | None, synthetic: int | None, metadata_only: bool, seed: int, out: Path
) -> tuple[Manifest, str, dict[str, Measurements] | None, dict[str, str]]:
    """Return the manifest with paths relative to its folder, its dataset's name, what was measured, and what failed."""
    from tqdm import tqdm

    from ecgchat_lib.instruct.measured import measure_manifest

    if synthetic is not None:
        source, dataset = out / RECORDINGS, "synthetic"
        table = _synthetic(source, synthetic, seed)
    else:
        table = read_source(source or Path(), dataset, metadata_only=metadata_only)
    measured: dict[str, Measurements] | None = None
    faults: dict[str, str] = {}
    if not metadata_only:
        with tqdm(total=len(table), desc="measuring", unit="record", disable=None) as bar:
            measured, faults = measure_manifest(table, out / MEASURED, progress=bar.update)
        table = table[~table["record"].isin(list(faults))].reset_index(drop=True)
    if source is not None and source.is_dir():
        table = table.assign(path=[_relative(path, source) for path in table["path"]])
    return table, dataset or "", measured, faults


def _synthetic(folder: Path, n: int, seed: int) -> Manifest:
    """Return the synthetic recordings of a build, which are made once."""
    from ecgchat_lib.datasets import load
    from ecgchat_lib.datasets.synthetic import write_synthetic
    from ecgchat_lib.errors import ParameterError

    note = folder / "synthetic.json"  # written last
    if not note.is_file():
        return write_synthetic(folder, n, seed)
    try:
        made = json.loads(note.read_text(encoding="utf-8"))
        before = (made["n"], made["seed"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        before = None
    if before != (n, seed):
        raise ParameterError(
            f"{folder}: holds other synthetic recordings (number and seed {before}, asked for {(n, seed)}). "
            "Name another folder with --out"
        )
    return load("synthetic", folder)


def read_source(source: Path, dataset: str | None, *, metadata_only: bool = False) -> Manifest:
    """Read a manifest from a Parquet or csv file, or from a dataset's folder.

    In a csv file, `statements` is written as in PTB-XL ("{'SR': 0.0}") or as codes between blanks ("SR IMI:50").

    Raises:
        ParameterError: a folder without a dataset's name.
        MissingPartError, EcgChatError: as the loader.
    """
    from ecgchat_lib.datasets import load
    from ecgchat_lib.datasets.loaders import LOADERS
    from ecgchat_lib.datasets.manifest_file import read_manifest
    from ecgchat_lib.errors import MissingPartError, ParameterError

    if not source.exists():
        raise MissingPartError(str(source), "no such file or folder", "Make a manifest with 'ecgchat data manifest'")
    if dataset is not None:
        loader = LOADERS.get(dataset)
        optional = "require_files" in (getattr(loader, "__kwdefaults__", None) or {})
        return load(dataset, source, **({"require_files": False} if metadata_only and optional else {}))
    if source.is_dir():
        raise ParameterError(f"{source} is a folder: say which dataset it is with --dataset NAME")
    return _read_csv(source) if source.suffix.lower() == ".csv" else read_manifest(source)


def _read_csv(source: Path) -> Manifest:
    import pandas as pd

    from ecgchat_lib.datasets.labels import parse_statements
    from ecgchat_lib.datasets.manifest import make_manifest
    from ecgchat_lib.datasets.ptbxl import parse_scp_codes
    from ecgchat_lib.errors import EcgChatError

    try:
        table = pd.read_csv(source, dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise EcgChatError(
            f"{source}: can't be read as csv ({type(error).__name__}). Write UTF-8 with a header"
        ) from None
    needed = ["record", "path", "patient", "split", "report", "statements", "language"]
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise EcgChatError(f"{source}: columns {missing} are missing; expected {needed}")
    rows: list[dict[str, Any]] = table[needed].to_dict("records")  # type: ignore[assignment]
    for row in rows:
        text, where = row["statements"], f"{source.name}, record {row['record']}"
        row["statements"] = (
            parse_scp_codes(text, where=where) if text.startswith("{") else parse_statements(text, where=where)
        )
    return make_manifest(rows)


def _relative(path: str, folder: Path) -> str:
    """Return a path below a folder as such, so that files are the same wherever the folder lies."""
    place = Path(path)
    return place.relative_to(folder).as_posix() if place.is_relative_to(folder) else path


@instruct_app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Conversations: .jsonl, or one JSON list.")],
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Check the facts too, against these statements.")
    ] = None,
    dataset: Dataset = None,
    measurements: Annotated[
        Path | None, typer.Option("--measurements", help="measurements.jsonl beside the data set.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a file of conversations: its format and, given a manifest, every answer's facts."""
    from ecgchat_lib.instruct.check import find_false, read_conversations
    from ecgchat_lib.instruct.measured import read_measurements

    conversations = read_conversations(file)
    wrong: list[str] = []
    answers: int | None = None
    if manifest is not None:
        measured = None if measurements is None else read_measurements(measurements)
        table = read_source(manifest, dataset, metadata_only=True)
        if manifest.is_dir():
            table = table.assign(path=[_relative(path, manifest) for path in table["path"]])
        wrong, answers = find_false(conversations, table, measured)
    tell_some(wrong, "wrong")
    rounds = sum(len(item["conversations"]) // 2 for item in conversations)
    facts = {"file": str(file), "conversations": len(conversations), "rounds": rounds}
    if as_json:
        typer.echo(json.dumps({**facts, "answers_checked": answers, "wrong": None if answers is None else len(wrong)}))
    else:
        told = "facts not checked (no --manifest)" if answers is None else f"{len(wrong)} of {answers} answers wrong"
        typer.echo(f"{file}: {len(conversations)} conversations, {rounds} rounds, format right; {told}")
    if wrong:
        raise typer.Exit(1)


@instruct_app.command()
def card(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A finished build.")]) -> None:
    """Print a data set's card, after checking its files against their hashes."""
    from ecgchat_lib.instruct.check import read_card

    typer.echo(read_card(folder), nl=False)


@instruct_app.command()
def ecgqa(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="One of ECG-QA's json files (PTB-XL).")],
    out: Annotated[Path, typer.Option("--out", help="The .jsonl file to write.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Turn ECG-QA's questions and answers into conversations of the same format."""
    from ecgchat_lib.instruct.dataset import write_conversations
    from ecgchat_lib.instruct.ecgqa import read_ecgqa

    conversations = read_ecgqa(file)
    write_conversations(out, conversations)
    templates = len({item["provenance"]["rounds"][0]["wording"] for item in conversations})
    facts = {"file": str(out), "conversations": len(conversations), "templates": templates}
    shown = f"{out}: {len(conversations)} conversations by {templates} of ECG-QA's templates"
    typer.echo(json.dumps(facts) if as_json else shown)
