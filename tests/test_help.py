"""Each command explains itself; tests/runtime does this for those that a device has."""

import pytest

from cxr_edge.runtime.cli.main import ORDER


@pytest.mark.parametrize("command", ORDER)
def test_every_command_explains_itself(cli, command):
    code, text, _ = cli(command, "--help")
    assert code == 0 and "Usage" in text
