"""Steps on several devices, in several dispatches and of several runs equal steps on one device, one by one.

The traffic of a step does not grow with its batch, and XLA gets the options for the backend. Run as a program, this
file makes the comparisons that need eight devices, into which it divides the CPU.
"""

import dataclasses
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from tests.commands import ROOT, command
from tests.configs import tiny, tiny_multistage
from tests.runs import assert_same, final_state
from vamcei_jax import distributed, grid
from vamcei_jax.config.schema import StageConfig, TrainConfig
from vamcei_jax.data.loader import augment_batch, batch_indices, draw_batch, draw_keys
from vamcei_jax.errors import InputError
from vamcei_jax.methods import cyclegan, supervised, vamcei
from vamcei_jax.methods import state as method_state
from vamcei_jax.models.cpu_gradients import EPSILON
from vamcei_jax.models.layers import InstanceNorm, pointwise
from vamcei_jax.pipeline.record import read_record
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.training.checkpoints import open_checkpoints, restore_newest, save
from vamcei_jax.training.log import read_log
from vamcei_jax.training.loop import steps_to_go, train

STEPS = 10


@pytest.fixture
def optimized():
  """XLA optimizes as it does for users; see tests/conftest.py."""
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1")


@pytest.mark.slow
def test_the_number_of_devices_changes_nothing():
  flags = "--xla_force_host_platform_device_count=8"
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
  done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=1800)
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ["devices", "streamed", "skipped", "translators", "bytes", "grid"]


def on_eight_devices():
  assert jax.device_count() == 8
  # Adam makes a full step even of a gradient that is rounding alone, whose sign differs. SGD shows the gradients.
  method_state.make_optimizer = lambda config, network: optax.sgd(1.0)
  config, data, key = eight_images(rate=1e-2), example(), jax.random.key(2)
  compare_single_steps(config, data, key)

  hurt = jax.tree.map(np.copy, data)
  hurt["source"]["image"][batch_indices(draw_keys(key, "source")[0], 0, 20, 8)[5]] = np.nan  # of one device, once
  for scanned in (False, True):
    got, expected = (trained(jax.devices()[:n], supervised, config, hurt, key, scanned) for n in (8, 1))
    compare(got, expected)
    assert np.concatenate([np.atleast_1d(metrics["skipped"]) for metrics in got[0]]).tolist() == [1.0, 0.0]
    assert all(np.isfinite(values).all() for values in jax.tree.leaves(got[1]))
  print("skipped")

  translation = translation_config(rate=1e-3)
  states = states_on_one_device(cyclegan, translation, data, key)
  one, four = (stepped(states, jax.devices()[:count], cyclegan, translation, data, key) for count in (1, 4))
  compare_each(four, one, share=0.7)
  print("translators")

  assert all_reduced_bytes(config, images=8) == all_reduced_bytes(config, images=32) > 0
  print("bytes")
  compare_grids(config, data, key)


def compare_single_steps(config, data, key):
  """Each step on several devices begins with the state that one device had; see compare_each."""
  states = states_on_one_device(vamcei, config, data, key)
  expected = stepped(states, jax.devices()[:1], vamcei, config, data, key)
  for count in (2, 4, 8):
    compare_each(stepped(states, jax.devices()[:count], vamcei, config, data, key), expected)
  supervision = states_on_one_device(supervised, config, data, key)
  one, eight = (stepped(supervision, jax.devices()[:count], supervised, config, data, key) for count in (1, 8))
  compare_each(eight, one)
  print("devices")

  picked = [pick_slices(data, key, step, config) for step in range(STEPS)]
  compare_each(stepped(states, jax.devices()[:4], vamcei, config, data, key, feed=picked), expected)
  print("streamed")


def compare_grids(config, data, key):
  """A grid on two devices against the same runs one after another on one."""
  draw = draw_of(config)
  devices, seeds = jax.devices()[:2], (1, 5, 7, 8)
  states = [jax.jit(lambda seed=seed: vamcei.init_state(config, jax.random.key(seed)))() for seed in seeds]
  faster = lambda state, i: jax.tree.map(lambda rate: rate * (1 + 0.5 * i), state.learning_rates)
  varied = lambda state, i: {"weights": state.weights | {"prototypes": 0.1 * i}, "learning_rates": faster(state, i)}
  states = [state.replace(ramp=state.ramp * (1 + i), **varied(state, i)) for i, state in enumerate(states)]
  keys = jax.numpy.stack([jax.random.key(10 + seed) for seed in seeds])
  alone = grid.make_grid(states, devices[:1], mapped=False)
  states = [jax.device_put(*one) for one in zip(states, grid.grid_placement(4, devices), strict=True)]
  with jax.transfer_guard_device_to_device("disallow_explicit"):  # each device stacks its runs
    mapped = grid.make_grid(states, devices, mapped=True)
    grid.members(mapped)
  assert_spread(mapped, devices)
  compiled_grid = partial(grid.compile_grid, vamcei.make_step(config), draw)
  theirs, got = compiled_grid(devices, mapped=True)(mapped, distributed.replicate(data, devices), keys, 3)
  ours, expected = compiled_grid(devices[:1], mapped=False)(alone, data, keys, 3)
  assert_spread(theirs, devices)
  with tempfile.TemporaryDirectory() as folder, open_checkpoints(Path(folder), keep=1) as checkpoints:
    save(checkpoints, grid.members(theirs), 3)
    checkpoints.wait_until_finished()
    places = grid.grid_placement(len(states), devices)
    restored, _ = restore_newest(checkpoints, jax.eval_shape(lambda: states), places)
  assert [state.step.sharding for state in restored] == places
  assert_same(restored, grid.members(theirs))
  assert np.std(expected["loss"]) > 1e-3
  compare(([got], [state.params for state in grid.members(theirs)]), ([expected], [state.params for state in ours]))
  print("grid")


def compiled(devices, method, config, *, streamed=False, scanned=None):
  """The program of steps on these devices."""
  step, draw = partial(method.make_step, config), draw_of(config, streamed=streamed)
  return distributed.compile_steps(step, draw, devices, streamed=streamed, scanned=scanned)


def initial(devices, method, config):
  """The state before the first step."""
  return distributed.replicate(jax.jit(lambda: method.init_state(config, jax.random.key(1)))(), devices)


def trained(devices, method, config, data, key, scanned=None):
  """Metrics and final parameters of two steps in one dispatch."""
  run = compiled(devices, method, config, scanned=scanned)
  state, metrics = run(initial(devices, method, config), distributed.replicate(data, devices), key, 2)
  return jax.device_get(distributed.replica((metrics, state.params)))


def states_on_one_device(method, config, data, key):
  """The state before each step of a training."""
  device = jax.devices()[:1]
  run, data, states = compiled(device, method, config), distributed.replicate(data, device), []
  state = initial(device, method, config)
  for _ in range(STEPS):
    states.append(state)
    state, _ = run(state, data, key, 1)
  return states


def stepped(states, devices, method, config, data, key, feed=None):
  """(metrics, parameters) after one step from each of the states; feed: its slices, in place of data on the devices."""
  run, placed = compiled(devices, method, config, streamed=feed is not None), distributed.replicate(data, devices)
  results = []
  for number, state in enumerate(states):
    given = placed if feed is None else feed[number : number + 1]
    after, metrics = run(distributed.replicate(state, devices), given, key, 1)
    results.append(jax.device_get(distributed.replica((metrics, after.params))))
  return results


def compare_each(got, expected, share=1.0):
  """Compares single steps from the same states: losses in each of them, gradients and parameters in this share.

  Where rounding gives a ReLU's input another sign, a gradient changes by more than rounding: on one device, parameters
  changed by 6e-8 of themselves move the norm of the segmenter's gradient by 4e-4 in 1 of 30 steps, and of the
  translators' by up to 2e-3 in 4 of 60, with losses equal to 3e-7. On another processor, changes of 1.2e-7 do so in up
  to 3 of 10 steps of the translators. A fault in the division of a batch would show in every step. Where the share is
  below 1, the other steps agree to ten times as much.
  """
  steps = list(zip(got, expected, strict=True))
  for ours, theirs in steps:
    compare_losses(ours, theirs)
    assert gradients_agree(ours, theirs, times=10)
  agree = [gradients_agree(ours, theirs) for ours, theirs in steps]
  assert np.mean(agree) >= share, agree


def assert_spread(states, devices):
  """Each device has its share of a grid's runs and of its bytes, and each run is on the device that has its bytes."""
  is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  arrays = [jax.random.key_data(x) if is_key(x) else x for x in jax.tree.leaves(states)]
  assert all({shard.device for shard in x.addressable_shards} == set(devices) for x in arrays)
  assert all(len(shard.data) * len(devices) == len(x) for x in arrays for shard in x.addressable_shards)
  members = grid.members(states)
  share = len(members) // len(devices)
  for number, member in enumerate(members):
    assert all(x.devices() == {devices[number // share]} for x in jax.tree.leaves(member))


def compare(got, expected):
  """Compares losses, gradients and parameters of a training."""
  compare_losses(got, expected)
  assert gradients_agree(got, expected)


def compare_losses(got, expected):
  """Metrics but for the norms of gradients, to 1e-5."""
  for ours, theirs in zip(got[0], expected[0], strict=True):
    assert ours.keys() == theirs.keys()
    for name in ours:
      if not name.startswith("gradient_"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5, err_msg=name)


def gradients_agree(got, expected, times=1):
  """Whether norms of gradients agree to 1e-3 of theirs, and parameters to 1e-4, or to this many times as much."""
  (metrics, params), (expected_metrics, expected_params) = got, expected
  norms = lambda steps: [np.ravel(step[name]) for step in steps for name in step if name.startswith("gradient_")]
  alike = [
    np.allclose(*pair, rtol=times * 1e-3, atol=times * 1e-5, equal_nan=True)
    for pair in zip(norms(metrics), norms(expected_metrics), strict=True)
  ]
  near = jax.tree.map(lambda a, b: np.allclose(a, b, rtol=0, atol=times * 1e-4), params, expected_params)
  return all(alike) and all(jax.tree.leaves(near))


def eight_images(rate):
  """The configuration of a tiny VAMCEI with a batch of 8, at one learning rate for all networks."""
  config = tiny.get_config()
  config.model.update(widths=(4, 8, 16), latent_scales=2)
  config.loss.weights.global_alignment = (1e-6, 1e-6)
  config.train.batch_size = 8
  config.optimizer.rates.update(dict.fromkeys(config.optimizer.rates, rate))
  # A sum of KLs. Of "paper", the difference of two, some digits are lost (tests/losses has it on several devices).
  config.loss.global_kl.estimator = "pairwise"
  return resolve(config).stages["vamcei"]


def translation_config(rate):
  """The configuration of a tiny CycleGAN with a batch of 4, at one learning rate for all networks."""
  config = resolve(tiny_multistage.get_config()).stages["translate"]
  optimizer = dataclasses.replace(config.optimizer, rates=dict.fromkeys(config.optimizer.rates, rate))
  return dataclasses.replace(config, optimizer=optimizer, train=dataclasses.replace(config.train, batch_size=4))


def draw_of(config, *, streamed=False):
  """draw_batch of a stage or, for streamed slices, augment_batch."""
  settings = {"crop": config.data.crop, "strengths": config.augment}
  if streamed:
    return partial(augment_batch, **settings)
  return partial(draw_batch, batch_size=config.train.batch_size, **settings)


def example():
  rng = np.random.default_rng(0)
  images = lambda count: rng.uniform(size=(count, 32, 32)).astype(np.float32)
  label = rng.integers(0, 4, (20, 32, 32)).astype(np.uint8)
  return {"source": {"image": images(20), "label": label}, "target": {"image": images(30)}}


def pick_slices(data, key, step, config):
  """The slices of a step's batch, by the indices of the loader."""
  picked = {}
  for domain, slices in data.items():
    index = batch_indices(draw_keys(key, domain)[0], step, len(slices["image"]), config.train.batch_size)
    picked[domain] = {name: values[np.asarray(index)] for name, values in slices.items()}
  return picked


def all_reduced_bytes(config, images):
  """Bytes that the compiled step on eight devices sends: the operands of its collectives."""
  image = np.zeros((8, images // 8, *config.data.crop, 1), np.float32)
  batch = {"source": {"image": image, "label": np.zeros(image.shape[:-1], np.int32)}, "target": {"image": image}}
  step = vamcei.make_step(config, distributed.AXIS)
  step = jax.pmap(step, axis_name=distributed.AXIS, in_axes=(None, 0), out_axes=None)
  state = jax.jit(lambda: vamcei.init_state(config, jax.random.key(0)))()
  text = step.lower(state, batch).compile().as_text()
  kinds = "(all-reduce|all-gather|all-to-all|collective-permute)(-start)?"
  collectives = [line for line in text.splitlines() if re.search(rf"= .*{kinds}\(", line)]
  assert all("all-reduce" in line for line in collectives)
  # What a collective sends stands between its name and its kind.
  types = [line.partition(" = ")[2].partition(" all-reduce")[0] for line in collectives]
  sizes = [shape for of_one in types for shape in re.findall(r"f32\[([\d,]*)\]", of_one)]
  return sum(4 * int(np.prod([int(n) for n in shape.split(",") if n])) for shape in sizes)


def small_state():
  """A state without a network, of three numbers that are 0."""
  params = {"segmenter": {"bias": jax.numpy.zeros(3)}}
  return method_state.create_state(params, jax.random.key(0), StageConfig("no_adaptation"), terms=("segmentation",))


def test_steps_are_compiled_with_the_options(monkeypatch):
  monkeypatch.setattr(distributed, "compiler_options", lambda devices: {"xla_no_such_option": True})
  draw, step = (lambda *_, **__: None), (lambda state, batch: (state, {}))
  state = small_state()
  run = distributed.compile_steps(lambda axis_name: step, draw, jax.devices()[:1], streamed=False)
  with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
    run(state, None, jax.random.key(0), 1)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="is about XLA's kernels for CPUs")
def test_convolutions_on_the_cpu_and_their_gradients_do_not_go_to_ynnpack(optimized):
  convolve = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
  loss = lambda x, kernel: (convolve(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC")) ** 2).sum()
  shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((8, 32, 32, 32), (3, 3, 32, 32))]
  options = distributed.compiler_options(jax.devices())
  text = jax.jit(jax.grad(loss, (0, 1)), compiler_options=options).lower(*shapes).compile().as_text()
  assert text.count(" convolution(") == 3
  assert "__ynn_fusion" not in text


def test_normed_products_are_right_with_the_options(optimized):
  # jaxlib 0.10.2 has sums over products of more than 32,768 rows wrong in a form near to this one (jax-ml/jax#39103).
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(2, 160, 120, 16)), rng.normal(size=(1, 1, 16, 8))
  ones, zeros, weights = np.ones(8), np.zeros(8), rng.normal(size=(2, 160, 120, 8))

  def normed(x, kernel, scale, bias):
    product = pointwise(8, use_bias=False).apply({"params": {"kernel": kernel}}, x)
    return InstanceNorm().apply({"params": {"scale": scale, "bias": bias}}, product)

  def with_gradients(weights, *arguments):
    output, gradients = jax.vjp(normed, *arguments)
    return output, *gradients(weights)

  program = jax.jit(with_gradients, compiler_options=distributed.compiler_options(jax.devices()))
  got = program(*(array.astype(np.float32) for array in (weights, x, kernel, ones, zeros)))

  mean = lambda x: x.mean((1, 2), keepdims=True)
  product = x @ kernel[0, 0]
  rate = 1 / np.sqrt(mean(product**2) - mean(product) ** 2 + EPSILON)
  output = rate * (product - mean(product))
  of_product = rate * (weights - mean(weights) - output * mean(weights * output))
  of_kernel = np.einsum("bhwc,bhwd->cd", x, of_product)[None, None]
  sums = (weights * output).sum((0, 1, 2)), weights.sum((0, 1, 2))
  for values, expected in zip(got, (output, of_product @ kernel[0, 0].T, of_kernel, *sums), strict=True):
    np.testing.assert_allclose(values, expected, atol=2e-5 * np.abs(expected).max())


def test_as_many_runs_are_mapped_as_memory_holds():
  config, data, key = small_stage(4), example(), jax.random.key(0)
  state = jax.jit(lambda: supervised.init_state(config, jax.random.key(1)))()
  size = sum(x.nbytes for x in jax.tree.leaves(state))

  def at_once(memory, devices=1):
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": memory})
    return grid.runs_at_once(supervised.make_step(config), draw_of(config), state, data, key, [device] * devices)

  assert at_once(0, devices=3) == 3
  many = at_once(4 << 30)
  assert 1 < many < 0.8 * (4 << 30) / (2 * size)  # a state before and one after a step
  assert at_once(4 << 30, devices=2) == 2 * many


def test_the_axis_is_that_of_the_program():
  """The name under which methods average is the one that compile_steps gives them."""
  names = []
  distributed.compile_steps(lambda axis_name: names.append(axis_name), None, distributed.devices_for(2), streamed=False)
  distributed.compile_steps(lambda axis_name: names.append(axis_name), None, distributed.devices_for(1), streamed=False)
  assert names == [distributed.AXIS, None]


def test_successive_runs_of_a_grid_lie_on_one_device():
  first, second = jax.devices()[:2]
  placed = [sharding.device_set for sharding in grid.grid_placement(4, [first, second])]
  assert placed == [{first}, {first}, {second}, {second}]


@pytest.mark.parametrize("scanned", [False, True])
def test_a_step_of_which_one_metric_is_not_finite_is_counted_and_changes_nothing(scanned):
  """Its loss is finite. A step that was not counted would have the same batch again."""

  def step(state, batch):
    params = jax.tree.map(lambda x: x + batch, state.params)
    return state.replace(step=state.step + 1, params=params), {"loss": jax.numpy.ones(()), "gradient": batch}

  data, draw = jax.numpy.array([1.0, np.nan, 4.0]), lambda data, key, step, axis_name: data[step]
  state = small_state()
  run = distributed.compile_steps(lambda axis_name: step, draw, jax.devices()[:1], streamed=False, scanned=scanned)
  state, metrics = run(state, data, jax.random.key(0), 3)
  assert np.concatenate([np.ravel(line["skipped"]) for line in metrics]).tolist() == [0.0, 1.0, 0.0]
  assert int(state.step) == 3
  np.testing.assert_array_equal(state.params["segmenter"]["bias"], [5.0, 5.0, 5.0])


@pytest.mark.parametrize("scanned", [False, True])
def test_steps_of_a_dispatch_have_their_slices_in_order(scanned):
  step = lambda state, batch: (state.replace(step=state.step + 1), {"loss": batch["image"].mean()})
  draw = lambda slices, key, step, axis_name: slices
  state = small_state()
  run = distributed.compile_steps(lambda axis_name: step, draw, jax.devices()[:1], streamed=True, scanned=scanned)
  _, metrics = run(state, [{"image": np.float32([number])} for number in (3, 1, 2)], jax.random.key(0), 3)
  assert np.concatenate([np.ravel(line["loss"]) for line in metrics]).tolist() == [3.0, 1.0, 2.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_run_of_a_grid_has_its_own_key_and_means_over_its_steps_that_were_not_skipped(mapped, bad):
  step = lambda state, batch: (state.replace(step=state.step + 1), {"loss": batch, "gradient": 0 * batch})
  draw = lambda data, key, step, axis_name=None: data[step] + jax.random.uniform(key)
  state = small_state()
  devices, keys = jax.devices()[:1], jax.random.split(jax.random.key(0), 2)
  runs = grid.make_grid([state, state.replace(step=state.step + 1)], devices, mapped=mapped)
  run = grid.compile_grid(step, draw, devices, mapped=mapped)
  runs, metrics = run(runs, jax.numpy.array([1.0, bad, 4.0, 7.0]), keys, 3)
  drawn = [float(jax.random.uniform(key)) for key in keys]
  np.testing.assert_allclose(metrics["loss"], np.add((2.5, 5.5), drawn), rtol=1e-6)
  np.testing.assert_array_equal(metrics["gradient"], [0, 0])
  assert np.allclose(metrics["skipped"], 1 / 3)
  assert [int(each.step) for each in grid.members(runs)] == [3, 4]


@pytest.mark.slow
def test_many_steps_in_a_dispatch_are_as_many_calls():
  config, data, key, devices = eight_images(rate=1e-4), example(), jax.random.key(2), jax.devices()[:1]
  results = []
  for scanned in (False, True):
    step = partial(vamcei.make_step, config)
    run = distributed.compile_steps(step, draw_of(config), devices, streamed=False, scanned=scanned)
    state = jax.jit(lambda: vamcei.init_state(config, jax.random.key(1)))()
    state, metrics = run(state, data, key, 4)
    stacked = jax.tree.map(lambda *x: np.concatenate([np.ravel(values) for values in x]), *metrics)
    results.append(([stacked], jax.device_get(state.params)))
  assert results[0][0][0]["loss"].shape == (4,)
  compare(*results)


def test_a_dispatch_ends_where_something_is_due():
  every = dict(log_every=8, eval_every=20, checkpoint_every=15)
  settings = TrainConfig(steps=37, steps_per_call=10, **every)
  accelerators = [SimpleNamespace(platform="gpu")]
  ends = [0]
  while ends[-1] < 37:
    ends.append(ends[-1] + steps_to_go(ends[-1], settings, accelerators))
  assert {8, 16, 24, 32, 20, 15, 30, 37} <= set(ends)
  assert max(np.diff(ends)) <= 10
  assert steps_to_go(0, settings, jax.devices("cpu")) == 1


def test_a_flag_of_one_host_is_that_of_all(monkeypatch):
  monkeypatch.setattr(distributed, "on_many_hosts", lambda: True)
  for flags, expected in (([True, False], True), ([False, True], True), ([False, False], False)):
    gather = lambda flag, flags=flags: np.array(flags)
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", gather)
    assert distributed.any_host(flags[0]) is expected


def test_devices_get_equal_shares(monkeypatch):
  class Device:
    def __init__(self, number):
      self.id, self.process_index = number % 4, number // 4

  monkeypatch.setattr(jax, "devices", lambda: [Device(number) for number in (5, 0, 1, 4, 3, 2, 7, 6)])
  monkeypatch.setattr(jax, "device_count", lambda: 8)
  for batch, used in ((8, 8), (16, 8), (12, 6), (10, 5), (3, 3)):
    assert len(distributed.devices_for(batch)) == used
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  assert [4 * d.process_index + d.id for d in distributed.devices_for(8)] == list(range(8))
  with pytest.raises(InputError, match="batch_size=12: must be a multiple of the 8 devices of 2 hosts"):
    distributed.devices_for(12)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  assert distributed.host_share(8) == slice(4, 8)


def test_a_stage_on_two_devices_equals_that_on_one_and_each_resumes_the_other(tmp_path, monkeypatch):
  """Logged losses, norms of gradients and the final parameters, where the second half runs on the other devices."""
  slices = {domain: SimpleNamespace(nbytes=0, load=lambda maps=maps: maps) for domain, maps in example().items()}
  assert len(distributed.devices_for(4)) == 2
  for folder, numbers in (("one", (1, 2)), ("two", (2, 1))):
    for steps, devices in zip((2, 4), numbers, strict=True):
      monkeypatch.setattr(distributed, "devices_for", lambda batch, devices=devices: jax.devices()[:devices])
      train(small_stage(steps), supervised, jax.random.key(0), lambda: slices, lambda *_: {}, tmp_path / folder)
  one, two = (read_log(tmp_path / folder / "metrics.jsonl") for folder in ("one", "two"))
  assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4]
  for ours, theirs in zip(one, two, strict=True):
    compare(([numbers_of(ours)], []), ([numbers_of(theirs)], []))
  states = [last_state(tmp_path / folder / "no_adaptation", small_stage(4)) for folder in ("one", "two")]
  assert distance(*states) < 1e-5  # of some 4e-3 that they have moved


def small_stage(steps):
  """The configuration of a small supervised stage with a batch of 4, which begins alike however many steps it has."""
  config = tiny.get_config()
  config.data.update(size=(16, 16), crop=(16, 16))
  config.optimizer.schedule = "exponential"
  config.train.update(steps=steps, batch_size=4, log_every=1, checkpoint_every=2)
  return resolve(config).stages["no_adaptation"]


def numbers_of(line):
  """The metrics in a line of metrics.jsonl."""
  return {name: value for name, value in line.items() if name not in ("stage", "step", "steps_per_second")}


def last_state(folder, config):
  """The state in the last checkpoint of a stage."""
  abstract = jax.eval_shape(lambda: supervised.init_state(config, jax.random.key(0)))
  with open_checkpoints(folder / "checkpoints", 2) as checkpoints:
    state, damaged = restore_newest(checkpoints, abstract)
  assert not damaged
  assert int(state.step) == config.train.steps
  return state


def distance(a, b):
  """Mean absolute difference of the parameters of two states."""
  flat = lambda state: np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])
  return np.abs(flat(a) - flat(b)).mean()


@pytest.fixture(scope="module")
def one_device(tmp_path_factory, prepared):
  workdir = tmp_path_factory.mktemp("one") / "run"
  finish([start(workdir, prepared)])
  return workdir


@pytest.mark.slow
def test_two_hosts_of_two_devices_train_as_one_device_does(one_device, prepared, tmp_path):
  port = free_port()
  finish([start(tmp_path, prepared, f"--coordinator=127.0.0.1:{port}", "--hosts=2", f"--host={i}") for i in (0, 1)])
  compare_runs(tmp_path, one_device)
  assert (tmp_path / "results.json").exists()
  assert len(list((tmp_path / "vamcei").glob("events.*"))) == 1

  # One device resumes what four devices of two hosts have saved.
  for name in ("vamcei/checkpoints/8", "results.json"):
    target = tmp_path / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()
  (output,) = finish([start(tmp_path, prepared)])
  assert "vamcei: resumes at step 6 of 8 steps" in output
  compare_runs(tmp_path, one_device)
  devices = [session["devices"] for session in read_record(tmp_path)["sessions"]]
  assert [(each["count"], each["hosts"]) for each in devices] == [(4, 2), (1, 1)]


def start(workdir, prepared, *flags):
  """Training by the command line in a process: on two devices if it is one of several hosts, else on one."""
  rates = ("segmenter", "decoders", "discriminator")
  arguments = [
    "--config=tests/configs/tiny.py",
    "--config.stages=('vamcei',)",
    "--config.train.batch_size=8",
    *(f"--config.optimizer.rates.{name}=1e-4" for name in rates),
    f"--config.data.prepared_dir={prepared}",
    f"--workdir={workdir}",
    *flags,
  ]
  xla_flags = f"--xla_force_host_platform_device_count={2 if flags else 1}"
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags}
  pipe = subprocess.PIPE
  return subprocess.Popen(
    command("vamcei_jax.main", *arguments), cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
  )


def finish(processes):
  """The standard outputs of processes, all of which must end well."""
  ended = [process.communicate(timeout=300) for process in processes]
  for process, (_, errors) in zip(processes, ended, strict=True):
    assert process.returncode == 0, errors
  assert not any(output for output, _ in ended[1:])  # the first host alone prints
  return [output for output, _ in ended]


def compare_runs(workdir, other):
  """The losses that two runs have logged, and their final parameters, which Adam moves by the sign of rounding too."""
  ours, theirs = (read_log(folder / "metrics.jsonl") for folder in (workdir, other))
  assert [line["step"] for line in ours] == [line["step"] for line in theirs]
  for name in ("loss", "cross_entropy", "dice_loss", "reconstruction", "prior_kl", "prototypes", "discriminator"):
    got, expected = ([line[name] for line in lines] for lines in (ours, theirs))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
  states = [final_state(folder, "vamcei") for folder in (workdir, other)]
  assert distance(*states) < 1e-5  # of some 4e-4 that they have moved


def free_port():
  with socket.socket() as server:
    server.bind(("127.0.0.1", 0))
    return server.getsockname()[1]


if __name__ == "__main__":
  on_eight_devices()
