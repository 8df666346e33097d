"""What can be configured: every key with its type, unit, default and one line of meaning, in one place.

configs/*.yaml and the command line are composed into a plain dict (compose.py); these models check it, all faults at once.
Strict: `seed=true` is no number and `name=5` no name. Nothing here can name code.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from hpcai.config.facts import Facts, Identifiers
from hpcai.config.trackers import mlflow_store
from hpcai.config.words import Group as Group
from hpcai.config.words import Name, PathText, Text
from hpcai.config.words import key as key


def _number_as_text(value: Any) -> Any:
    """`task.threshold=0.5` is a number on the command line."""
    return repr(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _runs(value: Any) -> Any:
    """A run or a list of runs, with one fault for the whole value: a union gives one for each of its members."""
    if value is None:
        return None
    texts = value if isinstance(value, list) else [value]
    if not (1 <= len(texts) <= 100 and all(isinstance(t, str) and 1 <= len(t) <= 4096 for t in texts)):
        raise PydanticCustomError("runs", "text or a list of 1 to 100 texts (quote a number: key=\"'5'\")")
    if any(0xD800 <= ord(c) <= 0xDFFF for t in texts for c in t):
        raise PydanticCustomError("string_unicode", "no text")
    if any("\0" in t for t in texts):
        raise PydanticCustomError("string_pattern_mismatch", "no path")
    if len(set(texts)) < len(texts):
        raise PydanticCustomError("runs", "a list that names each run once")
    return value


Runs = Annotated[str | list[str] | None, PlainValidator(_runs)]


class Task(Group):
    """What is to be learnt and how the answer is read."""

    name: Literal["classification", "screening"] = key(
        "classification", "kind of task; screening: newborns by tandem mass spectrometry (job=fit, evaluate, predict)"
    )
    select: Literal["auc", "loss"] = key("auc", "validation score that picks the best checkpoint")
    threshold: Annotated[str, BeforeValidator(_number_as_text)] = key(
        "sensitivity>=0.95",
        "rule for the operating point, applied to validation: sensitivity>=x, specificity>=x, youden, or a number",
        pattern=r"^(?:(?:sensitivity|specificity)>=(?:0(?:\.\d+)?|1(?:\.0+)?)|youden|0(?:\.\d+)?|1(?:\.0+)?)$",
    )


class Split(Group):
    """Which cases teach, which choose, which judge."""

    by: Literal["published", "random", "kfold", "nested"] = key(
        "published",
        "published: as the data says; random: by patient, stratified; kfold: fold `fold` of `folds`; nested (job=fit): each "
        "of `folds` judged by an estimator that was chosen on the others",
    )
    val_fraction: float = key(0.1, "share of patients for validation (random, kfold)", gt=0, lt=1)
    test_fraction: float = key(0.2, "share of patients for the test (random)", gt=0, lt=1)
    folds: int = key(5, "number of folds (kfold)", ge=2, le=100)
    fold: int = key(0, "the fold held out as test (kfold), from 0", ge=0)
    seed: int = key(0, "seed of the split, apart from the run's", ge=0, lt=2**31)

    @model_validator(mode="after")
    def _consistent(self) -> Split:
        if self.by == "kfold" and self.fold >= self.folds:
            raise ValueError(f"fold={self.fold}: data.split.folds={self.folds}. Ask for a fold below it.")
        if self.by == "random" and self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction: leave nothing to train on. Lower one.")
        return self


class Data(Group):
    """Where the images lie and how they are read."""

    name: Text = key("", "name of the data, for the report")
    reader: Literal["npz", "images", "csv", "table"] = key(
        "npz",
        "npz: arrays {split}_images, {split}_labels or images, labels; images: a folder of image files (label = "
        "sub-folder); csv: a listing of image files (PNG, JPEG, npz; 2D DICOM and NIfTI with the extra imaging); table: "
        "numbers of cases (CSV, CSV.gz, Parquet; extra screening)",
    )
    path: PathText = key(..., "file or folder; `shipped:x` lies in the package")
    root: PathText | None = key(None, "csv: folder that the listing's paths start from; null: the listing's own")
    sha256: str | None = key(None, "expected digest of the file (npz, csv)", pattern=r"^[0-9a-f]{64}$")
    labels: list[Text] = key(
        ..., "class names in order of their number; of two, the second is the positive one", min_length=2, max_length=1000
    )
    channels: Literal[1, 3] = key(1, "grey or colour")
    image_size: list[int] | None = key(
        None,
        "resize to this (height, width) or (depth, height, width); null: as stored",
        unit="pixel",
        min_length=2,
        max_length=3,
    )
    window: list[float] | None = key(
        None,
        "DICOM, NIfTI and 16-bit PNG: [centre, width] of the values that become 0 to 1, in the file's unit (HU); null: the "
        "file's own window, else its least to its greatest value",
        min_length=2,
        max_length=2,
    )
    case_col: Text = key("case", "csv: column with the case's id")
    path_col: Text = key("path", "csv: column with the image's path, relative to data.root")
    label_col: Text = key("label", "csv: column with the class name")
    patient_col: Text | None = key(None, "csv: column with the patient's id; splits then keep patients whole")
    group_cols: list[Text] = key(
        [],
        "columns that describe a case (site, scanner, age, sex), for subgroups and the shortcut model; csv: columns, "
        "npz: arrays `{split}_NAME`",
        max_length=20,
    )
    split_col: Text | None = key(None, "csv: column with train, val or test (split.by=published)")
    samples_in: Literal["rows", "columns"] = key("rows", "table: whether a case is a row, or a column under its id")
    label_path: PathText | None = key(None, "table: another CSV with case_col and label_col; null: the table has them")
    near_duplicates: float | None = key(
        None, "table: cases of one class whose features correlate above it stay together in every split; null: off", gt=0, lt=1
    )
    unlisted: Literal["refuse", "leave_out"] = key("refuse", "table: what becomes of cases of a class that data.labels has not")
    split: Split = key(Split(), "how cases are parted")
    eval_split: Literal["train", "val", "test", "all"] = key("test", "split that job=evaluate scores")
    identifiers: Identifiers | None = key(
        None,
        "whom files and listing can name. none: nobody; pseudonymised: codes, to which somebody has the key; identifying: "
        "names, dates, faces. train, evaluate and predict want it stated",
        changes_result=False,
    )
    shareable: bool = key(False, "reports may show images and ids of cases (public data alone)", changes_result=False)
    excluded: dict[Text, Annotated[int, Field(ge=0)]] = key(
        {}, "what was found and left out before, {reason: cases}, for the report", changes_result=False, max_length=50
    )
    source: Text = key("", "where the data comes from, for the report")
    licence: Text = key("", "licence of the data, for the report")

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: a class is named twice. Name each once.")
        if len(set(self.group_cols)) != len(self.group_cols):
            raise ValueError("group_cols: a column is named twice. Name each once.")
        if self.image_size is not None and not all(1 <= n <= 4096 for n in self.image_size):
            raise ValueError(f"image_size={self.image_size}: each side lies in 1..4096 pixel. Correct it.")
        if self.window is not None and not self.window[1] > 0:
            raise ValueError(f"window={self.window}: the width must be greater than 0. Give [centre, width].")
        if self.root is not None and self.reader != "csv":
            raise ValueError("root: is for data.reader=csv alone. Leave it out.")
        return self


class Model(Group):
    """The network, by name."""

    name: Name = key(
        "resnet_small",
        "resnet_small, or with the extra `imaging` resnet18, resnet50, densenet121, or a plug-in's (entry point hpcai.models)",
    )
    spatial_dims: Literal[2, 3] = key(2, "images or volumes")
    norm: Literal["batch", "group"] = key("batch", "batch: best scores, statistics per rank; group: same on any rank count")
    width: int = key(24, "channels of the first stage (resnet_small)", ge=4, le=1024)
    dropout: float = key(0.0, "dropout before the last layer", ge=0, lt=1)
    init_from: PathText | None = key(None, "start from these weights: a run, .safetensors, or .pt (weights only)")
    options: dict[str, Any] = key({}, "a plug-in model's own keys, checked by its own model")


class Features(Group):
    """From a table's numbers to an estimator's (job=fit with task.name=classification; screening has its own)."""

    limit: float | None = key(None, "a feature with a larger magnitude in a training case is left out; null: off", gt=0)
    absent: Literal["blank", "minimum"] = key(
        "blank", "how a table says `not measured`: an empty cell, or the feature's least value, held by two cases or more"
    )
    scale: Literal["all", "first", "none"] = key(
        "all", "mean 0 and sd 1 over the training cases: all, those of the first class (the controls), or as the table has it"
    )
    clip: float | None = key(None, "scaled values are cut to plus and minus this; null: off", gt=0)
    quiet: list[Annotated[float, Field(ge=0)]] = key(
        [0.0], "scaled values within plus and minus this count as 0, others come nearer by it; values to try",
        min_length=1, max_length=20,
    )  # fmt: skip
    sides: bool = key(False, "a column for how far a feature lies above 0 and one for how far below, in place of one for both")
    flags: bool = key(True, "add a column a feature that says that it was not measured, where some are not")


class Estimator(Group):
    """What job=fit fits; the grid of values is searched by cross-validation inside the training cases."""

    name: Literal["logistic", "boosting"] = key("logistic", "logistic: elastic net; boosting: gradient-boosted trees")
    penalty: list[Annotated[float, Field(gt=0)]] = key(
        [0.01, 0.1, 1.0], "strengths of the elastic net to try, over the number of cases", min_length=1, max_length=20
    )
    l1_ratio: list[Annotated[float, Field(ge=0, le=1)]] = key(
        [0.5], "shares of the lasso in it to try: 0 ridge, 1 lasso", min_length=1, max_length=20
    )
    trees: list[Annotated[int, Field(ge=1, le=2000)]] = key(
        [100], "numbers of trees to try (boosting)", min_length=1, max_length=20
    )
    depth: int = key(3, "depth of a tree (boosting)", ge=1, le=8)
    learning_rate: float = key(0.1, "share of each tree (boosting)", gt=0, le=1)
    class_weights: Literal["balanced", "none"] = key("balanced", "balanced: each class weighs the same")
    combine: Literal["best", "mean"] = key(
        "best", "best: the point of the grid with the least loss; mean: all points, each as sure as held-out cases allow"
    )
    folds: int = key(5, "folds inside the training cases, for the grid and for calibration", ge=2, le=20)
    miscoverage: float = key(0.1, "share that a conformal set may miss, of the first class and of all others", gt=0, lt=0.5)


class Screening(Group):
    """What a screening laboratory states: files in configs/ by name, or its own by path (x.yaml)."""

    analytes: PathText = key("nbs_msms", "dictionary of columns (configs/analytes)")
    diseases: PathText = key("nbs", "panel (configs/diseases)")
    rules: list[PathText] = key(["heidelberg2003", "california"], "rule sets (configs/rules)", min_length=1, max_length=20)
    specimen: PathText = key("specimen", "what the state of a specimen does (configs/rules)")
    policy: PathText = key("default", "what a rule's and a model's word asks for (configs/policy)")
    controls: PathText | None = key(None, "table of control measurements of the plates; null: none")
    control_rules: PathText = key("westgard", "means, sds and Westgard rules of the controls (configs/controls)")
    mode: Literal["propose", "shadow"] = key(
        "propose", "shadow: the laboratory's own decisions stand beside (column `decision`), nothing can be released"
    )


class Trainer(Group):
    """The loop."""

    epochs: int = key(10, "passes over the training cases", ge=1, le=100_000)
    max_steps: int | None = key(None, "end after so many optimiser steps; null: no limit", ge=1)
    batch_size: int = key(64, "samples of one optimiser step, over all ranks together", ge=1, le=1_000_000)
    accumulate: int = key(1, "micro-batches a step; memory falls, the result stays", ge=1, le=4096)
    optimizer: Literal["adamw", "sgd"] = key("adamw", "optimiser (sgd: Nesterov momentum 0.9)")
    lr: float = key(1e-3, "peak learning rate", gt=0, le=100)
    weight_decay: float = key(1e-2, "decoupled weight decay (sgd: L2)", ge=0, le=10)
    lr_schedule: Literal["cosine", "constant"] = key("cosine", "after the warm-up: cosine to 0, or constant")
    warmup: float = key(0.1, "share of all steps with a linearly rising rate", ge=0, lt=1)
    clip_norm: float | None = key(None, "clip the gradient's norm; null: off", gt=0)
    precision: Literal["float32", "float64", "bf16"] = key("float32", "bf16: autocast where the device has it")
    compile: bool = key(False, "torch.compile the model")
    label_smoothing: float = key(0.0, "label smoothing", ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = key("none", "balanced: inverse frequency in training, mean 1")
    ema_decay: float = key(0.0, "exponential moving average of weights, used to evaluate; 0: off", ge=0, lt=1)
    augment: list[Literal["affine", "intensity", "flip", "noise"]] = key([], "augmentations by name, in this order")
    patience: int = key(0, "stop after so many validations without a better score; 0: off", ge=0)
    validate_every: int = key(1, "epochs between validations", unit="epoch", ge=1)
    deterministic: bool = key(True, "refuse algorithms that give other bits when run again")
    log_every: int = key(20, "steps between lines of metrics.jsonl", unit="step", changes_result=False, ge=1)
    checkpoint_every: int | None = key(
        None, "steps between checkpoints; null: by time alone", unit="step", changes_result=False, ge=1
    )
    checkpoint_every_min: float = key(5.0, "minutes between checkpoints", unit="min", changes_result=False, gt=0, le=10_000)
    keep_last: int = key(2, "checkpoints kept, beside the best", changes_result=False, ge=1, le=1000)
    checkpoint_async: bool = key(False, "write checkpoints beside the loop", changes_result=False)


class Predict(Group):
    """How job=predict shares its cases among runs."""

    shards: int = key(1, "runs that share the cases of job=predict, merged into one at the end", ge=1, le=1000)
    shard: int | None = key(None, "of these runs one alone, from 1; null: each of them, then the merge", ge=1)
    merge: list[PathText] = key(
        [],
        "the finished runs to merge, one a shard in their order: set by predict.shards",
        changes_result=False,
        max_length=1000,
    )

    @model_validator(mode="after")
    def _consistent(self) -> Predict:
        if self.shard is not None and self.shard > self.shards:
            raise ValueError(f"shard={self.shard}: predict.shards={self.shards}. Ask for one of them, from 1.")
        if self.merge and (self.shard is not None or len(self.merge) != self.shards):
            raise ValueError(f"merge: {len(self.merge)} runs. Leave it out: predict.shards=N names and merges its runs itself.")
        return self

    @property
    def parted(self) -> bool:
        """Whether it is several runs: the shards, and the one that merges them."""
        return self.shards > 1 and self.shard is None and not self.merge


class Study(Group):
    """What only its authors know of a study. The report shows each, and says where one is not stated."""

    question: Text = key("", "the question that the report answers; empty: made from the model, the data and their labels")
    background: Text = key("", "clinical context: what is done today, and what is known already")
    intended_use: Text = key("", "for what, by whom and where in care the model is meant to be used")
    population: Text = key("", "the people that the cases come from")
    dates: Text = key("", "when the cases were collected")
    setting: Text = key("", "kind, number and place of the centres")
    design: Text = key("", "prospective or retrospective; consecutive, random or convenience")
    exclusions: Text = key("", "who was eligible, and what was left out before the data came here")
    acquisition: Text = key("", "how the images were taken and stored")
    deidentification: Text = key("", "how identities were removed")
    reference_standard: Text = key("", "what the labels stand for, and how they were found")
    annotators: Text = key("", "who labelled: how many, how qualified, how they settled what they disagreed on")
    blinding: Text = key("", "what those who labelled did not know")
    treatments: Text = key("", "treatments received, where they matter")
    sample_size: Text = key("", "why so many cases")
    fairness: Text = key("", "known inequalities between groups, and what was done about them")
    ethics: Text = key("", "approval and consent, or their waiver")
    funding: Text = key("", "who paid, and what part they had")
    conflicts: Text = key("", "conflicts of interest")
    protocol: Text = key("", "where the protocol lies")
    registration: Text = key("", "register and number")
    involvement: Text = key("", "part that patients and the public had")
    limitations: Text = key("", "limits of the study that the numbers do not show")
    interpretation: Text = key("", "what the result means, beside earlier ones, and what should come next")
    usability: Text = key("", "what users must know and do, also where an image is poor")


class Report(Group):
    """How the report is read."""

    prevalence: float | None = key(
        None, "share of positive cases where the model would be used: PPV and NPV are given for it too", gt=0, lt=1
    )


class Resources(Group):
    """What the run asks of the machine, in submitit's words."""

    nodes: int = key(1, "nodes", ge=1, le=100_000)
    tasks_per_node: int = key(1, "ranks a node", ge=1, le=1024)
    gpus_per_node: int = key(0, "GPUs a node", ge=0, le=64)
    cpus_per_task: int | None = key(None, "threads a rank; null: the machine's cores shared among ranks", ge=1, le=4096)
    mem_gb: float | None = key(None, "memory a node; null: not stated", unit="GB", gt=0)
    timeout_min: int = key(1440, "time limit; a checkpoint is written before it", unit="min", ge=1, le=525_600)


class Cluster(Group):
    """The machine, and what a run asks of its scheduler."""

    name: Name = key(..., "name of the machine")
    executor: Literal["local", "slurm"] = key("local", "submitit's executor: this machine, or Slurm")
    account: Name | None = key(None, "whom the site bills")
    partition: Name | None = key(None, "null: the machine's partition for runs with, or without, GPUs")
    qos: Name | None = key(None, "null: the machine's default")
    reservation: Name | None = key(None, "a reservation of nodes")
    mail: Text | None = key(None, "address that Slurm writes to when the job ends or fails", pattern=r"^[^@\s,]+@[^@\s,]+$")
    python: PathText | None = key(None, "Python of the compute nodes; null: the one that submits")
    preflight: bool = key(False, "check each node first (slurm/preflight.sh); its verdict stands in the report")
    chain: int | None = key(
        None,
        "jobs in a row until the run is done; null: 1, or 4 where the machine allows no requeue",
        ge=1,
        le=20,
    )
    facts: Facts = key(Facts(), "what the machine is and allows: read from its file")


class Many(Group):
    """How the runs of one command share Slurm's jobs; in submitit's words."""

    per_node: int | None = key(
        None, "members side by side in one job; null: what a whole node has room for (GPUs, cores), 1 where jobs share nodes",
        ge=1, le=1024,
    )  # fmt: skip
    array_parallelism: int | None = key(
        None, "jobs of one sweep that may run at the same time; null: no limit", ge=1, le=100_000
    )


class Container(Group):
    """An image in which the ranks run, on Slurm; the batch script itself and what it asks of Slurm stay outside."""

    image: PathText | None = key(
        None, "Apptainer image: a .sif file or a sandbox folder; null: none", pattern=r"^[^\x00-\x1f,]+$", changes_result=False
    )
    python: PathText = key("python3", "Python inside it", pattern=r"^[^\x00-\x1f]+$", changes_result=False)
    binds: list[Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f,]*$", max_length=1000)]] = key(
        [], "more folders that it sees: /path or /path:/inside[:ro]", changes_result=False, max_length=50
    )


class Tracking(Group):
    """Where a run's metrics are shown besides its own files. Nothing here changes a result."""

    tensorboard: bool = key(
        False, "event files in RUN/tensorboard, for `tensorboard --logdir runs` (extra tensorboard)", changes_result=False
    )
    mlflow: Annotated[Text, AfterValidator(mlflow_store)] | None = key(
        None,
        "MLflow's store: a folder, sqlite:///FILE or http(s)://HOST; null: off (extra mlflow). Its password or token: "
        "MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN",
        changes_result=False,
    )
    experiment: Text | None = key(None, "MLflow's experiment; null: the run's name", changes_result=False, min_length=1)
    wait_s: float = key(
        10.0, "how long a run that has ended waits for its trackers", unit="s", changes_result=False, ge=0, le=600
    )


class Config(Group):
    """One run, whole."""

    name: Name = key(..., "name of the run; its folder is name-digest")
    job: Literal["train", "fit", "evaluate", "predict", "gather"] = key("train", "what is done (see JOBS)")
    from_run: Runs = key(None, "the trained run, by run_id or folder; several as [a,b]: an ensemble, or gather's folds")
    pipeline: list[Literal["train", "fit", "evaluate", "predict"]] = key(
        [],
        "jobs in a row, train or fit first; each of the others reads the run that it leaves",
        changes_result=False,
        max_length=3,
    )
    depends_on: Runs = key(None, "run or [runs] that must be completed first, by run_id or folder", changes_result=False)
    seed: int = key(0, "seed of weights, order, augmentation and dropout", ge=0, lt=2**31)
    runs_dir: PathText = key("runs", "folder of run folders", changes_result=False)
    runs_access: Literal["user", "group"] = key(
        "user", "who may read run folders: the user alone (umask 077), or the group too (027)", changes_result=False
    )
    task: Task = key(Task(), "what is to be learnt")
    data: Data = key(..., "the images")
    model: Model = key(Model(), "the network")
    trainer: Trainer = key(Trainer(), "the loop")
    features: Features = key(Features(), "what an estimator reads of a table")
    estimator: Estimator = key(Estimator(), "what job=fit fits")
    screening: Screening = key(Screening(), "what a screening laboratory states")
    predict: Predict = key(Predict(), "how job=predict shares its cases among runs")
    study: Study = key(Study(), "what only its authors know of the study, for the report", changes_result=False)
    report: Report = key(Report(), "how the report is read", changes_result=False)
    resources: Resources = key(Resources(), "what the run asks of the machine", changes_result=False)
    cluster: Cluster = key(..., "the machine", changes_result=False)
    sweep: Many = key(Many(), "how many runs of one command share a machine", changes_result=False)
    container: Container = key(Container(), "an image in which the ranks run", changes_result=False)
    tracking: Tracking = key(Tracking(), "where its metrics are shown besides its files", changes_result=False)

    def to_plain(self) -> dict[str, Any]:
        """As it is written down: of a machine's facts those that are stated; of images nothing that is for tables alone."""
        of_tables = {"features", "estimator", "screening"}
        plain = self.model_dump(exclude=of_tables if self.data.reader != "table" else None)
        plain["cluster"]["facts"] = self.cluster.facts.model_dump(exclude_defaults=True)
        return plain
