from __future__ import annotations

import io
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

from ecgchat_lib.ecg.leads import LEADS
from ecgchat_lib.ecg.measure import Measurements, measure
from ecgchat_lib.ecg.paper import LAYOUTS, MM_PER_MV, MM_PER_SECOND, describe, draw_paper
from ecgchat_lib.ecg.recording import Recording, read_recording
from ecgchat_lib.errors import ParameterError
from ecgchat_lib.paths import data_folder

REAL = read_recording(data_folder() / "real_sample" / "A0001")


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
    words = " ".join(texts(draw_paper(REAL, measurements=measure(REAL))))
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
        draw_paper(REAL, measurements=measure(REAL)).savefig(buffer, format="png", dpi=60, metadata={"Software": None})
        return buffer.getvalue()

    assert png() == png()


@pytest.mark.parametrize(
    ("layout", "seconds"), [("4x3", 10), ("3x4+1", 0), ("3x4+1", -1), ("3x4+1", 1e9), ("6x2", math.nan)]
)
def test_parameters_out_of_range(layout, seconds):
    with pytest.raises(ParameterError):
        draw_paper(REAL, layout=layout, seconds=seconds)


def test_words_for_those_who_can_not_see():
    words = describe(REAL, measure(REAL))
    for expected in (
        "A0001",
        "15.0 s",
        "regular rhythm of 101 beats per minute",
        "PR 167 ms",
        "QRS 150 ms",
        "V1 with 2.1 mV",
    ):
        assert expected in words
    unknown = describe(replace(REAL, signal=REAL.signal * 0), measure(replace(REAL, signal=REAL.signal * 0)))
    assert "can't be measured: no QRS complexes stand out" in unknown
    irregular = read_recording(data_folder() / "real_sample" / "A0009")
    assert "An irregular rhythm" in describe(irregular, measure(irregular))
    assert "no PR interval (no consistent P wave)" in describe(irregular, measure(irregular))
