"""Normal limits of an adult's resting ECG: what is low, normal or high, and which document says so.

The numbers are data (`data/knowledge/limits.yml`), read and checked here; no limit is written in code. This is a
lookup, not a diagnosis: a flag says on which side of a published limit one number lies.

Taught in: 13 §2
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.paths import data_folder

if TYPE_CHECKING:
    from ecgchat_lib.ecg.measure import Measurements

Status = Literal["low", "normal", "high", "unknown"]
SEXES = ("female", "male")
_SIDES: dict[str, tuple[str, bool]] = {  # word in the file → (direction, is the bound's own value already out?)
    "below": ("low", False),
    "at_most": ("low", True),
    "above": ("high", False),
    "at_least": ("high", True),
}


@dataclass(frozen=True)
class Source:
    """The document that states a limit."""

    cite: str
    doi: str | None

    def __str__(self) -> str:
        return f"{self.cite}, doi {self.doi}" if self.doi else self.cite


@dataclass(frozen=True)
class Bound:
    """One side of a limit, for each sex, in the limit's unit."""

    by_sex: Mapping[str, float]  # "female" and "male"
    inclusive: bool  # the bound's own value is already out
    says: str  # what a value beyond it is called
    source: Source

    def value(self, sex: str | None) -> float | None:
        """Return the bound for this sex; for an unknown sex only if both sexes share it."""
        if sex in SEXES:
            return self.by_sex[sex]
        values = set(self.by_sex.values())
        return values.pop() if len(values) == 1 else None


@dataclass(frozen=True)
class Limit:
    """The normal range of one measurement; a side without a published bound is None."""

    field: str
    name: str
    unit: str
    decimals: int
    low: Bound | None
    high: Bound | None
    extreme: Bound | None  # the axis only: beyond it, "left" is no longer the word
    why_no_limit: str | None

    def normal_range(self, sex: str | None = None) -> str:
        """Return the normal values in words, such as "60 to 100" or "at most 0.25"; "" if there is no limit."""
        low, high = (self._last_normal(bound, sex) for bound in (self.low, self.high))
        if low and high:
            return f"{low} to {high}"
        return f"at least {low}" if low else f"at most {high}" if high else ""

    def _last_normal(self, bound: Bound | None, sex: str | None) -> str:
        """Return the last value inside the bound, for both sexes where they differ and the sex isn't known."""
        if bound is None:
            return ""
        step = (10.0**-self.decimals if bound.inclusive else 0.0) * (-1 if bound is self.high else 1)
        edge = bound.value(sex)
        if edge is not None:
            return self.show(edge + step)
        return f"{self.show(bound.by_sex['male'] + step)} (men), {self.show(bound.by_sex['female'] + step)} (women)"

    def show(self, value: float) -> str:
        """Return the number as it is shown, without its unit."""
        return f"{value:.{self.decimals}f}"


@dataclass(frozen=True)
class Flag:
    """One measurement against its limit."""

    field: str
    name: str
    unit: str
    value: float  # NaN if unknown
    shown: str  # the number as text, "not measured" if unknown
    normal: str  # the normal range as text, "" if none
    status: Status
    sentence: str
    source: Source | None


def load_limits(path: Path | None = None) -> dict[str, Limit]:
    """Read and check the limits.

    Args:
        path: a YAML file like `data/knowledge/limits.yml`, which is the default.

    Returns:
        Field name (as in `ecg.measure.Measurements`) → limit, in the file's order.

    Raises:
        EcgChatError: the file is missing or says something that can't be; the message names the entry.
    """
    return dict(_read(path or data_folder() / "knowledge" / "limits.yml")[0])


def adult_from_years(path: Path | None = None) -> float:
    """Return the age in years from which the limits hold."""
    return _read(path or data_folder() / "knowledge" / "limits.yml")[1]


def is_child(age: float | None) -> bool:
    """Whether somebody of this age (years; None if unknown) is too young for the limits."""
    return age is not None and age < adult_from_years()


@lru_cache(maxsize=8)
def _read(path: Path) -> tuple[dict[str, Limit], float]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise EcgChatError(f"{path}: can't be read as YAML ({error}). Restore the file from the project.") from error
    try:
        sources = {key: Source(str(s["cite"]), s["doi"]) for key, s in content["sources"].items()}
        limits = {key: _limit(key, entry, sources) for key, entry in content["limits"].items()}
        return limits, float(content["adult_from_years"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EcgChatError(
            f"{path}: {type(error).__name__}: {error}. "
            "Expected adult_from_years, sources (cite, doi) and limits (name, unit, decimals, low, high)."
        ) from error


def _limit(field: str, entry: dict[str, Any], sources: dict[str, Source]) -> Limit:
    known = {"name", "unit", "decimals", "low", "high", "extreme", "why_no_limit"}
    if unknown := set(entry) - known:
        raise ValueError(f"{field}: unknown keys {sorted(unknown)}")
    low = _bound(field, "low", entry.get("low"), sources)
    high = _bound(field, "high", entry.get("high"), sources)
    why = entry.get("why_no_limit")
    if (low is None and high is None) != bool(why):
        raise ValueError(f"{field}: give either bounds or why_no_limit")
    if low and high and any(low.by_sex[sex] >= high.by_sex[sex] for sex in SEXES):
        raise ValueError(f"{field}: the low bound is not below the high bound")
    extreme = _bound(field, "low", entry.get("extreme"), sources)
    return Limit(field, str(entry["name"]), str(entry["unit"]), int(entry["decimals"]), low, high, extreme, why)


def _bound(field: str, side: str, entry: dict[str, Any] | None, sources: dict[str, Source]) -> Bound | None:
    if entry is None:
        return None
    words = [word for word in _SIDES if word in entry]
    if len(words) != 1 or _SIDES[words[0]][0] != side or set(entry) != {words[0], "says", "source"}:
        raise ValueError(f"{field}.{side}: expected one of {[w for w, (s, _) in _SIDES.items() if s == side]}")
    number = entry[words[0]]
    by_sex = number if isinstance(number, dict) else dict.fromkeys(SEXES, number)
    if set(by_sex) != set(SEXES):
        raise ValueError(f"{field}.{side}: expected a number, or one for each of {SEXES}")
    by_sex = {sex: float(value) for sex, value in by_sex.items()}
    if not all(math.isfinite(value) for value in by_sex.values()):
        raise ValueError(f"{field}.{side}: not a finite number")
    return Bound(by_sex, _SIDES[words[0]][1], str(entry["says"]), sources[entry["source"]])


def _beyond(value: float, bound: Bound | None, sex: str | None, sign: int) -> bool | None:
    """Whether the value lies beyond the bound (sign -1 below, +1 above); None if that depends on an unknown sex."""
    if bound is None:
        return False
    found = {
        sign * (value - edge) > 0 or (bound.inclusive and value == edge)
        for edge in ([bound.by_sex[sex]] if sex in SEXES else bound.by_sex.values())
    }
    return found.pop() if len(found) == 1 else None


def flag(
    field: str, value: float | None, *, sex: str | None = None, age: float | None = None, reason: str | None = None
) -> Flag:
    """Compare one measurement with its normal limits.

    Args:
        field: name as in `ecg.measure.Measurements`, such as "qtc_ms".
        value: in the limit's unit; NaN or None if unknown.
        sex: "female", "male" or None; only QTc needs it.
        age: years or None; below adult age nothing is flagged, because the limits are those of adults.
        reason: why the value is unknown, said in the sentence.

    Returns:
        The flag, with the sentence for the report and the document behind it.

    Raises:
        ParameterError: there is no entry for the field.
    """
    limits = load_limits()
    if field not in limits:
        raise ParameterError(f"no limits for '{field}': expected one of {', '.join(limits)}")
    limit = limits[field]
    number = math.nan if value is None else float(value)
    measured = math.isfinite(number)
    shown = limit.show(number) if measured else "not measured"
    # What is judged is the number as shown, so that "200 ms: long" can't stand beside "120 to 200".
    status, text, source = _judge(limit, float(shown) if measured else math.nan, sex, age, reason)
    sentence = f"{limit.name} {shown}{f' {limit.unit}' if measured else ''}: {text}."
    normal = "" if is_child(age) else limit.normal_range(sex)
    return Flag(field, limit.name, limit.unit, number, shown, normal, status, sentence, source)


def _judge(
    limit: Limit, value: float, sex: str | None, age: float | None, reason: str | None
) -> tuple[Status, str, Source | None]:
    if not math.isfinite(value):
        return "unknown", (reason or "no reason given").rstrip(". "), None
    if limit.why_no_limit:
        return "unknown", limit.why_no_limit, None
    if is_child(age):
        return "unknown", "not judged, because the limits are those of adults", None
    if limit.extreme and _beyond(value, limit.extreme, sex, -1):
        return "high", limit.extreme.says, limit.extreme.source
    sides: tuple[tuple[Status, Bound | None, int], ...] = (("low", limit.low, -1), ("high", limit.high, 1))
    for status, bound, sign in sides:
        beyond = _beyond(value, bound, sex, sign)
        if beyond is None:
            return "unknown", "the limit differs between men and women, and the sex isn't recorded", None
        if beyond and bound is not None:
            return status, bound.says, bound.source
    bound = limit.high or limit.low
    return "normal", "within normal limits", bound.source if bound else None


def flag_all(measurements: Measurements, *, sex: str | None = None, age: float | None = None) -> tuple[Flag, ...]:
    """Flag every measurement that has an entry in the limits, in the file's order.

    Args:
        measurements: `ecg.measure.Measurements`.
        sex: "female", "male" or None.
        age: years or None.

    Returns:
        One flag for each known field, the unmeasured ones included.
    """
    return tuple(
        flag(field, measurements.judged(field), sex=sex, age=age, reason=measurements.reasons.get(field))
        for field in load_limits()
        if hasattr(measurements, field)
    )


def cautions(measurements: Measurements) -> tuple[str, ...]:
    """Return sentences about measurements that have to be read with care.

    Source: Rautaharju et al. 2009 (part IV), on rate correction: none while RR intervals vary greatly, Bazett's formula
    overcorrects at fast and undercorrects at slow rates, and a wide QRS lengthens QT by itself.
    """
    rate, qtc, qrs = measurements.heart_rate_bpm, measurements.qtc_ms, measurements.widest_qrs_ms
    if not math.isfinite(qtc):
        return ()
    found = []
    if measurements.regular is False:
        found.append("QTc is uncertain, because the rhythm is irregular.")
    if rate > 90:
        found.append("Bazett's formula overstates QTc at this fast heart rate.")
    elif rate < 60:
        found.append("Bazett's formula understates QTc at this slow heart rate.")
    if qrs > 120:
        found.append("The wide QRS lengthens QTc by itself.")
    return tuple(found)
