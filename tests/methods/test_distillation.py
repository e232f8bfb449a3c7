"""The student's step, and what its teachers say together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from vamcei_jax.stages import stage_config

from tests.configs import tiny_multistage
from vamcei_jax.losses import distillation as eq_16
from vamcei_jax.losses import segmentation
from vamcei_jax.methods import distillation
from vamcei_jax.methods.distillation import mean_probabilities


@pytest.fixture(scope="module")
def config():
  config = stage_config(tiny_multistage.get_config(), "distill")
  config.train.steps = 1000  # the learning rate stays up
  config.distillation.itself = 0.0
  return config


@pytest.fixture(scope="module")
def batch():
  keys = jax.random.split(jax.random.key(0), 4)
  image = lambda key: jax.random.uniform(key, (3, 24, 24, 1))
  label = jax.random.randint(keys[2], (3, 24, 24), 0, 4)
  teacher = jax.nn.softmax(jax.random.normal(keys[3], (3, 24, 24, 4)))
  target = {"image": image(keys[1]), "plain": image(jax.random.fold_in(keys[1], 1)), "teacher": teacher}
  return {"source": {"image": image(keys[0]), "label": label}, "target": target}


@pytest.fixture(scope="module")
def state(config):
  return jax.jit(lambda: distillation.init_state(config, jax.random.key(1)))()


def test_the_mean_is_of_probabilities_and_not_of_logits():
  sure, unsure = np.array([[0.99, 0.01]]), np.array([[0.2, 0.8]])
  np.testing.assert_allclose(mean_probabilities([sure, unsure], (0.5, 0.5)), [[0.595, 0.405]])
  np.testing.assert_allclose(mean_probabilities([sure, unsure], (3.0, 1.0)), [[0.7925, 0.2075]])


def test_the_loss_is_eq_4_on_the_source_and_eq_16_on_the_target(config, state, batch):
  _, metrics = jax.jit(distillation.make_step(config))(state, batch)
  student = distillation.make_student(config)
  logits = {domain: student.apply({"params": state.params["segmenter"]}, batch[domain]["image"]) for domain in batch}
  supervised = sum(segmentation(logits["source"], jax.nn.one_hot(batch["source"]["label"], 4)))
  taught = eq_16(logits["target"], batch["target"]["teacher"], temperature=config.distillation.temperature).mean()
  np.testing.assert_allclose(metrics["segmentation"], supervised, rtol=1e-5)
  np.testing.assert_allclose(metrics["distillation"], taught, rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"], supervised + taught, rtol=1e-5)


def test_the_student_learns_what_the_teacher_says(config, state, batch):
  """Taught alone, by probabilities that follow from the image, it comes to say the same."""
  y, x = jnp.mgrid[:24, :24]
  image = jnp.stack([(y // 8 + x // size) % 2 for size in (6, 8, 12)]).astype(jnp.float32)[..., None]
  bright = image > 0.5
  teacher = jnp.where(bright, jnp.array([0.1, 0.1, 0.1, 0.7]), jnp.array([0.7, 0.1, 0.1, 0.1]))
  batch = {**batch, "target": {"image": image, "teacher": teacher}}
  state = state.replace(weights=state.weights | {"segmentation": jnp.float32(0.0)})
  step = jax.jit(distillation.make_step(config))
  for _ in range(150):
    state, _ = step(state, batch)
  said = distillation.make_predict(config)({"segmenter": state.params["segmenter"]}, image)
  assert float((said.argmax(-1) == teacher.argmax(-1)).mean()) > 0.95
