"""Silence for native libraries that write to standard error past Python."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module


def import_keras_quietly() -> None:
    """Import Keras and start its backend without their greetings; errors still show.

    For the commands of the layers above; nothing in the runtime calls it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with quiet_native_stderr():
        keras = import_module("keras")
        keras.ops.zeros(())  # the backend looks for its devices at the first operation


@contextmanager
def quiet_native_stderr() -> Iterator[None]:
    """Hold back what C and C++ code writes to standard error inside the block; show it if the block fails.

    TensorFlow, its converter and LiteRT greet on file descriptor 2, where neither `logging` nor `warnings` reaches.
    """
    try:
        sys.stderr.flush()
        saved = os.dup(2)
    except (AttributeError, OSError):  # no standard error, as in a service: nothing to silence
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
