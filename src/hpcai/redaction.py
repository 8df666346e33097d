"""What may leave the house of a run's records and logs.   a run's own lists of cases, its config -> Redaction -> clean text

    identifiers    of cases, patients and files, as data.json, split.json, cases.jsonl, rows/, records/     <id>
    paths          below the run: RUN/...; of a Python: <python>/...; the system's as they are; all others   <path>
    image files    names that end in .png, .dcm, .nii.gz and the like, wherever they stand                   <file>.png
    addresses      scheme and host stay of a web address, nothing of a mail address                          <mail>
    secrets        the value of whatever is called password, token, key of an API and the like               <secret>

Structured text (JSON, YAML) is cleaned value by value, free text by patterns. An identifier is looked for wherever a word
begins. Numbers of fewer than six digits stay, since nobody can tell them from steps; so do words that name parts of a data set.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from hpcai import rundir
from hpcai.rundir import RunDir

DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
# what names cases, patients, specimens or files
LISTS = ("data.json", "split.json", "cases.jsonl", "rows/*.jsonl", "records/*.jsonl", "failed.rank*.jsonl")
PART = {  # of what data sets and our own files are made: no name of anybody
    "train", "training", "val", "valid", "validation", "test", "predict", "all", "image", "images", "img", "imgs", "data",
    "dataset", "datasets", "label", "labels", "mask", "masks", "scan", "scans", "png", "jpg", "jpeg", "dicom", "case", "cases",
    "patient", "patients", "files", "path", "bytes", "sha256", "source", "licence", "name", "row", "rows", "reason", "score",
    "scores", "members", "fold", "called", "counts", "classes", "duplicates", "random", "published", "kfold", "seed", "null",
    "none", "true", "false", "folds", "step", "epoch", "loss",
}  # fmt: skip
SUFFIX = (
    r"\.(?:png|jpe?g|tiff?|bmp|gif|dcm|dicom|ima|nii|mha|mhd|nrrd|npz|npy|csv|tsv|xlsx?|h5|hdf5|zarr|zip|svs|ndpi)(?:\.gz)?"
)
SECRET = r"(?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential|authorization)"
CALLED_SECRET = re.compile(rf"(?i){SECRET}")
PATHS = ("path", "root", "init_from", "binds", "mlflow")  # last parts of keys whose value is a path, however it looks
TEXT = re.compile(  # each part begins where a word does, or is bounded: a line of a million letters is read once
    rf"""(?P<secret>(?i:(?<![\w-])(?:--?[\w-]{{0,60}}?{SECRET}[\w-]{{0,60}}[=\s]+"""
    rf"""|[\w-]{{0,60}}?{SECRET}[\w-]{{0,60}}["']?\s*[=:]\s*(?:(?:bearer|basic)\s+)?)))"""
    r"""(?:"[^"\n]*"|'[^'\n]*'|[^\s"',;]+)"""
    r"""|(?P<url>\b[A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s'"<>`]*)"""
    r"""|(?P<mail>[\w.+%-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,8})"""
    rf"""|(?P<quote>['"`])(?:(?P<file>[^'"`\n]*(?P<kind>(?i:{SUFFIX})))|(?P<quoted>(?:~|\.{{1,2}})?/[^\n]*?))(?P=quote)"""
    r"""|(?P<bare>(?:(?<![\w/.~>])|(?<=-[IL]))(?:~[\w.-]{0,64}|\.{1,2})?/(?:<id>|\\.|[^\s'"`,;:<>|()\[\]{}=\\])+)"""
    rf"""|(?P<image>(?<![^\s'"`=,;:()\[\]/])[^\s'"`=,;:()\[\]/]+(?P<suffix>(?i:{SUFFIX}))\b)"""
)
PYTHON = re.compile(r".*?(/lib(?:64)?/python3[^/]*/.*|/(?:site|dist)-packages/.*|/bin/python[\d.]*)", re.DOTALL)
OURS = re.compile(r".*/hpcai(/(?:\w+/)*\w+\.py)", re.DOTALL)
SYSTEM = ("usr", "bin", "sbin", "lib", "lib64", "etc", "proc", "sys")  # what lies there is the machine's
WORD = re.compile(r"[^\W_]+")
LONG = 6  # characters of an identifier that is found also where the word goes on


@dataclass
class Redaction:
    """What must not leave; `clean` takes it out of a text, `count` says how often.

    `folders`: path -> the word in its place; `hidden`: the same, and what lies below it goes too. `names`: identifiers, in
    small letters; `lengths`: by their first word, longest first.
    """

    folders: dict[str, str] = field(default_factory=dict)
    hidden: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    count: int = 0

    # ---- what to look for

    def learn(self, run: RunDir, config: Any) -> None:
        """Takes in what a run's config says of its data, and whom its lists of cases name."""
        data = config.get("data") if isinstance(config, dict) else None
        told, root, labels = (data.get("path"), data.get("root"), data.get("labels")) if isinstance(data, dict) else (None,) * 3
        spared = PART | {str(label).lower() for label in (labels if isinstance(labels, list) else ())}
        spared |= {run.path.name.lower().rpartition("-")[0], run.path.name.lower()}
        files = _files(run)
        where = {Path(path) for path in (told, root) if isinstance(path, str) and path.startswith("/")}
        with contextlib.suppress(ValueError):  # none, or some that are relative
            where.add(Path(os.path.commonpath(files)))
        names: set[str] = set()
        for path in where:
            if not run.path.is_relative_to(path):
                self.hidden |= dict.fromkeys(_forms(path), "<data.path>")
            if "/hpcai/shipped/" not in str(path):
                names |= {*_parts(path.name), *(f[len(str(path)) + 1 :] for f in files if f.startswith(f"{path}/"))}
        names |= {name for pattern in LISTS for file in run.path.glob(pattern) for name in _named(file)}
        self.add(part for name in names for part in _parts(name) if part.lower() not in spared)

    def seen_from(self, runs_dir: Path, run: RunDir) -> Redaction:
        """The same, which calls the folder of one run RUN."""
        folders = dict.fromkeys(_forms(runs_dir), "RUNS") | dict.fromkeys(_forms(run.path), "RUN")
        return replace(self, folders=folders, count=0)

    def add(self, names: Iterable[str]) -> None:
        """Takes in identifiers. Those that are too short, or are small numbers, are words that any text holds."""
        for name in {_small(name.strip()) for name in names}:
            first = WORD.search(name)
            if first is None or len(name) < 3 or (not re.search(r"[^\d\W_]", name) and sum(c.isdigit() for c in name) < 6):
                continue
            name = name[first.start() :]
            self.names.add(name)
            lengths = self.lengths.setdefault(first[0], [])
            if len(name) not in lengths:
                lengths.append(len(name))
                lengths.sort(reverse=True)

    # ---- what is taken out

    def clean(self, text: str) -> str:
        """A text without them."""
        for path, word in self._known():
            below = r"/[^\n'\"`]*|" if path in self.hidden else ""
            text, found = re.subn(rf"{re.escape(path)}(?:{below}(?![\w-])(?!\.\w))", word, text)
            self.count += found if path in self.hidden else 0
        return TEXT.sub(self._part, self._without_names(text))

    def value(self, value: Any) -> Any:
        """A value of JSON or YAML, its texts cleaned; where a key is called password, its value is gone whole."""
        if isinstance(value, dict):
            return {self.clean(str(k)): self._under(str(k), v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.value(v) for v in value]
        if not isinstance(value, str):
            return value
        key, equals, rest = value.partition("=")
        if equals and re.fullmatch(r"[-+~\w./@]+", key) and "\n" not in rest:  # as it was typed: data.path=/folder with blanks
            return f"{self.clean(key)}={self._under(key, rest)}"
        if re.match(r"(?:~[\w.-]*|\.{1,2})?/", value) and "\n" not in value:
            return self._path(value)
        return self.clean(value)

    def _under(self, key: str, value: Any) -> Any:
        if isinstance(value, str) and CALLED_SECRET.search(key):
            self.count += 1
            return "<secret>"
        if isinstance(value, str) and key.rpartition(".")[2] in PATHS and "://" not in value:
            return value if value.startswith("shipped:") or value in ("null", "") else self._path(value)
        return self.value(value)

    def json_text(self, text: str, *, lines: bool) -> str:
        """A JSON file, or one of JSON lines; what is damaged is cleaned as free text."""
        if lines:
            return "".join(self.json_text(line, lines=False).rstrip("\n") + "\n" for line in text.splitlines())
        try:
            value = self.value(json.loads(text))
            return json.dumps(value, ensure_ascii=False, indent=1 if "\n" in text.strip() else None) + "\n"
        except (ValueError, RecursionError):
            return self.clean(text)

    def _known(self) -> list[tuple[str, str]]:
        """Paths with the word in their place, the longest first: one may lie in another."""
        return sorted({**self.folders, **self.hidden}.items(), key=lambda item: -len(item[0]))

    def _part(self, found: re.Match[str]) -> str:
        """In place of what TEXT has found."""
        quote = found["quote"] or ""
        if path := found["bare"] or found["quoted"]:
            end = "." * (path.endswith(".") and not quote)  # of a sentence
            return f"{quote}{self._path(path)}{end}{quote}"
        self.count += 1
        if found["secret"]:
            return f"{found['secret']}<secret>"
        if found["mail"]:
            return "<mail>"
        if found["url"]:
            return _host(found["url"])
        return f"{quote}<file>{found['kind'] or found['suffix']}{quote}"

    def _path(self, path: str) -> str:
        """What may be told of a path."""
        for known, word in self._known():
            if path == known or path.startswith(f"{known}/"):
                self.count += known in self.hidden
                return word if known in self.hidden else self.clean(word + path[len(known) :])
        if path == "/dev/null" or (path.startswith("/") and path.split("/")[1] in SYSTEM):
            return self._without_names(path)
        for kept, word in ((PYTHON, "<python>"), (OURS, "<hpcai>")):
            if m := kept.fullmatch(path):
                return self._without_names(word + m[1])
        self.count += 1
        return "<path>"

    def _without_names(self, text: str) -> str:
        if not self.names:
            return text
        small, parts, at = _small(text), [], 0
        for word in WORD.finditer(small):
            begin = word.start()
            length = self._named_at(small, begin, word[0]) if begin >= at else 0
            if length:
                self.count += 1
                parts += [text[at:begin], "<id>"]
                at = begin + length
        return "".join([*parts, text[at:]])

    def _named_at(self, text: str, begin: int, word: str) -> int:
        """How long the identifier is that begins there with `word`; 0: none does."""
        for length in self.lengths.get(word, ()):
            end = begin + length
            if text[begin:end] in self.names and (length >= LONG or not text[end : end + 1].isalnum()):
                return length
        longest = min(len(word) - 1, 64)
        return next((n for n in range(longest, LONG - 1, -1) if word[:n] in self.names), 0)


def _small(text: str) -> str:
    """In small letters, as long as it was."""
    small = text.lower()
    return small if len(small) == len(text) else "".join(c if len(c.lower()) > 1 else c.lower() for c in text)


def _forms(path: Path) -> Iterator[str]:
    """A path as texts may write it: as it is, resolved, and as a shell's or Python's quotes hold it."""
    for form in dict.fromkeys((str(path), str(path.resolve()))):
        if len(form) > 1:
            yield from dict.fromkeys((form, form.replace("'", "'\"'\"'"), repr(form)[1:-1], form.replace(" ", "\\ ")))


def _host(url: str) -> str:
    """Scheme and host of an address; of a file's the scheme."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "<address>"
    return f"{parts.scheme}://{host}{port}" if parts.scheme in ("http", "https", "tcp") else f"{parts.scheme}:<address>"


# ---- who the lists of cases name


def _files(run: RunDir) -> list[str]:
    """The files that data.json names; none if it is gone or damaged."""
    try:
        return [str(file["path"]) for file in rundir.read_json(run.data)["files"]] if run.data.is_file() else []
    except DAMAGED:
        return []


def _named(file: Path) -> Iterator[str]:
    """Cases and patients; of a file, or a line, that is damaged every text that it holds."""
    try:
        text = file.read_text("utf-8", "replace") if file.is_file() else ""  # a pipe would hold us up
    except OSError:
        return
    for piece in text.splitlines() if file.suffix == ".jsonl" else [text]:
        try:
            found = list(_of_record(json.loads(piece)))
        except DAMAGED:
            found = [part for part in piece.split('"') if 3 <= len(part) <= 300 and part.lower() not in PART]
        yield from found


def _of_record(value: Any) -> Iterator[str]:
    if "files" in value:  # data.json: see `learn`
        return
    if "case" in value or "row" in value:  # rows/, failed.*
        yield from (str(value[key]) for key in ("case", "patient", "sample") if value.get(key) is not None)
    else:  # split.json
        yield from (str(case) for part in ("train", "val", "test") for case in value.get(part) or ())


def _parts(name: str) -> Iterator[str]:
    """An identifier; of one that is a path also its folders, its file and that without its ending."""
    yield name
    for part in PurePosixPath(name).parts:
        yield part
        yield re.sub(rf"(?i){SUFFIX}$", "", part)
