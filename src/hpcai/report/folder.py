"""What a run folder says, read once: files -> Folder. Ids of cases and patients stay in `rows` and `split.json`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from hpcai import lease, meter
from hpcai.errors import RunError
from hpcai.metrics.classification import Threshold
from hpcai.metrics.rows import Rows, read_rows
from hpcai.metrics.table import CaseTable, read_cases
from hpcai.rundir import RunDir, read_json, read_lines

Json = dict[str, Any]
PNG = re.compile(r"iVBORw0KGgo[A-Za-z0-9+/]{20,200000}={0,2}")  # base64; begins as every PNG does
PRIVATE = ("mail", "mlflow")  # keys whose value is an address, perhaps with a password
SPLITS = ["test", "val", "train", "all"]  # in the order of interest


@dataclass(frozen=True)
class Folder:
    """The files of a run; what is absent is empty or None."""

    run_id: str
    config: Json
    config_text: str
    plan: Json
    environment: Json
    data: Json
    split: Json  # counts, classes, duplicates, patients; of a cross-validation its runs
    together: Json  # of an ensemble: its members, and what it gained
    threshold: Threshold | None
    metrics: list[Json]
    lives: list[list[Json]]  # a life's records, all ranks, in order of time
    preflight: list[Json]  # the verdict on each node, where it was asked for
    use: list[meter.Use]  # what each rank used, where it was looked at
    failed: int
    rows: dict[str, Rows]
    cases: CaseTable | None = None  # what is known of each case but its score
    screening: Json = field(default_factory=dict)  # what newborn screening came to; empty for every other task
    ledger: Json = field(default_factory=dict)  # how often the judged split had been scored, as ledger.py told it
    fit: Json = field(default_factory=dict)  # of job=fit on classes of cases: what the judged cases say, and what was chosen
    pictures: dict[str, str] = field(default_factory=dict)  # case -> PNG as base64; empty unless they may be shown

    @property
    def job(self) -> str:
        """train, evaluate, predict or gather."""
        return str(self.config.get("job", "train"))

    @property
    def labels(self) -> list[str]:
        """The name of each class; its number where config and rows disagree."""
        names = [str(name) for name in self.config.get("data", {}).get("labels", [])]
        classes = {rows.classes for rows in self.rows.values()} or {len(names)}
        return names if classes == {len(names)} else [f"class {k}" for k in range(max(classes))]

    @property
    def labelled(self) -> dict[str, Rows]:
        """The splits whose true classes are known, the most interesting first."""
        return {split: rows.labelled() for split, rows in self.rows.items() if (rows.label >= 0).any()}

    @property
    def judged(self) -> str | None:
        """The split that the answer is about: a training's test, a cross-validation's oof, what evaluate scored; else None."""
        if self.job == "predict":
            return None
        wanted = {"train": ["test"], "fit": ["test", "oof"], "gather": ["oof"]}.get(self.job) or list(self.labelled)
        return next((split for split in wanted if split in self.labelled), None)

    @property
    def ranks(self) -> int:
        """Processes that the run asked for."""
        asked = self.plan.get("resources") or self.config.get("resources") or {}
        return int(asked.get("nodes", 1)) * int(asked.get("tasks_per_node", 1))


def read_folder(run: RunDir) -> Folder:
    """Everything that the report is made of.

    Raises:
        RunError: a file is damaged.
    """
    config_text = run.config.read_text(encoding="utf-8") if run.config.exists() else ""
    config, plan = without_paths(_yaml(config_text)), _json(run.plan)
    split = _json(run.split)
    return Folder(
        run_id=str(plan.get("run_id", run.path.name)),
        config=config,
        config_text=_text(config),
        plan=plan,
        environment=_json(run.environment) | _json(run.runtime),
        data=_json(run.data),
        split={key: split[key] for key in ("by", "counts", "classes", "duplicates", "patients", "runs") if key in split},
        together=_json(run.together),
        threshold=_threshold(_json(run.threshold)),
        metrics=_lines(run.metrics),
        lives=_lives(run),
        preflight=[_json(file) for file in sorted(run.preflight.glob("*.json"))],
        use=meter.read_use(run),
        failed=len({str(line.get("case")) for file in run.failed_files() for line in _lines(file)}),
        rows={split: read_rows(run, split) for split in _splits(run) if _any_row(run, split)},
        cases=read_cases(run),
        screening=_json(run.screening),
        ledger=_json(run.ledger),
        fit=_json(run.fit),
        pictures=read_pictures(run) if may_show(config, _json(run.screening)) else {},
    )


def without_paths(value: Any, key: str = "") -> Any:
    """A config as a page may show it: a folder's name can name a patient, so `<path>` stands for it; a run keeps its name."""
    if isinstance(value, dict):
        return {k: without_paths(v, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [without_paths(v, key) for v in value]
    if not isinstance(value, str):
        return value
    if key in ("from_run", "depends_on", "merge"):
        return Path(value).name
    if key in PRIVATE:
        return f"<{key}>"
    return "<path>" if value.startswith(("/", "~", "./", "../")) else value


def _text(config: Json) -> str:
    text: str = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100) if config else ""
    return text


def may_show(config: Json, screening: Json) -> bool:
    """Whether ids and pictures of cases may be shown to anybody: data.shareable says so, and they are no real newborns.

    A preset of simulated newborns is shareable, and a laboratory that gives it another data.path may forget to say otherwise.
    """
    data = config.get("data")
    return isinstance(data, dict) and data.get("shareable") is True and screening.get("simulated") is not False


def read_pictures(run: RunDir) -> dict[str, str]:
    """What pictures.json holds; a page gets PNG alone.

    Raises:
        RunError: it is damaged.
    """
    found = _json(run.pictures).get("cases", {})
    if not (isinstance(found, dict) and all(isinstance(png, str) and PNG.fullmatch(png) for png in found.values())):
        raise RunError("pictures.json: is damaged. Start the run anew.")
    return found


def _json(path: Path) -> Json:
    if not path.exists():
        return {}
    try:
        value = read_json(path)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise RunError(f"{path.name}: is damaged. Start the run anew.")
    return value


def _yaml(text: str) -> Json:
    try:
        value = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        value = None
    if not isinstance(value, dict):
        raise RunError("config.yaml: is damaged. Start the run anew.")
    return value


def _lines(path: Path) -> list[Json]:
    try:
        return list(read_lines(path))
    except ValueError:
        raise RunError(f"{path.name}: a line is damaged. Start the run anew.") from None


def _threshold(value: Json) -> Threshold | None:
    known = {field.name for field in fields(Threshold)}
    return Threshold(**{key: v for key, v in value.items() if key in known}) if value else None


def _lives(run: RunDir) -> list[list[Json]]:
    try:
        told = [lease.records(run, life) for life in range(1, lease.last_life(run) + 1)]
    except ValueError:
        raise RunError("lives: a record is damaged. Start the run anew.") from None
    lives = [[record for rank in sorted(ranks) for record in ranks[rank]] for ranks in told]
    return [sorted(life, key=lambda record: float(record["time"])) for life in lives if life]


def _splits(run: RunDir) -> list[str]:
    found = {path.name.split(".rank")[0] for path in run.rows.glob("*.rank*.jsonl")}
    return sorted(found, key=lambda split: ([*SPLITS, split].index(split), split))


def _any_row(run: RunDir, split: str) -> bool:
    return any(True for file in run.row_files(split) for _ in read_lines(file))
