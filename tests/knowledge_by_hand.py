"""GraphRAG by hand, in plain dicts: what `ecgchat_lib.knowledge.graph` does with networkx. Notebook 14 teaches this."""

import math
import random
import re
from functools import cache

LEAD = "(?:aV[RLF]|V[1-9]R?|I{1,3})"


@cache
def spaced(text):
    return " " + " ".join(re.findall(r"[^\W_]+", text)) + " "


def says(text, names):
    """Is one of the names in the text, as whole words? Short ones count only as they are written."""
    for name in names:
        words, here = spaced(name), spaced(text)
        if len(name) > 3:
            words, here = words.lower(), here.lower()
        if words.strip() and (words in here or words[:-1] + "s " in here):
            return True
    return False


def leads(text):
    found = set(re.findall(r"\b(?:aV[RLF]|V[1-9]R?)\b", text))
    between = r"(?:\s*,\s*(?:and\s+|or\s+)?|\s+(?:and|or|to|through)\s+|\s*[-–]\s*)"
    for match in re.finditer(rf"\b[Ll]eads?\s+({LEAD}(?:{between}{LEAD})*)\b", text):
        found.update(re.findall(LEAD, match[1]))
    for first, last in re.findall(r"\bV([1-9])\s*(?:-|–|to|through)\s*V([1-9])\b", text):
        found.update(f"V{number}" for number in range(int(first), int(last) + 1))
    return found


def entities(text, entries, terms):
    found = [f"lead:{lead}" for lead in leads(text)]
    found += [f"entry:{e.id}" for e in entries.values() if says(text, e.names)]
    found += [f"{kind}:{name}" for kind in terms for name, ways in terms[kind].items() if says(text, ways)]
    return sorted(found)


def make_graph(entries, terms, passage):
    """Return node → {neighbor: weight}."""
    edges, holders = {}, {}
    for entry in entries.values():
        here = f"entry:{entry.id}"
        facts = [f"kind:{entry.kind}", f"urgency:{entry.urgency}", *(f"source:{c.cite}" for c in entry.citations)]
        for other in [f"entry:{name}" for name in entry.related] + entities(passage(entry), entries, terms):
            if other.startswith("entry:") and other != here:
                pair = tuple(sorted((here, other)))
                edges[pair] = edges.get(pair, 0.0) + 1.0
            elif not other.startswith(("entry:", "urgency:")):
                facts.append(other)
        for fact in facts:
            holders.setdefault(fact, set()).add(here)
    for fact, having in holders.items():
        rare = math.log(len(entries) / len(having)) / math.log(len(entries))
        edges.update({(here, fact): rare for here in having if rare > 0})
    nodes = {f"entry:{name}" for name in entries} | {node for pair in edges for node in pair}
    graph = {node: {} for node in sorted(nodes)}
    for (one, other), weight in sorted(edges.items()):
        graph[one][other] = graph[other][one] = weight
    return graph


def modularity(graph, groups):
    m = sum(sum(near.values()) for near in graph.values()) / 2
    total = 0.0
    for group in map(set, groups):
        inside = sum(weight for node in group for other, weight in graph[node].items() if other in group) / 2
        degree = sum(sum(graph[node].values()) for node in group)
        total += inside / m - (degree / (2 * m)) ** 2
    return total


def louvain(graph, seed=7):
    """Move node by node to where modularity gains most; then make each group one node, and begin again."""
    shuffle = random.Random(seed).shuffle
    groups, graph = {node: [node] for node in graph}, {node: dict(near) for node, near in graph.items()}
    loops = dict.fromkeys(graph, 0.0)  # weight of the edges inside what is now one node
    m = sum(sum(near.values()) for near in graph.values()) / 2
    while True:
        degree = {node: sum(near.values()) + 2 * loops[node] for node, near in graph.items()}
        home = {node: number for number, node in enumerate(graph)}
        total = list(degree.values())
        order, moved, ever = list(graph), True, False
        shuffle(order)
        while moved:
            moved = False
            for node in order:
                old, weights = home[node], {}
                for other, weight in graph[node].items():
                    weights[home[other]] = weights.get(home[other], 0.0) + weight
                total[old] -= degree[node]
                leave = -weights.get(old, 0.0) / m + total[old] * degree[node] / (2 * m**2)
                best, most = old, 0.0
                for new, weight in weights.items():
                    gain = leave + weight / m - total[new] * degree[node] / (2 * m**2)
                    if gain > most:
                        best, most = new, gain
                total[best] += degree[node]
                if best != old:
                    home[node], moved, ever = best, True, True
        if not ever:
            return sorted((sorted(group) for group in groups.values()), key=lambda group: (-len(group), group))
        names = sorted(set(home.values()))
        merged, inside = {name: {} for name in names}, dict.fromkeys(names, 0.0)
        seen = set()
        for node, near in graph.items():
            inside[home[node]] += loops[node]
            seen.add(node)
            for other, weight in near.items():
                if other in seen:
                    continue
                one, two = home[node], home[other]
                if one == two:
                    inside[one] += weight
                else:
                    merged[one][two] = merged[two][one] = merged[one].get(two, 0.0) + weight
        groups = {name: [each for node in graph if home[node] == name for each in groups[node]] for name in names}
        graph, loops = merged, inside


def summary(graph, members, entries, most=4):
    weight = {node: sum(w for other, w in graph[node].items() if other in members) for node in members}
    nodes = sorted((n for n in members if n.startswith("entry:")), key=lambda n: (-round(weight[n], 9), n))
    ids = [node[6:] for node in nodes]
    return ids, " ".join(f"{entries[name].title}: {entries[name].statement}" for name in ids[:most])


def walk(graph, start, damping, steps=60):
    """Return each node's share of a walker's time who begins again at `start` with probability 1 - damping."""
    whole = sum(start.values())
    start = {node: start.get(node, 0.0) / whole for node in graph}
    share = dict(start)
    for _ in range(steps):
        stuck = sum(share[node] for node in graph if not graph[node])
        after = {node: (1 - damping + damping * stuck) * start[node] for node in graph}
        for node, near in graph.items():
            degree = sum(near.values())
            for other, weight in near.items():
                after[other] += damping * share[node] * weight / degree
        share = after
    return {node[6:]: value for node, value in share.items() if node.startswith("entry:")}
