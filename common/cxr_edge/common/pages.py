"""Reports from templates. HTML pages are single files with embedded pictures."""

from __future__ import annotations

from base64 import b64encode


def render_page(package: str, template: str, **content: object) -> str:
    """Render a template from the folder `templates` of a package: HTML, or Markdown if its name ends in `.md.j2`.

    A template may extend `base.html.j2` and import `gallery.html.j2` of this package. The filter `embed` turns a PNG or
    JPEG file (bytes) into a data URI.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "templates"), PackageLoader("cxr_edge.common", "templates")]),
        autoescape=not template.endswith(".md.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["embed"] = embed
    return environment.get_template(template).render(content)


def embed(picture: bytes) -> str:
    """Encode a PNG or JPEG file as a data URI."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64," + b64encode(picture).decode()
