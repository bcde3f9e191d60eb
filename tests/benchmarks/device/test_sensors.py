"""Sensors, settings, meter and energy on trees of an Orin, a Raspberry Pi 5 and a PC."""

from time import sleep

import device_trees as trees
import pytest

from cxr_edge.benchmarks.device.energy import energy_of
from cxr_edge.benchmarks.device.meter import Course, Meter, can_measure_energy
from cxr_edge.benchmarks.device.sensors import Sensor, find_sensors
from cxr_edge.benchmarks.device.settings import read_settings
from cxr_edge.runtime.errors import EngineError


def values(root, kind):
    return {s.name: s.read() for s in find_sensors(root) if s.kind == kind}


def test_an_orin_shows_rails_clocks_and_its_power_mode(tmp_path):
    root = trees.write(tmp_path, trees.ORIN)
    power = values(root, "power")
    assert power["VDD_GPU_SOC"] == pytest.approx(19.128 * 0.168)
    assert power["VIN_SYS_5V0"] == pytest.approx(5.008 * 0.64)
    assert values(root, "clock") == {"cpu0": 1728, "cpu4": 1728, "17000000.gpu": 612}
    assert values(root, "temperature") == {"cpu-thermal": 48.312}, "a zone that is switched off is left out"
    settings = read_settings(root)
    assert settings.power_mode == "MODE_30W" and settings.clocks_fixed
    assert str(settings).startswith("NVIDIA Jetson AGX Orin Developer Kit; power mode MODE_30W; governor schedutil")


def test_the_power_of_a_module_is_not_counted_twice(tmp_path):
    orin, nano = trees.write(tmp_path / "a", trees.ORIN), trees.write(tmp_path / "b", trees.ORIN_NANO)
    for root, watts in ((orin, 19.128 * (0.168 + 0.042) + 5.008 * 0.64), (nano, 5.0)):
        sensors = find_sensors(root)
        course = Course(sensors, [0.0, 2.0], [[s.read() for s in sensors]] * 2)
        assert course.joules() == pytest.approx(2 * watts)


def test_a_raspberry_pi_shows_throttling_and_no_power(tmp_path):
    root = trees.write(tmp_path, trees.RASPBERRY_PI)
    assert values(root, "throttling") == {"firmware": 0, "under-voltage": 0}, "flags of the past do not count"
    assert not can_measure_energy(find_sensors(root)) and values(root, "temperature") == {"cpu-thermal": 51.25}
    settings = read_settings(root)
    assert settings.board == "Raspberry Pi 5 Model B Rev 1.0" and settings.clocks_fixed is False
    with Meter(find_sensors(root), period=0.01) as course:
        trees.write(root, {"sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "50004"})
        sleep(0.05)
    assert any("firmware reports throttling" in said for said in course.warnings())


def test_a_pc_shows_the_energy_of_its_package_across_a_wrap(tmp_path):
    root = trees.write(tmp_path, trees.PC)
    sensors = find_sensors(root)
    assert list(values(root, "energy")) == ["package-0"], "core is a part of it, and psys is another domain"
    before = [s.read() for s in sensors]
    trees.write(root, {"sys/class/powercap/intel-rapl:0/energy_uj": "4671150"})
    course = Course(sensors, [0.0, 1.0], [before, [s.read() for s in sensors]])
    assert course.joules() == pytest.approx(0.32885 + 4.67115)
    settings = read_settings(root)
    assert (settings.power_mode, settings.turbo, settings.governors) == ("balanced", True, ("powersave",))


def test_a_moved_clock_and_new_throttling_are_said(tmp_path):
    root = trees.write(tmp_path, trees.PC)
    with Meter(find_sensors(root), period=0.01) as course:
        trees.write(root, {f"{trees.CPU}/cpu1/cpufreq/scaling_cur_freq": "2900000"})
        trees.write(root, {f"{trees.CPU}/cpu0/thermal_throttle/core_throttle_count": "9"})
        sleep(0.05)
    said = course.warnings()
    assert len(said) == 2 and any("clock of cpu1 moved from 2900 to 4150 MHz" in line for line in said)
    assert any(line.startswith("cpu0 reports throttling") for line in said)


def test_an_earlier_throttling_and_a_steady_clock_are_no_warning(tmp_path):
    root = trees.write(tmp_path, trees.PC)
    with Meter(find_sensors(root), period=0.01) as course:
        sleep(0.03)
    assert course.warnings() == [] and len(course.seconds) >= 3


def test_sensors_that_vanish_are_said_and_energy_is_refused(tmp_path):
    root = trees.write(tmp_path, trees.ORIN_NANO)
    sensors = find_sensors(root)

    def unload():
        (root / "sys/class/hwmon/hwmon1/curr1_input").unlink(missing_ok=True)
        sleep(0.01)

    with Meter(sensors, period=0.01) as course:
        unload()
    assert course.warnings() == ["the sensor VDD_IN vanished during the run; its figures are left out"]
    trees.write(root, trees.ORIN_NANO)
    with pytest.raises(EngineError, match=r"power sensors vanished .*VDD_IN"):
        energy_of(unload, sensors, idle=0.05, busy=0.05)


def test_the_idle_draw_is_subtracted():
    busy = False

    def decide():
        nonlocal busy
        busy = True
        sleep(0.01)

    found = energy_of(decide, [Sensor("power", "VDD_IN", lambda: 7.0 if busy else 5.0)], idle=0.3, busy=1.0)
    assert found.idle_w == pytest.approx(5) and found.busy_w == pytest.approx(7, abs=0.2)
    assert found.mj_per_decision == pytest.approx(1e3 * 2 * 1.0 / found.decisions, rel=0.15)


def test_a_machine_without_sensors_is_no_error(tmp_path):
    assert find_sensors(tmp_path) == () and str(read_settings(tmp_path)) == ""
