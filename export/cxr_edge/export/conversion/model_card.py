"""The model card of a bundle, `MODEL_CARD.md`."""

from __future__ import annotations

from cxr_edge.runtime.bundles.bundle import Manifest


def model_card(manifest: Manifest) -> str:
    """Markdown that says what the model is for, how it was trained, and how it performed."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cxr_edge.export", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    metrics = manifest.training["metrics"]
    parts = {part: metrics[part] for part in ("validation", "holdout") if part in metrics}
    return environment.get_template("model_card.md.j2").render(manifest=manifest, parts=parts)
