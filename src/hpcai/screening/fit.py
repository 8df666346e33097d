"""job=fit and job=evaluate of newborns whose diagnosis is known.   table -> features -> detectors -> rows, screening.json

    fit(cfg, run)        learns on train, sets thresholds out of the folds and on val, judges test once
    evaluate(cfg, run)   judges a labelled table by the model that a fit left

A labelled table has more affected newborns than any cohort. So what describes a population (medians, spreads, whether it fits)
is counted on its unaffected ones, and numbers that hang on incidence are the panel's. Shape letters: n newborns, C channels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hpcai import rundir
from hpcai.book.shelf import Books, books, digest
from hpcai.config import schema
from hpcai.config.jobs import PLACEHOLDER_LABELS
from hpcai.config.schema import Config
from hpcai.context import RunContext
from hpcai.data.split_file import note_cases, sentence, split_once
from hpcai.data.splits import eval_indices, from_json, make_splits
from hpcai.errors import ConfigError, DataError
from hpcai.infer import write_rows
from hpcai.metrics.estimate import Estimate
from hpcai.metrics.intervals import clopper_pearson
from hpcai.plan import sources
from hpcai.rundir import RunDir
from hpcai.screening.batch import Batch, Bools, Ints
from hpcai.screening.cohort import add
from hpcai.screening.decisions import lacking
from hpcai.screening.features import Adjustment, features
from hpcai.screening.fitness import fitness
from hpcai.screening.judge import Judge
from hpcai.screening.learn import Fold, Part, learn
from hpcai.screening.model import Scores, ScreeningModel, read_model
from hpcai.screening.numbers import screening
from hpcai.screening.plates import PlateShift
from hpcai.screening.simulate import is_simulated
from hpcai.screening.specimen import effects
from hpcai.screening.survey import Reference, Survey
from hpcai.screening.tally import Tally
from hpcai.screening.teaching import FIRST, Newborns, open_newborns, rows_of

log = logging.getLogger("hpcai")

Json = dict[str, Any]
References = Mapping[str, Reference]


def fit(cfg: Config, run: RunContext) -> None:
    """Leaves screening_model.json, model.json, threshold.json, split.json, cases.jsonl, rows of val and test, screening.json.

    Raises: ConfigError for facts that do not fit together, DataError for the table, Stopped.
    """
    if not run.ranks.first:  # one process has all the work: a laboratory's teaching table fits in its memory
        return
    known = books(cfg.screening)
    _check_labels(cfg, known)
    newborns = open_newborns(cfg.data, run, known)
    if cfg.data.split.by == "published":
        newborns.parted()
    split = split_once(run, newborns, cfg.data.split)
    log.info("table  %s", sentence(split, newborns))
    model = taught(known, newborns, split.train, split.val, cfg.estimator, cfg.task.threshold, cfg.seed)
    run.stop.check("stopped before anything was written. The same command starts it.")
    run.fence()
    rundir.write_bytes(run.dir.screening_model, model.to_json().encode())
    for name, places in (("val", split.val), ("test", split.test)):
        value = judged(run, known, model, newborns, places, name, kept=True)
    rundir.write_json(run.dir.screening, value)
    _leave(run, known, model, cfg.task.threshold, len(split.val))


def evaluate(cfg: Config, run: RunContext) -> None:
    """Leaves threshold.json, split.json, cases.jsonl, the rows of data.eval_split and screening.json.

    Raises: as fit; DataError for newborns that taught the model; PlanError or RunError for the trained run.
    """
    if not run.ranks.first:
        return
    known, members = books(cfg.screening), sources(cfg, run.dir)
    if len(members) != 1:
        raise ConfigError(f"from_run: {len(members)} runs. Screening is judged by one model: name one run of job=fit.")
    model = read_model(members[0].screening_model, digest(known.dictionary))
    newborns = open_newborns(cfg.data, run, known)
    places, name = _judging(cfg, members[0], run, newborns), cfg.data.eval_split
    log.info("table  %s: %s of %s newborns", name, f"{len(places):,}", f"{len(newborns):,}")
    counts = np.bincount(newborns.labels[places], minlength=len(known.panel.names) + 1).tolist()
    run.fence()
    note_cases(run, newborns, {name: places})
    rundir.write_json(run.dir.split, {
        "by": "evaluate", "counts": {name: len(places)}, "patients": None, "duplicates": {},
        "classes": {name: {str(k): n for k, n in enumerate(counts)}},
    })  # fmt: skip
    rundir.write_json(run.dir.threshold, rundir.read_json(members[0].threshold))
    rundir.write_json(run.dir.screening, judged(run, known, model, newborns, places, name, kept=False))
    run.note("progress", step=len(places))


def _judging(cfg: Config, source: RunDir, run: RunContext, newborns: Newborns) -> Ints:
    """The newborns that judge; of the table that taught the model (whatever rules it is read by now) a part that did not.

    Raises: DataError for newborns that did.
    """
    table = rundir.read_digests(run.dir).get(str(Path(cfg.data.path)))
    if table not in rundir.read_digests(source).values():
        return eval_indices(newborns, cfg.data)
    if (name := cfg.data.eval_split) in ("train", "all"):
        raise DataError(f"data.eval_split={name}: newborns of it taught the model, and cannot judge it. Ask for test.")
    return from_json(rundir.read_json(source.split), newborns).parts()[name]


def _check_labels(cfg: Config, known: Books) -> None:
    labels = [FIRST, *known.panel.names]
    if cfg.data.labels not in (PLACEHOLDER_LABELS, labels):
        raise ConfigError(f"data.labels: the panel {known.panel.name} has other classes. Ask for {json.dumps(labels)}.")


def _leave(run: RunContext, known: Books, model: ScreeningModel, rule: str, n: int) -> None:
    """What other jobs ask of a trained run: model.json and threshold.json (each disease has its own in the model's file)."""
    facts = {
        "checkpoint": run.dir.screening_model.name,
        "sha256": model.digest,
        "labels": [FIRST, *known.panel.names],
        "input": None,  # no image
    }
    rundir.write_json(run.dir.threshold, {"value": None, "rule": f"{rule} for each disease", "split": "val", "n": n})
    rundir.write_json(run.dir.model, facts)
    run.note("progress", step=n)


# ---- learning


def taught(
    known: Books, newborns: Newborns, train: Ints, val: Ints, estimator: schema.Estimator, rule: str, seed: int
) -> ScreeningModel:
    """The model that `train` teaches and `val` helps to set; places in `newborns`. `rule`: task.threshold."""
    batch, label = rows_of(newborns.batch, train), newborns.labels[train]
    folds = (_fold(known, batch, label, held) for held in _held(newborns, train, estimator.folds, seed))
    survey, adjustment = healthy(known, batch, label == 0)
    references = survey.references()
    if unknown := len(set(np.unique(batch.text["laboratory"]).tolist()) - references.keys()):
        log.warning("warning: %d laboratories have too few unaffected newborns in training: theirs teach nothing", unknown)

    def part(places: Ints, beside: Ints) -> Part:
        """Features of some newborns, on plates of which only those `beside` are known: none teaches that may not."""
        rows, plates = rows_of(newborns.batch, places), plate_shifts(known, references, rows_of(newborns.batch, beside))
        seen = features(known.dictionary, rows, references, adjustment, plates)
        return Part(seen.z_NC, newborns.labels[places], usable(known, rows, references))

    parts = part(train, train), part(val, np.union1d(train, val))
    detectors = learn(known.panel, estimator, rule, parts[0], folds, parts[1], seed)
    scales = np.stack([reference.scale_C for reference in references.values()])
    measured = np.isfinite(scales).any(0)  # a channel that no laboratory measures has no spread
    scale = np.ones(scales.shape[1])
    scale[measured] = np.nanmedian(scales[:, measured], axis=0)
    return ScreeningModel(
        simulated=is_simulated(set(batch.text["laboratory"].tolist())),
        dictionary=known.dictionary.name,
        dictionary_digest=digest(known.dictionary),
        panel=known.panel.name,
        panel_digest=digest(known.panel),
        channels=known.dictionary.channels,
        scale=scale.tolist(),
        adjustment=adjustment.to_json(),
        survey=survey.to_json(),
        detectors=detectors,
    )


def healthy(known: Books, batch: Batch, unaffected: Bools) -> tuple[Survey, Adjustment]:
    """What the unaffected rows of a batch are like, by laboratory, and what gestation, weight and age do to them."""
    survey = Survey(known.dictionary, months=False)
    survey.add(batch, unaffected)
    rows = rows_of(batch, unaffected)
    plain = features(known.dictionary, rows, survey.references())
    return survey, Adjustment.fit(plain.log_multiple_NC, rows.number)


def plate_shifts(known: Books, references: References, batch: Batch) -> PlateShift:
    """Of all plates in a batch, affected newborns among the others: none can move its plate far."""
    shifts = PlateShift(Survey(known.dictionary), references)
    shifts.add(batch)
    return shifts


def _held(newborns: Newborns, train: Ints, folds: int, seed: int) -> list[Ints]:
    """Places in `train` of each inner fold: kin together, classes spread evenly, whatever the order of the table."""
    inner = newborns.some(train)
    return [make_splits(inner, schema.Split(by="kfold", folds=folds, fold=k, seed=seed)).test for k in range(folds)]


def _fold(known: Books, batch: Batch, label: Ints, held: Ints) -> Fold:
    """Features of one inner fold, of which the newborns held out set nothing."""
    teaches = np.ones(len(batch), bool)
    teaches[held] = False
    survey, adjustment = healthy(known, batch, teaches & (label == 0))
    references = survey.references()
    seen = features(known.dictionary, batch, references, adjustment, plate_shifts(known, references, rows_of(batch, teaches)))
    held = held[seen.known_N[held]]  # a laboratory with too few left to teach has no features here: its newborns judge nothing
    return Fold(Part(seen.z_NC[teaches], label[teaches], usable(known, batch, references)[teaches]), seen.z_NC[held], held)


def usable(known: Books, batch: Batch, references: References) -> Bools:
    """(n, D) valid specimens of laboratories whose medians are known: the others have no features."""
    return valid_specimens(known, batch) & np.isin(batch.text["laboratory"], list(references))[:, None]


def valid_specimens(known: Books, batch: Batch) -> Bools:
    """(n, D) for which diseases each specimen is valid, with all that the disease needs."""
    lacking_ND = lacking(known.dictionary, known.panel, batch)
    return np.asarray((effects(known.specimen, known.panel, batch).code_ND == 0) & ~lacking_ND)


# ---- judging


def judged(
    run: RunContext, known: Books, model: ScreeningModel, newborns: Newborns, places: Ints, name: str, *, kept: bool
) -> Json:
    """Writes the rows of one part, and gives its screening.json.

    Args:
        places: of the part in `newborns`.
        name: of the part: val, test, all.
        kept: whether laboratories that taught keep the medians that they had then (the same table); else each has its own here.
    """
    batch, label = rows_of(newborns.batch, places), newborns.labels[places]
    training, survey = Survey.from_json(known.dictionary, model.survey, months=False), Survey(known.dictionary)
    survey.add(batch, label == 0)
    then, own = training.references(), survey.references()
    references = {**own, **then} if kept else {**then, **own}
    fits = fitness(training, survey, model.reads)
    shifts = plate_shifts(known, references, newborns.batch)
    judge = Judge(known, model, references, {(f.laboratory, f.month): f for f in fits}, shifts)
    said = judge(batch)
    assert said.scores is not None
    write_rows(run, name, _rows(newborns, places, shares(model, known.panel.names, said.scores)))
    names = set(batch.text["laboratory"].tolist())  # of all, affected newborns too
    tally = Tally(known.panel, is_simulated(names))
    add(tally, known.panel, said)
    own_digests = {"model": model.digest[:16], **{kind: whole[:16] for kind, whole in known.digests().items()}}
    return screening(
        tally,
        kind="fit",
        split=name,
        books=own_digests,
        fitness=[f.to_json() for f in fits],
        thresholds=model.thresholds,
        taught_by_simulated=model.simulated,
        conformal=coverage(model, known.panel.names, said.scores, label, usable(known, batch, references), name),
    )


def shares(model: ScreeningModel, names: Sequence[str], scores: Scores) -> list[list[float]]:
    """(n, 1 + D) probabilities that sum to 1, unaffected first, at the prior of the table that taught: what rows are judged by.

    Each detector's odds are against the unaffected, so together they are a softmax with 0 for the unaffected. A disease without
    a detector has 0.
    """
    shift = {d.disease: d.calibration.shift for d in model.detectors}
    logit = scores.logit_ND - np.array([shift.get(name, np.nan) for name in names])
    logit = np.column_stack([np.zeros(len(logit)), np.where(np.isfinite(logit), logit, -np.inf)])
    odds = np.exp(logit - logit.max(1, keepdims=True))
    found: list[list[float]] = (odds / odds.sum(1, keepdims=True)).tolist()
    return found


def _rows(newborns: Newborns, places: Ints, scores: list[list[float]]) -> list[Json]:
    return [
        {
            "case": newborns.ids[i],
            "patient": newborns.patients[i] if newborns.patients else None,
            "label": int(newborns.labels[i]),
            "scores": own,
        }
        for i, own in zip(places.tolist(), scores, strict=True)
    ]


def coverage(
    model: ScreeningModel, names: Sequence[str], scores: Scores, label: Ints, valid_ND: Bools, split: str
) -> list[Json]:
    """How often the conformal set holds the truth, and how often it does not decide, by disease and class (usable ones)."""
    found = []
    for detector in model.detectors:
        d = names.index(detector.disease)
        held_N2 = detector.sets(scores.logit_ND[:, d])
        for group, cls, own in (("affected", 1, label == d + 1), ("unaffected", 0, label == 0)):
            mine = own & valid_ND[:, d] & detector.conformal.decides
            shown = {"coverage": held_N2[mine, cls], "undecided": held_N2[mine].all(1)}
            estimates = {what: asdict(_share(what, split, hits)) for what, hits in shown.items()}
            found.append(
                {"disease": detector.disease, "group": group, "wanted": 1 - detector.conformal.miscoverage, **estimates}
            )
    return found


def _share(name: str, split: str, hits: Bools) -> Estimate:
    k, n = int(hits.sum()), len(hits)
    if not n:
        return Estimate(name, split, None, None, None, 0, "not defined: no newborn of this class, or too few set the limits")
    return Estimate(name, split, k / n, *clopper_pearson(k, n), n, "Clopper-Pearson; newborns taken as independent")
