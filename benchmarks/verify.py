"""`hpcai verify` against one changed byte: 100 changes, each elsewhere in a real run folder; wanted: all found and named.

    python benchmarks/verify.py [CHANGES]

A place is a kind of file (config, code, weights, rows, records, logs, report ...), a file of it, a byte of that, each drawn by
chance from a fixed seed. Named: the changed file stands in verify's words, and no other does. Exit 1 if one is missed.
"""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from hpcai import seal, verification
from hpcai.errors import HpcaiError
from hpcai.rundir import RunDir

WORDS = (
    "name=tiny data.labels=[no,yes] model.norm=group model.width=8 trainer.epochs=2 trainer.batch_size=16 trainer.log_every=1"
)


def main(changes: int) -> int:
    """Prints the table; returns 1 if a change was missed or another file was blamed."""
    with tempfile.TemporaryDirectory() as folder:
        run = trained(Path(folder))
        files = {name: path for name, path in seal.files_of(run).items() if name != "manifest.json" and path.stat().st_size}
        exempt = [n for n in files if seal.kind_of(n) == "free" and n not in ("report.html", "manifest.json")]
        files = {name: path for name, path in files.items() if name not in exempt} | {"manifest.json": run.manifest}
        assert said(run) == (0, []), "the run is not well before any change"
        rng = random.Random(0)
        kinds: dict[str, list[str]] = {}
        for name in files:
            kinds.setdefault(name.split("/")[0], []).append(name)
        found, precise, tried, spent = Counter[str](), 0, Counter[str](), 0.0
        for _ in range(changes):
            kind = rng.choice(sorted(kinds))
            name = rng.choice(kinds[kind])
            with changed(files[name], rng):
                before = time.perf_counter()
                code, lines = said(run)
                spent += time.perf_counter() - before
            named = sum(f": {name} was changed" in line for line in lines)
            tried[kind] += 1
            found[kind] += code == 4 and named == 1
            precise += code == 4 and named == len(lines)
        assert said(run) == (0, []), "the run is not well after all changes"
    for kind in sorted(tried):
        print(f"{kind:<20}{found[kind]:>4} of {tried[kind]:>4} changes found and named")
    print(f"{'all':<20}{found.total():>4} of {changes:>4}; in {precise} nothing else was named")
    print(f"files: {len(files)} checked, {len(exempt)} free by rule; {1000 * spent / changes:.0f} ms a look")
    return 0 if found.total() == changes else 1


def trained(folder: Path) -> RunDir:
    """A small training with its report."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 48), ("val", 24), ("test", 24)):
        y = np.arange(n) % 2
        arrays[f"{split}_images"] = (rng.integers(0, 120, (n, 8, 8)) + y[:, None, None] * 40).astype(np.uint8)
        arrays[f"{split}_labels"] = y[:, None]
    np.savez(folder / "tiny.npz", **arrays)
    words = [*WORDS.split(), "data.identifiers=none", f"data.path={folder / 'tiny.npz'}", f"runs_dir={folder / 'runs'}"]
    subprocess.run([sys.executable, "-m", "hpcai.run", *words], check=True, stdout=subprocess.DEVNULL)
    (path,) = (folder / "runs").glob("tiny-*")
    copy = folder / "copy" / path.name  # a run may be moved
    shutil.copytree(path, copy)
    return RunDir(copy)


def said(run: RunDir) -> tuple[int, list[str]]:
    """Exit code and lines of `hpcai verify RUN`."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return verification.main([str(run.path)]), []
    except HpcaiError as e:
        return e.code, e.lines


@contextlib.contextmanager
def changed(path: Path, rng: random.Random):
    """One byte of `path` is another one."""
    at, flip = rng.randrange(path.stat().st_size), rng.randrange(1, 256)
    with path.open("r+b") as f:
        f.seek(at)
        (byte,) = f.read(1)
        f.seek(at)
        f.write(bytes([byte ^ flip]))
    try:
        yield
    finally:
        with path.open("r+b") as f:
            f.seek(at)
            f.write(bytes([byte]))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
