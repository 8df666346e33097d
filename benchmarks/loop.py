"""What does the loop cost? An MLP 784-32-2, batch 64, one thread, on 16,384 samples: samples a second of

    ours        hpcai's steps, optimise and metrics.jsonl, as jobs/train.py calls them, no checkpoint due
    bare        the same training written out: tensors indexed by a permutation, nothing else
    DataLoader  the usual PyTorch loop over DataLoader(TensorDataset, shuffle=True)
    Lightning   its Trainer with logger, checkpoints, progress bar and model summary off (if installed: extra `bench`)

In turn, median of rounds, ratios round by round. Ours and bare must end with equal weights, bit for bit.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hpcai.comm import Group
from hpcai.config.schema import Trainer
from hpcai.data.samples import Samples, Scaling
from hpcai.rundir import RunDir
from hpcai.tasks.classification import Classification
from hpcai.training.curve import Curve
from hpcai.training.state import TrainState, lr_at
from hpcai.training.steps import epoch_order, optimise, steps, total_steps

N, EPOCHS, ROUNDS, SEED = 16_384, 3, 7, 0
CFG = Trainer(epochs=EPOCHS, batch_size=64, log_every=20)


def mlp() -> nn.Module:
    """784-32-2."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 2))


def ours(samples: Samples, folder: Path) -> tuple[float, list[torch.Tensor]]:
    """hpcai's loop, with metrics and log on."""
    group = Group(0, 1, torch.device("cpu"))
    task = Classification(["a", "b"])
    state = TrainState(mlp, CFG, total_steps(N, CFG), SEED, group)
    curve = Curve(RunDir(folder), state, CFG.log_every, CFG.batch_size, write=True)
    before = time.perf_counter()
    for step in steps(state.progress, N, CFG, SEED, 0, 1):
        outcome = optimise(state, task, samples, step, SEED, stop=False, save=False)
        curve.step(outcome.loss, step.epoch, state.lr())
    return time.perf_counter() - before, [p.detach() for p in state.model.parameters()]


def bare(x: torch.Tensor, y: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    """The floor: the same order, rate and optimiser, nothing noted."""
    torch.manual_seed(SEED * 100_003)
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), CFG.lr, weight_decay=CFG.weight_decay, fused=True)
    step, total = 0, total_steps(N, CFG)
    before = time.perf_counter()
    for epoch in range(EPOCHS):
        order = torch.from_numpy(epoch_order(N, SEED, epoch))
        for at in range(0, N, 64):
            index = order[at : at + 64]
            loss = F.cross_entropy(model(x[index]), y[index])
            loss.backward()
            optimizer.param_groups[0]["lr"] = lr_at(step, total, CFG)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
    return time.perf_counter() - before, [p.detach() for p in model.parameters()]


def loader(x: torch.Tensor, y: torch.Tensor) -> float:
    """What most people write."""
    torch.manual_seed(SEED)
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), CFG.lr, weight_decay=CFG.weight_decay)
    batches = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    before = time.perf_counter()
    for _ in range(EPOCHS):
        for xb, yb in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(xb), yb).backward()
            optimizer.step()
    return time.perf_counter() - before


def lightning(x: torch.Tensor, y: torch.Tensor) -> float | None:
    """Lightning with everything off that can be."""
    try:
        import lightning as L
    except ImportError:
        return None
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Net(L.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = mlp()

        def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
            return F.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), CFG.lr, weight_decay=CFG.weight_decay)

    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, barebones=False,
    )  # fmt: skip
    batches = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    before = time.perf_counter()
    trainer.fit(Net(), batches)
    return time.perf_counter() - before


def main() -> None:
    """Prints the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(1)
    pixels, y = torch.randn(N, 1, 28, 28), torch.randint(0, 2, (N,))
    samples = Samples(pixels, y, torch.arange(N), Scaling((0.0,), (1.0,)), torch.float32, torch.device("cpu"))
    x = samples.x  # one table for all: where a table lies in memory (huge pages or not) is worth more than any loop
    times: dict[str, list[float]] = {"ours": [], "bare": [], "DataLoader": [], "Lightning": []}
    with tempfile.TemporaryDirectory() as folder:
        for round_number in range(ROUNDS + 1):
            floor, expected = bare(x, y)
            seconds, weights = ours(samples, Path(folder) / str(round_number))
            equal = all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))
            seen = {"ours": seconds, "bare": floor, "DataLoader": loader(x, y), "Lightning": lightning(x, y)}
            if round_number:
                for name, value in seen.items():
                    if value is not None:
                        times[name].append(value)
    print(f"{'loop':<12}{'samples/s':>12}{'ours / it':>12}   ({ROUNDS} rounds; asked: bare 0.95, DataLoader 1.3, Lightning 2)")
    for name, values in times.items():
        if not values:
            print(f"{name:<12}{'not installed':>24}")
            continue
        ratio = statistics.median(b / a for a, b in zip(times["ours"], values, strict=True))
        print(f"{name:<12}{N * EPOCHS / statistics.median(values):>12,.0f}{ratio:>12.2f}")
    print(f"final weights of ours and bare equal, bit for bit: {equal}")


if __name__ == "__main__":
    main()
