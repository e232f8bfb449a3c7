"""The optimizer, the average, the schedules and the ramp, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.settings import stage_config
from tests.runs import assert_same
from vamcei_jax.methods.state import create_state, make_schedule, make_update, ramp_factor, skip_nonfinite

TERMS = ("segmentation", "global_alignment")
RATES = {"segmenter": 2e-3, "discriminator": 5e-4}


def config(**sections):
  return stage_config("vamcei", **sections)


def scheduled(schedule, **settings):
  return make_schedule(config(train={"steps": 100}, optimizer={"schedule": schedule, **settings}))


def first_state(**sections):
  params = {"segmenter": {"w": jnp.ones(3)}, "discriminator": {"w": jnp.zeros(2)}}
  return create_state(params, jax.random.key(0), config(**sections), terms=TERMS)


@pytest.fixture
def state():
  return first_state()


@pytest.fixture
def update():
  return make_update(config())


def test_polynomial_schedule_falls_from_one_to_zero():
  schedule = scheduled("polynomial")
  np.testing.assert_allclose([schedule(n) for n in (0, 50, 100)], [1.0, 0.5**0.9, 0.0], atol=1e-6)


@pytest.mark.parametrize(("steps", "expected"), [(100, {0: 1, 50: 1, 75: 0.5, 100: 0}), (5, {2: 1, 3: 2 / 3, 5: 0})])
def test_half_linear_schedule_stays_up_and_then_falls_along_a_line(steps, expected):
  schedule = make_schedule(config(train={"steps": steps}, optimizer={"schedule": "half_linear"}))
  np.testing.assert_allclose([schedule(n) for n in expected], list(expected.values()), atol=1e-6)


def test_exponential_schedule_falls_by_a_tenth_an_epoch():
  schedule = scheduled("exponential", epoch_steps=10)
  np.testing.assert_allclose([schedule(n) for n in (0, 9, 10, 25)], [1.0, 1.0, 0.9, 0.81], rtol=1e-6)


def test_a_state_starts_with_the_configured_weights_rates_and_ramp():
  weights = {"segmentation": 0.7, "global_alignment": (2e-6, 5e-6), "generator": 0.4}
  state = first_state(loss={"weights": weights, "ramp": (3, 7)})
  assert int(state.step) == 0
  np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(0)))
  assert {name: float(rate) for name, rate in state.learning_rates.items()} == pytest.approx(RATES)
  assert set(state.weights) == set(TERMS)
  assert float(state.weights["segmentation"]) == pytest.approx(0.7)
  np.testing.assert_allclose(state.weights["global_alignment"], [2e-6, 5e-6])
  np.testing.assert_array_equal(state.ramp, [3, 7])


def test_the_average_starts_as_a_copy_of_one_network(state):
  """A copy, because the buffers of a state are donated, each once."""
  assert set(state.ema_params) == {"segmenter"}
  average, params = state.ema_params["segmenter"]["w"], state.params["segmenter"]["w"]
  np.testing.assert_array_equal(average, params)
  assert average.unsafe_buffer_pointer() != params.unsafe_buffer_pointer()


@pytest.mark.parametrize(
  ("ramp", "expected"), [((10, 20), {0: 0, 10: 0, 15: 0.25, 30: 1, 40: 1}), ((5, 0), {4: 0, 5: 0, 6: 1})]
)
def test_the_ramp_starts_at_a_step_and_takes_some(state, ramp, expected):
  of = lambda step: float(ramp_factor(state.replace(step=jnp.int32(step), ramp=jnp.float32(ramp))))
  assert {step: of(step) for step in expected} == expected


def test_first_step_of_adam_is_the_rate_of_the_network_against_the_gradient(state, update):
  grads = {"segmenter": {"w": jnp.array([1.0, -2.0, 0.5])}, "discriminator": {"w": jnp.array([3.0, -1.0])}}
  after, _ = update(state, grads, {"loss": jnp.zeros(())})
  np.testing.assert_allclose(after.params["segmenter"]["w"], 1.0 - 2e-3 * np.array([1, -1, 1]), rtol=1e-5)
  np.testing.assert_allclose(after.params["discriminator"]["w"], -5e-4 * np.array([1, -1]), rtol=1e-5)
  assert int(after.step) == 1


def test_three_steps_follow_schedule_and_average_by_value():
  """Of equal gradients, Adam's steps are ±rate, so the schedule is what is seen."""
  state, update = first_state(), make_update(config(train={"steps": 4, "ema_decay": 0.15}))
  weight = average = 1.0
  for step in range(3):
    state, _ = update(state, {"segmenter": {"w": jnp.array([1.0, -2.0, 0.5])}}, {})
    weight -= 2e-3 * (1 - step / 4) ** 0.9
    decay = (1 / 10, 0.15, 0.15)[step]
    average = decay * average + (1 - decay) * weight
    np.testing.assert_allclose(state.params["segmenter"]["w"][0], weight, rtol=2e-6)
    np.testing.assert_allclose(state.ema_params["segmenter"]["w"][0], average, rtol=2e-6)
    assert int(state.step) == step + 1


def test_a_network_without_gradient_is_left_alone(state, update):
  after, _ = update(state, {"segmenter": {"w": jnp.ones(3)}}, {})
  np.testing.assert_array_equal(after.params["discriminator"]["w"], state.params["discriminator"]["w"])
  assert int(after.opt_state["discriminator"][1].count) == 0


def test_gradients_beyond_the_clip_are_scaled_to_it(state, update):
  """Adam's first moment after one step is a tenth of the clipped gradient."""
  after, _ = update(state, {"segmenter": {"w": jnp.array([300.0, 0.0, 400.0])}}, {})
  expected = 0.1 * config().optimizer.clip * np.array([0.6, 0.0, 0.8])
  np.testing.assert_allclose(after.opt_state["segmenter"][1].mu["w"], expected, rtol=1e-5)


def test_each_network_is_clipped_by_itself(state, update):
  grads = {"segmenter": {"w": jnp.array([300.0, 0.0, 400.0])}, "discriminator": {"w": jnp.array([3.0, -1.0])}}
  after, _ = update(state, grads, {})
  np.testing.assert_allclose(after.opt_state["discriminator"][1].mu["w"], [0.3, -0.1], rtol=1e-5)


def test_the_average_remembers_little_at_first_and_a_decay_later(state):
  """One update from an average of 1 to parameters of p: decay·1 + (1 − decay)·p."""
  update = make_update(config(train={"ema_decay": 0.9}))
  for step, decay in ((0, 0.1), (10, 11 / 20), (1000, 0.9)):
    after, _ = update(state.replace(step=jnp.int32(step)), {"segmenter": {"w": jnp.ones(3)}}, {})
    expected = decay * 1.0 + (1 - decay) * after.params["segmenter"]["w"]
    np.testing.assert_allclose(after.ema_params["segmenter"]["w"], expected, rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_gradient_that_is_not_finite_is_skipped_though_the_losses_are(state, update, bad):
  state, _ = update(state, {"segmenter": {"w": jnp.ones(3)}}, {"loss": jnp.zeros(())})
  grads = {"segmenter": {"w": jnp.array([1.0, bad, 0.0])}, "discriminator": {"w": jnp.ones(2)}}
  after, metrics = skip_nonfinite(state, *update(state, grads, {"loss": jnp.zeros(())}))
  assert_same(after, state.replace(step=state.step + 1))
  assert float(metrics["skipped"]) == 1.0


def test_a_gradient_so_long_that_its_length_is_not_finite_is_skipped(state, update):
  grads = {"segmenter": {"w": jnp.array([1.0, 1e30, 0.0])}}
  after, metrics = skip_nonfinite(state, *update(state, grads, {"loss": jnp.zeros(())}))
  assert_same(after, state.replace(step=state.step + 1))
  assert float(metrics["skipped"]) == 1.0


def test_a_finite_step_is_taken(state, update):
  new, metrics = update(state, {"segmenter": {"w": jnp.ones(3)}}, {"loss": jnp.zeros(())})
  after, guarded = skip_nonfinite(state, new, metrics)
  assert_same(after, new)
  assert guarded == metrics | {"skipped": 0.0}


def test_metrics_tell_the_length_of_each_gradient_before_it_is_clipped(state, update):
  grads = {"segmenter": {"w": jnp.array([30.0, 0.0, -40.0])}, "discriminator": {"w": jnp.array([0.0, 0.25])}}
  _, metrics = update(state, grads, {"loss": jnp.float32(3.0)})
  assert {name: float(value) for name, value in metrics.items()} == {
    "loss": 3.0, "gradient_segmenter": 50.0, "gradient_discriminator": 0.25
  }  # fmt: skip


def test_gradients_and_metrics_are_means_over_the_axis(state):
  """And the length is that of the mean gradient, not the mean of the lengths."""
  update = make_update(config(), "devices")
  of = lambda gradient, loss: update(state, {"segmenter": {"w": gradient}}, {"loss": loss})
  gradients = jnp.array([[3.0, 0.0, 8.0], [3.0, 8.0, 0.0]])
  after, metrics = jax.vmap(of, axis_name="devices")(gradients, jnp.array([1.0, 4.0]))
  np.testing.assert_allclose(metrics["loss"], [2.5, 2.5])
  np.testing.assert_allclose(metrics["gradient_segmenter"], np.full(2, np.sqrt(9 + 16 + 16)), rtol=1e-6)
  np.testing.assert_allclose(after.opt_state["segmenter"][1].mu["w"], np.full((2, 3), 0.1) * [3, 4, 4], rtol=1e-6)


def test_weight_decay_is_added_to_the_gradient_and_constant_networks_have_none():
  """As torch.optim.Adam(weight_decay=…): the first moment is a tenth of gradient and decayed parameters together."""
  sections = {"optimizer": {"weight_decay": 0.1, "constant": ("discriminator",), "clip": 1e9}}
  state, update = first_state(**sections), make_update(config(**sections))
  grads = {"segmenter": {"w": jnp.array([1.0, 2.0, 3.0])}, "discriminator": {"w": jnp.array([1.0, -1.0])}}
  state, _ = update(state, grads, {})
  moment = lambda network: next(s.mu["w"] for s in state.opt_state[network] if hasattr(s, "mu"))
  np.testing.assert_allclose(moment("segmenter"), 0.1 * np.array([1.1, 2.1, 3.1]), rtol=1e-6)
  np.testing.assert_allclose(moment("discriminator"), 0.1 * np.array([1.0, -1.0]), rtol=1e-6)


def test_the_rate_of_a_constant_network_does_not_decay():
  """Adam's steps on a constant gradient have the size of the rate."""
  optimizer = {"schedule": "exponential", "epoch_steps": 1, "constant": ("discriminator",)}
  state, update = first_state(optimizer=optimizer), make_update(config(optimizer=optimizer))
  grads = {"segmenter": {"w": jnp.ones(3)}, "discriminator": {"w": jnp.ones(2)}}
  steps = {"segmenter": [], "discriminator": []}
  for _ in range(4):
    before = state
    state, _ = update(state, grads, {})
    for network, sizes in steps.items():
      sizes.append(float((before.params[network]["w"] - state.params[network]["w"])[0]))
  np.testing.assert_allclose(steps["segmenter"], RATES["segmenter"] * 0.9 ** np.arange(4), rtol=1e-4)
  np.testing.assert_allclose(steps["discriminator"], RATES["discriminator"], rtol=1e-4)


def test_the_second_moment_decays_as_configured():
  optimizer = {"b2": {"discriminator": 0.9}, "clip": 1e9}
  state, update = first_state(optimizer=optimizer), make_update(config(optimizer=optimizer))
  grads = {"segmenter": {"w": jnp.ones(3)}, "discriminator": {"w": jnp.ones(2)}}
  state, _ = update(state, grads, {})
  second = lambda network: next(s.nu["w"] for s in state.opt_state[network] if hasattr(s, "nu"))
  np.testing.assert_allclose(second("segmenter"), 0.001, rtol=1e-4)
  np.testing.assert_allclose(second("discriminator"), 0.1, rtol=1e-5)
