"""A real Slurm on one machine.   python -m hpcai.slurm.testbed.bed up | down | status   (make slurm-up, slurm-down)

    munged  mariadbd  slurmdbd  slurmctld  slurmd x 10      started in this order, stopped from the right
    FOLDER/ bed.json slurm.conf ... run/ log/ state/ spool/NODE/ tmp/NODE/ db/ munge/ dev/

`up` starts what is missing and prints the one line that a shell needs; `down` leaves nothing. Which processes are ours is
read off /proc (a daemon's name and the files it holds open), never off a pid file: after any crash `down` finds them all, and a
pid that somebody else got meanwhile is left alone. Only Python itself is needed: no other package is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import stat
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hpcai.slurm.testbed.machine import (
    NODES,
    PATH,
    PORTS,
    BedError,
    default_folder,
    free_base,
    hosts,
    missing,
    put,
    usual_umask,
)
from hpcai.slurm.testbed.processes import Process, end, environ, open_files, processes, until

HERE = Path(__file__).resolve().parent
DAEMONS = ["munged", "mariadbd", "slurmdbd", "slurmctld", *(f"slurmd {node}" for node in NODES)]
USABLE = ("idle", "planned", "mixed", "allocated")  # sinfo's words; a hung node is `completing` for ever
IDLE_S = 60.0  # from the last daemon's start to ten usable nodes
INSTALLS = 3  # tries
CLIENT_S = 30.0  # no client call lasts longer: without a controller they retry for ever


@dataclass(frozen=True)
class Shape:
    """How a site may differ: no accounting, requeue really forbidden, what preemption does to its victim."""

    accounting: bool = True
    requeue: bool = True
    preempt_mode: str = "REQUEUE"


class Bed:
    """The Slurm that lives in one folder."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(os.path.realpath(folder))
        self.conf = self.folder / "slurm.conf"
        self._began = time.monotonic()
        if not re.fullmatch(r"/[A-Za-z0-9_./-]{1,60}", str(self.folder)):  # sockets: 108 bytes with the names below it
            raise BedError(f"--folder={str(folder)!r}: letters, digits and _./- alone, at most 60. Name another.")

    @property
    def env(self) -> dict[str, str]:
        """What daemons and clients get: nothing of the caller's."""
        return {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "SLURM_CONF": str(self.conf)}

    # what lives

    def processes(self) -> dict[str, list[Process]]:
        """Ours, by role: `slurmctld`, `slurmd gpu01`, `slurmstepd gpu01`, `job gpu01` (what the steps started)."""
        table = processes()
        roles = {p: role for p in table if (role := self._role(p))}
        by_pid, changed = {p.pid: p for p in table}, True
        while changed:  # children of steps and of their children, whatever environment they gave themselves
            changed = False
            for p in table:
                role = roles.get(by_pid[p.parent], "") if p not in roles and p.parent in by_pid else ""
                if role.startswith(("slurmstepd ", "job ")):
                    roles[p], changed = f"job {role.split()[1]}", True
        return {role: [p for p in roles if roles[p] == role] for role in roles.values()}

    def _role(self, p: Process) -> str | None:
        inside = f"{self.folder}/"
        if p.name in ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmscriptd"):  # the last: slurmctld's own child
            return p.name if any(f.startswith(inside) for f in open_files(p.pid)) else None
        if p.name in ("slurmd", "slurmstepd"):
            logs = (re.fullmatch(rf"{re.escape(inside)}log/slurmd-(\w+)\.log( \(deleted\))?", f) for f in open_files(p.pid))
            if node := next((m[1] for m in logs if m), None):
                return f"{p.name} {node}"
        variables = environ(p.pid)
        ours = variables.get("SLURM_CONF") == str(self.conf) and "SLURMD_NODENAME" in variables
        return f"job {variables['SLURMD_NODENAME']}" if ours else None  # a user's own shell has no SLURMD_NODENAME

    def daemons(self) -> dict[str, Process]:
        """Those of DAEMONS that live; of two with one name, as around a fork, the elder."""
        found = self.processes()
        return {name: min(found[name], key=lambda p: (p.start, p.pid)) for name in DAEMONS if name in found}

    # what is on disk

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One `up` or `down` at a time; the folder exists then, and is ours."""
        while True:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._ours()
            with (self.folder / "lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file.fileno()).st_nlink:  # else somebody's `down` removed it while we waited
                    yield
                    return

    def _ours(self) -> None:
        about = self.folder.stat()
        names = {entry.name for entry in self.folder.iterdir()}
        if about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise BedError(f"{self.folder}: others may write here. Name another --folder.")
        if names - {"lock"} and "bed.json" not in names:
            raise BedError(f"{self.folder}: holds other things than a test bed. Name another --folder.")

    def told(self) -> tuple[int, Shape] | None:
        """Port base and shape of the bed that is there."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            facts = json.loads((self.folder / "bed.json").read_bytes())
            return int(facts["base"]), Shape(**facts["shape"])
        return None

    def _write(self, base: int, shape: Shape) -> None:
        """Every file and folder that a daemon wants; unchanged ones are left alone."""
        put(self.folder / "bed.json", json.dumps({"base": base, "shape": asdict(shape)}) + "\n")
        for name in ("run", "log", "state", "dev", *(f"{part}/{node}" for part in ("spool", "tmp") for node in NODES)):
            (self.folder / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        for node in NODES:
            (self.folder / "tmp" / node).chmod(0o1777)
        (self.folder / "munge").mkdir(mode=0o700, exist_ok=True)
        if not (key := self.folder / "munge/key").exists():
            put(key, os.urandom(128), 0o600)
        for i in range(4):
            if not (device := self.folder / f"dev/nvidia{i}").exists():
                os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        for name in ("slurm.conf", "gres.conf", "cgroup.conf", "qos.txt", "accounts.txt", "slurmdbd.conf", "job_submit.lua"):
            put(self.folder / name, self._filled(name, base, shape), 0o600 if name == "slurmdbd.conf" else 0o644)

    def _filled(self, name: str, base: int, shape: Shape) -> str:
        accounting = [
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={base + PORTS['DBD'][0]}",
            f"AccountingStoragePass={self.folder}/run/munge.socket  # sacctmgr and sacct do not look at AuthInfo",
            "AccountingStorageEnforce=associations,limits,qos",
            "AccountingStorageTRES=gres/gpu",
        ]
        words = {
            "BED": str(self.folder),
            "HOST": socket.gethostname().partition(".")[0],
            "ACCOUNTING": "\n".join(accounting) if shape.accounting else "AccountingStorageType=accounting_storage/none",
            "PREEMPTION": f"PreemptType=preempt/qos\nPreemptMode={shape.preempt_mode}" if shape.accounting else "",
            "REQUEUE": "JobRequeue=1" if shape.requeue else "JobRequeue=0\nJobSubmitPlugins=lua",
            **{f"PORT_{name}": "-".join(str(base + p) for p in sorted({ps[0], ps[-1]})) for name, ps in PORTS.items()},
        }
        return string.Template((HERE / name).read_text("utf-8")).substitute(words)

    # up

    def up(self, shape: Shape | None = None, port: int | None = None) -> None:
        """Starts what is missing and waits for ten usable nodes. Raises: BedError."""
        if why := missing():
            raise BedError(why)
        shape = shape or Shape()
        with usual_umask(), self.locked():
            told, living = self.told(), self.daemons()
            if living and told is not None and told != (port or told[0], shape):
                raise BedError(f"{self.folder}: a bed of another shape or port lives here. make slurm-down, or --folder.")
            base = told[0] if living and told else free_base(port, str(self.folder), told[0] if told else None)
            if living and self.conf.exists() and self.conf.read_text("utf-8") != self._filled("slurm.conf", base, shape):
                raise BedError(f"{self.folder}: its slurm.conf is of another version. make slurm-down, then make slurm-up.")
            self._write(base, shape)
            hosts(self.folder, add=True)
            for name in DAEMONS:
                if name not in living and (shape.accounting or name not in ("mariadbd", "slurmdbd")):
                    self.start(name)
                if name == "slurmdbd" and shape.accounting and "slurmctld" not in living:
                    self._accounts()
            self.wait_for_nodes()
            self._say("ten nodes are ready")

    def start(self, name: str) -> None:
        """One daemon of DAEMONS, until it answers (a slurmd: until it has gone into the background). Raises: BedError."""
        told = self.told()
        if told is None:
            raise BedError(f"{self.folder}: no test bed. make slurm-up makes one.")
        self._say(name)
        kind, _, node = name.partition(" ")
        if kind == "mariadbd":
            self._database(told[0])
        elif kind == "munged":
            for stale in (self.folder / "run").glob("munge*"):
                stale.unlink()
            self._run(
                "munged", f"--socket={self.folder}/run/munge.socket", f"--key-file={self.folder}/munge/key",
                f"--log-file={self.folder}/log/munged.log", f"--pid-file={self.folder}/run/munged.pid",
                f"--seed-file={self.folder}/munge/seed", "--num-threads=10",
            )  # fmt: skip
        elif kind == "slurmdbd":
            self._run("slurmdbd")
            self._answers("slurmdbd", "sacctmgr", "-nP", "list", "cluster", "format=cluster")
        elif kind == "slurmctld":
            self._run("slurmctld", "-f", str(self.conf))
            self._answers("slurmctld", "scontrol", "ping", wanted="is UP")
        else:
            self._run("slurmd", "-f", str(self.conf), "-N", node)

    def _install(self, folder: Path) -> None:
        """An empty database. The server that fills it dies by itself now and then (signal 11, one in some 18 beside others)."""
        fresh = self.folder / "db.new"
        for left in reversed(range(INSTALLS)):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(mode=0o700)
            try:
                self._run(
                    "mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={fresh}", "--skip-test-db",
                    "--auth-root-authentication-method=socket",
                )  # fmt: skip
            except BedError:
                if not left:
                    raise
            else:
                break
        fresh.rename(folder)

    def _database(self, base: int) -> None:
        folder = self.folder / "db"
        if not folder.exists():
            self._install(folder)
        command = [
            "mariadbd", "--no-defaults", "--user=root", f"--datadir={folder}",
            f"--socket={folder}/mysql.sock", f"--pid-file={folder}/mariadbd.pid", "--bind-address=127.0.0.1",
            f"--port={base + PORTS['DB'][0]}", "--innodb-buffer-pool-size=128M", "--innodb-log-file-size=16M",
            "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0", "--performance-schema=OFF",
            "--skip-log-bin", f"--log-error={self.folder}/log/mariadbd.log",
        ]  # fmt: skip
        null = subprocess.DEVNULL
        child = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, env=self.env, cwd="/", start_new_session=True)
        child.returncode = 0  # it stays: no child to wait for
        sql = "create database if not exists slurm_acct_db;"
        for user in ("slurm@127.0.0.1", "slurm@localhost"):
            sql += f"create user if not exists {user} identified by 'slurm'; grant all on slurm_acct_db.* to {user};"
        self._answers("mariadbd", "mariadb", "--no-defaults", f"--socket={folder}/mysql.sock", "-uroot", "-e", sql)

    def _accounts(self) -> None:
        """Adds the QOS and accounts that are missing: each row costs sacctmgr 0.4 s."""
        if "testbed" not in self.client("sacctmgr", "-nP", "list", "cluster", "format=cluster").split():
            self.client("sacctmgr", "-i", "-Q", "add", "cluster", "testbed")
        for name in ("qos.txt", "accounts.txt"):  # two processes: one does not see the QOS it has just made
            rows = (self.folder / name).read_text("utf-8").splitlines()
            if wanted := [row for row in rows if not self._known(row)]:
                self._say(f"{len(wanted)} rows of {name}")
                said = self.client("sacctmgr", "-i", "-Q", stdin="\n".join(wanted) + "\n")
                if lost := [row for row in wanted if not self._known(row)]:
                    raise BedError(f"sacctmgr: {lost[0]!r}: {' '.join(said.split())[-200:]}. See {self.folder}/log.")

    def _known(self, row: str) -> bool:
        _, kind, name, *more = row.split()
        if kind == "user":  # Slurm itself makes root: what counts is that it is a member
            member = f"{more[0].partition('=')[2]}|{name}"
            return member in self.client("sacctmgr", "-nP", "list", "assoc", "format=account,user").split()
        return name in self.client("sacctmgr", "-nP", "list", kind, f"format={'name' if kind == 'qos' else kind}").split()

    def wait_for_nodes(self) -> None:
        """Ten usable nodes; drained ones are resumed. Raises: BedError if they are not ready in time."""
        bad: dict[str, str] = {}

        def ready() -> bool:
            rows = self.client("sinfo", "-h", "-N", "-o", "%N %T", fails=True).split("\n")
            states = dict(row.split() for row in rows if len(row.split()) == 2)
            bad.clear()
            bad.update({n: states.get(n, "absent") for n in NODES if states.get(n) not in USABLE})
            for node in [n for n, state in bad.items() if state.startswith(("drain", "fail"))]:
                self.client("scontrol", "update", f"nodename={node}", "state=resume", fails=True)
            return not bad

        if not until(ready, IDLE_S):
            states = ", ".join(f"{node} {state}" for node, state in bad.items())
            raise BedError(f"{states} after {IDLE_S:g} s. See {self.folder}/log; make slurm-down && make slurm-up starts anew.")

    # faults

    def kill(self, *roles: str) -> None:
        """SIGKILL to all that have these roles, and waits for their end. Raises: BedError.

        kill("slurmd gpu01") leaves the node's steps alive; a node that dies takes `slurmstepd gpu01` and `job gpu01` along.
        Of the controller only after `settle`.
        """
        found = self.processes()
        end([p for role in roles for p in found.get(role, [])], 0.0)

    def stop(self, role: str) -> None:
        """SIGTERM to a daemon, and waits for its end: the controller writes its state down. Raises: BedError."""
        end(self.processes().get(role, []))

    def settle(self) -> None:
        """Has the controller write down all that has happened; killed before, it would forget it. Raises: BedError.

        By itself it writes some 5 s after most changes, but 5 minutes after a start by the backfill scheduler (seen in 22.05).
        Being told to read its configuration again makes it write within a second or so.
        """
        began, state = time.time(), self.folder / "state/job_state"
        self.client("scontrol", "reconfigure")

        def written() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return state.stat().st_mtime > began
            return False

        if not until(written, 30.0):
            raise BedError(f"slurmctld: did not write {state}. See {self.folder}/log.")

    # down

    def down(self) -> None:
        """Ends every process of the bed and of its jobs; removes its folder and its line in /etc/hosts. Raises: BedError."""
        if os.getuid():
            raise BedError("down: only root can stop Slurm's daemons. Use sudo.")
        if self.folder.exists():
            with self.locked():
                self._end_all()
                self._remove()
        else:
            self._end_all()
        hosts(self.folder, add=False)

    def _end_all(self) -> None:
        """The controller first: it would call the rest dead, and start jobs anew."""
        for kinds in ("slurmctld", "slurmscriptd", "slurmd", "slurmstepd job", "slurmdbd", "mariadbd", "munged"):
            found = [p for role, ps in self.processes().items() if role.split()[0] in kinds.split() for p in ps]
            if found:
                self._say(f"ending {kinds} ({len(found)})")
                end(found, 0.0 if "job" in kinds else 5.0)
        while left := [p for ps in self.processes().values() for p in ps]:  # forked meanwhile
            end(left, 0.0)

    def _remove(self) -> None:
        """bed.json and the lock last: a `down` that is cut off is one that can be repeated."""
        for entry in self.folder.iterdir():
            if entry.name not in ("bed.json", "lock"):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        for name in ("bed.json", "lock"):
            (self.folder / name).unlink(missing_ok=True)
        self.folder.rmdir()

    # commands

    def client(self, *words: str, stdin: str = "", fails: bool = False) -> str:
        """What a Slurm command says on stdout and stderr; `fails`: whatever its exit code.

        Raises: BedError if it fails or takes longer than CLIENT_S.
        """
        try:
            done = subprocess.run(
                words, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                env=self.env, timeout=CLIENT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            if fails:
                return ""
            raise BedError(f"{words[0]}: no answer in {CLIENT_S:g} s. See {self.folder}/log.") from None
        if done.returncode and not fails:
            raise BedError(f"{' '.join(words)[:80]}: {' '.join(done.stdout.split())[-200:]}. See {self.folder}/log.")
        return done.stdout

    def _answers(self, daemon: str, *words: str, wanted: str = "") -> None:
        """Waits until a client of it succeeds, and says `wanted`. Raises: BedError."""
        said = ""

        def ready() -> bool:
            nonlocal said
            try:
                said = self.client(*words)
                return wanted in said
            except BedError as why:
                said = str(why)
                return False

        if not until(ready, 40.0):
            raise BedError(f"{daemon}: does not answer: {' '.join(said.split())[:200]} (see {self.folder}/log/{daemon}.log)")

    def _run(self, *words: str) -> None:
        """A command that ends, or goes into the background, in its own time. Its output goes to a file: daemons keep pipes."""
        log = self.folder / "log/start.log"
        with log.open("ab") as out:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.env, cwd="/", timeout=120,
                start_new_session=True, umask=0o022,
            )  # fmt: skip
        if done.returncode:
            last = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
            raise BedError(f"{words[0]}: exit {done.returncode}: {' '.join(last)[:200]}. See {self.folder}/log.")

    def _say(self, text: str) -> None:
        print(f"slurm testbed {time.monotonic() - self._began:5.1f} s  {text}", file=sys.stderr, flush=True)


# --- the command


def status(bed: Bed) -> int:
    """Prints what lives; 0 if all does and ten nodes are ready, else 3."""
    told, living = bed.told(), bed.daemons()
    if told is None:
        print(f"{bed.folder}: no test bed. make slurm-up makes one.")
        return 3
    wanted = [n for n in DAEMONS if told[1].accounting or n not in ("mariadbd", "slurmdbd")]
    print(f"{bed.folder}  ports {told[0] + 1} to {told[0] + 41}")
    for name in wanted:
        print(f"  {name:<14}{living[name].pid if name in living else 'missing'}")
    if "slurmctld" in living:
        print(bed.client("sinfo", fails=True), end="")
    return 0 if all(name in living for name in wanted) else 3


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code: 0 done, 3 the machine or the folder does not allow it."""
    parser = argparse.ArgumentParser(prog="bed.py", description="a real Slurm on one machine", allow_abbrev=False)
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument("--folder", default=str(default_folder()), help="where all of it lies (HPCAI_BED; %(default)s)")
    parser.add_argument("--port", type=int, help="port base; ports 1 to 41 above it are used (the first that are free)")
    parser.add_argument("--no-accounting", action="store_true", help="a site without slurmdbd: no QOS, no accounts, no sacct")
    parser.add_argument("--requeue-forbidden", action="store_true", help="a site where no job may be requeued")
    parser.add_argument("--preempt-mode", choices=["REQUEUE", "CANCEL"], default="REQUEUE", help="what befalls a victim")
    words = parser.parse_args(argv)
    shape = Shape(not words.no_accounting, not words.requeue_forbidden, words.preempt_mode)
    for name in ("INT", "HUP", "QUIT", "TERM", "CHLD", "USR1", "USR2"):
        signum = signal.Signals[f"SIG{name}"]
        if signal.getsignal(signum) == signal.SIG_IGN:  # under nohup or a shell's &: jobs would inherit it from slurmd
            signal.signal(signum, signal.SIG_DFL)
    try:
        bed = Bed(words.folder)
        if words.command == "status":
            return status(bed)
        if words.command == "down":
            bed.down()
            return 0
        bed.up(shape, words.port)
        print(f"export SLURM_CONF={bed.conf}")
    except (BedError, OSError, subprocess.TimeoutExpired) as why:
        print(f"{why}".replace("\n", " "), file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
