"""`ecgchat data`: fetch datasets, check them, show their cards, and pack their recordings for fast reading.

Only typer is imported at the start; each command imports what it needs. Exit codes: 0 done, 1 something failed while
running, 2 the input or the call can't be used. Taught in: 02 §6 and §6.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ecgchat_lib.errors import printable

if TYPE_CHECKING:
    from ecgchat_lib.datasets.fetch import Summary

app = typer.Typer(
    help="Fetch datasets, check them, show their cards, and pack their recordings for fast reading.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

SHOWN = 10  # names in a list of faults, before "and N more"

Name = Annotated[str, typer.Argument(metavar="NAME", help="A dataset; 'ecgchat data list' shows them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", metavar="URL", help="A mirror that holds the same files.", show_default=False),
]


def tell(text: str) -> None:
    """Write a line for people to standard error, without control characters."""
    typer.echo(printable(text), err=True)


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@app.command("list")
def list_datasets(as_json: AsJson = False) -> None:
    """List the datasets: version, size, access, license, and whether they are here."""
    from ecgchat_lib.datasets.fetch import default_folder, read_state
    from ecgchat_lib.datasets.sources import load_source, source_names

    for name in source_names():
        source = load_source(name)
        here = bool(read_state(default_folder(name)))
        if as_json:
            facts = {"name": name, "version": source.version, "access": source.access, "license": source.license}
            typer.echo(json.dumps({**facts, "bytes": source.total_bytes or None, "page": source.page, "here": here}))
        else:
            size = _gigabytes(source.total_bytes) if source.total_bytes else "-"
            where = "here" if here else ""
            typer.echo(f"{name:14} {source.version:6} {size:>9}  {source.access:12} {source.license}  {where}".rstrip())


@app.command()
def fetch(
    name: Name,
    subset: Annotated[
        int | None,
        typer.Option(
            "--subset", metavar="N", help="Only the first N recordings, no patient half inside.", show_default=False
        ),
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Folder.", show_default="data/downloads/NAME")] = None,
    base_url: BaseUrl = None,
    jobs: Annotated[int, typer.Option(help="Files at a time, 1 to 16.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Fetch a dataset from its publisher; goes on where an earlier call was cut off."""
    from ecgchat_lib.datasets.fetch import default_folder
    from ecgchat_lib.datasets.fetch import fetch as fetch_dataset
    from ecgchat_lib.datasets.sources import load_source

    source = load_source(name)

    def confirm(files: int, size: int, free: int) -> bool:
        if source.note:
            tell(f"note: {source.note}")
        return _confirm(files, size, free)

    summary = fetch_dataset(
        source, to or default_folder(name), subset=subset, base_url=base_url, jobs=jobs, confirm=confirm
    )
    _report_fetch(summary, as_json)
    if summary.failed:
        raise typer.Exit(1)


def _confirm(files: int, size: int, free: int) -> bool:
    """Say what is coming; ask only at a terminal, and only from a gigabyte on."""
    tell(f"{files} files, about {_gigabytes(size)}; {_gigabytes(free)} of the disk are free")
    return size < 1e9 or not sys.stdin.isatty() or typer.confirm("Go on?", default=True, err=True)


def _report_fetch(summary: Summary, as_json: bool) -> None:
    """Print what a fetch did."""
    for note in summary.notes:
        tell(f"note: {note}")
    tell_some([f"{name}: {reason}" for name, reason in summary.failed], "failed")
    counts: dict[str, Any] = {
        "folder": str(summary.folder),
        "recordings": summary.recordings,
        "files": summary.chosen,
        "fetched": summary.fetched,
        "already_there": summary.present,
        "failed": len(summary.failed),
    }
    if as_json:
        typer.echo(json.dumps({**counts, "bytes_received": summary.received, "seconds": round(summary.seconds, 1)}))
        return
    typer.echo(
        f"{summary.folder}: {summary.fetched} files fetched ({_gigabytes(summary.received)}, {summary.seconds:.0f} s), "
        f"{summary.present} already there, {len(summary.failed)} failed; each sha256 checked"
    )


def tell_some(lines: list[str], what: str) -> None:
    """Write the first of many lines for people, and how many more there are."""
    for line in lines[:SHOWN]:
        tell(f"{what}: {line}")
    if len(lines) > SHOWN:
        tell(f"{what}: and {len(lines) - SHOWN} more")


@app.command()
def verify(
    what: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="A dataset, its folder, or a packed store.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Fetch again what is missing or damaged, and nothing else.")
    ] = False,
    base_url: BaseUrl = None,
    as_json: AsJson = False,
) -> None:
    """Check the sha256 of every file: what is missing, damaged, or shouldn't be there."""
    from ecgchat_lib.datasets.packed import is_store
    from ecgchat_lib.datasets.verify import verify as verify_dataset

    folder = _folder_of(what)
    if is_store(folder):
        _verify_store(folder, as_json)
        return
    report = verify_dataset(folder)
    if repair and not report.sound:
        _repair(folder, [*report.missing, *report.damaged], base_url)
        report = verify_dataset(folder)
    counts = {"right": report.right, **{k: len(getattr(report, k)) for k in ("missing", "damaged", "extra")}}
    for kind in ("missing", "damaged", "extra"):
        tell_some(getattr(report, kind), kind)
    for note in report.notes:
        tell(f"note: {note}")
    shown = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    typer.echo(json.dumps({"folder": str(folder), **counts}) if as_json else f"{folder}: {shown}")
    if not report.sound:
        raise typer.Exit(1)


def _folder_of(what: str) -> Path:
    """Return the folder that a dataset's name or a path means; a folder of that name wins over a dataset."""
    from ecgchat_lib.datasets.fetch import default_folder
    from ecgchat_lib.datasets.sources import source_names
    from ecgchat_lib.errors import MissingPartError

    if Path(what).is_dir():
        return Path(what)
    if what not in source_names():
        raise MissingPartError(what, "neither a folder nor a dataset", f"Known datasets: {', '.join(source_names())}")
    if not default_folder(what).is_dir():
        raise MissingPartError(what, "not fetched yet", f"Fetch it: ecgchat data fetch {what}, or name its folder")
    return default_folder(what)


def _repair(folder: Path, names: list[str], base_url: str | None) -> None:
    from ecgchat_lib.datasets.fetch import read_state, refetch
    from ecgchat_lib.datasets.sources import load_source
    from ecgchat_lib.errors import EcgChatError

    state = read_state(folder)
    if "dataset" not in state:
        raise EcgChatError(
            f"{folder}: not fetched by 'ecgchat data fetch', so where to fetch from isn't known. Use --to with fetch"
        )
    source = load_source(str(state["dataset"]))
    before = str(state.get("base_url", source.base_url))
    mirror = base_url or (None if before == source.base_url else before)
    summary = refetch(source, folder, names, base_url=mirror)
    tell_some([f"{name}: {reason}" for name, reason in summary.failed], "failed")


def _verify_store(folder: Path, as_json: bool) -> None:
    from ecgchat_lib.datasets.packed import PackedStore

    with PackedStore(folder) as store:
        faults = store.verify()
        facts = {"folder": str(folder), "records": len(store), "blocks": len(store.blocks), "damaged": len(faults)}
    tell_some(faults, "damaged")
    shown = f"{folder}: {facts['records']} records in {facts['blocks']} blocks, {len(faults)} damaged"
    typer.echo(json.dumps(facts) if as_json else shown)
    if faults:
        raise typer.Exit(1)


@app.command()
def card(name: Name) -> None:
    """Print a dataset's card: size, license, source, and what to know before using it."""
    from ecgchat_lib.datasets.cards import card_text

    typer.echo(card_text(name))


@app.command()
def manifest(
    name: Name,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the dataset is.")],
    out: Annotated[Path, typer.Option("--out", help="The Parquet file to write.", show_default=False)],
) -> None:
    """Turn a dataset's own tables into a manifest, one row per recording, and write it."""
    from ecgchat_lib.datasets import load
    from ecgchat_lib.datasets.manifest_file import write_manifest

    loaded = load(name, folder)
    write_manifest(loaded, out)
    counts = ", ".join(f"{count} {split}" for split, count in loaded["split"].value_counts(sort=False).items())
    typer.echo(f"{out}: {len(loaded)} recordings of {loaded['patient'].nunique()} patients ({counts})")


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A manifest (.parquet), or a folder of recordings.")],
    out: Annotated[Path, typer.Option("--out", help="The store's folder.", show_default=False)],
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", metavar="NAME", help="SOURCE is this dataset's folder.", show_default=False),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Pack recordings into a store for fast reading; run it again after an interruption and it goes on."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from tqdm import tqdm

    from ecgchat_lib.datasets.pack import pack as pack_records
    from ecgchat_lib.errors import ParameterError

    if not 1 <= jobs <= 256:
        raise ParameterError(f"jobs: {jobs}, expected 1 to 256")
    records = _records(source, dataset)
    with tqdm(total=len(records), unit="record", disable=None) as bar:
        if jobs == 1:
            summary = pack_records(records, out, progress=bar.update)
        else:
            with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as executor:
                summary = pack_records(records, out, executor=executor, progress=bar.update)
    tell_some([f"{failure['record']}: {failure['reason']}" for failure in summary.failures], "not packed")
    facts = {"folder": str(out), "records": summary.records, "not_packed": len(summary.failures)}
    facts |= {"inexact": summary.inexact, "blocks": summary.blocks, "bytes": summary.bytes}
    exact = "each exact to the last bit" if not summary.inexact else f"{summary.inexact} of them not exact (error_mv)"
    shown = (
        f"{out}: {summary.records} recordings, {exact}; {len(summary.failures)} not packed; {_gigabytes(summary.bytes)}"
    )
    typer.echo(json.dumps(facts) if as_json else shown)
    if not summary.records:
        raise typer.Exit(1)


def _records(source: Path, dataset: str | None) -> Any:
    """Return what to pack: a manifest, or the recordings of a folder, named after their place in it."""
    import pandas as pd

    from ecgchat_lib.datasets import load
    from ecgchat_lib.datasets.manifest_file import read_manifest
    from ecgchat_lib.errors import MissingPartError

    if dataset is not None:
        return load(dataset, source)
    if not source.is_dir():
        return read_manifest(source)
    headers = sorted(source.rglob("*.hea"))
    if not headers:
        raise MissingPartError(str(source), "no WFDB header (*.hea) in it", "Name a folder of recordings or a manifest")
    names = [header.relative_to(source).with_suffix("").as_posix() for header in headers]
    return pd.DataFrame({"record": names, "path": [str(header.with_suffix("")) for header in headers]}, dtype=object)
