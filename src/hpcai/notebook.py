"""A run for notebooks: `hpcai.open_run("tiny-1a2b")`.   run folder -> config, state, report, tables (polars, extra `notebook`)

Reads files alone and changes nothing; each look reads anew, so a run that goes on can be watched.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcai import rundir, runs
from hpcai.errors import ConfigError, PlanError, near, one_line
from hpcai.lease import RunState
from hpcai.metrics.rows import read_rows
from hpcai.rundir import RunDir
from hpcai.runs import DAMAGED

if TYPE_CHECKING:
    import polars

# columns of metrics() that are always there; a line that lacks one has null, and other keys follow these
METRICS = {
    "kind": "String", "step": "Int64", "epoch": "Int64", "loss": "Float64", "lr": "Float64", "samples_s": "Float64",
    "left_s": "Float64", "auc": "Float64", "low": "Float64", "high": "Float64", "n": "Int64", "best": "Boolean",
    "time": "Float64",
}  # fmt: skip


class OpenRun:
    """One run. `dir` has the names of its files."""

    def __init__(self, run: RunDir) -> None:
        self.dir = run

    def __repr__(self) -> str:
        return f"<run {one_line(self.dir.path.name, 120)}: {self.state.state}>"

    @property
    def config(self) -> dict[str, Any]:
        """Every key of the resolved config.

        Raises: PlanError if config.yaml is damaged.
        """
        import yaml

        try:
            value = yaml.safe_load(self.dir.config.read_text("utf-8"))
            if isinstance(value, dict):
                return value
        except (yaml.YAMLError, *DAMAGED):
            pass
        raise PlanError(f"{self._shown}: its config.yaml is damaged. Start the same command again.")

    @property
    def state(self) -> RunState:
        """What became of it: `.state` (running, completed, lost ...), `.code`, `.message`, `.step`."""
        return runs.state_of(self.dir)

    @property
    def report(self) -> dict[str, Any] | None:
        """The answer with its estimates, as in report.json; None before there is one.

        Raises: DataError if it is damaged, or of another version.
        """
        return runs.read_report(self.dir) if self.dir.report_json.exists() else None

    def metrics(self) -> polars.DataFrame:
        """metrics.jsonl: a line a row. `kind` is train or val; the columns of METRICS first, null where a line has no such key.

        Raises: PlanError if it is damaged; ConfigError without polars.
        """
        pl = _polars()
        try:
            lines = list(rundir.read_lines(self.dir.metrics))
            more = sorted({key for line in lines for key in line} - set(METRICS))
            fixed = {name: getattr(pl, kind) for name, kind in METRICS.items()}
            table = {name: pl.Series(name, [line.get(name) for line in lines], dtype=kind) for name, kind in fixed.items()}
            table |= {name: pl.Series(name, [line.get(name) for line in lines], strict=False) for name in more}
            return pl.DataFrame(table)
        except (*DAMAGED, pl.exceptions.PolarsError) as e:
            raise PlanError(f"{self._shown}: its metrics.jsonl is damaged. Mend or remove the bad line.") from e

    def rows(self, split: str) -> polars.DataFrame:
        """The scores of the cases of `split`, by case: case, patient (null if unknown), label (number of the class, null if
        unknown), and score_<label> for each class, as the config names it; a row's scores sum to 1.

        Raises: ConfigError for a split without rows, or without polars; RunError if a row is damaged.
        """
        pl = _polars()
        known = sorted({f.name.partition(".rank")[0] for f in self.dir.rows.glob("*.rank*.jsonl")})
        if split not in known:
            raise ConfigError(f"split={one_line(split, 80)}: {self._shown} has no rows of it. {near(split[:80], known)}")
        rows = read_rows(self.dir, split)
        table = {
            "case": pl.Series("case", rows.case, dtype=pl.String),
            "patient": pl.Series("patient", self._patients(split, rows.case), dtype=pl.String),
            "label": pl.Series("label", [None if y < 0 else int(y) for y in rows.label], dtype=pl.Int64),
        }
        for name, scores in zip(self._labels(rows.classes), rows.scores.T, strict=True):
            table[f"score_{name}"] = pl.Series(scores, dtype=pl.Float64)
        return pl.DataFrame(table)

    def _patients(self, split: str, cases: list[str]) -> list[str | None]:
        by_case: dict[str, str | None] = {}
        for path in self.dir.row_files(split):
            for row in rundir.read_lines(path):
                by_case.setdefault(row["case"], row.get("patient"))
        return [by_case[case] for case in cases]

    def _labels(self, classes: int) -> list[str]:
        """The names of the classes; their numbers where the config does not tell."""
        try:
            labels = [str(label) for label in self.config["data"]["labels"]]
        except (PlanError, KeyError, TypeError):
            labels = []
        return labels if len(labels) == len(set(labels)) == classes else [str(i) for i in range(classes)]

    @property
    def _shown(self) -> str:
        return f"run={one_line(self.dir.path.name, 120)}"


def open_run(run: str | Path, runs_dir: str | Path = "runs") -> OpenRun:
    """The run that a folder, a name or an unambiguous beginning of one means.

    Raises: ConfigError if it means none, several, or a sweep.
    """
    found = runs.find(str(run), Path(runs_dir))
    if not runs.is_run(found.path):
        names = ", ".join(member.run_id for member in runs.read_sweep(found.path).members[:5])
        raise ConfigError(f"sweep={one_line(found.path.name, 120)}: is a sweep. Open one of its members: {names}.")
    return OpenRun(found)


def _polars() -> Any:
    try:
        import polars
    except ImportError as e:
        raise ConfigError("polars: is not installed. Type pip install 'hpcai[notebook]'.") from e
    return polars
