"""Energy per decision, with the draw of the idle device subtracted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter, sleep

from cxr_edge.benchmarks.device.meter import Course, Meter
from cxr_edge.benchmarks.device.sensors import Sensor
from cxr_edge.runtime.errors import EngineError

#: Seconds of rest before each measurement, and of decisions.
IDLE_SECONDS, BUSY_SECONDS = 3.0, 5.0


@dataclass(frozen=True)
class Energy:
    """Energy of one file.

    Attributes
    ----------
    idle_w, busy_w
        Power of the idle device and while it decides without pause.
    mj_per_decision
        Millijoules of one decision beyond those of the idle device in the same time.
    decisions
        Number of decisions.
    """

    idle_w: float
    busy_w: float
    mj_per_decision: float
    decisions: int


def energy_of(
    decide: Callable[[], None], sensors: Sequence[Sensor], idle: float = IDLE_SECONDS, busy: float = BUSY_SECONDS
) -> Energy:
    """Rest, then decide without pause; both for so many seconds.

    Raises
    ------
    EngineError
        If a sensor of power vanished meanwhile.
    """
    sensors = [sensor for sensor in sensors if sensor.kind in ("power", "energy")]
    with Meter(sensors) as at_rest:
        sleep(idle)
    with Meter(sensors) as at_work:
        decisions, start = 0, perf_counter()
        while perf_counter() - start < busy:
            decide()
            decisions += 1
    idle_w, busy_w = _watts(at_rest), _watts(at_work)
    seconds = at_work.seconds[-1] - at_work.seconds[0]
    return Energy(idle_w, busy_w, 1e3 * (busy_w - idle_w) * seconds / decisions, decisions)


def _watts(course: Course) -> float:
    joules = course.joules()
    if joules is None or not course.complete():
        raise EngineError(
            f"the power sensors vanished during the measurement ({', '.join(course.lost()) or 'no reading'}); check "
            "that their driver stays loaded, then measure again"
        )
    return joules / (course.seconds[-1] - course.seconds[0])
