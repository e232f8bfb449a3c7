"""The code of docs/extending*.md and docs/ablation.md, applied to a copy of the package and run in another process."""

import json
import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "docs" / f"{name}.md" for name in ("extending", "extending-method", "extending-dataset", "ablation")]
RAMP = 0.5

SCRIPT = """
import json
from importlib import import_module
from pathlib import Path

import jax
import numpy as np

from vamcei_jax.config.schema import vary
from vamcei_jax.errors import InputError
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.stages import STAGES


def small(name):
  config = import_module(f"configs.{name}").get_config()
  config.data.size = config.data.crop = (8, 8)
  config.model.widths, config.model.latent_scales = (2, 4), 1
  config.model.discriminator_width = 2
  config.loss.weights.global_alignment = (1e-6,)
  config.loss.ramp = (0, 4)
  return config


def metrics_of_step(stage, batch, entropy_weights):
  # The metrics of a step with each of these weights of the entropy, in the middle of the ramp.
  method, measured = STAGES[stage.name].method, []
  state, step = jax.jit(lambda: method.init_state(stage, jax.random.key(0)))(), jax.jit(method.make_step(stage))
  for weight in entropy_weights:
    weights = state.weights | {"entropy": np.float32(weight)}
    metrics = step(state.replace(step=np.int32(2), weights=weights), batch)[1]
    measured.append({name: float(value) for name, value in metrics.items()})
  return measured


rng = np.random.default_rng(0)
image = lambda: rng.random((2, 8, 8, 1), np.float32)
batch = {"source": {"image": image(), "label": rng.integers(0, 4, (2, 8, 8))}, "target": {"image": image()}}
found = {}

stage = resolve(small("entropy")).stages["vamcei"]
found["weights"] = dict(stage.loss.weights)
found["terms"] = list(STAGES["vamcei"].method.TERMS)
found["with"], found["without"] = metrics_of_step(stage, batch, (stage.loss.weights["entropy"], 0.0))
mistyped = small("entropy")
mistyped.loss.weights.entropie = 0.1
try:
  resolve(mistyped)
except InputError as error:
  found["refused"] = str(error)

from vamcei_jax.losses.entropy import pixel_entropy

probs = np.float32([[[[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]]])
found["entropies"] = np.asarray(pixel_entropy(probs)).tolist()
gradient = jax.grad(lambda probs: pixel_entropy(probs).sum())(probs)
found["finite gradient"] = bool(np.isfinite(gradient).all())

stages = resolve(small("entropy_baseline")).stages
found["stages"] = {name: dict(stage.loss.weights) for name, stage in stages.items()}
(found["method"],) = metrics_of_step(stages["entropy"], batch, (0.1,))

from vamcei_jax.datasets import BUILDERS

hospital = import_module("configs.hospital").get_config()
hospital.data.root = "hospital"
data = resolve(hospital).stages["vamcei"].data
builder = BUILDERS[data.name]
splits = {}
for role, domain in (("source", data.source), ("target", data.target)):
  config = builder.CONFIG(name=domain, domain=domain, role=role, **data.options)
  cases = builder.splits(Path(data.root), config)
  splits[role] = {split: [[case.name, case.mask is not None] for case in part] for split, part in cases.items()}
found["splits"] = splits

grid = resolve(small("entropy_ablation"))
found["rows"] = {name: vary(grid.stages["vamcei"], changes).loss.weights for name, changes in grid.grid.rows}
ramps = resolve(small("ramps"))
found["ramps"] = {name: vary(ramps.stages["vamcei"], changes).loss.ramp for name, changes in ramps.grid.rows}
print(json.dumps(found))
"""


def blocks(page):
  """(language, text) of the code blocks of a page."""
  return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def apply_block(language, text, root):
  """Writes the new file of a python block, or changes the file of a diff block."""
  first, rest = text.split("\n", 1)
  if language == "python":
    path = root / first.removeprefix("# ")
    assert not path.exists(), path
    path.write_text(rest, encoding="utf-8")
  elif language == "diff":
    path, lines = root / first.removeprefix("--- "), rest.splitlines()
    before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    content = path.read_text(encoding="utf-8")
    assert content.count(before) == 1, f"{path.name} has not this once:\n{before}"
    path.write_text(content.replace(before, after), encoding="utf-8")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
  """A copy of the package and the configs, changed as the pages say."""
  root = tmp_path_factory.mktemp("extended")
  for folder in ("vamcei_jax", "configs"):
    shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
  for page in PAGES:
    for language, text in blocks(page):
      apply_block(language, text, root)
  for file in ("cine/a", "cine/b", "cine/c", "cine_masks/a", "cine_masks/b", "lge/d", "lge/e", "lge_masks/e"):
    path = root / "hospital" / f"{file}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  return root


@pytest.fixture(scope="module")
def found(copy):
  """What the extended package computes."""
  # Programs that run once: most of the time is their compilation.
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
  environment = os.environ | {"PYTHONPATH": str(copy), "XLA_FLAGS": flags}
  arguments = [sys.executable, "-c", SCRIPT]
  finished = subprocess.run(arguments, cwd=copy, env=environment, capture_output=True, text=True, timeout=600)
  assert finished.returncode == 0, finished.stderr
  return json.loads(finished.stdout.splitlines()[-1])


def test_the_new_code_passes_the_linter(copy):
  new = [path for path in copy.rglob("*.py") if not (ROOT / path.relative_to(copy)).exists()]
  assert len(new) == 8
  arguments = [sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", "--no-cache", *new]
  linted = subprocess.run(arguments, capture_output=True, text=True)
  assert linted.returncode == 0, linted.stdout + linted.stderr


def test_a_new_loss_term_has_a_weight_and_is_computed(found):
  assert found["weights"]["entropy"] == pytest.approx(0.1)
  assert found["terms"][-1] == "entropy"
  assert 0.0 < found["with"]["entropy"] < math.log(4.0)


def test_the_step_adds_the_new_term_with_its_weight_and_the_ramp(found):
  assert found["with"]["ramp"] == pytest.approx(RAMP)
  assert found["with"]["entropy"] == pytest.approx(found["without"]["entropy"], rel=1e-5)
  added = found["with"]["loss"] - found["without"]["loss"]
  assert added == pytest.approx(RAMP * 0.1 * found["with"]["entropy"], rel=1e-3)


def test_a_weight_of_an_unknown_term_is_refused_with_the_list_of_terms(found):
  assert found["refused"].startswith("config.loss.weights.entropie: no method computes such a term; choose from ")
  listed = found["refused"].split("choose from ")[1].split(", ")
  assert {"segmentation", "reconstruction", "prior_kl", "global_alignment", "prototypes", "entropy"} <= set(listed)
  (line,) = re.findall(r"^error: (.*), …$", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE)
  assert found["refused"].startswith(line)


def test_the_entropy_of_the_page_is_the_mean_over_pixels(found):
  assert found["entropies"] == pytest.approx([math.log(4.0) / 2.0], rel=1e-6)
  assert found["finite gradient"]


def test_a_new_method_is_a_stage_with_its_terms(found):
  assert list(found["stages"]) == ["no_adaptation", "entropy", "vamcei"]
  assert found["stages"]["entropy"] == pytest.approx({"segmentation": 1.0, "entropy": 0.1})
  assert found["stages"]["vamcei"]["entropy"] == 0.0
  metrics = found["method"]
  assert metrics["loss"] == pytest.approx(metrics["segmentation"] + RAMP * 0.1 * metrics["entropy"], rel=1e-5)
  assert np.isfinite(metrics["gradient_segmenter"])


def test_a_new_dataset_splits_its_patients_by_role(found):
  # Of the source, a patient without a mask file is refused when the data are prepared, so it is listed here.
  assert found["splits"]["source"] == {"train": [["a", True], ["b", True], ["c", True]]}
  assert found["splits"]["target"] == {"train": [["d", False], ["e", False]], "validation": [["e", True]]}


def test_a_new_row_of_the_grid(found):
  used = {row: {term for term, weight in weights.items() if np.any(weight)} for row, weights in found["rows"].items()}
  assert len(used) == 7
  assert used["+ entropy"] == {"segmentation", "reconstruction", "prior_kl", "entropy"}
  assert all("entropy" not in terms for row, terms in used.items() if row != "+ entropy")
  assert found["rows"]["+ entropy"]["entropy"] == pytest.approx(0.1)


def test_a_new_grid_varies_the_ramp(found):
  assert found["ramps"] == {"as configured": [0, 4], "slow": [0, 200], "late and gentle": [100, 100]}
