"""Settings of the system that decide about speed: board, power mode, governor, fixed clocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cxr_edge.benchmarks.device.sysfs import number, text


@dataclass(frozen=True)
class Settings:
    """What the system says; None where it does not.

    Attributes
    ----------
    board
        Name of the board.
    power_mode
        Mode of `nvpmodel` on a Jetson, else the platform profile.
    governors
        Governors of the cores, without repetition.
    clocks_fixed
        Whether the lowest allowed clock of every core is the highest one, as after `jetson_clocks`.
    turbo
        Whether the processor may exceed its base clock.
    """

    board: str | None
    power_mode: str | None
    governors: tuple[str, ...]
    clocks_fixed: bool | None
    turbo: bool | None

    def __str__(self) -> str:
        fixed = {None: None, True: "clocks fixed", False: "clocks not fixed"}[self.clocks_fixed]
        mode = self.power_mode and f"power mode {self.power_mode}"
        governor = f"governor {', '.join(self.governors)}" if self.governors else None
        turbo = {None: None, True: "turbo on", False: "turbo off"}[self.turbo]
        return "; ".join(part for part in (self.board, mode, governor, fixed, turbo) if part)

    def to_dict(self) -> dict[str, object]:
        """Fields of the JSON output."""
        return asdict(self)


def read_settings(root: Path = Path("/")) -> Settings:
    """Read the settings below `root`."""
    board = text(root / "proc/device-tree/model") or text(root / "sys/class/dmi/id/product_name")
    policies = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    governors = dict.fromkeys(name for p in policies if (name := text(p / "scaling_governor")))
    mode = _nvpmodel(root) or text(root / "sys/firmware/acpi/platform_profile")
    return Settings(board, mode, tuple(governors), _fixed(policies), _turbo(root))


def _nvpmodel(root: Path) -> str | None:
    """The mode that `nvpmodel` stored, with the name that its configuration gives it."""
    status = re.search(r"pmode:(\d+)", text(root / "var/lib/nvpmodel/status") or "")
    if status is None:
        return None
    wanted = int(status[1])
    return dict(_modes(text(root / "etc/nvpmodel.conf") or "")).get(wanted, str(wanted))


def _modes(configuration: str) -> Iterator[tuple[int, str]]:
    for found in re.finditer(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", configuration, re.MULTILINE):
        yield int(found[1]), found[2]


def _fixed(policies: list[Path]) -> bool | None:
    limits = [(number(p / "scaling_min_freq"), number(p / "scaling_max_freq")) for p in policies]
    known = [(low, high) for low, high in limits if low is not None and high is not None]
    return all(low == high for low, high in known) if known else None


def _turbo(root: Path) -> bool | None:
    off = number(root / "sys/devices/system/cpu/intel_pstate/no_turbo")
    boost = number(root / "sys/devices/system/cpu/cpufreq/boost")
    return not off if off is not None else (None if boost is None else bool(boost))
