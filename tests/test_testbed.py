"""The Slurm test bed: one bed, shaped as its cluster file says, gone without a trace."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import until
from slurm_bed import SlurmBed

from hpcai.slurm.testbed.bed import DAEMONS, Bed, main
from hpcai.slurm.testbed.machine import HOSTS, NODES, BedError, free_base, put
from hpcai.slurm.testbed.processes import Process, end, processes

pytestmark = pytest.mark.slow
slurm = pytest.mark.slurm
LIMIT = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
NOT_THERE = "Batch job submission failed: Requested node configuration is not available"


# --- what it is


@pytest.mark.parametrize("deaths", [0, 2, 3])
def test_a_database_whose_install_dies_is_installed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int) -> None:
    bed, tried = Bed("/tmp/not-there"), 0
    bed.folder = tmp_path

    def install(self: Bed, *words: str) -> None:
        nonlocal tried
        tried += 1
        (tmp_path / "db.new" / f"half of {tried}").touch()
        if tried <= deaths:
            raise BedError("mariadb-install-db: exit 139")

    monkeypatch.setattr(Bed, "_run", install)
    if deaths == 3:
        with pytest.raises(BedError, match="exit 139"):
            bed._install(tmp_path / "db")
        assert not (tmp_path / "db").exists()
    else:
        bed._install(tmp_path / "db")
        assert [f.name for f in (tmp_path / "db").iterdir()] == [f"half of {deaths + 1}"]
    assert tried == min(deaths + 1, 3)


@slurm
def test_ten_nodes_in_four_partitions_are_usable(slurm: SlurmBed) -> None:
    rows = slurm("sinfo", "-h", "-N", "-o", "%N %P %T %c %G").stdout.splitlines()
    found = {row.split()[0]: row.split()[1:] for row in rows}
    assert sorted(found) == sorted(NODES)
    assert found["cpu04"] == ["cpu*", "idle", "256", "(null)"]
    assert found["gpu01"] == ["gpu", "idle", "128", "gpu:4"]
    assert found["fpga01"][0] == "fpga" and found["mem01"][0] == "largemem"


@slurm
def test_up_twice_is_one_bed(slurm: SlurmBed, capsys: pytest.CaptureFixture[str]) -> None:
    before = slurm.bed.daemons()
    assert sorted(before) == sorted(DAEMONS)
    assert main(["up", "--folder", str(slurm.folder)]) == 0
    assert slurm.bed.daemons() == before
    assert capsys.readouterr().out == f"export SLURM_CONF={slurm.folder}/slurm.conf\n"
    assert main(["status", "--folder", str(slurm.folder)]) == 0


@slurm
def test_up_restarts_what_is_missing_and_keeps_the_rest(slurm: SlurmBed) -> None:
    before = slurm.bed.daemons()
    job = slurm.submit("-p", "cpu", "-w", "cpu01", "-t", "5")
    slurm.until(job, "RUNNING")
    slurm.bed.settle()
    slurm.bed.kill("slurmd gpu03", "slurmctld", "slurmdbd")
    assert main(["status", "--folder", str(slurm.folder)]) == 3
    slurm.bed.up()
    after = slurm.bed.daemons()
    assert {n for n in DAEMONS if after[n] != before[n]} == {"slurmd gpu03", "slurmctld", "slurmdbd"}
    assert slurm.state(job) == "RUNNING"


REJECTED = [
    (["-q", "test", "-t", "31"], ["QOSMaxWallDurationPerJobLimit", LIMIT]),
    (["-q", "default", "-N", "4"], ["QOSMaxNodePerJobLimit", LIMIT]),
    (["-N", "5"], ["Batch job submission failed: Node count specification invalid"]),
    (["-t", "7-0"], ["Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)"]),
    (["-A", "nobody"], ["Batch job submission failed: Invalid account or account/partition combination specified"]),
    (["-A", "p200001"], ["Batch job submission failed: Invalid account or account/partition combination specified"]),
    (["-p", "no"], ["invalid partition specified: no", "Batch job submission failed: Invalid partition name specified"]),
    (["-q", "no"], ["Batch job submission failed: Invalid qos specification"]),
    (["-p", "gpu", "--gpus-per-node=8"], [NOT_THERE]),
    (["-p", "cpu", "--gres=gpu:1"], [NOT_THERE]),
    (["-p", "gpu", "--gres=gpu:a100:4"], [NOT_THERE]),
    (["-p", "cpu", "--mem=600G"], ["Memory specification can not be satisfied", NOT_THERE]),
    (["-p", "gpu", "-n1", "-c", "200"], ["CPU count per node can not be satisfied", NOT_THERE]),
    (["--array=0-101"], ["Batch job submission failed: Invalid job array specification"]),
    (["-C", "no"], ["Batch job submission failed: Invalid feature specification"]),
]


@slurm
@pytest.mark.parametrize(("words", "said"), REJECTED, ids=[" ".join(words) for words, _ in REJECTED])
def test_it_says_no_as_a_site_does(bed: SlurmBed, words: list[str], said: list[str]) -> None:
    done = bed("sbatch", *words, "--wrap=true")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"sbatch: error: {line}" for line in said]


@slurm
def test_a_second_job_of_qos_dev_and_the_101st_of_an_account_are_refused(slurm: SlurmBed) -> None:
    slurm.submit("-q", "dev", "-H", "-t", "5")
    done = slurm("sbatch", "-q", "dev", "-H", "-t", "5", "--wrap=true")
    assert done.stderr.splitlines() == ["sbatch: error: QOSMaxSubmitJobPerUserLimit", f"sbatch: error: {LIMIT}"]
    slurm.submit("-H", "-t", "5", "--array=1-99")
    done = slurm("sbatch", "-H", "-t", "5", "--wrap=true")
    assert done.stderr.splitlines() == ["sbatch: error: AssocGrpSubmitJobsLimit", f"sbatch: error: {LIMIT}"]


@slurm
@pytest.mark.parametrize("ask", ["--gpus-per-node=4", "--gres=gpu:4"])
def test_a_job_sees_the_gpus_it_asked_for_and_has_its_nodes_alone(slurm: SlurmBed, ask: str) -> None:
    show = "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"
    done = slurm("srun", "-p", "gpu", "-N2", "-t1", ask, "bash", "-c", show)
    assert sorted(done.stdout.splitlines()) == ["gpu01 0,1,2,3", "gpu02 0,1,2,3"], done.stderr
    job = slurm.submit("-p", "gpu", "-n1", "-t1", "--gpus-per-node=1")
    assert slurm.until(job, "RUNNING")["NumCPUs"] == "128"


@slurm
def test_pmix_ranks_of_two_nodes_start_together(slurm: SlurmBed) -> None:
    done = slurm("srun", "--mpi=pmix", "-N2", "-n4", "-t1", "bash", "-c", "echo $PMIX_RANK")
    assert sorted(done.stdout.split()) == ["0", "1", "2", "3"], done.stderr


# --- jobs that come back


@slurm
def test_scontrol_requeue_brings_a_job_back_within_seconds(slurm: SlurmBed, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = slurm.submit(
        "-t", "5", "--requeue", "-o", str(log), "--open-mode=append",
        wrap="echo life $SLURM_RESTART_COUNT; [ -n \"$SLURM_RESTART_COUNT\" ] || sleep 300",
    )  # fmt: skip
    until(lambda: log.exists() and "life" in log.read_text())
    assert slurm("scontrol", "requeue", str(job)).returncode == 0
    slurm.until(job, "COMPLETED", timeout=40)
    assert [line for line in log.read_text().splitlines() if line.startswith("life")] == ["life", "life 1"]


@slurm
def test_urgent_work_preempts_and_its_victims_come_back(slurm: SlurmBed) -> None:
    victims = [slurm.submit("-p", "gpu", "-q", "short-preempt", "-N2", "-t", "5", "--requeue") for _ in range(2)]
    for job in victims:
        slurm.until(job, "RUNNING")
    urgent = slurm.submit("-p", "gpu", "-q", "urgent", "-N1", "-t", "1", wrap="true")
    slurm.until(urgent, "COMPLETED")
    until(lambda: sorted(slurm.job(job)["Restarts"] for job in victims) == ["0", "1"])
    for job in victims:
        slurm.until(job, "RUNNING")


@slurm
def test_a_dead_node_is_noticed_and_its_job_runs_elsewhere(slurm: SlurmBed) -> None:
    job = slurm.submit("-p", "cpu", "-t", "5", "--requeue")
    node = slurm.until(job, "RUNNING")["BatchHost"]
    until(lambda: f"job {node}" in slurm.bed.processes())
    slurm.node_dies(node)
    assert not any(role.endswith(node) for role in slurm.bed.processes())
    until(lambda: slurm.job(job)["Restarts"] == "1" and slurm.state(job) == "RUNNING", timeout=90)
    assert slurm.job(job)["BatchHost"] != node
    slurm.node_returns(node)
    slurm.bed.wait_for_nodes()


@slurm
@pytest.mark.parametrize("kill", [False, True])
def test_a_job_outlives_a_controller_that_goes_away(slurm: SlurmBed, kill: bool) -> None:
    job = slurm.submit("-t", "5")
    slurm.until(job, "RUNNING")
    with slurm.no_controller(kill=kill):
        assert slurm("squeue").returncode == 1
    assert slurm.state(job) == "RUNNING" and slurm.job(job)["Restarts"] == "0"


# --- another bed beside the session's


@pytest.fixture
def other(bed: SlurmBed) -> Iterator[Bed]:
    """A second bed's folder, on other ports; gone afterwards."""
    other = Bed(f"{bed.folder}-b")
    yield other
    other.down()


def traces(bed: Bed) -> list[str]:
    """What is left of a bed: processes, its folder, its line in /etc/hosts."""
    left = list(bed.processes())
    return left + [str(bed.folder)] * bed.folder.exists() + ["hosts"] * (f"{bed.folder}\n" in HOSTS.read_text())


def others_hosts() -> list[str]:
    """/etc/hosts without the lines of any bed: others may come and go meanwhile."""
    return [line for line in HOSTS.read_text().splitlines() if "# hpcai slurm testbed" not in line]


def running_job(bed: Bed) -> list[Process]:
    """The processes of a job with a child that has left its session and its parent."""
    script = "#!/bin/bash\nsetsid sleep 1001 & sleep 1002\n"
    bed.client("sbatch", "-D", "/tmp", "-o", "/dev/null", "-t", "5", stdin=script)
    until(lambda: len(bed.processes().get("job cpu01", [])) >= 3)
    return bed.processes()["job cpu01"]


def crashed(bed: Bed) -> None:
    """Some daemons gone by kill -9, a step without its slurmd, a pid file that names somebody else."""
    bed.kill("slurmctld", "slurmd cpu01", "munged", "mariadbd")
    (bed.folder / "run/slurmctld.pid").write_text(f"{os.getpid()}\n")


def half_removed(bed: Bed) -> None:
    """Somebody removed the configuration under living daemons."""
    for name in ("slurm.conf", "run/slurmctld.pid", "run/munged.pid"):
        (bed.folder / name).unlink()


@slurm
@pytest.mark.parametrize("fault", [None, crashed, half_removed])
def test_down_leaves_no_process_and_no_file(bed: SlurmBed, other: Bed, fault: Callable[[Bed], None] | None) -> None:
    mine, hosts = bed.bed.daemons(), others_hosts()
    other.up()
    assert {*other.daemons()} == {*DAEMONS} and other.told() != bed.bed.told()
    job, all_of_it = running_job(other), [p for ps in other.processes().values() for p in ps]
    if fault:
        fault(other)
    assert main(["down", "--folder", str(other.folder)]) == 0
    assert traces(other) == [] and not [p for p in [*job, *all_of_it] if p.alive()]
    assert bed.bed.daemons() == mine, "the other bed lives on"
    assert others_hosts() == hosts


@slurm
def test_a_site_without_accounting_that_forbids_requeue(bed: SlurmBed, other: Bed) -> None:
    assert main(["up", "--folder", str(other.folder), "--no-accounting", "--requeue-forbidden"]) == 0
    assert "slurmdbd" not in other.daemons()
    kit = SlurmBed(other)
    job = kit.submit("-t", "5", "--requeue")
    kit.until(job, "RUNNING")
    done = kit("scontrol", "requeue", str(job))
    assert done.returncode == 1 and f"Requested operation is presently disabled for job {job}" in done.stderr
    assert main(["up", "--folder", str(other.folder)]) == 3, "a bed of another shape lives here"


# --- what stands in the way


def test_a_signal_reaches_nobody_who_took_over_the_pid() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (me,) = [p for p in processes() if p.pid == child.pid]
    end([Process(me.pid, me.start - 1, me.parent, me.name)])  # somebody who had this pid before
    assert child.poll() is None and me.alive()
    end([me])
    assert child.wait(10) == -15 and not me.alive()


def test_a_shell_that_points_at_the_bed_is_none_of_its_processes(tmp_path: Path) -> None:
    bed = Bed("/tmp/hpcai-bed-nowhere")
    code = "import time; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **bed.env}, stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline()
        assert bed.processes() == {}
        child.kill()


@pytest.mark.parametrize("folder", ["/tmp/a b", "/tmp/a\nb", "/tmp/" + "x" * 70, "/tmp/é", "/tmp/$(id)", "/"])
def test_a_folder_that_slurm_could_not_hold_is_refused(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--folder", folder]) == 3
    said = capsys.readouterr().err
    assert said.startswith("--folder=") and said.count("\n") == 1


def test_a_folder_with_other_things_is_neither_filled_nor_removed(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(f"/tmp/hpcai-not-{os.getpid()}")
    folder.mkdir()
    try:
        put(folder / "thesis.tex", "years of work")
        for command in ("up", "down"):
            assert main([command, "--folder", str(folder)]) == 3
            assert "holds other things than a test bed" in capsys.readouterr().err
        assert (folder / "thesis.tex").read_text() == "years of work"
    finally:
        for name in ("thesis.tex", "lock"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def test_down_of_nothing_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["down", "--folder", f"/tmp/hpcai-nothing-{os.getpid()}"]) == 0
    assert main(["status", "--folder", f"/tmp/hpcai-nothing-{os.getpid()}"]) == 3
    assert "no test bed. make slurm-up makes one." in capsys.readouterr().out


def test_a_port_that_is_taken_is_named_and_another_base_found() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        base = taken.getsockname()[1] - 2
        with pytest.raises(BedError, match=rf"^--port={base}: port {base + 2} is taken"):
            free_base(base, "x")
        assert free_base(None, "x", last=base) != base


def test_missing_packages_are_named_with_the_command_that_brings_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpcai.slurm.testbed.machine.PATH", "/nowhere")
    monkeypatch.setattr("hpcai.slurm.testbed.machine.os.getuid", lambda: 0)
    assert main(["up", "--folder", "/tmp/hpcai-bed-nowhere"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "apt-get install --no-install-recommends mariadb-client mariadb-server munge slurm-client slurmctld slurmd" in line
    monkeypatch.setattr("hpcai.slurm.testbed.machine.os.getuid", lambda: 1000)
    assert main(["up", "--folder", "/tmp/hpcai-bed-nowhere"]) == 3
    assert "only root can start" in capsys.readouterr().err
    assert not Path("/tmp/hpcai-bed-nowhere").exists()
