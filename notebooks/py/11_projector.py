# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
RECORDS = 96  # synthetic recordings to learn from, 16..20000
SPELLING_STEPS = 200  # steps of spelling, 20..100000
STEPS = 24  # optimizer steps of stage 1, 3..1000000
BATCH = 2  # conversations per step, 1..256
TURNS = 5  # questions of a conversation, 3..20
MODEL = "language-model"  # the language model: language-model|vicuna-7b|vicuna-13b

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("11", globals())

# %% [markdown]
# ## 1. Two models that don't speak the same language
#
# The encoder of notebook 05 turns a recording into 101 vectors, its *ECG tokens*. A language model turns each word into
# a vector, too, and everything after that happens among vectors. So why not hand it the ECG tokens as if they were
# words? Because they have another width, and because their directions mean other things. A small network translates:
# the **projector**, two linear layers with a GELU between them.
#
# GELU lets positive numbers pass and holds negative ones back, softly: $x \cdot \Phi(x)$, where $\Phi$ is the share of
# a normal distribution below $x$.
#
# **Predict:** what is GELU of 0, about, of 3, and of −3?

# %%
import math

import torch


def gelu(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


print([round(gelu(x), 3) for x in (-3, -1, 0, 1, 3)])
up = torch.tensor([[1.0, 0], [0, -1]])  # (hidden 2, width 2)
token = torch.tensor([3.0, 3])
middle = up @ token
print("up:", middle.tolist(), " GELU:", [round(gelu(x), 3) for x in middle.tolist()])

# %% [markdown]
# The library's projector is that, for whole batches. (It puts a LayerNorm in front, because the tokens come from before
# the encoder's last norm and have no fixed scale; the original doesn't.)

# %%
from ecgchat_lib.chat.projector import Projector

torch.manual_seed(SEED)
small = Projector(4, 6, input_norm=False)  # from width 4 to hidden 6
x = torch.randn(2, 3, 4)  # (batch, token, width)
hidden = x @ small.up.weight.T + small.up.bias
passed = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
assert torch.allclose(small(x), passed @ small.down.weight.T + small.down.bias, atol=1e-6)
print("by hand equals the library:", tuple(small(x).shape))

# %% [markdown]
# Its size follows from the two widths. In the paper it is a two-layer MLP from 768 to 5,120 to 5,120:


# %%
def projector_parameters(width, hidden):
    return width * hidden + hidden + hidden * hidden + hidden


counted = sum(p.numel() for p in Projector(192, 576, input_norm=False).parameters())
assert counted == projector_parameters(192, 576)
print(f"mini, 192 to 576: {projector_parameters(192, 576):,}")
print(f"paper, 768 to 5120: {projector_parameters(768, 5120):,}")

# %% [markdown]
# ## 2. The splice
#
# The prompt has one place where the ECG goes, the mark `<ecg>`. Its id is −200, which no vocabulary has. All words are
# looked up, and where the mark was, the projected ECG tokens are put in. With three words and two ECG tokens:

# %%
words = torch.tensor([[0.0, 0], [1, 1], [2, 2], [3, 3]])  # 4 words, each 2 numbers
ids = [1, -200, 3, 2]
ecg = torch.tensor([[7.0, 8], [9, 9]])  # 2 ECG tokens
place = ids.index(-200)
spliced = torch.cat([words[ids[:place]], ecg, words[ids[place + 1 :]]])
print(spliced.int().tolist())

# %% [markdown]
# ### Exercise 11.1 Splice ECG tokens into a prompt (★★☆, 10 min)
#
# The labels must grow with the vectors: nothing is to be learned at an ECG token, so its label is −100.
#
# <details><summary>Hint 1</summary>n words with a mark among them and m ECG tokens give n − 1 + m places.</details>
# <details><summary>Hint 2</summary>Cut the labels at the same place as the ids, and put m times −100 between.</details>


# %% tags=["solution"]
def splice(ids, labels, words, ecg):
    """ids (one of them -200), labels: lists; words: (vocabulary, hidden); ecg: (m, hidden). Return vectors, labels."""
    # <solution>
    place = ids.index(-200)
    vectors = torch.cat([words[ids[:place]], ecg, words[ids[place + 1 :]]])
    spread = [*labels[:place], *[-100] * len(ecg), *labels[place + 1 :]]
    return vectors, spread
    # </solution>


# %%
check("11.1", splice)

# %% [markdown]
# Now with the real ones: SmolLM2-135M, a small Llama, and the mini encoder of the course, on a real recording.

# %%
from ecgchat_lib.chat.language_model import load_language_model
from ecgchat_lib.chat.template import ECG_ID, encode
from ecgchat_lib.chat.train_run import fresh_chat
from ecgchat_lib.coca.checkpoint import load_mini
from ecgchat_lib.coca.embed import encoder_tokens
from ecgchat_lib.coca.preprocess import recording_windows
from ecgchat_lib.datasets.cpsc2018 import load_real_sample
from ecgchat_lib.ecg.recording import read_recording

device = "cuda" if torch.cuda.is_available() else "cpu"
language_model = load_language_model(MODEL, quantized=device == "cuda", device=device)
encoder = load_mini()
real = load_real_sample()
recordings = [read_recording(path) for path in real["path"]]
real_tokens = encoder_tokens(recording_windows(recordings, encoder.config.encoder), encoder)
print("ECG tokens of", len(real), "real recordings:", tuple(real_tokens.shape))

# %%
chat = fresh_chat(language_model, real_tokens.shape[-1], SEED)
asked = encode([("<ecg>\nWhat does this ECG show?", "It shows atrial fibrillation.")], chat.tokenizer, chat.template)
batch = chat.prepare([asked], real_tokens[:1])
print(
    f"{len(asked.ids)} ids with the mark  →  {batch.embeddings.shape[1]} places of {batch.embeddings.shape[2]} numbers"
)
at = asked.ids.index(ECG_ID)
projected = chat.projector(real_tokens[:1].to(device))[0]
torch.testing.assert_close(batch.embeddings[0, at : at + 101], projected.to(batch.embeddings))
print("places", at, "to", at + 100, "are the projected ECG tokens")

# %% [markdown]
# Nothing says that there is one ECG. A question may compare yesterday's with today's, or hold no ECG at all: each mark
# takes the next ECG of the batch, in reading order. What stands before a question is written by `opening`.

# %%
from ecgchat_lib.chat.template import opening

two = opening(["Yesterday."]) + opening(["Today."]) + "What has changed?"
pair = encode([(two, "The rate."), ("Is it normal?", "No.")], chat.tokenizer, chat.template)
text_only = encode([("What is a PR interval?", "From P to QRS.")], chat.tokenizer, chat.template)
mixed = chat.prepare([pair, text_only], real_tokens[:2])
print(two.replace("\n", " | "))
print("marks:", pair.ids.count(ECG_ID), "and", text_only.ids.count(ECG_ID))
places = [int(row.sum()) for row in mixed.mask]
assert places == [len(pair.ids) - 2 + 2 * 101, len(text_only.ids)]
print("places:", places)

# %% [markdown]
# One ECG too few or too many is an error, not a guess:

# %%
from ecgchat_lib.errors import EcgChatError

try:
    chat.prepare([pair], real_tokens[:1])
except EcgChatError as error:
    print(error)

# %% [markdown]
# A fresh projector's outputs have any length, the words' vectors have theirs. So that neither drowns the other, the
# projector's last layer is scaled once (`scale_to`).

# %%
from ecgchat_lib.course.figures import f11

torch.manual_seed(SEED)
fresh = Projector(real_tokens.shape[-1], batch.embeddings.shape[2])
with torch.no_grad():
    scaled = batch.embeddings[0].float().norm(dim=-1).cpu()
    unscaled = scaled.clone()
    unscaled[at : at + 101] = fresh(real_tokens[:1])[0].norm(dim=-1)
run.show(f11.vector_lengths, unscaled.numpy(), scaled.numpy(), at, 101, {"record": real["record"][0], "seed": SEED})

# %% [markdown]
# ## 3. Only the projector learns
#
# Stage 1 keeps both shores still and builds the bridge: encoder and language model are frozen. But the *gradient* has
# to pass through the whole language model to reach the projector, so a step costs as much as if more were trained.
#
# **Predict:** the language model has 134.5 million numbers. What share of all of them is trained in stage 1?

# %%
from ecgchat_lib.chat.train import trained_parameters

chat.language_model.requires_grad_(False)
chat([asked], real_tokens[:1]).backward()
moved = [name for name, p in chat.named_parameters() if p.grad is not None and bool(p.grad.any())]
assert sorted(moved) == sorted(trained_parameters(chat))
trained = sum(p.numel() for p in trained_parameters(chat).values())
everything = sum(p.numel() for p in chat.parameters())
print(", ".join(moved))
print(f"{trained:,} of {everything:,} numbers are trained: {100 * trained / everything:.1f} percent")
chat.zero_grad()

# %% [markdown]
# ## 4. What it learns from
#
# Synthetic recordings, each with one question and the answer that its statements support, as in notebook 10. The
# encoder is frozen, so its tokens are computed once.

# %%
import numpy as np

from ecgchat_lib.coca.preprocess import front_end
from ecgchat_lib.datasets.synthetic import synthesize
from ecgchat_lib.instruct.findings import FINDINGS, presence

made = [synthesize(SEED * 100_000 + number) for number in range(RECORDS)]
windows = front_end(np.stack([item.signal for item in made]), encoder.config.encoder, fs=made[0].fs)
tokens = encoder_tokens(windows, encoder)
states = [[presence(finding, item.statements) for finding in FINDINGS] for item in made]
targets = torch.tensor([[float("nan") if there is None else float(there) for there in row] for row in states])
print("tokens:", tuple(tokens.shape), " findings:", tuple(targets.shape), " left open:", int(targets.isnan().sum()))

# %% [markdown]
# ### Spelling
#
# A step through the language model costs seconds on a laptop; so it pays to bring the projector near its goal without
# it. Which vectors does a language model read best? Those of words. So let the projector *spell*: each finding owns
# some of the 101 places, and where the finding is present, these places should hold the embeddings of its words; where
# it is absent, of a comma. The heart rate gets three places for its digits. With two findings and ten places:

# %%
from ecgchat_lib.chat.spelling import Spelling

few = Spelling.of(["sinus rhythm", "atrial fibrillation"], chat.tokenizer, 10)
right = few.words(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([72.0, 134.0]))
for row in right.tolist():
    print([chat.tokenizer.decode([word]) if word >= 0 else None for word in row])

# %% [markdown]
# The first place (CLS) and what is left over stay free. Least squares pull the projector's vectors towards the words'.
# What comes out where the ECG leaves a finding open?
#
# **Predict:** the projector can't tell two groups of recordings apart; one in four of them has the finding. Where does
# the best single vector for all of them lie, between the comma (0) and the word (1)?

# %%
embeddings = chat.language_model.get_input_embeddings().weight.detach().float().cpu()
word, comma = embeddings[right[0, 1]], embeddings[few.filler]
wanted = torch.stack([word, comma, comma, comma])
vector = torch.zeros_like(word, requires_grad=True)
for _ in range(50):
    (gradient,) = torch.autograd.grad((vector - wanted).square().sum(1).mean(), vector)
    vector = (vector - 0.4 * gradient).detach().requires_grad_(True)
way = word - comma
print(f"{float((vector.detach() - comma) @ way / (way @ way)):.2f} of the way to the word")

# %% [markdown]
# At its share: the vector says how likely the finding is. (The library weighs a finding's two sides alike, so that rare
# ones aren't drowned; then one half is the border.) CLS sums up the whole ECG, so this projector reads each token
# together with CLS; and it has a learned vector for each place, so that each can say something of its own. The paper
# does none of this; it has 619,000 pairs, a model a hundred times larger, and GPUs instead.

# %%
from ecgchat_lib.chat.spelling import presence_scores, train_spelling

phrases = [finding.phrase for finding in FINDINGS]
places = real_tokens.shape[1]
chat = fresh_chat(language_model, real_tokens.shape[-1], SEED, places=places)
spelling = Spelling.of(phrases, chat.tokenizer, places)
vectors = chat.language_model.get_input_embeddings().weight
words = spelling.words(targets, torch.tensor([item.truth["heart_rate_bpm"] for item in made]))
losses = train_spelling(chat.projector, vectors, tokens, words, spelling, steps=SPELLING_STEPS, batch=32, seed=SEED)
print(SPELLING_STEPS, "steps; the loss fell:", bool(np.mean(losses[-10:]) < np.mean(losses[:10])))

# %%
scores = presence_scores(chat.projector, vectors, real_tokens, spelling)
names = [f"{r} ({', '.join(c for c, _ in s)})" for r, s in zip(real["record"], real["statements"], strict=True)]
about = {"records": names, "seed": SEED, "learned_from": RECORDS, "steps": SPELLING_STEPS}
run.show(f11.spelled, scores.numpy(), names, phrases, about)

# %% [markdown]
# Read a row: what does the projector, after some seconds on synthetic recordings, spell for this *real* recording? The
# dataset's own label stands in brackets; look whether it stands out in its row. Synthetic recordings are no substitute
# for real ones, but they are a start; the shipped mini has seen both (notebook 12).
#
# ## 5. Stage 1
#
# Now the real thing: the loss is that of the answers' tokens, through the frozen language model. Each step sees other
# recordings, some harder than others, so the curve is rough; whether anything was learned shows on recordings that no
# step sees. A quarter is kept for that.

# %%
from ecgchat_lib.chat.train import Example, TrainConfig, train_projector
from ecgchat_lib.instruct.build import Teacher

examples = []
for row, item in enumerate(made):
    turn = Teacher(item.statements, None, np.random.default_rng(row)).diagnosis()
    if turn is not None:
        pair = [("<ecg>\n" + turn.question, turn.answer)]
        examples.append(Example(encode(pair, chat.tokenizer, chat.template), (row,)))
before = [p.double().sum().item() for p in chat.language_model.parameters()]
kept = len(examples) // 4


@torch.no_grad()
def loss_on(items):
    chat.eval()
    return float(np.mean([float(chat([item.encoded], tokens[list(item.ecg)])) for item in items]))


earlier = loss_on(examples[:kept])
config = TrainConfig(steps=STEPS, batch=BATCH, learning_rate=1e-3, seed=SEED)
losses = train_projector(chat, examples[kept:], tokens, config)
later = loss_on(examples[:kept])
print(f"loss on {kept} recordings that no step sees, lower by more than a tenth: {later < 0.9 * earlier}")
print("language model unchanged:", before == [p.double().sum().item() for p in chat.language_model.parameters()])
run.show(f11.stage_1, losses, {"seed": SEED, "steps": STEPS, "batch": BATCH, "examples": len(examples) - kept})

# %% [markdown]
# Mostly the model learns *how* such answers are worded; soft vectors in a prompt can do that much. To name what is on
# the recording takes more recordings, and a language model that may adapt: stage 2, in the next notebook.
#
# ## 6. Batches of different lengths
#
# Prompts differ in length, and a batch needs one length. Padding must change nothing. In training it stands on the
# right; for generating on the *left*, since the new word follows the last place.
#
# ### Exercise 11.2 Pad a batch so that it can be continued (★★☆, 10 min)
#
# Return, for prompts of the given lengths, the masks (1 token, 0 padding) and the positions (0 for padding).
#
# <details><summary>Hint 1</summary>Every row is as long as the longest prompt; padding stands in front.</details>
# <details><summary>Hint 2</summary>The first real token of each row has position 0.</details>


# %% tags=["solution"]
def pad_left(lengths):
    """lengths: list of prompt lengths. Return (masks, positions), two lists with a list of whole numbers per prompt."""
    # <solution>
    longest = max(lengths)
    masks = [[0] * (longest - n) + [1] * n for n in lengths]
    positions = [[0] * (longest - n) + list(range(n)) for n in lengths]
    return masks, positions
    # </solution>


# %%
check("11.2", pad_left)

# %% [markdown]
# The library's version, checked: two conversations in one batch give the logits that each gives alone.

# %%
longer = encode([("<ecg>\nIs it normal?", "No."), ("Why not?", "The rhythm.")], chat.tokenizer, chat.template)
with torch.no_grad():
    together, _ = chat.answer_logits(chat.prepare([asked, longer], real_tokens[:2]))
    alone = [chat.answer_logits(chat.prepare([e], real_tokens[k : k + 1]))[0] for k, e in enumerate((asked, longer))]
difference = (together - torch.cat(alone)).abs().max().item()
assert difference < 1e-3
print("largest difference below 0.001:", difference < 1e-3)
starts = chat.prepare([asked, longer], real_tokens[:2], left=True).positions.tolist()
print("padded on the left, the positions begin:", [row[:10] for row in starts])

# %% [markdown]
# ## 7. A conversation keeps what it read
#
# In a second question everything before it is read again, the ECG too, though none of it has changed. In a causal
# model the *keys and values* of a place depend on the places before it alone, so they can be kept: the **KV cache**.
# Only what is new goes through the model. `Conversation` does that, and also takes an ECG in a later turn.
#
# **Predict:** the first question needs the 101 places of its ECG and some for words. How many does the fifth need, with
# the cache and without?

# %%
from ecgchat_lib.chat.generate import Conversation, Decoding

chat.eval()
talk = Conversation(chat, Decoding(max_new_tokens=4))
talk.add(real_tokens[0], ["Yesterday."])
for number in range(TURNS):
    if number == 2:
        talk.add(real_tokens[1], ["Today."])  # another ECG, in the third turn
    talk.ask(f"What about question {number + 1}?")
assert talk.prefilled[0] > 101
assert talk.prefilled[2] > 101
assert all(count < 60 for number, count in enumerate(talk.prefilled) if number not in (0, 2))
print("Only where an ECG is new more than 100 places are read; the other turns need fewer than 60.")
run.show(f11.places_read, talk.prefilled, talk.prompts, {"seed": SEED, "turns": TURNS, "ecg_in_turns": [1, 3]})

# %% [markdown]
# The bars are counts, not times, but nearly all of the time to an answer's first word is spent on them. So the fifth
# question costs what the second one does. Measured on the shipped mini:

# %%
import json

from ecgchat_lib.paths import data_folder

recorded = data_folder() / "results" / "chat_turns.json"
if recorded.is_file():
    timed = json.loads(recorded.read_text())
    ratios = timed["last_turn_over_second"]
    print(f"first token, turn {len(timed['turns'])} over turn 2: kept {ratios['kept']:.2f}, anew {ratios['anew']:.2f}")
    print(
        f"{timed['batch']['questions']} answers together: {timed['batch']['times_faster']:.1f} times faster than alone"
    )
else:
    print("not run")

# %% [markdown]
# But is a kept cache right? Between the turns the answer is written down as text, and its end mark is put behind it.
# Cut into tokens again, text need not give the tokens that the model made. So before each answer the whole conversation
# is turned into ids, the cache is cut back to where these agree with what it holds, and the rest is read. What it holds
# must be what reading all of it at once gives:

# %%
from ecgchat_lib.chat.template import Encoded

with torch.no_grad():
    again = chat.prepare([Encoded(talk.ids, (-100,) * len(talk.ids))], real_tokens[:2])
    fresh_cache = chat.language_model(inputs_embeds=again.embeddings, use_cache=True).past_key_values
far = max((a.keys - b.keys).abs().max().item() for a, b in zip(talk._cache.layers, fresh_cache.layers, strict=True))
print("layers:", len(fresh_cache.layers), " same keys as read at once:", far < 1e-2)
assert far < 1e-2

# %% [markdown]
# The answer comes in pieces, as it is made (*streaming*). A piece never ends in the middle of a character, though a
# token may: "é" can be two tokens. The pieces that don't make a whole character wait for the next one.

# %%
ids = chat.tokenizer("Schläge 🫀", add_special_tokens=False).input_ids
for count in range(len(ids) - 4, len(ids) + 1):
    print(count, "tokens:", repr(chat.tokenizer.decode(ids[:count])), "→", repr(chat.said(ids[:count])))

# %% [markdown]
# ### Exercise 11.3 How much of a cache can stay (★★☆, 15 min)
#
# The cache holds some ids, and the next prompt has others. How many *places* must be removed from the end of the
# cache, and how many must be read? The mark −200 stands for a whole ECG. The last id of the prompt is always read,
# since its output chooses the answer's first token.
#
# <details><summary>Hint 1</summary>Count from the front how many ids agree; stop at the first that doesn't.</details>
# <details><summary>Hint 2</summary>At most all ids of the prompt but one can stay.</details>
# <details><summary>Hint 3</summary>An id takes one place, a mark `ecg_tokens` places.</details>


# %% tags=["solution"]
def plan_turn(held, ids, ecg_tokens):
    """held: ids in the cache; ids: those of the prompt. Return (places to remove, places to read)."""
    # <solution>
    same = 0
    while same < min(len(held), len(ids) - 1) and held[same] == ids[same]:
        same += 1
    places = [sum(ecg_tokens if token == -200 else 1 for token in part[same:]) for part in (held, ids)]
    return places[0], places[1]
    # </solution>


# %%
check("11.3", plan_turn)

# %% [markdown]
# ## Recap
#
# - ECG tokens enter as vectors at the mark `<ecg>`, and labels move with them (exercise 11.1).
# - The projector is two linear layers; in stage 1 only it gets gradients, all through a frozen model (section 3).
# - Scale and spelling bring its outputs near the words before an expensive step is made (sections 2 and 4).
# - Padding, on the left for generation, changes nothing (exercise 11.2).
# - A conversation keeps keys and values and reads what is new, also a second ECG (exercise 11.3).
#
# **What to copy.** `ecgchat_lib/chat/projector.py` needs torch alone; `chat/model.py` needs it and transformers,
# `chat/generate.py` these two.
#
# **Common errors**
#
# - *A projector that was never loaded.* It answers fluently, about nothing. Compare logits after loading.
# - *Tokens of another encoder, or from after its last norm.* Same shape, no error. Our folders keep the encoder's hash.
# - *The mark is tokenized as text.* Then the model reads `<`, `ecg`, `>` and no ECG. Count the places.
# - *A kept cache after the text has changed.* Dropped turns, a trimmed answer: compare ids, not lengths.
# - *`torch.no_grad()` around the frozen model.* Then nothing reaches the projector. Freeze weights, not the graph.
#
# ## References
#
# - Zhao et al. 2024, ECG-Chat, [arXiv 2408.08849](https://arxiv.org/abs/2408.08849): stage 1 on 619 K pairs.
# - Liu et al. 2023, Improved Baselines with Visual Instruction Tuning (the MLP projector),
#   [arXiv 2310.03744](https://arxiv.org/abs/2310.03744).
# - Hendrycks and Gimpel 2016, Gaussian Error Linear Units, [arXiv 1606.08415](https://arxiv.org/abs/1606.08415).
# - Model: SmolLM2-135M-Instruct, Ben Allal et al. 2025, [arXiv 2502.02737](https://arxiv.org/abs/2502.02737),
#   Apache-2.0. Mini encoder: trained on PTB-XL, Wagner et al. 2020,
#   [doi:10.1038/s41597-020-0495-6](https://doi.org/10.1038/s41597-020-0495-6), CC BY 4.0. Recordings: CPSC2018, Liu et
#   al. 2018, [doi:10.1166/jmihi.2018.2442](https://doi.org/10.1166/jmihi.2018.2442), CC BY 4.0.

# %%
run.finish({"trained_parameters": trained, "first_loss": losses[0], "last_loss": losses[-1], "steps": STEPS})
