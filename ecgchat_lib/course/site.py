"""The HTML site: the stored notebooks and the pages in `docs/`, put together by Sphinx without executing anything.

It fetches nothing and its pages fetch nothing: formulas are MathML, fonts and scripts are the theme's own files.
Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ecgchat_lib.course import header
from ecgchat_lib.course.catalog import Catalog
from ecgchat_lib.errors import EcgChatError, MissingPartError


def build_site(catalog: Catalog, out: Path, executed: Path | None = None) -> Path:
    """Make the site and return its first page.

    Args:
        catalog: the course.
        out: the folder that the site replaces.
        executed: a folder of executed notebooks to be shown; default: the committed ones.

    Raises:
        MissingPartError: Sphinx or its extensions aren't installed, or no notebook is there.
        EcgChatError: Sphinx failed; the message has its last line.
    """
    for module in ("sphinx", "myst_nb", "sphinx_book_theme"):
        if importlib.util.find_spec(module) is None:
            raise MissingPartError(module, "not installed", "Run: pip install -e '.[site]'")
    with tempfile.TemporaryDirectory(prefix="ecgchat-site-") as folder:
        source, made = Path(folder) / "source", Path(folder) / "html"
        collect(catalog, source, executed)
        command = [sys.executable, "-m", "sphinx", "-q", "-b", "html", "-j", "auto", str(source), str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise EcgChatError(f"site: sphinx ended with code {done.returncode}: {last}")
        sys.stderr.write(done.stderr.replace(str(source), ""))
        for left in (".doctrees", ".buildinfo", "objects.inv"):
            path = made / left
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if out.exists():
            shutil.rmtree(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, out)
    return out / "index.html"


def collect(catalog: Catalog, source: Path, executed: Path | None) -> None:
    """Lay out what Sphinx reads: the pages, the notebooks with their sources, the figures."""
    shutil.copytree(catalog.root / "docs", source, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    shutil.copytree(catalog.root / "figures", source / "figures")
    (source / "notebooks" / "solutions").mkdir(parents=True)
    (source / "notebooks" / "py").mkdir()
    shown = []
    for notebook in catalog.notebooks:
        built = catalog.built(notebook)
        path = executed / built.name if executed else built
        if path.is_file():
            shutil.copy(path, source / "notebooks")
            shown.append(notebook)
            solved = catalog.built(notebook, solutions=True)
            if solved.is_file():
                text = solved.read_text(encoding="utf-8")  # in the site they aren't in the navigation
                (source / "notebooks" / "solutions" / solved.name).write_text(
                    text.replace('"metadata": {\n  "ecgchat"', '"metadata": {\n  "orphan": true,\n  "ecgchat"')
                )
            shutil.copy(catalog.source(notebook), source / "notebooks" / "py")
    if not shown:
        raise MissingPartError("notebooks", "none is there to be shown", "Run: ecgchat course build")
    pages = [path.stem for path in sorted(source.glob("*.md")) if path.stem != "index"]
    contents = [
        "```{toctree}",
        ":hidden:",
        ":caption: Notebooks",
        *(f"notebooks/{n.stem}" for n in shown),
        "```",
        "",
        "```{toctree}",
        ":hidden:",
        ":caption: About the course",
        *pages,
        "```",
        "",
    ]
    index = source / "index.md"
    text = header.with_table(index.read_text(encoding="utf-8"), header.readme_table(catalog))
    index.write_text(text + "\n" + "\n".join(contents), encoding="utf-8")
