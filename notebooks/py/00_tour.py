# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
RECORD = "A0001"  # the recording to follow: A0001|A0002|A0003|A0004|A0005|A0006|A0007|A0008|A0009|A0010
QUESTION = "What is the heart rhythm?"  # what the model is asked

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("00", globals())

# %% [markdown]
# > **This is not a medical device.** The models of this course are small, trained on little data, and often wrong.
# > Nothing here may be used to diagnose or treat anyone.
#
# ## 1. A real recording
#
# Ten electrodes and a quarter of a minute of one person's heart: twelve leads of millivolts in a file. The header says
# how old the person was and which sex, and nothing else. A clinician sees such a recording on paper.

# %%
from ecgchat_lib.course.figures import f00
from ecgchat_lib.ecg.measure import measure
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.paths import data_folder

recording = read_recording(data_folder() / "real_sample" / RECORD)
measured = measure(recording)
run.show(f00.on_paper, recording, measured)

# %% [markdown]
# **Look before you run on:** is the rhythm even? Are the tall, sharp waves narrow or wide? (One small box is 40 ms
# wide.)
#
# A machine sees the same recording as an array:

# %%
print("shape (leads, samples):", recording.signal.shape, "at", recording.fs, "Hz")
lead_ii = recording.signal[recording.leads.index("II")]
print("lead II, the first five samples in mV:", ", ".join(f"{value:.3f}" for value in lead_ii[:5]))

# %% [markdown]
# ## 2. The path
#
# Between that array and an answered question lie the rooms of a small library. Each room is taught by the notebooks
# written in it, and may use only the rooms before it.

# %%
run.show(f00.path_of_the_data, recording)

# %% [markdown]
# The rest of this notebook walks the path once, a few lines a room. Nothing is trained here: the weights are the
# shipped *mini* models, which the later notebooks build.
#
# ## 3. Measured, without any model
#
# Rate, intervals and axis come from signal processing (notebook 01), and what is normal from published recommendations
# (notebook 13). Whatever a language model says later, these numbers were there before.

# %%
from ecgchat_lib.knowledge.limits import flag_all

for item in flag_all(measured, sex=recording.patient.sex, age=recording.patient.age):
    if item.normal:
        print(f"{item.name:16} {item.shown:>12} {item.unit:8} normal {item.normal:14} {item.status}")

# %% [markdown]
# The wide QRS of A0001 fits what the makers of the dataset wrote down about it: a right bundle branch block. That label
# lies in the file, and nothing in this notebook reads it before Figure 00.3.
#
# ## 4. From millivolts to tokens
#
# A language model reads tokens, not volts. The encoder (notebooks 05 to 07) filters the ten seconds, cuts them into 100
# patches of 0.1 s and turns each into one vector, plus one for the whole.

# %%
from ecgchat_lib.coca.checkpoint import load_mini
from ecgchat_lib.coca.embed import embed_recordings, embed_texts, encoder_tokens, similarity
from ecgchat_lib.coca.preprocess import recording_windows

coca = load_mini()
window = recording_windows([recording], coca.config.encoder)
tokens = encoder_tokens(window, coca)
print("into the encoder (batch, lead, time):", tuple(window.shape))
print("out of it (batch, token, width):     ", tuple(tokens.shape))
print(f"parameters of the encoder: {sum(p.numel() for p in coca.encoder.parameters()):,}")

# %% [markdown]
# The encoder learned what to keep by matching recordings with their reports (notebook 06): an ECG and its report
# should point in the same direction. So one can ask which of a few sentences lies nearest to a recording, without ever
# having trained on those labels (notebook 08).
#
# **Predict:** ten real recordings, five sentences. How many of the ten rings will stand where the label says?

# %%
from ecgchat_lib.datasets.cpsc2018 import load_real_sample
from ecgchat_lib.datasets.labels import STATEMENTS

SENTENCES = {
    "SR": "sinus rhythm, normal ECG",
    "AFIB": "atrial fibrillation",
    "CRBBB": "complete right bundle branch block",
    "PVC": "ventricular premature complexes",
    "STD_": "ST segment depression",
}
sample = load_real_sample()
ten = [read_recording(path) for path in sample.path]
labels = [next(code for code, _ in given if code in SENTENCES) for given in sample.statements]
near = similarity(embed_recordings(ten, coca), embed_texts(list(SENTENCES.values()), coca)).numpy()
said = [STATEMENTS[code].description for code in labels]
run.show(f00.nearest_sentence, list(sample.record), said, list(SENTENCES.values()), near)

# %% [markdown]
# Orange is nearer than the column's mean, violet farther. Count the rings that stand in the right column; guessing
# would put two of ten there. The mini model learned from PTB-XL, recorded in Germany, and from synthetic ECGs; these
# ten come from hospitals in China, and no training saw them. Ten recordings are far too few to say more than that.
# Notebook 08 measures on more of them, with intervals of confidence.
#
# ## 5. Ask
#
# The projector (notebook 11) maps the 101 tokens into the language model's space, and a little fine-tuning (notebook
# 12) makes it answer in the manner of a report. Then one can ask:

# %% tags=["nbval-ignore-output"]
# nbval ignores this output: prose by a language model, compared by what it must say in the next cell
from ecgchat_lib.chat.session import load_chat

session = load_chat()
answer = session.ask(recording, QUESTION)
print(f"{QUESTION}\n{answer.text}")

# %%
print("There is an answer:", bool(answer.text.strip()))
print("ECG tokens in the prompt:", tokens.shape[1])
print("and in words:", *(item.text for item in answer.evidence if item.given))

# %% [markdown]
# Is it right? If it names a rate, then yes, because the measured values stand in the prompt and the model copies them.
# The rhythm and the findings it has to read from the tokens, and there this small model is often wrong. It says so as
# fluently as when it is right. So a report of this course never shows an answer alone: it checks the answer against the
# measurements (notebook 13), marks what contradicts them, and keeps the measured and the said apart.
#
# ## 6. The page

# %%
from ecgchat_lib.report.write import make_report, write_report

report = make_report(recording, session=session)
pdf = run.artefact("tour.pdf", lambda path: write_report(recording, path, report=report), record=RECORD)
run.show(f00.page, pdf, report)

# %% [markdown]
# From a file of millivolts to a page. On the command line it is one line: `ecgchat report data/real_sample/A0001 --pdf
# out.pdf`.
#
# ## 7. What the small models can do, and what they can't
#
# | | here | at the scale of the paper |
# | --- | --- | --- |
# | encoder | about 2 million parameters, trained on a laptop's cores | 86 million, trained on 800 thousand recordings |
# | language model | SmolLM2 with 135 million parameters | Vicuna with 13 billion |
# | needs | two cores, no GPU, no network | one or more large GPUs, and data that one has to apply for |
# | is good for | seeing every step run, changing it, and measuring what the change does | what the paper reports |
# | is bad for | being right | being right about a person |
#
# The code is the same in both columns; only parameters differ. A number that nobody measured is shown as *not run*.
#
# ## 8. How to use the course
#
# - **Read** a notebook with its stored outputs, or **run** it: each runs alone, in any order, offline.
# - **Change parameters** in its first cell. `PROFILE` sets the rest for a machine: `ci` (two cores), `cpu` (a laptop),
#   `t4` (Colab), `h100`. A name that doesn't exist or a value out of range is an error, not a surprise.
# - **Predict**, then run. Where a notebook says *predict*, write your guess down first.
# - **Solve** the exercises: each checks itself with random inputs and tells you which misconception it sees. Solutions
#   are in `notebooks/solutions/`.
# - **Results** go to `out/results/`, figures with their alt text to `out/figures/`. Every result says which machine,
#   sources and seed made it.
#
# | if you want to | go to |
# | --- | --- |
# | read and measure a recording | 01 |
# | turn many recordings and reports into training data | 02, 04 |
# | build the encoder and train it with reports | 05, 06, 07 |
# | measure what it learned | 08 |
# | teach a language model to talk about an ECG | 10, 11, 12 |
# | check what it says, and put it on a page | 13 |
#
# ## Exercises
#
# ### Exercise 00.1 A heart rate from the places of the beats (★☆☆, 5 min)
#
# `peaks` are the sample numbers of the beats, `fs` the samples per second. Write `heart_rate(peaks, fs)`: beats per
# minute, from the *median* time between beats, so that one early beat changes nothing.
#
# <details><summary>Hint 1</summary><code>np.diff</code> gives the samples between neighbors.</details>
# <details><summary>Hint 2</summary>Samples divided by <code>fs</code> are seconds; 60 divided by seconds per beat is a
# rate.</details>

# %% tags=["solution"]
import numpy as np


def heart_rate(peaks, fs):
    # <solution>
    return 60 * fs / np.median(np.diff(peaks))
    # </solution>


# %%
check("00.1", heart_rate)

# %% [markdown]
# ### Exercise 00.2 The order of the path (★☆☆, 3 min)
#
# Put these five words into the order in which they come into being: answer, measurements, recording, report, tokens.
# Return them as a list of texts. (Measurements are taken before any model is asked.)
#
# <details><summary>Hint</summary>Figure 00.1, from left to right and then down.</details>


# %% tags=["solution"]
def order_of_the_path():
    # <solution>
    return ["recording", "measurements", "tokens", "answer", "report"]
    # </solution>


# %%
check("00.2", order_of_the_path)

# %% [markdown]
# ## Recap
#
# - One recording went through every room of the library (exercise 00.1 and Figure 00.1).
# - Each stage takes in what the one before gives out: millivolts, measurements, tokens, answers, a page (exercise
#   00.2).
# - An answer rests on 101 vectors and a small model's habits; measurements with sources stand beside it (section 3).
#
# **What to copy.** `measure(read_recording(path))` for numbers, `embed_recordings` for vectors, `write_report` for a
# page.
#
# **Common errors.** *A part isn't installed*: the message names it and the command; `ecgchat doctor` lists them all.
# *The kernel is another Python*: start Jupyter with `.venv/bin/jupyter lab`.
#
# ## References and licenses
#
# - Zhao et al. 2024, *ECG-Chat: A Large ECG-Language Model for Cardiac Disease Diagnosis*, arXiv 2408.08849.
# - Recordings: CPSC2018 (Liu et al. 2018, doi [10.1166/jmihi.2018.2442](https://doi.org/10.1166/jmihi.2018.2442)), CC
#   BY 4.0.
# - Code: Apache-2.0; text: CC BY 4.0; SmolLM2-135M-Instruct and all-MiniLM-L6-v2: Apache-2.0.

# %%
rings = [list(SENTENCES)[k] for k in (near - near.mean(axis=0)).argmax(axis=1)]
run.finish(
    {
        "record": RECORD,
        "nearest_sentence": dict(zip(sample.record, rings, strict=True)),
        "nearest_is_the_label": sum(ring == label for ring, label in zip(rings, labels, strict=True)),
        "recordings": len(ten),
        "tokens": list(tokens.shape),
    }
)
