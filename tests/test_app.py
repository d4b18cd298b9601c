"""The page of `ecgchat app`: its functions, and in the slow tests the page itself in headless Chromium."""

import contextlib
import os
import re
import shutil
import signal
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
import requests
from test_report_html import luminance

from ecgchat_lib.app import visitors as visitors_module
from ecgchat_lib.app.view import (
    Turn,
    announced,
    check_question,
    conversation_html,
    examine,
    found_html,
    report_html,
    safe,
    tracings_html,
)
from ecgchat_lib.app.visitors import MOST_BYTES, MOST_FILES, Visitors, read_upload, told
from ecgchat_lib.chat.checking import Contradiction
from ecgchat_lib.chat.grounding import Evidence
from ecgchat_lib.chat.session import Answer
from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.measure import Measurements
from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.errors import EcgChatError, RecordError
from ecgchat_lib.paths import data_folder
from ecgchat_lib.report.picture import DRAWING

SAMPLE = data_folder() / "real_sample"
HOSTILE = (
    '<img src=x onerror="window.owned=1"> {{7*7}} ${window.owned=1} `x` \u202eevil\u202c \u0627\u0644\u0642\u0644\u0628'
)


@pytest.fixture
def visitors():
    made = Visitors()
    yield made
    made.close()


def give(visitors, visitor, *files, name=None):
    """Put files where Gradio puts uploads, and let the visitor have them."""
    paths = []
    for number, file in enumerate(files):
        folder = visitors.cache / f"{len(list(visitors.cache.iterdir()))}-{number}"
        folder.mkdir()
        paths.append(Path(shutil.copyfile(file, folder / (name or Path(file).name))))
    visitors.receive(visitor, paths)
    return paths


# --- uploads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("A0002.hea", "A0002.mat"), ("A0002.mat", "A0002.hea")])
def test_a_pair_is_read_whether_it_comes_together_or_one_after_the_other(visitors, order):
    visitor = visitors.enter("tab")
    give(visitors, visitor, *(SAMPLE / name for name in order))
    together = read_upload(visitor)
    visitor = visitors.enter("other tab")
    give(visitors, visitor, SAMPLE / order[0])
    with pytest.raises(EcgChatError, match=r"is missing\. Give"):
        read_upload(visitor)
    give(visitors, visitor, SAMPLE / order[1])
    apart = read_upload(visitor)
    expected = read_recording(SAMPLE / "A0002")
    for found in (together, apart):
        assert (found.name, found.patient, found.path) == ("A0002", expected.patient, None)
        assert np.array_equal(found.signal, expected.signal)


def test_a_recording_that_was_read_is_replaced_by_the_next(visitors):
    visitor = visitors.enter("tab")
    give(visitors, visitor, SAMPLE / "A0001.hea", SAMPLE / "A0001.mat")
    visitor.done = True
    give(visitors, visitor, SAMPLE / "A0003.hea", SAMPLE / "A0003.mat")
    assert read_upload(visitor).name == "A0003"
    assert sorted(path.name for path in visitor.uploads.iterdir()) == ["A0003.hea", "A0003.mat"]


def test_what_a_table_does_not_say_is_asked_for_and_then_used(visitors, tmp_path):
    recording = read_recording(SAMPLE / "A0002")
    table = tmp_path / "my recording (1).csv"
    np.savetxt(table, recording.signal.T, delimiter=",", header=",".join(LEADS), comments="")
    visitor = visitors.enter("tab")
    give(visitors, visitor, table)
    with pytest.raises(EcgChatError, match="how many samples a second"):
        read_upload(visitor)
    found = read_upload(visitor, fs=500.0)
    assert np.allclose(found.signal, recording.signal, atol=1e-6)
    assert found.fs == 500
    array = tmp_path / "x.npy"
    np.save(array, recording.signal.T[:, ::-1] * 1000)
    give(visitors, visitor, array)
    found = read_upload(visitor, fs=500.0, leads=", ".join(reversed(LEADS)), unit="uV")
    assert np.allclose(found.signal, recording.signal, atol=1e-3)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("../../../../etc/passwd", "outside the record's folder"),
        ("/etc/passwd", "outside the record's folder"),
        ("..\\A0001.mat", "outside the record's folder"),
        (".hidden.mat", "outside the record's folder"),
        ("elsewhere.mat", "signal file is missing"),
    ],
)
def test_a_header_can_name_only_a_file_that_came_with_it(visitors, tmp_path, file, said):
    header = (SAMPLE / "A0001.hea").read_text().replace("A0001.mat", file)
    (tmp_path / "A0001.hea").write_text(header)
    visitor = visitors.enter("tab")
    give(visitors, visitor, tmp_path / "A0001.hea", SAMPLE / "A0001.mat")
    with pytest.raises(EcgChatError, match=said) as caught:
        read_upload(visitor)
    assert str(visitors.root) not in str(caught.value)
    assert "root:" not in str(caught.value)


def test_a_header_cannot_name_another_visitors_file(visitors, tmp_path):
    first, second = visitors.enter("one"), visitors.enter("two")
    give(visitors, first, SAMPLE / "A0001.hea", SAMPLE / "A0001.mat")
    there = os.path.relpath(first.uploads / "A0001.mat", second.uploads)
    (tmp_path / "A0001.hea").write_text((SAMPLE / "A0001.hea").read_text().replace("A0001.mat", there))
    give(visitors, second, tmp_path / "A0001.hea", SAMPLE / "A0002.mat")
    with pytest.raises(EcgChatError, match="outside the record's folder"):
        read_upload(second)


@pytest.mark.parametrize("name", ["a.exe", "a.hea.exe", "hea", "a.zip", "a.pkl", "a.html"])
def test_other_kinds_of_files_are_refused(visitors, tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(EcgChatError, match="not a kind of file"):
        give(visitors, visitors.enter("tab"), tmp_path / name)
    assert not list(visitors.enter("tab").uploads.iterdir())


def test_too_large_too_many_and_empty_files_are_refused(visitors, tmp_path):
    visitor = visitors.enter("tab")
    large, empty = tmp_path / "large.npy", tmp_path / "empty.npy"
    with open(large, "wb") as file:
        file.truncate(MOST_BYTES + 1)
    empty.touch()
    with pytest.raises(EcgChatError, match="at most 20 MB"):
        give(visitors, visitor, large)
    with pytest.raises(EcgChatError, match="empty file"):
        give(visitors, visitor, empty)
    with pytest.raises(EcgChatError, match=f"at most {MOST_FILES}"):
        give(visitors, visitor, *(SAMPLE / f"A000{number}.mat" for number in range(1, MOST_FILES + 2)))
    give(visitors, visitor, SAMPLE / "A0001.hea", SAMPLE / "A0002.hea")
    with pytest.raises(EcgChatError, match="one recording at a time"):
        read_upload(visitor)


def test_only_uploads_are_taken_and_no_links(visitors, tmp_path):
    visitor = visitors.enter("tab")
    outside = shutil.copyfile(SAMPLE / "A0001.mat", tmp_path / "A0001.mat")
    link = visitors.cache / "link.mat"
    link.symlink_to(outside)
    inside_out = visitors.cache / ".." / ".." / tmp_path.name / "A0001.mat"
    for path in (outside, link, inside_out, visitors.private / "tab" / "x.dat"):
        with pytest.raises(EcgChatError, match="upload was lost"):
            visitors.receive(visitor, [path])


@pytest.mark.parametrize("name", ["..hea", "a b.hea", "-rf.hea", "CON;rm.hea", "\u0627\u0644.hea", "a" * 120 + ".hea"])
def test_a_name_with_other_letters_never_becomes_a_path(visitors, name):
    visitor = visitors.enter("tab")
    give(visitors, visitor, SAMPLE / "A0001.hea", name=name)
    (stored,) = visitor.uploads.iterdir()
    assert re.fullmatch(r"[0-9a-f]{16}\.hea", stored.name)


def test_damaged_files_are_told_in_one_line_without_folders(visitors, tmp_path):
    visitor = visitors.enter("tab")
    for kind in ("csv", "npy", "h5", "edf", "dcm"):
        file = tmp_path / f"words.{kind}"
        file.write_text("These are words.\nNothing else.\n")
        give(visitors, visitor, file)
        with pytest.raises(EcgChatError) as caught:
            read_upload(visitor, fs=500.0)
        assert "\n" not in str(caught.value)
        assert str(visitors.root) not in str(caught.value)
        assert "words." in str(caught.value)


def test_a_recording_of_hours_is_refused(visitors, tmp_path, monkeypatch):
    monkeypatch.setattr(visitors_module, "LONGEST_SECONDS", 9.0)
    visitor = visitors.enter("tab")
    give(visitors, visitor, SAMPLE / "A0002.hea", SAMPLE / "A0002.mat")
    with pytest.raises(EcgChatError, match="minutes, expected at most"):
        read_upload(visitor)


# --- visitors ----------------------------------------------------------------------------------------------------


def test_each_visitor_has_a_private_folder_that_goes_with_them():
    visitors = Visitors()
    one, two = visitors.enter("one"), visitors.enter("two")
    assert visitors.enter("one") is one
    uploads = give(visitors, one, SAMPLE / "A0001.hea", SAMPLE / "A0001.mat")
    give(visitors, two, SAMPLE / "A0002.hea", SAMPLE / "A0002.mat")
    two.cached.add(uploads[1])  # the same file, given by both: the server keeps one copy
    for folder in (visitors.root, visitors.cache, visitors.reports, visitors.private, one.uploads, one.reports):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in one.files.values())
    visitors.leave("one")
    assert one.gone
    assert not one.uploads.exists()
    assert not one.reports.exists()
    assert [path.exists() for path in uploads] == [False, True]
    assert read_upload(two).name == "A0002"
    visitors.leave("one")  # twice does no harm
    visitors.close()
    assert not visitors.root.exists()


def test_there_are_only_so_many_visitors(visitors, monkeypatch):
    monkeypatch.setattr(visitors_module, "MOST_VISITORS", 2)
    visitors.enter("one"), visitors.enter("two")
    with pytest.raises(EcgChatError, match="2 visitors are here already"):
        visitors.enter("three")
    visitors.leave("one")
    visitors.enter("three")
    with pytest.raises(EcgChatError, match="lost its session"):
        visitors.enter(None)


def test_refused_uploads_go_with_the_visitor_too(visitors, tmp_path):
    visitor = visitors.enter("tab")
    (tmp_path / "empty.hea").touch()
    with pytest.raises(EcgChatError, match="empty file"):
        give(visitors, visitor, SAMPLE / "A0001.mat", tmp_path / "empty.hea")
    kept = list(visitor.cached)
    assert sorted(path.name for path in kept) == ["A0001.mat", "empty.hea"]
    visitors.leave("tab")
    assert not any(path.exists() for path in kept)
    assert visitors.reports.is_dir()


def test_no_upload_is_taken_once_too_much_lies_there(visitors, monkeypatch):
    give(visitors, visitors.enter("tab"), SAMPLE / "A0001.mat")
    assert not visitors.crowded()
    monkeypatch.setattr(visitors_module, "MOST_TOGETHER", MOST_FILES * MOST_BYTES + 1000)
    assert visitors.crowded()


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such locks")
def test_what_a_killed_page_left_is_removed_and_nothing_else(tmp_path):
    for name in ("dead", "used", "new"):
        (tmp_path / f"{visitors_module.PREFIX}{name}" / "visitors").mkdir(parents=True)
    dead, used, new = (tmp_path / f"{visitors_module.PREFIX}{name}" for name in ("dead", "used", "new"))
    (dead / visitors_module.LOCK).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / visitors_module.LOCK).touch()
    (tmp_path / f"{visitors_module.PREFIX}link").symlink_to(tmp_path / "elsewhere")
    with visitors_module._hold(used / visitors_module.LOCK):
        visitors_module.sweep(tmp_path)
    assert not dead.exists()
    assert all(path.is_dir() for path in (used, new, tmp_path / "elsewhere"))
    here = Visitors()
    visitors_module.sweep(here.root.parent)
    assert here.root.is_dir()
    here.close()


@pytest.fixture
def quiet_page(visitors, monkeypatch):
    """The page's functions without its server."""
    pytest.importorskip("gradio", reason="gradio isn't installed")
    from ecgchat_lib.app import page

    monkeypatch.setattr(page, "own_session", lambda shared, with_: None)
    return page.Page(lambda: None, visitors)


def test_a_report_does_not_outlive_its_visitor(quiet_page, visitors, monkeypatch):
    from ecgchat_lib import report

    visitor = visitors.enter("tab")
    visitor.seen = [examine(read_recording(SAMPLE / "A0002"))]
    asked = SimpleNamespace(session_hash="tab")
    shown, _ = quiet_page.report("Markdown", [], asked)
    assert "Save A0002.md" in shown
    assert sorted(path.name for path in visitor.reports.iterdir()) == ["A0002-tracing.png", "A0002.md"]
    write = report.write_report

    def write_and_leave(*given, **options):
        visitors.leave("tab")  # the tab is closed while the report is made
        return write(*given, **options)

    monkeypatch.setattr(report, "write_report", write_and_leave)
    shown, _ = quiet_page.report("Markdown", [], asked)
    assert "closed meanwhile" in shown
    assert list(visitors.reports.iterdir()) == []


def test_a_recording_does_not_outlive_its_visitor(quiet_page, visitors, monkeypatch):
    from ecgchat_lib.app import page

    def examine_and_leave(recording):
        visitors.leave("tab")
        return examine(recording)

    monkeypatch.setattr(page, "examine", examine_and_leave)
    visitor = visitors.enter("tab")
    shown = quiet_page.sample("A0002", False, SimpleNamespace(session_hash="tab"))
    assert "closed meanwhile" in shown[0]
    assert visitor.seen == []


def test_who_only_asks_takes_no_place(quiet_page, visitors):
    asked = SimpleNamespace(session_hash="tab")
    assert "no recording yet" in next(quiet_page.ask("What?", [], asked))[0]
    assert "no recording yet" in quiet_page.report("PDF", [], asked)[0]
    assert visitors._here == {}


def test_latex_does_not_hold_up_the_drawing_of_others(quiet_page, visitors, monkeypatch):
    from ecgchat_lib.report import write

    free = []
    compile_pdf = write.compile_pdf

    def compiled(*given, **options):
        free.append(not DRAWING.locked())
        return compile_pdf(*given, **options)

    monkeypatch.setattr(write, "compile_pdf", compiled)
    visitors.enter("tab").seen = [examine(read_recording(SAMPLE / "A0002"))]
    assert "Save A0002.pdf" in quiet_page.report("PDF", [], SimpleNamespace(session_hash="tab"))[0]
    assert free
    assert all(free)


def answered(guard, **scope):
    """What the guard answers: the status, or 200 if it let the request through."""
    sent, passed = [], []

    async def send(message):
        sent.append(message)

    async def app(scope, receive, send):
        passed.append(scope)

    guard.app = app
    headers = [
        (name.encode(), value.encode()) for name, value in {"host": "127.0.0.1:7860", **scope["headers"]}.items()
    ]
    made = guard({"type": "http", "method": "POST", **scope, "headers": headers}, None, send)
    with contextlib.suppress(StopIteration):
        made.send(None)
    return 200 if passed else sent[0].get("status", sent[0]["type"])


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("queue/join", {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}, 200),
        ("queue/join", {}, 200),  # a program on this machine
        ("queue/join", {"origin": "http://evil.example"}, 403),
        ("queue/join", {"origin": "http://127.0.0.1:8000"}, 403),
        ("queue/join", {"origin": "null"}, 403),
        ("upload", {"sec-fetch-site": "cross-site"}, 403),
        ("upload", {"sec-fetch-site": "same-site"}, 403),
        ("upload", {"content-length": str(MOST_FILES * MOST_BYTES)}, 200),
        ("upload", {"content-length": str(2 * MOST_FILES * MOST_BYTES)}, 413),
        ("queue/join", {"content-length": str(2**20 + 1)}, 413),
        ("queue/join", {"content-length": "9" * 5000}, 413),
        ("upload", {"transfer-encoding": "chunked"}, 411),
        ("upload", {"host": "elsewhere.example"}, 403),
        ("proxy=x", {}, 403),
    ],
)
def test_only_the_page_itself_may_send_and_not_too_much(visitors, path, headers, status):
    pytest.importorskip("gradio", reason="gradio isn't installed")
    from ecgchat_lib.app.page import Guard

    assert answered(Guard(None, visitors), path=f"/gradio_api/{path}", headers=headers) == status


def test_uploads_beyond_all_room_and_websockets_are_refused(visitors, monkeypatch):
    pytest.importorskip("gradio", reason="gradio isn't installed")
    from ecgchat_lib.app.page import Guard

    guard = Guard(None, visitors)
    assert answered(guard, type="websocket", path="/gradio_api/queue/join", headers={}) == "websocket.close"
    monkeypatch.setattr(visitors_module, "MOST_TOGETHER", 0)
    assert answered(guard, path="/gradio_api/upload", headers={}) == 507


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no terminal that can be lost")
def test_a_lost_terminal_ends_the_page_tidily(monkeypatch):
    from ecgchat_lib import app

    class Opened:
        closed = False

        @property
        def url(self):
            signal.raise_signal(signal.SIGHUP)
            raise AssertionError("the signal was overlooked")

        def close(self):
            self.closed = True

    kept = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    signal.signal(signal.SIGHUP, lambda *_: None)
    opened = Opened()
    monkeypatch.setattr(app, "start", lambda *given, **options: opened)
    try:
        app.serve()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert opened.closed


def test_lines_around_controls_stand_out():
    pytest.importorskip("gradio", reason="gradio isn't installed")
    from ecgchat_lib.app import page

    looks = Path(page.__file__).with_name("style.css").read_text(encoding="utf-8")
    theme = page._theme()
    lines = [re.search(r"outline: 3px solid (#\w{6})", looks)[1], theme.input_border_color]
    lines += [theme.button_secondary_border_color, theme.checkbox_border_color]
    for line in lines:
        for ground in ("#ffffff", theme.body_background_fill):
            light, dark = sorted((luminance(line), luminance(ground)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 3, (line, ground)


def test_an_error_says_the_file_and_not_the_folder(visitors):
    visitor = visitors.enter("tab")
    visitor.files["mine.csv"] = visitor.uploads / "0123.csv"
    error = RecordError(visitor.uploads / "0123.csv", "bad\x1b[31m\nthing", "Mend it")
    assert told(error, visitor) == "mine.csv: bad?[31m thing. Mend it"


# --- what is shown -----------------------------------------------------------------------------------------------


def test_safe_shows_exactly_the_characters():
    shown = safe(HOSTILE)
    assert not set(shown) & set("<>{}$`\u202e\u202c")
    assert "&lt;img src=x onerror=&quot;" in shown
    assert "&#123;&#123;7*7&#125;&#125;" in shown
    assert "[U+202E]" in shown
    assert "\u0627\u0644\u0642\u0644\u0628" in shown
    assert safe("a\u200db\nc\x07") == "a\u200db c[U+0007]"


def test_a_recording_is_shown_with_alt_text_normal_ranges_flags_and_quality():
    seen = examine(read_recording(SAMPLE / "A0001"))
    tracing, found = tracings_html([seen]), found_html([seen])
    assert 'alt="Twelve-lead ECG A0001, 15.0 s at 500 Hz.' in tracing
    assert 'src="data:image/png;base64,' in tracing
    rate = next(item for item in seen.flags if item.field == "heart_rate_bpm")
    assert rate.status == "high"
    row = re.search(r'<tr class="high told"><th scope="row">Heart rate</th>(.*?)</tr>', found)[1]
    assert f"<td>{rate.shown} <small>bpm</small></td><td>60 to 100</td><td>↑ high</td>" in row
    assert 'class="verdict good">usable' in found
    assert 'href="https://doi.org/10.' in found
    both = tracings_html([seen, seen])
    assert "Earlier" in both
    assert "Later" in both


def test_nothing_is_told_of_an_unusable_recording_but_why():
    seen = examine(Recording("flat", np.full((12, 5000), 0.001, np.float32), 500.0))
    found = found_html([seen])
    assert "Nothing was measured" in found
    assert "not usable" in found
    assert "bpm" not in found


def test_of_exchanged_electrodes_nothing_is_told_but_that():
    sample = read_recording(SAMPLE / "A0002")
    exchanged = sample.signal.copy()  # the arms' electrodes in each other's place
    exchanged[[0, 1, 2, 3, 4]] = [-exchanged[0], exchanged[2], exchanged[1], exchanged[4], exchanged[3]]
    found = found_html([examine(replace(sample, signal=exchanged))])
    assert "electrodes look exchanged" in found
    assert "Nothing was measured" in found
    assert "bpm" not in found


def test_hostile_names_comments_and_notes_are_shown_as_text():
    recording = replace(
        read_recording(SAMPLE / "A0002"), name=HOSTILE, comments=(HOSTILE, "x" * 5000), notes=(HOSTILE,)
    )
    seen = examine(recording)
    shown = tracings_html([seen]) + found_html([seen])
    assert "<img src=x" not in shown
    assert "{{" not in shown
    assert "${" not in shown
    assert "4,800 more characters" in shown


def answer(text, **more):
    return Answer(text, "How fast?", Measurements(), **{"evidence": (), "contradictions": (), "notes": (), **more})


def test_contradictions_are_marked_in_the_text_and_said_in_words():
    text = "The rate is 40 bpm, a normal <b>axis</b>."
    wrong = Contradiction("heart_rate_bpm", "rate is 40 bpm", "101 bpm was measured", 4, 18)
    overlapping = Contradiction("heart_rate_bpm", "40 bpm", "101 bpm was measured", 12, 18)
    shown = conversation_html([Turn("How fast?", text, answer(text, contradictions=(wrong, overlapping)))])
    assert "The <mark>rate is 40 bpm</mark>" in shown
    assert "[contradicted: 101 bpm was measured]" in shown
    assert "Contradicted by what was found" in shown
    assert "&lt;b&gt;axis" in shown
    assert "2 statements are contradicted" in announced(
        Turn("", text, answer(text, contradictions=(wrong, overlapping)))
    )


def test_evidence_is_shown_by_kind_with_probabilities_and_citations():
    evidence = (
        Evidence("labels", "atrial fibrillation", "classifier", 0.876, "A0003", given=False),
        Evidence("measurements", "Measured: rate 152", "measured on lead II", None, "A0003"),
        Evidence("knowledge", HOSTILE, "Hindricks et al. 2021, doi 10.1093/eurheartj/ehaa612; Somebody", 0.4),
    )
    first = Turn("One?", "", answer("Yes.", evidence=evidence))
    shown = conversation_html([first, Turn("Two?", "", answer("No.", evidence=evidence))])
    assert shown.index("Two?") < shown.index("One?")  # the newest first
    assert shown.count('<details class="evidence" open>') == 1
    assert "probability 0.88" in shown
    assert "checked against, not told to the model" in shown
    assert '<a href="https://doi.org/10.1093/eurheartj/ehaa612"' in shown
    assert "<img" not in shown


def test_abstentions_errors_and_unfinished_answers_say_so():
    abstained = answer("I can't say anything.", abstained=True, reason="unusable")
    assert "No answer: the recording isn&#x27;t usable" in conversation_html([Turn("x", "", abstained)])
    assert 'class="status bad"' in conversation_html([Turn("x", error="too long")])
    assert "The model is answering" in conversation_html([Turn("x", "It is")], busy=True)
    assert "Not finished" in conversation_html([Turn("x", "It is")])


def test_questions_are_checked_before_the_model_is_asked():
    with pytest.raises(EcgChatError, match="no recording yet"):
        check_question("What?", [])
    with pytest.raises(EcgChatError, match="is empty"):
        check_question("  \n", [object()])
    with pytest.raises(EcgChatError, match="at most 2000"):
        check_question("x" * 2001, [object()])
    assert check_question(" What? ", [object()]) == "What?"


def test_the_links_to_a_report_are_escaped():
    assert 'href="gradio_api/file=/a&quot;b"' in report_html([('gradio_api/file=/a"b', "a.pdf")])


def test_without_gradio_the_page_says_how_to_get_it(monkeypatch):
    import sys

    from ecgchat_lib.app import build_app
    from ecgchat_lib.errors import MissingPartError

    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingPartError, match=r"ecgchat\[app\]"):
        build_app()


# --- the page in a browser ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page():
    pytest.importorskip("gradio", reason="gradio isn't installed")
    from ecgchat_lib.app import start

    kept = {
        name: os.environ.get(name) for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR", "NO_PROXY", "no_proxy")
    }
    served = start(free_port())
    root = served.visitors.root
    yield served
    served.close()
    assert not root.exists()  # whatever visitors left behind
    for name, value in kept.items():
        os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium isn't installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(page, browser):
    """Yield a function that opens a tab; in the end, no tab may have asked another machine for anything."""
    asked, contexts = [], []

    def open_tab(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(180_000)
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.url)
        tab.get_by_role("button", name="A0001").wait_for()
        return tab

    yield open_tab
    for context in contexts:
        context.close()
    hosts = {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {"127.0.0.1"}


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def upload(tab, *files):
    tab.locator("#upload input[type=file]").set_input_files([str(file) for file in files])


def show(tab, name):
    tab.get_by_role("button", name=name, exact=True).click()
    tab.locator("#tracings h2", has_text=name).wait_for()


def ask(tab, question):
    tab.get_by_label("Your question").fill(question)
    tab.keyboard.press("Enter")
    turn = tab.locator(".turn", has_text=question).first
    turn.locator(".evidence, .abstained").first.wait_for()
    return turn


def status(tab, text):
    tab.locator("#status .status", has_text=text).wait_for()
    return tab.locator("#status").inner_text()


@pytest.mark.slow
def test_upload_see_ask_and_take_the_report_along(page, opened, tmp_path):
    tab = opened(accept_downloads=True)
    errors = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    assert "Not a medical device" in tab.locator("#head").inner_text()
    upload(tab, SAMPLE / "A0003.hea", SAMPLE / "A0003.mat")
    tab.locator("#tracings h2", has_text="A0003").wait_for()
    assert tab.locator("#tracings img").get_attribute("alt").startswith("Twelve-lead ECG A0003, 10.0 s at 500 Hz.")
    assert tab.locator("#found tr", has_text="Heart rate").first.inner_text().count("high") == 1
    turn = ask(tab, "What is the heart rhythm?")
    assert "atrial fibrillation" in turn.locator(".said").inner_text().lower()
    evidence = turn.locator(".evidence").inner_text()
    assert "Measured: rate" in evidence
    assert "probability" in evidence
    for kind, start in (("PDF", b"%PDF-"), ("HTML", b"<!DOCTYPE html>"), ("Markdown", b"# ECG report")):
        with tab.expect_download() as waiting:
            tab.get_by_role("button", name=f"Report as {kind}").click()
        target = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(target)
        assert target.stem == "A0003"
        assert target.read_bytes()[: len(start)].lower() == start.lower()
    assert errors == []


@pytest.mark.slow
def test_bad_files_give_one_clear_line(opened, tmp_path):
    tab = opened()
    words = tmp_path / "A0001.dat"
    words.write_text("This is no signal.\n" * 50)
    upload(tab, words)
    status(tab, "its header (.hea) is missing")
    header = tmp_path / "A0001.hea"
    header.write_text((SAMPLE / "A0001.hea").read_text().replace("A0001.mat", "A0001.dat").replace("+24", ""))
    upload(tab, header)
    said = status(tab, "truncated")
    header.write_text(header.read_text().replace("A0001.dat", "../../../../../../etc/passwd"))
    upload(tab, header, words)
    said += status(tab, "outside the record's folder")
    noise = tmp_path / "noise.npy"
    np.save(noise, np.zeros((3, 100)))
    upload(tab, noise)
    said += status(tab, "give fs and the leads' names")
    assert "Traceback" not in said
    assert str(tmp_path.anchor) + "tmp" not in said
    large = tmp_path / "large.npy"
    with open(large, "wb") as file:
        file.truncate(MOST_BYTES + 1)
    upload(tab, large)
    tab.get_by_text("exceed the maximum allowed size of 20", exact=False).first.wait_for()
    show(tab, "A0002")  # the page still works


@pytest.mark.slow
def test_a_file_that_does_not_say_its_rate_is_read_with_the_fields(opened, tmp_path):
    tab = opened()
    table = tmp_path / "table.csv"
    np.savetxt(table, read_recording(SAMPLE / "A0002").signal.T, delimiter=",", header=",".join(LEADS), comments="")
    upload(tab, table)
    status(tab, "how many samples a second")
    tab.get_by_role("button", name="If the file doesn't say it").click()
    tab.get_by_label("Samples per second").fill("500")
    tab.get_by_role("button", name="Read the file again").click()
    tab.locator("#tracings h2", has_text="table").wait_for()
    assert "10.0 s, 500 Hz" in tab.locator("#tracings h2").inner_text()


@pytest.mark.slow
def test_hostile_text_in_a_recording_is_shown_as_text_and_the_layout_holds(opened, tmp_path):
    tab = opened(viewport={"width": 390, "height": 844})
    comments = f"\n# {HOSTILE}\n# Hx: {'Long' * 300}\n"
    (tmp_path / "A0002.hea").write_text((SAMPLE / "A0002.hea").read_text() + comments, encoding="utf-8")
    upload(tab, tmp_path / "A0002.hea", SAMPLE / "A0002.mat")
    tab.locator("#tracings h2", has_text="A0002").wait_for()
    tab.get_by_text("What the file's header says").click()
    assert "{{7*7}} ${window.owned=1}" in tab.locator("#found").inner_text()
    turn = ask(tab, "<script>window.owned=1</script> {{7*7}} What is the heart rate?")
    assert "<script>window.owned=1</script> {{7*7}}" in turn.locator(".asked").inner_text()
    assert tab.evaluate("window.owned") is None
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_two_tabs_never_mix(page, opened):
    one, two = opened(), opened()
    show(one, "A0001")
    show(two, "A0003")
    here = [visitor for visitor in page.visitors._here.values() if visitor.seen]
    assert sorted(visitor.seen[0].recording.name for visitor in here) == ["A0001", "A0003"]
    first, second = ask(one, "What does this ECG show?"), ask(two, "What is the heart rate?")
    assert "A0003" not in one.locator("#work").inner_text()
    assert "A0001" not in two.locator("#work").inner_text()
    assert one.locator(".turn").count() == two.locator(".turn").count() == 1
    rates = [re.search(r"rate (\d+)", turn.locator(".evidence").inner_text())[1] for turn in (first, second)]
    measured = [
        round(examine(read_recording(SAMPLE / name)).measurements.heart_rate_bpm) for name in ("A0001", "A0003")
    ]
    assert [int(rate) for rate in rates] == measured


@pytest.mark.slow
def test_an_earlier_recording_can_be_compared_with(opened):
    tab = opened()
    show(tab, "A0001")
    tab.get_by_label("Compare").check()
    show(tab, "A0002")
    assert [text.split()[1] for text in tab.locator("#tracings h2").all_inner_texts()] == ["A0001", "A0002"]
    turn = ask(tab, "What has changed?")
    assert "A0001:" in turn.inner_text()
    assert "A0002:" in turn.inner_text()


@pytest.mark.slow
def test_everything_is_gone_when_the_tab_is_closed(page, opened):
    tab = opened()
    upload(tab, SAMPLE / "A0005.hea", SAMPLE / "A0005.mat")
    tab.locator("#tracings h2", has_text="A0005").wait_for()
    (visitor,) = [one for one in page.visitors._here.values() if one.seen and one.seen[0].recording.name == "A0005"]
    files = [*visitor.files.values(), *visitor.cached]
    assert len(files) == 4
    assert all(path.exists() for path in files)
    for path in files:  # they are served to nobody, not even to who knows the path
        assert requests.get(f"{page.url}gradio_api/file={quote(str(path))}", timeout=20).status_code == 403
    tab.close()
    wait_until(lambda: visitor.gone and not any(path.exists() for path in files))
    assert not visitor.uploads.exists()
    assert not visitor.seen
    assert visitor.key not in page.visitors._here


def wait_until(true, seconds=30):
    done = threading.Event()
    for _ in range(seconds * 10):
        if true():
            return
        done.wait(0.1)
    raise AssertionError("it didn't happen")


@pytest.mark.slow
def test_ten_questions_at_once_are_answered_in_order(page):
    from gradio_client import Client

    pytest.importorskip("gradio_client")
    with ThreadPoolExecutor(10) as pool:
        clients = list(pool.map(lambda _: Client(page.url, verbose=False), range(10)))
    finished = []
    try:
        jobs = []
        for number, client in enumerate(clients, 1):
            client.predict(False, api_name=f"/A{number:04d}")
        for number, client in enumerate(clients):
            before = len(page.demo._queue.event_ids_to_events)
            jobs.append(client.submit("What is the heart rate?", ["measurements"], api_name="/ask"))
            jobs[-1].add_done_callback(lambda _, number=number: finished.append(number))
            wait_until(
                lambda before=before, job=jobs[-1]: len(page.demo._queue.event_ids_to_events) > before or job.done()
            )
        answers = [job.result(timeout=300)[1] for job in jobs]
    finally:
        for client in clients:
            client.close()
    wait_until(lambda: len(finished) == 10)
    assert finished == sorted(finished)
    for number, shown in enumerate(answers, 1):
        rate = examine(read_recording(SAMPLE / f"A{number:04d}")).measurements.heart_rate_bpm
        assert f"Measured: rate {round(rate)}," in shown


@pytest.mark.slow
def test_only_what_the_page_needs_is_served_and_only_to_this_machine(page):
    visitor = page.visitors.enter("somebody")
    (visitor.reports / "report.pdf").write_bytes(b"%PDF-1.4")
    own = f"gradio_api/file={visitor.reports / 'report.pdf'}"
    inside = f"gradio_api/file={visitor.reports}/%2e%2e/{visitor.reports.name}/report.pdf"
    assert requests.get(page.url + own, timeout=20).content == b"%PDF-1.4"
    refused = [
        inside,
        "gradio_api/file=/etc/passwd",
        f"gradio_api/file={page.visitors.reports}",
        f"gradio_api/file={SAMPLE / 'A0001.hea'}",
        "gradio_api/file=http://127.0.0.1:1/",
        "gradio_api/proxy=http://127.0.0.1:1/",
        "gradio_api/runs",
        "gradio_api/vibe-code",
        "gradio_api/deep_link",
        "monitoring",
        "docs",
        "openapi.json",
    ]
    for path in refused:
        assert requests.get(page.url + path, timeout=20).status_code == 403, path
    assert requests.get(page.url, headers={"Host": "elsewhere.example"}, timeout=20).status_code == 403
    large = requests.post(
        f"{page.url}gradio_api/upload", files={"files": ("a.npy", b"0" * (MOST_BYTES + 1))}, timeout=60
    )
    assert large.status_code == 413
    answered = requests.get(page.url, timeout=20)
    assert answered.status_code == 200
    assert "connect-src 'self'" in answered.headers["content-security-policy"]
    page.visitors.leave("somebody")
    assert requests.get(page.url + own, timeout=20).status_code == 403


@pytest.mark.slow
def test_every_control_has_a_name_and_the_page_a_language(opened):
    tab = opened()
    show(tab, "A0002")
    nameless = tab.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, a, img, [role=region]')].filter(one =>
            one.checkVisibility() && !(one.labels?.length || one.getAttribute('aria-label') || one.alt ||
            one.innerText?.trim() || one.title)).map(one => one.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    assert tab.evaluate("document.documentElement.lang") == "en"
    assert tab.title() == "ECG-Chat"
    tab.get_by_label("Your question").focus()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.innerText") == "Ask"


@pytest.mark.slow
def test_a_taken_port_is_said(page):
    from ecgchat_lib.app import start

    kept = os.environ["GRADIO_TEMP_DIR"]
    with pytest.raises(EcgChatError, match="Give another port"):
        start(urlsplit(page.url).port)
    os.environ["GRADIO_TEMP_DIR"] = kept
