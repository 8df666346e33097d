"""Which values to try next: Optuna's samplers and pruners over one journal.   ask -> Trial -> note, report, tell -> ask

Knows no process and starts nothing: a driver may ask, or each finished member for the next, at once and on many nodes. A trial
is handed out by one line of the journal, so a kill leaves it whole or not begun. What is suggested depends on the seed, the
trial's number and the trials before it alone: a driver that was killed and one that was not search alike.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import math
import socket
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from hpcai import lease, rundir
from hpcai.config.space import Space
from hpcai.errors import ConfigError, Faults, HpcaiError, PlanError, near, one_line
from hpcai.journal import Journal, backend

JOURNAL = "search.jsonl"
STARTUP = 10  # trials at random before the sampler learns (Optuna's default), and 5 before the pruner judges
STUDY = "search"
Told = Literal["complete", "failed", "pruned"]
Sampler = Literal["tpe", "random"]
Pruner = Literal["median", "none"]
MAX_TRIALS = 10_000  # Optuna goes through all trials at each ask


def missing() -> str | None:
    """What to do where Optuna is not installed; None if it is."""
    return None if importlib.util.find_spec("optuna") else "--search: needs optuna. pip install 'hpcai[hpo]'."


# --- options


@dataclass(frozen=True)
class Options:
    """What stands after --search."""

    trials: int
    seed: int = 0
    sampler: Sampler = "tpe"
    pruner: Pruner = "median"


NAMES = ("trials", "seed", "sampler", "pruner")
USAGE = "--search trials=N[,seed=N][,sampler=tpe|random][,pruner=median|none]"


def parse_options(text: str) -> Options:
    """`trials=30,seed=1` as Options.

    Raises: Faults, one a name.
    """
    given: dict[str, Any] = {}
    faults: list[HpcaiError] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = (x.strip() for x in part.partition("="))
        try:
            if name not in NAMES:
                raise ConfigError(f"--search {one_line(part, 80)}: unknown. {near(name, NAMES)}")
            if name in given:
                raise ConfigError(f"--search {name}: stands twice. Keep one.")
            given[name] = _option(name, value if equals else "")
        except ConfigError as e:
            faults.append(e)
            given.setdefault(name, None)
    if "trials" not in given:
        faults.append(ConfigError(f"--search {one_line(text, 80)}: says not how many trials. Write {USAGE}."))
    if faults:
        raise Faults(faults)
    return Options(**given)


def _option(name: str, value: str) -> int | str:
    shown = f"--search {name}={one_line(value, 80)}"
    if name in ("trials", "seed"):
        low, high = (1, MAX_TRIALS) if name == "trials" else (0, 2**32 - 1)
        if not (value.isascii() and value.isdigit() and len(value) < 12 and low <= int(value) <= high):
            raise ConfigError(f"{shown}: is no whole number from {low} to {high}. Correct it.")
        return int(value)
    known = get_args(Sampler if name == "sampler" else Pruner)
    if value not in known:
        raise ConfigError(f"{shown}: unknown. {near(value, known)}")
    return value


# --- the search


@dataclass(frozen=True)
class Trial:
    """One set of values. `open` until told; `stop`: the pruner has said so; `value` of a pruned one: the last it reported."""

    number: int
    values: dict[str, Any]
    words: list[str]
    state: Literal["open", "complete", "failed", "pruned"] = "open"
    value: float | None = None
    run_id: str | None = None
    stop: bool = False


class Search:
    """One search in one folder; `open` makes it. Every method reads what others have written, and is one step to them."""

    def __init__(self, journal: Journal, space: Space, options: Options, maximize: bool) -> None:
        self.space, self.options, self.maximize = space, options, maximize
        self._journal = journal
        self._study: Any = None

    @classmethod
    def open(cls, folder: Path, space: Space, options: Options, maximize: bool) -> Search:
        """Begins the search in `folder`, or goes on with it; `options` may differ from before, and hold from now on.

        Raises: PlanError if another space, or another direction, was searched there, or if its journal is damaged.
        """
        search = cls(Journal(folder / JOURNAL), space, options, maximize)
        with search._alone():
            import optuna

            begun = {
                "study_name": STUDY,
                "sampler": optuna.samplers.RandomSampler(0),
            }  # a sampler that is not asked: see _suggest
            try:
                storage = optuna.storages.JournalStorage(backend(search._journal))
                if storage.get_all_studies():
                    search._study = optuna.load_study(storage=storage, **begun)
            except (KeyError, ValueError, TypeError, AttributeError, AssertionError) as e:  # well formed, and nonsense
                raise search._journal.damaged("its journal") from e
            if search._study is None:
                direction = "maximize" if maximize else "minimize"
                search._study = optuna.create_study(storage=storage, direction=direction, **begun)
            search._agree(folder)
        rundir.sync_folder(folder)
        return search

    def _agree(self, folder: Path) -> None:
        """Compares with what the journal says this search is, and notes what it is now."""
        mine = {
            "version": rundir.VERSION,
            "space": self.space.to_json(),
            "maximize": self.maximize,
            "options": asdict(self.options),
        }
        before = self._study.user_attrs.get("search")
        if before == mine:
            return
        if before is not None:
            for key, what in (("version", "format"), ("space", "space"), ("maximize", "direction")):
                if before.get(key) != mine[key]:
                    shown = one_line(folder.name, 120)
                    raise PlanError(f"search: {shown} holds a search of another {what}. Take another name=NAME.")
        self._study.set_user_attr("search", mine)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One step: nobody else writes within, and Optuna says nothing."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its experimental and future warnings are no user's business
            import optuna

            before = optuna.logging.get_verbosity()
            optuna.logging.set_verbosity(optuna.logging.CRITICAL)
            try:
                with self._journal.locked():
                    yield
            finally:
                optuna.logging.set_verbosity(before)

    # --- handing out

    def ask(self) -> Trial | None:
        """The next trial; first one that was handed out to a process which vanished before it noted a run. None: no more."""
        with self._alone():
            known = self._frozen()
            for frozen in known:
                if not frozen.state.is_finished() and not frozen.user_attrs.get("run_id") and _gone(frozen.user_attrs):
                    self._set(frozen, "asker", _me())
                    return self._trial(frozen)
            if len(known) >= self.options.trials:
                return None
            self._study.add_trial(self._suggest(known))
            return self._trial(self._frozen()[-1])

    def _suggest(self, known: list[Any]) -> Any:
        """A new trial's values: a pure function of options, space and `known`, tried on a copy in memory."""
        import optuna

        digest = hashlib.sha256(f"{self.options.seed} {len(known)}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        if self.options.sampler == "random":
            sampler = optuna.samplers.RandomSampler(seed)
        else:  # multivariate: values that go well together; constant_liar: not what others are trying at this moment
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, multivariate=True, constant_liar=True)
        tried = optuna.create_study(direction=self._study.direction, sampler=sampler)
        tried.add_trials(known)
        distributions = {key: self._distribution(key) for key in self.space.dimensions}
        params = tried.ask(distributions).params
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING, params=params, distributions=distributions, user_attrs={"asker": _me()}
        )

    def _distribution(self, key: str) -> Any:
        import optuna

        d = self.space.dimensions[key]
        if d.kind == "category":
            return optuna.distributions.CategoricalDistribution(d.choices)
        if d.kind == "int":
            return optuna.distributions.IntDistribution(int(d.low), int(d.high), log=d.log, step=int(d.step or 1))
        return optuna.distributions.FloatDistribution(d.low, d.high, log=d.log, step=d.step)

    def note(self, number: int, run_id: str) -> None:
        """Trial `number` is run `run_id`: to be said before that starts, so that a kill loses neither."""
        with self._alone():
            frozen = self._frozen()[number]
            if not frozen.state.is_finished() and frozen.user_attrs.get("run_id") != run_id:
                self._set(frozen, "run_id", run_id)

    # --- taking back

    def report(self, number: int, step: int, value: float) -> bool:
        """Notes a value on the way, such as that of epoch `step`; says whether the trial need not go on. That stays said.

        A step told before, a value that is no number, and a trial that was told are ignored.
        """
        with self._alone():
            frozen = self._frozen()[number]
            if frozen.state.is_finished():
                return False
            stop = bool(frozen.user_attrs.get("stop"))
            if step not in frozen.intermediate_values and math.isfinite(value):
                if not stop and self._prunes(frozen, {**frozen.intermediate_values, step: value}):
                    self._set(frozen, "stop", stop := True)  # first: a kill between the two lines loses neither
                self._study._storage.set_trial_intermediate_value(frozen._trial_id, step, value)
            return stop

    def _prunes(self, frozen: Any, values: dict[int, float]) -> bool:
        """Whether `values` are worse at their last step than half of the complete trials were there; never before 5 are."""
        if self.options.pruner == "none":
            return False
        import optuna

        judged = copy.copy(frozen)
        judged.intermediate_values = values
        return bool(optuna.pruners.MedianPruner(n_startup_trials=5).prune(self._study, judged))

    def tell(self, number: int, value: float | None, state: Told) -> None:
        """The trial's end. A complete one without a value that is a number has failed; what was told stays told."""
        with self._alone():
            from optuna.trial import TrialState

            if state == "complete" and (value is None or not math.isfinite(value)):
                state = "failed"
            told = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL, "pruned": TrialState.PRUNED}[state]
            self._study.tell(number, value if state == "complete" else None, state=told, skip_if_finished=True)

    # --- looking

    def trials(self) -> list[Trial]:
        """All that were handed out, by number."""
        with self._alone():
            return [self._trial(frozen) for frozen in self._frozen()]

    def open_trials(self) -> list[tuple[Trial, str | None]]:
        """Those not told yet, each with the run that was noted for it."""
        return [(trial, trial.run_id) for trial in self.trials() if trial.state == "open"]

    def best(self) -> Trial | None:
        """The complete trial with the best value, of equals the first."""
        complete = [(trial.value, trial) for trial in self.trials() if trial.state == "complete" and trial.value is not None]
        sign = -1 if self.maximize else 1
        return min(complete, key=lambda pair: sign * pair[0])[1] if complete else None

    def _frozen(self) -> list[Any]:
        """Optuna's records of all trials, by number."""
        found: list[Any] = self._study.get_trials(deepcopy=False)
        return found

    def _set(self, frozen: Any, key: str, value: Any) -> None:
        self._study._storage.set_trial_user_attr(frozen._trial_id, key, value)

    def _trial(self, frozen: Any) -> Trial:
        names: dict[str, Literal["complete", "failed", "pruned"]] = {
            "COMPLETE": "complete",
            "FAIL": "failed",
            "PRUNED": "pruned",
        }
        facts = frozen.user_attrs
        return Trial(
            number=frozen.number,
            values=dict(frozen.params),
            words=self.space.words(frozen.params),
            state=names.get(frozen.state.name, "open"),
            value=frozen.value,
            run_id=facts.get("run_id"),
            stop=bool(facts.get("stop")),
        )


def _me() -> dict[str, Any]:
    return {**lease.me(), "time": time.time()}


def _gone(facts: dict[str, Any]) -> bool:
    """Whether the process that a trial was handed out to has vanished; one on another host has had its time to note a run."""
    asker = facts.get("asker")
    if not isinstance(asker, dict):
        return True
    if asker.get("host") != socket.gethostname():
        return bool(time.time() - asker.get("time", 0) > lease.SILENT_S)
    return not lease.is_here(asker)
