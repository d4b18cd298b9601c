"""Four datasets in miniature: the files that their loaders read, in the published layout, with made-up patients.

Whoever has no dataset at hand can see here what its files look like, and run its loader. There are no signals in them:
load them with `require_files=False`. Names, columns, codes and spellings are those of the published files; people and
findings are invented, except for four rows of CPSC2018 (CC BY 4.0). Taught in: 02 §2.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from ecgchat_lib.errors import ParameterError

_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# subject, study, statements of the machine, p_onset (29999: the machine saw no P wave)
_MIMIC = (
    (19990001, 49990011, ("Sinus rhythm", "Possible left atrial abnormality", "Borderline ECG"), 40),
    (19990001, 49990012, ("Sinus tachycardia", "", "Normal ECG except for rate"), 40),
    (19990002, 49990023, ("Atrial fibrillation with PVC(s) or aberrant ventricular conduction.", "LBBB"), 29999),
    (19990003, 49990034, ("Sinus rhythm", "Cannot rule out septal infarct - age undetermined", "Abnormal ECG"), 44),
    (19990003, 49990035, ("Sinus rhythm", "--- Suspect arm lead reversal", "No LVH", "Normal ECG"), 38),
)

# record, age, sex, codes; the second has an empty code, as one real header does
_CHAPMAN = (
    ("JS90001", "85", "Male", "164889003,59118001,164934002"),
    ("JS90002", "59", "Female", "426177001,,164934002"),
    ("JS91003", "NaN", "Female", "164890007,39732003"),
    ("JS91004", "66", "Male", "164865005,427084000"),
)

# record, codes, patient, age, sex, samples
_SPH = (
    ("A90001", "22;23", "S90001", 55, "M", 5000),
    ("A90002", "1", "S90002", 32, "M", 6000),
    ("A90003", "145+362;22", "S90003", 53, "F", 5000),
    ("A90004", "50+346", "S90004", 71, "F", 7500),
    ("A90005", "165+332;147+367", "S90004", 72, "F", 5000),
    ("A90006", "142+312", "S90006", 47, "M", 5000),
)

# record, up to three classes from 1 to 9: as published
_CPSC2018 = (("A0001", "5", "", ""), ("A0002", "1", "", ""), ("A0043", "5", "2", ""), ("A0301", "8", "", ""))


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def _mimic_files() -> dict[str, str]:
    time = "2180-07-23 08:44:00"
    measured = ("rr_interval", "p_onset", "p_end", "qrs_onset", "qrs_end", "t_end", "p_axis", "qrs_axis", "t_axis")
    head = ("subject_id", "study_id", "cart_id", "ecg_time", *(f"report_{k}" for k in range(18)), *measured)
    machine, records = [], []
    for subject, study, said, onset in _MIMIC:
        reports = [*said, *[""] * (18 - len(said))]
        end = 29999 if onset == 29999 else 128
        axis = 29999 if onset == 29999 else 81
        machine.append((subject, study, 6848296, time, *reports, 659, onset, end, 170, 258, 518, axis, 77, 79))
        path = f"files/p{str(subject)[:4]}/p{subject}/s{study}/{study}"
        records.append((subject, study, study, time, path))
    listed = _table(("subject_id", "study_id", "file_name", "ecg_time", "path"), records)
    return {"record_list.csv": listed, "machine_measurements.csv": _table(head, machine)}


def _chapman_files() -> dict[str, str]:
    files = {}
    for name, age, sex, codes in _CHAPMAN:
        lines = [f"{name} 12 500 5000", *(f"{name}.mat 16+24 1000/mV 16 0 0 0 0 {lead}" for lead in _LEADS)]
        lines += [f"#Age: {age}", f"#Sex: {sex}", f"#Dx: {codes}", "#Rx: Unknown", "#Hx: Unknown", "#Sx: Unknown"]
        files[f"WFDBRecords/{name[2:4]}/{name[2:5]}/{name}.hea"] = "\n".join(lines) + "\n"
    return files


def _sph_files() -> dict[str, str]:
    head = ("ECG_ID", "AHA_Code", "Patient_ID", "Age", "Sex", "N", "Date")
    return {"metadata.csv": _table(head, [(*row, "2020-03-04") for row in _SPH])}


def _cpsc2018_files() -> dict[str, str]:
    head = ("Recording", "First_label", "Second_label", "Third_label")
    again = [row for row in _CPSC2018 if int(row[0][1:]) <= 300]
    return {"training_set/REFERENCE.csv": _table(head, _CPSC2018), "validation_set/REFERENCE.csv": _table(head, again)}


LAYOUTS: Mapping[str, Callable[[], dict[str, str]]] = MappingProxyType(
    {"mimic_iv_ecg": _mimic_files, "chapman": _chapman_files, "sph": _sph_files, "cpsc2018": _cpsc2018_files}
)


def write_layout(name: str, folder: str | Path) -> list[str]:
    """Write a dataset in miniature.

    Args:
        name: one of `LAYOUTS`.
        folder: made if missing; files of the same names are overwritten.

    Returns:
        The names of the files, relative to the folder, sorted.

    Raises:
        ParameterError: there is no such layout.
    """
    if name not in LAYOUTS:
        raise ParameterError(f"unknown layout {name!r}; expected one of {', '.join(LAYOUTS)}")
    files = LAYOUTS[name]()
    for relative, text in files.items():
        path = Path(folder) / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    return sorted(files)
