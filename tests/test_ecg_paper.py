from __future__ import annotations

import io
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.marks import WaveMarks
from ecgchat_lib.ecg.measure import Measurements, measure
from ecgchat_lib.ecg.paper import GAINS, LAYOUTS, MM_PER_MV, MM_PER_SECOND, SPEEDS, describe, draw_paper, draw_rhythm
from ecgchat_lib.ecg.quality import Quality, judge
from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.errors import ParameterError
from ecgchat_lib.paths import data_folder

REAL = read_recording(data_folder() / "real_sample" / "A0001")


MEASURED = Measurements(
    heart_rate_bpm=101.0,
    rr_ms=594.0,
    pr_ms=167.0,
    qrs_ms=150.0,
    qt_ms=360.0,
    qtc_ms=467.0,
    axis_deg=-167.0,
    regular=True,
)


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def traces(figure):
    return [line for line in figure.axes[0].lines if len(line.get_xdata()) > 6]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_lead_once_and_lead_ii_along_the_foot(layout):
    figure = draw_paper(REAL, layout=layout)
    labels = [text for text in texts(figure) if text in LEADS]
    assert sorted(set(labels)) == sorted(LEADS)
    assert len(labels) == (13 if layout == "3x4+1" else 12)
    assert len(traces(figure)) == len(labels)


def test_true_to_scale():
    figure = draw_paper(REAL, layout="12x1", seconds=10)
    axes = figure.axes[0]
    width, height = figure.get_size_inches() * 25.4
    assert axes.get_xlim() == pytest.approx((0, width))  # one unit of the axes is one millimeter of paper
    assert axes.get_ylim() == pytest.approx((height, 0))
    assert tuple(axes.get_position().bounds) == (0, 0, 1, 1)
    trace = traces(figure)[1]
    x, y = trace.get_data()
    assert x[-1] - x[0] == pytest.approx(10 * MM_PER_SECOND, abs=0.1)
    lead = REAL.signal[1, : len(y)].astype(float)
    assert np.ptp(y) == pytest.approx(np.ptp(lead) * MM_PER_MV)
    assert (y[100] - y[300]) == pytest.approx((lead[300] - lead[100]) * MM_PER_MV)  # up on paper is down in y


def test_columns_follow_each_other_in_time():
    figure = draw_paper(REAL, layout="3x4+1", seconds=8)
    starts = sorted({round(float(line.get_xdata()[0]), 3) for line in traces(figure)})
    assert np.diff(starts) == pytest.approx(2 * MM_PER_SECOND)


def test_the_calibration_pulse_is_one_millivolt_and_a_fifth_of_a_second():
    figure = draw_paper(REAL)
    pulses = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 6]
    assert len(pulses) == 4
    for pulse in pulses:
        assert np.ptp(pulse.get_ydata()) == MM_PER_MV
        assert pulse.get_xdata()[3] - pulse.get_xdata()[2] == 0.2 * MM_PER_SECOND


def test_header_and_foot():
    words = " ".join(texts(draw_paper(REAL, measurements=MEASURED)))
    for expected in (
        "A0001",
        "74 years, male",
        "25 mm/s",
        "10 mm/mV",
        "101 /min",
        "PR",
        "QTc",
        "Axis",
        "first 10 of 15.0 s",
    ):
        assert expected in words
    assert "n/a" in " ".join(texts(draw_paper(REAL, measurements=Measurements())))
    assert "Mine" in texts(draw_paper(REAL, title="Mine"))


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["short", "empty", "missing", "gappy", "huge", "flat"])
def test_draws_whatever_comes(layout, kind):
    signal = {
        "short": REAL.signal[:, :300],
        "empty": REAL.signal[:, :0],
        "missing": np.full_like(REAL.signal, np.nan),
        "gappy": np.where(np.arange(REAL.signal.shape[1]) % 700 < 200, np.nan, REAL.signal),
        "huge": REAL.signal * 100,
        "flat": REAL.signal * 0,
    }[kind].astype(np.float32)
    recording = Recording("x", signal, 500.0)
    figure = draw_paper(recording, layout=layout)
    figure.savefig(io.BytesIO(), dpi=30)
    assert figure.get_size_inches()[1] * 25.4 < 600
    assert len(describe(recording, measure(recording))) > 60


def test_the_same_bytes_twice():
    def png():
        buffer = io.BytesIO()
        draw_paper(REAL, measurements=MEASURED).savefig(buffer, format="png", dpi=60, metadata={"Software": None})
        return buffer.getvalue()

    assert png() == png()


@pytest.mark.parametrize(
    ("layout", "seconds"), [("4x3", 10), ("3x4+1", 0), ("3x4+1", -1), ("3x4+1", 1e9), ("6x2", math.nan)]
)
def test_parameters_out_of_range(layout, seconds):
    with pytest.raises(ParameterError):
        draw_paper(REAL, layout=layout, seconds=seconds)


def test_words_for_those_who_can_not_see():
    words = describe(REAL, MEASURED)
    for expected in (
        "A0001",
        "15.0 s",
        "regular rhythm of 101 beats per minute",
        "PR 167 ms",
        "QRS 150 ms",
        "frontal axis -167 degrees",
        "V1 with 2.1 mV",
    ):
        assert expected in words
    nothing = Measurements(reasons={"heart_rate_bpm": "no QRS complexes stand out"})
    assert "can't be measured: no QRS complexes stand out" in describe(replace(REAL, signal=REAL.signal * 0), nothing)
    irregular = replace(MEASURED, regular=False, pr_ms=math.nan, reasons={"pr_ms": "no consistent P wave"})
    assert "An irregular rhythm" in describe(REAL, irregular)
    assert "no PR interval (no consistent P wave)" in describe(REAL, irregular)


MARKS = WaveMarks(
    p=np.array([[400.0, 430.0, 460.0], [1000.0, np.nan, 1060.0]]),
    qrs=np.array([[500.0, 530.0, 570.0], [1100.0, 1130.0, 1170.0], [9000.0, 9010.0, 9020.0]]),
    t=np.array([[650.0, 720.0, 800.0]]),
)


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("gain", GAINS)
def test_any_speed_and_gain_is_true_to_scale_and_says_so(speed, gain):
    figure = draw_paper(REAL, layout="12x1", seconds=4, speed=speed, gain=gain)
    x, y = traces(figure)[0].get_data()
    assert x[-1] - x[0] == pytest.approx(4 * speed, abs=0.1)
    assert np.ptp(y) == pytest.approx(np.ptp(REAL.signal[0, : len(y)].astype(float)) * gain)
    pulse = next(line for line in figure.axes[0].lines if len(line.get_xdata()) == 6)
    assert np.ptp(pulse.get_ydata()) == pytest.approx(gain)
    assert pulse.get_xdata()[3] - pulse.get_xdata()[2] == pytest.approx(0.2 * speed)
    assert min(pulse.get_xdata()) > 0
    assert f"{speed:g} mm/s   {gain:g} mm/mV" in " ".join(texts(figure))


@pytest.mark.parametrize("wrong", [{"speed": 30}, {"gain": 0}, {"rhythm": "V9"}, {"start": -1}, {"start": math.nan}])
def test_what_no_cardiograph_has_is_refused(wrong):
    with pytest.raises(ParameterError):
        draw_paper(REAL, **wrong)


def test_marks_stand_where_the_waves_are_told_apart_by_letter_and_line():
    figure = draw_paper(REAL, marks=MARKS)
    axes = figure.axes[0]
    letters = [text for text in axes.texts if text.get_text() in ("P", "QRS", "T")]
    assert [text.get_text() for text in letters] == ["P", "P", "QRS", "QRS", "T"]  # the one at 18 s isn't on the paper
    bars = [line for line in axes.lines if len(line.get_xdata()) == 2 and np.ptp(line.get_ydata()) == 0]
    left = float(traces(figure)[-1].get_xdata()[0])
    begins = [(bar.get_xdata()[0] - left) / MM_PER_SECOND * REAL.fs for bar in bars]
    assert begins == pytest.approx([400, 1000, 500, 1100, 650])
    assert len({(bar.get_linewidth(), bar.get_linestyle()) for bar in bars}) == 3
    lowest = max(traces(figure)[-1].get_ydata())
    assert all(bar.get_ydata()[0] > lowest for bar in bars)  # below the trace, and not across it


def test_marks_of_named_leads_stand_in_these_leads():
    def letters(**more):
        return sum(text in ("P", "QRS", "T") for text in texts(draw_paper(REAL, layout="12x1", **more)))

    assert letters() == 0
    assert letters(marks={"V2": MARKS}) == 5
    assert letters(marks={"v2": MARKS, "AVR": MARKS}) == 10
    assert letters(marks=MARKS) == 60
    with pytest.raises(ParameterError):
        draw_paper(REAL, marks={"V0": MARKS})


def test_a_wave_across_a_column_s_edge_is_left_out():
    figure = draw_paper(REAL, layout="6x2", marks={"II": MARKS}, seconds=2.1)  # lead II ends at sample 525
    assert [text for text in texts(figure) if text in ("P", "QRS", "T")] == ["P"]


def test_another_rhythm_strip_and_another_beginning():
    figure = draw_paper(REAL, rhythm="v5", start=3.0)
    assert texts(figure).count("V5") == 2
    y = traces(figure)[-1].get_ydata()
    lead = REAL.lead("V5")[1500 : 1500 + len(y)].astype(float)
    assert y[10] - y[200] == pytest.approx((lead[200] - lead[10]) * MM_PER_MV)
    assert any("3 to 13.0 s" in text for text in texts(figure))


def test_a_long_recording_in_rows():
    long = replace(REAL, signal=np.tile(REAL.signal, (1, 20)))
    figure = draw_rhythm(long, lead="V1", row_seconds=10, marks=MARKS)
    assert texts(figure).count("V1") == 12
    assert "110 s" in texts(figure)
    assert any("0 to 120.0 of 300.0 s" in text for text in texts(figure))
    assert len(traces(figure)) == 12
    assert texts(figure).count("QRS") == 3
    second = traces(figure)[1].get_ydata()
    lead = long.lead("V1")[5000 : 5000 + len(second)].astype(float)
    assert second[0] - second[99] == pytest.approx((lead[99] - lead[0]) * MM_PER_MV)
    short = draw_rhythm(replace(REAL, signal=REAL.signal[:, :0]))
    assert texts(short).count("II") == 1


def test_no_trace_crosses_a_label():
    for path in sorted((data_folder() / "real_sample").glob("*.hea")):
        figure = draw_paper(read_recording(path))
        labels = [text for text in figure.axes[0].texts if text.get_text() in LEADS]
        crossed = 0
        for label in labels:
            (x, y), wide = label.get_position(), 1.9 * len(label.get_text())
            for trace in traces(figure):
                xs, ys = trace.get_data()
                part = ys[(xs > x) & (xs < x + wide)]
                crossed += bool(len(part) and np.any(np.abs(part - y) < 1.2))
        assert crossed <= 1, path.name


def test_spikes_end_within_their_row():
    spiky = replace(REAL, signal=REAL.signal + 40.0 * (np.arange(REAL.signal.shape[1]) % 500 == 250))
    figure = draw_paper(spiky.__class__("x", spiky.signal.astype(np.float32), 500.0))
    tall = max(np.ptp(trace.get_ydata()) for trace in traces(figure))
    shown = max(trace.get_clip_box().height for trace in traces(figure))
    assert tall > 390
    assert shown / figure.dpi * 25.4 < 60


# Machado, Oliveira and Fernandes 2009: what a dichromat sees, in linear RGB.
SEEN = {
    "everyone": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "in gray": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
}


@pytest.mark.parametrize("eye", SEEN)
def test_every_eye_tells_trace_grid_and_paper_apart(eye):
    from ecgchat_lib.ecg import paper

    def luminance(color):
        rgb = np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(np.clip(np.asarray(SEEN[eye]) @ linear, 0, 1) @ [0.2126, 0.7152, 0.0722])

    def contrast(one, other):
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)  # WCAG 2

    assert contrast(paper._INK, paper._COARSE) > 7  # the trace stands out from the heaviest line
    assert contrast(paper._SOFT, paper._PAPER) > 4.5  # small letters can be read
    assert contrast(paper._COARSE, paper._FINE) > 1.3  # five boxes are told from one
    assert contrast(paper._FINE, paper._PAPER) > 1.1
    for band in paper._BAND.values():
        assert contrast(paper._INK, band) > 7


def test_doubts_are_printed_and_told():
    spoiled = replace(REAL, signal=REAL.signal.copy())
    spoiled.signal[7] = 0
    quality = judge(spoiled)
    assert any(
        text.startswith("Check the recording: flat or missing: V2")
        for text in texts(draw_paper(spoiled, quality=quality))
    )
    words = describe(spoiled, Measurements(heart_rate_bpm=101.0), quality=quality)
    assert "101 beats per minute" in words
    assert "What is doubtful: flat or missing: V2" in words
    unusable = Quality(False, ("no heartbeats stand out",))
    words = describe(spoiled, Measurements(heart_rate_bpm=101.0), quality=unusable)
    assert "isn't usable: no heartbeats stand out" in words
    assert "101" not in words
    assert any(text.startswith("NOT USABLE") for text in texts(draw_paper(spoiled, quality=unusable)))


def test_what_is_remarkable_in_a_lead_is_told():
    measured = replace(MEASURED, st_mv={"I": 0.02, "II": -0.08, "V2": 0.25, "V5": math.nan}, transition="V4")
    words = describe(REAL, measured)
    assert "ST is raised in V2 (+0.25 mV)" in words
    assert "ST is lowered in II (-0.08 mV)" in words
    assert "V5" not in words
    assert "outgrows the S wave in V4" in words
    assert "ST" not in describe(REAL, MEASURED)


def test_marks_and_low_leads_are_told():
    words = describe(REAL, Measurements(), marks={"V2": MARKS})
    assert "mark 2 P, 3 QRS and 1 T waves in V2" in words
    low = replace(REAL, signal=(REAL.signal * 0.1).astype(np.float32))
    assert "No limb lead spans more than 0." in describe(low, Measurements())


def test_hostile_names_stay_inside_the_header():
    figure = draw_paper(replace(REAL, name="$x_{" + "\n" * 3 + "W" * 300), measurements=Measurements())
    figure.savefig(io.BytesIO(), dpi=30)
    name = texts(figure)[[len(text) > 20 for text in texts(figure)].index(True)]
    assert len(name) < 40
    assert "\n" not in name
