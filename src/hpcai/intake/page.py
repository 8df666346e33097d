"""The fingerprint -> one self-contained page: no script, no request, no image of a patient; every text escaped by Jinja2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hpcai.report
from hpcai.intake.tell import counted, group_words, notes

HERE = Path(__file__).parent
Json = dict[str, Any]


def render(facts: Json) -> str:
    """The page."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": lambda n, most: f"{n / max(most, 1):.4f}", "group_words": group_words}
    style = [(Path(hpcai.report.__file__).parent / "report.css"), HERE / "fingerprint.css"]
    return environment.get_template("fingerprint.html.j2").render(
        css=Markup("\n".join(file.read_text("utf-8") for file in style)),
        facts=facts,
        notes=list(notes(facts)),
        counted=counted,
    )
