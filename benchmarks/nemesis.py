"""Random faults on a real Slurm while small trainings run: is a run lost, done twice, or given other weights?

    python benchmarks/nemesis.py [--seed N] [--faults 40] [--runs 6] [--short]

Kinds (faults.py), moments and victims (by number) are drawn from the seed. After each fault its victim must come back: alone,
or by the verb that `hpcai status` names, which is then typed. So many runs are under way until the last fault; then all of them
end. Each is compared with one run of the same config that nobody disturbed (local executor, as many threads): its weights,
curve and rows; what its lives wrote, and when; and nothing may be left in the queue or alive.

Exit code 0: none lost, none doubled, all identical. The bed is its own; HPCAI_BED names another, which stays up if it was.
A full disk is a tmpfs for each run: where none may be mounted this kind is left out, and the draws are others.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from faults import KINDS, Fault, Run, Site, commands, until

from hpcai import lease, rundir
from hpcai.rundir import RunDir
from hpcai.slurm.testbed.bed import Bed
from hpcai.slurm.testbed.machine import BedError, missing

PATIENCE_S = 300.0  # a victim that has not come back by then is lost
SETTLE_S = 2.0  # a step made sooner after the fault may be one of the rank that it ends
SHORT = ("rank", "batch shell", "slurmctld", "submitter", "full disk")  # those that come back soonest
CLOCKS = ("time", "samples_s", "left_s")  # what differs between two equal curves


def draw(seed: int, count: int, kinds: Sequence[str]) -> Iterator[Fault]:
    """`count` faults; each kind comes once before any comes again."""
    dice, deck = random.Random(seed), list[str]()
    for _ in range(count):
        if not deck:
            deck = dice.sample(kinds, len(kinds))
        yield Fault(deck.pop(), dice.uniform(0, 4), dice.randrange(1 << 16), dice.random())


class Campaign:
    """The runs under way, what was typed for them, and what has been found broken so far."""

    def __init__(self, site: Site, many: int) -> None:
        self.site, self.many, self.began = site, many, time.time()
        self.flight: list[Run] = []
        self.broken: list[str] = []
        self.typed = Counter[str]()

    def refill(self) -> None:
        """Runs that are through make room for new ones."""
        self.flight = [run for run in self.flight if self.site.status(run)[0] != "completed"]
        while len(self.flight) < self.many:
            run, before = self.site.new(), time.monotonic()
            process = self.site.type(*run.words)
            said = process.communicate(timeout=120)[0]
            self.site.submit_s = max(self.site.submit_s, time.monotonic() - before)
            self.flight.append(run)
            if process.returncode:
                self.broken.append(f"{run.name}: its submission ended with {process.returncode}: {said.strip()[-300:]}")
                return

    def hit(self, number: int, fault: Fault) -> None:
        """One fault and what came of it, on a line."""
        time.sleep(fault.pause_s)
        if fault.kind == "submitter":
            run = self.site.new()
            self.flight.append(run)
        else:
            able = until(lambda: self.site.running(self.flight), PATIENCE_S)
            if not able:
                self.broken.append(f"fault {number}: no run had a node in {PATIENCE_S:g} s")
                return
            run = able[fault.victim % len(able)]
        at, where = time.time() - self.began, f"life {run.life} step {run.step()}"
        what, since = KINDS[fault.kind](self.site, run, fault), time.time() + SETTLE_S
        self.site.bed.wait_for_nodes()
        came = self.comes_back(run, since)
        print(f"{number:>3} {at:6.1f} s  {fault.kind:<11} {run.name}  {where:<16}  {what}; {came}", flush=True)

    def comes_back(self, run: Run, since: float, *, whole: bool = False) -> str:
        """Waits until it makes steps again, or waits for a node behind others; `whole`: until it is through. How it did."""
        begun, typed, state, note = time.monotonic(), list[str](), "", ""
        while time.monotonic() - begun < PATIENCE_S:
            for other in self.flight:
                other.step()
            state, note = self.site.status(run)
            told = ", ".join([f"life {run.life}", *typed, f"{time.monotonic() - begun:.0f} s"])
            if state == "completed":
                return f"through, {told}"
            if state == "running":
                if not whole and run.newest().get("time", 0.0) > since and run.processes("rank"):
                    return told
            elif state == "pending":
                if not whole and ("waiting for a node" in note or "behind jobs" in note):
                    return f"in the queue, {told}"
                if "held" in note:  # staff's part
                    self.site.bed.client("scontrol", "release", run.job, fails=True)
                    typed.append("released by staff")
            elif word := self._verb(run, note):
                typed.append(word)
            else:
                break
            time.sleep(0.5)
        self.broken.append(f"{run.name}: did not come back: {state}: {note}")
        self.flight.remove(run)
        return f"LOST: {state}: {note}"

    def _verb(self, run: Run, note: str) -> str:
        """Types what the note names; what was typed, with its exit code. Nothing if it names nothing."""
        if verb := re.search(r"hpcai (resume)\b", note):
            name = run.dir.path.name if run.dir else run.name
            told, words = verb[0], ["hpcai.cli", verb[1], name, "--runs-dir", str(run.runs_dir)]
        elif "the same command goes on" in note.lower():
            told, words = "the same command", run.words
        else:
            return ""
        process = self.site.type(*words)
        process.communicate(timeout=120)
        self.typed[told] += 1
        return f"{told} ({process.returncode})"

    def finish(self) -> None:
        """Every run to its end; then an empty queue, and no process of theirs."""
        for run in list(self.flight):
            self.comes_back(run, 0.0, whole=True)
        paths = [str(run.runs_dir) for run in self.site.runs]

        def left() -> list[str]:
            alive = (line for _, line in commands() if any(path in word for word in line for path in paths))
            return [*(f"job {job}" for job in self.site.queue()), *(" ".join(line)[:200] for line in alive)]

        until(lambda: not left(), 90.0)
        self.broken += [f"left behind: {what}" for what in left()]


# --- the verdict


def wrong(run: Run, calm: RunDir) -> list[str]:
    """What is wrong with a run that has ended, against the one that nobody disturbed."""
    found = run.dir
    if found is None or lease.read_state(found).state != "completed":
        return [f"{run.name}: not completed"]
    lives = [lease.records(found, life) for life in range(1, run.life + 1)]
    ends = sum(any(r["event"] == "end" and r["code"] == 0 for told in life.values() for r in told) for life in lives)
    said = [f"completed {ends} times"] if ends != 1 else []
    for life, after in pairwise(lives):
        wrote = [r["time"] for told in life.values() for r in told if r["event"] == "progress"]
        began = [r["time"] for told in after.values() for r in told if r["event"] == "begin"]
        if wrote and began and max(wrote) > min(began):
            said.append(f"life {lives.index(life) + 1} saved {max(wrote) - min(began):.2f} s after the next one had begun")
    for name, read in READ.items():
        if read(found) != read(calm):
            said.append(f"other {name} than undisturbed")
    return [f"{run.name}: {text}" for text in said]


def curve(run: RunDir) -> list[dict[str, Any]]:
    """Its metrics, without what the clock decides."""
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in rundir.read_lines(run.metrics)]


READ: dict[str, Callable[[RunDir], Any]] = {
    "weights": lambda run: rundir.read_json(run.model)["sha256"],
    "curve": curve,
    "rows": lambda run: [f.read_bytes() for f in (*sorted(run.rows.glob("[!.]*")), run.threshold)],
}


def price(campaign: Campaign) -> str:
    """Of the steps made and of the nodes' time: what counts in the end. Steps are looked at twice a second: about."""
    site, made, useful = campaign.site, 0, 0.0
    for run in site.runs:
        if run.dir is None:
            continue
        told = [lease.records(run.dir, life).get(0, []) for life in range(1, run.life + 1)]
        saved, made = 0, made + site.steps
        for life, records in enumerate(told, 1):  # what it made past its last checkpoint, the next one made again
            saved = max([saved, *(r["step"] for r in records if r["event"] == "progress")])
            made += max(0, run.seen.get(life, 0) - saved)
        begins = [r["time"] for records in told for r in records[:1]]
        times = [line["time"] for line in rundir.read_lines(run.dir.metrics)]
        useful += sum(b - a for a, b in pairwise(times) if not any(a < begin <= b for begin in begins))
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(campaign.began))
    words = [
        "--noheader",
        "--parsable2",
        "--allocations",
        "--duplicates",
        f"--starttime={since}",
        "--format=JobName,ElapsedRaw",
    ]
    starts = [line.split("|") for line in site.bed.client("sacct", *words, fails=True).splitlines()]
    names, kept = {run.dir.path.name for run in site.runs if run.dir}, len(site.runs) * site.steps
    spent = sum(int(seconds) for name, seconds in starts if name in names)
    return (
        f"useful/total: {kept:,} of about {made:,} steps ({kept / max(made, 1):.0%}); "
        f"{useful:,.0f} of {spent:,} node-seconds ({useful / max(spent, 1):.0%})"
    )


# --- the program


def main(argv: Sequence[str] | None = None) -> int:
    """The campaign; returns the exit code."""
    parser = argparse.ArgumentParser(description="random faults on a real Slurm while small trainings run")
    parser.add_argument("--seed", type=int, default=0, help="what is drawn (0)")
    parser.add_argument("--faults", type=int, help="how many (40)")
    parser.add_argument("--runs", type=int, help="so many are under way (6)")
    parser.add_argument("--short", action="store_true", help="2 runs, 5 faults, of the kinds that come back soonest")
    words = parser.parse_args(argv)
    if why := missing():
        print(f"not measured: {why}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the bed shall not outlive us
    count, many, steps = (5, 2, 150) if words.short else (40, 6, 600)
    with tempfile.TemporaryDirectory(prefix="hpcai-nemesis-") as folder, a_bed() as bed:
        site = Site(bed, Path(folder), steps)
        try:
            kinds = [kind for kind in (SHORT if words.short else KINDS) if site.disks or kind != "full disk"]
            faults, many = list(draw(words.seed, words.faults or count, kinds)), words.runs or many
            without = "" if site.disks else "; no full disk: none may be mounted here"
            print(f"seed {words.seed}: {len(faults)} faults, {many} runs of {steps} steps under way{without}", flush=True)
            return run_all(Campaign(site, many), faults)
        finally:
            site.close()


@contextlib.contextmanager
def a_bed() -> Iterator[Bed]:
    """A bed that is up; what it says of itself is lost."""
    bed = Bed(os.environ.get("HPCAI_BED") or f"/tmp/hpcai-nemesis-{os.getpid()}")
    with contextlib.redirect_stderr(io.StringIO()):
        kept = bed.told() if bed.daemons() else None
        try:
            bed.up(kept[1] if kept else None)
            os.environ["SLURM_CONF"] = str(bed.conf)
            yield bed
        finally:
            if not kept:
                bed.down()


def run_all(campaign: Campaign, faults: Sequence[Fault]) -> int:
    """Every fault, every end, the verdict; returns the exit code."""
    site, broken, same = campaign.site, campaign.broken, 0
    calm = site.config("calm")
    undisturbed = site.type(*calm.words)  # beside the others, which wait for Slurm most of the time
    try:
        for number, fault in enumerate(faults, 1):
            campaign.refill()
            campaign.hit(number, fault)
        campaign.finish()
    except BedError as why:
        broken.append(f"the bed: {why}")
    said = undisturbed.communicate(timeout=600)[0]
    if calm.dir is None or undisturbed.returncode:
        broken.append(f"the undisturbed run ended with {undisturbed.returncode}: {said[-300:]}")
    else:
        found = [wrong(run, calm.dir) for run in site.runs]
        same = found.count([])
        broken += [text for told in found for text in told]
    typed = ", ".join(f"{word} {n} times" for word, n in sorted(campaign.typed.items())) or "nothing"
    lives = sum(run.life for run in site.runs)
    print(f"{len(faults)} faults in {time.time() - campaign.began:.0f} s; {len(site.runs)} runs, {lives} lives; typed: {typed}")
    print(price(campaign))
    print("\n".join(f"broken: {text}" for text in broken) or f"none lost, none doubled, {same} of {len(site.runs)} identical")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
