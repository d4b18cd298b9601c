"""The diagnosis-driven classifier: a linear score per label on the frozen encoder's features, calibrated, thresholded.

It gives probabilities of SCP-ECG statements and of PTB-XL's classes, and writes those above their thresholds as the
prompt that the original puts before an instruction. It is supervised, so nothing of it is a zero-shot result; and it
knows no recording that it can't read (`ecg.quality` judges that). Taught in: 09.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgchat_lib.datasets.labels import (
    LABEL_SETS,
    STATEMENTS,
    Statements,
    classes_of,
    codes_of_kind,
    get_label_set,
)
from ecgchat_lib.errors import EcgChatError, MissingPartError, ParameterError
from ecgchat_lib.evaluate.calibration import best_threshold, probability, shrunk_platt
from ecgchat_lib.paths import data_folder

if TYPE_CHECKING:
    import torch

    from ecgchat_lib.coca.model import EcgCoca
    from ecgchat_lib.ecg.recording import Recording

FORMAT = "ecg-classifier-1"
WEIGHTS, MANIFEST = "classifier.safetensors", "manifest.json"
MINI_FOLDER = Path("weights") / "ecg-classifier-mini"  # inside data/
STATEMENT = "statement"
LEVELS = ("super", "sub", STATEMENT)
GROUPS: Mapping[str, str] = {"diagnostic": "Disease", "form": "Form", "rhythm": "Rhythm"}  # kind → heading
_MAX_MANIFEST = 4 << 20


@dataclass(frozen=True)
class Label:
    """One thing that the classifier tells.

    Attributes:
        level: `super` or `sub` for a class of PTB-XL, `statement` for an SCP-ECG statement.
        code: the class or the statement, such as `MI` or `1AVB`.
    """

    level: str
    code: str

    @property
    def text(self) -> str:
        """Its English name."""
        return STATEMENTS[self.code].description if self.level == STATEMENT else LABEL_SETS[self.level].names[self.code]

    @property
    def group(self) -> str | None:
        """Heading in the prompt: Disease, Form or Rhythm for a statement (its first kind), None for a class."""
        if self.level != STATEMENT:
            return None
        return next(heading for kind, heading in GROUPS.items() if kind in STATEMENTS[self.code].kinds)


def all_labels() -> tuple[Label, ...]:
    """Return every label there is: 5 superclasses, the subclasses, 71 statements (Disease, Form, Rhythm in turn)."""
    classes = [Label(level, code) for level in ("super", "sub") for code in LABEL_SETS[level].classes]
    codes = dict.fromkeys(code for kind in GROUPS for code in codes_of_kind(kind))  # four are of two kinds: once
    return (*classes, *(Label(STATEMENT, code) for code in codes))


def label_targets(labels: Sequence[Label], statements: Iterable[Statements]) -> np.ndarray:
    """Return which record has which label, bool (n, labels). A statement counts whatever its likelihood.

    Args:
        labels: the columns.
        statements: a manifest's column.
    """
    rows = []
    for cell in statements:
        codes = {code for code, _ in cell}
        has = {(level, one) for level in ("super", "sub") for one in classes_of(codes, level)}
        has |= {(STATEMENT, code) for code in codes}
        rows.append([(label.level, label.code) in has for label in labels])
    return np.array(rows, dtype=bool).reshape(-1, len(labels))


@dataclass(frozen=True)
class Heads:
    """The numbers of the classifier, float32. L labels, F features.

    Attributes:
        middle: (F,) mean of each feature in training.
        spread: (F,) its standard deviation.
        weight: (L, F) of standardized features.
        bias: (L,).
        slope: (L,) slope of the calibration; 1 is "not calibrated".
        intercept: (L,) its intercept; 0 is "not calibrated".
        threshold: (L,) a calibrated probability at or above it means yes.
    """

    middle: np.ndarray
    spread: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    slope: np.ndarray
    intercept: np.ndarray
    threshold: np.ndarray

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, np.asarray(getattr(self, item.name), dtype=np.float32))
        if self.weight.ndim != 2:
            raise ParameterError(f"the classifier's weight has shape {self.weight.shape}, expected (labels, features)")
        count, width = self.weight.shape
        for name in ("middle", "spread", "bias", "slope", "intercept", "threshold"):
            expected = (width,) if name in ("middle", "spread") else (count,)
            found = getattr(self, name).shape
            if found != expected:
                raise ParameterError(f"the classifier's {name} has shape {found}, expected {expected}")
        if not all(np.isfinite(getattr(self, item.name)).all() for item in fields(self)) or (self.spread <= 0).any():
            raise ParameterError("the classifier holds a number that is not finite, or a spread that is not above 0")

    def log_odds(self, features: np.ndarray) -> np.ndarray:
        """Return uncalibrated log-odds (n, L) of features (n, F).

        Raises:
            ParameterError: the features have another length.
        """
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or features.shape[1] != self.weight.shape[1]:
            raise ParameterError(f"the classifier reads (n, {self.weight.shape[1]}) features, got {features.shape}")
        z = (features - self.middle.astype(np.float64)) / self.spread.astype(np.float64)
        return z @ self.weight.astype(np.float64).T + self.bias.astype(np.float64)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities (n, L) of features (n, F)."""
        return probability(self.log_odds(features) * self.slope.astype(np.float64) + self.intercept.astype(np.float64))


def fit_heads(features: np.ndarray, targets: np.ndarray, *, strength: float = 0.01) -> Heads:
    """Fit one logistic regression per label on standardized features; not calibrated, thresholds at one half.

    Args:
        features: (n, F).
        targets: (n, L) booleans; each column holds both values.
        strength: inverse of the L2 penalty (scikit-learn's `C`).

    Raises:
        ParameterError: shapes don't fit, or a label is constant.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    features, targets = np.asarray(features, dtype=np.float64), np.asarray(targets, dtype=bool)
    if targets.ndim != 2 or len(features) != len(targets) or not targets.shape[1]:
        raise ParameterError(f"features {features.shape} and targets {targets.shape} don't fit")
    constant = [k for k in range(targets.shape[1]) if targets[:, k].all() or not targets[:, k].any()]
    if constant:
        raise ParameterError(f"label columns {constant} never change, so nothing can be learned. Leave them out")
    scaler = StandardScaler().fit(features)
    z = scaler.transform(features)
    models = [
        LogisticRegression(C=strength, tol=1e-6, max_iter=2000).fit(z, targets[:, k]) for k in range(targets.shape[1])
    ]
    count = len(models)
    return Heads(
        middle=scaler.mean_,
        spread=scaler.scale_,  # 1 where a feature never changes
        weight=np.concatenate([model.coef_ for model in models]),
        bias=np.concatenate([model.intercept_ for model in models]),
        slope=np.ones(count),
        intercept=np.zeros(count),
        threshold=np.full(count, 0.5),
    )


def calibrate_heads(heads: Heads, features: np.ndarray, targets: np.ndarray) -> Heads:
    """Return the heads with Platt's numbers and thresholds from records that they were not fitted on.

    A threshold maximizes F1, up to one half: for calibrated probabilities the best one is never higher (Lipton et al.
    2014, arXiv 1402.1892), so that a higher one has followed a few chance records.

    Args:
        heads: from `fit_heads`.
        features: (n, F) of validation records.
        targets: (n, L) booleans; each column holds both values.
    """
    odds = heads.log_odds(features)
    pairs = np.array([shrunk_platt(odds[:, k], targets[:, k]) for k in range(odds.shape[1])])
    known = {item.name: getattr(heads, item.name) for item in fields(heads)}
    calibrated = Heads(**known | {"slope": pairs[:, 0], "intercept": pairs[:, 1]})
    chances = calibrated.probabilities(features)
    thresholds = [min(0.5, best_threshold(targets[:, k], chances[:, k])) for k in range(odds.shape[1])]
    return Heads(**known | {"slope": pairs[:, 0], "intercept": pairs[:, 1], "threshold": thresholds})


@dataclass(frozen=True)
class Reading:
    """What the classifier says about one recording.

    Attributes:
        probabilities: statement code → calibrated probability, for each statement that it knows.
        present: the statements that it says, in the prompt's order: those at or above their thresholds, and of the
            rhythms the likeliest one.
        thresholds: statement code → the probability from which on it is said; empty where nobody knows them.
    """

    probabilities: Mapping[str, float]
    present: tuple[str, ...]
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def prompt(self) -> str:
        """Return the diagnosis-driven prompt: one line per group, "The {label} is present." for each statement."""
        lines = []
        for heading in GROUPS.values():
            said = [label.text for label in map(_statement_label, self.present) if label.group == heading]
            if said:
                lines.append(f"{heading}: " + " ".join(f"The {text} is present." for text in said))
        return "\n".join(lines)


def _statement_label(code: str) -> Label:
    return Label(STATEMENT, code)


@dataclass(frozen=True)
class DiagnosisClassifier:
    """A classifier and the encoder it was fitted on.

    Attributes:
        labels: one per row of the heads.
        heads: the numbers.
        model: the frozen ECG-CoCa whose features the heads read.
        about: what its maker wrote about it: data, license, counts, labels left out.

    Raises:
        ParameterError: the labels don't fit the heads.
    """

    labels: tuple[Label, ...]
    heads: Heads
    model: EcgCoca
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.heads.bias) or len(set(self.labels)) != len(self.labels):
            raise ParameterError(f"{len(self.labels)} labels (each once?) for {len(self.heads.bias)} rows of heads")

    def features(self, windows: torch.Tensor) -> np.ndarray:
        """Return the frozen encoder's features (n, F) of windows (n, 12, samples), in batches."""
        return window_features(windows, self.model)

    def read_features(self, features: np.ndarray) -> list[Reading]:
        """Return a reading of each row of features (n, F)."""
        chances = self.heads.probabilities(features)
        statements = [k for k, label in enumerate(self.labels) if label.level == STATEMENT]
        said = self.said(chances)
        thresholds = {self.labels[k].code: float(self.heads.threshold[k]) for k in statements}
        return [
            Reading(
                {self.labels[k].code: float(row[k]) for k in statements},
                tuple(self.labels[k].code for k in statements if yes[k]),
                thresholds,
            )
            for row, yes in zip(chances, said, strict=True)
        ]

    def said(self, probabilities: np.ndarray) -> np.ndarray:
        """Return which labels are said, bool (n, L), of calibrated probabilities (n, L).

        A label is said at or above its threshold; of the rhythms the likeliest one is said, always and alone.
        """
        said = np.asarray(probabilities >= self.heads.threshold.astype(np.float64))
        rhythms = np.array([k for k, label in enumerate(self.labels) if label.group == GROUPS["rhythm"]], dtype=int)
        if len(rhythms) and len(said):
            said[:, rhythms] = False
            said[np.arange(len(said)), rhythms[np.argmax(probabilities[:, rhythms], axis=1)]] = True
        return said

    def predict(self, recordings: Sequence[Recording]) -> list[Reading]:
        """Return a reading of each recording, of any rate and length; all go through the encoder's own front end."""
        from ecgchat_lib.coca.preprocess import recording_windows

        if not recordings:
            return []
        return self.read_features(self.features(recording_windows(recordings, self.model.config.encoder)))

    def prompt(self, recording: Recording) -> str:
        """Return the diagnosis-driven prompt of a recording; see `Reading.prompt`."""
        return self.predict([recording])[0].prompt()

    def scores(self, windows: torch.Tensor, label_set: str) -> np.ndarray:
        """Return calibrated probabilities (n, classes) of a label set; NaN for a class that it doesn't know.

        Args:
            windows: (n, 12, samples), as the front end makes them.
            label_set: `super`, `sub`, `form`, `rhythm` or `cpsc2018`.

        Raises:
            EcgChatError: the label set is unknown.
            ParameterError: none of its classes is known.
        """
        place = self.check_knows(label_set)
        classes = get_label_set(label_set).classes
        chances = self.heads.probabilities(self.features(windows))
        out = np.full((len(windows), len(classes)), np.nan)
        for column, one in enumerate(classes):
            if one in place:
                out[:, column] = chances[:, place[one]]
        return out

    def check_knows(self, label_set: str) -> dict[str, int]:
        """Return class → row of the heads for the classes of a label set that are known.

        Raises:
            EcgChatError: the label set is unknown.
            ParameterError: none of its classes is known.
        """
        level = label_set if label_set in ("super", "sub") else STATEMENT
        classes = get_label_set(label_set).classes
        place = {label.code: k for k, label in enumerate(self.labels) if label.level == level and label.code in classes}
        if not place:
            raise ParameterError(f"the classifier knows no class of the label set {label_set!r}. Score it by prompts")
        return place


def window_features(windows: torch.Tensor, model: EcgCoca) -> np.ndarray:
    """Return what the classifier reads, float32 (n, width): CLS after the last norm, before the projection."""
    from ecgchat_lib.coca.embed import raw_embeddings

    if not len(windows):
        return np.zeros((0, model.config.encoder.width), dtype=np.float32)
    return raw_embeddings(windows, model).numpy()


def fit_classifier(
    model: EcgCoca,
    train: tuple[torch.Tensor, Sequence[Statements]],
    validation: tuple[torch.Tensor, Sequence[Statements]],
    *,
    strength: float = 0.01,
    least_train: int = 20,
    least_validation: int = 3,
    about: Mapping[str, Any] | None = None,
) -> DiagnosisClassifier:
    """Fit, calibrate and set thresholds; labels with too few records are left out, and named in `about`.

    Args:
        model: the frozen encoder.
        train: windows (n, 12, samples) and statements to fit on.
        validation: others, of other patients, for calibration and thresholds. Report on neither.
        strength: inverse of the L2 penalty.
        least_train: fewest positives (and negatives) in training.
        least_validation: fewest positives (and negatives) in validation.
        about: what else the manifest should tell (data, license, seed).

    Raises:
        ParameterError: no label has enough records.
    """
    candidates = all_labels()
    train_y, validation_y = (label_targets(candidates, statements) for _, statements in (train, validation))
    left_out = _too_few(candidates, train_y, validation_y, least_train, least_validation)
    kept = [k for k, label in enumerate(candidates) if _name(label) not in left_out]
    if not kept:
        raise ParameterError(f"no label has {least_train} training and {least_validation} validation records")
    train_x, validation_x = window_features(train[0], model), window_features(validation[0], model)
    heads = calibrate_heads(
        fit_heads(train_x, train_y[:, kept], strength=strength), validation_x, validation_y[:, kept]
    )
    useless = [k for k, slope in enumerate(heads.slope) if slope <= 0]
    left_out |= {_name(candidates[kept[k]]): "its scores rank validation records the wrong way" for k in useless}
    rows = [k for k in range(len(kept)) if k not in useless]
    if not rows:
        raise ParameterError("no label's scores hold on validation. Use an encoder that was trained, and more records")
    columns = [kept[k] for k in rows]
    told = dict(about or {}) | {
        "strength": strength,
        "least": {"train": least_train, "validation": least_validation},
        "records": {"train": len(train_y), "validation": len(validation_y)},
        "positives": {
            _name(candidates[k]): {"train": int(train_y[:, k].sum()), "validation": int(validation_y[:, k].sum())}
            for k in columns
        },
        "left_out": {name: left_out[name] for name in map(_name, candidates) if name in left_out},
    }
    return DiagnosisClassifier(tuple(candidates[k] for k in columns), _rows_of(heads, rows), model, told)


def _name(label: Label) -> str:
    return f"{label.level}:{label.code}"


def _too_few(
    labels: Sequence[Label], train: np.ndarray, validation: np.ndarray, least_train: int, least_validation: int
) -> dict[str, str]:
    out: dict[str, str] = {}
    for k, label in enumerate(labels):
        for part, column, least in (
            ("training", train[:, k], least_train),
            ("validation", validation[:, k], least_validation),
        ):
            with_it, without = int(column.sum()), int((~column).sum())
            if min(with_it, without) < least:
                out.setdefault(_name(label), f"{with_it} {part} records have it, {without} don't; each takes {least}")
    return out


def _rows_of(heads: Heads, rows: Sequence[int]) -> Heads:
    by_feature = {"middle": heads.middle, "spread": heads.spread}
    by_label = {
        item.name: getattr(heads, item.name)[list(rows)] for item in fields(heads) if item.name not in by_feature
    }
    return Heads(**by_feature, **by_label)


# --- the folder


def encoder_digest(model: EcgCoca) -> str:
    """Return the sha256 of the ECG encoder's weights (names, shapes, float32 values), whatever file they came from.

    The text side may change without a change here: the classifier never reads it.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.encoder.state_dict().items()):
        array = value.detach().cpu().float().contiguous().numpy()
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.astype("<f4").tobytes())
    return digest.hexdigest()


def front_end_of(model: EcgCoca) -> dict[str, Any]:
    """Return the preprocessing that the features depend on, as JSON has it."""
    config = model.config.encoder
    names = [name for name in ("fs", "seconds", "band", "z_score", "keep_scale") if hasattr(config, name)]
    told: dict[str, Any] = json.loads(json.dumps({name: getattr(config, name) for name in names}))
    return told


def save_classifier(classifier: DiagnosisClassifier, folder: Path) -> Path:
    """Write the classifier: weights, then the manifest with labels, preprocessing, the encoder's hash and theirs.

    Args:
        classifier: from `fit_classifier`.
        folder: made if missing; other files in it are left alone. Without a manifest it is an unfinished write.
    """
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    heads = classifier.heads
    weights = save({item.name: getattr(heads, item.name) for item in fields(heads)}, {"format": FORMAT})
    _replace(folder / WEIGHTS, weights)
    manifest = {
        "format": FORMAT,
        "sha256": {WEIGHTS: hashlib.sha256(weights).hexdigest()},
        "labels": [[label.level, label.code] for label in classifier.labels],
        "encoder_sha256": encoder_digest(classifier.model),
        "front_end": front_end_of(classifier.model),
        "about": dict(classifier.about),
    }
    _replace(folder / MANIFEST, (json.dumps(manifest, indent=2, allow_nan=False) + "\n").encode())
    return folder


def load_classifier(folder: str | Path | None = None, model: EcgCoca | None = None) -> DiagnosisClassifier:
    """Read a classifier and tie it to its encoder.

    Args:
        folder: what `save_classifier` wrote; None: the course's mini, `data/weights/ecg-classifier-mini`.
        model: the encoder; None: the course's mini ECG-CoCa.

    Raises:
        MissingPartError: the folder, or a file in it, isn't there.
        EcgChatError: a hash differs, something isn't as `save_classifier` writes it, or the encoder or its front end
            is another one than the classifier was fitted on.
    """
    from ecgchat_lib.coca.checkpoint import load_mini

    place = Path(folder) if folder is not None else data_folder() / MINI_FOLDER
    manifest = _read_manifest(place)
    heads = _read_heads(place, manifest["sha256"][WEIGHTS])
    model = model if model is not None else load_mini()
    told, found = manifest["front_end"], front_end_of(model)
    if told != found:
        raise EcgChatError(
            f"{place}: the classifier was fitted behind the front end {told}, but this encoder's is {found}. "
            "Load the encoder it was fitted on, or fit it again (notebook 09)"
        )
    digest = encoder_digest(model)
    if manifest["encoder_sha256"] != digest:
        raise EcgChatError(
            f"{place}: the classifier was fitted on an encoder with sha256 {manifest['encoder_sha256'][:12]}…, but "
            f"this one has {digest[:12]}…: its features mean something else. Load the encoder it was fitted on, "
            "or fit the classifier again (notebook 09)"
        )
    try:
        return DiagnosisClassifier(
            tuple(Label(level, code) for level, code in manifest["labels"]), heads, model, manifest["about"]
        )
    except ParameterError as error:
        raise EcgChatError(f"{place}: {error}. Take the folder from the project again") from None


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise MissingPartError(
            folder.name, f"no {MANIFEST} in {folder}", "Fit it (notebook 09), or take the folder from the project"
        )
    again = "Take the folder from the project again"
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ValueError(f"{path.stat().st_size} bytes")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT
        shaped = (
            isinstance(manifest["sha256"][WEIGHTS], str)
            and isinstance(manifest["encoder_sha256"], str)
            and isinstance(manifest["front_end"], dict)
            and isinstance(manifest["about"], dict)
            and all(Label(level, code) in set(all_labels()) for level, code in manifest["labels"])
        )
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise EcgChatError(f"{path}: not a readable manifest ({type(error).__name__}: {error}). {again}") from None
    if not known:
        raise EcgChatError(f"{path}: another format than {FORMAT}. Use the library version that wrote it")
    if not shaped:
        raise EcgChatError(f"{path}: a field is not what it should be, or a label is unknown. {again}")
    return dict(manifest)


def _read_heads(folder: Path, expected: str) -> Heads:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = folder / WEIGHTS
    if not path.is_file():
        raise MissingPartError(path.name, f"not in {folder}", "Take the classifier's folder again, whole")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise EcgChatError(
            f"{path}: sha256 is {found[:12]}…, the manifest says {expected[:12]}…: the file was changed or cut off. "
            "Take it from the project again"
        )
    try:
        return Heads(**load(content))
    except (SafetensorError, TypeError, ValueError, ParameterError) as error:
        raise EcgChatError(f"{path}: not a classifier's weights ({error}). Take it from the project again") from None


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
