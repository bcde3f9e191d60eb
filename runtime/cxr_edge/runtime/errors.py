"""Exceptions, warnings and exit codes; each message says what to do.

::

    CxrEdgeError
    ├── UsageError (ValueError)             an invalid argument
    ├── DataError (ValueError)              a data set folder that cannot be used
    ├── CalibrationError (ValueError)       images of a site from which no threshold can be chosen
    ├── ImageError (ValueError)             one image that cannot be read as a radiograph
    ├── BundleError (ValueError)            a bundle or model file that is invalid
    │   └── IntegrityError                  a file whose content differs from its manifest
    ├── OutputError (OSError)               a result that cannot be written
    ├── EngineError (RuntimeError)          an engine that cannot run here, or ran elsewhere than requested
    └── MissingExtraError (ImportError)     an optional dependency that is not installed
        └── MissingDecoderError             a missing decoder of one image; also an ImageError
"""

from __future__ import annotations

#: Exit codes of the command line. CI jobs rely on them.
EXIT_DONE, EXIT_CHECK_FAILED, EXIT_BAD_INPUT, EXIT_SOME_FAILED = 0, 1, 2, 3
#: A defect of cxr-edge itself (EX_SOFTWARE in sysexits.h).
EXIT_DEFECT = 70
#: 128 + the number of a signal, as shells count: SIGINT (Ctrl-C), SIGPIPE (the reader of a pipe closed it), SIGTERM.
EXIT_INTERRUPTED, EXIT_CLOSED_PIPE, EXIT_TERMINATED = 130, 141, 143


class CxrEdgeError(Exception):
    """Base class of all errors that cxr-edge raises deliberately."""


class UsageError(CxrEdgeError, ValueError):
    """An invalid argument."""


class DataError(CxrEdgeError, ValueError):
    """A data set folder that cannot be used."""


class CalibrationError(CxrEdgeError, ValueError):
    """Images of a site from which no threshold can be chosen."""


class ImageError(CxrEdgeError, ValueError):
    """One image that cannot be read as a radiograph."""


class BundleError(CxrEdgeError, ValueError):
    """A bundle or a model file that is invalid."""


class IntegrityError(BundleError):
    """A file whose content differs from its manifest, its digest or its signature."""


class OutputError(CxrEdgeError, OSError):
    """A result that cannot be written, for example because the disk is full."""


class EngineError(CxrEdgeError, RuntimeError):
    """An engine that cannot run here, or that ran elsewhere than requested."""


class MissingExtraError(CxrEdgeError, ImportError):
    """An optional dependency that is not installed."""

    def __init__(self, extra: str, module: str | None = None) -> None:
        what = f"'{module}' is not installed" if module else "a package is not installed"
        super().__init__(f"{what}; run: pip install 'cxr-edge[{extra}]'")
        self.extra = extra


class MissingDecoderError(ImageError, MissingExtraError):
    """The decoder of an image is not installed; in a batch, only this image fails."""

    def __init__(self, message: str, extra: str = "dicom") -> None:
        CxrEdgeError.__init__(self, message)
        self.extra = extra


class CxrEdgeWarning(UserWarning):
    """Something that works, but that the user should know."""
