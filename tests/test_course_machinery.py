"""Parameters, catalog, figures, exercises, results, network block and lint: what they accept, and what they refuse."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from course_example import SOURCE, make_course
from hypothesis import given
from hypothesis import strategies as st
from pytest_socket import SocketConnectBlockedError

from ecgchat_lib.course import Exercise, FigureResult, Misconception, expect_equal, figure
from ecgchat_lib.course.catalog import load_catalog
from ecgchat_lib.course.check import verdict
from ecgchat_lib.course.compose import compose, stub, whole
from ecgchat_lib.course.figure import REGISTRY, digest, png_bytes, save
from ecgchat_lib.course.header import badges, readme_table, update_readme, with_table
from ecgchat_lib.course.hygiene import lint
from ecgchat_lib.course.network import NetworkBlockedError
from ecgchat_lib.course.parameters import read_parameters, resolve, unread
from ecgchat_lib.course.provenance import git_commit, library_hash, stamp
from ecgchat_lib.course.results import NOT_RUN, check_results, cost, plain, read_results, write_results
from ecgchat_lib.course.run import Run, parameters_cell, start
from ecgchat_lib.errors import EcgChatError, ParameterError

HEAD = 'PROFILE = "ci"  # which machine: ci|cpu|t4|h100\nSEED = 7  # seed, 0..99\n'


def declared(*lines):
    return read_parameters(HEAD + "\n".join(lines), "here")


# --- parameters


def test_a_parameters_cell_is_read():
    found = declared("RATE = 1e-3  # learning rate, 1e-6..1", 'KIND = "a"  # kind: a|b-c', "DEEP = True  # deep or not")
    assert list(found) == ["PROFILE", "SEED", "RATE", "KIND", "DEEP"]
    assert (found["RATE"].low, found["RATE"].high, found["KIND"].choices) == (1e-6, 1.0, ("a", "b-c"))
    assert found["RATE"].checked(1, "here") == 1.0
    assert isinstance(found["RATE"].checked(1, "here"), float)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("STEPS = 5", "isn't NAME"),
        ("STEPS = 5 * 2  # steps, 1..20", "isn't NAME"),
        ("STEPS = [1]  # steps, 1..20", "isn't NAME"),
        ("import os  # steps", "isn't NAME"),
        ("STEPS = 5  # steps", "needs a range"),
        ("STEPS = 50  # steps, 1..20", "outside 1..20"),
        ("SEED = 8  # again, 0..9", "twice"),
        ('KIND = "z"  # kind: a|b', "not one of a, b"),
    ],
)
def test_an_ill_formed_parameter_is_refused(line, said):
    with pytest.raises(ParameterError, match=said):
        declared(line)


def test_profile_and_seed_come_first():
    with pytest.raises(ParameterError, match="begin with PROFILE and SEED"):
        read_parameters("SEED = 7  # seed, 0..9\n", "here")


@pytest.mark.parametrize(
    ("given_values", "said"),
    [
        ({"STEP": 3}, "no parameter STEP"),
        ({"STEPS": 3.0}, "float, not int"),
        ({"STEPS": True}, "bool, not int"),
        ({"STEPS": "3"}, "str, not int"),
        ({"STEPS": 0}, "outside 1..20"),
        ({"PROFILE": "gpu"}, "not one of ci"),
    ],
)
def test_a_wrong_value_is_refused(given_values, said):
    with pytest.raises(ParameterError, match=said):
        resolve("00", declared("STEPS = 5  # steps, 1..20"), given_values)


def test_profiles_fill_in_what_was_left_alone(monkeypatch):
    from ecgchat_lib.course import parameters

    profile = {"notebooks": {"55": {"STEPS": 9, "SIZE": 8}}}
    monkeypatch.setattr(parameters, "load_profile", lambda name: profile if name == "cpu" else {"notebooks": {}})
    names = declared("STEPS = 5  # steps, 1..20", "SIZE = 2  # size, 1..20")
    assert resolve("55", names, {"PROFILE": "cpu", "SIZE": 3}) == {"PROFILE": "cpu", "SEED": 7, "STEPS": 9, "SIZE": 3}
    assert resolve("55", names, {"PROFILE": "cpu", "STEPS": 5}, explicit=["STEPS"])["STEPS"] == 5
    profile["notebooks"]["55"]["STEEPS"] = 1
    with pytest.raises(ParameterError, match="no parameter STEEPS"):
        resolve("55", names, {"PROFILE": "cpu"})


@given(st.integers(1, 20) | st.floats(allow_nan=True) | st.text() | st.booleans() | st.none())
def test_whatever_value_comes_is_taken_or_refused_in_words(value):
    steps = declared("STEPS = 5  # steps, 1..20")["STEPS"]
    try:
        taken = steps.checked(value, "here")
    except ParameterError:
        return
    assert type(taken) is int
    assert 1 <= taken <= 20


def test_a_parameter_nothing_reads_is_found():
    cells = ["%matplotlib inline\nx = USED + 1", "IDLE = 3", "def f(QUIET=1): return QUIET"]
    assert unread(["PROFILE", "SEED", "USED", "IDLE"], cells) == ["IDLE"]


# --- start


@pytest.fixture
def example(tmp_path, monkeypatch):
    monkeypatch.setenv("ECGCHAT_HOME", str(make_course(tmp_path / "course")))
    monkeypatch.setenv("ECGCHAT_OUT", str(tmp_path / "out"))
    monkeypatch.setattr("ecgchat_lib.course.run.block_network", lambda: None)  # it would last for all later tests
    return load_catalog()


def test_start_checks_seeds_and_resolves(example):
    variables = {"PROFILE": "ci", "SEED": 3, "POINTS": 10}
    run = start("01", variables)
    assert isinstance(run, Run)
    assert (run.seed, run.profile) == (3, "ci")
    assert np.array_equal(run.rng.random(3), np.random.default_rng(3).random(3))
    first = np.random.random()  # noqa: NPY002
    start("01", variables | {"run": run, "K": 5})
    assert np.random.random() == first  # noqa: NPY002
    with pytest.raises(ParameterError, match="restart the kernel to use cpu"):
        start("01", variables | {"run": run, "PROFILE": "cpu"})
    with pytest.raises(ParameterError, match="no parameter POINT;"):
        start("01", variables | {"POINT": 10})
    with pytest.raises(ParameterError, match="POINTS isn't set"):
        start("01", {"PROFILE": "ci", "SEED": 3})
    with pytest.raises(EcgChatError, match="no notebook '77'"):
        start("77", variables)


def test_an_artefact_is_made_once_and_again_when_its_cause_changes(example):
    made = []

    def make(path):
        made.append(path)
        path.write_text("x")

    run = start("01", {"PROFILE": "ci", "SEED": 3, "POINTS": 10})
    for points in (10, 10, 11):
        assert run.artefact("a.txt", make, points=points).read_text() == "x"
    assert len(made) == 2
    other = start("01", {"PROFILE": "ci", "SEED": 4, "POINTS": 10})
    assert other.artefact("a.txt", make, points=11).is_file()
    assert len(made) == 3
    folder = run.artefact("folder", lambda path: (path.mkdir(), (path / "b").write_text("y")))
    assert (folder / "b").read_text() == "y"
    with pytest.raises(EcgChatError, match="wrote nothing"):
        run.artefact("none.txt", lambda path: None)
    with pytest.raises(ZeroDivisionError):
        run.artefact("half.txt", lambda path: (path.write_text("half"), 1 / 0))
    assert not (run.out / "artefacts" / "half.txt").exists()


def test_results_are_written_with_their_provenance(example, tmp_path, capsys):
    run = start("01", {"PROFILE": "ci", "SEED": 3, "POINTS": 10})
    run.finish({"a": np.float32(0.5), "b": np.arange(3), "c": float("nan")})
    assert capsys.readouterr().out == "Written to results/01_ci.json: a, b, c\n"
    content = read_results(tmp_path / "out" / "results" / "01_ci.json")
    assert content["metrics"] == {"a": 0.5, "b": [0, 1, 2], "c": None}
    assert content["parameters"] == {"PROFILE": "ci", "SEED": 3, "POINTS": 10}
    assert content["stamp"]["library_sha256"] == library_hash()
    assert run.recorded("01") == NOT_RUN
    with pytest.raises(EcgChatError, match="no metrics"):
        run.finish({})
    with pytest.raises(EcgChatError, match="a metric may be"):
        plain({"x": object()})


def test_a_recorded_run_is_read_and_its_cost_told(example):
    folder = example.root / "data" / "results"
    assert cost(folder, "01", "t4") == NOT_RUN
    values = {"PROFILE": "t4", "SEED": 1}
    made = stamp(example.root, example.source(example["01"]), values, 90) | {"peak_memory_mb": 1234}
    content = {"notebook": "01", "profile": "t4", "parameters": values, "metrics": {"a": 1}, "stamp": made}
    write_results(folder / "01_t4.json", content)
    assert cost(folder, "01", "t4") == "1.5 min, 1.2 GB"
    assert start("01", {"PROFILE": "ci", "SEED": 3, "POINTS": 10}).recorded("01", "t4") == {"a": 1}
    del content["stamp"]["seed"]
    with pytest.raises(EcgChatError, match="lacks 'seed'"):
        check_results(content, "here")


def test_the_commit_is_told_where_there_is_one(tmp_path):
    assert git_commit(tmp_path / "nowhere") is None


# --- catalog and header


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    slug: wave\n", "", "'slug' is missing"),
        ("    slug: wave\n", "    slug: wave\n    colour: red\n", "'colour' is unknown"),
        ('prerequisites: ["01"]', 'prerequisites: ["03"]', "prerequisite 03"),
        ('number: "02"', 'number: "01"', "used twice|doesn't come earlier"),
        ('number: "01"', "number: 1", "two digits"),
        ("text: Draw a sine", "words: Draw a sine", "goals have 'text'"),
    ],
)
def test_a_broken_catalog_is_refused(tmp_path, old, new, said):
    root = make_course(tmp_path)
    text = (root / "course.yml").read_text()
    assert old in text
    (root / "course.yml").write_text(text.replace(old, new, 1))
    with pytest.raises(EcgChatError, match=said):
        load_catalog(root)


def test_notebooks_are_selected_in_the_courses_order(example):
    assert [n.number for n in example.select(["2", "01"])] == ["01", "02"]
    with pytest.raises(EcgChatError, match="no notebook '09'"):
        example.select(["09"])


def test_badges_follow_from_the_repository(tmp_path):
    without = load_catalog(make_course(tmp_path / "a"))
    row = badges(without, without["02"], solutions=False)
    assert row == "[source](py/02_again.py) · [solutions](solutions/02_again.ipynb) · [after 01](01_wave.ipynb)"
    catalog = load_catalog(make_course(tmp_path / "b", repository="owner/name"))
    row = badges(catalog, catalog["01"], solutions=True)
    assert "github/owner/name/blob/main/notebooks/solutions/01_wave.ipynb" in row
    cells = compose(catalog, catalog["01"], solutions=False).cells
    assert "google.colab" in cells[2].source
    assert len(cells[2].source.splitlines()) <= 8
    assert not any("colab" in cell.source for cell in compose(without, without["01"], solutions=False).cells)


def test_the_readme_keeps_what_is_around_the_table(example):
    path = example.root / "README.md"
    path.write_text("# Mine\n\n<!-- course:table -->\nold\n<!-- /course:table -->\n\nafter\n")
    update_readme(example)
    text = path.read_text()
    assert text.startswith("# Mine\n\n<!-- course:table -->\n\n| |")
    assert text.endswith("<!-- /course:table -->\n\nafter\n")
    assert "old" not in text
    assert with_table("no markers", readme_table(example)) == "no markers"


# --- composing


def test_cells_have_stable_ids_and_generated_ends(example):
    built = compose(example, example["01"], solutions=False)
    assert [cell.id for cell in built.cells[:3]] == ["01-c000", "01-c001", "01-c002"]
    assert built.cells[0].source.startswith("# 01 · A wave\n")
    assert "exercise 01.1" in built.cells[1].source
    assert "[02 · A wave](02_again.ipynb)" in built.cells[-1].source
    assert built == compose(example, example["01"], solutions=False)


def test_a_solution_becomes_a_stub_and_its_lines_stay():
    source = "def f(x):\n    a = 1\n    # <solution>\n    b = 2\n    return a + b\n    # </solution>\n\n\nprint(f(1))"
    assert stub(source) == "def f(x):\n    a = 1\n    ...  # your code here\n\n\nprint(f(1))"
    assert whole(source) == "def f(x):\n    a = 1\n    b = 2\n    return a + b\n\n\nprint(f(1))"
    for broken in ("x = 1", "# <solution>\nx = 1", "# <solution>\n# <solution>\nx\n# </solution>"):
        with pytest.raises(EcgChatError, match="in pairs"):
            stub(broken)


def test_an_own_h1_is_refused(tmp_path):
    catalog = load_catalog(make_course(tmp_path, SOURCE.replace("## 1. A wave", "# 1. A wave")))
    with pytest.raises(EcgChatError, match="H1 is generated"):
        compose(catalog, catalog["01"], solutions=False)


def test_the_parameters_cell_is_found_in_the_source():
    assert parameters_cell(SOURCE).splitlines()[0].startswith("PROFILE")
    assert parameters_cell(SOURCE).splitlines()[-1].startswith("POINTS")
    with pytest.raises(ParameterError, match="no cell tagged"):
        parameters_cell("# %%\nx = 1")


# --- figures


def drawn(data=(1.0,), alt="A line that rises from 0 to 1 mV within one second of time."):
    from matplotlib.figure import Figure

    picture = Figure(figsize=(3, 2))
    picture.subplots().plot([0, 1], [0, 1])
    return FigureResult(picture, alt, data)


@pytest.fixture
def registry():
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


def test_a_figure_is_saved_with_its_sidecar_twice_the_same(tmp_path, registry):
    line = figure("99.1", "A line.")(lambda: drawn())
    line.__name__ = "line"
    picture, sidecar = save(line, line(), tmp_path)
    assert sidecar["id"] == "99.1"
    assert sidecar["digest"] == digest((1.0,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["99_1_line.json", "99_1_line.png"]
    assert png_bytes(line().figure) == picture
    assert picture[:4] == b"\x89PNG"
    assert b"matplotlib" not in picture


@pytest.mark.parametrize("alt", ["", "A line.", "x" * 39])
def test_a_figure_without_a_useful_alt_text_is_refused(alt, registry):
    with pytest.raises(EcgChatError, match="alt text must tell"):
        figure("99.2", "A line.")(lambda: drawn(alt=alt))()


def test_two_functions_cannot_make_one_figure(registry):
    def one():
        return drawn()

    def two():
        return drawn()

    figure("99.3", "A line.")(one)
    figure("99.3", "A line.")(one)
    with pytest.raises(EcgChatError, match=r"99\.3 is made by both"):
        figure("99.3", "A line.")(two)


def test_a_digest_overlooks_the_last_digits_and_nothing_else():
    assert digest({"x": 0.1234, "n": 3}) == digest({"n": np.int64(3), "x": 0.12341})
    assert digest(-0.0) == digest(0.0)
    assert digest(np.array([1.0, 2.0])) == digest(np.array([1.00001, 2.0]))
    different = [1, 1.0, "1", [1], True, None, float("nan"), np.ones((1, 2)), np.ones((2, 1)), 1.001, float("inf")]
    assert len({digest(value) for value in different}) == len(different)
    with pytest.raises(EcgChatError, match="may hold numbers"):
        digest(object())


# --- exercises


def verify(candidate, rng):
    x = rng.normal(size=int(rng.integers(2, 6)))
    expect_equal(candidate(x), 2 * x, "twice x", "You squared x.")


DOUBLE = Exercise("99.1", "Double it", 1, 5, verify, lambda x: 2 * x, (("squares", lambda x: x * x),))


def unattempted(x): ...  # your code here


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: 2 * x, "Exercise 99.1 passed: Double it"),
        (..., "Exercise 99.1: not attempted yet"),
        (unattempted, "Exercise 99.1: not attempted yet"),
        (lambda x: None, "Exercise 99.1: not yet. twice x: your function returned nothing; end it with return"),
        (lambda x: x * x, "Exercise 99.1: not yet. twice x: the values differ. You squared x."),
        (lambda x: 2 * x[None], "expected shape (5,), found (1, 5)"),
        (lambda x: ["a"] * len(x), "expected numbers, found list"),
        (lambda x: 1 / 0, "your answer raised ZeroDivisionError: division by zero"),
        (lambda: 1, "your answer raised TypeError"),
        (3, "your answer raised TypeError: 'int' object is not callable"),
    ],
)
def test_a_verdict_is_one_line_that_says_what_is_wrong(answer, said):
    line = verdict(DOUBLE, answer)
    assert said in line
    assert "\n" not in line
    assert line == verdict(DOUBLE, answer)


def test_expected_and_found_values_are_shown():
    with pytest.raises(Misconception, match=r"the rate: expected 75, found 80\. Why"):
        expect_equal(80, 75, "the rate", "Why")
    with pytest.raises(Misconception, match="the name: expected aVR, found AVR"):
        expect_equal("AVR", "aVR", "the name")
    expect_equal([1.0, float("nan")], np.array([1.0, float("nan")]), "values")
    expect_equal(True, True, "truth")


# --- network


@pytest.mark.filterwarnings("ignore:A test tried to use socket")
def test_the_network_is_blocked_in_tests():
    with pytest.raises((SocketConnectBlockedError, NetworkBlockedError)):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


def test_the_network_is_blocked_in_kernels_but_loopback_works():
    code = """
import socket
from ecgchat_lib.course.network import NetworkBlockedError, block_network
block_network(); block_network()
for reach in (lambda: socket.create_connection(("192.0.2.1", 80), 1), lambda: socket.getaddrinfo("example.org", 80),
              lambda: socket.socket().connect_ex(("2001:db8::1", 80)),
              lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53))):
    try:
        reach()
    except NetworkBlockedError:
        print("blocked")
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
a, b = socket.socketpair()
print("local works")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:5] == ["blocked"] * 4 + ["local works"]


# --- lint


def linted(example, change):
    built = compose(example, example["01"], solutions=False)
    count = 0
    for cell in built.cells:
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
    code = next(cell for cell in built.cells if cell.cell_type == "code")
    change(built, code)
    return "; ".join(lint(built, example, example["01"]))


def output(text="", **fields):
    return nbformat.from_dict({"output_type": "stream", "name": "stdout", "text": text, **fields})


def picture(alt):
    metadata = {"image/png": {"alt": alt}} if alt else {}
    data = {"image/png": "AA", "text/plain": "x"}
    return nbformat.from_dict({"output_type": "display_data", "data": data, "metadata": metadata})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda nb, c: None, ""),
        (lambda nb, c: c.update(execution_count=3), "execution count is 3, not 1"),
        (lambda nb, c: c.update(source="x = 1\n" * 41), "41 lines of code"),
        (lambda nb, c: c.update(outputs=[output("a\n" * 101)]), "101 lines of output"),
        (lambda nb, c: c.update(outputs=[output("saved in /home/someone/x.png")]), "an absolute path"),
        (lambda nb, c: c.update(outputs=[output("saved in C:\\Users\\x.png")]), "an absolute path"),
        (lambda nb, c: c.update(outputs=[output("100%|████| 3/3")]), "a progress bar"),
        (lambda nb, c: c.update(outputs=[output("2026-01-01 10:00:00")]), "a time of day"),
        (lambda nb, c: c.update(outputs=[output("<f at 0x7f0000000000>")]), "a memory address"),
        (lambda nb, c: c.update(outputs=[output("\x1b[31mred")]), "terminal color codes"),
        (lambda nb, c: c.update(outputs=[output("careful", name="stderr")]), "output on stderr"),
        (lambda nb, c: c.update(outputs=[picture("")]), "a picture without alt text"),
        (lambda nb, c: c.update(outputs=[picture("A sine of 50 points.")]), ""),
        (lambda nb, c: c.update(outputs=[output("x" * 400_000)]), "at most 400000"),
        (lambda nb, c: nb.metadata.update(widgets={}), "metadata hold 'widgets'"),
        (lambda nb, c: nb.metadata.update(papermill={}), "metadata hold 'papermill'"),
        (lambda nb, c: c.metadata.update(execution={}), "metadata hold execution"),
        (lambda nb, c: c.metadata.update(tags=["nbval-skip"]), "nbval-skip hides"),
        (lambda nb, c: [x.metadata.update(tags=["nbval-ignore-output"]) for x in nb.cells[2:5]], "at most 2"),
        (lambda nb, c: c.metadata.update(tags=["nbval-ignore-output"]), "needs its reason"),
        (lambda nb, c: nb.cells[0].update(source="no heading"), "one H1, first; the badge row"),
        (lambda nb, c: nb.cells[1].update(source="#### deep"), "level 4 follows one of level 1"),
        (lambda nb, c: nb.cells[1].update(source="## x\n![](a.png)"), "in the text has no alt text"),
        (lambda nb, c: nb.cells[1].update(id=nb.cells[0].id), "not unique"),
    ],
)
def test_the_lint_finds_what_a_notebook_may_not_hold(example, change, said):
    found = linted(example, change)
    assert said in found
    assert bool(found) == bool(said)


def test_importing_the_machinery_is_light():
    code = """
import sys, ecgchat_lib.course, ecgchat_lib.course.cli
print(sorted({"torch", "matplotlib", "papermill", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout == "[]\n"


def test_what_is_kept_between_runs_is_named_by_all_it_depends_on(tmp_path):
    from ecgchat_lib.course.provenance import keyed_folder

    one = keyed_folder(tmp_path, model="a", settings={"k": 1})
    assert one.is_dir()
    assert keyed_folder(tmp_path, settings={"k": 1}, model="a") == one
    assert keyed_folder(tmp_path, settings={"k": 2}, model="a") != one


def test_a_journal_survives_a_line_that_was_cut_off(tmp_path):
    from ecgchat_lib.course.provenance import read_journal

    path = tmp_path / "journal.jsonl"
    assert read_journal(path) == []
    path.write_text('{"asked": 1}\n{"asked": 2}\n{"ask', encoding="utf-8")
    assert read_journal(path) == [{"asked": 1}, {"asked": 2}]
    with path.open("a", encoding="utf-8") as file:
        file.write('{"asked": 3}\n')
    assert [row["asked"] for row in read_journal(path)] == [1, 2, 3]
