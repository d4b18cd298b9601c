"""`ecgchat course`: run, build and list the notebooks, and make the site.

Only typer is imported at the start; each command imports what it needs.
Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Run, build and list the notebooks, and make the site.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Only = Annotated[list[str] | None, typer.Option("--only", metavar="NN", help="Only this notebook; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="One line of JSON for each notebook.")]


@app.command()
def build(
    only: Only = None,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the sources; execute and write nothing.")
    ] = False,
    text_only: Annotated[
        bool, typer.Option("--text-only", help="Renew the generated text; keep stored outputs.")
    ] = False,
) -> None:
    """Build notebooks/NN_slug.ipynb, notebooks/solutions/, figures/ and README.md's table from notebooks/py/."""
    from ecgchat_lib.course import builder
    from ecgchat_lib.course.catalog import load_catalog

    catalog = load_catalog()
    chosen = catalog.select(only)
    if not check:
        builder.build_series(catalog, chosen, execute=not text_only, tell=typer.echo)
        return
    problems = [problem for notebook in chosen for problem in builder.check_built(catalog, notebook)]
    problems += builder.check_readme(catalog)
    for problem in problems:
        typer.echo(f"{problem.path}: {problem.what}", err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{len(chosen)} notebooks are in step with their sources")


@app.command("list")
def list_notebooks(as_json: Json = False) -> None:
    """List the notebooks in order."""
    from dataclasses import asdict

    from ecgchat_lib.course.catalog import load_catalog

    for notebook in load_catalog().notebooks:
        if as_json:
            typer.echo(json.dumps(asdict(notebook), ensure_ascii=False))
        else:
            typer.echo(f"{notebook.number}  {notebook.title}: {notebook.promise}")


@app.command()
def run(
    profile: Annotated[str, typer.Option(help="Sizes for which machine: ci, cpu, t4 or h100.")] = "ci",
    only: Only = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", metavar="[NN:]NAME=VALUE", help="Set a parameter; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where everything is written.", show_default="out/")] = None,
    solutions: Annotated[bool, typer.Option("--solutions", help="Run the versions with exercises solved.")] = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Go on after a notebook that fails.")] = False,
    record: Annotated[bool, typer.Option("--record", help="Copy the results into data/results/.")] = False,
    as_json: Json = False,
) -> None:
    """Execute the notebooks in order with papermill; ends with a table of seconds, memory and what was written."""
    from ecgchat_lib.course import runner
    from ecgchat_lib.course.catalog import load_catalog
    from ecgchat_lib.paths import output_folder

    catalog = load_catalog()
    jobs = runner.plan(catalog, profile=profile, only=only, settings=param or [], solutions=solutions)
    folder = out or output_folder()

    def tell(outcome: runner.Outcome) -> None:
        if as_json:
            typer.echo(runner.as_json(outcome))
        elif sys.stderr.isatty() or outcome.failed:
            state = f"FAILED in {outcome.failed}" if outcome.failed else f"{outcome.seconds:.0f} s"
            typer.echo(f"{outcome.number}: {state}", err=True)
        if record and not outcome.failed:
            runner.record(outcome, profile, folder, catalog.root)

    outcomes = runner.run_series(jobs, catalog.root, folder, keep_going=keep_going, tell=tell)
    if not as_json:
        typer.echo(runner.table(outcomes))
    if any(outcome.failed for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def site(
    out: Annotated[Path, typer.Option(help="Folder of the HTML site.")] = Path("site"),
    executed: Annotated[
        Path | None, typer.Option(help="Show the notebooks of a run, e.g. out/executed, not the committed ones.")
    ] = None,
) -> None:
    """Make the HTML site from the notebooks as they are stored; nothing is executed and nothing fetched."""
    from ecgchat_lib.course.catalog import load_catalog
    from ecgchat_lib.course.site import build_site

    typer.echo(f"The site is in {build_site(load_catalog(), out, executed)}")


def main() -> None:
    """Run the sub-command on its own, with errors in one line."""
    from ecgchat_lib.errors import EcgChatError

    try:
        app()
    except EcgChatError as error:
        typer.echo(f"ecgchat: {error}", err=True)
        sys.exit(error.exit_code)
