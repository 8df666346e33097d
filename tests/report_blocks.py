"""The blocks of report.json as measured() gives them, with made-up numbers: what the page draws, whatever measures it."""

from __future__ import annotations

from typing import Any

import numpy as np

Json = dict[str, Any]
DELONG, WILSON = "DeLong, logit; cases taken as independent", "Wilson; cases taken as independent"
DRAWN = "2,000 resamples of cases, percentile; cases taken as independent"
VALUES = {
    "auc": (0.978, 0.966, 0.986, DELONG),
    "average_precision": (0.985, 0.975, 0.991, DRAWN),
    "accuracy": (0.931, 0.908, 0.948, WILSON),
    "balanced_accuracy": (0.9224, 0.9, 0.943, DRAWN),
    "sensitivity": (0.956, 0.931, 0.973, WILSON),
    "specificity": (0.889, 0.842, 0.923, WILSON),
    "ppv": (0.935, 0.906, 0.955, WILSON),
    "npv": (0.924, 0.882, 0.953, WILSON),
    "lr_positive": (8.607, 6.01, 12.33, "log method"),
    "lr_negative": (0.049, 0.031, 0.078, "log method"),
    "brier": (0.0512, 0.041, 0.063, DRAWN),
    "calibration_intercept": (-0.412, -0.71, -0.118, "logistic regression on the logit of the score"),
    "calibration_slope": (1.083, 0.91, 1.26, "logistic regression on the logit of the score"),
    "ece": (0.031, 0.022, 0.049, DRAWN),
}


def estimate(measure: str, split: str, n: int = 624, **change: Any) -> Json:
    """One of VALUES, of that split."""
    value, low, high, method = VALUES[measure]
    return {"name": measure, "split": split, "value": value, "low": low, "high": high, "n": n, "method": method} | change


def blocks(prevalence: float | None = None, columns: tuple[str, ...] = ("sex", "age")) -> Json:
    """All blocks of a two-class run with a validation and a test split; `columns`: what is known of a case."""
    estimates = [estimate(name, split) for split in ("test", "val") for name in VALUES]
    if prevalence is not None:
        at = f"from sensitivity and specificity at a prevalence of {prevalence}"
        estimates += [estimate(k, "test", name=f"{k}_at", value=0.489, low=0.4, high=0.58, method=at) for k in ("ppv", "npv")]
    return {
        "estimates": estimates,
        "calibration": {split: calibration() for split in ("test", "val")},
        "subgroups": [
            subgroup(columns[0], "text", ["F", "M", "not known"]),
            subgroup(columns[1], "number", ["1 to 2", "3 to 5"]),
        ],
        "shortcut": shortcut(columns),
        "shift": shift(),
        "characteristics": characteristics(columns),
    }


def calibration() -> Json:
    """Ten bins and a smooth curve."""
    x = np.linspace(0.03, 0.97, 10)
    y = np.clip(x + 0.07 * np.sin(5 * x), 0.01, 0.99)
    bins = [
        {"low": max(0.0, a - 0.05), "high": min(1.0, a + 0.05), "mean": a, "rate": b,
         "rate_low": max(0.0, b - 0.09), "rate_high": min(1.0, b + 0.09), "n": 62}
        for a, b in zip(x.tolist(), y.tolist(), strict=True)
    ]  # fmt: skip
    score = np.linspace(0.01, 0.99, 50)
    rate = np.clip(score + 0.06 * np.sin(5 * score), 0, 1)
    ends = {"low": np.clip(rate - 0.05, 0, 1).tolist(), "high": np.clip(rate + 0.05, 0, 1).tolist()}
    return {"bins": bins, "curve": {"score": score.tolist(), "rate": rate.tolist(), **ends}}


def subgroup(column: str, kind: str, names: list[str]) -> Json:
    """One column's groups; the last lacks a class."""
    groups = []
    for k, name in enumerate(names):
        n = 310 - 60 * k
        told = [estimate(m, "test", n, value=VALUES[m][0] - 0.02 * k) for m in ("auc", "sensitivity", "specificity")]
        if k == len(names) - 1:
            told[0] |= {"value": None, "low": None, "high": None, "method": "not defined: one class only"}
        groups.append({"name": name, "n": n, "patients": None, "positives": 190 - 40 * k, "estimates": told})
    return {"column": column, "kind": kind, "hidden": 2, "groups": groups}


def shortcut(columns: tuple[str, ...]) -> Json:
    """A model without the image that does well."""
    return {
        "columns": [*columns, "image size"],
        "estimate": estimate("auc", "test", value=0.741, low=0.7, high=0.779),
        "network": estimate("auc", "test"),
        "difference": {"value": 0.237, "low": 0.198, "high": 0.276, "method": "paired bootstrap of cases"},
        "n_train": 4708,
        "note": "",
    }


def shift() -> Json:
    """Validation and test differ."""
    z = "two-proportion z test"
    return {
        "first": "val",
        "second": "test",
        "prevalence": [{"class": "pneumonia", "first": 0.742, "second": 0.625, "p": 0.00002, "method": z}],
        "score": {"statistic": 0.17, "p": 0.0004, "method": "two-sample permutation test of the scores"},
        "within": [{"class": "normal", "p": 0.0312}, {"class": "pneumonia", "p": 0.21}],
        "label_shift": {"rejected": True, "p": 0.0312},
        "verdict": "differs, label shift rejected",
        "sentence": "Validation and test differ, and not by prevalence alone: nothing is corrected.",
    }


def characteristics(columns: tuple[str, ...]) -> Json:
    """A label, a text with missing values and a hidden level, and a number."""
    splits = {"train": 4708, "val": 524, "test": 624}
    label = {s: {"n": n, "missing": 0, "levels": {"normal": n // 3, "pneumonia": n - n // 3}} for s, n in splits.items()}
    sex = {s: {"n": n, "missing": n // 20, "levels": {"F": n // 2, "M": n // 3, "X": None}} for s, n in splits.items()}
    age = {
        s: {"n": n, "missing": 3, "mean": 2.91, "sd": 1.34, "median": 3.0, "low": 1.0, "high": 5.0} for s, n in splits.items()
    }
    return {"columns": [
        {"name": "label", "kind": "text", "splits": label},
        {"name": columns[0], "kind": "text", "splits": sex},
        {"name": columns[1], "kind": "number", "splits": age},
    ]}  # fmt: skip
