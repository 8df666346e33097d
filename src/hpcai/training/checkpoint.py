"""Checkpoints: step-00000042.safetensors with every tensor, step-00000042.json with progress and the digests.

The tensors are written beside, hashed meanwhile, synced and renamed; the JSON comes last and makes the checkpoint whole. A
truncated or flipped file is found by digest when it is read. Nothing unpickles.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hpcai import rundir
from hpcai.comm import Group
from hpcai.config.schema import Trainer
from hpcai.context import RunContext
from hpcai.data.samples import Samples
from hpcai.errors import DataError
from hpcai.training.state import TrainState

log = logging.getLogger("hpcai")
CHUNK = 8 * 2**20  # bytes a write: large enough for any disk, small enough that hashing keeps pace
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class Damaged(DataError):
    """A checkpoint whose bytes are not the ones written."""

    def __init__(self, stem: Path, what: str) -> None:
        super().__init__(f"checkpoint={stem.name}: its {what} not what was written. Restore it, or start again with --anew.")


def write_checkpoint(stem: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> str:
    """Writes `stem`.safetensors and `stem`.json; returns the tensors' sha256. Tensors lie on the CPU.

    Raises: OSError; the checkpoints before it stay as they are.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    beside = stem.with_name(f".{stem.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb", buffering=0) as f:
            digest, size = _write_hashed(f.fileno(), tensors)
        beside.replace(stem.with_suffix(".safetensors"))
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    body = {**facts, "sha256": digest, "bytes": size}
    rundir.write_json(stem.with_suffix(".json"), {**body, "digest": _digest(body)})
    return digest


def _write_hashed(fd: int, tensors: Mapping[str, Tensor]) -> tuple[str, int]:
    """The safetensors layout, written and hashed side by side (both drop the interpreter's lock).

    Source: safetensors' format: u64 length, JSON header padded to 8 bytes, then the tensors' bytes.
    """
    header: dict[str, Any] = {}
    at = 0
    held = {name: tensors[name].contiguous() for name in sorted(tensors)}  # one order: equal tensors are equal bytes
    for name, t in held.items():
        size = t.numel() * t.element_size()
        header[name] = {"dtype": _DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    views = [memoryview(len(text).to_bytes(8, "little") + text)]
    views += [memoryview(t.view(-1).view(torch.uint8).numpy().data) for t in held.values() if t.numel()]
    sha = hashlib.sha256()
    with ThreadPoolExecutor(1) as beside:
        hashed = beside.submit(_hash, sha, views)
        for chunk in _chunks(views):
            while chunk:
                chunk = chunk[os.write(fd, chunk) :]
        os.fsync(fd)
        hashed.result()
    return sha.hexdigest(), 8 + len(text) + at


def _hash(sha: Any, views: list[memoryview]) -> None:
    for chunk in _chunks(views):
        sha.update(chunk)


def _chunks(views: list[memoryview]) -> Iterator[memoryview]:
    for view in views:
        for start in range(0, len(view), CHUNK):
            yield view[start : start + CHUNK]


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_facts(stem: Path) -> dict[str, Any]:
    """The checkpoint's JSON.

    Raises: Damaged.
    """
    try:
        body: dict[str, Any] = rundir.read_json(stem.with_suffix(".json"))
        if _digest({k: v for k, v in body.items() if k != "digest"}) == body["digest"]:
            return body
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise Damaged(stem, ".json is")


def read_checkpoint(stem: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts, both checked against their digests.

    Raises: Damaged.
    """
    facts = read_facts(stem)
    try:
        data = stem.with_suffix(".safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() == facts["sha256"]:
            return safetensors.torch.load(data), facts
    except (OSError, safetensors.SafetensorError):
        pass
    raise Damaged(stem, "tensors are")


@dataclass
class Pending:
    """A checkpoint being written beside the loop."""

    future: Future[str]
    step: int


class Checkpoints:
    """When to save, what to keep, where to go on. `facts` go into every checkpoint's JSON (input, labels, machine)."""

    def __init__(self, run: RunContext, cfg: Trainer, group: Group, facts: Mapping[str, Any]) -> None:
        self.run, self.cfg, self.group, self.facts = run, cfg, group, facts
        self.folder = run.dir.checkpoints
        self.saved_at = time.monotonic()
        self.writer = ThreadPoolExecutor(1) if cfg.checkpoint_async else None
        self.pending: Pending | None = None
        self.kept: dict[str, Tensor] = {}

    def overdue(self) -> bool:
        """By rank 0's clock."""
        return self.group.first and time.monotonic() - self.saved_at > self.cfg.checkpoint_every_min * 60

    def due(self, step: int) -> bool:
        """By the step's number, alike on every rank."""
        return self.cfg.checkpoint_every is not None and step % self.cfg.checkpoint_every == 0

    def save(self, state: TrainState) -> None:
        """Saves the state after its last step; collective. Asynchronously the loop waits for the copy alone.

        Raises: OwnedError if another life runs the run now; RunError if an earlier write failed.
        """
        tensors = state.tensors()
        if self.group.first:
            self.finish()
            progress, step = state.to_json(), state.progress.step
            if self.writer is None:
                self._write({k: v.cpu() for k, v in tensors.items()}, progress, step)
            else:
                held = self._copied(tensors)
                self.pending = Pending(self.writer.submit(self._write, held, progress, step), step)
        self.saved_at = time.monotonic()

    def _copied(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """A copy in buffers that are kept: fresh memory of this size costs more than the copy."""
        for name, t in tensors.items():
            if name not in self.kept or self.kept[name].shape != t.shape:
                self.kept[name] = torch.empty(t.shape, dtype=t.dtype)
            self.kept[name].copy_(t)
        return {name: self.kept[name] for name in tensors}

    def _write(self, tensors: Mapping[str, Tensor], progress: dict[str, Any], step: int) -> str:
        self.run.fence()
        digest = write_checkpoint(self.stem(step), tensors, {**self.facts, "step": step, "progress": progress})
        self.run.fence()  # a disk that stood still may have kept us while a successor worked: its checkpoints are not ours
        self.run.note("progress", step=step, epoch=progress["epoch"])
        for old in self._steps():
            if old != progress["best_step"] and old not in sorted(self._steps())[-self.cfg.keep_last :]:
                self.stem(old).with_suffix(".json").unlink(missing_ok=True)
                self.stem(old).with_suffix(".safetensors").unlink(missing_ok=True)
        return digest

    def finish(self) -> None:
        """Waits for a checkpoint that is being written.

        Raises: RunError, OSError from the write.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.future.result()

    def stem(self, step: int) -> Path:
        """Path of a checkpoint without its suffix."""
        return self.folder / f"step-{step:08d}"

    def _steps(self) -> list[int]:
        names = (re.fullmatch(r"step-(\d{8})\.json", f.name) for f in self.folder.glob("step-*.json"))
        return sorted(int(m[1]) for m in names if m)

    def resume(self, state: TrainState) -> int:
        """Loads the newest whole checkpoint; returns its step, 0 for a fresh start. Collective.

        A damaged one is set aside with a warning, and the one before it is used.

        Raises: RunError if the checkpoint is of another model or rank count.
        """
        step = int(self.group.from_first(self._newest_whole() if self.group.first else 0))
        if step:
            tensors, facts = read_checkpoint(self.stem(step))
            state.load(tensors, facts["progress"])
            if self.group.first and facts["machine"] != self.facts["machine"]:
                self._warn(f"it goes on on another machine or thread count ({facts['machine']}): its last bits may differ.")
        self.group.barrier()
        return step

    def _newest_whole(self) -> int:
        self._sweep()
        for step in reversed(self._steps()):
            try:
                read_checkpoint(self.stem(step))
                return step
            except Damaged:
                self._warn(f"checkpoint={self.stem(step).name}: is damaged and set aside; the one before it is used.")
                for suffix in (".json", ".safetensors"):
                    with contextlib.suppress(FileNotFoundError):
                        self.stem(step).with_suffix(suffix).rename(self.stem(step).with_suffix(suffix + ".damaged"))
        return 0

    def _sweep(self) -> None:
        """Removes what a kill left half written or half deleted."""
        self.run.fence()
        whole = {self.stem(step).name for step in self._steps()}
        for file in self.folder.glob("*"):
            if file.name.startswith(".step-") or (file.suffix == ".safetensors" and file.stem not in whole):
                file.unlink()

    def _warn(self, message: str) -> None:
        log.warning("warning: %s", message)
        self.run.note("warning", message=message)


def describe_model(train: Samples, labels: list[str], group: Group) -> dict[str, Any]:
    """What stands in every checkpoint beside progress: labels and input for who uses the model, machine for who resumes it."""
    return {
        "labels": labels,
        "input": {
            "channels": train.channels,
            "size": list(train.x.shape[2:]),
            "mean": list(train.scaling.mean),
            "std": list(train.scaling.std),
        },
        "machine": {
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "device": torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "ranks": group.size,
            "torch": torch.__version__,
        },
    }
