"""From a plain dict to a checked Config, or every fault at once.   dict -> schema -> rules across groups -> Config

pydantic finds the faults; here they become lines that name the key, the limit and what to do.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcai.config.compose import Memory, attempt
from hpcai.errors import ConfigError, Faults, HpcaiError, near, one_line

if TYPE_CHECKING:
    from hpcai.config.schema import Cluster, Config

STAND_INS: dict[str, Any] = {"name": "x", "data": {"path": "x", "labels": ["0", "1"]}, "cluster": {"name": "x"}}
MAX_FAULTS = 100  # a config of 10,000 wrong keys needs no 10,000 lines


def load(overrides: list[str], config_dir: Path | None = None) -> Config:
    """Composes and checks; see compose() and check().

    Raises:
        Faults: the faults of words, files, keys and values, all together.
    """
    config, found = examine(overrides, config_dir)
    if found or config is None:
        raise Faults(found)
    return config


def examine(
    overrides: list[str], config_dir: Path | None = None, memory: Memory | None = None
) -> tuple[Config | None, list[HpcaiError]]:
    """What can be had of a config, and its faults: defaults stand in for wrong values, so that a plan can be checked too.

    None if so much is missing that a plan would speak of stand-ins alone. `memory`: what members of one sweep share.
    """
    raw, found, whole = attempt(overrides, config_dir, memory)
    config = _validate(raw, found, whole=whole)
    return (config if whole else None), list(found[:MAX_FAULTS])


def with_faults_of_plan(faults: list[HpcaiError], more: list[HpcaiError]) -> list[HpcaiError]:
    """`faults` and those of `more` that speak of no key that is at fault already: there a stand-in was looked at."""
    wrong = [str(fault) for fault in faults]
    return [*faults, *(fault for fault in more if not _overlap(str(fault), wrong))]


def check(raw: dict[str, Any]) -> Config:
    """`raw` as a Config: every key known, every value of its type and within its limits, the groups consistent.

    Raises:
        Faults: what is wrong, a line for each fault.
    """
    found: list[ConfigError] = []
    config = _validate(raw, found)
    if found or config is None:
        raise Faults(found[:MAX_FAULTS])
    return config


def check_cluster(values: dict[str, Any]) -> tuple[Cluster | None, list[str]]:
    """What a cluster file says, by itself: the Cluster, or None and its faults, each beginning with its key in that file."""
    from pydantic import ValidationError

    from hpcai.config.schema import Cluster

    try:
        return Cluster.model_validate(values), []
    except ValidationError as e:
        faults = [{**fault, "loc": ("cluster", *fault["loc"])} for fault in e.errors(include_url=False)[:MAX_FAULTS]]
        lines = [_line(fault).removeprefix("cluster.") for fault in faults]
        return None, [
            line.replace("mean cluster.", "mean ").replace("Give cluster.name=VALUE", "Write it down") for line in lines
        ]


def _validate(raw: dict[str, Any], found: list[ConfigError], *, whole: bool = True) -> Config | None:
    """The Config, or None; adds to `found`. Not `whole`: a file is missing, so keys that it would have given are not called so.

    While single values are wrong, pydantic skips a group's own rules and ours across groups have nothing to read. So the wrong
    ones are taken out (defaults or stand-ins step in) and what is left is looked at again, by rules that read none of them.
    """
    from pydantic import ValidationError

    from hpcai.config.schema import Config

    raw = _with_labels(raw)
    wrong = [str(fault) for fault in found]
    for _ in range(4):
        try:
            config = Config.model_validate(raw)
        except ValidationError as e:
            faults = e.errors(include_url=False)[:MAX_FAULTS]
            for fault in faults:
                line = _line(fault)
                if (whole or fault["type"] != "missing") and not _overlap(line, wrong):
                    found.append(ConfigError(line))
            wrong += [_line(fault) for fault in faults]
            raw = _without(raw, faults)
        else:
            rules = [rule for reads, rule in RULES.items() if whole and not any(_overlap(key, wrong) for key in reads)]
            found += [ConfigError(line) for rule in rules for line in rule(config)]
            return config
    return None


def _overlap(key: str, wrong: list[str]) -> bool:
    """Whether `key` is one of the `wrong`, or holds or is held by one; each may have `=value: why` after it."""
    keys = [re.split("[=:]", text, maxsplit=1)[0] for text in [key, *wrong]]
    return any(f"{keys[0]}.".startswith(f"{other}.") or f"{other}.".startswith(f"{keys[0]}.") for other in keys[1:])


def _without(raw: dict[str, Any], faults: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`raw` without what is wrong, and with stand-ins where it is required."""
    raw = copy.deepcopy(raw)
    for fault in faults:
        place: Any = raw
        *above, last = _place(fault)
        for part in above:
            place = place[part] if isinstance(place, list) or part in place else {}
        if isinstance(place, list):  # deleting would move the others: a whole list goes
            fault = {**fault, "loc": above[: [isinstance(p, int) for p in [*above, last]].index(True)]}
            raw = _without(raw, [fault])
        elif isinstance(place, dict):
            place.pop(last, None)
    raw.setdefault("data", {"identifiers": "none"})  # its own rule took the group out whole: what it had stated is not missed
    return _merged(STAND_INS, raw)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {k: _merged(v, over[k]) for k, v in under.items() if isinstance(v, dict) and isinstance(over.get(k), dict)}
    return {**under, **over, **both}


def _with_labels(raw: dict[str, Any]) -> dict[str, Any]:
    """A job that reads a trained run takes the class names from it, so nobody need write them: two stand in."""
    from hpcai.config.jobs import JOBS, PLACEHOLDER_LABELS

    data, job = raw.get("data"), raw.get("job")
    needs_run = isinstance(job, str) and job in JOBS and JOBS[job].needs_run
    if needs_run and isinstance(data, dict) and data.get("labels") is None:
        return {**raw, "data": {**data, "labels": PLACEHOLDER_LABELS}}
    return raw


# --- one fault of pydantic, as a line -----------------------------------------------------------------------------------------


def _place(fault: Mapping[str, Any]) -> tuple[Any, ...]:
    """Where a fault is; one of a key itself (a partition called `a b`) is of what stands under that key."""
    loc = tuple(fault["loc"])
    return loc[:-1] if loc[-1:] == ("[key]",) else loc


def _line(fault: Mapping[str, Any]) -> str:
    kind, given, limits = fault["type"], fault["input"], fault.get("ctx", {})
    name = one_line(".".join(str(part) for part in _place(fault)), 80)
    if kind == "missing":
        return _required(name)
    if kind == "extra_forbidden":
        return f"{name}: unknown. {_nearest(name)}"
    shown = name if name in SECRET or fault["loc"][-1:] == ("[key]",) else f"{name}={_shown(given)}"
    if kind == "value_error":
        said = str(limits.get("error"))
        return f"{name}.{said}" if isinstance(given, dict) else f"{shown}: {said}"  # a group's own rule names its key
    if kind == "literal_error":
        known = [w.strip(" '") for w in str(limits["expected"]).replace(" or ", ",").split(",")]
        return f"{shown}: unknown. {near(str(given)[:80], known)}"
    if kind in LIMITS:
        key, words, cure = LIMITS[kind]
        return f"{shown}: must be {words} {limits[key]:g}. {cure}"
    if kind == "string_pattern_mismatch":
        return f"{shown}: {_pattern(name)}"
    return f"{shown}: must be {TYPES.get(kind, one_line(fault['msg'], 200))}. Correct it."


SECRET = ("tracking", "tracking.mlflow")  # a wrong address may hold a password: it is not shown
LIMITS: dict[str, tuple[str, str, str]] = {
    "greater_than": ("gt", "greater than", "Give a larger value."),
    "greater_than_equal": ("ge", "at least", "Give a larger value."),
    "less_than": ("lt", "less than", "Give a smaller value."),
    "less_than_equal": ("le", "at most", "Give a smaller value."),
    "too_short": ("min_length", "a list with a length of at least", "Name more."),
    "too_long": ("max_length", "a list with a length of at most", "Name fewer."),
    "string_too_short": ("min_length", "text with a length of at least", "Write more."),
    "string_too_long": ("max_length", "text with a length of at most", "Shorten it."),
}
TYPES: dict[str, str] = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "finite_number": "a finite number", "bool_type": "true or false",
    "string_type": "text (quote a number: key=\"'5'\")", "string_unicode": "text in UTF-8", "list_type": "a list ([a,b])",
    "dict_type": "a mapping ({a: 1})", "model_type": "a group of keys",
}  # fmt: skip
PATTERNS: dict[str, str] = {
    "task.threshold": "is no rule. Write sensitivity>=x, specificity>=x (x from 0 to 1), youden, or a number from 0 to 1.",
    "cluster.mail": "is no address. Write one: name@host.",
    "data.sha256": "must be the 64 digits 0-9a-f of a sha256. Take it from `sha256sum FILE`.",
}


FOLDERS = (f"cluster.facts.{name}" for name in ("home", "project", "scratch"))
PATHS = ("path", "runs_dir", "from_run", "depends_on", "init_from", "cluster.python", *FOLDERS)


def _pattern(name: str) -> str:
    if name.endswith(PATHS) or name.startswith(("cluster.facts.shared.", "predict.merge")):
        return "a path holds no NUL. Correct it."
    if ".env." in name:
        return "is no name of a variable: letters, digits and _, no digit first. Correct it."
    names = "must begin with a letter or digit and hold at most 64 of A-Z a-z 0-9 . _ - (it names folders and jobs). Rename it."
    return PATTERNS.get(name, names)


def _required(name: str) -> str:
    from hpcai.config.keys import all_keys

    if name.startswith("cluster.facts."):
        return f"{name}: required. Write it into the cluster file."
    meaning = next((f" ({key.meaning})" for key in all_keys() if key.name == name), "")
    if meaning:
        return f"{name}: required{meaning}. Give {name}=VALUE."
    return f"{name}: required. Give {name}=CHOICE, or an experiment: +experiment=NAME."


def _nearest(name: str) -> str:
    """`Did you mean trainer.lr?`: the nearest of its group, else of that name elsewhere, else of all, else all."""
    import difflib

    from hpcai.config.keys import all_keys, below, names

    known, (group, _, last) = names(), name.rpartition(".")
    siblings = {word: f"{group}.{word}".lstrip(".") for word in below(group)}
    close = [siblings[word] for word in difflib.get_close_matches(last, siblings, n=1, cutoff=0.6)]
    if not name.startswith("cluster.facts."):  # a machine's fact is no key of a run
        close = close or [key for key in known if key.rpartition(".")[2] == last]
        close = close or difflib.get_close_matches(name, [key.name for key in all_keys()], n=1, cutoff=0.75)
    if close:
        return f"Did you mean {' or '.join(close[:3])}?"
    return f"Known: {', '.join(sorted(siblings))}." if siblings else "See --help for all keys."


def _shown(value: Any) -> str:
    """A value as a user writes it, on one line, cut to 80 characters before it is spelt out in full."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return one_line(value[:100], 80)
    if isinstance(value, (dict, list)) and len(value) > 20:
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, list):
        return one_line(f"[{','.join(_shown(v) for v in value)}]", 80)
    if isinstance(value, dict):
        return one_line(f"{{{','.join(f'{_shown(k)}:{_shown(v)}' for k, v in value.items())}}}", 80)
    return one_line(str(value), 80)


# --- rules across groups: each says all it finds ------------------------------------------------------------------------------


def _from_run(cfg: Config) -> Iterator[str]:
    from hpcai.config.jobs import JOBS

    if JOBS[cfg.job].needs_run and cfg.from_run is None:
        yield f"job={cfg.job}: reads a trained run. Give from_run=RUN_ID or its folder."
    if not JOBS[cfg.job].needs_run and cfg.from_run is not None:
        yield f"from_run={_shown(cfg.from_run)}: job={cfg.job} starts anew. Leave it out; model.init_from takes weights."


def _pipeline(cfg: Config) -> Iterator[str]:
    from hpcai.config.jobs import teaches

    if not cfg.pipeline:
        return
    shown = f"pipeline={_shown(cfg.pipeline)}"
    if not teaches(cfg.pipeline[0]):
        yield (
            f"{shown}: must begin with train or fit, whose run the others read. If it exists: job={cfg.pipeline[0]} "
            "from_run=RUN."
        )
    if sum(map(teaches, cfg.pipeline)) > 1:
        yield f"{shown}: holds train and fit. Name one of them."
    if len(set(cfg.pipeline)) < len(cfg.pipeline):
        yield f"{shown}: names a job twice. Name each once."
    if cfg.job not in ("train", cfg.pipeline[0]):
        yield f"job={cfg.job}: pipeline says which jobs are done. Leave one of them out."


def _model(cfg: Config) -> Iterator[str]:
    """The model is known, installed, has the dimensions, and its own options are right. evaluate and predict take the run's."""
    from importlib.util import find_spec

    from pydantic import ValidationError

    from hpcai.config.registry import EXTRAS, find_model

    if cfg.job != "train":
        return
    try:
        spec = find_model(cfg.model.name)
    except ConfigError as e:
        yield str(e)
        return
    if spec.extra is not None and find_spec(EXTRAS.get(spec.extra, spec.extra)) is None:
        yield f"model.name={cfg.model.name}: needs the extra {spec.extra}. Install hpcai[{spec.extra}]."
    if cfg.model.spatial_dims not in spec.dims:
        known = " or ".join(map(str, spec.dims))
        yield f"model.spatial_dims={cfg.model.spatial_dims}: {cfg.model.name} takes {known}. Choose another model or value."
    try:
        spec.options.model_validate(cfg.model.options)
    except ValidationError as e:
        for fault in e.errors(include_url=False):
            fault["loc"] = ("model", "options", *fault["loc"])
            line = _line(fault)
            if fault["type"] == "extra_forbidden":
                line = (
                    f"{'.'.join(map(str, fault['loc']))}: unknown. {near(str(fault['loc'][2]), [*spec.options.model_fields])}"
                )
            yield line


def _sizes(cfg: Config) -> Iterator[str]:
    size, dims = cfg.data.image_size, cfg.model.spatial_dims
    if cfg.job == "train" and size is not None and len(size) != dims:
        yield f"data.image_size={_shown(size)}: model.spatial_dims={dims} needs {dims} sides. Change one."
    if cfg.data.reader in ("images", "csv") and cfg.job == "train" and dims != 2:
        yield f"model.spatial_dims={dims}: data.reader={cfg.data.reader} reads flat images. Set it to 2."


def _batch(cfg: Config) -> Iterator[str]:
    ranks = cfg.resources.nodes * cfg.resources.tasks_per_node
    need = ranks * cfg.trainer.accumulate
    if cfg.job == "train" and cfg.trainer.batch_size < need:
        yield (
            f"trainer.batch_size={cfg.trainer.batch_size}: {ranks} ranks x trainer.accumulate={cfg.trainer.accumulate} "
            f"need a sample each. Give at least {need}."
        )


def _splits(cfg: Config) -> Iterator[str]:
    if cfg.job == "train" and cfg.data.reader == "csv" and cfg.data.split.by == "published" and cfg.data.split_col is None:
        yield "data.split_col=null: data.split.by=published reads the split from a column. Name it, or take another split."


def _tables(cfg: Config) -> Iterator[str]:
    """Images are for train, tables for fit; each job after it reads what its run was taught by."""
    from importlib.util import find_spec

    if cfg.job == "train" and cfg.data.reader == "table":
        yield "data.reader=table: job=train reads images. Ask for job=fit."
    if cfg.job == "fit" and cfg.data.reader != "table":
        yield f"data.reader={cfg.data.reader}: job=fit reads a table of numbers. Set it to table, or ask for job=train."
    if cfg.job == "train" and cfg.data.split.by == "nested":
        yield "data.split.by=nested: is for job=fit. Ask for kfold, and for each fold by -m."
    if cfg.job == "fit" and cfg.task.name == "screening" and cfg.data.split.by == "nested":
        yield "data.split.by=nested: task.name=screening is judged on one part. Ask for published, random or kfold."
    if cfg.task.name == "screening" and (cfg.job in ("train", "gather") or cfg.data.reader != "table"):
        yield "task.name=screening: is for data.reader=table and job=fit, evaluate or predict. Change one."
    if cfg.data.reader == "table" and not all(find_spec(module) for module in ("sklearn", "polars")):
        yield "data.reader=table: needs the extra screening. Install hpcai[screening]."


STATE_IDENTIFIERS = (
    "data.identifiers=null: must be stated. Write none (no file, name of a file or cell can name a person), pseudonymised "
    "(codes, to which somebody has the key) or identifying (names, birth dates, faces): not every machine takes each."
)


def _identifiers(cfg: Config) -> Iterator[str]:
    if cfg.job != "gather" and cfg.data.identifiers is None:  # gather reads rows of runs that have stated it
        yield STATE_IDENTIFIERS


def _tracking(cfg: Config) -> Iterator[str]:
    from importlib.util import find_spec

    from hpcai.config.trackers import MODULES

    for name, wanted in (("tensorboard", cfg.tracking.tensorboard), ("mlflow", cfg.tracking.mlflow is not None)):
        if wanted and not all(find_spec(module) for module in MODULES[name]):
            yield f"tracking.{name}: needs the extra {name}. Install hpcai[{name}]."


def _container(cfg: Config) -> Iterator[str]:
    image = cfg.container.image
    if image is None:
        return
    shown = f"container.image={_shown(image)}"
    if cfg.cluster.executor == "local":
        yield f"{shown}: ranks run in a container on Slurm alone. Leave it out, or choose a cluster."
    if "://" in image:
        yield f"{shown}: is an address; a job fetches nothing. Pull it first, and give the file."
    for path in filter(None, (cfg.data.path, cfg.data.root, cfg.runs_dir)):
        if path.startswith("/") and ({":", ","} & set(path)):
            yield f"{shown}: {_shown(path)} holds a : or , which parts a bind. Choose another path."


RULES: dict[tuple[str, ...], Callable[[Config], Iterator[str]]] = {  # the keys that a rule reads: the rule
    ("job", "from_run"): _from_run,
    ("job", "pipeline"): _pipeline,
    ("job", "model.name", "model.spatial_dims", "model.options"): _model,
    ("job", "data.image_size", "data.reader", "model.spatial_dims"): _sizes,
    ("job", "resources.nodes", "resources.tasks_per_node", "trainer.accumulate", "trainer.batch_size"): _batch,
    ("job", "data.reader", "data.split.by", "data.split_col"): _splits,
    ("job", "task.name", "data.reader", "data.split.by"): _tables,
    ("job", "data.identifiers"): _identifiers,
    ("container.image", "cluster.executor", "data.path", "data.root", "runs_dir"): _container,
    ("tracking.tensorboard", "tracking.mlflow"): _tracking,
}
