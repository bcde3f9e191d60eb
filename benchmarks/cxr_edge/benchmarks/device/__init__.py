"""The device's own sensors: clock, temperature, throttling, power mode, and energy per decision."""
