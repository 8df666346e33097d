"""report.json and curves -> report.html: one file, no script, no request; every text escaped by Jinja2.

The page is report.html.j2, its sections parts/*.html.j2, its look report.css. figures.py draws, tables.py sets the tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpcai.report import screened, tables, used
from hpcai.report.checklists import checklists
from hpcai.report.figures import figures
from hpcai.report.folder import Folder, Json
from hpcai.report.words import chance, decimal, duration, figure, moment, named, number, percent, place, signed, size

HERE = Path(__file__).parent
FIRST = ("sensitivity", "specificity", "ppv", "npv", "accuracy", "balanced_accuracy")  # beside the answer, at most four
USE = "Research use. Not a medical device."
STUDY = {  # headings of what the authors state, in the order of the page
    "background": "Background",
    "intended_use": "Intended use",
    "population": "Population",
    "dates": "Dates",
    "setting": "Setting",
    "design": "Design",
    "exclusions": "Eligibility and exclusions",
    "acquisition": "Images",
    "deidentification": "De-identification",
    "reference_standard": "Reference standard",
    "annotators": "Annotators",
    "blinding": "Blinding",
    "treatments": "Treatments",
    "sample_size": "Sample size",
    "fairness": "Fairness",
    "limitations": "Limitations",
    "interpretation": "Interpretation",
    "usability": "In use",
    "ethics": "Ethics",
    "funding": "Funding",
    "conflicts": "Conflicts of interest",
    "protocol": "Protocol",
    "registration": "Registration",
    "involvement": "Patients and public",
}


def render(folder: Folder, report: Json, *, seal: str = "", mark: str = "") -> str:
    """The page of `report`. `seal` stands on each page of it, as does `mark`: a sentence on who may see it."""
    from markupsafe import Markup

    drawn = [f | {"svg": Markup(f["svg"])} for f in figures(folder, report)]
    shown: Json = {
        "report": report,
        "figures": drawn,
        "numbers": {name: tables.numbers(report, name) for name in ("discrimination", "operating", "calibration")},
        "matrices": tables.matrices(report),
        "shares": tables.shares(report),
        "called": tables.called(folder, report),
        "characteristics": tables.characteristics(report),
        "subgroups": tables.subgroups(report),
        "study": [(heading, report["study"][key]) for key, heading in STUDY.items() if key in report["study"]],
        "beside": _beside(report),
        "facts": _facts(report),
        "config_text": folder.config_text,
        "pictures": folder.pictures,
    }
    if "screening" in report:
        shown |= {"screened": screened.shown(report["screening"]), "newborns": screened.top(report["screening"])}
    sections = _sections(report, shown)
    css = (HERE / "report.css").read_text(encoding="utf-8") + _running(seal, mark)
    html = (
        _environment()
        .get_template("report.html.j2")
        .render(
            **shown,
            css=Markup(css),
            use=USE,
            seal=seal,
            mark=mark,
            sections=sections,
            lists=checklists(report, sections),
            name_of=lambda estimate: named(estimate, report["labels"]),
        )
    )
    return str(html)


def _environment() -> Any:
    """Jinja2 with the words of hpcai as filters; strict about names, autoescaped in every part."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([HERE, HERE / "parts"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "decimal": decimal,
        "percent": percent,
        "size": size,
        "place": place,
        "signed": signed,
        "chance": chance,
        "count": "{:,}".format,
        "whisker": tables.whisker,
        "interval": tables.interval,
        "figure": lambda estimate: figure(estimate["name"], estimate["value"]),
        "ends": lambda estimate: f"{figure(estimate['name'], estimate['low'])} to {figure(estimate['name'], estimate['high'])}",
        "shown": figure,
        "one": tables.one,
        "rate": screened.interval,
        "scaled": screened.whisker,
        "way_name": screened.way_name,
    }
    return environment


def _sections(report: Json, shown: Json) -> dict[str, str]:
    """The heading of each section that this page has, by its anchor, in their order."""
    drawn, newborns = {f["section"] for f in shown["figures"]}, report.get("screening", {})
    found = {
        "top": ("First page", True),
        "warnings": ("Warnings", bool(report["warnings"])),
        "funnel": ("From the table to a decision", bool(newborns.get("funnel"))),
        "found": ("Found, missed, false alarms", bool(newborns.get("total"))),
        "places": ("By laboratory and month", bool(newborns.get("laboratories"))),
        "review": ("Who is to be looked at", bool((newborns.get("review") or {}).get("rows"))),
        "plates": ("Plate controls", bool(newborns.get("plates"))),
        "distributions": ("Distributions", "distributions" in drawn),
        "flow": ("Cases", bool(report["splits"])),
        "study": ("As its authors state it", bool(shown["study"])),
        "characteristics": ("Characteristics", shown["characteristics"] is not None),
        "scores": ("Scores", "scores" in drawn),
        "called": ("Classes given", bool(shown["called"])),
        "fit": ("Classes of cases", "fit" in report),
        "discrimination": ("Discrimination", shown["numbers"]["discrimination"] is not None),
        "operating": ("Operating point", bool(shown["matrices"] or shown["numbers"]["operating"] or report["confusion"])),
        "calibration": ("Calibration", bool("calibration" in drawn or shown["numbers"]["calibration"])),
        "subgroups": ("Subgroups", shown["subgroups"] is not None),
        "shortcut": ("A model without the image", report["shortcut"] is not None),
        "shift": ("Validation beside test", report["shift"] is not None),
        "mistakes": ("Mistakes", "mistakes" in report),
        "together": ("What the mean gained", "together" in report),
        "folds": ("The folds", bool(report.get("folds"))),
        "learning": ("How it learnt", "learning" in drawn),
        "cost": ("What it used", True),
        "provenance": ("Where it comes from", True),
        "packages": ("Packages and licences", bool(report["provenance"]["packages"])),
        "checklists": ("Reporting checklists", True),
    }
    return {name: heading for name, (heading, there) in found.items() if there}


def _beside(report: Json) -> list[Json]:
    """The estimates that stand beside the answer: of its split, defined, over all classes."""
    if not report["estimates"]:
        return []
    first = report["estimates"][0]
    mine = {e["name"]: e for e in report["estimates"][1:] if e["split"] == first["split"] and e["value"] is not None}
    return [mine[name] for name in FIRST if name in mine][:4]


def _running(seal: str, mark: str) -> str:
    """CSS of what stands on each printed page. Where a browser does not know it, the same stands at the end of the page."""
    lines = {"bottom-left": f"{mark} {USE}".strip(), "top-center": f"seal {seal}" if seal else ""}
    boxes = "".join(f"@{place} {{ content: {_css_text(text)}; }} " for place, text in lines.items() if text)
    red = "@page { @bottom-left { color: #8f1d14; font-weight: 650; } }\n" if mark else ""
    return f"@page {{ {boxes}}}\n{red}"


def _css_text(text: str) -> str:
    """A CSS string of which each character but letters and digits is written by its number: it can end nothing."""
    return '"' + "".join(c if c.isascii() and c.isalnum() else f"\\{ord(c):x} " for c in text) + '"'


def _where(cost: Json) -> str:
    """`meluxina, 2 gpu nodes; at most 4.0 node-h (...)`."""
    slurm = cost["slurm"]
    if not slurm:
        return ""
    price = f"; {slurm['price']['words']}" if slurm["price"] else ""
    if slurm.get("shared_by"):
        price = f" shared by {slurm['shared_by']} runs{price}{' for all of them' * bool(price)}"
    return f"{slurm['cluster']}, {slurm['nodes']} {slurm['partition']} node{'s' * (slurm['nodes'] > 1)}{price}"


def _facts(report: Json) -> list[tuple[str, str]]:
    """What it used: (name, text) pairs; what was not recorded is left out."""
    cost, machine = report["cost"], report["provenance"]["machine"] or {}
    gpus = machine.get("gpus") or []
    found = [
        ("Begun", cost["begun"] is not None and moment(cost["begun"])),
        ("Time", cost["wall_s"] is not None and duration(cost["wall_s"])),
        ("Samples a second", cost["samples_s"] is not None and f"{cost['samples_s']:,.0f}"),
        ("Steps", cost["steps"] is not None and f"{cost['steps']:,} in {cost['epochs']:,} epoch{'s'[: cost['epochs'] != 1]}"),
        ("Ranks", f"{cost['ranks']:,}"),
        ("Restarts", f"{cost['restarts']:,}"),
        ("Cluster", _where(cost)),
        ("Nodes checked", ", ".join(f"{n['node']} {'fit' if n['ok'] else 'unfit'}" for n in cost["preflight"])),
        *(used.facts(report["used"]) if "used" in report else []),
        ("Processor", machine.get("cpu") and f"{machine['cpu']}, {machine.get('cores', '?')} cores"),
        ("Memory", machine.get("mem_gb") and f"{machine['mem_gb']:.0f} GB"),
        ("GPUs", ", ".join(map(str, gpus)) or "none"),
    ]
    return [(name, str(text)) for name, text in found if text]
