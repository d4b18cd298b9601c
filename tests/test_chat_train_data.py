"""Conversations from a file: read when drawn, packed by ECG, and every fault named by its line."""

import json

import pytest
import torch
from tiny_chat import ECG_TOKENS, random_ecg, tiny_chat

from ecgchat_lib.chat.batches import content_hash, sequence_lengths
from ecgchat_lib.chat.data import ConversationFile
from ecgchat_lib.chat.template import ECG_ID, encode_conversation, pack
from ecgchat_lib.chat.train import TrainConfig, train_projector
from ecgchat_lib.errors import EcgChatError, MissingPartError


def item(name, ecg, *turns, start="<ecg>\nMeasured: rate 72.\n"):
    lines = []
    for number, (question, answer) in enumerate(turns):
        lines.append({"from": "human", "value": (start if number == 0 else "") + question})
        lines.append({"from": "gpt", "value": answer})
    return {"id": name, "ecg": ecg, "conversations": lines}


ITEMS = [
    item("a", "one", ("Is it normal?", "Yes.")),
    item("b", "one", ("Is it odd?", "No.")),
    item("c", "one", ("Is it fast?", "No."), ("And slow?", "No, 72.")),
    item("d", "one", ("Is it normal?", "Yes."), start="<ecg>\n"),
    item("e", "two", ("Is it normal?", "No.")),
    item("f", ["one", "two"], ("What changed?\n<ecg>", "Nothing."), start="<ecg>\n"),
]


def write(folder, items=ITEMS, text=None):
    for name in ("one", "two"):
        (folder / f"{name}.hea").write_text("")
    path = folder / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, items)) + "\n" if text is None else text)
    return path


def opened(path, **options):
    chat = tiny_chat()
    return ConversationFile(path, chat.tokenizer, chat.template, **options)


def test_sequences_are_the_encoded_lines(tmp_path):
    chat = tiny_chat()
    found = opened(write(tmp_path))
    assert len(found) == len(ITEMS)
    for example, one in zip(found, ITEMS, strict=True):
        assert example.encoded == encode_conversation(one, chat.tokenizer, chat.template)
    assert found.content == content_hash(list(found))
    assert [path.name for path in found.recordings] == ["one", "two"]
    assert [example.ecg for example in found] == [(0,), (0,), (0,), (0,), (1,), (0, 1)]
    assert found.measured == pytest.approx(4 / 6)
    assert found[1:3] == [found[1], found[2]]
    assert sequence_lengths(found, ECG_TOKENS) == sequence_lengths(list(found), ECG_TOKENS)


def test_consecutive_lines_about_one_ecg_become_a_tree(tmp_path):
    chat = tiny_chat()
    found = opened(write(tmp_path), together=2)
    coded = [encode_conversation(one, chat.tokenizer, chat.template) for one in ITEMS]
    assert found[0].encoded == pack(coded[:2])
    assert [len(example.ecg) for example in found] == [1, 1, 1, 1, 2]
    assert all(example.encoded.ids.count(ECG_ID) == len(example.ecg) for example in found)
    assert found[3].encoded == coded[4]
    assert len(opened(write(tmp_path), together=9)) == 4
    assert found.content == content_hash(list(found))


def test_the_original_s_list_reads_the_same(tmp_path):
    lines = list(opened(write(tmp_path)))
    assert list(opened(write(tmp_path, text=json.dumps(ITEMS)))) == lines


def test_a_file_trains_like_the_list_of_its_examples(tmp_path):
    found = opened(write(tmp_path))
    losses = []
    for examples in (found, list(found)):
        chat = tiny_chat()
        config = TrainConfig(steps=3, batch=2, learning_rate=1e-2, group_lengths=True)
        losses.append(train_projector(chat, examples, random_ecg(2), config))
    assert losses[0] == losses[1]
    assert all(torch.isfinite(torch.tensor(losses[0])))


def broken(number, **changes):
    items = [dict(one) for one in ITEMS]
    items[number] |= changes
    return "\n".join(map(json.dumps, items))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no conversation in it"),
        ("\n\n", "no conversation in it"),
        (json.dumps(ITEMS[0]) + "\n{", "line 2: no JSON"),
        (json.dumps(ITEMS[0]) + "\n" + "[" * 100_000, "line 2: no JSON"),
        ("[1", "no JSON"),
        (broken(2, id="a"), "line 3: the id 'a' stands twice"),
        (broken(4, ecg="nobody"), "line 5: the recording 'nobody' is neither in"),
        (broken(1, ecg=7), "line 2: .*'ecg' is 7"),
        (broken(3, conversations=[]), "line 4: .*expected a list of human and gpt turns"),
        (broken(0, conversations=ITEMS[0]["conversations"] * 2), "line 1: "),
        (json.dumps(item("x", "one", ("Hi <|im_end|>?", "Yes."))), "line 1: .*chat mark"),
        (json.dumps("text"), "line 1: .*expected a dict"),
    ],
)
def test_faults_are_named_by_line(tmp_path, text, message):
    with pytest.raises(EcgChatError, match=message):
        opened(write(tmp_path, text=text))


def test_lines_of_absurd_length_and_missing_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(MissingPartError, match="no such file"):
        opened(tmp_path / "nothing.jsonl")
    monkeypatch.setattr("ecgchat_lib.chat.data.LONGEST_LINE", 50)
    with pytest.raises(EcgChatError, match="line 1: longer than 50 bytes"):
        opened(write(tmp_path))


def test_recordings_are_looked_for_in_root(tmp_path):
    (tmp_path / "records").mkdir()
    for name in ("one", "two"):
        (tmp_path / "records" / f"{name}.hea").write_text("")
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, ITEMS)))
    found = opened(path, root=tmp_path / "records")
    assert found.recordings[0] == tmp_path / "records" / "one"
