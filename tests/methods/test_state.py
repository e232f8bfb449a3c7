"""The optimizer's promises, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs import tiny
from tests.runs import assert_same
from vamcei_jax.methods.state import create_state, keep_finite, make_schedule, make_update


@pytest.fixture
def config():
  return tiny.get_config()


@pytest.fixture
def state(config):
  params = {"segmenter": {"w": jnp.ones(3)}, "discriminator": {"w": jnp.zeros(2)}}
  return create_state(params, jax.random.key(0), config)


def test_polynomial_schedule_falls_from_one_to_zero(config):
  config.train.steps = 100
  schedule = make_schedule(config)
  np.testing.assert_allclose([schedule(n) for n in (0, 50, 100)], [1.0, 0.5**0.9, 0.0], atol=1e-6)


def test_half_linear_schedule_stays_up_and_then_falls_along_a_line(config):
  config.train.steps, config.optimizer.schedule = 100, "half_linear"
  schedule = make_schedule(config)
  np.testing.assert_allclose([schedule(n) for n in (0, 50, 75, 100)], [1.0, 1.0, 0.5, 0.0], atol=1e-6)


def test_exponential_schedule_falls_by_a_tenth_an_epoch(config):
  config.optimizer.schedule, config.optimizer.epoch_steps = "exponential", 10
  schedule = make_schedule(config)
  np.testing.assert_allclose([schedule(n) for n in (0, 9, 10, 25)], [1.0, 1.0, 0.9, 0.81], rtol=1e-6)


def test_first_step_of_adam_is_the_rate_of_the_network_against_the_gradient(config, state):
  grads = {"segmenter": {"w": jnp.array([1.0, -2.0, 0.5])}, "discriminator": {"w": jnp.array([3.0, -1.0])}}
  after, _ = make_update(config)(state, grads, {"loss": jnp.zeros(())})
  rates = config.optimizer.rates
  np.testing.assert_allclose(after.params["segmenter"]["w"], 1.0 - rates.segmenter * np.array([1, -1, 1]), rtol=1e-5)
  np.testing.assert_allclose(after.params["discriminator"]["w"], -rates.discriminator * np.array([1, -1]), rtol=1e-5)
  assert int(after.step) == 1


def test_a_network_without_gradient_is_left_alone(config, state):
  after, _ = make_update(config)(state, {"segmenter": {"w": jnp.ones(3)}}, {})
  np.testing.assert_array_equal(after.params["discriminator"]["w"], state.params["discriminator"]["w"])
  assert int(after.opt["discriminator"][1].count) == 0


def test_gradients_beyond_the_clip_are_scaled_to_it(config, state):
  """Adam's first moment after one step is a tenth of the clipped gradient."""
  after, _ = make_update(config)(state, {"segmenter": {"w": jnp.array([300.0, 0.0, 400.0])}}, {})
  expected = 0.1 * config.optimizer.clip * np.array([0.6, 0.0, 0.8])
  np.testing.assert_allclose(after.opt["segmenter"][1].mu["w"], expected, rtol=1e-5)


def test_the_average_remembers_little_at_first_and_a_decay_later(config, state):
  """One update from an average of 1 to parameters of p: decay·1 + (1 − decay)·p."""
  config.train.ema_decay = 0.9
  update = make_update(config)
  for step, decay in ((0, 0.1), (10, 11 / 20), (1000, 0.9)):
    after, _ = update(state.replace(step=jnp.int32(step)), {"segmenter": {"w": jnp.ones(3)}}, {})
    expected = decay * 1.0 + (1 - decay) * after.params["segmenter"]["w"]
    np.testing.assert_allclose(after.ema["segmenter"]["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_gradient_that_is_not_finite_is_skipped_though_the_losses_are(config, state, bad):
  update = make_update(config)
  state, _ = update(state, {"segmenter": {"w": jnp.ones(3)}}, {"loss": jnp.zeros(())})
  grads = {"segmenter": {"w": jnp.array([1.0, bad, 0.0])}, "discriminator": {"w": jnp.ones(2)}}
  after, metrics = keep_finite(state, *update(state, grads, {"loss": jnp.zeros(())}))
  assert_same(after, state.replace(step=state.step + 1))
  assert float(metrics["skipped"]) == 1.0


def test_a_gradient_so_long_that_its_length_is_not_finite_is_skipped(config, state):
  grads = {"segmenter": {"w": jnp.array([1.0, 1e30, 0.0])}}
  after, metrics = keep_finite(state, *make_update(config)(state, grads, {"loss": jnp.zeros(())}))
  assert_same(after, state.replace(step=state.step + 1))
  assert float(metrics["skipped"]) == 1.0


def test_metrics_tell_the_length_of_each_gradient_before_it_is_clipped(config, state):
  grads = {"segmenter": {"w": jnp.array([30.0, 0.0, -40.0])}, "discriminator": {"w": jnp.array([0.0, 0.25])}}
  _, metrics = make_update(config)(state, grads, {})
  assert {name: float(value) for name, value in metrics.items()} == {
    "gradient_segmenter": 50.0, "gradient_discriminator": 0.25
  }
