# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
LEAK_STEPS = 80  # training steps of the two decoders in section 5, 40..2000

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("06", globals())

# %% [markdown]
# ## 1. Which report belongs to which ECG?
#
# CoCa (*contrastive captioner*) learns from pairs of an ECG and its report, with two losses. The first asks: given
# three ECGs and three reports, who belongs to whom?
#
# Each ECG and each report becomes one vector of length 1. The dot product of two such vectors, their cosine, says how
# alike they are. Say the model, half trained, finds these nine cosines; the right pairs are on the diagonal.

# %%
import numpy as np

cosines = np.array([[0.5, 0.1, 0.3], [0.2, 0.6, 0.4], [0.1, 0.5, 0.4]])  # row: ECG, column: report
right = cosines.argmax(axis=1) == np.arange(3)
print("does each ECG find its report?  ", right.tolist())
print("does each report find its ECG?  ", (cosines.argmax(axis=0) == np.arange(3)).tolist())


# %% [markdown]
# The third ECG is nearer to the second report than to its own. To turn that into a loss, read each row as a
# multiple-choice question: a softmax makes probabilities of the cosines, and the loss is minus the logarithm of the
# right answer's probability. The same for the columns, and the mean of both.
#
# Cosines lie between −1 and 1. A softmax of such small numbers is nearly flat, so they are multiplied by a *scale*
# first (one over the *temperature*). It is learned; CLIP starts at 1/0.07 ≈ 14 and allows at most 100.


# %%
def row_loss(cosines, scale):
    """Minus the mean log-probability of the diagonal, row by row."""
    logits = scale * cosines
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return -np.log(np.diag(probabilities)).mean()


def loss_by_hand(cosines, scale):
    return (row_loss(cosines, scale) + row_loss(cosines.T, scale)) / 2


for scale in (0.0001, 1, 14.3, 100):
    print(f"scale {scale:8}: loss {loss_by_hand(cosines, scale):.4f}")

# %% [markdown]
# At a scale of nearly 0 everything is equally probable, and the loss is ln 3 = 1.0986: a guess among three. At 100 the
# one wrong pair is a confident mistake, and costs more than a guess.
#
# **Predict** before you look: which scale would a model choose that has all three pairs right?

# %%
from ecgchat_lib.course.figures import f06

run.show(f06.temperature, cosines)

# %% [markdown]
# In torch it is two cross-entropies with the diagonal as the right answer. The library's function does that, and
# equals open_clip's `ClipLoss`:

# %%
import torch
from open_clip.loss import ClipLoss

from ecgchat_lib.coca.losses import contrastive_loss

generator = run.generator()
ecg, text = (torch.nn.functional.normalize(torch.randn(5, 16, generator=generator), dim=1) for _ in range(2))
ours = contrastive_loss(ecg, text, 14.3)
torch.testing.assert_close(ours, ClipLoss()(ecg, text, 14.3))
assert abs(ours.item() - loss_by_hand((ecg @ text.T).numpy(), 14.3)) < 1e-4
print("by hand = library = open_clip")

# %% [markdown]
# ### When two reports say the same
#
# Half of a hospital's ECGs are normal. If a batch holds twenty reports "normal ECG", the loss above asks each normal
# ECG to find its own one of twenty equal texts, and pushes nineteen good answers away. The library offers *shared
# targets*: equal reports share the probability.

# %%
from ecgchat_lib.coca.losses import shared_targets

reports = ["normal", "atrial fibrillation", "normal"]
print(shared_targets(reports).tolist())
models = {"alike": torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]]), "apart": torch.eye(3)}
for name, v in models.items():  # one model gives records 1 and 3 the same vectors, the other tells them apart
    plain, shared = contrastive_loss(v, v, 5.0), contrastive_loss(v, v, 5.0, shared_targets(reports))
    print(f"normal ECGs {name}: plain loss {plain:.2f}, with shared targets {shared:.2f}")

# %% [markdown]
# The plain loss prefers the model that tells two normal ECGs apart, by noise if there is nothing else. With shared
# targets the model that finds them alike wins.
#
# ### The sigmoid loss
#
# A softmax makes the reports of a batch compete: one must be chosen. The *sigmoid loss* (SigLIP) asks of each pair by
# itself: do these two belong together, yes or no? A pair costs $-\ln \sigma(\pm(\text{scale} \cdot \text{cosine} +
# \text{bias}))$, with plus for pairs that belong together. The learned bias is needed since most pairs don't.
#
# **Predict:** with yes on the diagonal only, which model does it prefer, "alike" or "apart"? And with yes for all
# pairs whose reports are equal?

# %%
from open_clip.loss import SigLipLoss


def sigmoid_loss(ecg, text, scale, bias, belongs):
    """The sum over all pairs, per record. belongs: (batch, batch), True where ECG and report belong together."""
    logits = scale * ecg @ text.T + bias
    return -torch.nn.functional.logsigmoid(torch.where(belongs, logits, -logits)).sum() / len(ecg)


diagonal, equal = torch.eye(3, dtype=torch.bool), shared_targets(reports) > 0
torch.testing.assert_close(
    sigmoid_loss(ecg, text, 10.0, -5.0, torch.eye(5, dtype=torch.bool)), SigLipLoss()(ecg, text, 10.0, -5.0)
)
for name, v in models.items():
    strict, fair = (sigmoid_loss(v, v, 10.0, -5.0, belongs) for belongs in (diagonal, equal))
    print(f"normal ECGs {name}: yes on the diagonal {strict:.2f}, yes for equal reports {fair:.2f}")

# %% [markdown]
# The same picture: not the form of the loss decides but what is called right. In a hospital's data, "equal reports
# belong together" matters more than softmax or sigmoid. The library's training uses both: shared targets for whole
# reports, and a sigmoid for single statements, since several of them are true of one ECG. Which of them helps, and how
# much, is a question for measurements (notebook 07).
#
# ## 2. The report's side
#
# The paper trains the last layers of a medical text encoder (MedCPT). Here a small general sentence encoder,
# all-MiniLM-L6-v2, is used *frozen*: each word piece becomes 384 numbers, its *state*, and only what stands on top is
# trained: a matrix on the mean of the states, taken over the real pieces and never over the padding, and a small
# network that reads each state before the mean, so that one word can count.

# %%
from ecgchat_lib.coca.text import ReportEncoder, mean_pool

states = torch.tensor([[[1.0, 10.0], [3.0, 30.0], [99.0, 99.0]]])  # one text: two tokens and a padding
print("mean over the real pieces:", mean_pool(states, torch.tensor([[1, 1, 0]]))[0].tolist())

encoder = ReportEncoder()
sentences = [
    "normal ECG",
    "abnormal ECG",
    "left bundle branch block",
    "right bundle branch block",
    "atrial fibrillation",
]
vectors = encoder(sentences)
run.show(f06.sentence_likeness, sentences, (vectors @ vectors.T).numpy())

# %% [markdown]
# A general encoder hears the *words*. "Left" and "right bundle branch block" are nearly the same to it, "normal" and
# "abnormal" are close, and to a heart they are far apart. What is trained on top can pull such pairs apart only as far
# as their states still differ. That is a limit of the mini model, and the reason why the paper takes a medical encoder
# and trains a part of it.
#
# Freezing has a reward: a text's states never change, so each text goes through the encoder *once*, and is then a
# look-up. The library keeps the states in half precision, in memory or in a file.

# %%
first, again = encoder.states(["normal ECG"])[0], encoder.states(["NORMAL  ecg"])[0]
print("states of 'normal ECG':", tuple(first.shape), str(first.dtype).removeprefix("torch."))
print("the second time nothing is computed, the very same tensor comes back:", first is again)
print("100,000 texts of 25 pieces take", f"{100_000 * 25 * 384 * 2 / 1e9:.2f} GB")

# %% [markdown]
# ## 3. Both losses
#
# The second loss asks the model to *write* the report: at each place, name the next word piece. It is an ordinary
# cross-entropy in which padding doesn't count. The two are added with the weights 1 and 2.

# %%
from ecgchat_lib.coca.losses import caption_loss

logits = torch.log(torch.tensor([[[0.1, 0.7, 0.2], [0.2, 0.3, 0.5], [0.9, 0.05, 0.05]]]))  # (1, place 3, piece 3)
labels = torch.tensor([[1, 2, 0]])  # piece 0 is padding
print(f"by hand: {-(np.log(0.7) + np.log(0.5)) / 2:.4f}   library: {caption_loss(logits, labels):.4f}")

# %%
from open_clip.loss import CoCaLoss

from ecgchat_lib.coca.objective import Objective

logits, labels = torch.randn(5, 9, 30, generator=generator), torch.randint(0, 30, (5, 9), generator=generator)
theirs = sum(CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)(ecg, text, logits, labels, 14.3))
total = Objective().total(contrastive_loss(ecg, text, 14.3), {"caption": caption_loss(logits, labels)})
torch.testing.assert_close(total, theirs)
print("contrastive + 2 · caption equals open_clip's CoCaLoss")

# %% [markdown]
# ## 4. A decoder that can't see the future
#
# While training, the decoder sees the whole report at once and answers at all places in parallel. At place *t* it must
# use only the pieces 0 … *t*, or it could read off the answer. A *causal mask* does that: before the softmax, minus
# infinity is added wherever a place would look ahead, and the share becomes exactly 0.

# %%
fit = torch.zeros(4, 4)  # every place fits every other equally well
mask = torch.full((4, 4), float("-inf")).triu(1)  # minus infinity above the diagonal
print((fit + mask).softmax(dim=1).numpy().round(2))

# %% [markdown]
# Between the layers over the text, the decoder looks at the ECG: *cross-attention*, with queries from the text and
# keys and values from the 100 patch tokens. The library uses open_clip's `MultimodalTransformer`, which has both. Its
# tokenizer is WordPiece with the few hundred pieces that ECG reports need, and the alphabet to spell the rest:

# %%
from ecgchat_lib.coca.text import CaptionTokenizer, build_vocabulary

phrases = ["Sinus rhythm. Normal ECG.", "Complete left bundle branch block.", "Atrial fibrillation, rate 110 bpm."]
tokenizer = CaptionTokenizer(build_vocabulary(phrases))
ids = tokenizer.encode(["Atrial fibrillation."], 12)[0]
print([tokenizer.vocabulary[number] for number in ids])
print("unknown words are spelled:", [tokenizer.vocabulary[n] for n in tokenizer.encode(["ostium"], 12)[0] if n])

# %% [markdown]
# **Predict:** in the report below, piece 6 is changed. Which logits change?

# %%
from ecgchat_lib.coca.config import CaptionDecoderConfig
from ecgchat_lib.coca.decoder import CaptionDecoder

torch.manual_seed(SEED)
decoder = CaptionDecoder(CaptionDecoderConfig(vocabulary=len(tokenizer), context=12, layers=2, heads=2), 32).eval()
patches = torch.randn(1, 100, 32, generator=generator)
changed = ids.clone()
changed[6] = 40
with torch.inference_mode():
    difference = (decoder(ids[None], patches) - decoder(changed[None], patches)).abs().amax(dim=2)[0]
print("changed places:", difference.ne(0).nonzero().flatten().tolist(), "- before 6, not one bit")


# %% [markdown]
# ## 5. The leak in the original
#
# The released code does something else. It gives the decoder not the pieces themselves but the token states of its
# *text encoder*, and that encoder looks in both directions. The decoder's own mask is causal, but the state at place
# *t* already contains piece *t* + 1. The answer is in the question.
#
# How would one notice? The loss looks *wonderful*. So take reports that nobody can predict: random pieces, fresh in
# each step, 19 equally likely ones. Whatever a decoder does, an honest loss can't stay below ln 19.


# %%
from open_clip.transformer import Transformer

PIECES, LENGTH, WIDTH = 20, 8, 32


class Leaky(torch.nn.Module):
    """As in the original: a bidirectional text encoder's states go into the decoder."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder, self.text = decoder, Transformer(WIDTH, 1, 2)
        self.places = torch.nn.Parameter(0.01 * torch.randn(LENGTH + 1, WIDTH))

    def forward(self, pieces, patches):
        states = self.text(self.decoder.token_embedding(pieces) + self.places)  # no mask: sees everything
        return self.decoder.transformer(patches, states[:, :-1])


class Causal(torch.nn.Module):
    """As in the library: the decoder embeds the pieces itself."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, pieces, patches):
        return self.decoder(pieces[:, :-1], patches)


# %%
def losses_on_noise(kind):
    """Train a decoder on random reports of random ECG tokens; return its losses."""
    torch.manual_seed(SEED)
    config = CaptionDecoderConfig(vocabulary=PIECES, context=LENGTH, layers=1, heads=2)
    model = kind(CaptionDecoder(config, WIDTH))
    optimizer, draw, losses = torch.optim.AdamW(model.parameters(), lr=5e-3), run.generator(), []
    for _ in range(LEAK_STEPS):
        pieces = torch.randint(1, PIECES, (64, LENGTH + 1), generator=draw)
        loss = caption_loss(model(pieces, torch.randn(64, 4, WIDTH, generator=draw)), pieces[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


causal, leaky = losses_on_noise(Causal), losses_on_noise(Leaky)
floor = np.log(PIECES - 1)
print("the causal decoder stays at the floor of ln 19:", bool(abs(causal[-10:].mean() - floor) < 0.2))
print("the leaky one falls below half of it:          ", bool(leaky[-10:].mean() < floor / 2))
run.show(f06.leak, causal, leaky, floor, {"seed": SEED, "steps": LEAK_STEPS})

# %% [markdown]
# The leaky decoder predicts noise. It has learned to copy, nothing about reports, and nothing about the ECG: there was
# nothing to learn. Its caption loss can't teach the encoder anything either, because the answer is cheaper to have
# from the text.
#
# One needn't train anything to find such a leak. `PaperCoca` is the original's model, name for name (section 7), here
# with tiny random towers. Change the pieces from 40 on, and look at the logits that come before them.
#
# **Predict:** of the 40 logits at the places 0 … 39, how many move in the original, and how many in ours?

# %%
from ecgchat_lib.coca.config import EcgCocaConfig, EcgEncoderConfig
from ecgchat_lib.coca.model import EcgCoca
from ecgchat_lib.coca.paper import PaperCoca, PaperConfig

tower = EcgEncoderConfig(fs=20, seconds=4, band=None, z_score=False, patch_samples=8, width=24, heads=3, embedding=16)
writer = CaptionDecoderConfig(vocabulary=60, context=76, layers=2, heads=3)
small = PaperConfig(tower, writer, text_layers=2, text_heads=3, text_vocabulary=50, text_positions=80)
torch.manual_seed(SEED)
original, ours = PaperCoca(small).eval(), EcgCoca(EcgCocaConfig(tower, writer)).eval()
signal = torch.randn(1, 12, 80, generator=generator)
report = torch.randint(1, 50, (1, 77), generator=generator)
other = report.clone()
other[:, 40:] = report[:, 40:] % 49 + 1  # each piece from 40 on becomes another one

# %%
with torch.inference_mode():
    seen = ours.caption_patches(ours.encoder(signal).tokens)
    change = {
        "original": (original(signal, report).logits - original(signal, other).logits).abs().amax(dim=2)[0],
        "ours": (ours.decoder(report[:, :-1], seen) - ours.decoder(other[:, :-1], seen)).abs().amax(dim=2)[0],
    }
moved = {name: int((by[:40] != 0).sum()) for name, by in change.items()}
print("logits before the change that move, of 40:", moved)
run.show(f06.moved_logits, {name: by.numpy() for name, by in change.items()}, 40)

# %% [markdown]
# Two tests keep the library's decoder honest: changing future pieces must change no earlier logit, not by one bit; and
# with trained weights, swapping the ECGs must *raise* the caption loss, since otherwise the decoder doesn't look at
# them.

# %%
from ecgchat_lib.coca.checkpoint import load_mini
from ecgchat_lib.coca.preprocess import front_end
from ecgchat_lib.datasets.synthetic import synthesize

mini = load_mini()
ecgs = [synthesize(seed) for seed in range(SEED, SEED + 32)]
windows = front_end(np.stack([one.signal for one in ecgs]), mini.config.encoder)
pieces = mini.tokenizer.encode([one.report for one in ecgs], mini.config.decoder.context + 1)
with torch.inference_mode():
    patches = mini.caption_patches(mini.encoder(windows).tokens)
    own, swapped = (
        caption_loss(mini.decoder(pieces[:, :-1], p), pieces[:, 1:]).item() for p in (patches, patches.roll(1, 0))
    )
print("the mini model's caption loss is higher with swapped ECGs:", swapped > own)

# %% [markdown]
# ## 6. Measured numbers are not words
#
# A report may end in measured numbers (notebook 03): ` RR: 832 PR: 160 QRS: 92 QT/QTc: 380/416 …`. To a sentence
# encoder `380` is a word piece like any other, and `420` another. How well does it tell them apart?


# %%
def with_qt(qt):
    return f"Sinus rhythm. Normal ECG. RR: 832 PR: 160 QRS: 92 QT/QTc: {qt}/{qt / 0.832**0.5:.0f}"


qts = list(range(300, 521, 10))
heard = encoder([with_qt(qt) for qt in qts]) @ encoder([with_qt(380)])[0]
block = encoder(["Sinus rhythm. Left bundle branch block."]) @ encoder(["Sinus rhythm. Normal ECG."])[0]
for qt in (390, 420, 500):
    print(f"QT 380 and {qt} ms: cosine {heard[qts.index(qt)]:.3f}")
print(f"normal and left bundle branch block: {block.item():.3f}")

# %% [markdown]
# A QT of 500 ms is dangerous, and the sentence encoder hardly hears it. So the library reads the numbers *out* of the
# text, and a network of their own encodes them. First each number is put on a common scale: how many usual spreads is
# it from a usual value? Then it becomes waves: sine and cosine of that, at four speeds. Slow waves tell far numbers
# apart, fast ones near ones.

# %%
from ecgchat_lib.coca.numbers import CENTER, FREQUENCIES, NUMBERS, SPREAD, split_numbers

words, numbers = split_numbers(with_qt(420))
print(repr(words), dict(zip(NUMBERS[:5], numbers, strict=False)))


def waves(qt):
    """Sine and cosine of a QT interval (ms) at the library's speeds."""
    spreads = (qt - CENTER[3]) / SPREAD[3]
    angles = 2 * np.pi * spreads * np.array(FREQUENCIES)
    return np.concatenate([np.sin(angles), np.cos(angles)])


print("380 ms in spreads:", (380 - CENTER[3]) / SPREAD[3], " as waves:", waves(380).round(2).tolist())
told = np.array([waves(qt) @ waves(380) / len(FREQUENCIES) for qt in qts])  # each has the length 2 = root of 4
run.show(f06.number_likeness, qts, heard.numpy(), told)

# %% [markdown]
# `EcgCoca` adds the encoded numbers to the encoded words. What is unknown (`n/a`, or nothing written) adds nothing but
# a mark that it is unknown. A text can be given without its numbers, or the numbers without their words; the training
# does all three, so that neither becomes a crutch for the other (notebook 07).

# %%
from ecgchat_lib.coca.config import MINI
from ecgchat_lib.coca.model import count_parameters

torch.manual_seed(SEED)
model = EcgCoca(MINI).eval()
batch = model.read_texts([with_qt(380), "Sinus rhythm. Normal ECG."])
print("states:", tuple(batch.states.shape), " numbers:", [f"{n:.0f}" for n in batch.numbers[:, 3]], "(QT of each)")
with torch.inference_mode():
    both, bare, alone = (model.text_tower(text) for text in (batch, batch.without_numbers(), batch.without_words()))
torch.testing.assert_close(both, bare + alone, rtol=1e-4, atol=1e-4)
assert torch.equal(both[1], bare[1])  # the second text has no numbers
print("words and numbers are added up; a text without numbers is its words alone")

# %% [markdown]
# ## 7. The original, name for name
#
# Weights are a dictionary of names and tensors. Who has the released file of ECG-CoCa can load it here: `PaperCoca` has
# exactly its names and shapes, and computes what the original computes, the leak included. It is put together from
# three parts that are installed anyway: our `EcgEncoder` as `ecg`, open_clip's text tower around a BERT as `text`,
# open_clip's multimodal transformer as `text_decoder`. On the meta device that takes no memory:

# %%
from ecgchat_lib.coca.paper import load_paper_checkpoint, paper_shapes

shapes = paper_shapes()
sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
print(len(shapes), "entries,", f"{sum(sizes.values()):,}", "parameters")
for name in ("ecg.conv1.weight", "text.proj.weight", "text_decoder.text_projection", "logit_scale"):
    print(f"  {name:30}", shapes[name])
assert (len(shapes), sum(sizes.values())) == (666, 403_348_993)

# %% [markdown]
# The count is a strong test: a BERT with its own pooler would give 668 entries, saved position ids 667, open_clip's
# other kind of projection 667 too. What it can't tell is whether the values in a file are those of the paper.
#
# **Predict:** which part has most of the 403 million? And how many belong to words that the text tower doesn't know?

# %%
from ecgchat_lib.coca.config import PAPER

with torch.device("meta"):
    causal_one = EcgCoca(PAPER)
parts = f06.parameter_parts(sizes, causal_one)
for name, count in parts["original"].items():
    print(f"{name:34}{count:>13,}")
unused = (PAPER.decoder.vocabulary - PaperConfig().text_vocabulary) * PAPER.encoder.width
print("of these, for pieces that no text holds:", f"{unused:,}")
run.show(f06.parameter_map, parts)

# %% [markdown]
# The decoder can write 49,408 pieces, but the tokenizer is BERT's and knows 30,522: the other columns can never be a
# right answer. They were left over from another model's configuration.
#
# ### A file from elsewhere is not your friend
#
# Such files are mostly *pickles*, and reading a pickle can run any code that its maker put in. `load_paper_checkpoint`
# reads safetensors, or pickles by an unpickler that knows tensors only; then it checks each name and shape before it
# fills the model. Here with tiny towers, and a random file made as a training script makes it:

# %%
import os
import tempfile
from pathlib import Path

from ecgchat_lib.errors import EcgChatError


class Trap:
    """Unpickling this makes a folder. It could as well delete one."""

    def __reduce__(self):
        return os.mkdir, (str(folder / "trapped"),)


def why(path):
    """Return why a file is refused, up to the first full stop, without its place."""
    try:
        load_paper_checkpoint(path, small)
    except EcgChatError as error:
        return str(error).removeprefix(f"{path}: ").split(" (")[0]
    return "it was read"


# %%
weights = original.state_dict()
with tempfile.TemporaryDirectory() as place:
    folder = Path(place)
    torch.save({"epoch": 20, "state_dict": {f"module.{name}": w for name, w in weights.items()}}, folder / "random.pt")
    torch.save({"state_dict": weights | {"visual.proj": torch.zeros(2)}}, folder / "other.pt")
    torch.save({"state_dict": weights, "about": Trap()}, folder / "trap.pt")
    loaded = load_paper_checkpoint(folder / "random.pt", small)
    print("random file: read, equal:", all(torch.equal(w, weights[name]) for name, w in loaded.state_dict().items()))
    print("other names:", why(folder / "other.pt"))
    print("a trap:     ", why(folder / "trap.pt"))
    print("did the trap run?", (folder / "trapped").exists())

# %% [markdown]
# ## 8. Together, and what it costs
#
# `EcgCoca` holds the encoder, the text tower, the decoder and the temperature. One pass gives all that the two losses
# need, and both reach the encoder:

# %%
out = model.train()(windows[:4], model.read_texts([one.report for one in ecgs[:4]]), pieces[:4, :20])
both = {"contrastive": contrastive_loss(out.ecg, out.text, out.scale), "caption": caption_loss(out.logits, out.labels)}
for name, loss in both.items():
    model.zero_grad()
    loss.backward(retain_graph=True)
    print(f"{name:11} loss reaches the encoder:", bool(model.encoder.conv1.weight.grad.abs().max() > 0))
print("parameters trained:", f"{count_parameters(model):,}")

# %% [markdown]
# At the paper's size the same design saves work in four places: the text encoder is frozen and its states are kept, so
# it doesn't run; its weights, gradients and AdamW's two moments needn't be there (16 bytes a parameter); captions end
# where the longest of the batch ends, instead of at 77 pieces; and measured numbers, which are most of a short report's
# pieces, go their own way.
#
# **Predict:** how many times faster is a step, and how much memory does it take? The figures are recorded ones, by
# `benchmarks/coca_step.py`; each way ran in a process of its own, with the same threads and batch.

# %%
import json

from ecgchat_lib.paths import data_folder

recorded = data_folder() / "results" / "coca_step.json"
if recorded.is_file():
    steps = json.loads(recorded.read_text(encoding="utf-8"))
    print(steps["what"], "-", steps["device"])
    print("texts:", steps["texts"])
    run.show(f06.training_step, steps)
else:
    print("benchmarks/coca_step.py: not run")

# %% [markdown]
# ## Exercises
#
# ### Exercise 06.1 The contrastive loss (★★☆, 15 min)
#
# Write `my_contrastive(ecg, text, scale)` for vectors that are *not* normalized yet, both (batch, dim). Return the
# mean of the two directions.
#
# <details><summary>Hint 1</summary><code>torch.nn.functional.normalize(x, dim=1)</code> makes each row's length
# 1.</details>
# <details><summary>Hint 2</summary><code>torch.nn.functional.cross_entropy(logits, torch.arange(batch))</code> is one
# direction; the transposed logits give the other.</details>


# %% tags=["solution"]
def my_contrastive(ecg, text, scale):
    # <solution>
    ecg, text = (torch.nn.functional.normalize(x, dim=1) for x in (ecg, text))
    logits, right = scale * ecg @ text.T, torch.arange(len(ecg))
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2
    # </solution>


# %%
check("06.1", my_contrastive)

# %% [markdown]
# ### Exercise 06.2 Attention that looks back only (★★☆, 15 min)
#
# Write `causal_attention(query, key, value)` for (length, width) each: shares by softmax, division by the root of the
# width, and a mask so that place *t* takes from places 0 … *t*.
#
# <details><summary>Hint 1</summary><code>torch.full((n, n), float("-inf")).triu(1)</code> is minus infinity above the
# diagonal and 0 elsewhere.</details>
# <details><summary>Hint 2</summary>Add the mask <em>before</em> the softmax. Multiplying the shares by 0 afterwards
# leaves rows that don't add up to 1.</details>


# %% tags=["solution"]
def causal_attention(query, key, value):
    # <solution>
    length, width = query.shape
    mask = torch.full((length, length), float("-inf")).triu(1)
    return (query @ key.T / width**0.5 + mask).softmax(dim=1) @ value
    # </solution>


# %%
check("06.2", causal_attention)

# %% [markdown]
# ### Exercise 06.3 Catch a leak (★★★, 20 min)
#
# You are given a decoder as a function, `logits_of(pieces)`: (length,) ids → (length, vocabulary) logits, and the
# `pieces` of a report. Write `leaks(logits_of, pieces)`: does any piece move a logit at an earlier place? Ids go from 0
# to 29.
#
# <details><summary>Hint 1</summary>Change one piece to another id, and compare the logits <em>before</em> it. Later
# ones may move.</details>
# <details><summary>Hint 2</summary>A leak may sit at one place only, so try each piece in turn.</details>


# %% tags=["solution"]
def leaks(logits_of, pieces):
    # <solution>
    before = logits_of(pieces)
    for place in range(1, len(pieces)):
        changed = pieces.clone()
        changed[place] = (pieces[place] + 1) % 30
        if not torch.equal(logits_of(changed)[:place], before[:place]):
            return True
    return False
    # </solution>


# %%
check("06.3", leaks)

# %% [markdown]
# ## Recap
#
# - The contrastive loss is a multiple-choice question in both directions, sharpened by a temperature (exercise 06.1).
# - A causal mask keeps the future out (exercise 06.2), but only if the future isn't in the input already (section 5).
#   A few lines find a leak in any decoder (exercise 06.3).
# - Both losses equal open_clip's (section 3).
# - Measured numbers are read by an encoder of their own (section 6).
# - The original's 666 entries can be rebuilt, and its file be read without running anything from it (section 7).
#
# **What to copy.** `ecgchat_lib/coca/losses.py` needs torch alone; `coca/decoder.py` needs open_clip. `coca/paper.py`
# shows how to read weights from elsewhere. The test of the leak, `test_no_future_piece_moves_an_earlier_logit`, is
# worth copying into any captioning project.
#
# **Common errors**
#
# - *Normalizing after the similarity, or not at all.* Then long vectors win, and the temperature loses its meaning.
# - *Dividing by the scale.* The learned number is the *inverse* temperature: multiply.
# - *Labels not shifted.* The logits at place t belong to piece t + 1: `pieces[:, :-1]` goes in, `pieces[:, 1:]` is the
#   answer.
# - *A caption loss that falls far too fast.* Look for a leak before you are glad.
# - *`torch.load` on a stranger's file.* Without `weights_only=True` it runs whatever the file says.
# - *A batch of one.* There is nothing to contrast with; the contrastive loss is 0 and teaches nothing.
#
# ## References
#
# - Yu et al. 2022, CoCa: Contrastive Captioners are Image-Text Foundation Models,
#   [arXiv 2205.01917](https://arxiv.org/abs/2205.01917).
# - Radford et al. 2021, Learning Transferable Visual Models From Natural Language Supervision,
#   [arXiv 2103.00020](https://arxiv.org/abs/2103.00020).
# - Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training, [arXiv 2303.15343](https://arxiv.org/abs/2303.15343).
# - Jin et al. 2023, MedCPT, [doi:10.1093/bioinformatics/btad651](https://doi.org/10.1093/bioinformatics/btad651).
# - Tancik et al. 2020, Fourier Features Let Networks Learn High Frequency Functions (numbers as waves),
#   [arXiv 2006.10739](https://arxiv.org/abs/2006.10739).
# - Ilharco et al., OpenCLIP, [doi:10.5281/zenodo.5143773](https://doi.org/10.5281/zenodo.5143773), MIT license.
# - Reimers and Gurevych 2019, Sentence-BERT, [arXiv 1908.10084](https://arxiv.org/abs/1908.10084); all-MiniLM-L6-v2,
#   Apache-2.0.
# - Zhao et al. 2024, ECG-Chat, [arXiv 2408.08849](https://arxiv.org/abs/2408.08849).

# %%
run.finish(
    {
        "causal_loss_on_noise": float(causal[-10:].mean()),
        "leaky_loss_on_noise": float(leaky[-10:].mean()),
        "floor": float(floor),
        "mini_caption_loss": own,
        "mini_caption_loss_swapped": swapped,
        "moved_by_the_future": moved,
        "paper_entries": len(shapes),
        "paper_parameters": sum(sizes.values()),
    }
)
