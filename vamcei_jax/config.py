"""What a run's configuration must satisfy, and what is derived from it."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from vamcei_jax.data.preprocess import Preprocess
from vamcei_jax.errors import InputError
from vamcei_jax.files import write_text
from vamcei_jax.models.layers import GROUPS
from vamcei_jax.ranges import ANY, FIELDS, OPTION, OPTIONAL, shown

CONFIG_FILE = "config.json"
# What earlier versions did without saying so: section -> field -> value.
_EARLIER = {
  "data": {"view": "short_axis", "empty_slices": "all"},
  "augment": {"gin": 0.0, "ipa": 0.0, "scar": 0.0, "contraction": 0.0},
  "distillation": {"views": False, "smooth": 0.0, "apex": False, "itself": 0.0},
}
# Where and how, not what, is learned.
_INDIFFERENT = {"data.prepared_dir", "data.resident", "train.steps_per_call", "train.max_bad_steps"}


def check_config(config: ConfigDict, name_of: Callable[[str], str]) -> None:
  """Checks what would fail late or silently in the configuration of a stage; name_of(field) is how the user knows it.

  Raises:
    InputError: names the field and what it may be.
  """
  fields = flat_fields(config)
  if missing := [field for field in FIELDS if field not in fields]:
    raise InputError(f"{name_of(missing[0])}: not set; see configs/uda.py")
  check_fields(fields, name_of)
  if not isinstance(options := config.data.get("options"), ConfigDict):
    raise InputError(f"{name_of('data.options')}={shown(options)}: must be a section")
  for field, holds, expected in _relations(config):
    if not holds:
      raise InputError(f"{name_of(field)}={shown(fields[field])}: must be {expected}")


def check_fields(fields: Mapping[str, object], name_of: Callable[[str], str]) -> None:
  """Checks each field (dotted name -> value) by itself.

  Raises:
    InputError: as check_config.
  """
  rules = {"stages": ANY} | FIELDS | OPTIONAL
  for field, value in fields.items():
    rule = OPTION if f"{field}.".startswith("data.options.") else rules.get(field)
    if rule is None:
      raise InputError(f"{name_of(field)}: no such field")
    holds, expected = rule
    if not holds(value):
      raise InputError(f"{name_of(field)}={shown(value)}: must be {expected}")


def _relations(config: ConfigDict) -> Iterator[tuple[str, bool, str]]:
  """(field, whether it fits the others, what it must be) of a configuration whose fields are right by themselves."""
  model, weights = config.model, config.loss.weights
  scales, widths = model.latent_scales, model.widths
  has_latents = tuple(config.stages) != ("distill",)
  yield "model.latent_scales", not has_latents or scales < len(widths), "1 to len(widths) - 1"
  coarsest = 2 ** (len(widths) - 1)
  # The global alignment pools the coarsest latent by 4×4.
  divisor = max(coarsest, 4 * 2 ** (scales - 1)) if has_latents else coarsest
  grouped = lambda width: model.norm != "group" or width % GROUPS == 0
  grouping = f"positive, and a multiple of {GROUPS} for group norm"
  for field in ("size", "crop"):
    yield f"data.{field}", all(n % divisor == 0 for n in config.data[field]), f"two multiples of {divisor}"
  moved = config.augment.rotation or config.augment.scale or len(config.augment.flip)
  views = "distillation" in config and config.distillation.get("views", False)
  yield "distillation.views", moved or not views, "False without config.augment.rotation, scale or flip"
  short_axis = config.data.get("view", "short_axis") == "short_axis"
  yield "data.empty_slices", short_axis or config.data.empty_slices != "apical", "all or none but for short_axis views"
  tapered = "distillation" in config and config.distillation.get("apex", False)
  yield "distillation.apex", short_axis or not tapered, "False but for short_axis views"
  yield "model.widths", all(map(grouped, widths)), grouping
  one_each = len(weights.global_alignment) == scales
  yield "loss.weights.global_alignment", not has_latents or one_each, "one weight a latent scale"
  for field in ("width", "discriminator_width") if "translation" in config else ():
    yield f"translation.{field}", grouped(config.translation[field]), grouping
  if "distillation" in config:
    given = config.distillation.teachers
    told = len(given) in (2, 3) and sum(given) > 0
    told_as = "weights of target_vamcei, source_vamcei and, if it is one, no_adaptation, some of them positive"
    yield "distillation.teachers", told, told_as
  if "grid" in config:
    names, kept = zip(*config.grid.rows, strict=True)
    known = all(set(terms) <= set(weights) for terms in kept) and len(set(names)) == len(names)
    yield "grid.rows", known, f"of different names, with terms of {', '.join(weights)}"


def changed_field(folder: Path, config: ConfigDict) -> str | None:
  """The first field in which a stage's configuration differs from that which its folder was begun with, or None.

  Where data is kept makes no difference, nor how many steps one dispatch takes.
  """
  if not (folder / CONFIG_FILE).exists():
    return None
  # Folders of earlier versions do not tell of the locator that they did not have.
  ours, theirs = flat_fields(plain(config)), {"data.located": False} | flat_fields(plain(read_config(folder)))
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
    raise InputError(f"{path}: not found; --workdir must name the folder of a run, --weights one of weights") from None
  except (RecursionError, ValueError) as error:
    raise InputError(f"{path}: not valid JSON ({shown(str(error))}); restore it or use another folder") from None
  if not isinstance(content, dict) or not content.get("stages") or not isinstance(content.get("data"), dict):
    raise InputError(f"{path}: not the configuration of a run; restore it or use another folder")
  try:
    config = ConfigDict(content)
  except (KeyError, ValueError) as error:  # of names that cannot be fields
    raise InputError(f"{path}: not a configuration ({shown(str(error))}); restore it or use another folder") from None
  add_earlier(config)
  return config


def add_earlier(config: ConfigDict) -> None:
  """Sets in the configuration of a run or a stage what earlier versions did without saying so."""
  stages = config.get("stage")
  own = [section for section in stages.values() if isinstance(section, ConfigDict)] if stages else []
  for place, sections in ((config, _EARLIER), *((place, {"distillation": _EARLIER["distillation"]}) for place in own)):
    for name, fields in sections.items():
      if isinstance(section := place.get(name), ConfigDict):
        section.update({field: value for field, value in fields.items() if field not in section})
  for place in (config, *own):
    data = place.get("data")
    if isinstance(data, ConfigDict) and isinstance(empty := data.get("empty_slices"), bool):
      with data.ignore_type():
        data.empty_slices = "all" if empty else "none"


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
