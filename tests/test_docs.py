"""What the pages point at is there: files, anchors, functions, and the lines that errors.md explains."""

import importlib
import re

import pytest

from tests.commands import ROOT

FOLDERS = [ROOT / name for name in ("docs", "experiments", "weights")]
PAGES = [ROOT / "README.md", *sorted(page for folder in FOLDERS for page in folder.rglob("*.md"))]


def anchors(page):
  """What GitHub calls the headings of a page."""
  headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
  text = page.read_text()
  links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
  for link in links:
    if "://" not in link:
      file, _, anchor = link.partition("#")
      there = (page.parent / file).resolve() if file else page
      assert there.exists(), link
      assert not anchor or anchor in anchors(there), link


def test_the_method_names_what_there_is():
  """[losses/prior.py](../vamcei_jax/losses/prior.py) `gaussian_prior_kl`, `…`"""
  text = " ".join((ROOT / "docs" / "method.md").read_text().split())
  named = re.findall(r"\]\(\.\./(vamcei_jax/[\w/]+)\.py\)((?:,? ?`\w+`)+)", text)
  assert len(named) >= 14
  for module, names in named:
    for name in re.findall(r"`(\w+)`", names):
      assert hasattr(importlib.import_module(module.replace("/", ".")), name), (module, name)


# Lines of other programs.
FOREIGN = {"No module named", "No matching distribution found", "An NVIDIA GPU may be present", "RESOURCE_EXHAUSTED"}


def test_errors_are_quoted_as_they_are_said():
  source = " ".join(file.read_text() for file in (ROOT / "vamcei_jax").rglob("*.py"))
  rows = re.findall(r"^\| (`.+?) \| ", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
  quotes = [quote for row in rows for quote in re.findall(r"`([^`]+)`", row)]
  assert len(quotes) > 15
  for quote in quotes:
    if not any(quote.startswith(own) for own in FOREIGN):
      words = [part.strip() for part in re.split(r"'[^']*'|\bN\b", quote)]
      assert all(part in source for part in words), quote
