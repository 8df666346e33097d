"""Fit a model, choose its threshold on validation, score the test split once.

    python -m hpcai.run +experiment=pneumonia

data -> split -> samples -> model -> loop (step, validate, checkpoint) -> best weights -> rows -> threshold -> report
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from hpcai import rundir
from hpcai.comm import process_group
from hpcai.config.schema import Config
from hpcai.context import RunContext
from hpcai.data.open import open_cases
from hpcai.data.samples import Samples, load_samples
from hpcai.data.split_file import sentence, split_once
from hpcai.errors import Stopped
from hpcai.infer import as_table, logits_of, rows_of, write_rows
from hpcai.metrics.classification import choose_threshold, ranking
from hpcai.models import build
from hpcai.models.start import start_from
from hpcai.report import write_report
from hpcai.report.pictures import note_pictures
from hpcai.tasks.classification import Classification, balanced_weights
from hpcai.tracking import follow
from hpcai.training.checkpoint import Checkpoints, describe_model, read_checkpoint
from hpcai.training.curve import Curve, check_finite
from hpcai.training.state import DTYPES, TrainState
from hpcai.training.steps import optimise, steps, total_steps

log = logging.getLogger("hpcai")
AsRows = Callable[[torch.Tensor], list[dict[str, Any]]]


def main(cfg: Config, run: RunContext) -> None:
    """Trains, or goes on training; leaves model.json, threshold.json, rows and the report.

    Raises: DataError, RunError, Stopped.
    """
    gpus, deterministic = cfg.resources.gpus_per_node, cfg.trainer.deterministic
    with follow(cfg, run), process_group(run, gpus=gpus, seed=cfg.seed, deterministic=deterministic) as group:
        # ---- data -> split -> samples
        cases = open_cases(cfg.data, rundir.read_digests(run.dir))
        split = split_once(run, cases, cfg.data.split)
        dtype = DTYPES[cfg.trainer.precision]
        train = load_samples(cases, split.train, dtype, group.device)
        val = load_samples(cases, split.val, dtype, group.device, train.scaling)
        log.info("data  %s", sentence(split, cases))

        # ---- task, model, state: fresh, or as the last checkpoint left it
        weights = None
        if cfg.trainer.class_weights == "balanced":
            balanced = balanced_weights(cases.labels[split.train], len(cfg.data.labels))
            weights = torch.tensor(balanced, dtype=dtype, device=group.device)
        task = Classification(cfg.data.labels, weights, cfg.trainer.label_smoothing)
        total = total_steps(len(train), cfg.trainer)
        state = TrainState(lambda: start_from(build(cfg.model, train.channels, len(task.labels)), cfg.model), cfg.trainer,
                           total, cfg.seed, group)  # fmt: skip
        checkpoints = Checkpoints(run, cfg.trainer, group, describe_model(train, task.labels, group))
        if resumed := checkpoints.resume(state):
            log.info("resuming at step %s", f"{resumed:,}")
        curve = Curve(run, state, cfg.trainer.log_every, cfg.trainer.batch_size, write=group.first)

        # ---- the loop
        progress = state.progress
        for step in steps(progress, len(train), cfg.trainer, cfg.seed, group.rank, group.size):
            wish = {"stop": run.stop.signum is not None, "save": checkpoints.overdue()}
            outcome = optimise(state, task, train, step, cfg.seed, **wish)
            curve.step(outcome.loss, step.epoch, state.lr())
            save = outcome.save or checkpoints.due(step.number) or step.last
            if step.ends_epoch and ((step.epoch + 1) % cfg.trainer.validate_every == 0 or step.last):
                curve.read()
                save |= validate(
                    cfg, state, task, val, lambda logits: rows_of(task, cases, split.val, logits), curve, step.epoch
                )
            if save or outcome.stop or progress.finished:
                curve.read()
                checkpoints.save(state)
            if outcome.stop and not (step.last or progress.finished):
                checkpoints.finish()
                raise Stopped(
                    run.stop.signum or signal.SIGTERM,
                    f"stopped after step {step.number:,}, checkpoint kept. The same command goes on.",
                )
        checkpoints.finish()
        group.barrier()

        # ---- best weights -> rows -> threshold -> report
        tensors, facts = read_checkpoint(checkpoints.stem(progress.best_step))
        state.load(tensors, facts["progress"])
        test = load_samples(cases, split.test, dtype, group.device, train.scaling)
        with state.judged() as model:
            scored = {name: rows_of(task, cases, indices, logits_of(model, samples, len(task.labels), group))
                      for name, indices, samples in (("val", split.val, val), ("test", split.test, test))}  # fmt: skip
        for name, rows in scored.items():
            write_rows(run, name, rows)
        if group.first:
            run.fence()
            rundir.write_json(run.dir.threshold, asdict(choose_threshold(as_table(scored["val"]), cfg.task.threshold, "val")))
            rundir.write_json(run.dir.model, {"checkpoint": checkpoints.stem(facts["step"]).name, **facts})
            run.note("progress", step=progress.step)
            note_pictures(run.dir, cases)
            write_report(run.dir)


def validate(
    cfg: Config, state: TrainState, task: Classification, val: Samples, as_rows: AsRows, curve: Curve, epoch: int
) -> bool:
    """Scores validation, notes it, says whether this is the best so far; early stopping ends the run here. Collective."""
    with state.judged() as model:
        logits = logits_of(model, val, len(task.labels), state.group)
    total, weight = task.loss(logits, val.y)
    loss = float(total / weight)
    check_finite(state.progress.step, "the validation loss", loss)
    auc = ranking(as_table(as_rows(logits)), "val")
    score = -loss if cfg.task.select == "loss" or auc.value is None else auc.value
    score = state.group.from_first(score)
    progress = state.progress
    best = progress.best is None or score > progress.best
    if best:
        progress.best, progress.best_step, progress.bad = score, progress.step, 0
    else:
        progress.bad += 1
        progress.finished = 0 < cfg.trainer.patience <= progress.bad
    facts = {"loss": loss, "auc": auc.value, "low": auc.low, "high": auc.high, "n": auc.n}
    curve.validation(epoch=epoch + 1, **facts, best=best)
    if auc.value is not None:
        log.info("epoch %d/%d  step %s  val AUC %.3f [%.3f, %.3f]%s", epoch + 1, cfg.trainer.epochs, f"{progress.step:,}",
                 auc.value, auc.low or np.nan, auc.high or np.nan, "  best" if best else "")  # fmt: skip
    if progress.finished:
        log.info("no better score in %d validations: training ends at step %s", progress.bad, f"{progress.step:,}")
    return best
