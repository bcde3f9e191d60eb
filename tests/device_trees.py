"""Trees of kernel files of three machines, with the paths and units that the kernel and NVIDIA document."""

from pathlib import Path

CPU = "sys/devices/system/cpu"


def cpufreq(core, mhz, governor, low, high):
    folder = f"{CPU}/cpu{core}/cpufreq"
    return {
        f"{folder}/scaling_cur_freq": f"{mhz}000",
        f"{folder}/scaling_governor": governor,
        f"{folder}/scaling_min_freq": f"{low}000",
        f"{folder}/scaling_max_freq": f"{high}000",
    }


def ina3221(folder, channels):
    files = {f"{folder}/name": "ina3221"}
    for channel, (label, millivolts, milliamperes) in enumerate(channels, 1):
        files[f"{folder}/in{channel}_label"] = label
        files[f"{folder}/in{channel}_input"] = str(millivolts)
        files[f"{folder}/curr{channel}_input"] = str(milliamperes)
    # The sum of the shunt voltages: no channel of its own.
    return files | {f"{folder}/in7_label": "sum of shunt voltages", f"{folder}/in7_input": "0"}


#: Jetson AGX Orin after `nvpmodel -m 2` and `jetson_clocks`: two monitors of three channels.
ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    **cpufreq(0, 1728, "schedutil", 1728, 1728),
    **cpufreq(4, 1728, "schedutil", 1728, 1728),
    "sys/class/devfreq/17000000.gpu/cur_freq": "612000000",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "48312",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    # A thermal zone whose part is switched off: reading fails there, the file is not a number here.
    "sys/class/thermal/thermal_zone1/temp": "",
    **ina3221(
        "sys/class/hwmon/hwmon3",
        [("VDD_GPU_SOC", 19128, 168), ("VDD_CPU_CV", 19128, 42), ("VIN_SYS_5V0", 5008, 640)],
    ),
    **ina3221("sys/class/hwmon/hwmon4", [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5008, 96), ("NC", 0, 0)]),
    "sys/class/hwmon/hwmon5/name": "soctherm_oc",
    "sys/class/hwmon/hwmon5/oc1_event_cnt": "0",
    "var/lib/nvpmodel/status": "pmode:0002",
    "etc/nvpmodel.conf": (
        "< PARAM TYPE=FILE NAME=CPU_ONLINE >\n< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=MODE_30W >\n"
    ),
}
#: Raspberry Pi 5: no sensor of power that the kernel shows.
RASPBERRY_PI = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    **cpufreq(0, 2400, "ondemand", 1500, 2400),
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "51250",
    "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled": "50000",
    "sys/class/hwmon/hwmon0/name": "cpu_thermal",
    "sys/class/hwmon/hwmon0/temp1_input": "51250",
    "sys/class/hwmon/hwmon2/name": "rpi_volt",
    "sys/class/hwmon/hwmon2/in0_lcrit_alarm": "0",
}
#: A PC with an Intel processor: package, its core and memory zones, and the platform.
PC = {
    "sys/class/dmi/id/product_name": "OptiPlex 7090",
    **cpufreq(0, 4200, "powersave", 800, 4800),
    **cpufreq(1, 4150, "powersave", 800, 4800),
    "sys/devices/system/cpu/intel_pstate/no_turbo": "0",
    "sys/firmware/acpi/platform_profile": "balanced",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "7",
    "sys/class/hwmon/hwmon1/name": "coretemp",
    "sys/class/hwmon/hwmon1/temp1_label": "Package id 0",
    "sys/class/hwmon/hwmon1/temp1_input": "44000",
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0/energy_uj": "262143000000",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850",
    "sys/class/powercap/intel-rapl:0:0/name": "core",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "1000000",
    "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": "262143328850",
    "sys/class/powercap/intel-rapl:1/name": "psys",
    "sys/class/powercap/intel-rapl:1/energy_uj": "5000000",
    "sys/class/powercap/intel-rapl:1/max_energy_range_uj": "262143328850",
}
#: A Jetson Orin Nano: one monitor, whose first channel is the input of the module.
ORIN_NANO = ina3221(
    "sys/class/hwmon/hwmon1", [("VDD_IN", 5000, 1000), ("VDD_CPU_GPU_CV", 5000, 200), ("VDD_SOC", 5000, 300)]
)


def write(root: Path, tree: dict[str, str]) -> Path:
    """Write a tree below a folder."""
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root
