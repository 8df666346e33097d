"""What a site is prepared with: modules of a job, and the way from a grant to an hpcai that submits, on a faked login node."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETUP = ROOT / "slurm" / "setup"
SITES = ("meluxina", "lucia", "lumi")
REAL_PYTHON = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
ACCOUNT = "p200000"
TOOLS = ("bash", "cat", "cut", "dirname", "flock", "head", "id", "mkdir", "mv", "rm", "sed", "sha256sum")

# --- shellcheck


def shell_scripts() -> list[Path]:
    return sorted(p for p in (ROOT / "slurm").rglob("*") if p.suffix in (".sh", ".sbatch"))


def shellcheck(text: bytes | Path) -> str:
    """What shellcheck finds in a file or a text."""
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    words = ["shellcheck", "-e", "SC1091", *([str(text.relative_to(ROOT))] if isinstance(text, Path) else ["-"])]
    given = text if isinstance(text, bytes) else None
    return subprocess.run(words, cwd=ROOT, input=given, capture_output=True, timeout=60).stdout.decode()


@pytest.mark.parametrize("script", shell_scripts(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_script_of_slurm_is_clean(script: Path) -> None:
    assert shellcheck(script) == ""


def test_shellcheck_finds_what_is_not() -> None:
    assert "SC2086" in shellcheck(b"#!/bin/bash\nrm $1\n")


# --- what a job loads

MODULE = """
module() {
  echo "$*" >> "$LOADED"
  [ "$2" != "$REFUSED" ]
}
export -f module
"""


def job(site: str, tmp_path: Path, before: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    """A batch script's beginning: the site's script, then strict mode."""
    script = f". '{SETUP}/{site}.sh' || exit 3\nset -euo pipefail\necho goes on\n"
    env = {"PATH": "/usr/bin:/bin", "LOADED": str(tmp_path / "loaded"), "REFUSED": "", **environ}
    return subprocess.run(["bash", "-c", before + script], env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("site", "loaded"), [
    ("meluxina", ["env/release/2024.1", "Python/3.12.3-GCCcore-13.3.0"]),
    ("lucia", ["EasyBuild/2024a", "Python/3.12.3-GCCcore-13.3.0"]),
    ("lumi", ["LUMI", "partition/C", "cray-python"]),
])  # fmt: skip
def test_a_job_gets_its_sites_modules_in_order(tmp_path: Path, site: str, loaded: list[str]) -> None:
    done = job(site, tmp_path, MODULE, SLURM_JOB_ID="7")
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")
    assert (tmp_path / "loaded").read_text().splitlines() == [f"load {name}" for name in loaded]


def test_lumis_gpu_nodes_get_their_own_modules(tmp_path: Path) -> None:
    job("lumi", tmp_path, MODULE, SLURM_JOB_ID="7", SLURM_JOB_PARTITION="standard-g")
    assert "load partition/G" in (tmp_path / "loaded").read_text()


@pytest.mark.parametrize("site", SITES)
def test_a_job_that_finds_no_module_ends_with_one_sentence(tmp_path: Path, site: str) -> None:
    done = job(site, tmp_path, SLURM_JOB_ID="7", SLURMD_NODENAME="mel0001")
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{site}.sh: job 7 finds no `module` on mel0001") and "'#!/bin/bash -l'" in line


@pytest.mark.parametrize("site", SITES)
def test_a_login_node_without_module_is_told_and_goes_on(tmp_path: Path, site: str) -> None:
    done = job(site, tmp_path)
    assert (done.returncode, done.stdout) == (0, "goes on\n")
    assert len(done.stderr.splitlines()) == 1 and "nothing is loaded" in done.stderr


@pytest.mark.parametrize("site", SITES)
def test_a_module_that_is_gone_ends_the_job_and_is_named(tmp_path: Path, site: str) -> None:
    last = {"meluxina": "Python/3.12.3-GCCcore-13.3.0", "lucia": "Python/3.12.3-GCCcore-13.3.0", "lumi": "cray-python"}[site]
    done = job(site, tmp_path, MODULE, SLURM_JOB_ID="7", REFUSED=last)
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{site}.sh: `module load {last}` failed.") and f"slurm/setup/{site}.sh" in line


def test_the_test_bed_loads_nothing(tmp_path: Path) -> None:
    done = job("testbed", tmp_path, SLURM_JOB_ID="7")
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")


# --- a login node of MeluXina: Python 3.6, no modules

OLD = "import sys; sys.version_info = (3, 6, 8, 'final', 0); exec(sys.argv[1])"
PIP = """
import os, sys
with open(os.environ["PIP_LOG"], "a") as f:
    f.write(" ".join([sys.prefix, *sys.argv[1:]]) + "\\n")
sys.exit("no network" if os.environ.get("PIP_FAILS", "-") in sys.argv else 0)
"""


@dataclass
class LoginNode:
    """Its PATH, the checkout, the project's folder, and what was asked of pip, squeue and sbatch."""

    home: Path
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def checkout(self) -> Path:
        return self.home / "check out"

    @property
    def to(self) -> Path:
        return self.home / "project" / ACCOUNT

    def program(self, name: str, *lines: str) -> None:
        """A program on PATH."""
        file = self.home / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(["#!/bin/bash", *lines, ""]))
        file.chmod(0o755)

    def python(self, name: str, *, old: bool = False) -> None:
        """An interpreter on PATH; a new one makes environments without pip, whose stand-in lies on PYTHONPATH."""
        if old:
            self.program(name, f'[ "$1" = -c ] && exec {REAL_PYTHON} -c "{OLD}" "${{@:2}}"', "exit 1")
        else:
            no_pip = '[ "$1 $2" = "-m venv" ] && set -- -m venv --without-pip "${@:3}"'
            self.program(name, no_pip, f'exec {REAL_PYTHON} "$@"')

    def install(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """The script, as it is typed."""
        words = words or ("--account", ACCOUNT, "--to", str(self.to))
        command = ["bash", str(self.checkout / "slurm/setup/meluxina-install.sh"), *words]
        env = self.environ | environ
        return subprocess.run(command, cwd=self.home, env=env, capture_output=True, text=True, timeout=120)

    def told(self, log: str) -> list[str]:
        """What was asked of a program so far."""
        file = self.home / log
        return file.read_text().splitlines() if file.exists() else []

    def files(self) -> set[str]:
        """Everything there is."""
        return {str(p.relative_to(self.home)) for p in self.home.rglob("*")}


@pytest.fixture
def login(tmp_path: Path) -> LoginNode:
    node = LoginNode(tmp_path)
    (node.checkout / "slurm").mkdir(parents=True)
    shutil.copytree(SETUP, node.checkout / "slurm/setup")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, node.checkout)
    (tmp_path / "stub/pip").mkdir(parents=True)
    (tmp_path / "stub/pip/__init__.py").touch()
    (tmp_path / "stub/pip/__main__.py").write_text(PIP)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:  # nothing else: no module, no python3.11 of this machine
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool) or f"/usr/bin/{tool}")
    node.python("python3", old=True)
    node.program(
        "sbatch",
        f'echo "$*" >> "{tmp_path}/sbatch.log"',
        "[ ! -e no-sbatch ] || { echo 'Invalid qos' >&2; exit 1; }",
        "echo 4711",
    )
    node.program("squeue", f'echo "$*" >> "{tmp_path}/squeue.log"', "if [ -e queue ]; then cat queue; fi", "[ ! -e no-squeue ]")
    node.environ = {
        "PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "stub"),
        "PYTHONDONTWRITEBYTECODE": "1", "PIP_LOG": str(tmp_path / "pip.log"),
        "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
    }  # fmt: skip
    return node


def test_without_a_new_python_one_sentence_says_so(login: LoginNode) -> None:
    before = login.files()
    done = login.install()
    (line,) = done.stderr.splitlines()
    assert done.returncode == 3 and "no Python of 3.11 or newer on PATH (python3: 3.6)" in line and "PYTHON=" in line
    assert login.files() == before, "nothing is written"


@pytest.mark.parametrize("name", ["python3.11", "python3.12", "python3.13"])
def test_a_new_python_beside_the_old_one_is_found(login: LoginNode, name: str) -> None:
    login.python(name)
    done = login.install("--account", ACCOUNT, "--dry-run")
    assert done.returncode == 0 and f"bin/{name} ({sys.version.split()[0]})" in done.stdout, done.stderr


def test_python_names_one_that_lies_elsewhere(login: LoginNode) -> None:
    login.python("mine")
    done = login.install("--account", ACCOUNT, "--dry-run", PYTHON=str(login.home / "bin/mine"))
    assert done.returncode == 0 and "bin/mine" in done.stdout
    for wrong in ("python3", "/no/where", ""):
        refused = login.install("--account", ACCOUNT, "--dry-run", PYTHON=wrong)
        assert refused.returncode == 3 and len(refused.stderr.splitlines()) == 1, wrong


def test_light_is_made_without_torch_and_heavy_by_a_job(login: LoginNode) -> None:
    login.python("python3.11")
    done = login.install()
    assert done.returncode == 0, done.stderr
    first, second = login.told("pip.log")
    light = f"{login.to}/light"
    assert first == f"{light} install -q -c {login.to}/build/constraints.txt -r {login.to}/build/light.txt"
    assert second == f"{light} install -q --no-deps -e {login.checkout}"
    names = [line.split(">")[0] for line in (login.to / "build/light.txt").read_text().splitlines()]
    assert names == ["hydra-core", "pydantic", "psutil", "submitit"]
    everything = (login.to / "build/heavy.txt").read_text()
    assert all(name in everything for name in (*names, "torch>=", "numpy", "safetensors", "jinja2", "matplotlib"))
    assert (login.to / "build/constraints.txt").read_text() == (ROOT / "constraints.txt").read_text()
    assert login.told("sbatch.log") == [f"--parsable {login.to}/build/heavy.sbatch"]
    assert "job 4711 makes heavy/" in done.stdout and f"cluster.python={login.to}/heavy/bin/python3" in done.stdout
    assert not (login.to / "heavy").exists()


def test_what_is_written_is_said_before_it_is_and_is_all(login: LoginNode) -> None:
    login.python("python3.11")
    before = login.files()
    done = login.install()
    head = done.stdout.split("making light/")[0]
    assert all(f"{login.to}/{name}" in head for name in ("light", "heavy", "build")) and "at most 1 node-hour" in head
    new = {f for f in login.files() - before if not f.endswith(".log")}
    ours = f"project/{ACCOUNT}"
    assert all(f in ("project", ours) or f.startswith((f"{ours}/light", f"{ours}/build")) for f in new), new
    assert (login.to / "light").stat().st_mode & 0o007 == 0, "the project's, not the world's"


def test_the_same_command_again_repeats_nothing(login: LoginNode) -> None:
    login.python("python3.11")
    assert login.install().returncode == 0
    before, light = login.told("pip.log"), (login.to / "light/pyvenv.cfg").stat().st_mtime_ns
    (login.home / "queue").write_text("4711 PENDING\n")
    again = login.install()
    assert again.returncode == 0 and "light/ is ready." in again.stdout and "job 4711 makes heavy/: PENDING" in again.stdout
    assert login.told("pip.log") == before and (login.to / "light/pyvenv.cfg").stat().st_mtime_ns == light
    assert len(login.told("sbatch.log")) == 1
    name = login.told("squeue.log")[-1].split("-n ")[1].split()[0]
    assert f"--job-name={name}\n" in (login.to / "build/heavy.sbatch").read_text(), "the job is found by its name"


def test_once_heavy_is_ready_no_job_is_sent(login: LoginNode) -> None:
    login.python("python3.11")
    login.install()
    finished(login)
    done = login.install()
    assert done.returncode == 0 and "heavy/ is ready." in done.stdout and len(login.told("sbatch.log")) == 1
    (login.checkout / "constraints.txt").write_text("torch==2.14.0\n")
    done = login.install()
    assert "making light/" in done.stdout and len(login.told("sbatch.log")) == 2, "other versions are installed anew"


def finished(login: LoginNode) -> None:
    """Runs the job's script as a compute node would, pip recorded."""
    login.python("python3")  # the module's
    module = f'module() {{ echo "$*" >> "{login.home}/module.log"; }}; export -f module; '
    script = login.to / "build/heavy.sbatch"
    (login.home / "stub/torch.py").write_text("__version__ = '2.13.0'\nclass version: cuda = '12.6'\n")
    env = login.environ | {"SLURM_JOB_ID": "4711"}
    command = ["bash", "-c", f'{module} exec bash "{script}"']
    done = subprocess.run(command, env=env, cwd=login.home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch 2.13.0 for CUDA 12.6\n"


def test_the_job_loads_modules_and_installs_all_that_jobs_need(login: LoginNode) -> None:
    login.python("python3.11")
    login.install("--account", ACCOUNT, "--to", str(login.to), "--torch-index", "https://index.example/whl/cu126")
    finished(login)
    assert login.told("module.log") == ["load env/release/2024.1", "load Python/3.12.3-GCCcore-13.3.0"]
    heavy = login.told("pip.log")[-1]
    assert heavy == (
        f"{login.to}/heavy install -c constraints.txt --extra-index-url https://index.example/whl/cu126 -r heavy.txt"
    )
    assert (login.to / "heavy/bin/python3").exists() and not (login.to / "build/pip-cache").exists()


def test_a_job_without_module_makes_nothing(login: LoginNode) -> None:
    login.python("python3.11")
    login.install()
    env = login.environ | {"SLURM_JOB_ID": "4711"}
    done = subprocess.run(["bash", login.to / "build/heavy.sbatch"], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and "finds no `module`" in done.stderr and not (login.to / "heavy").exists()


def test_its_script_is_clean_and_says_what_it_does(login: LoginNode) -> None:
    login.python("python3.11")
    words = ("--account", ACCOUNT, "--qos", "test", "--partition", "gpu", "--to", "/project/home/p200000/x", "--dry-run")
    before = login.files()
    done = login.install(*words)
    script = done.stdout[done.stdout.index("#!/bin/bash -l") :]
    assert shellcheck(script.encode()) == "" and login.files() == before
    for line in (
        "--account=p200000",
        "--qos=test",
        "--partition=gpu",
        "--time=01:00:00",
        "--output=/project/home/p200000/x/build/heavy-%j.log",
    ):
        assert f"#SBATCH {line}\n" in script
    version = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version"))
    assert f"#SBATCH --comment=hpcai:{version.split(chr(34))[1]}:build\n" in script


def test_what_a_dry_run_prints_is_what_is_sent(login: LoginNode) -> None:
    login.python("python3.11")
    words = ("--account", ACCOUNT, "--to", str(login.to))
    shown = login.install(*words, "--dry-run").stdout
    login.install(*words)
    assert shown.endswith((login.to / "build/heavy.sbatch").read_text())


def test_an_interrupted_install_goes_on(login: LoginNode) -> None:
    login.python("python3.11")
    broken = login.install(PIP_FAILS="-e")
    assert broken.returncode == 5 and "run the same command" in broken.stderr and login.told("sbatch.log") == []
    done = login.install()
    assert done.returncode == 0 and "making light/" in done.stdout and len(login.told("sbatch.log")) == 1


def test_a_refused_job_is_told_and_light_stays(login: LoginNode) -> None:
    login.python("python3.11")
    (login.home / "no-sbatch").touch()
    done = login.install()
    assert done.returncode == 3 and "Invalid qos" in done.stderr and "light/ is ready" in done.stderr
    (login.home / "no-sbatch").unlink()
    assert login.install().returncode == 0


def test_while_slurm_is_silent_no_second_job_is_sent(login: LoginNode) -> None:
    login.python("python3.11")
    (login.home / "no-squeue").touch()
    done = login.install()
    assert done.returncode == 3 and "Try again later" in done.stderr and login.told("sbatch.log") == []


def test_two_at_once_do_not_meet(login: LoginNode) -> None:
    login.python("python3.11")
    (login.to / "build").mkdir(parents=True)
    with (login.to / "build/lock").open("w") as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        done = login.install()
    assert done.returncode == 7 and "another one works" in done.stderr


@pytest.mark.parametrize(("words", "said"), [
    ((), "--account="), (("--account", "alice"), "p and six digits"), (("--account",), "no value"),
    (("--account", "p2000001"), "p and six digits"), (("--account", ACCOUNT, "--qos", "a b"), "is no name"),
    (("--account", ACCOUNT, "--partition", "x;y"), "is no name"), (("--account", ACCOUNT, "--to", "here"), "absolute path"),
    (("--account", ACCOUNT, "--to", "/a b$(c)"), "absolute path"), (("--account", ACCOUNT, "--to", "/a\n#S"), "absolute path"),
    (("--account", ACCOUNT, "--torch-index", "x' y"), "no spaces or quotes"), (("--account", ACCOUNT, "--wat"), "unknown"),
    (("--account", ACCOUNT, "--extras", "everything"), "unknown. Known: imaging"),
])  # fmt: skip
def test_a_wrong_option_is_one_line_and_changes_nothing(login: LoginNode, words: tuple[str, ...], said: str) -> None:
    login.python("python3.11")
    before = login.files()
    done = login.install(*words) if words else login.install("--dry-run")
    assert done.returncode == 2 and said in done.stderr and login.files() == before


def test_a_folder_that_cannot_be_made_is_told(login: LoginNode) -> None:
    login.python("python3.11")
    (login.home / "file").touch()
    done = login.install("--account", ACCOUNT, "--to", str(login.home / "file/x"))
    assert done.returncode == 3 and "--to names another folder" in done.stderr


def test_extras_go_where_they_are_needed(login: LoginNode) -> None:
    login.python("python3.11")
    login.install("--account", ACCOUNT, "--to", str(login.to), "--extras", "imaging,hpo")
    light, heavy = ((login.to / f"build/{name}.txt").read_text() for name in ("light", "heavy"))
    assert "monai" in heavy and "monai" not in light, "MONAI is the compute nodes'"
    assert "optuna" in heavy and "optuna" in light, "a search starts on the login node"


def test_what_pyproject_calls_heavy_is_what_the_light_world_must_not_import() -> None:
    tree = ast.parse((ROOT / "tests/test_architecture.py").read_text())
    heavy = next(n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "HEAVY_PACKAGES")
    banned = {"pillow" if name == "PIL" else name for name in ast.literal_eval(heavy.value)}
    text = (ROOT / "pyproject.toml").read_text()
    light = text[text.index("# light:") : text.index("# heavy:")]
    assert not [name for name in banned if f'"{name}' in light]
