"""The parameters of a notebook: read from its tagged cell, checked, and filled in from a profile.

A parameter is one line `NAME = literal  # help, low..high` or `NAME = literal  # help: a|b|c`. Nothing is evaluated
but literals. The same functions serve the running notebook (`start`) and the runner, so both refuse the same things.
Taught in: nowhere; this is machinery.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ecgchat_lib.errors import ParameterError

PROFILES_FOLDER = Path(__file__).parent / "profiles"
READ_BY_START = {"PROFILE", "SEED"}  # start() reads these two, whatever else the notebook does with them

Value = bool | int | float | str

_LINE = re.compile(r"^([A-Z][A-Z0-9_]*) = (.+?)  # (.+)$")
_NUMBER = r"[-+]?(?:\d[\d_]*\.?\d*(?:[eE][-+]?\d+)?|inf)"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})")
_CHOICES = re.compile(r"(?:^|[\s:,])([\w.\-]+(?:\|[\w.\-]+)+)")


@dataclass(frozen=True)
class Parameter:
    """One parameter: its default (which fixes its type), what it is, and the values it may take."""

    name: str
    default: Value
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def checked(self, value: object, where: str) -> Value:
        """Return `value` as this parameter's type (an int is accepted for a float).

        Raises:
            ParameterError: wrong type, out of range, or not one of the choices.
        """
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, bool | int | float | str) or type(value) is not kind:
            raise ParameterError(f"{where}: {self.name} = {value!r} is {type(value).__name__}, not {kind.__name__}")
        if self.low is not None and self.high is not None and not self.low <= float(value) <= self.high:
            raise ParameterError(f"{where}: {self.name} = {value!r} is outside {self.low:g}..{self.high:g}")
        if self.choices and value not in self.choices:
            raise ParameterError(f"{where}: {self.name} = {value!r} is not one of {', '.join(self.choices)}")
        return value

    def parsed(self, text: str, where: str) -> Value:
        """Return the value written as `text` on a command line; text needs no quotes for a str parameter."""
        if isinstance(self.default, str):
            return self.checked(text, where)
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        except (ValueError, SyntaxError):
            value = text
        return self.checked(value, where)


def read_parameters(cell: str, where: str) -> dict[str, Parameter]:
    """Return the parameters declared in the source of a parameters cell, in order.

    Raises:
        ParameterError: a line isn't `NAME = literal  # help`, or `PROFILE` isn't first.
    """
    found: dict[str, Parameter] = {}
    for line in cell.splitlines():
        if not line.strip() or line.startswith("# "):
            continue
        parameter = _read_line(line, where)
        if parameter.name in found:
            raise ParameterError(f"{where}: {parameter.name} is set twice in the parameters cell")
        found[parameter.name] = parameter
    if list(found)[:2] != ["PROFILE", "SEED"]:
        raise ParameterError(f"{where}: the parameters cell must begin with PROFILE and SEED")
    return found


def _read_line(line: str, where: str) -> Parameter:
    match = _LINE.match(line)
    try:
        if match is None:
            raise ValueError
        name, literal, text = match.groups()
        default = ast.literal_eval(literal)
        if type(default) not in (bool, int, float, str):
            raise ValueError
    except (ValueError, SyntaxError):
        raise ParameterError(f"{where}: '{line}' isn't NAME = number, text, True or False  # what it is") from None
    span, choices = _RANGE.search(text), _CHOICES.search(text)
    if isinstance(default, (int, float)) and not isinstance(default, bool) and span is None:
        raise ParameterError(f"{where}: {name} needs a range low..high in its comment")
    low, high = (float(span[1].replace("_", "")), float(span[2].replace("_", ""))) if span else (None, None)
    if isinstance(default, (bool, str)):
        low = high = None
    options = tuple(choices[1].split("|")) if choices and isinstance(default, str) else ()
    parameter = Parameter(name, default, text, low, high, options)
    parameter.checked(default, where)
    return parameter


def unread(names: Iterable[str], cells: Iterable[str]) -> list[str]:
    """Return the parameters that none of the code cells (the parameters cell left out) reads."""
    read = set(READ_BY_START)
    for cell in cells:
        plain = "\n".join(line for line in cell.splitlines() if not line.lstrip().startswith(("%", "!")))
        nodes = ast.walk(ast.parse(plain))
        read |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return [name for name in names if name not in read]


@cache
def load_profile(name: str) -> dict[str, Any]:
    """Return a profile: `machine`, `network`, `threads`, and `notebooks` (number → parameter values).

    Raises:
        ParameterError: there is no such profile.
    """
    path = PROFILES_FOLDER / f"{name}.yml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in PROFILES_FOLDER.glob("*.yml")))
        raise ParameterError(f"PROFILE = {name!r} is not a profile; there are: {known}")
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def profile_values(profile: str, number: str, parameters: Mapping[str, Parameter]) -> dict[str, Value]:
    """Return the values that a profile sets for one notebook.

    Raises:
        ParameterError: the profile sets a parameter that the notebook doesn't have, or to a value it can't take.
    """
    values = load_profile(profile)["notebooks"].get(number) or {}
    where = f"profile {profile}, notebook {number}"
    _refuse_unknown(values, parameters, where)
    return {name: parameters[name].checked(value, where) for name, value in values.items()}


def resolve(
    number: str, parameters: Mapping[str, Parameter], given: Mapping[str, object], explicit: Iterable[str] = ()
) -> dict[str, Value]:
    """Return the value of each parameter: as given if it differs from the default or is `explicit`, else the profile's.

    Args:
        number: the notebook's number, for the profile and for messages.
        parameters: the declared ones, from `read_parameters`.
        given: values by name; missing names have their defaults.
        explicit: names whose given value holds even where it equals the default.

    Raises:
        ParameterError: a name is unknown, or a value has the wrong type or is out of range.
    """
    where = f"notebook {number}"
    _refuse_unknown(given, parameters, where)
    values = {name: p.checked(given.get(name, p.default), where) for name, p in parameters.items()}
    kept = set(explicit) | {name for name, p in parameters.items() if values[name] != p.default}
    from_profile = profile_values(str(values["PROFILE"]), number, parameters)
    return values | {name: value for name, value in from_profile.items() if name not in kept}


def _refuse_unknown(given: Iterable[str], parameters: Mapping[str, Parameter], where: str) -> None:
    for name in given:
        if name not in parameters:
            raise ParameterError(f"{where}: there is no parameter {name}; it has {', '.join(parameters)}")
