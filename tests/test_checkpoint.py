"""Checkpoints: whole or found out; a damaged one costs steps, never the run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import Tensor
from training_kit import (
    ALONE,
    fresh_state,
    on_ranks,
    same_bits,
    small_disk,
    table,
    taken,
    train,
    warnings_of,
)

import hpcai
from hpcai import lease, rundir
from hpcai.comm import Group
from hpcai.config.schema import Trainer
from hpcai.context import RunContext
from hpcai.errors import OwnedError, RunError
from hpcai.training import checkpoint
from hpcai.training.checkpoint import Checkpoints, Damaged, read_checkpoint, read_facts, write_checkpoint
from hpcai.training.state import TrainState

torch.set_num_threads(1)
FACTS = {"machine": {"cpu": "any"}}
N = 20  # samples: 5 steps of 4 an epoch


def trainer(**more: Any) -> Trainer:
    return Trainer(batch_size=4, epochs=2, **more)


def checkpoints(context: RunContext, group: Group = ALONE, **more: Any) -> Checkpoints:
    return Checkpoints(context, trainer(**more), group, FACTS)


def saved_at(context: RunContext, at: set[int], **more: Any) -> tuple[Checkpoints, TrainState]:
    """A whole training of ten steps, saved after the steps `at`; each is thought the best so far up to step 4."""
    checkpoints, state = Checkpoints(context, trainer(**more), ALONE, FACTS), fresh_state(trainer(**more), N)

    def save(step: Any, outcome: Any) -> None:
        if step.number <= 4:
            state.progress.best_step = step.number
        if step.number in at:
            checkpoints.save(state)

    train(state, table(N, dtype=torch.float32), save)
    checkpoints.finish()
    return checkpoints, state


def names(context: RunContext) -> list[str]:
    return sorted(f.name for f in context.dir.checkpoints.iterdir())


# ---- one file


TENSORS: dict[str, Tensor] = {
    "model/weight": torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "model/bytes": torch.tensor([1, 255], dtype=torch.uint8),
    "model/count": torch.tensor(7),
    "model/empty": torch.zeros(0, 3),
    "model/half": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
    "model/double": torch.tensor([[float("nan"), 1e-300]], dtype=torch.float64),
    "model/flags": torch.tensor([True, False, True]),
    "model/cut": torch.arange(10.0)[::3],
}


def test_what_is_written_is_read_and_safetensors_reads_it_too(tmp_path: Path) -> None:
    stem = tmp_path / "a" / "step-00000001"
    digest = write_checkpoint(stem, TENSORS, {"step": 1, "progress": {}})
    tensors, facts = read_checkpoint(stem)
    with safetensors.safe_open(stem.with_suffix(".safetensors"), "pt") as theirs:
        for name, tensor in TENSORS.items():
            assert same_bits(tensors[name], tensor.contiguous()), name
            assert same_bits(theirs.get_tensor(name), tensor.contiguous()), name
        assert set(theirs.keys()) == set(TENSORS) == set(tensors)
    data = stem.with_suffix(".safetensors").read_bytes()
    assert facts["sha256"] == digest == hashlib.sha256(data).hexdigest()
    assert (facts["step"], facts["bytes"]) == (1, len(data))
    assert names_in(stem.parent) == ["step-00000001.json", "step-00000001.safetensors"]


def names_in(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


def test_the_json_holds_a_digest_of_itself_that_anyone_can_check(tmp_path: Path) -> None:
    stem = tmp_path / "step-00000001"
    write_checkpoint(stem, TENSORS, {"step": 1})
    body = json.loads(stem.with_suffix(".json").read_text())
    digest = body.pop("digest")
    assert digest == hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def test_a_large_tensor_is_hashed_and_written_in_pieces_without_loss(tmp_path: Path) -> None:
    big = torch.arange(5 * 2**20, dtype=torch.int64)  # 40 MiB: five pieces
    write_checkpoint(tmp_path / "step-00000001", {"big": big, "small": torch.ones(3)}, {})
    tensors, _ = read_checkpoint(tmp_path / "step-00000001")
    assert torch.equal(tensors["big"], big) and torch.equal(tensors["small"], torch.ones(3))


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_anywhere_is_found(tmp_path: Path, seed: int) -> None:
    stem, rng = tmp_path / "step-00000001", random.Random(seed)
    write_checkpoint(stem, TENSORS, {"step": 1, "progress": {"losses": [1.5, 2.5e-07]}})
    facts = read_facts(stem)
    for suffix in (".safetensors", ".json"):
        path = stem.with_suffix(suffix)
        whole = path.read_bytes()
        for at in rng.sample(range(len(whole)), 60):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            try:
                assert read_checkpoint(stem)[1] == facts and suffix == ".json"  # 2.5e-07 -> 2.5E-07 says the same
            except Damaged:
                continue
        path.write_bytes(whole)
    read_checkpoint(stem)


def test_a_checkpoint_cut_short_anywhere_is_found(tmp_path: Path) -> None:
    stem, rng = tmp_path / "step-00000001", random.Random(0)
    write_checkpoint(stem, TENSORS, {"step": 1})
    for suffix in (".safetensors", ".json"):
        path = stem.with_suffix(suffix)
        whole = path.read_bytes()
        for length in (0, 1, 8, len(whole) - 2, *rng.sample(range(len(whole)), 20)):
            path.write_bytes(whole[:length])
            with pytest.raises(Damaged):
                read_checkpoint(stem)
        path.write_bytes(whole)


@pytest.mark.parametrize("text", ["[]", "null", "7", '"x"', "{}", '{"digest": 1}', "\ufeff{}", "[" * 100_000, '{"a": NaN}'])
def test_json_of_any_other_kind_is_damage(tmp_path: Path, text: str) -> None:
    (tmp_path / "step-00000001.json").write_text(text)
    with pytest.raises(Damaged, match=r"^checkpoint=step-00000001: "):
        read_checkpoint(tmp_path / "step-00000001")


def test_a_pickle_in_a_checkpoints_place_is_damage_and_is_not_run(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    stem = tmp_path / "step-00000001"
    write_checkpoint(stem, TENSORS, {"step": 1})
    for suffix in (".safetensors", ".json"):
        whole = stem.with_suffix(suffix).read_bytes()
        stem.with_suffix(suffix).write_bytes(pickle.dumps(Planted()))
        with pytest.raises(Damaged):
            read_checkpoint(stem)
        stem.with_suffix(suffix).write_bytes(whole)
    assert not (tmp_path / "ran").exists()


def test_nothing_in_the_package_unpickles() -> None:
    banned = re.compile(
        r"\b(pickle\.loads?|cloudpickle|joblib|allow_pickle=True|weights_only=False|(?<!safetensors\.)torch\.load|dill)\b"
    )
    package = Path(hpcai.__file__).parent
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for folder in (package, *(package / link for link in ("jobs", "configs", "slurm")))
        for path in folder.rglob("*.py")
        for line in path.read_text().splitlines()
        if banned.search(line)
    ]
    calls = [line for line in found if "torch.load(" in line]
    assert len(calls) == 1 and calls[0].startswith("models/weights.py: ") and "weights_only=True" in calls[0]
    assert [line for line in found if "torch.load" not in line] == []
    assert banned.search("x = pickle.load(f)") and banned.search("torch.load(path)")


# ---- which one a run goes on from


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a flipped bit in the tensors": lambda stem: flip(stem.with_suffix(".safetensors")),
    "a flipped bit in the json": lambda stem: flip(stem.with_suffix(".json")),
    "tensors cut short": lambda stem: os.truncate(stem.with_suffix(".safetensors"), 100),
    "tensors gone": lambda stem: stem.with_suffix(".safetensors").unlink(),
    "an empty json": lambda stem: os.truncate(stem.with_suffix(".json"), 0),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_with_a_warning_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    context = taken(tmp_path)
    _, whole = saved_at(context, {3, 6, 10}, keep_last=3)
    DAMAGE[damage](context.dir.checkpoints / "step-00000010")
    state = fresh_state(trainer(), N)
    assert checkpoints(context).resume(state) == 6 == state.progress.step
    assert [n for n in names(context) if "00010" in n and not n.endswith(".damaged")] == []
    assert any(n.startswith("step-00000010") for n in names(context))
    (warning,) = warnings_of(context.dir)
    assert "step-00000010" in warning and "set aside" in warning
    train(state, table(N, dtype=torch.float32))  # and it ends as the undisturbed one
    assert [k for k, v in state.tensors().items() if not same_bits(v, whole.tensors()[k])] == []


def test_with_every_checkpoint_damaged_a_run_starts_anew(tmp_path: Path) -> None:
    context = taken(tmp_path)
    saved_at(context, {3, 6, 10}, keep_last=3)
    for step in (3, 6, 10):
        flip(context.dir.checkpoints / f"step-{step:08d}.safetensors")
    state = fresh_state(trainer(), N)
    first = {k: v.clone() for k, v in state.tensors().items()}
    assert checkpoints(context).resume(state) == 0
    assert [k for k, v in state.tensors().items() if not same_bits(v, first[k])] == []
    assert len(warnings_of(context.dir)) == 3


def test_ranks_agree_on_the_checkpoint_they_go_on_from(tmp_path: Path) -> None:
    context = taken(tmp_path)
    cfg = trainer(checkpoint_every=2, keep_last=3)

    def rank(group: Group, done: int) -> tuple[int, dict[str, Tensor]]:
        state = fresh_state(cfg, N, group)
        mine = Checkpoints(context, cfg, group, FACTS)
        resumed = mine.resume(state)

        def save(step: Any, outcome: Any) -> None:
            if mine.due(step.number):
                mine.save(state)
            state.progress.finished = step.number == done

        if done:
            train(state, table(N, dtype=torch.float32), save)
        return resumed, {k: v.clone() for k, v in state.tensors().items()}

    on_ranks(2, lambda group: rank(group, 6))
    flip(context.dir.checkpoints / "step-00000006.safetensors")
    (one, a), (two, b) = on_ranks(2, lambda group: rank(group, 0))
    assert one == two == 4
    assert [k for k in a if not same_bits(a[k], b[k])] == []


def test_a_checkpoint_of_another_model_is_refused_with_one_sentence(tmp_path: Path) -> None:
    context = taken(tmp_path)
    saved_at(context, {10})
    with pytest.raises(RunError, match=r"^checkpoint: does not fit"):
        checkpoints(context).resume(fresh_state(trainer(), N, norm="batch"))
    with pytest.raises(RunError, match=r"^checkpoint: does not fit"):
        on_ranks(2, lambda group: Checkpoints(context, trainer(), group, FACTS).resume(fresh_state(trainer(), N, group)))


def test_a_checkpoint_of_another_machine_is_used_with_a_warning(tmp_path: Path) -> None:
    context = taken(tmp_path)
    saved_at(context, {10})
    other = Checkpoints(context, trainer(), ALONE, {"machine": {"cpu": "another"}})
    assert other.resume(fresh_state(trainer(), N)) == 10
    assert "last bits may differ" in warnings_of(context.dir)[0]


# ---- what is kept


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    context = taken(tmp_path)
    saved_at(context, set(range(1, 11)), keep_last=2)
    stems = [f"step-{s:08d}" for s in (4, 9, 10)]  # 4 was the best
    assert names(context) == sorted(f"{s}{suffix}" for s in stems for suffix in (".json", ".safetensors"))


def test_what_a_kill_left_half_written_or_half_deleted_is_swept(tmp_path: Path) -> None:
    context = taken(tmp_path)
    saved_at(context, {4, 10})
    folder = context.dir.checkpoints
    for name in (".step-00000007.4711.tmp", "step-00000007.safetensors", ".step-00000007.json.4711.tmp"):
        (folder / name).write_bytes(b"half")
    before = names(context)
    checkpoints(context).resume(fresh_state(trainer(), N))
    assert set(before) - set(names(context)) == {
        ".step-00000007.4711.tmp", "step-00000007.safetensors", ".step-00000007.json.4711.tmp",
    }  # fmt: skip


def test_a_checkpoint_is_due_by_step_and_overdue_by_rank_0s_clock(tmp_path: Path) -> None:
    context = taken(tmp_path)
    by_step = checkpoints(context, checkpoint_every=3)
    assert [s for s in range(1, 10) if by_step.due(s)] == [3, 6, 9]
    assert not by_step.overdue()
    by_time = checkpoints(context, checkpoint_every_min=0.001)
    by_time.saved_at -= 1
    assert by_time.overdue() and not by_time.due(3)
    other = checkpoints(context, Group(1, 2, torch.device("cpu")), checkpoint_every_min=0.001)
    other.saved_at -= 1
    assert not other.overdue()


# ---- beside the loop


def test_checkpoints_written_beside_the_loop_hold_the_state_of_their_step(tmp_path: Path) -> None:
    kept = {}
    for name, beside in (("a", False), ("b", True)):
        context = taken(tmp_path / name)
        saved_at(context, set(range(1, 11)), keep_last=10, checkpoint_async=beside)
        kept[name] = {s: read_checkpoint(context.dir.checkpoints / f"step-{s:08d}") for s in range(1, 11)}
    for step, (tensors, facts) in kept["a"].items():
        theirs, their_facts = kept["b"][step]
        assert facts["progress"] == their_facts["progress"]
        assert [k for k, v in tensors.items() if not same_bits(v, theirs[k])] == []


@pytest.mark.parametrize("beside", [False, True])
def test_a_write_that_fails_is_an_error_not_a_loss(tmp_path: Path, beside: bool) -> None:
    context = taken(tmp_path)
    mine, state = saved_at(context, {4}, checkpoint_async=beside)
    context.dir.checkpoints.rename(tmp_path / "elsewhere")
    context.dir.checkpoints.write_text("a file where the folder was")
    with pytest.raises(OSError):
        mine.save(state)
        mine.finish()


def test_a_life_that_lost_the_run_writes_nothing(tmp_path: Path) -> None:
    context = taken(tmp_path)
    mine, state = saved_at(context, {4})
    lease.append(context.dir, 1, 0, "end", code=5)
    lease.take(context.dir, 1)
    before = names(context)
    with pytest.raises(OwnedError, match="life 2 runs it now"):
        mine.save(state)
    assert names(context) == before


def test_a_life_that_lost_the_run_while_a_write_stood_still_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its successor's best checkpoint is none that this life knows of."""
    context = taken(tmp_path)
    mine, state = saved_at(context, {4}, keep_last=1)

    def stands_still(stem: Path, *what: Any) -> str:
        other = RunContext(context.dir, life=lease.take(context.dir, 1, over=1))
        theirs = checkpoints(other, keep_last=9)
        for step in (5, 20):
            state.progress.step, state.progress.best_step = step, 5
            monkeypatch.setattr(checkpoint, "write_checkpoint", write_checkpoint)
            theirs.save(state)
        return write_checkpoint(stem, *what)

    monkeypatch.setattr(checkpoint, "write_checkpoint", stands_still)
    with pytest.raises(OwnedError, match="life 2 runs it now"):
        mine.save(state)
    assert {"step-00000005.json", "step-00000020.json"} <= set(names(context))


@pytest.mark.parametrize("beside", [False, True])
def test_a_full_disk_leaves_the_earlier_checkpoints_whole(tmp_path: Path, beside: bool) -> None:
    context = taken(tmp_path / "run")
    with small_disk(tmp_path / "disk") as disk:
        context.dir.checkpoints.symlink_to(disk)
        mine, state = saved_at(context, {4, 8}, checkpoint_async=beside, keep_last=9)
        before = {n: (disk / n).read_bytes() for n in names_in(disk)}
        (disk / "other").write_bytes(b"x" * (3 * 2**20 - sum(map(len, before.values())) - 50_000))
        state.progress.step = 11
        with pytest.raises(OSError, match="No space"):
            for _ in range(2):
                mine.save(state)
                state.progress.step += 1
            mine.finish()
        (disk / "other").unlink()
        assert {n: (disk / n).read_bytes() for n in names_in(disk)} == before
        assert checkpoints(context).resume(fresh_state(trainer(), N)) == 8


def test_a_checkpoint_reads_back_as_json_that_is_json(tmp_path: Path) -> None:
    context = taken(tmp_path)
    saved_at(context, {10})
    facts = rundir.read_json(context.dir.checkpoints / "step-00000010.json")
    assert facts["progress"]["step"] == facts["step"] == 10


def test_equal_tensors_are_equal_bytes_in_whatever_order_they_come(tmp_path: Path) -> None:
    """A run that goes on reads its state in the file's order: its model's digest must be that of the undisturbed run."""
    tensors = {name: torch.arange(6.0) * i for i, name in enumerate(("model/a", "optimizer/10/x", "optimizer/2/x", "rng"))}
    one = write_checkpoint(tmp_path / "step-00000001", tensors, {"step": 1})
    other = write_checkpoint(tmp_path / "step-00000002", dict(reversed(tensors.items())), {"step": 2})
    assert one == other
    assert (tmp_path / "step-00000001.safetensors").read_bytes() == (tmp_path / "step-00000002.safetensors").read_bytes()
