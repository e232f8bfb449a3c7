"""Nothing in the repository runs code that comes from a file."""

import re

from tests.commands import ROOT

DANGERS = r"\bpickle\b|allow_pickle|yaml\.load|\beval\(|\bexec\(|\bmarshal\b|\bshelve\b|np\.load\(|joblib"
DANGERS += r"|os\.system|shell=True"


def test_nothing_runs_code_from_a_file():
  files = [file for folder in ("vamcei_jax", "experiments", "configs") for file in (ROOT / folder).rglob("*.py")]
  assert len(files) > 60
  found = [
    f"{file.relative_to(ROOT)}: {line.strip()}"
    for file in files
    for line in file.read_text().splitlines()
    if re.search(DANGERS, line)
  ]
  assert found == []


def test_reports_escape_what_they_show():
  template = (ROOT / "vamcei_jax" / "evaluation" / "report.html").read_text()
  assert "|safe" not in template.replace(" ", "")
  assert "Markup" not in (ROOT / "vamcei_jax" / "evaluation" / "report.py").read_text()
