"""What each field of a configuration may be, whatever the others are: its type and its range."""

import reprlib
from collections.abc import Callable

from vamcei_jax.data.labels import CLASSES, are_label_values
from vamcei_jax.data.nifti import PLANES
from vamcei_jax.models.layers import NORMS

Rule = tuple[Callable[[object], bool], str]  # whether a value will do, and what it must be

SCHEDULES = ("polynomial", "exponential", "half_linear")  # of the learning rate; see methods/state.py
EMPTY_SLICES = ("all", "apical", "none")  # see data/stream.py
ESTIMATORS = ("paper", "pairwise")  # see losses/alignment.py
_LARGEST = 3e38  # of what float32 holds, roughly


def whole(low: int, high: int = 2**31 - 1) -> Rule:
  """A whole number; JAX counts with 32 bits."""
  return lambda value: type(value) is int and low <= value <= high, f"a whole number from {low} to {high}"


def number(low: float, high: float = _LARGEST) -> Rule:
  """A number, whole or not; neither NaN nor an infinity is one."""
  return lambda value: type(value) in (int, float) and low <= value <= high, f"a number from {low:g} to {high:g}"


def choice(values: tuple[str, ...]) -> Rule:
  """One of these."""
  return lambda value: isinstance(value, str) and value in values, f"one of {', '.join(values)}"


def each(rule: Rule, count: int | None = None) -> Rule:
  """A tuple, or list, of so many values, at least one."""
  holds, expected = rule
  right = lambda values: isinstance(values, list | tuple) and len(values) == (count or max(len(values), 1))
  return lambda values: right(values) and all(map(holds, values)), f"{count or 'one or more'} values, each {expected}"


def rising(pair: Rule, *, equal: bool = False) -> Rule:
  """A pair that rises."""
  holds, expected = pair
  return lambda values: holds(values) and (values[0] < values[1] or equal and values[0] == values[1]), (
    f"low and high: {expected}"
  )


def differing(values: Rule) -> Rule:
  """Values none of which is there twice."""
  holds, expected = values
  return lambda some: holds(some) and len(set(some)) == len(some), f"{expected}, none twice"


def optional(rule: Rule) -> Rule:
  """Or None."""
  holds, expected = rule
  return lambda value: value is None or holds(value), f"{expected}, or None"


TEXT = lambda value: isinstance(value, str) and value != "" and "\0" not in value, "a text"
FLAG = lambda value: isinstance(value, bool), "True or False"
SEED = whole(0, 2**32 - 1)  # a larger one gives the keys of a smaller one
COUNT = whole(1)
STRENGTH = number(0)
SCALE = number(1e-6, 1e6)
RATE = number(0, 1000)  # steps of Adam are bounded: parameters stay finite
PIXELS = each(COUNT, 2)
AXES = (
  lambda axes: isinstance(axes, list | tuple) and all(type(axis) is int and axis in (0, 1) for axis in axes),
  "axes of the image, 0 and 1",
)
ROW = (
  lambda row: isinstance(row, list | tuple)
  and len(row) == 2
  and TEXT[0](row[0])
  and isinstance(row[1], list | tuple)
  and all(map(TEXT[0], row[1])),
  "a name and the terms that it keeps",
)
ANY = lambda value: True, "anything"
OPTION = lambda value: whole(0)[0](value) or TEXT[0](value), "a whole number, at least 0, or a text"

# Fields that every configuration has; configs/uda.py says what they are.
FIELDS: dict[str, Rule] = {
  "seed": SEED,
  "data.name": TEXT,
  "data.root": optional((lambda value: isinstance(value, str) and "\0" not in value, "a folder")),
  "data.prepared_dir": TEXT,
  "data.source": TEXT,
  "data.target": TEXT,
  "data.label_values": (are_label_values, f"{len(CLASSES)} different values or tuples of values, one a class"),
  "data.view": choice(tuple(PLANES)),
  "data.size": PIXELS,
  "data.crop": PIXELS,
  "data.spacing": optional(SCALE),
  "data.zoom": SCALE,
  "data.percentiles": rising(each(number(0, 100), 2)),
  "data.empty_slices": choice(EMPTY_SLICES),
  "data.resident": number(0, 1),
  "augment.rotation": STRENGTH,
  "augment.scale": STRENGTH,
  "augment.shift": STRENGTH,
  "augment.flip": AXES,
  "augment.gamma": STRENGTH,
  "augment.contrast": STRENGTH,
  "augment.bias": STRENGTH,
  "augment.blur": STRENGTH,
  "augment.noise": STRENGTH,
  "augment.gin": number(0, 1),
  "augment.ipa": number(0, 1),
  "augment.scar": number(0, 1),
  "augment.contraction": number(0, 1),
  "model.widths": each(COUNT),
  "model.latent_scales": COUNT,
  "model.logvar_range": rising(each(number(-20, 20), 2), equal=True),
  "model.norm": choice(tuple(NORMS)),
  "model.dtype": choice(("float32", "bfloat16")),
  "model.discriminator_width": COUNT,
  "loss.weights.segmentation": STRENGTH,
  "loss.weights.reconstruction": STRENGTH,
  "loss.weights.prior_kl": STRENGTH,
  "loss.weights.global_alignment": each(STRENGTH),
  "loss.weights.prototypes": STRENGTH,
  "loss.weights.generator": STRENGTH,
  "loss.ramp": each(STRENGTH, 2),
  "loss.global_kl.estimator": choice(ESTIMATORS),
  "loss.prototypes.temperature": SCALE,
  "loss.prototypes.confidence": number(0, 1),
  "optimizer.rates.segmenter": RATE,
  "optimizer.rates.decoders": RATE,
  "optimizer.rates.discriminator": RATE,
  "optimizer.b1": number(0, 0.999999),
  "optimizer.schedule": choice(SCHEDULES),
  "optimizer.epoch_steps": COUNT,
  "optimizer.clip": number(1e-6),
  "train.steps": COUNT,
  "train.batch_size": COUNT,
  "train.steps_per_call": COUNT,
  "train.log_every": COUNT,
  "train.eval_every": COUNT,
  "train.checkpoint_every": COUNT,
  "train.max_bad_steps": COUNT,
  "train.keep": COUNT,
  "train.ema_decay": number(0, 0.999999),
}
# Fields that some stages or programs have besides.
OPTIONAL: dict[str, Rule] = {
  "data.located": FLAG,
  "data.datasets": each(TEXT, 2),
  "loss.weights.adversarial": STRENGTH,
  "loss.weights.cycle": STRENGTH,
  "loss.weights.identity": STRENGTH,
  "loss.weights.distillation": STRENGTH,
  "optimizer.rates.translators": RATE,
  "optimizer.rates.discriminators": RATE,
  "translation.width": COUNT,
  "translation.blocks": whole(0),
  "translation.discriminator_width": COUNT,
  "translation.history": COUNT,
  "distillation.temperature": SCALE,
  "distillation.teachers": each(STRENGTH),
  "distillation.views": FLAG,
  "distillation.smooth": STRENGTH,
  "distillation.apex": FLAG,
  "distillation.itself": number(0, 1),
  "inference.tta": FLAG,
  "inference.postprocess": FLAG,
  "inference.smooth": STRENGTH,
  "inference.odds": each(SCALE, 3),
  "inference.apex": optional(each(each(number(1e-6, 1), 3))),
  "inference.pixel_mm": optional(rising(each(SCALE, 2), equal=True)),
  "inference.sha256": TEXT,
  "grid.rows": each(ROW),
  "grid.seeds": differing(each(SEED)),
}


def shown(value: object) -> str:
  """A value as an error shows it, whatever it is: short, and on one line."""
  try:
    line = " ".join(reprlib.repr(value).split())
  except ValueError:  # Python writes no number of more than 4300 digits
    return "a number without end"
  return line if len(line) <= 100 else f"{line[:100]}..."
