"""The real series, looked at without executing it: sources, built notebooks, exercises, figures, profiles agree."""

from __future__ import annotations

import ast
import json
import re
import statistics
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
import yaml

from ecgchat_lib.course import Misconception
from ecgchat_lib.course.builder import check_built, check_readme
from ecgchat_lib.course.catalog import load_catalog
from ecgchat_lib.course.check import exercises, verdict
from ecgchat_lib.course.compose import stub, whole
from ecgchat_lib.course.parameters import PROFILES_FOLDER, load_profile
from ecgchat_lib.course.results import PROFILES, read_results

ROOT = Path(__file__).parent.parent
CATALOG = load_catalog(ROOT)
EXERCISES = [exercise for notebook in CATALOG.notebooks for exercise in exercises(notebook.number)]
# Packages whose import name is another; and rooms of the library that compute with torch
IMPORT_NAMES = {"open_clip": "open_clip_torch", "sklearn": "scikit-learn"}
USES_TORCH = re.compile(r"ecgchat_lib(\.| import )(augment|coca|chat|instruct\.train|evaluate\.probe)")

every_notebook = pytest.mark.parametrize("notebook", CATALOG.notebooks, ids=lambda notebook: notebook.number)
every_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)


def cells(notebook):
    return jupytext.read(CATALOG.source(notebook), fmt="py:percent").cells


def code(notebook):
    return [cell for cell in cells(notebook) if cell.cell_type == "code"]


def markdown(notebook):
    return "\n".join(cell.source for cell in cells(notebook) if cell.cell_type == "markdown")


def test_each_source_has_its_entry_and_each_entry_its_source():
    assert {path.stem for path in (ROOT / "notebooks" / "py").glob("*.py")} == {n.stem for n in CATALOG.notebooks}
    for folder in ("notebooks", "notebooks/solutions"):
        assert {path.stem for path in (ROOT / folder).glob("*.ipynb")} == {n.stem for n in CATALOG.notebooks}


@every_notebook
def test_a_built_notebook_is_in_step_and_clean(notebook):
    assert [f"{problem.path}: {problem.what}" for problem in check_built(CATALOG, notebook)] == []


def test_the_readme_shows_the_series():
    assert list(check_readme(CATALOG)) == []


def test_all_built_notebooks_together_are_small():
    assert sum(path.stat().st_size for path in (ROOT / "notebooks").rglob("*.ipynb")) < 8_000_000


@every_notebook
def test_code_cells_are_short(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code(notebook)]
    assert statistics.median(lengths) <= 10
    assert max(lengths) <= 40


@every_notebook
def test_a_notebook_starts_and_finishes_as_all_do(notebook):
    found = code(notebook)
    assert found[0].metadata["tags"] == ["parameters"]
    assert f'start("{notebook.number}", globals())' in found[1].source
    assert "run.finish(" in found[-1].source
    assert "run.show(" in "".join(cell.source for cell in found)


@every_notebook
def test_goals_are_met_by_checks_that_are_there(notebook):
    known = {exercise.id for exercise in exercises(notebook.number)}
    sections = set(re.findall(r"^## (\d+)\. ", markdown(notebook), re.MULTILINE))
    for goal in notebook.goals:
        if goal.check.startswith("§"):
            assert goal.check[1:] in sections, goal
        else:
            assert goal.check in known, goal


@every_notebook
def test_the_packages_are_those_that_the_notebook_imports(notebook):
    source = CATALOG.source(notebook).read_text(encoding="utf-8")
    imported = {
        IMPORT_NAMES.get(name.split(".")[0], name.split(".")[0])
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    dependencies = yaml.safe_load((ROOT / "course.yml").read_text(encoding="utf-8"))["notebooks"]
    known = {package for entry in dependencies for package in entry["packages"]}
    assert (imported & known) - set(notebook.packages) == set()
    if USES_TORCH.search(source):
        assert "torch" in notebook.packages, "the library's torch rooms are used, so torch must be listed and seeded"


# --- exercises


@every_notebook
def test_a_notebook_has_two_exercises_told_as_they_are_defined(notebook):
    found = exercises(notebook.number)
    assert len(found) >= 2
    text, calls = markdown(notebook), "".join(cell.source for cell in code(notebook))
    solutions = [cell for cell in code(notebook) if "solution" in cell.metadata.get("tags", [])]
    assert len(solutions) >= 2
    for exercise in found:
        assert exercise.id.startswith(f"{notebook.number}.")
        stars = "★" * exercise.difficulty + "☆" * (3 - exercise.difficulty)
        heading = re.search(rf"^### Exercise {re.escape(exercise.id)}\W+(.*)$", text, re.MULTILINE)
        assert heading, f"there is no heading '### Exercise {exercise.id} …'"
        assert f"({stars}, {exercise.minutes} min)" in heading[1]
        assert exercise.title.lower() in heading[1].lower()
        assert f'check("{exercise.id}"' in calls
    assert text.count("<details>") >= len(found), "each exercise has a hint"


@every_notebook
def test_the_lines_of_a_stub_occur_in_its_solution(notebook):
    for cell in code(notebook):
        if "solution" in cell.metadata.get("tags", []):
            kept = [line for line in stub(cell.source).splitlines() if "# your code here" not in line]
            assert set(kept) <= set(whole(cell.source).splitlines())
            assert len(kept) < len(whole(cell.source).splitlines())


@every_exercise
@pytest.mark.parametrize("seed", range(5))
def test_the_reference_passes(exercise, seed):
    exercise.verify(exercise.reference, np.random.default_rng(seed))


@every_exercise
def test_wrong_answers_fail_with_the_misconceptions_name(exercise):
    assert len(exercise.wrong) >= 2
    told = set()
    for why, answer in exercise.wrong:
        for seed in range(5):
            with pytest.raises(Misconception) as caught:
                exercise.verify(answer, np.random.default_rng(seed))
            assert len(str(caught.value)) >= 20, why
        line = verdict(exercise, answer)
        assert line.startswith(f"Exercise {exercise.id}: not yet. ")
        assert line == verdict(exercise, answer)
        told.add(line)
    assert verdict(exercise, exercise.reference).startswith(f"Exercise {exercise.id} passed")
    assert verdict(exercise, ...) == f"Exercise {exercise.id}: not attempted yet"


@every_exercise
def test_nothing_that_a_learner_hands_in_raises(exercise):
    for answer in (None, 3, "text", lambda: 1, lambda *args, **kwargs: None, lambda *args, **kwargs: "text", []):
        assert "passed" not in verdict(exercise, answer)


# --- figures


def sidecars():
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "figures").glob("*.json")}


@every_notebook
def test_the_figures_of_a_notebook_lie_in_figures(notebook):
    found = {name: card for name, card in sidecars().items() if name.startswith(f"{notebook.number}_")}
    assert notebook.figure in {card["id"] for card in found.values()}
    assert len({card["id"] for card in found.values()}) == len(found)
    shown = nbformat.read(CATALOG.built(notebook), as_version=4)
    texts = [str(o.get("data", {}).get("text/plain", "")) for c in shown.cells for o in c.get("outputs", [])]
    for name, card in found.items():
        assert (ROOT / "figures" / f"{name}.png").is_file()
        assert len(card["alt"]) >= 40
        assert card["alt"] != card["caption"]
        assert any(card["digest"] in text and card["alt"] in text and card["caption"] in text for text in texts), name


def test_no_picture_is_without_its_sidecar():
    assert {path.stem for path in (ROOT / "figures").glob("*.png") if re.match(r"\d\d_", path.stem)} == set(sidecars())


# --- profiles and recorded results


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_knows_the_series(profile):
    content = load_profile(profile)
    assert set(content) == {"machine", "network", "gpu", "threads", "cell_timeout", "notebooks"}
    assert set(content["notebooks"]) <= {notebook.number for notebook in CATALOG.notebooks}
    if profile == "ci":
        assert not any(content["notebooks"].values()), "ci's values are those of the parameters cells"


def test_the_profiles_are_these():
    assert sorted(path.stem for path in PROFILES_FOLDER.glob("*.yml")) == sorted(PROFILES)


def test_recorded_results_are_well_formed():
    for path in (ROOT / "data" / "results").glob("[0-9][0-9]_*.json"):
        content = read_results(path)
        assert path.stem == f"{content['notebook']}_{content['profile']}"
        assert content["notebook"] in {notebook.number for notebook in CATALOG.notebooks}
        assert content["stamp"]["peak_memory_mb"] > 0
