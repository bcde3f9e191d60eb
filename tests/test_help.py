"""Each command explains itself; tests/runtime does this for those that a device has."""

import pytest


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "audit",
        "train",
        "evaluate",
        "export",
        "verify",
        "predict",
        "explain",
        "serve",
        "calibrate",
        "monitor",
        "bench",
        "inspect",
        "doctor",
    ],
)
def test_every_command_explains_itself(cli, command):
    code, text, _ = cli(command, "--help")
    assert code == 0 and "Usage" in text
