"""Starting Keras without the greetings of its backend."""

from __future__ import annotations

import os
from importlib import import_module

from cxr_edge.runtime.quiet import quiet_native_stderr


def import_keras_quietly() -> None:
    """Import Keras and start its backend without their greetings; errors still show."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with quiet_native_stderr():
        keras = import_module("keras")
        keras.ops.zeros(())  # the backend looks for its devices at the first operation
