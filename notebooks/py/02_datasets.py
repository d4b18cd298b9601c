# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
RECORDS = 160  # synthetic recordings to make, 40..99999
DATA = "synthetic"  # "synthetic", or the folder of PTB-XL as published

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("02", globals())

# %% [markdown]
# ## 1. What there is
#
# ECG-Chat was trained on three public datasets and evaluated on two more. Their sizes, licenses and sources stand in
# the data cards of this project, one file per dataset, where each also lists its traps. LUDB is this course's own
# addition: its marks taught the network of notebook 03. None of them is downloaded here.

# %%
from ecgchat_lib.datasets.cards import read_cards

cards = read_cards()
print(cards[["name", "records", "patients", "license", "role"]].to_string(index=False, max_colwidth=44))

# %% [markdown]
# The last line is the dataset that needs no download: the project makes it. Seen from afar, the heart is an arrow, the
# *heart vector*, with three components: to the left, to the foot, to the back. What a lead sees is a weighted sum of
# the three. By hand, for one instant and the two leads I and II, with the weights of Dower's matrix:

# %%
import numpy as np

vector = np.array([1.0, 0.8, 0.3])  # mV: to the left, to the foot, to the back
one = 0.632 * vector[0] - 0.235 * vector[1] + 0.059 * vector[2]
two = 0.235 * vector[0] + 1.066 * vector[1] - 0.132 * vector[2]
print(f"I = {one:.3f} mV, II = {two:.3f} mV, so III = II - I = {two - one:.3f} mV")

# %% [markdown]
# The arrow grows and turns as the beat goes on. One way to write that down: a few bumps, one for each part of the heart
# that takes its turn, each with its own direction. A bump $(1 - z^2)^3$ begins and ends, unlike a Gaussian bell, and
# needs no `exp`, whose last digit differs between machines.

# %%
from ecgchat_lib.course.figures import f02
from ecgchat_lib.datasets.synthetic import DOWER, FINDINGS, synthesize

waves = [  # peak, rise, fall in ms; then left, foot, back in mV
    (60, 55, 60, (0.11, 0.06, 0.00)),  # P: both atria
    (187, 24, 24, (-0.10, -0.05, -0.24)),  # Q, or r in V1: the septum, to the right and the front
    (210, 21, 22, (1.10, 0.75, 0.50)),  # R: the free wall, to the left and the foot
    (235, 24, 28, (-0.16, -0.10, 0.34)),  # S: the base, to the back
    (450, 120, 90, (0.30, 0.20, -0.18)),  # T: recovery, to the left, the foot and the front
]
ms = np.arange(600.0)
vector = np.zeros((3, 600))
for peak, rise, fall, way in waves:
    z = (ms - peak) / np.where(ms < peak, rise, fall)
    vector += np.outer(way, np.maximum(1 - z**2, 0) ** 3)
leads = DOWER @ vector  # I, II, V1..V6
assert np.allclose(DOWER[:2] @ [1.0, 0.8, 0.3], [one, two])
run.show(f02.heart_vector, vector, leads)

# %% [markdown]
# Five bumps, and the eight leads already look like an ECG: V1 mostly down, V6 mostly up, R growing between them. Every
# finding is a change of this list. A blocked bundle is a late bump, an infarction a missing one, a longer PR a shift.
# The library draws the list anew for each patient, lets breath and heart rate vary, and adds what skin, muscles and
# mains add.

# %%
ecg = synthesize(SEED, finding="CLBBB")
units = np.round(ecg.signal * 1000).astype(int)  # stored as whole microvolts
print("I + III = II in every sample:", bool((units[0] + units[2] == units[1]).all()))
print("statements:", ecg.statements)
print("report:    ", ecg.report)
known = ("heart_rate_bpm", "rr_ms", "pr_ms", "qrs_ms", "qt_ms", "axis_deg")
print("truth:     ", {name: ecg.truth[name] for name in known})

# %% [markdown]
# Since the waves are known, so is where each begins and ends. The *marks* of a lead are put where LUDB's cardiologists
# put theirs: a wave has begun when it exceeds a small share of its height, with one eye on the other leads. The
# truth follows from the marks, so the two can't contradict each other:

# %%
marks = ecg.marks  # lead II; ecg.lead_marks("V1") for another. Rows: onset, peak, offset, in samples
widths = (marks.qrs[:, 2] - marks.qrs[:, 0]) * 1000 / ecg.fs
print(len(marks.p), "P waves,", len(marks.qrs), "QRS complexes,", len(marks.t), "T waves marked in lead II")
print(f"median QRS of the marks {np.median(widths):.1f} ms, truth {ecg.truth['qrs_ms']} ms")

# %% [markdown]
# **Predict**, before you look: which strips lack P waves, and in which does a P wave stay alone?

# %%
shown = ("NORM", "AFIB", "AFLT", "1AVB", "2AVB1", "3AVB", "CLBBB", "CRBBB", "WPW", "PACE", "PVC", "VT")
run.show(f02.findings, {name: synthesize(SEED, finding=name) for name in shown})
print(len(FINDINGS), "findings:", " ".join(FINDINGS))

# %% [markdown]
# **Predict:** which of the strips below is the real one, and how could you tell if the titles were missing?

# %%
from ecgchat_lib.datasets.cpsc2018 import load_real_sample
from ecgchat_lib.datasets.signals import load_recording

shown = ("NORM", "AFIB", "CLBBB", "PVC", "IMI")
strips = {f"synthetic, {name}": synthesize(SEED, finding=name).signal for name in shown}
real = load_recording(load_real_sample(), "A0002")
strips["real, A0002 of CPSC2018, labeled normal"] = real.signal[:, :5000]
run.show(f02.strips, strips, 500)

# %% [markdown]
# By eye it is hard to tell, and that is the danger. Synthetic hearts have one cause per finding, rarely two; real ones
# have several diseases at once, and waves that no short list of bumps gives. A number says it better than the eye: a
# plain classifier is trained on one kind and tested on the other (`benchmarks/synthetic_and_real.py`; real means
# PTB-XL, folds 1–9; the areas under the curve are means over the five superclasses of section 3). The generator was
# improved after earlier runs of the same comparison, so the first of these figures is a little too good.

# %%
import json

from ecgchat_lib.paths import data_folder

recorded = json.loads((data_folder() / "results" / "synthetic_and_real.json").read_text(encoding="utf-8"))
for pair, found in recorded["auc"].items():
    area = found["macro"]
    print(f"{pair:27s} AUC {area['value']:.3f}  95 % interval {area['low']:.3f} to {area['high']:.3f}  n {area['n']}")

# %% [markdown]
# What is learned on synthetic ECGs carries over to real ones in part, and real ones teach real ones far better. So
# synthetic ECGs test code against a known truth. What they can't do is say how good a model is for patients; a result
# on them never stands in one table with a result on PTB-XL.
#
# ## 2. From published layouts to one table
#
# Every dataset keeps the same few facts somewhere else. PTB-XL has one table, `ptbxl_database.csv`, and a pair of WFDB
# files per recording. The next cell writes synthetic ECGs in exactly that layout, so that everything from here on also
# runs on PTB-XL itself: set `DATA` to its folder.

# %%
from pathlib import Path

from ecgchat_lib.datasets.synthetic import write_synthetic

folder = Path(DATA)
if DATA == "synthetic":
    folder = run.artefact("synthetic_ptbxl", lambda path: write_synthetic(path, RECORDS, SEED), records=RECORDS)
print("\n".join(sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))))

# %% [markdown]
# First by hand. A row of the table holds the statements as the text of a Python dictionary. `ast.literal_eval` reads
# such a text and, unlike `eval`, can't run anything.

# %%
import ast

import pandas as pd

table = pd.read_csv(folder / "ptbxl_database.csv")
row = table.iloc[0]
print(row[["ecg_id", "patient_id", "age", "sex", "scp_codes", "strat_fold", "filename_hr"]].to_string())
print("parsed:", ast.literal_eval(row["scp_codes"]))

# %% [markdown]
# The library does this for every row, checks it, and returns a *manifest*: one row per recording, the same columns for
# every dataset. All later notebooks read manifests and never a dataset's own tables.

# %%
from ecgchat_lib.datasets import load

manifest = load("ptbxl", folder)
first = manifest.iloc[0]
assert dict(first["statements"]) == ast.literal_eval(row["scp_codes"])
print(manifest[["record", "patient", "split", "statements", "labels", "fold"]].head(8).to_string(index=False))

# %% [markdown]
# A likelihood of 0 doesn't mean *absent*. PTB-XL writes it where nobody stated a likelihood, which is nearly always so
# for rhythm and form. Whoever drops the zeros loses the rhythm of almost every record.
#
# The other datasets are large, so here they are in miniature: the true layout and spelling, and made-up people. Look
# where each keeps its diagnosis.

# %%
from ecgchat_lib.datasets.layouts import LAYOUTS, write_layout


def write_all(path):
    """Write each layout into a folder of its own."""
    for name in LAYOUTS:
        write_layout(name, path / name)


layouts = run.artefact("layouts", write_all)
machine = pd.read_csv(layouts / "mimic_iv_ecg" / "machine_measurements.csv")
print("MIMIC-IV-ECG:", machine.loc[3, ["report_0", "report_1", "report_2", "p_onset"]].tolist())
header = next((layouts / "chapman").rglob("JS90001.hea")).read_text().splitlines()
print("Chapman:     ", header[0], "...", next(line for line in header if line.startswith("#Dx")))
print("SPH:         ", (layouts / "sph" / "metadata.csv").read_text().splitlines()[3])
print("CPSC2018:    ", (layouts / "cpsc2018" / "training_set" / "REFERENCE.csv").read_text().splitlines()[3])

# %% [markdown]
# Machine sentences, SNOMED CT codes, AHA codes with modifiers, class numbers. One call per dataset turns each into the
# same columns, and several manifests go into one table, with the dataset's name in front of records and patients: two
# datasets may both have a patient 7.

# %%
from ecgchat_lib.datasets.cpsc2018 import load_real_sample
from ecgchat_lib.datasets.manifest import join_manifests

parts = {"synthetic": manifest, "real_sample": load_real_sample()}
for name in LAYOUTS:
    signals_missing = {} if name == "cpsc2018" else {"require_files": False}
    parts[name] = load(name, layouts / name, **signals_missing)
everything = join_manifests(parts)
print(everything.groupby(["dataset", "split"]).size().unstack(fill_value=0).to_string())
print(everything.groupby("dataset").first()[["record", "statements", "report"]].to_string(max_colwidth=52))

# %% [markdown]
# **Predict:** the miniature of CPSC2018 has a training set of four records and a validation set of three. Why does the
# manifest hold four?
#
# Because the three are among the four. The challenge's 300 public validation records are A0001–A0300 of its training
# set, and the original code trains on one folder and validates on the other. The loader takes a record once.
#
# A manifest is checked when it is made, and a table from outside is not trusted: a wrong value is refused with the
# record, the column and the remedy, and so is a path that leads out of the dataset's folder.

# %%
from ecgchat_lib.datasets.manifest import check_manifest
from ecgchat_lib.datasets.tables import check_paths
from ecgchat_lib.errors import EcgChatError

wrong = manifest.copy()
wrong.loc[3, "split"] = "dev"
names, paths = pd.Series(["a", "b"]), pd.Series(["files/p1000/s1/1", "../../secrets"])
for check_it in (lambda: check_manifest(wrong), lambda: check_paths(paths, names, Path("record_list.csv"))):
    try:
        check_it()
    except EcgChatError as error:
        print(error)

# %% [markdown]
# ## 3. From codes to labels
#
# PTB-XL's 71 statements are of three kinds. Only the diagnostic ones belong to a superclass.

# %%
from ecgchat_lib.datasets.labels import KINDS, STATEMENTS, SUPERCLASSES, codes_of_kind, superclasses

print({kind: len(codes_of_kind(kind)) for kind in KINDS}, "of", len(STATEMENTS))
by_hand = {STATEMENTS[code].superclass for code in ("LVH", "IMI", "SR")} - {None}
print("LVH, IMI and SR:", sorted(by_hand))
assert by_hand == set(superclasses(["LVH", "IMI", "SR"]))

# %% [markdown]
# **Predict:** will the bars of a split add up to its number of records?

# %%
run.show(f02.label_counts, manifest)
test = manifest[manifest["split"] == "test"]
print(f"{len(test)} test records with {test['labels'].map(len).sum()} superclass labels")
print(f"{(test['labels'].map(len) == 0).sum()} of them have a rhythm or form statement only")

# %% [markdown]
# They don't: a record may have two superclasses, or none.
#
# ### Exercise 02.1 · From a cell of statements to superclasses (★☆☆, 10 min)
#
# Write the function that turns a `scp_codes` cell into a tuple of superclasses, in the order of `SUPERCLASSES`.
#
# <details><summary>Hint 1</summary>
#
# `ast.literal_eval(cell)` is a dictionary; its keys are the codes. Does the likelihood matter?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Collect `STATEMENTS[code].superclass` in a set, then walk through `SUPERCLASSES` and keep those in the set.
#
# </details>


# %% tags=["solution"]
def superclasses_of(cell):
    # <solution>
    found = {STATEMENTS[code].superclass for code in ast.literal_eval(cell)}
    return tuple(name for name in SUPERCLASSES if name in found)
    # </solution>


# %%
check("02.1", superclasses_of)

# %% [markdown]
# Published comparisons use five label sets. A record without a label of the set is left out of the comparison, which is
# why the sets differ in size. A loop by hand over `form`, and the library's matrix:

# %%
from ecgchat_lib.datasets.labels import LABEL_SETS, label_matrix

print({name: len(labels.classes) for name, labels in LABEL_SETS.items()})
forms = [[code for code, _ in cell if "form" in STATEMENTS[code].kinds] for cell in test["statements"]]
matrix = label_matrix(test["statements"], "form")
assert matrix.sum() == sum(map(len, forms))
print("test records with a form statement:", int(matrix.any(axis=1).sum()), "of", len(test))

# %% [markdown]
# Do our labels equal those of the published lists? MERL, the method that most comparisons quote, published its lists
# for PTB-XL 1.0.3. The next table is a recorded result (`benchmarks/manifests.py` on the metadata of version 1.0.1 and
# these lists): records in the test split, and records *with any difference* over all three splits, of both versions.

# %%
import json

from ecgchat_lib.paths import data_folder

published = json.loads((data_folder() / "results" / "manifests.json").read_text(encoding="utf-8"))
lines = []
for name in ("super", "sub", "form", "rhythm"):
    line = {"set": name, "test records": published["ptbxl"]["1.0.3"][f"{name}/test"]["records"]}
    line["MERL's"] = published["ptbxl"]["1.0.3"][f"{name}/test"]["records_merl"]
    for version, keys in published["ptbxl"].items():
        splits = [keys[f"{name}/{split}"] for split in ("train", "validation", "test")]
        line[f"differ, {version}"] = sum(one["records_that_differ"] for one in splits)
    lines.append(line)
print(pd.DataFrame(lines).to_string(index=False))
print("super/test:", published["ptbxl"]["1.0.3"]["super/test"]["per_class"])

# %% [markdown]
# Equal in every label of every record, once the versions are the same. Between 1.0.1 and 1.0.3, 38 records were
# withdrawn and ten got other statements; `load("ptbxl", folder, as_of="1.0.3")` makes the newer of the older. Two
# counts that differ by five records may both be right: say the version. CPSC2018's known counts are of records with
# the label in any place; they add up to more than its records. If `DATA` is PTB-XL, the counts are compared here, live:

# %%
live = {
    f"{name}/{split}": int(label_matrix(manifest.loc[manifest["split"] == split, "statements"], name).any(axis=1).sum())
    for name in ("super", "sub", "form", "rhythm")
    for split in ("train", "validation", "test")
}
version = {number: version for version, number in published["records"].items()}.get(len(manifest))
if version is not None:
    assert live == {key: one["records"] for key, one in published["ptbxl"][version].items()}
print("CPSC2018, records with each label:", published["cpsc2018"]["any_label"], "of", published["cpsc2018"]["records"])
print(f"{len(manifest)} records: {f'PTB-XL {version}, all twelve counts agree' if version else 'not all of PTB-XL'}")

# %% [markdown]
# ### Other vocabularies
#
# SPH writes AHA codes: statements between semicolons, modifiers after plus signs. Without its modifier, 145 only says
# that the ST segment deviates. SNOMED CT codes mean the same everywhere, but acronyms don't: in Chapman's table `AF` is
# atrial *flutter*, in CPSC2018's it is *fibrillation*.

# %%
from ecgchat_lib.datasets import cpsc2018, snomed
from ecgchat_lib.datasets.aha import read_aha_cell

for cell in ("145", "145+362", "50+346;125", "142+312"):
    reading = read_aha_cell(cell)
    print(f"{cell:12} {reading.report:72} {reading.statements}")
print("AF, Chapman: ", snomed.CONCEPTS[snomed.CHAPMAN["AF"]].name)
print("AF, CPSC2018:", snomed.CONCEPTS[cpsc2018.ABBREVIATIONS["AF"]].name)
print("164865005:   ", snomed.CONCEPTS["164865005"].name, "->", snomed.labels_of_codes(("164865005",)))

# %% [markdown]
# The last line is a code for which PTB-XL has no statement: an infarction without a place. Its superclass is sure all
# the same, so it is kept, and the word goes into the report. Nothing is invented, and nothing is lost.
#
# ### Exercise 02.2 · A cell of AHA codes (★☆☆, 8 min)
#
# Write `parse_aha(cell)`: a list with one pair per statement, its code and a tuple of its modifiers, all as texts. The
# cell `"22;145+362"` gives `[("22", ()), ("145", ("362",))]`.
#
# <details><summary>Hint</summary>
#
# Split at `;` first, then each part at `+`. `first, *modifiers = part.split("+")` takes a list apart.
#
# </details>


# %% tags=["solution"]
def parse_aha(cell):
    # <solution>
    parts = [part.split("+") for part in cell.split(";")]
    return [(first, tuple(modifiers)) for first, *modifiers in parts]
    # </solution>


# %%
check("02.2", parse_aha)

# %% [markdown]
# **Predict:** `"AF" in "AFIB,TWC"`. What does Python answer, and what would a label made that way be worth?

# %%
diagnosis = "AFIB,TWC"
print("AF" in diagnosis, "AF" in diagnosis.split(","))
found = published["chapman_substrings"]
print(found["columns_that_equal_substrings"], "of", found["labels"], "label columns equal counts of substrings")
run.show(f02.substrings, found["too_many"])

# %% [markdown]
# This is not a made-up mistake. In MERL's published lists for Chapman-Shaoxing-Ningbo every label column equals a
# count of substrings (23,026 records): each AFIB also counts as flutter, each AVB as ventricular bigeminy. The numbers
# look plausible; only the words tell.
#
# ## 4. Reports
#
# Contrastive pretraining needs a text beside each ECG. Most of PTB-XL's reports are German, and MiniLM reads English;
# so the manifest holds an English text written from the statements, and keeps the original in `report_original`. The
# same statements are said in different ways from record to record: a text encoder that sees one sentence a thousand
# times learns the sentence, not the finding.

# %%
from ecgchat_lib.datasets.reports import report_from_statements

said = (("IMI", 50.0), ("SR", 0.0), ("PVC", 100.0))
for seed in range(4):
    print(f"{seed}: {report_from_statements(said, heart_rate_bpm=72, seed=seed)}")
print("different texts in the manifest:", manifest["report"].nunique(), "for", len(manifest), "records")

# %% [markdown]
# The likelihood of 50 became a hedge (*possible*, *cannot rule out*). What a report must not do is sound surer than
# its source. What it can't do is bring back what the statements leave out: sizes, places, changes since last time.
#
# ### Clean by words
#
# Machine reports are full of abbreviations. The original wrote them out by replacing letters wherever they stand, and
# took LBBB for a *light* bundle branch block:

# %%
raw = "sinus rhythm. minimal st changes in limb leads. possible old mi, lbbb."
careless = raw
for short, long in {"mi": "myocardial infarction", "lbbb": "left bundle branch block"}.items():
    careless = careless.replace(short, long)
print(careless)

# %% [markdown]
# *Minimal* has become an infarction, and nothing fails: the loss goes down all the same. A word is a run of letters
# between two non-letters, so let a pattern find words and look each of them up.

# %%
import re

from ecgchat_lib.datasets.reports import ABBREVIATIONS, clean_report, language_of

by_words = re.sub(r"[a-z]+", lambda word: ABBREVIATIONS.get(word[0], word[0]), raw)
print(by_words)
assert clean_report(raw).lower() == by_words.lower()
for text in (
    "sinusrhythmus vd. auf inferiore ischÄmie 4.46          unbestÄtigter bericht",
    "Marked anteroseptal ST depression, CONSIDER ACUTE INFARCT (proximal LAD occlusion)",
    "no LVH. pr interval 0.24. Edit: NORM 80, (NORM 100)",
):
    print(f"{language_of(text):3}{clean_report(text)}")

# %% [markdown]
# What recorders and annotators add is gone, `4.46` (a version) but not `0.24` (a measurement); the LAD in an occlusion
# is an artery and no axis; German abbreviations are written out in German texts only; negations and hedges stay.
# Cleaning twice changes nothing.
#
# ### Exercise 02.3 · Abbreviations by words (★★☆, 10 min)
#
# Write `expand(text, abbreviations)`: each abbreviation (keys are lower case) is written out where it stands as a
# whole word, in any case; everything else stays as it is.
#
# <details><summary>Hint 1</summary>
#
# Splitting at spaces isn't enough. What stands right after `mi` in *old mi, lbbb.*?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `re.sub(r"[A-Za-z]+", function, text)` calls `function` with a match; `match[0]` is the word.
#
# </details>


# %% tags=["solution"]
def expand(text, abbreviations):
    # <solution>
    return re.sub(r"[A-Za-z]+", lambda word: abbreviations.get(word[0].lower(), word[0]), text)
    # </solution>


# %%
check("02.3", expand)

# %% [markdown]
# ### What a machine claims
#
# MIMIC-IV-ECG has no codes, only the machine's sentences. They are short and come from a fixed list, so patterns of
# words can read them, with care for what is hedged, what is denied, and which wall is meant.

# %%
from ecgchat_lib.datasets.wording import statements_from_text

for text in (
    "Sinus rhythm with PACs with 1st degree A-V block",
    "Inferior ST-T changes may be due to myocardial ischemia",
    "Poor R wave progression - cannot rule out anteroseptal infarct",
    "Anteroseptal ST depression is probably reciprocal to inferior infarct",
    "Atrial fibrillation is no longer present",
    "Otherwise normal ECG",
    "Abnormal ECG",
):
    print(f"{text:70} {dict(statements_from_text(text))}")

# %% [markdown]
# A hedge becomes a likelihood, as in PTB-XL; *otherwise normal* is NORM at 80, as there. A statement about the
# recording ("Suspect arm lead reversal") goes to the manifest's column `remarks`. A machine made all this and nobody
# confirmed it.
#
# How well do words tell what was coded? PTB-XL has both, English reports by people and statements by annotators
# (recorded, `benchmarks/manifests.py`, all English reports of 1.0.1; the reader wasn't made for them):

# %%
agreement = published["wording"]
some_codes = ["SR", "AFIB", "STACH", "SARRH", "PAC", "PVC", "LAFB", "CLBBB", "IMI", "ISC_"]
print(agreement["reports"], "reports; all codes:", agreement["all_codes"])
print(pd.DataFrame(agreement["per_code"]).T.loc[some_codes].to_string())

# %% [markdown]
# Rhythms agree; diagnoses less, since annotators coded infarctions and ischemia from more than the report, and one
# sentence has several codings. A label read from text is a weak label.
#
# ### Exercise 02.4 · What a statement claims (★★★, 15 min)
#
# Write `claim(statement, finding, hedges)`: how likely a statement calls a finding (one lower-case word), in percent.
# If the finding isn't in it as a word: None. Else look at the text *before* it: the first of the `hedges` (phrase →
# percent) found there as whole words gives the answer; otherwise *no*, *not* or *without* there gives None; otherwise
# the answer is 100.
#
# <details><summary>Hint 1</summary>
#
# `re.search(rf"\b{finding}\b", text)` finds whole words; its `start()` tells where. Why must the hedges come before the
# negations? Say "cannot rule out" aloud.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `"no" in "nonspecific"` is True. `re.search(r"\b(no|not|without)\b", before)` looks at words.
#
# </details>

# %%
hedges = {"cannot rule out": 35, "consider": 35, "possible": 50, "probable": 80}


# %% tags=["solution"]
def claim(statement, finding, hedges):
    # <solution>
    text = statement.lower()
    found = re.search(rf"\b{finding}\b", text)
    if found is None:
        return None
    before = text[: found.start()]
    for hedge, likelihood in hedges.items():
        if re.search(rf"\b{hedge}\b", before):
            return likelihood
    return None if re.search(r"\b(no|not|without)\b", before) else 100
    # </solution>


# %%
check("02.4", claim)

# %% [markdown]
# ## 5. Split by patient, once
#
# The original splits MIMIC-IV-ECG by *study*, that is, by recording. Patients come back, and their hearts look the
# same each time; a model can then find the report of a test recording by recognizing the patient. By hand, with a
# training share of 0.8: a patient has two recordings, one of them is drawn for the test. The chance that the other one
# is in training is 0.8. With five recordings, it is the chance that not all four others miss training:

# %%
train_share = 0.8
for k in (1, 2, 5):
    print(f"{k} recordings per patient: {1 - (1 - train_share) ** (k - 1):.4f}")

# %% [markdown]
# Don't take a formula's word for it. The next cell splits recordings at random and counts.


# %%
def leaked(patients, seed):
    """Share of test recordings whose patient also has one in training, splitting recordings at random."""
    patients = np.asarray(patients)
    in_train = np.random.default_rng(seed).random(len(patients)) < train_share
    return float(np.isin(patients[~in_train], patients[in_train]).mean())


simulated = [(k, leaked(np.repeat(np.arange(4000), k), SEED)) for k in (1, 2, 5, 10)]
mean_records = len(manifest) / manifest["patient"].nunique()
here = (mean_records, leaked(manifest["patient"], SEED))
run.show(f02.leak, simulated, here, train_share)

# %% [markdown]
# At MIMIC-IV-ECG's five recordings per patient nearly every test recording has a sibling in training. The cure is to
# draw patients. PTB-XL's folds do that already, and `check_manifest` refuses any manifest that doesn't:

# %%
sides = manifest.groupby("patient")["split"].nunique()
print("patients on more than one side of the folds:", int((sides > 1).sum()), "of", len(sides))
careless = manifest.assign(
    split=np.where(np.random.default_rng(SEED).random(len(manifest)) < train_share, "train", "test")
)
try:
    check_manifest(careless)
except EcgChatError as error:
    print(str(error).partition(" (")[0], "...")

# %% [markdown]
# ### Exercise 02.5 · A split by patient (★★☆, 10 min)
#
# Return a boolean array with one entry per recording: True for *all* recordings of a randomly drawn `share` of the
# patients. Draw with `rng`, a numpy generator.
#
# <details><summary>Hint 1</summary>
#
# What do you draw from: the list of recordings, or the list of different patients?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# `unique = sorted(set(patients))`, then `rng.permutation(unique)[:round(share * len(unique))]`.
#
# </details>


# %% tags=["solution"]
def rows_for_test(patients, share, rng):
    # <solution>
    unique = sorted(set(patients))
    drawn = set(rng.permutation(unique)[: round(share * len(unique))])
    return np.array([patient in drawn for patient in patients])
    # </solution>


# %%
check("02.5", rows_for_test)

# %% [markdown]
# Such a draw has a flaw: give it half of the dataset, and the patients land elsewhere. Whoever downloads 10,000 of
# MIMIC's 800,000 recordings would test on what someone else trained on. A hash of the patient's name decides for each
# alone. And the last digit of a study number must decide nothing: the original trains on the digits 1–9 and loses most
# of the zeros in a slice that is empty.

# %%
from ecgchat_lib.datasets.manifest import split_by_hash, split_by_patient

people = [str(10_000_000 + k // 5) for k in range(20_000)]
studies = np.arange(40_000_000, 40_020_000)
for split in (split_by_patient, split_by_hash):
    whole, half = split(people, seed=SEED), split(people[:10_000], seed=SEED)
    moved = np.mean(np.array(whole[:10_000]) != np.array(half))
    digits = {side: len(set(studies[np.array(whole) == side] % 10)) for side in ("train", "validation", "test")}
    print(f"{split.__name__:17} moved with half of the data: {moved:.4f}   last digits per side: {digits}")

# %% [markdown]
# Some leaks don't show in patient numbers. PTB-XL 1.0.1 holds five pairs of identical waveforms, one of them under two
# patient numbers; its loader gives twins one patient. The signal itself tells: hash the samples, and equal recordings
# have equal hashes. Here two copies are hidden on purpose.

# %%
import hashlib

from ecgchat_lib.datasets.ptbxl import TWINS, WITHDRAWN
from ecgchat_lib.datasets.signals import load_signals

signals = load_signals(manifest[:40])
signals[31], signals[17] = signals[4], signals[8]  # two recordings that came in twice
hashes = pd.Series([hashlib.sha256(np.round(signal * 1000).astype("<i2").tobytes()).hexdigest() for signal in signals])
groups = hashes.groupby(hashes).groups
print("identical recordings, by row:", sorted(list(map(int, rows)) for rows in groups.values() if len(rows) > 1))
print("twins of PTB-XL 1.0.1:", TWINS, "- withdrawn in 1.0.3:", sorted({k for pair in TWINS for k in pair} & WITHDRAWN))

# %% [markdown]
# SPH's published test set is a special case: it holds everyone with more than one recording, filled up to a fifth by a
# draw. It is disjoint in patients, and no random sample of them.
#
# ## 6. Packed, and fetched
#
# A recording in WFDB costs an open, a parse and a conversion each time. Packed once, it is a slice of one large file
# that the system maps into memory, and its millivolts are the same to the last bit. `ecgchat data pack` does this for a
# whole dataset over several processes, and goes on where it was interrupted.

# %%
from ecgchat_lib.datasets.pack import pack
from ecgchat_lib.datasets.packed import PackedStore

some = manifest[:40]
packed = run.artefact("packed_40", lambda path: pack(some, path), records=len(manifest))
with PackedStore(packed) as store:
    read_again = store.signals(range(len(store)))
    print(len(store), "recordings;", "by name:", store[some["record"].iloc[3]].name, "; faults:", store.verify())
print("equal to the last bit:", bool((read_again[0] == load_signals(some[:1])[0]).all()))

# %% [markdown]
# Fetching is asked for and never happens by itself. `ecgchat data fetch ptbxl --subset 200` would ask for the disk's
# room, fetch 200 recordings of whole patients, check each file's sha256, and go on after a cut connection. What is
# behind a data use agreement is explained, not attempted:

# %%
from ecgchat_lib.datasets.sources import load_source, source_names

for name in source_names():
    source = load_source(name)
    print(f"{name:13} {source.access:13} {source.version:6} {source.license}")

# %% [markdown]
# ## 7. Ten real recordings
#
# The sample of CPSC2018 that comes with the project went through the same loader. Since it names no patients, every
# recording counts as a patient of its own, and all of it is test.

# %%
sample = parts["real_sample"]
print(sample[["record", "age", "sex", "snomed", "statements", "labels", "split"]].to_string(index=False))

# %% [markdown]
# One call reads the signals of any manifest: leads by name, millivolts, one rate, one length.

# %%
signals = load_signals(sample, fs=500, seconds=10)
print(signals.shape, signals.dtype)
print("largest voltages, mV:", *(f"{voltage:.1f}" for voltage in np.abs(signals).max(axis=(1, 2))))

# %% [markdown]
# ## Recap
#
# - One manifest per dataset, checked when it is made: `load(name, folder)`, `join_manifests`, `check_manifest`.
# - Likelihood 0 means unknown. Labels come from statements, whatever their likelihood, and equal the published ones
#   record by record once the version is the same.
# - Codes are read with their modifiers, acronyms and abbreviations as whole words, hedges and negations as what they
#   are.
# - Split by patient, by a hash of the name; look for identical signals too.
#
# **What to copy**: `ecgchat_lib/datasets/manifest.py` (checks and splits), `ecgchat_lib/datasets/reports.py` and
# `wording.py` (cleaning and reading), `data/labels/` (code tables), `ecgchat_lib/datasets/synthetic` (test data with a
# known truth).
#
# **Common errors**
#
# - *none of the recordings it names*: the table is there but the recordings aren't. Unpack them beside it, or load the
#   labels alone with `require_files=False`.
# - *on 2 sides of the split*: the table was split by recording. Use `split_by_patient` or `split_by_hash`.
# - *SCP code … expected*: another vocabulary (SNOMED CT, AHA) got in. Map it first, as `snomed.py` and `aha.py` do.
# - *columns … are missing*: the table is not the published one; spreadsheets like to rename and reformat.
#
# ## References
#
# - Wagner P, et al. PTB-XL, a large publicly available electrocardiography dataset. Sci Data 7 (2020) 154.
#   [doi:10.1038/s41597-020-0495-6](https://doi.org/10.1038/s41597-020-0495-6). CC BY 4.0; its statement table is
#   shipped here.
# - Gow B, et al. MIMIC-IV-ECG, version 1.0. PhysioNet (2023).
#   [doi:10.13026/4nqg-sb35](https://doi.org/10.13026/4nqg-sb35). ODbL 1.0.
# - Zheng J, et al. Optimal multi-stage arrhythmia classification approach. Sci Rep 10 (2020) 2898.
#   [doi:10.1038/s41598-020-59821-7](https://doi.org/10.1038/s41598-020-59821-7). CC BY 4.0.
# - Liu H, et al. A large-scale multi-label 12-lead electrocardiogram database with standardized diagnostic statements.
#   Sci Data 9 (2022) 272. [doi:10.1038/s41597-022-01403-5](https://doi.org/10.1038/s41597-022-01403-5).
# - Liu F, et al. CPSC2018. J Med Imaging Health Inform 8 (2018) 1368.
#   [doi:10.1166/jmihi.2018.2442](https://doi.org/10.1166/jmihi.2018.2442). CC BY 4.0; ten recordings are shipped here.
# - Mason J W, et al. Recommendations for the standardization and interpretation of the electrocardiogram, part II.
#   Circulation 115 (2007) 1325.
#   [doi:10.1161/CIRCULATIONAHA.106.180201](https://doi.org/10.1161/CIRCULATIONAHA.106.180201).
# - Liu C, et al. Zero-shot ECG classification with multimodal learning and test-time clinical knowledge enhancement
#   (MERL). ICML 2024, [arXiv 2403.06659](https://arxiv.org/abs/2403.06659). Its lists: MIT license.
# - McSharry P, et al. A dynamical model for generating synthetic electrocardiogram signals. IEEE Trans Biomed Eng 50
#   (2003) 289. [doi:10.1109/TBME.2003.808805](https://doi.org/10.1109/TBME.2003.808805).
# - Zhao Y, et al. ECG-Chat. arXiv 2408.08849 (2024).

# %%
run.finish(
    {
        "records": len(manifest),
        "patients": int(manifest["patient"].nunique()),
        "test_records": len(test),
        "datasets": len(parts),
        "joined_records": len(everything),
        "findings": len(FINDINGS),
        "leak_by_recording": round(here[1], 4),
        "texts": int(manifest["report"].nunique()),
    }
)
