"""Exercises of notebook 11: splice ECG tokens into a prompt, pad a batch for generation, reuse a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ecgchat_lib.course import Exercise, Misconception, expect_equal

ECG = -200

# --- 11.1 --------------------------------------------------------------------------------------------------------


def splice(ids: list[int], labels: list[int], words: Any, ecg: Any) -> tuple[Any, list[int]]:
    """Reference of 11.1: vectors (places, hidden) and labels with the ECG's vectors at its mark."""
    import torch

    place = ids.index(ECG)
    before, after = words[ids[:place]], words[ids[place + 1 :]]
    spread = [*labels[:place], *[-100] * len(ecg), *labels[place + 1 :]]
    return torch.cat([before, ecg, after]), spread


def _verify_splice(answer: Callable[..., tuple[Any, list[int]]], rng: Any) -> None:
    import torch

    for _ in range(10):
        length, count, hidden = (int(n) for n in rng.integers(4, 9, size=3))
        words, ecg = torch.randn(20, hidden), torch.randn(count, hidden)
        ids = [int(n) for n in rng.integers(0, 20, size=length)]
        ids[int(rng.integers(1, length - 2))] = ECG
        labels = [-100] * (length - 2) + ids[-2:]
        try:
            found = answer(list(ids), list(labels), words, ecg)
        except IndexError:
            raise Misconception(
                "You look up the mark -200 among the words, where there is no such row. It stands for the ECG."
            ) from None
        if not (isinstance(found, tuple) and len(found) == 2):
            raise Misconception("Return two things: the vectors and the labels.")
        vectors, expected = found[0], splice(ids, labels, words, ecg)
        what = f"{length - 1} words and {count} ECG tokens"
        if len(vectors) == length + count:
            raise Misconception(f"{what}: {length + count} places. The mark itself must go; it stands for the ECG.")
        if len(vectors) == length + count - 1 and len(found[1]) == length:
            raise Misconception(f"{what}: the labels weren't spread. Every ECG token needs one, -100.")
        expect_equal(vectors, expected[0], f"{what}, the vectors", "Are the ECG's vectors at their mark?")
        expect_equal(
            list(found[1]), expected[1], f"{what}, the labels", "Labels after the ECG must move with their words."
        )


def _mark_stays(ids: list[int], labels: list[int], words: Any, ecg: Any) -> tuple[Any, list[int]]:
    import torch

    place = ids.index(ECG)
    vectors = torch.cat([words[ids[: place + 1]], ecg, words[ids[place + 1 :]]])
    return vectors, [*labels[: place + 1], *[-100] * len(ecg), *labels[place + 1 :]]


def _labels_not_spread(ids: list[int], labels: list[int], words: Any, ecg: Any) -> tuple[Any, list[int]]:
    return splice(ids, labels, words, ecg)[0], labels


def _labels_at_the_end(ids: list[int], labels: list[int], words: Any, ecg: Any) -> tuple[Any, list[int]]:
    place = ids.index(ECG)
    return splice(ids, labels, words, ecg)[0], [*labels[:place], *labels[place + 1 :], *[-100] * len(ecg)]


# --- 11.2 --------------------------------------------------------------------------------------------------------


def pad_left(lengths: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    """Reference of 11.2: attention masks and positions of prompts that are padded on the left."""
    longest = max(lengths)
    masks = [[0] * (longest - n) + [1] * n for n in lengths]
    positions = [[0] * (longest - n) + list(range(n)) for n in lengths]
    return masks, positions


def _verify_pad(answer: Callable[..., tuple[list[list[int]], list[list[int]]]], rng: Any) -> None:
    for _ in range(10):
        lengths = [int(n) for n in rng.integers(1, 8, size=int(rng.integers(2, 5)))]
        if len(set(lengths)) == 1:
            lengths[0] += 1
        found = answer(list(lengths))
        if not (isinstance(found, tuple) and len(found) == 2):
            raise Misconception("Return two lists of lists: the masks and the positions.")
        masks, positions = ([list(row) for row in part] for part in found)
        expected = pad_left(lengths)
        if masks == [list(reversed(row)) for row in expected[0]]:
            raise Misconception(
                f"lengths {lengths}: you pad on the right. Then the last place of a short prompt is padding, and the "
                "new word would follow padding instead of the question."
            )
        expect_equal(masks, expected[0], f"lengths {lengths}, the masks", "1 for a token, 0 for padding, in front.")
        if positions == [list(range(max(lengths)))] * len(lengths):
            raise Misconception(
                f"lengths {lengths}: you count the padding. A prompt's first token is at position 0 however long its "
                "neighbors are; else the same prompt gives another answer in another batch."
            )
        expect_equal(positions, expected[1], f"lengths {lengths}, the positions", "Count tokens; padding is 0.")


def _right(lengths: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    longest = max(lengths)
    return (
        [[1] * n + [0] * (longest - n) for n in lengths],
        [list(range(n)) + [0] * (longest - n) for n in lengths],
    )


def _counts_padding(lengths: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    return pad_left(lengths)[0], [list(range(max(lengths))) for _ in lengths]


# --- 11.3 --------------------------------------------------------------------------------------------------------


def plan_turn(held: list[int], ids: list[int], ecg_tokens: int) -> tuple[int, int]:
    """Reference of 11.3: places to remove from the end of a cache, and places to read."""
    same = _agreeing(held, ids[:-1])
    return _places(held[same:], ecg_tokens), _places(ids[same:], ecg_tokens)


def _agreeing(held: list[int], ids: list[int]) -> int:
    same = 0
    while same < min(len(held), len(ids)) and held[same] == ids[same]:
        same += 1
    return same


def _places(ids: list[int], ecg_tokens: int) -> int:
    return sum(ecg_tokens if token == ECG else 1 for token in ids)


def _verify_plan(answer: Callable[..., tuple[int, int]], rng: Any) -> None:
    for number in range(24):
        ecg_tokens = int(rng.integers(2, 7))
        ids = [int(n) for n in rng.integers(0, 9, size=int(rng.integers(5, 10)))]
        ids[int(rng.integers(1, 3))] = ECG
        if number % 2:
            ids[-2] = ECG
        held = list(ids) if number == 0 else ids[: int(rng.integers(0, len(ids) + 1))]
        if number % 3 == 1:
            held = [*held, *(int(n) for n in rng.integers(10, 19, size=3))]  # an answer in other tokens
        if number % 3 == 2:
            held = list(ids)
            held[int(rng.integers(3, len(ids)))] = 99  # one token differs, and the same ones follow
        found, expected = answer(list(held), list(ids), ecg_tokens), plan_turn(held, ids, ecg_tokens)
        what = f"the cache holds {held}, the prompt is {ids}, an ECG has {ecg_tokens} tokens"
        if not (isinstance(found, tuple) and len(found) == 2):
            raise Misconception("Return two numbers: places to remove, places to read.")
        remove, read = found
        if (remove, read) != expected:
            _explain_plan((remove, read), held, ids, ecg_tokens, what)
        expect_equal(tuple(found), expected, what, "Where do the two lists first differ?")


def _explain_plan(found: tuple[int, int], held: list[int], ids: list[int], ecg_tokens: int, what: str) -> None:
    if found[1] == 0:
        raise Misconception(f"{what}: nothing is read. Without the last id's output there is no first token.")
    if found == _by_ids(held, ids, ecg_tokens):
        raise Misconception(f"{what}: you count ids. The mark -200 is one id, but takes {ecg_tokens} places.")
    if found == _by_length(held, ids, ecg_tokens):
        raise Misconception(f"{what}: you compare lengths. The ids can differ although the cache is no longer.")


def _by_ids(held: list[int], ids: list[int], ecg_tokens: int) -> tuple[int, int]:
    same = _agreeing(held, ids[:-1])
    return len(held) - same, len(ids) - same


def _by_length(held: list[int], ids: list[int], ecg_tokens: int) -> tuple[int, int]:
    same = min(len(held), len(ids) - 1)
    return _places(held[same:], ecg_tokens), _places(ids[same:], ecg_tokens)


def _reads_nothing(held: list[int], ids: list[int], ecg_tokens: int) -> tuple[int, int]:
    same = _agreeing(held, ids)
    return _places(held[same:], ecg_tokens), _places(ids[same:], ecg_tokens)


EXERCISES = (
    Exercise(
        id="11.1",
        title="splice ECG tokens into a prompt",
        difficulty=2,
        minutes=10,
        verify=_verify_splice,
        reference=splice,
        wrong=(
            ("the mark stays beside the ECG tokens", _mark_stays),
            ("the labels keep their old length", _labels_not_spread),
            ("the ECG's labels are put at the end", _labels_at_the_end),
        ),
    ),
    Exercise(
        id="11.2",
        title="pad a batch so that it can be continued",
        difficulty=2,
        minutes=10,
        verify=_verify_pad,
        reference=pad_left,
        wrong=(
            ("padding on the right, as in training", _right),
            ("positions count the padding", _counts_padding),
        ),
    ),
    Exercise(
        id="11.3",
        title="how much of a cache can stay",
        difficulty=2,
        minutes=15,
        verify=_verify_plan,
        reference=plan_turn,
        wrong=(
            ("a mark is counted as one place", _by_ids),
            ("only lengths are compared", _by_length),
            ("the last id isn't read again", _reads_nothing),
        ),
    ),
)
