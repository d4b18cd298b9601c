"""The library of the ECG-Chat course: from a 12-lead recording to an answered question and a report.

Rooms, in the order in which data passes through them: `ecg`, `datasets`, `augment`, `coca`, `evaluate`, `instruct`,
`knowledge`, `chat`, `report`; `course` is the machinery of the notebooks. A room imports from earlier rooms only.
"""

__version__ = "0.1.0"
