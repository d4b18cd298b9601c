"""Any text as harmless LaTeX: `escape` is total, so a name, a header comment or a model's answer can't run a command.

The result is printable ASCII in which every special character is spelled as a command; what the page's fonts can't show
is replaced by its visible code, never dropped. `visible` does the same for HTML and Markdown, whose readers have fonts
for more: there only what is invisible, turns the line around or piles up is replaced. Taught in: 13 §7
"""

from __future__ import annotations

import unicodedata

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    # Not special, but fonts join or bend them: -- to a dash, << to a guillemet, `` and '' to quotes, ?` to ¿.
    "-": "-{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    ",": ",{}",
    "|": r"\textbar{}",
}
_SYMBOLS = {
    "\u00a0": "~",
    "\u2010": "-{}",
    "\u2011": "-{}",
    "\u2013": r"\textendash{}",
    "\u2014": r"\textemdash{}",
    "\u2018": r"\textquoteleft{}",
    "\u2019": r"\textquoteright{}",
    "\u201a": r"\quotesinglbase{}",
    "\u201c": r"\textquotedblleft{}",
    "\u201d": r"\textquotedblright{}",
    "\u201e": r"\quotedblbase{}",
    "\u2026": r"\dots{}",
    "«": r"\guillemotleft{}",
    "»": r"\guillemotright{}",
    "°": r"\textdegree{}",
    "±": r"\textpm{}",
    "µ": r"\textmu{}",
    "\u03bc": r"\textmu{}",
    "×": r"\texttimes{}",
    "÷": r"\textdiv{}",
    "·": r"\textperiodcentered{}",
    "•": r"\textbullet{}",
    "¡": r"\textexclamdown{}",
    "¿": r"\textquestiondown{}",
    "§": r"\textsection{}",
    "©": r"\textcopyright{}",
    "®": r"\textregistered{}",
    "€": r"\texteuro{}",
    "£": r"\textsterling{}",
    "½": r"\textonehalf{}",
    "¼": r"\textonequarter{}",
    "¾": r"\textthreequarters{}",
    "¹": r"\textonesuperior{}",
    "²": r"\texttwosuperior{}",
    "³": r"\textthreesuperior{}",
    "ß": r"\ss{}",
    "Æ": r"\AE{}",
    "æ": r"\ae{}",
    "Œ": r"\OE{}",
    "œ": r"\oe{}",
    "Ø": r"\O{}",
    "ø": r"\o{}",
    "Ð": r"\DH{}",
    "ð": r"\dh{}",
    "Đ": r"\DJ{}",
    "đ": r"\dj{}",
    "Þ": r"\TH{}",
    "þ": r"\th{}",
    "Ł": r"\L{}",
    "ł": r"\l{}",
    "ı": r"\i{}",
    "≤": r"\ensuremath{\le}",
    "≥": r"\ensuremath{\ge}",
    "≈": r"\ensuremath{\approx}",
    "≠": r"\ensuremath{\ne}",
    "−": r"\ensuremath{-}",
    "→": r"\ensuremath{\to}",
    "√": r"\ensuremath{\surd}",
    "Δ": r"\ensuremath{\Delta}",
}
_ACCENTS = {
    "\u0300": r"\`",
    "\u0301": r"\'",
    "\u0302": r"\^",
    "\u0303": r"\~",
    "\u0304": r"\=",
    "\u0306": r"\u",
    "\u0307": r"\.",
    "\u0308": r"\"",
    "\u030a": r"\r",
    "\u030b": r"\H",
    "\u030c": r"\v",
    "\u0327": r"\c",
    "\u0328": r"\k",
}
_LONGEST_WORD = 24  # characters; longer runs get places where the line may break
_LONGEST_CODES = 8  # codes shown of a run of characters that the fonts don't have
_MOST_MARKS = 3  # combining marks on one letter; more are a pile that covers the lines above


class Latex(str):
    """Text that is LaTeX already and must not be escaped again; only this package makes it."""

    __slots__ = ()


def shorten(text: str, limit: int) -> str:
    """Return the text on one line, cut after `limit` characters with a note of how many are missing."""
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    return f"{line[:limit].rstrip()} [… {len(line) - limit:,} more characters not shown]"


def escape(text: str) -> Latex:
    r"""Return LaTeX that prints the text and does nothing else.

    Args:
        text: any string, hostile or not.

    Returns:
        Printable ASCII. `\ecgcode{…}`, which the template defines, shows characters that the fonts lack by their
        code points; `\ecgbreak{}` allows a line break inside a very long word.
    """
    out: list[str] = []
    missing: list[str] = []  # the run of characters without a glyph that is being read
    word = 0
    for character in unicodedata.normalize("NFC", text):
        shown = _one(character)
        if shown is None:
            missing.append(character)
            continue
        out += _codes(missing)
        missing.clear()
        word = 0 if shown == " " else word + 1
        out.append(shown)
        if word and word % _LONGEST_WORD == 0:
            out.append(r"\ecgbreak{}")
    out += _codes(missing)
    return Latex("".join(out))


def visible(text: str) -> str:
    """Return the text with each character that can't be seen, or isn't one, as `[U+XXXX]`.

    Control, format (zero width, changes of direction), unassigned and private characters and lone surrogates are
    replaced, and combining marks beyond the third on a letter. What is left is printable; letters of every script stay.
    """
    out: list[str] = []
    marks = 0
    for character in unicodedata.normalize("NFC", text):
        marks = marks + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        shown = marks <= _MOST_MARKS and (character.isprintable() or character in "\t\n\r")
        out.append(character if shown else f"[U+{ord(character):04X}]")
    return "".join(out)


def plain(text: str) -> str:
    """Return the text in letters that every font has (Latin): all others as `[U+XXXX]`, for titles in pictures."""
    return "".join(c if _one(c) is not None else f"[U+{ord(c):04X}]" for c in unicodedata.normalize("NFC", text))


def _one(character: str) -> str | None:
    """Return the LaTeX of one character, or None if the page's fonts can't be trusted to have it."""
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character in " \t\n\r":
        return " "
    if " " < character <= "~":
        return character
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[1] in _ACCENTS and character <= "\u017f":  # Latin-1 and Latin Extended-A only
        return f"{_ACCENTS[parts[1]]}{{{parts[0]}}}"
    return None


def _codes(run: list[str]) -> list[str]:
    """Return the visible replacement of a run of characters: their codes, the first few if there are many."""
    if not run:
        return []
    codes = [f"U+{ord(character):04X}" for character in run[:_LONGEST_CODES]]
    if len(run) > _LONGEST_CODES:
        codes.append(f"and {len(run) - _LONGEST_CODES} more")
    return [rf"\ecgcode{{{' '.join(codes)}}}"]
