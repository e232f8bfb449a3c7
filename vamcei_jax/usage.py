"""The help of a command line: its flags in groups, the required ones first, and its examples."""

import contextlib
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from absl import flags

REQUIRED, ONE_OF, MORE = "required", "required, one of these", "more"
Groups = Mapping[str, Sequence[flags.Flag]]

_groups: dict[str, list[str]] = {}  # title -> names of flags


@contextlib.contextmanager
def group(title: str) -> Iterator[None]:
  """The flags that are defined in this block stand below this title in the help.

  Flags of the groups REQUIRED and ONE_OF must be given on the command line. The text of a flag may begin with the form
  of its value in capitals, as in "DIR: Folder of the run."
  """
  before = set(flags.FLAGS)
  yield
  known = before.union(*_groups.values())
  _groups.setdefault(title, []).extend(name for name in flags.FLAGS if name not in known)


def groups() -> Groups:
  """Title -> flags; the required ones first."""
  titles = sorted(_groups, key=lambda title: (title not in (REQUIRED, ONE_OF), title == MORE))
  return {title: [flags.FLAGS[name] for name in _groups[title]] for title in titles if _groups[title]}


def clear_groups() -> None:
  """Forgets the groups of another command line in this process."""
  _groups.clear()


def missing_flags(groups: Groups) -> str | None:
  """What is wrong with the choice of required flags, in a sentence; None if nothing is."""
  absent = [f"--{flag.name}" for flag in groups.get(REQUIRED, ()) if not flag.present]
  if absent:
    return f"{' and '.join(absent)} must be given; --help has examples"
  choices = groups.get(ONE_OF, ())
  if choices and sum(bool(flag.present) for flag in choices) != 1:
    return f"give either {' or '.join(f'--{flag.name}' for flag in choices)}; --help has examples"
  return None


def format_help(doc: str, groups: Groups) -> str:
  """The text of --help, as wide as the terminal, but from 60 to 100 columns.

  Args:
    doc: docstring of the command's file: a sentence, lines with examples (`python -m ...`), and further paragraphs.
    groups: title -> flags.
  """
  width = min(100, max(60, shutil.get_terminal_size().columns))
  summary, examples, notes = _split(doc)
  parts = [_fill(summary, width), _usage_line(examples, groups)]
  heads = {flag.name: "  " + _form(flag) for members in groups.values() for flag in members}
  indent = min(28, max(map(len, heads.values())) + 2)
  for title, members in groups.items():
    rows = [_row(heads[flag.name], _sentence(flag), indent, width) for flag in members]
    parts.append("\n".join([f"{title}:", *rows]))
  parts.append("\n".join(["examples:", *(f"  {example}" for example in examples)]))
  parts += [_fill(note, width) for note in notes]
  parts.append("--helpfull also lists the flags of the libraries.")
  return "\n\n".join(parts)


def format_usage(doc: str, groups: Groups) -> str:
  """What a command prints that is given without arguments."""
  summary, examples, _ = _split(doc)
  lines = [f"example: {examples[0]}", f"all flags: {_program(examples)} --help"]
  return "\n".join([_fill(summary, 100), "", _usage_line(examples, groups), *lines])


def _split(doc: str) -> tuple[str, list[str], list[str]]:
  """Summary, examples and further paragraphs of a docstring."""
  summary, *paragraphs = (paragraph.strip() for paragraph in re.split(r"\n\s*\n", doc.strip()))
  examples = [line for text in paragraphs for line in text.splitlines() if line.startswith("python -m ")]
  return summary, examples, [text for text in paragraphs if not text.startswith("python -m ")]


def _program(examples: Sequence[str]) -> str:
  return " ".join(examples[0].split()[:3])


def _usage_line(examples: Sequence[str], groups: Groups) -> str:
  needed = [_form(flag) for flag in groups.get(REQUIRED, ())]
  choices = [_form(flag) for flag in groups.get(ONE_OF, ())]
  alternatives = [f"({' | '.join(choices)})"] if choices else []
  return " ".join(["usage:", _program(examples), *needed, *alternatives, "[more flags]"])


def _form(flag: flags.Flag) -> str:
  """How a flag is written: `--name=VALUE`, `--name` or, where it may be on by default, `--[no]name`."""
  if flag.boolean:
    return f"--{flag.name}" if flag.default is False else f"--[no]{flag.name}"
  value, _ = _parts(flag)
  return f"--{flag.name}={value}"


def _sentence(flag: flags.Flag) -> str:
  _, sentence = _parts(flag)
  if flag.default in (None, False, []):
    return sentence
  return f"{sentence} Default: {', '.join(flag.default) if isinstance(flag.default, list) else flag.default}"


def _parts(flag: flags.Flag) -> tuple[str, str]:
  """The form of a flag's value, and its sentence."""
  found = re.match(r"([A-Z][A-Z:,]*): (.*)", flag.help)
  form = "NUMBER" if flag.flag_type() in ("int", "float") else "VALUE"
  return (found[1], found[2]) if found else (form, flag.help)


def _row(head: str, sentence: str, indent: int, width: int) -> str:
  first = head.ljust(indent) if len(head) + 2 <= indent else f"{head}\n{' ' * indent}"
  return first + textwrap.fill(sentence, width - indent).replace("\n", "\n" + " " * indent)


def _fill(text: str, width: int) -> str:
  return textwrap.fill(" ".join(text.split()), width)
