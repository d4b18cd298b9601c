"""The doctor: what it says about what is missing, and that it never falls ill itself."""

from __future__ import annotations

import importlib.metadata

import pytest

from ecgchat_lib.course import doctor
from ecgchat_lib.errors import MissingPartError


def status(findings, check):
    return next(finding for finding in findings if finding.check == check)


def test_packages_are_compared_with_the_ranges(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "wfdb":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"numpy": "1.26.4"}.get(name) or real(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    found = list(doctor.packages())
    assert status(found, "numpy") == doctor.Finding(
        "numpy", "fail", "1.26.4, but >=2.0 is needed. Run: pip install 'numpy>=2.0'"
    )
    assert status(found, "wfdb").status == "fail"
    assert "pip install 'wfdb" in status(found, "wfdb").detail
    assert status(found, "scipy").status == "ok"


def test_a_missing_part_fails_only_if_the_course_needs_it(monkeypatch):
    from ecgchat_lib import models

    def resolve(name):
        raise MissingPartError(name, "not here", "Get it")

    monkeypatch.setattr(models, "resolve", resolve)
    found = list(doctor.parts())
    assert status(found, "part language-model").status == "fail"
    assert "Get it" in status(found, "part language-model").detail
    assert status(found, "part vicuna-13b").status == "ok"


def test_a_lone_torchvision_is_told(monkeypatch):
    def import_module(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor.importlib, "import_module", import_module)
    (found,) = doctor.torch_pair()
    assert found.status == "fail"
    assert "nms does not exist" in found.detail
    assert "must come as a pair" in found.detail


def test_little_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_MEMORY_GB", 1e9)
    monkeypatch.setattr(doctor, "LEAST_DISK_GB", 1e9)
    assert [finding.status for finding in doctor.memory_and_disk()] == ["warn", "warn"]


def test_a_look_that_raises_is_a_finding(monkeypatch):
    for name in ("packages", "torch_pair", "device", "kernel", "parts", "latex", "project", "memory_and_disk"):
        monkeypatch.setattr(doctor, name, lambda: iter(()))

    def broken():
        raise OSError("the disk\nis gone")
        yield

    broken.__name__ = "latex"
    monkeypatch.setattr(doctor, "latex", broken)
    assert [(f.check, f.status, f.detail) for f in doctor.examine()][1:] == [
        ("latex", "fail", "OSError: the disk is gone")
    ]


@pytest.mark.parametrize("look", [doctor.python, doctor.kernel, doctor.project, doctor.latex])
def test_here_nothing_fails(look):
    findings = list(look())
    assert findings
    assert all(finding.status in {"ok", "warn"} for finding in findings)
