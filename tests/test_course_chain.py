"""The series executed: in order with other than stored values, and each notebook alone, solved, from an empty folder.

What the stored outputs say is compared by nbval; here only results are looked at, by schema and tolerance. Slow.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ecgchat_lib.course import runner
from ecgchat_lib.course.catalog import load_catalog
from ecgchat_lib.course.results import read_results

ROOT = Path(__file__).parent.parent
CATALOG = load_catalog(ROOT)
CHAIN = yaml.safe_load((ROOT / "tests" / "chain_parameters.yml").read_text(encoding="utf-8"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def picked(metrics, path):
    """Return the metric at a dotted path of keys and places."""
    for key in path.split("."):
        metrics = metrics[int(key)] if isinstance(metrics, list) else metrics[key]
    return metrics


def test_the_chain_holds_with_other_values(tmp_path):
    settings = [f"SEED={CHAIN['seed']}"]
    for number, entry in CHAIN["notebooks"].items():
        settings += [f"{number}:{name}={value}" for name, value in entry.get("parameters", {}).items()]
    jobs = runner.plan(CATALOG, profile="ci", only=None, settings=settings, solutions=False)
    outcomes = runner.run_series(jobs, ROOT, tmp_path, keep_going=True)
    assert [(outcome.number, outcome.failed) for outcome in outcomes] == [(n.number, None) for n in CATALOG.notebooks]
    wrong = []
    for job in jobs:
        number = job.notebook.number
        content = read_results(tmp_path / "results" / f"{number}_ci.json")
        assert content["parameters"]["SEED"] == CHAIN["seed"]
        assert job.inject.items() <= content["parameters"].items()
        for name, (low, high) in CHAIN["notebooks"].get(number, {}).get("metrics", {}).items():
            value = picked(content["metrics"], name)
            if value is None or not low <= value <= high:
                wrong.append(f"{number}: {name} is {value}, not in {low}..{high}")
        for name in job.notebook.writes:
            assert (tmp_path / name).exists(), f"notebook {number} doesn't write {name}"
    assert wrong == []


@pytest.mark.parametrize("notebook", CATALOG.notebooks, ids=lambda notebook: notebook.number)
def test_a_notebook_runs_alone_and_its_solutions_pass(notebook, tmp_path):
    jobs = runner.plan(CATALOG, profile="ci", only=[notebook.number], settings=[], solutions=True)
    outcome = runner.run_one(jobs[0], ROOT, tmp_path)
    assert outcome.failed is None
    executed = json.loads((tmp_path / "executed" / f"{notebook.stem}.ipynb").read_text(encoding="utf-8"))
    told = "".join("".join(o.get("text", "")) for cell in executed["cells"] for o in cell.get("outputs", []))
    verdicts = [line for line in told.splitlines() if line.startswith("Exercise ")]
    assert len(verdicts) >= 2
    assert [line for line in verdicts if " passed: " not in line] == []
