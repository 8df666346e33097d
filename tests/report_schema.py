"""report.json against its schema, which stands in the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

import hpcai.report
from hpcai import rundir
from hpcai.rundir import RunDir

SCHEMA = json.loads((Path(hpcai.report.__path__[0]) / "schema.json").read_text("utf-8"))


def faults(report: Any) -> list[str]:
    """Where `report` is not as the schema says."""
    found = jsonschema.Draft202012Validator(SCHEMA).iter_errors(report)
    return [f"{e.json_path}: {e.message}"[:200] for e in found]


def check_report(run: RunDir) -> dict[str, Any]:
    """report.json of a run, which fits its schema."""
    report: dict[str, Any] = rundir.read_json(run.report_json)
    assert faults(report) == []
    return report
