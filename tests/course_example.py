"""A course of two small notebooks in a folder of its own, for the tests of the machinery."""

from __future__ import annotations

from pathlib import Path

SOURCE = '''\
# %% tags=["parameters"]
PROFILE = "ci"  # which machine the sizes are for: ci|cpu|t4|h100
SEED = 7  # seed of every random draw, 0..2147483647
POINTS = 50  # points drawn, 2..1000

# %% tags=["setup"]
from ecgchat_lib.course import FigureResult, figure, start

run = start("01", globals())

# %% [markdown]
# ## 1. A wave
#
# One turn of $\\sin(2\\pi t)$.

# %%
import numpy as np

t = np.linspace(0, 1, POINTS)
wave = np.sin(2 * np.pi * t)
print(f"{POINTS} points, the highest is {wave.max():.2f}; the seed is {SEED}")


# %%
@figure("01.1", "One turn of a sine.")
def one_wave(t, wave):
    from matplotlib import pyplot as plt

    drawn, axes = plt.subplots(figsize=(4, 2))
    axes.plot(t, wave)
    axes.set(xlabel="time (s)", ylabel="amplitude (mV)")
    return FigureResult(drawn, f"A sine of {len(t)} points between {wave.min():.1f} and {wave.max():.1f} mV.", wave)


run.show(one_wave, t, wave)

# %% [markdown]
# ### Exercise

# %% tags=["solution"]
def double(x):
    """Return twice x."""
    # <solution>
    y = 2 * x
    return y
    # </solution>

# %%
print(double(3))

# %%
path = run.artefact("wave.npy", lambda path: np.save(path.open("wb"), wave), points=POINTS)
run.finish({"highest": wave.max(), "unknown": float("nan"), "points": np.int64(POINTS)})
'''

ENTRY = """\
  - number: "{number}"
    slug: {slug}
    title: A wave
    promise: One turn of a sine, drawn.
    figure: "01.1"
    goals:
      - text: Draw a sine
        check: "§1"
      - text: Double a number
        check: "01.1"
      - text: Keep a file
        check: "§1"
    builds: [a sine]
    needs:
      - what: Python
        why: it is written in it
    prerequisites: [{before}]
    writes: [artefacts/wave.npy]
    packages: [numpy, matplotlib]
"""


def make_course(root: Path, source: str = SOURCE, repository: str = "null") -> Path:
    """Write the course into `root` and return it. Notebook 02 is 01 with another number."""
    (root / "notebooks" / "py").mkdir(parents=True)
    (root / "figures").mkdir()
    entries = ENTRY.format(number="01", slug="wave", before="") + ENTRY.format(number="02", slug="again", before='"01"')
    head = f"title: Waves\nrepository: {repository}\nnotebooks:\n"
    (root / "course.yml").write_text(head + entries, encoding="utf-8")
    (root / "notebooks" / "py" / "01_wave.py").write_text(source, encoding="utf-8")
    (root / "notebooks" / "py" / "02_again.py").write_text(source.replace('"01"', '"02"'), encoding="utf-8")
    return root
