"""Importing Keras without the messages of its backend."""

from __future__ import annotations

import os
from importlib import import_module

from cxr_edge.runtime.quiet import quiet_native_stderr


def import_keras_quietly() -> None:
    """Import Keras and start its backend without messages on standard error; exceptions are not affected."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with quiet_native_stderr():
        keras = import_module("keras")
        keras.ops.zeros(())  # the backend searches for devices at the first operation
