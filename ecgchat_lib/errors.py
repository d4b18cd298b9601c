"""Errors that a user can mend. The command line prints them as one line and exits with code 2."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text without control characters: it may come from a file, and goes to a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


class EcgChatError(Exception):
    """Something a user can mend: the message says what, where, what was found, what was expected, and the remedy."""

    exit_code = 2


class RecordError(EcgChatError):
    """A recording that can't be read: the file, what was found, what was expected, and what to do."""

    def __init__(self, path: object, found: str, remedy: str) -> None:
        self.path, self.found, self.remedy = str(path), found, remedy
        super().__init__(f"{path}: {found}. {remedy}")


class MissingPartError(EcgChatError):
    """A pretrained part, dataset or program that isn't installed: its name and how to get it."""

    def __init__(self, name: str, found: str, remedy: str) -> None:
        self.name, self.found, self.remedy = name, found, remedy
        super().__init__(f"{name}: {found}. {remedy}")


class ParameterError(EcgChatError):
    """A parameter that is unknown, of the wrong type, or out of range."""
