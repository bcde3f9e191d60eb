"""Self-contained HTML pages of the templates beside this module."""

from __future__ import annotations

from base64 import b64encode


def fill(template: str, **content: object) -> str:
    """Fill a template, which embeds PNG and JPEG files by `picture|embed`, so that the page can be sent as it is."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cxr_edge.train", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embed"] = embed
    return environment.get_template(template).render(content)


def embed(picture: bytes) -> str:
    """A PNG or JPEG file as a data URI."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64," + b64encode(picture).decode()
