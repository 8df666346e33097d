"""Run folders as a job leaves them, with simulated scores: what the report's tests read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hpcai.metrics.binary import auc_estimate
from hpcai.metrics.classification import choose_threshold
from hpcai.metrics.estimate import Estimate
from hpcai.metrics.rows import Rows
from hpcai.metrics.sample import Sample
from hpcai.rundir import RunDir, append_lines, write_bytes, write_json


def auc_interval(label: np.ndarray, score: np.ndarray, split: str, patient: list[str] | None = None) -> Estimate:
    """The AUC of cases 0, 1, 2 ..."""
    return auc_estimate(Sample(label, score, score >= 0.5, split, [f"{i:06d}" for i in range(len(label))], patient))


BEGIN = 1_767_000_000.0
STEPS = 74  # an epoch


def make_run(
    path: Path,
    job: str = "train",
    labels: tuple[str, ...] = ("normal", "pneumonia"),
    epochs: int = 10,
    cases_a_patient: int = 0,
    ranks: int = 1,
    **config: Any,
) -> RunDir:
    """A finished run of `job`: 524 validation and 624 test cases as in PneumoniaMNIST, or 1,200 without labels."""
    run = RunDir(path)
    rng = np.random.default_rng(7)
    _write_config(run, job, labels, ranks, config)
    sizes = {"train": {"val": (524, 0.742), "test": (624, 0.625)}, "evaluate": {"test": (624, 0.625)}}
    for split, (n, share) in sizes.get(job, {"predict": (1200, 0.4)}).items():
        rows = simulate(rng, n, share, len(labels), cases_a_patient)
        write_rows(run, split, rows, ranks, labelled=job != "predict")
        if split == "val":
            threshold = choose_threshold(rows, "sensitivity>=0.95")
            write_json(run.threshold, vars(threshold))
    if job != "train":
        write_json(run.threshold, {"value": 0.61, "rule": "sensitivity>=0.95", "split": "val", "n": 524})
        append_lines(run.lives / "0001" / "rank0.jsonl", [event("begin", 0), event("progress", 12.5)])
        if job == "predict":
            append_lines(run.failed_file(0), [{"case": "patient-4711/scan.png", "reason": "truncated"}] * 2)
        return run
    _write_training(run, rng, epochs, ranks, labels)
    return run


def simulate(rng: np.random.Generator, n: int, share: float, classes: int, cases_a_patient: int = 0) -> Rows:
    """Scores of a good classifier."""
    if classes == 2:
        label = rng.permutation((np.arange(n) < round(n * share)).astype(np.int64))
        s = 1 / (1 + np.exp(-1.6 * rng.normal(size=n) - 4.6 * (label - 0.4)))
        scores = np.stack([1 - s, s], 1)
    else:
        label = rng.integers(0, classes, n)
        scores = rng.dirichlet(np.ones(classes), n) + 0.35 * np.eye(classes)[label]
        scores /= scores.sum(1, keepdims=True)
    case = [f"secret-case-{i:05d}.png" for i in range(n)]
    patient = [f"secret-patient-{i // cases_a_patient}" for i in range(n)] if cases_a_patient else None
    return Rows(case, patient, label, scores)


def write_rows(run: RunDir, split: str, rows: Rows, ranks: int = 1, labelled: bool = True) -> None:
    """One shard a rank."""
    for rank in range(ranks):
        lines = [
            {
                "case": rows.case[i],
                "patient": rows.patient[i] if rows.patient else None,
                "label": int(rows.label[i]) if labelled else None,
                "scores": rows.scores[i].tolist(),
            }
            for i in range(rank, len(rows.case), ranks)
        ]
        append_lines(run.rows_file(split, rank), lines)


def event(name: str, after_s: float, rank: int = 0, **more: Any) -> dict[str, Any]:
    """One line of a rank's record."""
    return {"event": name, "time": BEGIN + after_s, "rank": rank, **more}


def _write_config(run: RunDir, job: str, labels: tuple[str, ...], ranks: int, more: dict[str, Any]) -> None:
    config: dict[str, Any] = {
        "name": "pneumonia",
        "job": job,
        "from_run": None if job == "train" else "pneumonia-1f3a9c",
        "seed": 0,
        "data": {
            "name": "PneumoniaMNIST",
            "path": "shipped:pneumoniamnist/pneumoniamnist.npz",
            "labels": list(labels),
        },
        "model": {"name": "resnet_small", "norm": "batch", "width": 24},
        "trainer": {"epochs": 10, "lr": 0.004, "label_smoothing": 0.1, "augment": ["affine", "intensity"]},
        "resources": {"nodes": 1, "tasks_per_node": ranks},
        "cluster": {"name": "local", "executor": "local"},
    } | more
    write_bytes(run.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
    write_json(
        run.plan,
        {
            "version": 1,
            "run_id": f"{config['name']}-8d2f41c09b",
            "run_dir": str(run.path),
            "job": job,
            "cluster": "local",
            "executor": "local",
            "resources": config["resources"],
            "inputs": [],
            "warnings": ["resources.tasks_per_node=2: more ranks than the 1 core of this machine."] if ranks > 1 else [],
        },
    )
    names = [
        "hydra-core",
        "jinja2",
        "matplotlib",
        "monai",
        "numpy",
        "pillow",
        "pydantic",
        "safetensors",
        "torch",
    ]
    packages = [{"name": name, "version": f"1.{i}.0", "licence": "BSD-3-Clause"} for i, name in enumerate(names)]
    write_json(
        run.environment,
        {
            "python": "3.11.9",
            "hpcai": "0.1.0",
            "packages": [*packages, {"name": "nameless", "version": "2", "licence": None}],
            "git": {"commit": "4f1c" * 10, "dirty": True, "diff_sha256": "ab" * 32},
            "code_sha256": "c0de" * 16,
            "machine": {"system": "Linux 6.1", "cpu": "AMD EPYC 7763", "cores": 2, "mem_gb": 7.7, "gpus": []},
        },
    )
    write_json(
        run.data,
        {
            "name": "PneumoniaMNIST",
            "source": "MedMNIST v2 (Yang et al. 2023, doi 10.1038/s41597-022-01721-8), after Kermany et al. 2018",
            "licence": "CC BY 4.0",
            "files": [{"path": "/data/pneumoniamnist.npz", "bytes": 4170669, "sha256": "d0bfa333" * 8}],
        },
    )


def _write_training(run: RunDir, rng: np.random.Generator, epochs: int, ranks: int, labels: tuple[str, ...]) -> None:
    """metrics.jsonl, split.json and two lives: the first was killed in epoch 4."""
    lines: list[dict[str, Any]] = []
    best = 0.0
    for step in range(1, epochs * STEPS + 1):
        epoch, time = 1 + (step - 1) // STEPS, BEGIN + step * 0.21 + (60 if step > 3.5 * STEPS else 0)
        if step % 20 == 0:
            loss = 0.25 + 0.45 * np.exp(-step / 90) + 0.02 * rng.normal()
            line = {"kind": "train", "step": step, "epoch": epoch, "loss": loss, "lr": 0.004}
            lines.append(line | {"samples_s": 1900 + 40 * rng.normal(), "time": time})
        if step % STEPS == 0:
            label = rng.random(524) < 0.742
            score = rng.normal(size=524) + label * 3.1 * (1 - np.exp(-epoch / 2.0))
            e = auc_interval(label, score, "val")
            assert e.value is not None
            line = {
                "kind": "val",
                "step": step,
                "epoch": epoch,
                "loss": 0.24 + 0.5 * np.exp(-step / 110),
                "n": 524,
            }
            lines.append(line | {"auc": e.value, "low": e.low, "high": e.high, "best": e.value > best, "time": time})
            best = max(best, e.value)
    append_lines(run.metrics, lines)
    for rank in range(ranks):
        half = event("progress", 3.5 * STEPS * 0.21, rank)
        append_lines(run.lives / "0001" / f"rank{rank}.jsonl", [event("begin", 0, rank), half])
        again = [event("begin", 110, rank), event("progress", epochs * STEPS * 0.21 + 64, rank)]
        append_lines(run.lives / "0002" / f"rank{rank}.jsonl", again)
    note = "checkpoints/step-00000259: its digest does not fit. The one before it is used."
    append_lines(run.lives / "0002" / "rank0.jsonl", [event("warning", 111, message=note)])
    two = len(labels) == 2
    write_json(
        run.split,
        {
            "by": "published",
            "seed": 0,
            "counts": {"train": 4708, "val": 524, "test": 624},
            "classes": {
                "train": {labels[0]: 1214, labels[1]: 3494},
                "val": {labels[0]: 135, labels[1]: 389},
                "test": {labels[0]: 234, labels[1]: 390},
            }
            if two
            else {},
            "duplicates": {"train/val": 8, "train/test": 0, "val/test": 0},
            "patients": None,
            "train": [f"secret-case-t{i}" for i in range(4708)],
            "val": [f"secret-case-v{i}" for i in range(524)],
            "test": [f"secret-case-{i}" for i in range(624)],
        },
    )
