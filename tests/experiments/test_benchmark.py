"""The benchmark's environment, table and arithmetic; its measurements take too long for a test."""

import json
import os

from experiments.benchmark import SECTIONS, format_rows, with_huge_pages


def test_the_environment_asks_for_huge_pages():
  assert with_huge_pages({}) == {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
  other = {"HOME": "/", "GLIBC_TUNABLES": "glibc.malloc.check=1"}
  assert with_huge_pages(other) == {"HOME": "/", "GLIBC_TUNABLES": "glibc.malloc.check=1:glibc.malloc.hugetlb=1"}


def test_the_users_choice_of_pages_stays():
  chosen = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
  assert with_huge_pages(chosen) == chosen
  twice = with_huge_pages(with_huge_pages(os.environ))
  assert twice == with_huge_pages(os.environ)


def test_the_table_has_a_column_for_each_quantity():
  rows = [{"section": "steps", "what": "a", "ms": 1234.5}, {"section": "grid", "what": "b", "times one": 0.98765}]
  assert format_rows(rows).splitlines() == [
    "| what | ms | times one |",
    "|---|---|---|",
    "| a | 1234 |  |",
    "| b |  | 0.988 |",
  ]


def test_overlapping_spans_count_once():
  from experiments.measurements import covered_time

  assert covered_time([(5.0, 7.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5)]) == 5.0
  assert covered_time([]) == 0.0


def test_the_sections_are_those_of_the_measurements():
  from experiments.measurements import SECTIONS as measured
  from experiments.measurements import TWINS

  assert tuple(measured) == SECTIONS
  assert TWINS["eager"] == {}


def test_the_measured_process_asks_for_huge_pages(run_command, tmp_path, monkeypatch):
  monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
  output = tmp_path / "rows.json"
  finished = run_command("experiments.benchmark", f"--output={output}", "--sections=", "--rounds=1")
  assert finished.returncode == 0, finished.stderr
  content = json.loads(output.read_text())
  assert content["machine"]["glibc_tunables"] == "glibc.malloc.hugetlb=1"
  assert content["rows"] == []
