"""The errors that users meet, each saying what to do next.

::

    CxrEdgeError
    ├── UsageError (ValueError)             an argument that cannot be meant
    ├── DataError (ValueError)              a data set folder that cannot be used
    ├── ImageError (ValueError)             one image that cannot be read as a radiograph
    ├── BundleError (ValueError)            a bundle or model file that is not what it says
    │   └── IntegrityError                  … whose content differs from its manifest
    ├── OutputError (OSError)               a result that cannot be written
    ├── EngineError (RuntimeError)          an engine that cannot run here, or ran elsewhere than asked
    └── MissingExtraError (ImportError)     an optional dependency that is not installed
        └── MissingDecoderError             … without which one image cannot be read; an ImageError, too
"""

from __future__ import annotations

#: Exit codes of the command line; a contract with CI.
EXIT_DONE, EXIT_CHECK_FAILED, EXIT_BAD_INPUT, EXIT_SOME_FAILED = 0, 1, 2, 3
#: A defect of cxr-edge itself; EX_SOFTWARE of sysexits.h.
EXIT_DEFECT = 70
#: 128 + the number of a signal, as shells count: SIGINT (Ctrl-C), SIGPIPE (the reader of a pipe closed it), SIGTERM.
EXIT_INTERRUPTED, EXIT_CLOSED_PIPE, EXIT_TERMINATED = 130, 141, 143


class CxrEdgeError(Exception):
    """Base of every error that cxr-edge raises on purpose."""


class UsageError(CxrEdgeError, ValueError):
    """An argument that cannot be meant."""


class DataError(CxrEdgeError, ValueError):
    """A data set folder that cannot be used."""


class ImageError(CxrEdgeError, ValueError):
    """One image that cannot be read as a radiograph."""


class BundleError(CxrEdgeError, ValueError):
    """A bundle or a model file that is not what it says."""


class IntegrityError(BundleError):
    """A model file whose content differs from what its manifest vouches for."""


class OutputError(CxrEdgeError, OSError):
    """A result that cannot be written, as on a full disk."""


class EngineError(CxrEdgeError, RuntimeError):
    """An engine that cannot run here, or that ran elsewhere than asked."""


class MissingExtraError(CxrEdgeError, ImportError):
    """An optional dependency that is not installed."""

    def __init__(self, extra: str, module: str | None = None) -> None:
        what = f"'{module}' is not installed" if module else "a package is not installed"
        super().__init__(f"{what}; run: pip install 'cxr-edge[{extra}]'")
        self.extra = extra


class MissingDecoderError(ImageError, MissingExtraError):
    """One image whose decoder is not installed; in a batch, only that image fails."""

    def __init__(self, message: str, extra: str = "dicom") -> None:
        CxrEdgeError.__init__(self, message)
        self.extra = extra


class CxrEdgeWarning(UserWarning):
    """Something that works but that the user should know."""
