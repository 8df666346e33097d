"""The words behind `hpcai VERB`: one small parser for all verbs.   words -> options and names, or the verb's help

A wrong word is one line and exit 2, all wrong words at once, the nearest option named.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from hpcai.errors import ConfigError, Faults, HpcaiError, near, one_line


class Words(argparse.ArgumentParser):
    """A verb's options. `names`: how its help shows what it acts on; every verb has --runs-dir, --json and --help."""

    def __init__(self, verb: str, names: str, text: str) -> None:
        usage = f"hpcai {verb} {names} [options]"
        super().__init__(prog=f"hpcai {verb}", usage=usage, description=text, add_help=False, allow_abbrev=False)
        self.add_argument("--runs-dir", metavar="DIR", type=Path, default=Path("runs"), help="folder of run folders (runs)")
        self.add_argument("--json", action="store_true", help="print facts for programs instead of text")
        self.add_argument("--help", "-h", action="store_true", help="print this text")

    def read(self, words: list[str], *, least: int = 0, most: int | None = None) -> argparse.Namespace | None:
        """The options, with `names`: each name once, in order. None if help was asked for and printed.

        Raises: ConfigError or Faults for unknown options, and for less than `least` or more than `most` names.
        """
        options, rest = self.parse_known_args(words)
        if options.help:
            print(self.format_help(), end="")
            return None
        at = rest.index("--") if "--" in rest else len(rest)
        faults: list[HpcaiError] = [self._unknown(word) for word in rest[:at] if word.startswith("-")]
        options.names = list(dict.fromkeys([word for word in rest[:at] if not word.startswith("-")] + rest[at + 1 :]))
        if len(options.names) < least and not faults:
            faults.append(ConfigError(f"{self.prog}: names no run. Name one; hpcai status lists them."))
        if most is not None and len(options.names) > most and not faults:
            faults.append(ConfigError(f"{self.prog}: {len(options.names)} names. Give one."))
        if faults:
            raise faults[0] if len(faults) == 1 else Faults(faults)
        return options

    def _unknown(self, word: str) -> ConfigError:
        name = word.partition("=")[0]
        known = [option for option in self._option_string_actions if option.startswith("--")]
        return ConfigError(f"{one_line(name, 80)}: unknown option. {near(name[:80], known)}")

    def error(self, message: str) -> NoReturn:
        """argparse's own complaint (an option without its value), as a line of ours."""
        raise ConfigError(f"{one_line(message.removeprefix('argument '))}. See {self.prog} --help.")


def whole_number(text: str) -> int:
    """A number from 0: the type of an option."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{one_line(text, 80)} is no whole number from 0")
    return int(text)
