"""The student's step, and the mean of its teachers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods import equations
from tests.methods.batches import make_hearts
from tests.methods.devices import assert_two_devices_take_the_step
from tests.methods.settings import UNEVEN, stage_config
from tests.methods.steps import assert_steps, compiled, first_state, moved_state, program
from vamcei_jax.methods import distillation
from vamcei_jax.methods.distillation import mean_probabilities
from vamcei_jax.models.unet import UNet

STUDENT = UNet(4, (4, 8, 16), "instance")


@pytest.fixture
def step():
  return program("distill").step


@compiled
def composed(params, number, batch):
  """Gradient and metrics of a step, from the student alone."""
  del number
  source, target = batch["source"], batch["target"]
  weights, temperature = UNEVEN["loss"]["weights"], UNEVEN["distillation"]["temperature"]

  def loss(student):
    logits_s, logits_t = (STUDENT.apply({"params": student}, domain["image"]) for domain in (source, target))
    labels = jax.nn.one_hot(source["label"], 4)
    cross_entropy, dice = equations.cross_entropy(logits_s, labels), equations.dice_loss(logits_s, labels)
    terms = {
      "segmentation": cross_entropy + dice,
      "distillation": equations.distillation(logits_t, target["teacher"], temperature),
    }
    total = sum(weights[name] * term for name, term in terms.items())
    return total, {"loss": total, "cross_entropy": cross_entropy, "dice_loss": dice} | terms

  gradient, metrics = jax.grad(loss, has_aux=True)(params["segmenter"])
  return {"segmenter": gradient}, metrics


def test_a_step_is_adams_on_the_gradient_of_eqs_4_and_16(step):
  """Eq. 4 on the source and eq. 16 on the target."""
  schedule = lambda done: (1 - done / 400) ** 0.9
  assert_steps(step, moved_state("distill"), [make_hearts(0), make_hearts(1)], composed, schedule)


def test_two_devices_take_the_step_of_the_batch():
  assert_two_devices_take_the_step("distill")


def test_the_mean_is_of_probabilities_and_not_of_logits():
  sure, unsure = np.array([[0.99, 0.01]]), np.array([[0.2, 0.8]])
  np.testing.assert_allclose(mean_probabilities([sure, unsure], (0.5, 0.5)), [[0.595, 0.405]])
  np.testing.assert_allclose(mean_probabilities([sure, unsure], (3.0, 1.0)), [[0.7925, 0.2075]])


def test_each_teacher_has_a_weight():
  with pytest.raises(ValueError, match="zip"):
    mean_probabilities([np.ones((1, 2))], (0.5, 0.5))


def test_the_student_learns_what_the_teacher_says(step):
  """Of eq. 16 alone, by probabilities that follow from the image, it comes to predict the same."""
  y, x = np.mgrid[:24, :24]
  image = np.float32(np.stack([(y // 8 + x // size) % 2 for size in (6, 8)]))[..., None]
  teacher = np.float32(np.where(image > 0.5, [0.1, 0.1, 0.1, 0.7], [0.7, 0.1, 0.1, 0.1]))
  batch = make_hearts(0) | {"target": {"image": image, "teacher": teacher}}
  state = first_state("distill")
  state = state.replace(weights=state.weights | {"segmentation": jnp.float32(0.0)})
  losses = []
  for _ in range(150):
    state, metrics = step(state, batch)
    losses.append(float(metrics["loss"]))
  least = float(equations.distillation(np.log(teacher), teacher, UNEVEN["distillation"]["temperature"]))
  assert losses[-1] - least < 0.1 * (losses[0] - least)
  predict = compiled(distillation.make_predict(program("distill").config))
  predicted = np.asarray(predict({"segmenter": state.params["segmenter"]}, image))
  assert (predicted.argmax(-1) == teacher.argmax(-1)).mean() > 0.95


def test_a_prediction_is_the_softmax_of_the_logits():
  networks, images = moved_state("distill").params, jnp.asarray(make_hearts(0)["source"]["image"])
  predicted = compiled(distillation.make_predict(program("distill").config))(networks, images)
  logits = np.asarray(compiled(lambda: STUDENT.apply({"params": networks["segmenter"]}, images))())
  powers = np.exp(logits)
  np.testing.assert_allclose(predicted, powers / powers.sum(-1, keepdims=True), rtol=1e-4)


def test_the_student_is_the_configured_one():
  model = {"widths": (8, 16, 24), "norm": "group", "dtype": "bfloat16"}
  assert distillation.make_student(stage_config("distill", model=model)) == UNet(4, (8, 16, 24), "group", jnp.bfloat16)
