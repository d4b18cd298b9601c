"""The chat for notebooks: inert HTML for hostile texts, readable without its styles, and the same text each time."""

import re
from html.parser import HTMLParser

import pytest

from ecgchat_lib.chat.checking import Contradiction
from ecgchat_lib.chat.display import NotebookChat, Shown
from ecgchat_lib.chat.grounding import Evidence
from ecgchat_lib.chat.session import Answer, load_chat
from ecgchat_lib.chat.terminal import REASONS
from ecgchat_lib.ecg.measure import Measurements
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.paths import data_folder

SAMPLE = data_folder() / "real_sample"
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<a href='javascript:alert(1)'>here</a>",
    "</div></details><style>*{display:none}</style>",
    "<!-- a comment -- > &lt;b&gt; &#60;script&#62;",
    "[link](https://example.org) $$x$$ ```",
    "left \u202e\u2066right\x1b[31m\x00\x07 \ud800",
    "a" * 3000,
]
TAGS = {"div", "p", "strong", "em", "mark", "details", "summary", "ul", "li", "br"}


class Page(HTMLParser):
    """Checks that tags match; remembers styles, and the text as a reader without styles has it."""

    def __init__(self, text):
        super().__init__()
        self.open, self.styles, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag in TAGS
        assert {name for name, _ in attrs} <= {"style"}
        self.styles += [value for _, value in attrs]
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def handle_comment(self, data):
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment

    @property
    def text(self):
        return "".join(self.words)


def answer(text="It is sinus rhythm at 75.", *, found=(), evidence=(), notes=(), question="Rhythm?", **more):
    return Answer(text, question, Measurements(), tuple(evidence), tuple(found), tuple(notes), **more)


def full(text):
    found = (Contradiction("rhythm", text[:3], text, 0, 3, "classifier"),)
    evidence = (Evidence("neighbours", text, text, 0.5, text), Evidence(text, text))
    return answer(text, found=found, evidence=evidence, notes=(text,), question=text, abstained=True, reason=text)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_text(text):
    shown = Shown((text,), (full(text),))
    page = Page(shown._repr_html_())
    for said in (page.text, repr(shown)):
        assert all(character.isprintable() or character == "\n" for character in said)
    assert "".join(c if c.isprintable() else "?" for c in text) in page.text
    assert all(re.fullmatch(r"[-a-z0-9#%.:; ]*", style) for style in page.styles)  # no url(), nothing of the text


def test_what_is_contradicted_is_marked_where_it_stands_and_in_words():
    text = "It is sinus rhythm at 75, regular."
    found = [
        Contradiction("heart_rate_bpm", "75", "101 was measured", 22, 24),
        Contradiction("rhythm", "sinus rhythm", "atrial fibrillation", 6, 18, "classifier"),
        Contradiction("regular", "sinus rhythm", "irregular beats", 6, 18, "rule"),
    ]
    shown = Shown(("A",), (answer(text, found=found),))
    marked = (
        "It is sinus rhythm [contradicted: atrial fibrillation] [contradicted: irregular beats] at 75 "
        "[contradicted: 101 was measured], regular."
    )
    assert marked in Page(shown._repr_html_()).text
    assert f"ECG-Chat: {marked}" in repr(shown)
    assert re.findall(r"<mark[^>]*>(.*?)</mark>", shown._repr_html_()) == ["sinus rhythm", "75"]


def test_without_styles_it_says_who_said_what_and_why_there_is_no_answer():
    evidence = [Evidence("measurements", "Measured: rate 75", "measured on lead II", record="A")]
    shown = Shown(("A", "B"), (answer(evidence=evidence, notes=["short"], abstained=True, reason="reversed"),))
    plain = re.sub(r' style="[^"]*"', "", shown._repr_html_())  # as GitHub shows it
    assert re.search(r"<p><strong>You:</strong> Rhythm\?</p><div><strong>ECG-Chat:</strong> It is", plain)
    for said in (Page(plain).text, repr(shown)):
        assert "About A, B. For learning, not for care." in said
        assert f"Not answered: {REASONS['reversed']}." in said
        assert "Note: short" in said
        assert "measurements: Measured: rate 75 (A; measured on lead II)" in said
    assert "<details><summary>Evidence (1)</summary>" in plain


def luminance(color):
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_text_has_enough_contrast_with_its_ground():
    seen = set()
    for style in Page(Shown(("A",), (full("sinus rhythm"),))._repr_html_()).styles:
        ink, ground = re.search(r"(?<![-\w])color:(#\w{6})", style), re.search(r"background:(#\w{6})", style)
        assert bool(ink) == bool(ground)  # one without the other would depend on the notebook's theme
        if ink:
            light, dark = sorted((luminance(ink[1]), luminance(ground[1])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, style
            seen.add((ink[1], ground[1]))
    assert len(seen) > 4


def test_a_conversation_says_notes_and_evidence_once():
    turn = answer(evidence=[Evidence("measurements", "rate 75")], notes=["short"])
    shown = Shown(("A",), (turn, turn))
    assert repr(shown).count("Note: short") == repr(shown).count("rate 75") == 1
    assert shown._repr_html_().count("Note: short") == 1
    assert shown.answer is turn
    assert "Nothing was asked yet." in repr(Shown(("A",), ())) + Shown(("A",), ())._repr_html_()


@pytest.mark.slow
def test_a_notebook_asks_the_mini():
    shown = []
    for _ in range(2):
        chat = NotebookChat(load_chat(), SAMPLE / "A0001")
        first, second = chat("What is the heart rhythm?"), chat("What is the heart rate?")
        assert chat.conversation().answers == (first.answer, second.answer)
        shown.append((repr(first), first._repr_html_(), repr(chat.conversation())))
        assert first.answer.text in Page(first._repr_html_()).text
        assert chat.session.turns == [(item.question, item.text) for item in chat.answers]
    assert shown[0] == shown[1]
    with pytest.raises(EcgChatError, match="empty"):
        chat(" ")
    assert len(chat.answers) == 2
    pair = NotebookChat(load_chat(), [SAMPLE / "A0001", read_recording(SAMPLE / "A0003")])
    assert repr(pair) == "NotebookChat about A0001, A0003: 0 answers"
    assert pair("What changed?").records == ("A0001", "A0003")
    assert len(pair.answers[0].others) == 1
