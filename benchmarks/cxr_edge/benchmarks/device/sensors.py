"""The sensors that Linux shows, each a function from nothing to a number.

Paths: Documentation/hwmon/sysfs-interface, hwmon/ina3221, power/powercap, driver-api/thermal, admin-guide/pm/cpufreq.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cxr_edge.benchmarks.device.sysfs import hwmon, number, text

#: Kinds of sensors and their units.
UNITS = {"clock": "MHz", "temperature": "°C", "power": "W", "energy": "J", "throttling": ""}
#: Where Raspberry Pi OS shows the firmware's flags of throttling, in hexadecimal.
PI_FLAGS = ("sys/devices/platform/soc*/soc*firmware/get_throttled",)
#: Flags of now: under-voltage, capped, throttled, soft temperature limit. Bits from 16 on are about the past.
PI_NOW = 0b1111


@dataclass(frozen=True)
class Sensor:
    """A number that the kernel shows.

    Attributes
    ----------
    kind
        A key of `UNITS`.
    name
        The name that the kernel gives it, such as `VDD_IN` or `cpu0`.
    read
        The value in the unit of the kind; None if the sensor is gone. `throttling` counts events, or is 1 while it
        lasts.
    wraps_at
        Value at which a counter of energy (J) starts again from 0.
    """

    kind: str
    name: str
    read: Callable[[], float | None]
    wraps_at: float | None = None


def find_sensors(root: Path = Path("/")) -> tuple[Sensor, ...]:
    """All sensors below `root` that can be read now."""
    found = (*_clocks(root), *_temperatures(root), *_rails(root), *_rapl(root), *_throttling(root))
    return tuple(sensor for sensor in found if sensor.read() is not None)


def _scaled(path: Path, factor: float, base: int = 10) -> Callable[[], float | None]:
    def read() -> float | None:
        found = number(path, base)
        return None if found is None else found * factor

    return read


def _clocks(root: Path) -> Iterator[Sensor]:
    for policy in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq")):
        yield Sensor("clock", policy.parent.name, _scaled(policy / "scaling_cur_freq", 1e-3))
    for device in sorted((root / "sys/class/devfreq").glob("*gpu*")) + sorted(
        (root / "sys/class/devfreq").glob("*.ga10b")
    ):
        yield Sensor("clock", device.name, _scaled(device / "cur_freq", 1e-6))


def _temperatures(root: Path) -> Iterator[Sensor]:
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        yield Sensor("temperature", text(zone / "type") or zone.name, _scaled(zone / "temp", 1e-3))
    for chip, folder in hwmon(root):
        if chip in ("coretemp", "k10temp"):
            for path in sorted(folder.glob("temp*_input")):
                label = text(path.with_name(path.name.replace("_input", "_label")))
                yield Sensor("temperature", f"{chip} {label or path.name}", _scaled(path, 1e-3))


def _rails(root: Path) -> Iterator[Sensor]:
    """Channels of INA3221 monitors: voltage of the bus (mV) times current (mA)."""
    for chip, folder in hwmon(root):
        if chip != "ina3221":
            continue
        for path in sorted(folder.glob("curr[1-3]_input")):
            channel = path.name[4]
            volts, amperes = _scaled(folder / f"in{channel}_input", 1e-3), _scaled(path, 1e-3)
            name = text(folder / f"in{channel}_label") or f"{folder.name} channel {channel}"
            yield Sensor("power", name, _product(volts, amperes))


def _product(first: Callable[[], float | None], second: Callable[[], float | None]) -> Callable[[], float | None]:
    def read() -> float | None:
        values = first(), second()
        return None if values[0] is None or values[1] is None else values[0] * values[1]

    return read


def _rapl(root: Path) -> Iterator[Sensor]:
    """Packages only: their counters include those of cores, uncore and memory controller."""
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name, limit = text(zone / "name") or "", number(zone / "max_energy_range_uj")
        if name.startswith("package"):
            yield Sensor("energy", name, _scaled(zone / "energy_uj", 1e-6), None if limit is None else limit * 1e-6)


def _throttling(root: Path) -> Iterator[Sensor]:
    for path in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")):
        yield Sensor("throttling", path.parents[1].name, _scaled(path, 1))
    for pattern in PI_FLAGS:
        for path in sorted(root.glob(pattern)):
            yield Sensor("throttling", "firmware", _flags(path))
    for chip, folder in hwmon(root):
        if chip == "rpi_volt":
            yield Sensor("throttling", "under-voltage", _scaled(folder / "in0_lcrit_alarm", 1))
        for path in sorted(folder.glob("oc*_event_cnt")):
            yield Sensor("throttling", f"{chip} {path.name.split('_')[0]}", _scaled(path, 1))


def _flags(path: Path) -> Callable[[], float | None]:
    def read() -> float | None:
        found = number(path, 16)
        return None if found is None else float(bool(found & PI_NOW))

    return read
