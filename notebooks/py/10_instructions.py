# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
RECORDS = 60  # synthetic recordings that conversations are made about, 8..20000
ROUNDS = 4  # most rounds of a dialogue, 1..30

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("10", globals())

# %% [markdown]
# ## 1. What is known about a recording
#
# A chat model learns from conversations: somebody asks about an ECG, somebody answers. Nobody has written such
# conversations for the large ECG datasets; what exists are clinicians' *statements* and what a program can *measure*.
# The original has GPT-4o write 45,000 conversations from them. This notebook writes them by rules instead. Rules
# sound stiffer, but every sentence can be traced to a statement or a measured value, and that is worth more here.
#
# Take a real recording. Its dataset states one thing about it, and the program of notebook 01 measures the rest.

# %%
from ecgchat_lib.datasets.cpsc2018 import load_real_sample
from ecgchat_lib.ecg.measure import measure
from ecgchat_lib.ecg.recording import read_recording
from ecgchat_lib.instruct.wording import measured_line

sample = load_real_sample().set_index("record")
real = measure(read_recording(sample.loc["A0003", "path"]))
print("stated:  ", sample.loc["A0003", "statements"])
print(measured_line(real))

# %% [markdown]
# The last line is the one that will stand in the prompt. A value that can't be measured is `n/a`, never 0: in atrial
# fibrillation there is no P wave, so there is no PR interval.
#
# **Predict:** may an answer about this recording deny left ventricular hypertrophy? The dataset knows nine labels, and
# hypertrophy isn't one of them.
#
# ## 2. Present, absent, left open
#
# A statement comes with a likelihood in percent. So a finding has *three* states, and the third is the one that people
# forget: what the statements leave open. PTB-XL writes a likelihood of 0 where none was given, so 0 counts as stated.


# %%
def state(codes, blurs, statements):
    """Is a finding there? codes: statements that mean it; blurs: statements that make 'no' unsafe."""
    if any(code in codes and (p == 0 or p >= 50) for code, p in statements):
        return True
    stated = {code for code, _ in statements}
    return None if not stated or stated & (codes | blurs) else False


statements = (("SR", 0.0), ("IMI", 15.0), ("LVH", 100.0))
for name, codes in (("hypertrophy", {"LVH"}), ("inferior infarction", {"IMI"}), ("atrial fibrillation", {"AFIB"})):
    print(f"{name:20s}", state(codes, set(), statements))

# %% [markdown]
# The library's `presence` is the same function with the course's list of findings. Here is the proof for every finding
# and some hundred random sets of statements:

# %%
from ecgchat_lib.datasets.labels import STATEMENTS
from ecgchat_lib.instruct.findings import FINDINGS, presence

rng, agreed = run.rng, 0
for _ in range(200):
    drawn = rng.choice(list(STATEMENTS), size=3, replace=False)
    some = tuple((str(code), float(rng.choice([0, 15, 50, 100]))) for code in drawn)
    for finding in FINDINGS:
        assert state(finding.codes, finding.blurs, some) is presence(finding, some)
        agreed += 1
print(len(FINDINGS), "findings; the two functions agree", agreed, "times")

# %% [markdown]
# ### Exercise 10.1 Present, absent, or left open (★★☆, 10 min)
#
# Write the function yourself, without looking up.
#
# <details><summary>Hint 1</summary>Return True as soon as one certain statement is among the codes.</details>
# <details><summary>Hint 2</summary>Before you return False, ask: is anything stated at all, and does a
# statement, however unlikely, touch the finding?</details>


# %% tags=["solution"]
def is_present(codes, blurs, statements):
    """codes, blurs: sets of statement codes; statements: list of (code, likelihood). Return True, False or None."""
    # <solution>
    if any(code in codes and (likelihood == 0 or likelihood >= 50) for code, likelihood in statements):
        return True
    stated = {code for code, _ in statements}
    if not stated or stated & (codes | blurs):
        return None
    return False
    # </solution>


# %%
check("10.1", is_present)

# %% [markdown]
# ## 3. From facts to conversations
#
# A `Teacher` knows one recording and writes questions with answers: the rhythm, the rate, intervals, the whole
# diagnosis, and yes/no questions. It returns nothing where the facts are open.

# %%
from ecgchat_lib.instruct.build import Teacher
from ecgchat_lib.instruct.findings import get_finding

teacher = Teacher((("AFIB", 0.0), ("LVH", 100.0)), real, run.rng)
for turn in (teacher.rhythm(), teacher.diagnosis(), teacher.interval("pr_ms"), teacher.presence(get_finding("lbbb"))):
    print(f"{turn.question:42s} {turn.answer}")
print(
    "asked about infarction where ABQRS blurs it:",
    Teacher((("ABQRS", 0.0),), real, run.rng).presence(get_finding("infarction")),
)

# %% [markdown]
# Now many recordings. Synthetic ones will do: their statements are known, and they are measured like real ones.

# %%
from ecgchat_lib.datasets.manifest import make_manifest
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.ecg.recording import Recording

rows, measurements = [], {}
for number in range(RECORDS):
    name, split = f"s{number:05d}", ("train", "train", "train", "validation", "test")[number % 5]
    made = synthesize(SEED * 100_000 + number)
    measurements[name] = measure(Recording(name, made.signal, made.fs))
    known = {"report": made.report, "statements": made.statements, "language": "en"}
    rows.append({"record": name, "path": name, "patient": name, "split": split, **known})
manifest = make_manifest(rows)
print(len(manifest), "recordings;", manifest["statements"].iloc[0])

# %%
import json

from ecgchat_lib.instruct.build import build_conversations

conversations = build_conversations(manifest, measurements, seed=SEED, rounds=(min(2, ROUNDS), ROUNDS))
longest = max(conversations, key=lambda item: len(item["conversations"]))
print(len(conversations), "conversations; one of the longest:")
print(json.dumps(longest, indent=1, ensure_ascii=False))

# %% [markdown]
# This is the original's format, so its tools can read the file: a list of `{"id", "ecg", "conversations"}`, with
# `<ecg>` at the start of the first question, where the ECG tokens will go.
#
# ### Why absent findings must be asked, and how often
#
# A model that only ever reads "Does this ECG show X? Yes, …" learns to say yes. So absent findings are asked, too. But
# ask about *every* finding, and nine answers in ten are no: then the model learns to say no. And if one finding is
# mostly confirmed and another mostly denied, it learns the answer from the *name* in the question, and needs no ECG.
#
# **Predict:** in the left picture below, every finding is asked of every recording. Which share of the answers is no?

# %%
from collections import Counter

from ecgchat_lib.course.figures import f10
from ecgchat_lib.instruct.build import finding_weights, questions_about

naive, asked = Counter(), Counter()
weights = finding_weights(manifest)
for item in manifest.itertuples():
    naive.update((f.name, there) for f in FINDINGS if (there := presence(f, item.statements)) is not None)
    turns = questions_about(item.record, item.statements, measurements[item.record], weights, seed=SEED)
    asked.update((turn.about, turn.truth) for turn in turns if turn.kind == "presence")
seen = [f.name for f in FINDINGS if naive[f.name, True]]
pairs = [{name: (c[name, True], c[name, False]) for name in seen} for c in (naive, asked)]
run.show(f10.balance, *pairs, {f.name: f.phrase for f in FINDINGS})

# %% [markdown]
# On the right, each finding is denied about as often as it is confirmed, and a finding that nearly everybody has is
# confirmed less often than it could be.
#
# ## 4. Nothing that isn't known
#
# Before a conversation leaves, a second piece of code reads each answer again: which findings does it affirm or deny,
# which numbers does it say? Each must be in the statements or the measurements. Here are five answers about the
# recording of section 1, if its statements were atrial fibrillation and left ventricular hypertrophy:

# %%
from ecgchat_lib.instruct.facts import find_errors

stated = (("AFIB", 0.0), ("LVH", 100.0))
rate = round(real.heart_rate_bpm)
for answer in (
    f"The ECG shows atrial fibrillation at {rate} beats per minute.",
    f"The heart rate is {rate + 10} beats per minute.",
    "The PR interval is 160 ms.",
    "No, I do not see left ventricular hypertrophy here.",
    "This ECG shows an inferior myocardial infarction.",
):
    print(f"{answer:66s}", find_errors(answer, stated, real) or "nothing wrong")

# %% [markdown]
# The same check reads what a *trained* model says, in notebook 13. And the format has its own check, since a
# conversation with a missing mark would be trained on in silence:

# %%
from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.instruct.build import validate_conversations

damaged = json.loads(json.dumps(conversations[0]))
damaged["conversations"][0]["value"] = damaged["conversations"][0]["value"].removeprefix("<ecg>")
try:
    validate_conversations([damaged])
except EcgChatError as error:
    print(error)

# %% [markdown]
# ### Exercise 10.2 Numbers that nobody measured (★☆☆, 5 min)
#
# Return the whole numbers in an answer that aren't among the measured ones, in their order. A number within a word,
# such as the 12 of "V12", doesn't count; "-35" is minus 35.
#
# <details><summary>Hint 1</summary>`re.findall` with <code>-?\d+</code> finds whole numbers with their sign.</details>
# <details><summary>Hint 2</summary>A look-behind <code>(?&lt;![\w-])</code> keeps out digits within a word.</details>


# %% tags=["solution"]
def wrong_numbers(answer, measured):
    """answer: text; measured: list of whole numbers. Return the list of numbers that weren't measured."""
    # <solution>
    import re

    return [int(text) for text in re.findall(r"(?<![\w-])-?\d+", answer) if int(text) not in measured]
    # </solution>


# %%
check("10.2", wrong_numbers)

# %% [markdown]
# ## 5. From conversations to tokens
#
# A chat model reads one long text. Its *template* says what stands around each turn; SmolLM2 and Vicuna differ.

# %%
from ecgchat_lib.chat.template import TEMPLATES, render

turns = [("<ecg>\nWhat is the heart rate?", "It is 72 beats per minute."), ("Is it normal?", "Yes.")]
for name, template in TEMPLATES.items():
    text, spans = render(turns, template, system="You read ECGs.")
    print(f"--- {name}\n{text}")
    print("answers:", [text[low:high] for low, high in spans])

# %% [markdown]
# Training compares the model's next-token guess with the text, but only where the assistant speaks: the model shall
# learn to answer, not to ask. So each token gets a *label*: its own id inside an answer, and −100, which the loss
# skips, everywhere else. The end mark belongs to the answer, or the model would never learn to stop.
#
# The original counts tokens to find the answers' places, and where its count is off by one it skips the conversation
# without a word. Ours compares places in the text, and decodes the labels again to prove it.

# %%
from ecgchat_lib.chat.language_model import load_tokenizer
from ecgchat_lib.chat.template import ECG_ID, IGNORED, encode

tokenizer, template = load_tokenizer(), TEMPLATES["smollm2"]
encoded = encode(turns, tokenizer, template, system="You read ECGs.")
texts = ["<ecg>" if token == ECG_ID else tokenizer.decode([token]) for token in encoded.ids]
learned = [label != IGNORED for label in encoded.labels]
run.show(f10.token_strip, texts, learned, 101)

# %%
text, spans = render(turns, template, system="You read ECGs.")
wanted = "".join(text[low:high] for low, high in spans)
assert tokenizer.decode([label for label in encoded.labels if label != IGNORED]) == wanted
print(f"{len(encoded.ids)} places, {sum(learned)} of them learned; they decode to:")
print(repr(wanted))

# %% [markdown]
# ### Exercise 10.3 Learn the answers and nothing else (★★☆, 10 min)
#
# Each token comes with its place in the text, (first character, one past the last). Return its label.
#
# <details><summary>Hint 1</summary>A token is learned if some span holds it whole.</details>
# <details><summary>Hint 2</summary>The last token of an answer ends where its span ends: use ≤, not &lt;.</details>


# %% tags=["solution"]
def mask_labels(ids, offsets, spans):
    """ids: token ids; offsets: (low, high) of each token; spans: (start, end) of each answer. Return the labels."""
    # <solution>
    labels = []
    for token, (low, high) in zip(ids, offsets, strict=True):
        inside = any(start <= low and high <= end for start, end in spans)
        labels.append(token if inside else -100)
    return labels
    # </solution>


# %%
check("10.3", mask_labels)

# %% [markdown]
# ## 6. Who is asked about whom
#
# Conversations follow their recording into its split, and no patient is on two sides. The original splits by study, so
# a patient's earlier ECG may be in training and a later one in the test.

# %%
from ecgchat_lib.instruct.build import split_conversations

parts = split_conversations(conversations, manifest)
path = run.artefact(
    "conversations.json",
    lambda path: path.write_text(json.dumps(parts["train"], ensure_ascii=False), encoding="utf-8"),
    records=RECORDS,
    rounds=ROUNDS,
)
print({name: len(items) for name, items in parts.items()}, "→", path.name)

# %% [markdown]
# ## Recap
#
# - A finding is present, absent or left open; only the first two can be spoken of (exercise 10.1).
# - Absent findings are asked and refuted, each about as often as it is confirmed (section 3).
# - Every answer is checked against statements and measurements before anyone trains on it (section 4, exercise 10.2).
# - Labels are the answers with their end marks, in every turn, proved by decoding them (exercise 10.3).
#
# **What to copy.** `ecgchat_lib/instruct/` needs the manifest and the label table of `datasets/`, and no torch.
# `ecgchat_lib/chat/template.py` needs nothing but a fast tokenizer.
#
# **Common errors**
#
# - *Unsaid taken for absent.* The model then learns to deny what nobody looked for.
# - *Wrong template.* A model fine-tuned on `USER:` and asked with `<|im_start|>` answers something, just not well.
# - *Labels off by one.* The loss goes down all the same. Decode the labels once; it takes a second.
# - *Numbers in the answer that aren't in the prompt.* The model learns to invent numbers.
#
# ## References
#
# - Zhao et al. 2024, ECG-Chat, [arXiv 2408.08849](https://arxiv.org/abs/2408.08849): ECG-Instruct and its format.
# - Liu et al. 2023, Visual Instruction Tuning, [arXiv 2304.08485](https://arxiv.org/abs/2304.08485): LLaVA, where the
#   format and the splice come from.
# - Data: CPSC2018, Liu et al. 2018, [doi:10.1166/jmihi.2018.2442](https://doi.org/10.1166/jmihi.2018.2442), CC BY 4.0.
#   Statement codes: PTB-XL, Wagner et al. 2020,
#   [doi:10.1038/s41597-020-0495-6](https://doi.org/10.1038/s41597-020-0495-6), CC BY 4.0.
# - Tokenizer: SmolLM2, Ben Allal et al. 2025, [arXiv 2502.02737](https://arxiv.org/abs/2502.02737), Apache-2.0.

# %%
run.finish(
    {"conversations": len(conversations), "train": len(parts["train"]), "questions_in_balance": sum(asked.values())}
)
