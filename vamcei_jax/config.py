"""What a run's configuration must satisfy, and what is derived from it."""

import json
from collections.abc import Collection
from pathlib import Path

from ml_collections import ConfigDict

from vamcei_jax.data.labels import CLASSES
from vamcei_jax.data.preprocess import Preprocess
from vamcei_jax.errors import InputError
from vamcei_jax.files import write_text
from vamcei_jax.models.layers import NORMS

CONFIG_FILE = "config.json"


def check_config(config: ConfigDict, stages: Collection[str]) -> None:
  """Checks what would fail late or silently.

  Raises:
    InputError: names the field and what it may be.
  """
  coarsest = 2 ** (len(config.model.widths) - 1)
  # The global alignment pools the coarsest latent by 4×4.
  divisor = max(coarsest, 4 * 2 ** (config.model.latent_scales - 1))
  positive = lambda value: value > 0
  divisible = lambda size: len(size) == 2 and all(n > 0 and n % divisor == 0 for n in size)
  rules = [
    ("stages", config.stages and all(s in stages for s in config.stages), f"some of {', '.join(stages)}"),
    ("data.size", divisible(config.data.size), f"two multiples of {divisor}"),
    ("data.crop", divisible(config.data.crop), f"two multiples of {divisor}"),
    ("data.label_values", len(config.data.label_values) == len(CLASSES), f"{len(CLASSES)} values, one a class"),
    ("data.zoom", positive(config.data.zoom), "positive"),
    ("model.latent_scales", 0 < config.model.latent_scales < len(config.model.widths), "1 to len(widths) - 1"),
    ("model.norm", config.model.norm in NORMS, f"one of {', '.join(NORMS)}"),
    ("model.dtype", config.model.dtype in ("float32", "bfloat16"), "float32 or bfloat16"),
    ("loss.global_kl.estimator", config.loss.global_kl.estimator in ("paper", "pairwise"), "paper or pairwise"),
    (
      "loss.weights.global_alignment",
      len(config.loss.weights.global_alignment) == config.model.latent_scales,
      "one weight a latent scale",
    ),
    ("loss.prototypes.temperature", positive(config.loss.prototypes.temperature), "positive"),
    ("optimizer.schedule", config.optimizer.schedule in ("polynomial", "exponential"), "polynomial or exponential"),
    ("train.ema_decay", 0 <= config.train.ema_decay < 1, "in [0, 1)"),
    *(
      (f"train.{name}", positive(config.train[name]), "at least 1")
      for name in ("steps", "batch_size", "log_every", "eval_every", "checkpoint_every", "keep")
    ),
  ]
  for field, holds, expected in rules:
    if not holds:
      raise InputError(f"config.{field}={_get(config, field)}: must be {expected}")


def claim(workdir: Path, config: ConfigDict) -> None:
  """Writes config.json into a new workdir; into an old one only the run that made it may return.

  Raises:
    InputError: the workdir belongs to another configuration; names the first field that differs.
  """
  path = workdir / CONFIG_FILE
  ours = json.loads(config.to_json_best_effort())
  if not path.exists():
    write_text(path, json.dumps(ours, indent=2, sort_keys=True) + "\n")
    return
  theirs = _flat(read_config(workdir).to_dict())
  for field, value in _flat(ConfigDict(ours).to_dict()).items():
    if theirs.get(field) != value:
      was = f"was {theirs[field]} and is now {value}" if field in theirs else "did not exist then"
      raise InputError(f"{path}: another configuration ran here: {field} {was}. Use another --workdir.")


def read_config(workdir: Path) -> ConfigDict:
  """The configuration that a workdir was made with.

  Raises:
    InputError: there is none, or it cannot be read.
  """
  path = workdir / CONFIG_FILE
  try:
    return ConfigDict(json.loads(path.read_text(encoding="utf-8")))
  except FileNotFoundError:
    raise InputError(f"{path}: not found; --workdir must name the folder of a run") from None
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise InputError(f"{path}: not valid JSON ({error}); restore it or use another --workdir") from None


def preprocess_settings(config: ConfigDict) -> Preprocess:
  """The grid and intensities of prepared images."""
  data = config.data
  return Preprocess(
    size=tuple(data.size), spacing=data.spacing, zoom=data.zoom, percentiles=tuple(data.percentiles)
  )


def _flat(tree: dict, prefix: str = "") -> dict:
  items = {}
  for name, value in tree.items():
    items |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
  return items


def _get(config: ConfigDict, field: str):
  for name in field.split("."):
    config = config[name]
  return config
