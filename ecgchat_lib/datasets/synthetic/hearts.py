"""Hearts: the waves of a beat as vectors, drawn per patient, and what each finding changes in them.

Vectors are (left, foot, back) in mV. Times in a P wave are ms after its beginning, in a QRS shares of its length, in
ST and T shares of the time from the J point to the end of T. It places no beats. Taught in: 02 §1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from ecgchat_lib.datasets.synthetic.waves import DOWER, Vector, Wave

Draw = np.random.Generator
Statements = tuple[tuple[str, float], ...]

# Dower's lead vectors are averages over torsos and fit the ventricles' activation. Amplitudes in PTB-XL's normal ones
# ask for others in V1–V6: of QRS, of T relative to QRS, and of P, whose source lies farther from the chest wall.
CHEST_GAINS = np.array([0.88, 1.62, 1.36, 1.12, 1.0, 1.03])
T_GAINS = np.array([1.0, 0.95, 0.68, 0.66, 0.78, 0.88])
P_GAINS = np.array([0.8, 0.5, 0.4, 0.38, 0.38, 0.4])


@dataclass(frozen=True)
class Heart:
    """What stays the same from beat to beat: sizes in mV, times in ms, angles in degrees.

    Attributes:
        pr: from the beginning of P to that of QRS.
        qrs: from the beginning of QRS to the J point.
        qtc: Fridericia's, from the beginning of QRS to the end of T.
        p: waves of the P wave.
        ventricle: waves of the QRS.
        t: waves of the T wave, the largest first.
        st: waves of the ST segment, and J and U waves.
        field: `(8, 3)` lead vectors of this torso.
        size: how large everything is.
        axis: of the QRS in the frontal plane.
        statements: what the finding's form adds to its statements.
        words: sentences for the report that no SCP statement says.
        stage: of an infarction: acute, recent or old; "" without one.
    """

    pr: float
    qrs: float
    qtc: float
    p: tuple[Wave, ...]
    ventricle: tuple[Wave, ...]
    t: tuple[Wave, ...]
    st: tuple[Wave, ...]
    field: np.ndarray
    size: float
    axis: float
    statements: Statements = ()
    words: tuple[str, ...] = ()
    stage: str = ""


def turned(size: float, axis_deg: float, back: float) -> Vector:
    """Heart vector that limb leads show as `size` mV at `axis_deg` (0° lead I, 90° aVF), with a part to the back."""
    angle = math.radians(axis_deg)
    one = size * math.cos(angle) - DOWER[0, 2] * back
    two = size * math.cos(angle - math.pi / 3) - DOWER[1, 2] * back
    (a, b), (c, d) = DOWER[0, :2], DOWER[1, :2]
    left, foot = (d * one - b * two) / (a * d - b * c), (a * two - c * one) / (a * d - b * c)
    return (float(left), float(foot), back)


def times(factor: float, vector: Vector) -> Vector:
    """A vector, longer or shorter."""
    return (factor * vector[0], factor * vector[1], factor * vector[2])


def plus(*vectors: Vector) -> Vector:
    """The sum of vectors."""
    left, foot, back = (float(sum(parts)) for parts in zip(*vectors, strict=True))
    return (left, foot, back)


def _clipped(draw: Draw, mean: float, sd: float, low: float, high: float) -> float:
    return float(np.clip(draw.normal(mean, sd), low, high))


def normal_heart(age: float, sex: str, body: Draw) -> Heart:
    """Draw a healthy heart."""
    size = math.exp(body.normal(0.0, 0.15)) * (0.90 if sex == "female" else 1.0)
    axis = _clipped(body, 43 - 0.5 * (age - 50), 22, -26, 84)
    back = size * body.uniform(0.38, 0.72)
    t_axis = axis * 0.5 + 17 + body.normal(0, 11)
    t_size = 0.29 * math.exp(body.normal(0.0, 0.28)) * (1.1 if sex == "male" else 0.92)
    return Heart(
        pr=_clipped(body, 164 + 0.2 * (age - 50), 18, 126, 204),
        qrs=_clipped(body, 102 if sex == "male" else 95, 8, 80, 120),
        qtc=_clipped(body, 421 if sex == "male" else 429, 18, 378, 450),
        p=atrial_waves(body),
        ventricle=_normal_qrs(size, axis, back, body),
        t=t_waves(turned(t_size, t_axis, -t_size * body.uniform(0.15, 0.6)), body),
        st=_normal_st(t_size, t_axis, sex, age, body),
        field=_torso(body),
        size=size,
        axis=axis,
    )


def _torso(body: Draw) -> np.ndarray:
    """Dower's lead vectors, each a little longer or shorter and turned: electrodes and bodies differ."""
    gains = CHEST_GAINS * np.exp(body.normal(0.0, 1.0, 6) * (0.15, 0.22, 0.18, 0.14, 0.13, 0.13))
    field = DOWER * np.concatenate([[1.0, 1.0], gains])[:, None]
    field[:2] *= math.exp(body.normal(0.0, 0.16))
    length = np.sqrt((field**2).sum(axis=1, keepdims=True))
    tilt = body.normal(0.0, 0.07, (8, 3)) * length
    tilt[:2] *= 0.3
    return field + tilt


def _clockwise(field: np.ndarray, far: float) -> np.ndarray:
    """A heart turned about its long axis: V3–V6 see what leads nearer to V2 saw, so that R overtakes S later."""
    out = field.copy()
    for row, share in ((4, 0.75), (5, 0.5), (6, 0.3), (7, 0.2)):
        out[row] = (1 - far * share) * field[row] + far * share * field[row - 1]
    return out


def atrial_waves(body: Draw, length: float | None = None) -> tuple[Wave, ...]:
    """P wave: right atrium, left atrium, and how far the two peaks lie apart."""
    length = _clipped(body, 146, 14, 112, 180) if length is None else length
    size = math.exp(body.normal(0.0, 0.25))
    right = times(size * body.uniform(0.8, 1.2), (0.060, 0.045, -0.040))
    left = times(size * body.uniform(0.7, 1.3), (0.085, 0.030, 0.045))
    apart = body.uniform(0.10, 0.26)
    return (
        Wave((0.47 - apart / 2) * length, (0.47 - apart / 2) * length, 0.38 * length, right),
        Wave((0.47 + apart / 2) * length, 0.38 * length, (0.53 - apart / 2) * length, left),
    )


def _normal_qrs(size: float, axis: float, back: float, body: Draw) -> tuple[Wave, ...]:
    """Septum, apex, free wall and base, one after the other; sometimes a notch."""
    septal = times(size * math.exp(body.normal(0.0, 0.5)), (-0.10, -0.03, -0.20))
    wide = math.exp(body.normal(0.0, 0.14))
    apex = turned(0.34 * size, axis + body.normal(0, 20), -0.12 * size * body.uniform(0.0, 1.6))
    waves = [
        Wave(0.27 + body.normal(0, 0.015), 0.27, 0.18, septal),
        Wave(0.40 + body.normal(0, 0.02), 0.24, 0.19, apex),
        Wave(
            0.51 + body.normal(0, 0.015),
            0.18 * wide,
            0.18 * wide * body.uniform(0.9, 1.2),
            turned(1.03 * size, axis, back),
        ),
        Wave(
            0.66, 0.20, 0.34, turned(0.16 * size * body.uniform(0.2, 2.0), axis + 165 + body.normal(0, 25), 0.30 * size)
        ),
    ]
    if body.random() < 0.25:
        waves.append(notch(size, body))
    return tuple(waves)


def notch(size: float, body: Draw) -> Wave:
    """A small extra bump within the QRS, in any direction: slurs, splinters, rsr'."""
    way = body.normal(0.0, 1.0, 3)
    vector = way / math.sqrt(float((way**2).sum())) * size * body.uniform(0.06, 0.2)
    return Wave(body.uniform(0.4, 0.82), 0.12, 0.15, (float(vector[0]), float(vector[1]), float(vector[2])))


def t_waves(vector: Vector, body: Draw, narrow: float = 1.0) -> tuple[Wave, ...]:
    """T wave: a slow rise and a faster fall, and a second, turned vector that makes it bend, notch or go both ways."""
    peak = body.uniform(0.63, 0.71)
    length = math.sqrt(sum(part * part for part in vector)) + 0.02
    way = body.normal(0.0, 1.0, 3) * length * 0.12
    side = plus(times(0.10, vector), (float(way[0]), float(way[1]), float(way[2] - 0.16 * length)))
    way = body.normal(0.0, 1.0, 3) * length * 0.09
    late = (float(way[0]), float(way[1]), float(way[2]))
    rise, fall = narrow * body.uniform(0.34, 0.47), narrow * (1 - peak)
    return (
        Wave(peak, rise, fall, vector),
        Wave(peak - 0.17, 1.0 * rise, 1.0 * fall, side),
        Wave(peak + 0.10, 0.5 * rise, 0.9 * fall, late),
    )


def st_wave(vector: Vector, place: float) -> Wave:
    """ST shift that begins in the last 40 ms of the QRS and is largest at `place`: 0.05 falls, 0.4 rises or sags."""
    return Wave(place, place + 0.16, 0.80 - place, vector)


def _normal_st(t_size: float, t_axis: float, sex: str, age: float, body: Draw) -> tuple[Wave, ...]:
    raised = body.normal(0.03, 0.03) if sex == "male" and age < 60 else body.normal(0.0, 0.02)
    waves = [st_wave(turned(raised, t_axis, -0.05 - raised), body.uniform(0.05, 0.4))]
    if body.random() < 0.06 and sex == "male" and age < 60:  # early repolarization: a notch at the J point
        waves.append(Wave(0.02, 0.06, 0.08, turned(body.uniform(0.06, 0.14), t_axis, -0.03)))
    if body.random() < 0.25:  # U wave
        high = t_size * body.uniform(0.05, 0.16)
        waves.append(Wave(1.24, 0.22, 0.26, turned(high, t_axis, -1.3 * high)))
    return tuple(waves)


# --- findings that change the shape ------------------------------------------------------------------------------

Change = Callable[[Heart, Draw], Heart]


def _first_degree_block(heart: Heart, body: Draw) -> Heart:
    return replace(heart, pr=float(body.uniform(226, 320)))


def _discordant(heart: Heart, axis: float, t_size: float, t_back: float, st: float, body: Draw) -> dict[str, Any]:
    """T and ST that point away from the QRS, as after any abnormal conduction."""
    return {
        "t": t_waves(turned(-t_size, axis, t_back), body),
        "st": (st_wave(turned(-st, axis, 1.7 * st if t_back > 0 else -1.7 * st), body.uniform(0.08, 0.3)),),
    }


def _left_bundle_branch_block(heart: Heart, body: Draw) -> Heart:
    size = max(heart.size, 0.8)
    axis = float(np.clip(heart.axis - 38 + body.normal(0, 15), -55, 60))
    back = size * body.uniform(0.95, 1.3)
    ventricle = (
        Wave(0.24, 0.24, 0.24, turned(0.22 * size, axis, 0.12 * size)),
        Wave(0.41, 0.27, 0.28, turned(0.60 * size, axis, back)),
        Wave(0.66, 0.28, 0.34, turned(0.66 * size * body.uniform(0.85, 1.2), axis - 8, 0.75 * back)),
        notch(1.1 * size, body),
    )
    more = _discordant(heart, axis, 0.24 * size * body.uniform(0.7, 1.2), -0.28 * size, 0.06 * size, body)
    field = _clockwise(heart.field, body.uniform(0.5, 1.2))
    qrs, qtc = float(body.uniform(142, 180)), heart.qtc + 26
    return replace(heart, qrs=qrs, ventricle=ventricle, axis=axis, qtc=qtc, field=field, **more)


def _right_bundle_branch_block(heart: Heart, body: Draw) -> Heart:
    return _late_right(heart, body, float(body.uniform(132, 164)), body.uniform(0.75, 1.3), 15)


def _incomplete_right_block(heart: Heart, body: Draw) -> Heart:
    return _late_right(heart, body, float(body.uniform(104, 117)), body.uniform(0.3, 0.55), 5)


def _late_right(heart: Heart, body: Draw, qrs: float, late: float, longer: float) -> Heart:
    """The right ventricle follows late: a last vector to the right and the front."""
    size = heart.size
    squeeze = 98 / qrs
    early = [Wave(w.center * squeeze, w.rise * squeeze, w.fall * squeeze, w.vector) for w in heart.ventricle[:3]]
    last = Wave(0.70, 0.30, 0.30, times(late, (-0.52 * size, 0.10 * size, -0.62 * size)))
    turn = (0.02, 0.0, 0.22 * late)
    return replace(
        heart,
        qrs=qrs,
        ventricle=(*early, last),
        t=(heart.t[0]._replace(vector=plus(heart.t[0].vector, turn)), *heart.t[1:]),
        qtc=heart.qtc + longer,
    )


def _slow_conduction(heart: Heart, body: Draw) -> Heart:
    """A wide QRS that is neither of the two bundle branch blocks: slurred and notched."""
    size = heart.size
    slow = tuple(w._replace(rise=1.15 * w.rise, fall=1.15 * w.fall) for w in heart.ventricle[:4])
    ventricle = (*slow, notch(1.4 * size, body), notch(1.4 * size, body))
    return replace(heart, qrs=float(body.uniform(118, 140)), ventricle=ventricle, qtc=heart.qtc + 10)


def _left_anterior_block(heart: Heart, body: Draw) -> Heart:
    size, axis = heart.size, float(body.uniform(-68, -48))
    ventricle = (
        Wave(0.20, 0.20, 0.23, (-0.10 * size, 0.34 * size, -0.24 * size)),
        Wave(0.50, 0.24, 0.26, turned(1.12 * size, axis, size * body.uniform(0.35, 0.6))),
        Wave(0.78, 0.22, 0.22, turned(0.28 * size, axis - 60, 0.22 * size)),
    )
    return replace(heart, qrs=float(body.uniform(98, 116)), ventricle=ventricle, axis=axis)


def _left_posterior_block(heart: Heart, body: Draw) -> Heart:
    size, axis = heart.size, float(body.uniform(98, 125))
    ventricle = (
        Wave(0.20, 0.20, 0.22, turned(0.30 * size, -40, -0.22 * size)),
        Wave(0.50, 0.24, 0.26, turned(1.05 * size, axis, size * body.uniform(0.35, 0.6))),
        Wave(0.76, 0.22, 0.24, turned(0.22 * size, axis + 50, 0.3 * size)),
    )
    return replace(heart, qrs=float(body.uniform(98, 116)), ventricle=ventricle, axis=axis)


def _left_ventricular_hypertrophy(heart: Heart, body: Draw) -> Heart:
    axis = float(np.clip(heart.axis - 15, -28, 50))
    big = 1.22 * body.uniform(0.9, 1.35)  # SV1 + RV5 above 3.5 mV, the Sokolow-Lyon criterion
    septal, apex, _, last = heart.ventricle[:4]
    rise, fall = (1.2 * width for width in heart.ventricle[2][1:3])
    main = Wave(0.50, rise, fall, turned(0.85 * big, axis, 0.80 * big))
    strain = body.uniform(0.0, 1.0)
    statements: Statements = (("VCLVH", 0.0),)
    field = _clockwise(heart.field, body.uniform(0.2, 1.1))
    heart = replace(
        heart, qrs=float(body.uniform(104, 124)), ventricle=(septal, apex, main, last), axis=axis, field=field
    )
    if strain > 0.4:  # ST falls and T is negative at the left
        t = t_waves(turned(-0.22 * strain, axis, -0.28 * (0.4 + strain)), body)
        heart = replace(heart, t=t, st=(st_wave(turned(-0.08 * strain, axis, -0.07), body.uniform(0.2, 0.4)),))
        statements = (*statements, ("ISC_", 100.0)) if strain > 0.55 else statements
    if body.random() < 0.3:
        heart = replace(heart, p=_wide_p(body))
        statements = (*statements, ("LAO/LAE", 100.0))
    return replace(heart, statements=statements)


def _wide_p(body: Draw) -> tuple[Wave, ...]:
    """Left atrial enlargement: long, notched, and ending deeply negative in V1."""
    length = float(body.uniform(145, 168))
    right = (0.05, 0.08, -0.05)
    left = times(float(body.uniform(1.0, 1.5)), (0.085, 0.07, 0.10))
    return (
        Wave(0.32 * length, 0.32 * length, 0.3 * length, right),
        Wave(0.68 * length, 0.34 * length, 0.32 * length, left),
    )


def _right_ventricular_hypertrophy(heart: Heart, body: Draw) -> Heart:
    size, axis = max(heart.size, 0.85), float(body.uniform(98, 135))
    front = -size * body.uniform(0.75, 1.15)
    ventricle = (
        Wave(0.20, 0.20, 0.22, (0.08 * size, -0.12 * size, -0.10 * size)),
        Wave(0.46, 0.22, 0.25, plus(turned(0.85 * size, axis, front), (-0.25 * size, 0.0, 0.0))),
        Wave(0.72, 0.24, 0.28, (-0.35 * size, -0.05 * size, 0.25 * size)),
    )
    strain = body.uniform(0.4, 1.0)
    tall = tuple(w._replace(vector=times(1.35, (0.55 * w.vector[0], 1.35 * w.vector[1], w.vector[2]))) for w in heart.p)
    return replace(
        heart,
        qrs=float(body.uniform(90, 114)),
        ventricle=ventricle,
        axis=axis,
        p=tall,
        t=t_waves((0.12, 0.06 - 0.14 * strain, 0.22 * strain), body),
        st=(st_wave((0.0, -0.04 * strain, 0.06 * strain), 0.3),),
    )


# Direction of the wall that died, its code when acute, and its words.
_WALLS: Mapping[str, Vector] = MappingProxyType(
    {
        "IMI": (-0.05, 1.0, 0.10),
        "ASMI": (-0.05, 0.02, -1.0),
        "AMI": (0.42, 0.0, -0.90),
        "ALMI": (0.80, -0.12, -0.58),
        "LMI": (0.86, -0.48, 0.18),
    }
)


def infarction(code: str) -> Change:
    """An infarction of one wall, drawn as acute, recent or old."""

    def change(heart: Heart, body: Draw) -> Heart:
        stage = ("acute", "recent", "old")[int(body.choice(3, p=(0.15, 0.25, 0.6)))]
        wall = _WALLS[code]
        size = max(heart.size, 0.85)
        depth = size * body.uniform(0.26, 0.64) * {"acute": 0.7, "recent": 1.0, "old": 1.0}[stage]
        _, apex, main, last = heart.ventricle[:4]
        axis = heart.axis if code != "IMI" else float(np.clip(heart.axis, -20, 32))
        dead = Wave(
            0.23 if code == "IMI" else 0.27, 0.24, 0.29, plus(times(-depth, wall), times(0.05 * size, (1, -1, 0)))
        )
        rest = turned(0.98 * size, axis, main.vector[2] + (0.3 * size if code in ("ASMI", "AMI") else 0.0))
        rest = plus(rest, times(-0.30 * depth, wall))
        ventricle = (
            dead,
            apex._replace(vector=times(body.uniform(0.2, 0.8), apex.vector)),
            main._replace(vector=rest),
            last,
        )
        t, st = _evolution(heart, stage, wall, body)
        return replace(
            heart, ventricle=ventricle, axis=axis, t=t, st=st, qrs=heart.qrs + 5, stage=stage, **_told(code, stage)
        )

    return change


def _evolution(heart: Heart, stage: str, wall: Vector, body: Draw) -> tuple[tuple[Wave, ...], tuple[Wave, ...]]:
    """ST and T of an infarction: raised with a tall T, then an inverted T, then nearly as before."""
    healthy = heart.t[0].vector
    if stage == "acute":
        raised = body.uniform(0.16, 0.42)
        return (
            t_waves(plus(times(0.8, healthy), times(body.uniform(0.15, 0.4), wall)), body),
            (st_wave(times(raised, wall), body.uniform(0.1, 0.4)),),
        )
    if stage == "recent":
        return (
            t_waves(plus(times(0.7, healthy), times(-body.uniform(0.3, 0.55), wall)), body),
            (st_wave(times(body.uniform(0.02, 0.12), wall), body.uniform(0.1, 0.3)),),
        )
    return (
        t_waves(plus(times(0.7, healthy), times(-body.uniform(0.0, 0.22), wall)), body),
        (st_wave(times(body.uniform(-0.02, 0.04), wall), 0.2),),
    )


_ISCHEMIC_CODE = {"IMI": "ISCIN", "ASMI": "ISCAS", "AMI": "ISCAN", "ALMI": "ISCAL", "LMI": "ISCLA"}


def _told(code: str, stage: str) -> dict[str, Any]:
    statements: Statements = (("QWAVE" if code != "ASMI" else "ABQRS", 0.0),)
    if stage == "acute":
        statements = (*statements, ("STE_", 0.0))
    if stage == "recent":
        statements = (*statements, ("INVT", 0.0), (_ISCHEMIC_CODE[code], 100.0))
    words = {
        "acute": "The infarction looks acute, with raised ST segments",
        "recent": "The infarction looks recent, with inverted T waves",
        "old": "The infarction is of undetermined age, probably old",
    }
    return {"statements": statements, "words": (words[stage],)}


def _st_depression(heart: Heart, body: Draw) -> Heart:
    """ST falls where the left ventricle looks; T there is lower, and sometimes turns over."""
    depth = body.uniform(0.07, 0.20)
    way = turned(-depth, heart.axis, body.uniform(0.0, 0.06))
    return replace(
        heart, st=(st_wave(way, body.uniform(0.08, 0.42)),), t=_lowered_t(heart, body.uniform(-0.2, 0.9), body)
    )


def _flat_t(heart: Heart, body: Draw) -> Heart:
    heart = replace(heart, t=_lowered_t(heart, body.uniform(-0.4, 0.25), body))
    if body.random() < 0.5:
        return heart
    return replace(heart, st=(st_wave(turned(-body.uniform(0.02, 0.06), heart.axis, 0.0), body.uniform(0.2, 0.42)),))


def _lowered_t(heart: Heart, share: float, body: Draw) -> tuple[Wave, ...]:
    """T lower to the left and the foot; to the front, where V2 looks, much of it stays."""
    left, foot, back = heart.t[0].vector
    return t_waves((left * share, foot * share, back * body.uniform(max(share, 0.3), 1.1)), body)


_ISCHEMIC = (
    ("ISCAL", (0.8, 0.0, -0.5)),
    ("ISCIN", (0.0, 1.0, 0.1)),
    ("ISCAN", (0.3, 0.0, -0.95)),
    ("ISC_", (0.6, 0.5, -0.4)),
)


def _inverted_t(heart: Heart, body: Draw) -> Heart:
    code, wall = _ISCHEMIC[int(body.choice(4, p=(0.4, 0.2, 0.15, 0.25)))]
    t = t_waves(plus(times(0.6, heart.t[0].vector), times(-body.uniform(0.2, 0.55), wall)), body)
    st = (st_wave(times(-body.uniform(0.0, 0.10), wall), body.uniform(0.1, 0.4)),)
    return replace(heart, t=t, st=st, statements=((code, 100.0), ("INVT", 0.0)))


def _long_qt(heart: Heart, body: Draw) -> Heart:
    return replace(
        heart, qtc=float(body.uniform(498, 570)), t=t_waves(heart.t[0].vector, body, body.uniform(0.75, 1.0))
    )


def _low_voltage(heart: Heart, body: Draw) -> Heart:
    shrink = float(body.uniform(0.30, 0.40)) / heart.size
    less = tuple(w._replace(vector=times(shrink, w.vector)) for w in heart.ventricle)
    t = tuple(w._replace(vector=times(body.uniform(0.4, 0.75), w.vector)) for w in heart.t)
    return replace(heart, ventricle=less, t=t)


def _hyperkalemia(heart: Heart, body: Draw) -> Heart:
    """Tall, narrow T waves; further on flat P waves and a wide QRS."""
    far = body.random()
    t_size = body.uniform(0.65, 1.1)
    wide = 1 + 0.55 * max(far - 0.35, 0.0)
    p = tuple(w._replace(vector=times(1 - 0.75 * far, w.vector)) for w in heart.p)
    words = ["Tall, peaked T waves"]
    if far > 0.6:
        words.append("Broad QRS complexes and flat P waves")
    vector = turned(t_size, heart.axis * 0.6 + 17, -t_size * body.uniform(0.4, 0.8))
    return replace(
        heart,
        pr=min(heart.pr + 40 * far, 198.0),
        qrs=heart.qrs * wide,
        p=p,
        t=(Wave(0.70, 0.30, 0.28, vector), Wave(0.5, 0.3, 0.3, times(0.1, vector))),
        st=(),
        words=(*words, "Hyperkalemia is possible"),
    )


def _preexcitation(heart: Heart, body: Draw) -> Heart:
    """A slow delta wave before the QRS: short PR, wide QRS, T away from the delta wave."""
    size = heart.size
    way = turned(0.36 * size, body.choice([-50.0, 20.0, 70.0]) + body.normal(0, 12), size * body.choice([-0.40, 0.18]))
    qrs = float(body.uniform(122, 152))
    squeeze = 96 / qrs
    late = [
        Wave(1 - (1 - w.center) * squeeze, w.rise * squeeze, w.fall * squeeze, w.vector) for w in heart.ventricle[1:4]
    ]  # no Q: the septum's own wave is lost in the delta wave
    delta = (Wave(0.34, 0.34, 0.40, way), Wave(0.52, 0.36, 0.40, times(0.7, way)))
    t = t_waves(plus(times(0.55, heart.t[0].vector), times(-0.35, way)), body)
    return replace(heart, pr=float(body.uniform(94, 116)), qrs=qrs, ventricle=(*late, *delta), t=t)


def paced_heart(heart: Heart, body: Draw) -> Heart:
    """Beats of a pacemaker in the right ventricle's apex: like left bundle branch block, but upward."""
    size, axis = max(heart.size, 0.85), float(body.uniform(-88, -55))
    back = size * body.uniform(0.7, 1.1)
    ventricle = (
        Wave(0.30, 0.30, 0.30, turned(0.45 * size, axis, 0.3 * back)),
        Wave(0.46, 0.30, 0.32, turned(0.75 * size, axis, back)),
        Wave(0.70, 0.30, 0.30, turned(0.45 * size, axis - 10, 0.6 * back)),
    )
    more = _discordant(heart, axis, 0.32 * size, -0.30 * size, 0.08 * size, body)
    return replace(
        heart, pr=168.0, qrs=float(body.uniform(148, 186)), ventricle=ventricle, axis=axis, qtc=heart.qtc + 30, **more
    )


def ventricular_heart(heart: Heart, draw: Draw, late: bool = False) -> Heart:
    """A beat that begins in a ventricle: wide, large, with a T wave that points the other way."""
    from_left = draw.random() < 0.5
    size = float(draw.uniform(0.9, 1.5)) * (0.8 if late else 1.0)
    axis = float(draw.uniform(-100, 150))
    back = float(draw.uniform(-0.7, -0.3) if from_left else draw.uniform(0.3, 0.8)) * size
    start = draw.uniform(0.28, 0.38)
    ventricle = (
        Wave(start, start, 0.40, turned(0.75 * size, axis, back)),
        Wave(0.62, 0.38, 0.38, turned(0.6 * size, axis + draw.uniform(-35, 35), 0.6 * back)),
        notch(size, draw),
    )
    t = t_waves(turned(-0.42 * size, axis, -0.40 * back), draw)
    st = (st_wave(turned(-0.10 * size, axis, -0.10 * back), draw.uniform(0.1, 0.3)),)
    return replace(
        heart, qrs=float(draw.uniform(138, 176)), ventricle=ventricle, t=t, st=st, axis=axis, qtc=heart.qtc + 34
    )


_SWAPS = (("right and left arm", ((-1.0, 0.0), (-1.0, 1.0))), ("right arm and left leg", ((1.0, -1.0), (0.0, -1.0))))


def _reversed(heart: Heart, body: Draw) -> Heart:
    """Two limb cables in each other's place: the rows of I and II become what the recorder then calls I and II."""
    words, swap = _SWAPS[0 if body.random() < 0.8 else 1]
    field = heart.field.copy()
    field[:2] = np.array(swap) @ field[:2]
    return replace(heart, field=field, words=(f"The {words} electrodes seem to be interchanged",))


CHANGES: Mapping[str, Change] = MappingProxyType(
    {
        "1AVB": _first_degree_block,
        "CLBBB": _left_bundle_branch_block,
        "CRBBB": _right_bundle_branch_block,
        "IRBBB": _incomplete_right_block,
        "IVCD": _slow_conduction,
        "LAFB": _left_anterior_block,
        "LPFB": _left_posterior_block,
        "LVH": _left_ventricular_hypertrophy,
        "RVH": _right_ventricular_hypertrophy,
        **{code: infarction(code) for code in _WALLS},
        "STD_": _st_depression,
        "NDT": _flat_t,
        "INVT": _inverted_t,
        "LNGQT": _long_qt,
        "LVOLT": _low_voltage,
        "HYPERK": _hyperkalemia,
        "WPW": _preexcitation,
        "PACE": paced_heart,
        "REVERSED": _reversed,
    }
)
