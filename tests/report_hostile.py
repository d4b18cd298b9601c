"""Texts that no name, header, answer or patient's file should hold, and what a page must show of them.

Used by the tests and by `benchmarks/report.py`, which counts them.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from pathlib import Path

from ecgchat_lib.report.latex import Engine

LONG = 100_000  # characters of the longest ones
HOSTILE: dict[str, str] = {
    "input": r"\input{/etc/passwd}",
    "write18": r"\immediate\write18{touch hacked}",
    "openout": r"\newwrite\w\immediate\openout\w=hacked\immediate\write\w{x}",
    "pipe": r"\input|\"touch hacked\"",
    "directlua": r"\directlua{os.execute('touch hacked')}",
    "catcode": r"\catcode`\%=12 \def\x{\x\x}\x",
    "end of document": r"\end{document} \bye \relax \csname x\endcsname",
    "percent": "100 % of } them {{ ~ & # $x_2^3$ \\\\",
    "unclosed brace": "{{{ \\begin{itemize} \\item [",
    "closed brace": "}}} ] \\fi \\else \\egroup",
    "hex notation": "^^5cinput ^^M ^^00 ^^^^0041",
    "ligatures": "--- << >> `` '' ,, ?` !` fi ff ffl \"quoted\" it's",
    "accents": "Łukasz Müller-Öçal, Ærø, Žižek; 5 µV ± 2 ≤ 3 × 10²",
    "right to left": "שלום עולם, \u0645\u0631\u062d\u0628\u0627",
    "direction override": "\u202egpj.exe\u2066 \u200f end",
    "emoji": "emoji \U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "combining": "e\u0301 o\u0308\u0323 Z" + "\u0335\u0336\u0337\u0338" * 8,
    "other scripts": "心电图 кардиограмма ηλεκτρο เอกซเรย์",
    "control": "bell \x07 esc \x1b[31m backspace \x08 delete \x7f c1 \x9b",
    "zero width": "zero\u200bwidth\u2060join\ufeffer soft\xadhyphen",
    "nul": "nul \x00 byte",
    "surrogate": "lone \ud800 and \udfff surrogate",
    "private": "private \ue000 unassigned \U000e0fff noncharacter \ufffe",
    "templates": "((( record ))) ((* for x in y *)) ((# no #)) %# {{ x }} {% y %}",
    "script": "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "attribute": '" onmouseover="alert(1)" x=\'',
    "closing tags": "</bdi></dd></style></title></svg><svg/onload=alert(1)>-->]]>",
    "entities": "&lt;b&gt; &#60;script&#62; &amp;amp; &NotAnEntity;",
    "markdown": "[x](javascript:alert(1)) ![y](http://z) `code` **b** | a | b | # h",
    "autolink": "http://evil.example www.evil.example mail@evil.example",
    "long word": "W" * 3000,
    "long text": "word " * (LONG // 5),
    "long unbroken": "\\{" * (LONG // 2),
    "long emoji": "\U0001f600" * 2000,
    "lines": "a\r\nb\n\n\nc\u2028d\x0be\x0cf",
}


WORKS_WITH = {"report.tex", "report.log", "report.aux", "report.pdf", "console.txt", "home"}  # LaTeX's folder, after it


def watched(engine: Engine, listing: Path) -> Engine:
    """Return the engine as a program that also writes what it left in its folder, a name a line, to `listing`.

    Args:
        engine: with the path of its program.
        listing: the file.
    """
    script = f'"$0" "$@"; code=$?; ls -A >> {shlex.quote(str(listing))}; exit $code'
    return Engine(engine.name, ("/bin/sh", "-c", script, *engine.command))


def squeezed(text: str) -> str:
    """Return the text without white space, soft hyphens, brackets and typographic ligatures."""
    return re.sub(r"[\s\xad\[\]]", "", unicodedata.normalize("NFKC", text))


def expected(text: str, is_shown, limit: int, most_codes: int | None = None) -> str:
    """Return what a page shows of a text: itself, cut at a limit, with each character it can't show by its code.

    Args:
        text: the text.
        is_shown: whether a character (of the composed text) is shown as itself.
        limit: characters of a text that are shown.
        most_codes: how many codes are shown of a run; all if None.
    """
    from ecgchat_lib.report.escaping import shorten

    out, run = [], []
    for character in [*unicodedata.normalize("NFC", shorten(text, limit)), ""]:
        if character and not is_shown(character):
            run.append(f"U+{ord(character):04X}")
            continue
        shown = run if most_codes is None else run[:most_codes]
        out += shown + ([f"and {len(run) - len(shown)} more"] if len(run) > len(shown) else [])
        run = []
        out.append(character)
    return squeezed("".join(out))
