"""Building, running, checking with nbval and showing a small course, for real: kernels, papermill, Sphinx."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from course_example import SOURCE, make_course
from typer.testing import CliRunner

from ecgchat_lib.course import builder, runner
from ecgchat_lib.course.catalog import load_catalog
from ecgchat_lib.course.cli import app
from ecgchat_lib.course.site import build_site
from ecgchat_lib.errors import MissingPartError, ParameterError

PROJECT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


def contents(root):
    kept = [path for path in root.rglob("*") if path.is_file() and path.suffix in {".ipynb", ".png", ".json", ".md"}]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in kept}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The example, built once; tests that change it copy it."""
    root = make_course(tmp_path_factory.mktemp("course"))
    builder.build_series(load_catalog(root), load_catalog(root).notebooks, tell=lambda line: None)
    return root


@pytest.fixture
def copy(built, tmp_path, monkeypatch):
    root = Path(shutil.copytree(built, tmp_path / "course"))
    monkeypatch.setenv("ECGCHAT_HOME", str(root))
    monkeypatch.setenv("ECGCHAT_OUT", str(tmp_path / "out"))
    return root


def problems(root):
    catalog = load_catalog(root)
    found = [problem for notebook in catalog.notebooks for problem in builder.check_built(catalog, notebook)]
    return "; ".join(f"{problem.path}: {problem.what}" for problem in [*found, *builder.check_readme(catalog)])


def test_a_build_makes_both_versions_figures_and_the_table(built):
    assert sorted(name for name in contents(built) if not name.startswith("notebooks/py")) == [
        "README.md",
        "figures/01_1_one_wave.json",
        "figures/01_1_one_wave.png",
        "notebooks/01_wave.ipynb",
        "notebooks/02_again.ipynb",
        "notebooks/solutions/01_wave.ipynb",
        "notebooks/solutions/02_again.ipynb",
    ]
    stub, whole = (
        nbformat.read(built / "notebooks" / folder / "01_wave.ipynb", as_version=4) for folder in ("", "solutions")
    )
    assert "...  # your code here" in str(stub.cells)
    assert "y = 2 * x" not in str(stub.cells)
    assert "y = 2 * x" in str(whole.cells)
    assert [cell.id for cell in stub.cells] == [cell.id for cell in whole.cells]
    assert "<solution>" not in str(whole.cells)
    printed = [output.text for cell in whole.cells for output in cell.get("outputs", []) if "text" in output]
    assert printed[0] == "50 points, the highest is 1.00; the seed is 7\n"
    assert printed[-1] == "Written to results/01_ci.json: highest, unknown, points\n"
    assert "![A sine of 50 points between -1.0 and 1.0 mV.](../figures/01_1_one_wave.png)" in stub.cells[0].source
    assert problems(built) == ""


def test_alt_text_is_where_each_reader_looks_for_it(built):
    notebook = nbformat.read(built / "notebooks" / "01_wave.ipynb", as_version=4)
    cell = next(cell for cell in notebook.cells if "mystnb" in cell.metadata)
    alt = "A sine of 50 points between -1.0 and 1.0 mV."
    assert cell.metadata["mystnb"]["image"]["alt"] == alt
    assert cell.outputs[0].metadata["image/png"]["alt"] == alt
    sidecar = json.loads((built / "figures" / "01_1_one_wave.json").read_text())
    assert sidecar["alt"] == alt
    assert sidecar["digest"] in cell.outputs[1].data["text/plain"]


def test_building_again_gives_the_same_bytes(copy):
    before = contents(copy)
    catalog = load_catalog(copy)
    builder.build(catalog, catalog["01"])
    assert contents(copy) == before


def test_check_tells_what_is_out_of_step(copy):
    source = copy / "notebooks" / "py" / "01_wave.py"
    source.write_text(source.read_text().replace("import numpy as np", "import numpy as np  # numbers"))
    assert "notebooks/01_wave.ipynb: out of step: cell 01-c005 differs" in problems(copy)
    source.write_text(SOURCE + "\n")
    assert "source hash" in problems(copy)
    source.write_text(SOURCE)
    (copy / "notebooks" / "02_again.ipynb").unlink()
    assert problems(copy).startswith("notebooks/02_again.ipynb: isn't built")
    result = CliRunner().invoke(app, ["build", "--check"])
    assert result.exit_code == 1
    assert "02_again.ipynb: isn't built" in result.output


def test_text_is_renewed_without_executing(copy):
    course = copy / "course.yml"
    course.write_text(course.read_text().replace("promise: One turn of a sine, drawn.", "promise: A sine, drawn."))
    assert "cell 01-c000 differs" in problems(copy)
    assert "README.md: the table" in problems(copy)
    assert CliRunner().invoke(app, ["build", "--text-only"]).exit_code == 0
    assert problems(copy) == ""
    source = copy / "notebooks" / "py" / "01_wave.py"
    source.write_text(source.read_text() + "\nprint(1)\n")
    catalog = load_catalog(copy)
    with pytest.raises(builder.BuildError, match="source has changed"):
        builder.build(catalog, catalog["01"], execute=False)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("raise ValueError('wrong\\nthing')", "cell 01-c005: ValueError: wrong thing"),
        ("import socket; socket.getaddrinfo('example.org', 80)", "NetworkBlockedError: the network is blocked"),
        ("import sys; print('careful', file=sys.stderr)", "output on stderr: 'careful'"),
        ("import time; time.sleep(60)", "cell 01-c005: ran longer than 3 s"),
        ("import os; os._exit(3)", "died"),
    ],
)
def test_a_notebook_that_fails_is_not_built(tmp_path, extra, said):
    root = make_course(tmp_path, SOURCE.split("# %%\nimport numpy")[0] + f"# %%\nprint(POINTS)\n{extra}\n")
    catalog = load_catalog(root)
    with pytest.raises(builder.BuildError) as caught:
        builder.build(catalog, catalog["01"], timeout=3)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not catalog.built(catalog["01"]).exists()


# --- running


def run(*arguments):
    return CliRunner().invoke(app, ["run", *arguments])


def test_a_run_takes_other_values_and_tells_what_it_cost(copy, tmp_path):
    result = run("--param", "POINTS=77", "--param", "02:SEED=3", "--solutions", "--json", "--record")
    assert result.exit_code == 0, result.output
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["number"] for line in told] == ["01", "02"]
    assert all(line["seconds"] > 0 and line["peak_memory_mb"] > 30 and not line["failed"] for line in told)
    out = tmp_path / "out"
    assert {"executed/01_wave.ipynb", "figures/01_1_one_wave.png", "results/01_ci.json", "artefacts/wave.npy"} <= set(
        told[0]["wrote"]
    )
    first, second = (json.loads((out / "results" / f"{number}_ci.json").read_text()) for number in ("01", "02"))
    assert first["parameters"] == {"PROFILE": "ci", "SEED": 7, "POINTS": 77}
    assert second["parameters"]["SEED"] == 3
    assert first["metrics"]["points"] == 77
    assert first["stamp"]["seconds"] == told[0]["seconds"]
    assert str(tmp_path) not in (out / "executed" / "01_wave.ipynb").read_text()
    assert "77 points" in (out / "executed" / "01_wave.ipynb").read_text()
    assert (copy / "data" / "results" / "02_ci.json").is_file()
    assert problems(copy).count("out of step") == 5  # four notebooks and README.md show the recorded run


def test_a_run_ends_with_a_table():
    outcomes = [
        runner.Outcome(
            "01",
            2.04,
            107,
            ("executed/a.ipynb", "figures/a.png", "artefacts/a/b/c", "artefacts/a/d", "results/01_ci.json"),
            None,
        ),
        runner.Outcome("02", 0.5, 1200, (), "cell 02-c003: ValueError: no"),
    ]
    assert runner.table(outcomes).splitlines() == [
        "notebook  seconds  peak memory  wrote",
        "--------  -------  -----------  -----",
        "01            2.0       107 MB  1 figure, artefacts/a/ (2 files), results/01_ci.json",
        "02            0.5      1200 MB  cell 02-c003: ValueError: no",
        "--------  -------  -----------  -----",
        "all           2.5      1200 MB",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--param", "POINT=3"], "none of the chosen notebooks has this parameter"),
        (["--param", "01:POINT=3"], "there is no parameter POINT"),
        (["--param", "POINTS=1"], "outside 2..1000"),
        (["--param", "POINTS=many"], "str, not int"),
        (["--param", "POINTS=3.5"], "float, not int"),
        (["--param", "POINTS"], "write NAME=VALUE"),
        (["--param", "PROFILE=cpu"], "use --profile cpu"),
        (["--only", "01", "--param", "02:POINTS=3"], "none of the chosen"),
        (["--profile", "gpu"], "is not a profile"),
    ],
)
def test_a_wrong_parameter_is_refused_before_anything_runs(copy, tmp_path, arguments, said):
    result = run(*arguments)
    assert isinstance(result.exception, ParameterError)
    assert result.exception.exit_code == 2
    assert said in str(result.exception)
    assert not (tmp_path / "out" / "executed").exists()


def test_an_unread_parameter_or_a_missing_notebook_is_refused(copy):
    path = copy / "notebooks" / "01_wave.ipynb"
    path.write_text(path.read_text().replace("POINTS = 50 ", 'IDLE = 3  # idle, 1..9\\n",\n    "POINTS = 50 '))
    with pytest.raises(ParameterError, match="nothing reads the parameter IDLE"):
        runner.plan(load_catalog(copy), profile="ci", only=["01"], settings=[], solutions=False)
    path.unlink()
    with pytest.raises(MissingPartError, match="course build --only 01"):
        runner.plan(load_catalog(copy), profile="ci", only=["01"], settings=[], solutions=False)


def test_a_failing_notebook_is_kept_and_stops_the_run(copy, tmp_path):
    path = copy / "notebooks" / "01_wave.ipynb"
    path.write_text(path.read_text().replace("print(double(3))", "print(undefined)"))
    result = run()
    assert result.exit_code == 1
    assert "NameError: name 'undefined' is not defined" in result.output
    assert not (tmp_path / "out" / "executed" / "02_again.ipynb").exists()
    kept = (tmp_path / "out" / "executed" / "01_wave.ipynb").read_text()
    assert "50 points, the highest" in kept
    assert "NameError" in kept


# --- nbval and the site


def nbval(root, *more):
    settings = ["--nbval-current-env", "--nbval-sanitize-with", str(PROJECT / "tests" / "nbval_sanitize.cfg")]
    shutil.copy(PROJECT / "conftest.py", root)
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "notebooks/02_again.ipynb", *settings, *more]
    done = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=root, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_nbval_compares_what_is_printed_and_what_figures_say(copy):
    before = {path for path in copy.rglob("*") if "__pycache__" not in path.parts}
    code, told = nbval(copy, "--other-cpu")
    assert code == 0, told
    path = copy / "notebooks" / "02_again.ipynb"
    path.write_text(path.read_text().replace("between -1.0 and", "between -2.0 and"))
    code, told = nbval(copy)
    assert code == 1
    assert "1 failed" in told
    after = {path for path in copy.rglob("*") if "__pycache__" not in path.parts}
    assert after - before == {copy / "conftest.py"}


def test_the_site_is_made_offline_and_keeps_alt_texts(copy, tmp_path):
    shutil.copytree(PROJECT / "docs", copy / "docs", ignore=shutil.ignore_patterns("_build", "__pycache__"))
    index = build_site(load_catalog(copy), tmp_path / "site")
    page = (index.parent / "notebooks" / "01_wave.html").read_text()
    assert page.count('alt="A sine of 50 points between -1.0 and 1.0 mV."') == 2
    assert "<math" in page
    assert "02 · A wave" in page
    assert (index.parent / "notebooks" / "solutions" / "01_wave.html").is_file()
    assert "A wave" in index.read_text()
    for html in index.parent.rglob("*.html"):
        text = html.read_text()
        assert '<script src="http' not in text
        assert '<link rel="stylesheet" href="http' not in text
        assert str(tmp_path) not in text
