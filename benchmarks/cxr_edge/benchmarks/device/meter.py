"""A meter that reads the sensors while a block of code runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Event, Thread
from time import perf_counter
from typing import Any

from cxr_edge.benchmarks.device.sensors import UNITS, Sensor

#: Seconds between readings. An INA3221 averages over about as long.
PERIOD = 0.1
#: Ratio of the highest to the lowest clock of a core above which the clocks are said to have moved.
STEADY_CLOCK = 1.05
#: Rails whose sum is the power of the whole module, the first complete set that a board has. VDD_IN is the input of the
#: module; the other rails of such a board are parts of it.
WHOLE = (("VDD_IN",), ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"))


@dataclass
class Course:
    """Readings of each sensor: seconds since the start, and values (None once the sensor is gone)."""

    sensors: Sequence[Sensor]
    seconds: list[float] = field(default_factory=list)
    values: list[list[float | None]] = field(default_factory=list)

    def of(self, index: int) -> list[tuple[float, float]]:
        """Time and value of the readings of a sensor that succeeded."""
        return [(t, v) for t, row in zip(self.seconds, self.values, strict=True) if (v := row[index]) is not None]

    def joules(self) -> float | None:
        """Energy of the module or of the packages between the first and the last reading; None without a sensor."""
        indices = _whole(self.sensors)
        parts = [_joules(self.sensors[i], self.of(i)) for i in indices]
        return sum(part for part in parts if part is not None) if parts and None not in parts else None

    def complete(self) -> bool:
        """Whether no sensor vanished."""
        return not self.lost()

    def lost(self) -> list[str]:
        """Names of the sensors that vanished during the run."""
        return [s.name for i, s in enumerate(self.sensors) if len(self.of(i)) < len(self.seconds)]

    def warnings(self) -> list[str]:
        """What makes the times of this run doubtful."""
        said = [f"the sensor {name} vanished during the run; its figures are left out" for name in self.lost()]
        for i, sensor in enumerate(self.sensors):
            values = [value for _, value in self.of(i)]
            if sensor.kind == "clock" and len(values) > 1 and max(values) > STEADY_CLOCK * min(values):
                said.append(
                    f"the clock of {sensor.name} moved from {min(values):.0f} to {max(values):.0f} MHz during the run; "
                    "fix it (jetson_clocks on a Jetson, governor performance elsewhere) and measure again"
                )
            if sensor.kind == "throttling" and values and (max(values) > values[0] or _flag(sensor, values)):
                said.append(f"{sensor.name} reports throttling during the run; cool the device, or check its supply")
        return said

    def to_dict(self) -> dict[str, Any]:
        """Fields of the JSON output: range of each sensor, and the curves."""
        rows = []
        for i, sensor in enumerate(self.sensors):
            values = [value for _, value in self.of(i)]
            row = {"kind": sensor.kind, "name": sensor.name, "unit": UNITS[sensor.kind], "values": values}
            rows.append(row | ({"lowest": min(values), "highest": max(values)} if values else {}))
        return {"seconds": self.seconds, "sensors": rows, "warnings": self.warnings()}


class Meter:
    """Context manager that reads the sensors from the start to the end of its block, in a thread of its own."""

    def __init__(self, sensors: Sequence[Sensor], period: float = PERIOD) -> None:
        self.course = Course(sensors)
        self._period = period
        self._end = Event()
        self._thread = Thread(target=self._read_on, daemon=True)

    def __enter__(self) -> Course:
        self._start = perf_counter()
        self._read()
        self._thread.start()
        return self.course

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._read()

    def _read(self) -> None:
        self.course.seconds.append(perf_counter() - self._start)
        self.course.values.append([sensor.read() for sensor in self.course.sensors])

    def _read_on(self) -> None:
        while not self._end.wait(self._period):
            self._read()


def can_measure_energy(sensors: Sequence[Sensor]) -> bool:
    """Whether there is a sensor of power or energy of the whole module or package."""
    return bool(_whole(sensors))


def _whole(sensors: Sequence[Sensor]) -> list[int]:
    """Indices of the sensors whose sum is the power or energy of the whole."""
    rails = {sensor.name: i for i, sensor in enumerate(sensors) if sensor.kind == "power"}
    for names in WHOLE:
        if rails.keys() >= set(names):
            return [rails[name] for name in names]
    return [i for i, sensor in enumerate(sensors) if sensor.kind == "energy"]


def _joules(sensor: Sensor, readings: Sequence[tuple[float, float]]) -> float | None:
    """Energy between the first and the last reading; None with fewer than two."""
    steps = list(pairwise(readings))
    if not steps:
        return None
    if sensor.kind == "power":  # trapezoidal rule
        return sum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in steps)
    wraps = sensor.wraps_at or 0.0
    return sum(e1 - e0 + (wraps if e1 < e0 else 0.0) for (_, e0), (_, e1) in steps)


def _flag(sensor: Sensor, values: Sequence[float]) -> bool:
    """Whether the sensor says "now" instead of counting, and said so."""
    return sensor.name in ("firmware", "under-voltage") and max(values) > 0
