"""What a run's configuration must satisfy, and what is derived from it."""

import json
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from vamcei_jax.data.labels import CLASSES, are_label_values
from vamcei_jax.data.nifti import VIEWS
from vamcei_jax.data.preprocess import Preprocess
from vamcei_jax.errors import InputError
from vamcei_jax.files import write_text
from vamcei_jax.models.layers import GROUPS, NORMS

CONFIG_FILE = "config.json"
_EARLIER = {"data.located": False, "data.view": "short_axis"}  # what earlier versions did without saying so
# Where and how, not what, is learned.
_INDIFFERENT = {"data.prepared_dir", "data.resident", "train.steps_per_call", "train.max_bad_steps"}
SCHEDULES = ("polynomial", "exponential", "half_linear")  # of the learning rate; see methods/state.py


def check_config(config: ConfigDict, name_of: Callable[[str], str]) -> None:
  """Checks what would fail late or silently in the configuration of a stage; name_of(field) is how the user knows it.

  Raises:
    InputError: names the field and what it may be.
  """
  scales, weighed = config.model.latent_scales, len(config.loss.weights.global_alignment)
  has_latents = tuple(config.stages) != ("distill",)
  coarsest = 2 ** (len(config.model.widths) - 1)
  # The global alignment pools the coarsest latent by 4×4.
  divisor = max(coarsest, 4 * 2 ** (scales - 1)) if has_latents else coarsest
  positive = lambda value: value > 0
  grouped = lambda width: width > 0 and (config.model.norm != "group" or width % GROUPS == 0)
  grouping = f"positive, and a multiple of {GROUPS} for group norm"
  rising = lambda values: len(values) == 2 and values[0] <= values[1]
  strengths = {name: value for name, value in config.augment.items() if name != "flip"}
  divisible = lambda size: len(size) == 2 and all(n > 0 and n % divisor == 0 for n in size)
  rules = [
    ("model.latent_scales", not has_latents or 0 < scales < len(config.model.widths), "1 to len(widths) - 1"),
    ("data.size", divisible(config.data.size), f"two multiples of {divisor}"),
    ("data.crop", divisible(config.data.crop), f"two multiples of {divisor}"),
    (
      "data.label_values",
      are_label_values(config.data.label_values),
      f"{len(CLASSES)} different values or tuples of values, one a class",
    ),
    *((f"augment.{field}", value >= 0, "at least 0") for field, value in strengths.items()),
    ("augment.flip", set(config.augment.flip) <= {0, 1}, "axes of the image, 0 and 1"),
    ("data.view", config.data.view in VIEWS, f"one of {', '.join(VIEWS)}"),
    ("data.zoom", positive(config.data.zoom), "positive"),
    ("data.resident", config.data.resident >= 0, "at least 0"),
    ("model.logvar_range", rising(config.model.logvar_range), "two numbers, low and high"),
    ("model.discriminator_width", positive(config.model.discriminator_width), "at least 1"),
    ("model.norm", config.model.norm in NORMS, f"one of {', '.join(NORMS)}"),
    ("model.widths", bool(config.model.widths) and all(map(grouped, config.model.widths)), grouping),
    ("model.dtype", config.model.dtype in ("float32", "bfloat16"), "float32 or bfloat16"),
    ("loss.global_kl.estimator", config.loss.global_kl.estimator in ("paper", "pairwise"), "paper or pairwise"),
    ("loss.weights.global_alignment", not has_latents or weighed == scales, "one weight a latent scale"),
    ("loss.prototypes.temperature", positive(config.loss.prototypes.temperature), "positive"),
    ("loss.prototypes.confidence", 0 <= config.loss.prototypes.confidence <= 1, "in [0, 1]"),
    *((f"optimizer.rates.{field}", value >= 0, "at least 0") for field, value in config.optimizer.rates.items()),
    ("optimizer.schedule", config.optimizer.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
    ("optimizer.b1", 0 <= config.optimizer.b1 < 1, "in [0, 1)"),
    ("loss.ramp", len(config.loss.ramp) == 2 and min(config.loss.ramp) >= 0, "two numbers of steps, start and length"),
    ("optimizer.clip", positive(config.optimizer.clip), "positive"),
    ("optimizer.epoch_steps", positive(config.optimizer.epoch_steps), "at least 1"),
    ("train.ema_decay", 0 <= config.train.ema_decay < 1, "in [0, 1)"),
    *((f"train.{field}", value >= 1, "at least 1") for field, value in config.train.items() if field != "ema_decay"),
  ]
  if "translation" in config:
    translation = config.translation
    rules += [
      (f"translation.{name}", grouped(translation[name]), grouping) for name in ("width", "discriminator_width")
    ]
    rules.append(("translation.history", positive(translation.history), "at least 1"))
    rules.append(("translation.blocks", translation.blocks >= 0, "at least 0"))
  if "distillation" in config:
    weights = config.distillation.teachers
    usable = len(weights) == 2 and min(weights) >= 0 and sum(weights) > 0
    rules.append(("distillation.teachers", usable, "two weights, of target_vamcei and source_vamcei"))
    rules.append(("distillation.temperature", positive(config.distillation.temperature), "positive"))
  for field, holds, expected in rules:
    if not holds:
      raise InputError(f"{name_of(field)}={_get(config, field)}: must be {expected}")


def changed_field(folder: Path, config: ConfigDict) -> str | None:
  """The first field in which a stage's configuration differs from that which its folder was begun with, or None.

  Where data is kept makes no difference, nor how many steps one dispatch takes.
  """
  if not (folder / CONFIG_FILE).exists():
    return None
  ours, theirs = flat_fields(plain(config)), flat_fields(plain(read_config(folder)))
  for field, value in _EARLIER.items():
    theirs.setdefault(field, value)
  # By folders of earlier versions, and by stages whose data follow from what the locator finds.
  untold = {"data.datasets"} - (set(theirs) & set(ours))
  fields = (set(ours) | set(theirs)) - _INDIFFERENT - untold
  # Another setting makes another dataset: the setting is what to name.
  for field in sorted(fields, key=lambda field: (field == "data.datasets", field)):
    was, now = theirs.get(field, "not there"), ours.get(field, "not there")
    if was != now:
      return f"{field} was {was}, is {now}"
  return None


def write_config(workdir: Path, config: ConfigDict) -> None:
  """Writes config.json."""
  write_text(workdir / CONFIG_FILE, json.dumps(plain(config), indent=2, sort_keys=True) + "\n")


def read_config(workdir: Path) -> ConfigDict:
  """The configuration that a workdir was made with.

  Raises:
    InputError: there is none, or it cannot be read.
  """
  path = workdir / CONFIG_FILE
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise InputError(f"{path}: not found; --workdir must name the folder of a run") from None
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise InputError(f"{path}: not valid JSON ({error}); restore it or use another --workdir") from None
  if not isinstance(content, dict) or not content.get("stages") or not isinstance(content.get("data"), dict):
    raise InputError(f"{path}: not the configuration of a run; restore it or use another --workdir")
  return ConfigDict(content)


def preprocess_settings(config: ConfigDict) -> Preprocess:
  """The grid and intensities of prepared images."""
  data = config.data
  return Preprocess(size=tuple(data.size), spacing=data.spacing, zoom=data.zoom, percentiles=tuple(data.percentiles))


def flat_fields(tree: dict | ConfigDict, prefix: str = "") -> dict:
  """Dotted name -> value of all fields, those of sections included."""
  items = {}
  for name, value in tree.items():
    items |= flat_fields(value, f"{prefix}{name}.") if isinstance(value, dict | ConfigDict) else {prefix + name: value}
  return items


def plain(config: ConfigDict) -> dict:
  """The configuration as JSON holds it: tuples are lists."""
  return json.loads(config.to_json_best_effort())


def _get(config: ConfigDict, field: str):
  for name in field.split("."):
    config = config[name]
  return config
