"""Escaping: for any text at all, the LaTeX is printable ASCII made of harmless pieces, and says what the text says."""

from __future__ import annotations

import re
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from ecgchat_lib.report import escaping
from ecgchat_lib.report.escaping import escape, shorten

COMMANDS = {
    match
    for latex in (*escaping._SPECIAL.values(), *escaping._SYMBOLS.values(), *escaping._ACCENTS.values())
    for match in re.findall(r"\\(?:[A-Za-z]+|[^A-Za-z])", latex)
} | {r"\ecgcode", r"\ecgbreak"}
PIECES = re.compile(r"\\(?:[A-Za-z]+|[^A-Za-z])|[{}~ ]|[A-Za-z0-9]|[-!()*+,./:;=?@\[\]+]")


@given(st.text(st.characters(), max_size=200))
@example("\\input{/etc/passwd}")
@example("\\write18{rm -rf /} ^^5c ^^M %\n}{")
@example("\x00\x07\ud800 e\u0301 \u202eabc\u2066 \U0001f600")
def test_escape_is_total_and_harmless(text):
    latex = escape(text)
    assert latex.isascii()
    assert latex.isprintable() or not latex
    position, depth = 0, 0
    while position < len(latex):  # the whole output is made of known pieces: no %, &, #, $, ^, _ or unknown command
        piece = PIECES.match(latex, position)
        assert piece, latex[position : position + 20]
        if piece.group().startswith("\\"):
            assert piece.group() in COMMANDS
        depth += {"{": 1, "}": -1}.get(piece.group(), 0)
        assert depth >= 0
        position = piece.end()
    assert depth == 0


@given(st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), max_size=100))
def test_every_ascii_character_comes_back(text):
    latex = escape(text).replace(r"\ecgbreak{}", "")
    for character, command in escaping._SPECIAL.items():
        if command.endswith("{}"):
            latex = latex.replace(command, "\x00" + character)
    back = re.sub(r"\x00(.)|\\([{}$&#%_])", lambda m: m.group(1) or m.group(2), latex)
    assert back == text


@given(st.text(max_size=50))
def test_nothing_is_dropped(text):
    """Each character is spelled, or its code (or the count of codes) is shown."""
    runs = re.findall(r"\\ecgcode\{([^}]*)\}", escape(text))
    codes = sum(run.count("U+") + int((re.findall(r"and (\d+) more", run) or ["0"])[0]) for run in runs)
    unknown = [c for c in unicodedata.normalize("NFC", text) if escaping._one(c) is None]
    assert codes == len(unknown)


def test_characters_without_a_glyph_are_shown_by_code():
    assert escape("a\U0001f600b") == r"a\ecgcode{U+1F600}b"
    assert escape("שלום") == r"\ecgcode{U+05E9 U+05DC U+05D5 U+05DD}"
    assert "and 12 more" in escape("\U0001f600" * 20)
    assert escape("\u202egpj.exe").startswith(r"\ecgcode{U+202E}")  # an override can't turn the line around unseen


def test_accents_in_both_spellings():
    assert escape("é") == escape("e\u0301") == r"\'{e}"
    assert escape("Łódź") == r"\L{}\'{o}d\'{z}"


def test_long_words_may_break():
    assert escape("a" * 100).count(r"\ecgbreak{}") == 4
    assert r"\ecgbreak{}" not in escape("word " * 100)


def test_shorten_says_how_much_is_missing():
    assert shorten("two\n  words", 20) == "two words"
    assert shorten("x" * 100_000, 600) == "x" * 600 + " [… 99,400 more characters not shown]"
