"""What a page answers of TRIPOD+AI and CLAIM: checklists.yaml, report.json, sections of the page -> rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from hpcai.report.folder import Json

FILE = Path(__file__).parent / "checklists.yaml"


def checklists(report: Json, sections: Mapping[str, str]) -> list[Json]:
    """Each list with its `name`, `cite`, `note`, `items` and how many are `here`, by the `authors` and `not_stated`.

    An item has `id`, `title`, `here`: (section, its heading) that answer, `says`: a sentence that does, `stated`: (key,
    text) of `study`, and `status`. `sections`: headings of what is on the page, by their anchors.
    """
    read = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return [_filled(told, report["study"], sections) for told in read]


def _filled(told: Json, study: Mapping[str, str], sections: Mapping[str, str]) -> Json:
    items = [_answered(item, study, sections) for item in told["items"]]
    count = {status: sum(item["status"] == status for item in items) for status in ("here", "authors", "not_stated")}
    return {**told, "items": items, **count}


def _answered(item: Json, study: Mapping[str, str], sections: Mapping[str, str]) -> Json:
    here = [(name, sections[name]) for name in item.get("here", []) if name in sections]
    stated = [(key, study[key]) for key in item.get("study", []) if key in study]
    says = item.get("says", "")
    status = "here" if here or says else "authors" if stated else "not_stated"
    ask = [f"study.{key}" for key in item.get("study", []) if key not in study]
    return {
        "id": item["id"],
        "title": item["title"],
        "here": here,
        "says": says,
        "stated": stated,
        "ask": ask,
        "status": status,
    }
