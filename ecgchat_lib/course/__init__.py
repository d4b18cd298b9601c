"""The machinery of the notebooks: parameters, profiles, figures, exercises, building and running.

A notebook imports `start` and `check`; modules of figures and exercises import `figure`, `FigureResult`, `Exercise`
and `Misconception`. It isn't about ECGs, and nothing here imports torch. Explained in `docs/how_the_course_works.md`.
"""

from ecgchat_lib.course.check import Exercise, Misconception, check, expect_equal
from ecgchat_lib.course.figure import FigureResult, figure
from ecgchat_lib.course.run import Run, start

__all__ = ["Exercise", "FigureResult", "Misconception", "Run", "check", "expect_equal", "figure", "start"]
