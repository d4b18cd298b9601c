# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
RECORDS = 60  # synthetic recordings that conversations are made about, 8..20000
ROUNDS = 12  # most rounds of a dialogue, 4..30

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("10", globals())

# %% [markdown]
# ## 1. What is known about a recording
#
# A chat model learns from conversations: somebody asks about an ECG, somebody answers. Nobody has written such
# conversations for the large ECG datasets; what exists are clinicians' *statements* and what a program can *measure*.
# The original has GPT-4o write 45,000 conversations from them. This notebook writes them by rules first. Rules sound
# stiffer, but every sentence can be traced to a statement or a measured value. A language model may reword them later
# (section 6), as long as what it says can still be traced.
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
    name, patient = f"s{number:05d}", f"p{number // 2:05d}"  # two recordings of each
    split = ("train", "train", "validation", "test")[number // 2 % 4]
    made = synthesize(SEED * 100_000 + number)
    measurements[name] = measure(Recording(name, made.signal, made.fs))
    known = {"report": made.report, "statements": made.statements, "language": "en"}
    rows.append({"record": name, "path": name, "patient": patient, "split": split, **known})
manifest = make_manifest(rows)
print(len(manifest), "recordings;", manifest["statements"].iloc[0])

# %% [markdown]
# A data set is *planned* first: which questions are put about which recording. There are two parts, as in the paper:
# *diagnoses* of one question, whose answer is worded as the paper reports it, and *dialogues* of many rounds. Where a
# patient has two recordings, a dialogue may be about both.

# %%
from ecgchat_lib.instruct.drafts import BuildConfig, make_drafts

config = BuildConfig(RECORDS, RECORDS, rounds=(4, ROUNDS), comparisons=0.2, seed=SEED)
drafts = make_drafts(manifest, measurements, config)
for kind in ("diagnosis", "dialogue", "comparison"):
    chosen = max((draft for draft in drafts if draft.kind == kind), key=lambda draft: -len(draft.rounds))
    print(f"--- {kind}, {sum(draft.kind == kind for draft in drafts)} of them; a short one:")
    for one in chosen.rounds[:4]:
        print(f"{one.opening}{one.turn.question}\n    {one.turn.answer}")

# %% [markdown]
# The second mark `<ecg>` of a comparison may come at once or in a later turn. "First" and "second" are places in the
# conversation: this manifest doesn't say which ECG was recorded earlier, so nothing here says it either.

# %%
from collections import Counter

kinds = Counter(one.turn.kind for draft in drafts for one in draft.rounds)
for kind, count in kinds.most_common(16):
    example = next(one.turn for draft in drafts for one in draft.rounds if one.turn.kind == kind)
    print(f"{count:4d} {kind:18s} {example.question[:58]}")

# %% [markdown]
# *recall* asks again for what was said before. *beyond* asks for what no ECG tells, and *open* for what the statements
# leave open: a model that is never asked such things never learns to say that it doesn't know.
#
# ### Why absent findings must be asked, and how often
#
# A model that only ever reads "Does this ECG show X? Yes, …" learns to say yes. So absent findings are asked, too. But
# ask about *every* finding, and nine answers in ten are no: then the model learns to say no. And if one finding is
# mostly confirmed and another mostly denied, it learns the answer from the *name* in the question, and needs no ECG.
#
# **Predict:** in the left picture below, every finding is asked of every recording. Which share of the answers is no?

# %%
from ecgchat_lib.course.figures import f10

naive, asked = Counter(), Counter()
for item in manifest.itertuples():
    naive.update((f.name, there) for f in FINDINGS if (there := presence(f, item.statements)) is not None)
for draft in drafts:
    turns = [one.turn for one in draft.rounds if one.turn.kind in ("presence", "checked diagnosis")]
    asked.update((turn.about, turn.truth) for turn in turns)
seen = [f.name for f in FINDINGS if naive[f.name, True]]
pairs = [{name: (c[name, True], c[name, False]) for name in seen} for c in (naive, asked)]
run.show(f10.balance, *pairs, {f.name: f.phrase for f in FINDINGS})

# %% [markdown]
# On the right, each finding is denied about as often as it is confirmed: the planner counts both for each finding and
# split, and asks next for what is behind. A finding that nearly everybody has is confirmed less often than it could
# be. (Questions that set one finding against another, or one ECG against another, are counted too; they aren't drawn.)
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
    print(answer, *(find_errors(answer, stated, real) or ["nothing wrong"]), sep="\n    ")

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
# That is easy as long as rules write the answers. A language model writes freely, so the check must know synonyms and
# abbreviations, and how far a *no* reaches.
#
# **Predict:** three of these answers are true. Which?

# %%
for answer in (
    "No evidence of flutter, but AF is present.",
    "No evidence of AF, LBBB or LVH.",
    "Hypertrophy of the left ventricle; the rhythm is not sinus.",
    "AF cannot be excluded, and an old infarct is likely.",
    "In general, a PR interval above 200 ms means a first-degree AV block.",
    "You should take a beta blocker.",
):
    print(answer, *(find_errors(answer, stated, real) or ["nothing wrong"]), sep="\n    ")

# %% [markdown]
# The last one passes, and it shouldn't: the check has no word for drugs, so it sees nothing. That is the limit of every
# list. Against it there is a second rule, for what a language model wrote: every word must be a known one.

# %%
from ecgchat_lib.instruct.words import unknown_words

print(unknown_words("You should take a beta blocker."), unknown_words("I see that the ECG shows AF."))

# %% [markdown]
# How good is it? `tests/test_instruct_facts.py` has 100 answers that the check was written with, all judged rightly,
# and 46 odd ones that were written afterwards and never fitted to: of the 22 wrong ones, it rejects 10, and with the
# list of words 19. The list also turns down 15 of the 24 right ones. For a filter that is the better mistake: a
# rewording that is turned down costs a rewording, and one that is let through teaches something false.
#
# ### Exercise 10.3 How far a no reaches (★★☆, 10 min)
#
# Say whether a sentence denies a finding: "no", "not", "without", "neither" or "nor" stands somewhere before it, and no
# "but", "however" or "although" between them.
#
# <details><summary>Hint 1</summary>Look only at the text before the finding, and of it only at what follows the last
# "but".</details>
# <details><summary>Hint 2</summary><code>re.split(r"\bbut\b", before)[-1]</code> is that part; <code>\b</code> keeps
# "normal" from being a "no".</details>


# %% tags=["solution"]
def is_denied(sentence, finding):
    """sentence, finding: texts in small letters; the finding stands in the sentence once. Return True or False."""
    # <solution>
    import re

    before = sentence.split(finding)[0]
    reach = re.split(r"\b(?:but|however|although)\b", before)[-1]
    return bool(re.search(r"\b(?:no|not|without|neither|nor)\b", reach))
    # </solution>


# %%
check("10.3", is_denied)

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
# ### Exercise 10.4 Learn the answers and nothing else (★★☆, 10 min)
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
check("10.4", mask_labels)

# %% [markdown]
# ## 6. Who words it: teachers
#
# Three teachers have one interface: the rules themselves (`template`), a language model on this machine (`local`), and
# any server that speaks OpenAI's API (`openai`), which is how the original did it. Each gets a planned conversation and
# returns answers; each answer goes through the check of section 4, and where it fails, the template's text stands.
# Here a few lines of Python play a careless language model:

# %%
import json

from ecgchat_lib.instruct.dataset import build_dataset
from ecgchat_lib.instruct.teachers import LocalTeacher


def careless(messages):
    """Reword some answers well, embroider others, and lose the point of the rest."""
    answer = messages[-1]["content"]
    if "Your ECG shows" in answer:
        return answer.replace("Your ECG shows", "I see that your ECG shows")
    if answer.startswith("No, "):
        return "All is well."
    return answer + " There is also ventricular tachycardia." if "rhythm" in answer else answer


folder = run.artefact(
    "instruct",
    lambda path: build_dataset(manifest, measurements, config, LocalTeacher(careless, "careless"), path),
    records=RECORDS,
    rounds=ROUNDS,
)
made = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
print(json.dumps(made["checks"], indent=1))

# %% [markdown]
# The default language model of the course, 135 million parameters, was asked to reword real conversations. What it
# achieved is recorded, since it takes minutes:

# %%
from ecgchat_lib.paths import data_folder

recorded = json.loads((data_folder() / "results" / "instruct.json").read_text(encoding="utf-8"))
small = recorded.get("rewriting")
if small is None:
    print("not run")
else:
    print(f"{small['checks']['answers']} answers, {small['checks']['reworded']} reworded and passed; turned down:")
    print(*(f"  {count} {reason}" for reason, count in small["checks"]["reasons"].items()), sep="\n")
    print(*(f"- {reply[:150]}" for reply in small["first_replies"][:2]), sep="\n")

# %% [markdown]
# A model that small mostly leaves something out or adds something. A large one behind a server may do better, which
# nobody measured here, and it costs money: so `openai` keeps each reply on disk before it asks for the next, never asks
# twice for what it has, waits as long as the server wants, and stops before a budget is passed. The key is read from
# the environment and never written.
#
#     ecgchat instruct build m.parquet --out D --teacher openai --model NAME --budget-tokens 50000000
#
# Each conversation says where it comes from: who worded it, with which seed, and from which wording each round grew.

# %%
item = json.loads((folder / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
print(json.dumps(item, indent=1, ensure_ascii=False))

# %% [markdown]
# `id`, `ecg` and `conversations` are the original's format, so its tools can read the file. The format has its own
# check, since a conversation with a missing mark would be trained on in silence:

# %%
from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.instruct.build import split_conversations, validate_conversations

damaged = json.loads(json.dumps(item))
damaged["conversations"][0]["value"] = damaged["conversations"][0]["value"].removeprefix("<ecg>")
try:
    validate_conversations([damaged])
except EcgChatError as error:
    print(error)

# %% [markdown]
# ## 7. A whole data set
#
# Conversations follow their recording into its split, and no patient is on two sides. The original splits by study, so
# a patient's earlier ECG may be in training and a later one in the test.

# %%
parts = {}
for split in ("train", "validation", "test"):
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    parts[split] = [json.loads(line) for line in lines]
conversations = [item for items in parts.values() for item in items]
assert split_conversations(conversations, manifest) == parts
print({split: len(items) for split, items in parts.items()})
run.show(f10.rounds, [(draft.kind, len(draft.rounds)) for draft in drafts])

# %% [markdown]
# Short dialogues are more frequent than long ones: each doubling of the length is as likely as the next.
#
# Every build has a card with its counts. Here are those of larger builds, recorded, beside what the paper reports: all
# of PTB-XL's metadata (no signals, so no numbers are spoken of), and real with synthetic recordings, measured.

# %%
rows = [("", "PTB-XL metadata", "real + synthetic", "the paper")]
builds = [recorded.get("ptbxl_metadata"), recorded.get("real_and_synthetic")]


def row(name, get, paper="not reported"):
    rows.append((name, *("not run" if one is None else str(get(one)) for one in builds), paper))


row("diagnoses", lambda one: one["conversations"]["diagnosis"], "20,258")
row("dialogues", lambda one: one["conversations"]["dialogue"] + one["conversations"]["comparison"], "24,786")
row("  of them about two ECGs", lambda one: one["conversations"]["comparison"])
row(
    "rounds, least to most",
    lambda one: f"{one['statistics']['rounds']['least']}-{one['statistics']['rounds']['most']}",
    "4-30",
)
row("words per answer, mean", lambda one: one["statistics"]["words"]["answer"]["mean"])
row("different words", lambda one: one["statistics"]["vocabulary"]["answers"])
row("different 2-grams, share", lambda one: one["statistics"]["distinct_n"]["2"])
row("denied, share", lambda one: one["statistics"]["negatives"]["share"])
for cells in rows:
    print("{:26s} {:>16s} {:>17s} {:>13s}".format(*cells))

# %% [markdown]
# The paper's counts are as reported there; its word statistics aren't. The share of different 2-grams shows what rules
# lack: they say the same things in the same words. That is what a teacher is for.
#
# ECG-QA (Oh et al. 2023) is another source: 70 templates of questions about PTB-XL's ECGs, many of them lead by lead or
# about two recordings. `ecgchat instruct ecgqa FILE --out qa.jsonl` writes its pairs in the same format.
#
# ## Recap
#
# - A finding is present, absent or left open; only the first two can be spoken of (exercise 10.1).
# - Absent findings are asked and refuted, each about as often as it is confirmed (section 3).
# - Every answer is checked against statements and measurements before anyone trains on it (section 4, exercises 10.2
#   and 10.3).
# - Labels are the answers with their end marks, in every turn, proved by decoding them (exercise 10.4).
# - A language model may reword; what can't be proved is replaced, and every item says who wrote it (section 6).
# - Files share no patient, and a card has the counts beside the paper's (section 7).
#
# **What to copy.** `ecgchat_lib/instruct/` needs the manifest, the label table and the report phrases of `datasets/`,
# and no torch unless recordings are measured. For the negation rules, `facts.py`, `quantities.py` and `vocabulary.py`.
# `ecgchat_lib/chat/template.py` needs nothing but a fast tokenizer.
#
# **Common errors**
#
# - *Unsaid taken for absent.* The model then learns to deny what nobody looked for.
# - *Wrong template.* A model fine-tuned on `USER:` and asked with `<|im_start|>` answers something, just not well.
# - *Labels off by one.* The loss goes down all the same. Decode the labels once; it takes a second.
# - *Numbers in the answer that aren't in the prompt.* The model learns to invent numbers.
# - *Paid twice.* A build that was killed goes on with `--resume`; what was answered is on disk.
#
# ## References
#
# - Zhao et al. 2024, ECG-Chat, [arXiv 2408.08849](https://arxiv.org/abs/2408.08849): ECG-Instruct and its format.
# - Chapman et al. 2001, NegEx, [doi:10.1006/jbin.2001.1029](https://doi.org/10.1006/jbin.2001.1029): how far a no
#   reaches in clinical text.
# - Oh et al. 2023, ECG-QA, [arXiv 2306.15681](https://arxiv.org/abs/2306.15681), CC BY 4.0.
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
