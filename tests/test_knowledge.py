"""The normal limits: each bound with its source, both sides of each bound, and files that say what can't be."""

from __future__ import annotations

import math

import pytest
import yaml

from ecgchat_lib.ecg.measure import Measurements
from ecgchat_lib.errors import EcgChatError, ParameterError
from ecgchat_lib.knowledge.limits import cautions, flag, flag_all, load_limits
from ecgchat_lib.paths import data_folder

NAN = math.nan


def measured(**known) -> Measurements:
    """Measurements of which only the named ones are known."""
    fields = (
        "heart_rate_bpm",
        "rr_ms",
        "rr_sd_ms",
        "pr_ms",
        "qrs_ms",
        "qt_ms",
        "qtc_ms",
        "axis_deg",
        "p_mv",
        "r_mv",
        "t_mv",
    )
    values = {name: known.pop(name, NAN) for name in fields}
    reasons = {name: "no beat was found" for name, value in values.items() if math.isnan(value)}
    return Measurements(**values, reasons=known.pop("reasons", reasons), regular=known.pop("regular", None), **known)


def test_every_bound_has_a_source_and_every_doi_is_one():
    limits = load_limits()
    assert {"heart_rate_bpm", "pr_ms", "qrs_ms", "qtc_ms", "axis_deg", "p_ms"} <= set(limits)
    for limit in limits.values():
        assert limit.why_no_limit or limit.low or limit.high
        for bound in (limit.low, limit.high, limit.extreme):
            if bound:
                assert bound.source.cite
                assert bound.source.doi is None or bound.source.doi.startswith("10.")


@pytest.mark.parametrize(
    ("field", "value", "sex", "status"),
    [
        ("heart_rate_bpm", 59, None, "low"),
        ("heart_rate_bpm", 60, None, "normal"),
        ("heart_rate_bpm", 100, None, "normal"),
        ("heart_rate_bpm", 101, None, "high"),
        ("pr_ms", 119, None, "low"),
        ("pr_ms", 200, None, "normal"),
        ("pr_ms", 200.4, None, "normal"),  # shown as 200
        ("pr_ms", 201, None, "high"),
        ("qrs_ms", 110, None, "normal"),
        ("qrs_ms", 111, None, "high"),
        ("qtc_ms", 390, "male", "low"),
        ("qtc_ms", 391, "male", "normal"),
        ("qtc_ms", 449, "male", "normal"),
        ("qtc_ms", 450, "male", "high"),
        ("qtc_ms", 459, "female", "normal"),
        ("qtc_ms", 460, "female", "high"),
        ("qtc_ms", 449, None, "normal"),
        ("qtc_ms", 455, None, "unknown"),  # high in a man, normal in a woman
        ("qtc_ms", 460, None, "high"),
        ("axis_deg", -30, None, "normal"),
        ("axis_deg", -31, None, "low"),
        ("axis_deg", -90, None, "low"),
        ("axis_deg", -91, None, "high"),
        ("axis_deg", 90, None, "normal"),
        ("axis_deg", 91, None, "high"),
        ("p_mv", 0.25, None, "normal"),
        ("p_mv", 0.26, None, "high"),
        ("p_ms", 120, None, "high"),
        ("qt_ms", 400, None, "unknown"),
        ("pr_ms", NAN, None, "unknown"),
        ("pr_ms", None, None, "unknown"),
    ],
)
def test_flag(field, value, sex, status):
    found = flag(field, value, sex=sex)
    assert found.status == status
    assert found.name in found.sentence
    assert (found.source is not None) == (status != "unknown")


def test_unknown_values_say_why_and_show_no_number():
    found = flag("pr_ms", NAN, reason="no P wave was found.")
    assert found.sentence == "PR interval not measured: no P wave was found."
    assert found.shown == "not measured"


def test_extreme_axis_is_not_called_left():
    assert "extreme" in flag("axis_deg", -120).sentence
    assert "left" in flag("axis_deg", -45).sentence
    assert "right" in flag("axis_deg", 120).sentence


def test_children_are_not_judged_by_adult_limits():
    assert flag("heart_rate_bpm", 130, age=2).status == "unknown"
    assert flag("heart_rate_bpm", 130, age=18).status == "high"


def test_ranges_name_the_last_normal_value():
    assert load_limits()["qtc_ms"].normal_range("male") == "391 to 449"
    assert load_limits()["qtc_ms"].normal_range() == "391 to 449 (men), 459 (women)"
    assert load_limits()["qrs_ms"].normal_range() == "at most 110"
    assert load_limits()["qt_ms"].normal_range() == ""


def test_flag_all_covers_what_was_measured():
    found = flag_all(measured(heart_rate_bpm=120, pr_ms=160), sex="male", age=40)
    by_field = {item.field: item for item in found}
    assert by_field["heart_rate_bpm"].status == "high"
    assert by_field["pr_ms"].status == "normal"
    assert by_field["qrs_ms"].sentence == "QRS duration not measured: no beat was found."
    assert "p_ms" not in by_field  # there is a limit, but no such measurement


def test_cautions():
    assert cautions(measured()) == ()
    fast = cautions(measured(heart_rate_bpm=120, qtc_ms=470, qrs_ms=130, regular=False))
    assert len(fast) == 3
    assert "understates" in cautions(measured(heart_rate_bpm=50, qtc_ms=400))[0]


def test_unknown_field_is_named():
    with pytest.raises(ParameterError, match=r"'st_mv'.*heart_rate_bpm"):
        flag("st_mv", 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["limits"]["pr_ms"].update(low={"above": 120, "says": "x", "source": "aha-2009-iii"}), "pr_ms.low"),
        (lambda c: c["limits"]["pr_ms"]["low"].update(below=300), "low bound is not below"),
        (lambda c: c["limits"]["pr_ms"]["low"].update(source="nobody"), "nobody"),
        (lambda c: c["limits"]["pr_ms"].update(lo=3), "lo"),
        (lambda c: c["limits"]["pr_ms"]["low"].update(below=NAN), "finite"),
        (lambda c: c["limits"]["qtc_ms"]["high"].update(at_least={"male": 450}), "one for each"),
        (lambda c: c["limits"]["qt_ms"].pop("why_no_limit"), "why_no_limit"),
        (lambda c: c.pop("sources"), "sources"),
    ],
)
def test_a_file_that_cannot_be_is_named(tmp_path, change, message):
    content = yaml.safe_load((data_folder() / "knowledge" / "limits.yml").read_text())
    change(content)
    path = tmp_path / "limits.yml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(EcgChatError, match=message) as caught:
        load_limits(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", [None, "a: [", "- 1", ""])
def test_a_missing_or_broken_file_is_named(tmp_path, text):
    path = tmp_path / "limits.yml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(EcgChatError, match=r"limits\.yml"):
        load_limits(path)
