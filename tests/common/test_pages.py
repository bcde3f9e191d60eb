"""Reports are single files: pictures are embedded, text is escaped, nothing is left out in silence."""

import base64
import importlib
import sys

import cv2
import numpy as np
import pytest
from jinja2 import UndefinedError

from cxr_edge.common.pages import embed, render_page

PICTURE = np.zeros((4, 4), np.uint8)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with templates, as each stage has."""
    templates = tmp_path / "pages_of_a_test" / "templates"
    templates.mkdir(parents=True)
    (templates.parent / "__init__.py").touch()
    (templates / "plain.html.j2").write_text("<p>{{ text }}</p><img src='{{ picture|embed }}'>")
    (templates / "page.html.j2").write_text('{% extends "base.html.j2" %}')
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield templates.parent.name
    sys.modules.pop(templates.parent.name, None)


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "png"), (".jpeg", "jpeg")])
def test_a_picture_is_embedded_as_what_it_is(suffix, kind):
    content = cv2.imencode(suffix, PICTURE)[1].tobytes()
    head, data = embed(content).split(",")
    assert head == f"data:image/{kind};base64" and base64.b64decode(data) == content


def test_text_is_escaped_and_pictures_are_not(package):
    content = cv2.imencode(".png", PICTURE)[1].tobytes()
    page = render_page(package, "plain.html.j2", text="<script>", picture=content)
    assert page == f"<p>&lt;script&gt;</p><img src='{embed(content)}'>"


def test_a_value_that_is_missing_is_an_error(package):
    with pytest.raises(UndefinedError, match="text"):
        render_page(package, "plain.html.j2", picture=b"")


def test_a_template_may_extend_the_common_base(package):
    page = render_page(package, "page.html.j2", title="t")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert not [word for word in ("http://", "https://") if word in page]
