"""Small DICOM files of each transfer syntax, with which `doctor` tests the decoders."""

from __future__ import annotations

import zlib
from base64 import b64decode
from struct import pack

import numpy as np

from cxr_edge.runtime.imaging.dicom_file import DEFLATED, EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE, Tag
from cxr_edge.runtime.imaging.gray import Gray

_SIDE = 32
#: Maximum error of a pixel in [0, 255]; lossless samples are exact up to rounding.
TOLERANCE = 8
_NATIVE = (IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG)
_JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
# Codestreams of the ramp `_ramp`, with 12 bits and in JPEG Baseline with 8, packed by zlib.
_CODESTREAMS = {
    "1.2.840.10008.1.2.5": (
        "eNqdyy0wRlEUheHt+nB/zr1XEAQzSxAEQRAEgfAFQRAEQRAEwQxBEBRBEARBEARBEARBEBRBEARBEARBEARBMPts6tllzTgzJ7zrmZ2JyOzf"
        "38zkX09FezTTXu1on/brQHQtubnFcvE3edqaR9dSmFusEH9TpK1FdC2lucVK8Tdl2lpG11KZW6wSf1OlrVV0LcHcYkH8TUhbQ3QttbnFavE3"
        "ddpaR9fSmFusEX/TpK1NdC2tucVa8TctZG7vrtPdv8/nDx7CwuHj4OLR09DS8fPw8snLyMrpK4iPgvgqiJ+B+BuIj4H4Goifg/g7iI+D+DqI"
        "X4D4B4hPgPgGiF+C+CeIT4L4FohfgfgXiE+B+DaIX4P4N4hPg/gOiN+A+A+Iz4D4Lojf/gJ9fg3u"
    ),
    "1.2.840.10008.1.2.4.50": (
        "eNr7f+P/AwYBLzdPNwZGRgYGRiBk+H+bwZmBmYkJhICABYhYOVhZWVhYudjZ2Th4uHh4uLm4uXn5hAR4+QT5uLkFxAQEhUVERUV5+MUlxEQk"
        "hERERf4fYODmYFBgUGBkFGT4f4RBDGg+0GwkwM7BCRQXF2BkYEYRZ2NQMvp/i4EDpNye4byz20ePNRn3NEV9pY8qrVxcsWQqjBFqki/Sdaz3"
        "0aQQEGNZ76OJERf3BGnNMu/yDAAytKXMu1yDgbpXAXXb/78JAADPNUc="
    ),
    "1.2.840.10008.1.2.4.51": (
        "eNr7f+P/AwYBLzdPNwZGRgYGRiBk+H+bwZmBmYkJhICABYhYOVhZWVhYudjZ2Th4uHh4uLm4uXn5hAR4+QT5uLkFxAQEhUVERUV5+MUlxEQk"
        "hERERf4fZODmYVBgUGBkFGT4f4RBDGg+0GwkwM3DCxSXFmBgZGFGFudiUDNzDk4s/H+LgQOkxZ7hfLrUx/XdphsDz6pmw1lZmGKaXm17sh+d"
        "zQkp9oxCsI5hsLyCJq6X+rE5WlTmUthGLKyFMNaUFdnH9ulcO+puMnUNnIVFbP//mwCQW2jo"
    ),
    "1.2.840.10008.1.2.4.57": (
        "eNr7f+P/AwYBLzdPNwZGRgYGRiBk+H+YgZuHQYFBgZFRkOH/EQYxoBRQGBmw8/y/xcABFGVhYDj/n8FxwYUMEyletmbcjCagLqZBSTD/vwkA"
        "oMoqAA=="
    ),
    "1.2.840.10008.1.2.4.70": (
        "eNr7f+P/AwYBLzdPNwZGRgYGRiBk+H+YgZuHQYFBgZFRkOH/EQZRsBQyYOf5f4uBgxGsev5f1lEwCkbBCAXs/28CADvGIlg="
    ),
    "1.2.840.10008.1.2.4.80": (
        "eNr7f+P/dwZuAQYFBgVGRkGG/z8YeBn//2cQYnBmFGFw+H+LgYORkQEIlvA0TjD8VwvC896bV6899zh/2623Nn/21Fj/3l1t9WtXleUnLkcP"
        "zl81e+P0rntPPXQ3Z2tJcVFhQX5ebk52VmZGelpqiodOjo8O9+vTq7uzs721tbm53t42y7q62K3n5uaUk5NFGo52i/GIr4/ZWXR1dZhOxMao"
        "rVlXtUJWBk0FEv5XVgQc5jHY9XrdrtM6m05rrYKALo35Gou6gEhtVnbUta1rs4OmLNX0CpqyF0JPApGhEFAB0dEBApM8VaZnqgBJEAoNjYUY"
        "t//O/v/1/8v5gUTtbiBRnwMiboEEa+WBRF0+iK8OIrpBxEEQcQ9EvAPi/2UghdUghbUghXXLQTLeIGIhiDgHIp6BFBaBFFaCFNYk/L8JAPNk"
        "zZg="
    ),
    "1.2.840.10008.1.2.4.81": (
        "eNr7f+P/dwZuAQYFBgVGRkGG/z8YeBn//2eQZghi1GRw+H+LgYORkYGZgWGRoUVPr0RPr5RJ4b7f7/f9frvtdvW999X3vgt1eQYtddYxOsy9"
        "YTf3ut3znu88lz3r2Vaha4Y9yRJHN2YnXTu6Njvq2vL09JTp6WllaWmpaaGpqaFhQBC0ZtWqVbdzt93y3XbZcymvya1clUkhS0OWek1ZtWrK"
        "ypBV9jZ8lf/r6j/8r/9f86P+f/G/OnkQ0x5IlNcDiTwgrr8LInaDiHIgUfcexNoPUgZifAYR50GEPYZQHUhVFYj3GkSsRxF68f8mAHU/oug="
    ),
    "1.2.840.10008.1.2.4.90": (
        "eNr77/8/kEGTAQQUoBgGUPmM/IyM/4MYeEBMBhYWFgbG/zEMAg4NHR0T4Oh/CoMWA6NzUWpiSWqKQlKlgruLs6++f0FqnleAq7tCWWpRcWZ+"
        "noKRnrGewf8JDFxgg6uAJk2+/2NCAHtjeMTd1Dyr+24H7BM82N9w8DIJJXLbdhsckJ9hw/izuUFJiiO2f38/c/3dwHlB8Qf4D2gx1DE6mC2c"
        "uS55cdLTpf22y0yiBe7EWIlcPMB+S5xBPiMgfvnxjt17W4C2cM9do+nIfpz/AAP3/5sMAK7cSw8="
    ),
    "1.2.840.10008.1.2.4.91": (
        "eNr77/8/kEGTAQQUoBgGUPmM/IyM/4MYeEBMBhYWFgaG/zEMsk7rFdYzrGdY92B5ABBmTGAFQvfpl4Ew6X8KgxYDo3NRamJJaopCUqWCu4uz"
        "r75/QWqeV4Cru0JZalFxZn6egpGesZ7B/wkMXGBbzjAw/p98/s8CA45Z9xwzPdVfHKy88vyA/Aclhv8ODbzMuvdfnE9Zz20nOfuK0If1B9hf"
        "KTLIr2hQklC2mmauyBfFvE7rw+8D0sx1ar1H703m9uJ/18tS8E3sAPs9Ywb5ihNmCxvPxyaKfjbeI8ug1xDJ9tVW7N+KTxwL/W2X6XWk3Ux5"
        "dtQ29YAKw7tv5utyGHqrXmytP8D4ZVYD80uV+OXHlQ4nTlsXZ71xg5ZDidyep59Tv/B+d/vCPXeNZmSFdcdiE4OS5CPNivfvzf9/EwAM8n7s"
    ),
    "1.2.840.10008.1.2.4.201": (
        "eNr77/8/kEHTgQEIFKAYBlD5jPyMjP8DGDgYmIAcrv9BDDxAFiMDKwuLA+P/GAZhhY4JSKCjo+N/CoM4A6N/QWqeV4CHQlhqkYKBnpGZnrHe"
        "/wkMXGAjTzMw/p98gEFt8zdW9hKGAwzCDgzCDB4/mYEcCAkUAqKGRR2fmJpKGBaJPGVYHAIUFA1gYI0IWODQ+GlVEVMpQ4BTI9PTA06Mb7YB"
        "5cRaGBgzG5Sg4PmpqqrCpgoGJVcXMPj3tyeh+pth45tdQKW6OxhYLzKggp//uarAoJCplqEBRerf/4qEFvb9SQJyfzscqr8pMr7ZzPj/JgBO"
        "YVny"
    ),
    "1.2.840.10008.1.2.4.203": (
        "eNr77/8/kEHTgQEIFKAYBlD5jPyMjP8DGDgYmIAcrf9BDDxAFiMDKwuLA8P/GAZlpe0S214B4Z71DOsZ1j1a7gOEKROYgdBt+iUgTPyfwiDO"
        "wOhfkJrnFeChEJZapGCgZ2SmZ6z3fwIDF9iGJAbG/5MPMDBa7J3wgIO9hAHINGFgEGZ48IOlvQRKHmBgWsfAIJpgnKj2gnXvByamLQzGjvpn"
        "WKoeMrFtAcqybmVgELvh1mtj82yWd83H3h4ogyGdXcIhcgaDmxwEFnfai/8AE0wCDMc5HC7sBGoWD2ZgiM1ImKCwbt2Bg47YKE8NOS/2SY3H"
        "RFs85zIoMArBUfiD9Q37mfYz1bPWsf7j+sP1R5ZZQuRlT0JwCfPkqCcXNjACTc8Hmv7i3vpTpXfDp77etV/reml86LrX/3bFXP9bunPd79dF"
        "sd+vP91V+Z9RtR4J1gms5y5jvHcXAvS/H63dOf13kf73p2HvTu+9M716p/73ovh3T/+x/9dhaOEqOSSgeZnDYbmPItPsrWvDtkZdzbJm/H8T"
        "AHDtty4="
    ),
}
#: Transfer syntaxes that have a sample.
SAMPLES = (*_NATIVE, *_CODESTREAMS)


def sample(syntax: str) -> bytes:
    """A DICOM file that shows a diagonal ramp from black to white, in one of `SAMPLES`."""
    deep = syntax != _JPEG_BASELINE
    order, implicit = ">" if syntax == EXPLICIT_BIG else "<", syntax == IMPLICIT_LITTLE
    numbers = {
        Tag.SamplesPerPixel: 1,
        Tag.Rows: _SIDE,
        Tag.Columns: _SIDE,
        Tag.BitsAllocated: 16 if deep else 8,
        Tag.BitsStored: 12 if deep else 8,
        Tag.HighBit: 11 if deep else 7,
        Tag.PixelRepresentation: 0,
    }
    elements = {tag: (b"US", pack(f"{order}H", number)) for tag, number in numbers.items()}
    elements[Tag.PhotometricInterpretation] = (b"CS", b"MONOCHROME2 ")
    elements[Tag.Modality] = (b"CS", b"DX")
    body = b"".join(_element(tag, *elements[tag], order, implicit) for tag in sorted(elements))
    if syntax in _NATIVE:
        body += _element(Tag.PixelData, b"OW", (65 * _ramp()).astype(f"{order}u2").tobytes(), order, implicit)
    else:
        body += _encapsulated(zlib.decompress(b64decode(_CODESTREAMS[syntax])))
    if syntax == DEFLATED:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = packer.compress(body) + packer.flush()
    meta = _element(Tag.TransferSyntaxUID, b"UI", syntax.encode() + b"\0" * (len(syntax) % 2), "<", False)
    return b"\0" * 128 + b"DICM" + meta + body


def is_sample(gray: Gray) -> bool:
    """Whether an image is the ramp that every sample shows."""
    expected = np.rint(_ramp() * (255 / _ramp().max()))
    return gray.shape == expected.shape and bool(np.abs(gray - expected).max() <= TOLERANCE)


def _ramp() -> np.ndarray[tuple[int, int], np.dtype[np.int_]]:
    return np.add.outer(np.arange(_SIDE), np.arange(_SIDE))


def _element(tag: int, vr: bytes, value: bytes, order: str, implicit: bool) -> bytes:
    head = pack(f"{order}HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + pack("<I", len(value)) + value
    length = pack(f"{order}xxI", len(value)) if vr == b"OW" else pack(f"{order}H", len(value))
    return head + vr + length + value


def _encapsulated(codestream: bytes) -> bytes:
    """The pixel data element of one fragment, with an empty table of frame offsets."""
    codestream += b"\0" * (len(codestream) % 2)
    item, end = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"
    start = pack("<HH2sxxI", 0x7FE0, 0x0010, b"OB", 0xFFFFFFFF)
    return start + item + pack("<I", 0) + item + pack("<I", len(codestream)) + codestream + end
