"""The PyTorch twin against the JAX step: the same parameters, images and noise give the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs import tiny
from vamcei_jax import losses
from vamcei_jax.methods import distillation, vamcei
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.prng import example_keys

torch = pytest.importorskip("torch")

from experiments.torch_twin import UNet, global_alignment, load_jax_params, make_bare_unet, make_twin  # noqa: E402

IMAGES, HEIGHT, WIDTH = 3, 40, 24  # of a domain; halves of these sizes are odd in the discriminator
TERMS = ["loss", "segmentation", "cross_entropy", "dice_loss", "reconstruction", "prior_kl", "global_alignment"]
TERMS += ["prototypes", "generator", "discriminator"]


@pytest.fixture(scope="module")
def config():
  config = tiny.get_config()
  config.data.crop = (HEIGHT, WIDTH)
  config.model.update(widths=(8, 16, 24), latent_scales=2)
  config.loss.weights.global_alignment = (1e-3, 3e-3)
  config.loss.weights.reconstruction = 0.5
  config.loss.weights.prior_kl = 0.2
  config.loss.prototypes.confidence = 0.3  # an untrained network has small probabilities
  config.optimizer.clip = 1e6  # so that Adam's first moment is a tenth of the gradient
  config.train.steps = 1000
  return resolve(config).stages["vamcei"]


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  images = lambda: rng.uniform(size=(IMAGES, HEIGHT, WIDTH, 1)).astype(np.float32)
  labels = rng.integers(0, 4, (IMAGES, HEIGHT, WIDTH))
  labels[labels == 3] = rng.integers(0, 2)  # the source lacks a class
  return {"source": {"image": images(), "label": labels}, "target": {"image": images()}}


@pytest.fixture(scope="module")
def state(config):
  """A state in the ramp of the unsupervised terms, with parameters off their initial values."""
  state = jax.jit(lambda: vamcei.init_state(config, jax.random.key(1)))()
  params = jax.tree_util.tree_map_with_path(perturbed, state.params)
  return state.replace(step=jnp.int32(1), params=params, ema_params={"segmenter": params["segmenter"]})


@pytest.fixture(scope="module")
def step(config):
  return jax.jit(vamcei.make_step(config))


@pytest.fixture(scope="module")
def arguments(config, state, batch):
  """The arguments of the twin for the state's next step: the batch, and the noise that the JAX step draws."""
  keys = example_keys(jax.random.fold_in(state.key, state.step), jnp.arange(2 * IMAGES))
  noise = []
  for scale, width in enumerate(config.model.widths[: config.model.latent_scales]):
    shape = (HEIGHT // 2**scale, WIDTH // 2**scale, width)
    draw = lambda key, scale=scale, shape=shape: jax.random.normal(jax.random.fold_in(key, scale), shape)
    noise.append(nchw(jax.vmap(draw)(keys)))
  return nchw(batch["source"]["image"]), torch.tensor(batch["source"]["label"]), nchw(batch["target"]["image"]), noise


def twin_of(config, state):
  """A twin with the parameters and the step of a state; its optimizers are new."""
  twin = make_twin(config, "cpu")
  twin.steps = int(state.step)
  for name, params in state.params.items():
    load_jax_params(getattr(twin, name), params)
  for average, parameter in zip(twin.ema, twin.segmenter.parameters(), strict=True):
    average.copy_(parameter.detach())
  return twin


def with_model(config, **fields):
  """The configuration with other fields of the section `model`."""
  return dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))


def perturbed(path, parameter):
  """Parameters off their initial zeros and ones; up-convolutions have one bias a channel, as in PyTorch."""
  rng = np.random.default_rng(sum(map(ord, str(path))))
  if "Upsample" in str(path) and parameter.ndim == 1:
    return parameter + np.tile(0.1 * rng.normal(size=parameter.size // 4), 4).astype(np.float32)
  return parameter + (0.1 * rng.normal(size=parameter.shape)).astype(np.float32)


def nchw(images):
  return torch.tensor(np.asarray(images)).movedim(-1, 1).contiguous()


def biases_of_upsampling(change, params):
  """The parameters with their up-convolutions' biases, (4, width) by pixel, changed."""
  applies = lambda path, x: "Upsample" in str(path) and x.ndim == 1
  changed = lambda x: jnp.broadcast_to(change(x.reshape(4, -1)), (4, x.size // 4)).ravel()
  return jax.tree_util.tree_map_with_path(lambda path, x: changed(x) if applies(path, x) else x, params)


def test_losses_and_gradients_are_those_of_the_jax_step(config, state, step, batch, arguments):
  """The learning rate is zero, so that the second pass of the twin has the segmenter of the JAX step."""
  after, metrics = step(state.replace(learning_rates=jax.tree.map(jnp.zeros_like, state.learning_rates)), batch)
  twin, reference = twin_of(config, state), make_twin(config, "cpu")
  for group in (group for optimizer in twin.optimizers.values() for group in optimizer.param_groups):
    group["lr"] = 0.0
  terms = twin(*arguments)
  assert sorted(terms) == sorted(TERMS)
  for term in TERMS:
    np.testing.assert_allclose(terms[term], metrics[term], rtol=1e-4, err_msg=term)
  for network in ("segmenter", "decoders", "discriminator"):
    gradient = jax.tree.map(lambda moment: moment / (1.0 - config.optimizer.b1), after.opt_state[network][1].mu)
    load_jax_params(getattr(reference, network), biases_of_upsampling(lambda pixels: pixels.sum(0), gradient))
    expected = dict(getattr(reference, network).named_parameters())
    largest = max(want.norm() for want in expected.values())
    for name, parameter in getattr(twin, network).named_parameters():
      # By norm: where the input of a ReLU is zero but for rounding, single pixels may count in one library only.
      error = (parameter.grad - expected[name]).norm()
      assert error <= 3e-3 * expected[name].norm() + 1e-5 * largest, (network, name, error, expected[name].norm())


def test_parameters_and_their_average_move_as_in_jax(config, state, step, batch, arguments):
  after, _ = step(state, batch)
  twin, expected, average = twin_of(config, state), make_twin(config, "cpu"), make_twin(config, "cpu")
  before = [p.detach().clone() for p in twin.segmenter.parameters()]
  twin(*arguments)
  # In JAX the biases of an up-convolution differ by pixel after the step; they are not compared.
  load_jax_params(expected.segmenter, biases_of_upsampling(lambda pixels: pixels[0], after.params["segmenter"]))
  load_jax_params(average.segmenter, biases_of_upsampling(lambda pixels: pixels[0], after.ema_params["segmenter"]))
  rate, agree = config.optimizer.rates["segmenter"], []
  for (name, ours), theirs, mean, mean_theirs, old in zip(
    twin.segmenter.named_parameters(),
    expected.segmenter.parameters(),
    twin.ema,
    average.segmenter.parameters(),
    before,
    strict=True,
  ):
    if name.startswith("up.") and name.endswith("bias"):
      continue
    assert (ours - old).abs().max() > 0.1 * rate, name
    assert (mean - old).abs().max() > 0.1 * rate, name
    agree += [(ours - theirs).abs() < 0.02 * rate, (mean - mean_theirs).abs() < 0.02 * rate]
  # Adam's first step is ±rate for each parameter: equal signs of the gradients give equal steps.
  assert torch.cat([a.flatten() for a in agree]).float().mean() > 0.99


@pytest.mark.parametrize("estimator", ["paper", "pairwise"])
def test_the_alignment_by_pairs_equals_that_by_moments(estimator):
  rng = np.random.default_rng(1)
  gaussians = [rng.normal(size=(4, 50)).astype(np.float32) for _ in range(4)]
  expected = losses.global_alignment(*map(jnp.asarray, gaussians), estimator=estimator)
  got = global_alignment(*map(torch.tensor, gaussians), estimator)
  np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize("norm", ["instance", "group"])
def test_the_plain_unet_is_that_of_the_student(config, batch, norm):
  config = with_model(config, norm=norm)
  images = batch["target"]["image"]
  student = distillation.make_student(config)
  params = jax.jit(student.init)(jax.random.key(2), images)["params"]
  params = jax.tree_util.tree_map_with_path(perturbed, params)
  unet = UNet(4, config.model.widths, norm)
  load_jax_params(unet, params)
  got = unet(nchw(images)).detach().movedim(1, -1)
  np.testing.assert_allclose(got, jax.jit(student.apply)({"params": params}, images), rtol=1e-4, atol=1e-4)


def test_up_convolutions_whose_bias_differs_by_pixel_are_refused(config):
  layer = {"kernel": np.zeros((24, 64)), "bias": np.arange(64.0)}
  with pytest.raises(ValueError, match="one a channel"):
    load_jax_params(UNet(4, config.model.widths).up[1], layer)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_steps_on_drawn_noise_learn_in_either_dtype_and_layout(config, arguments, dtype, channels_last):
  config = with_model(config, dtype=dtype)
  torch.manual_seed(0)
  twin = make_twin(config, "cpu", channels_last=channels_last)
  *drawn, _ = arguments
  history = [twin(*drawn) for _ in range(12)]
  assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for step in history for loss in step.values())
  assert history[-1]["segmentation"] < 0.97 * history[0]["segmentation"]
  run = make_bare_unet(config, "cpu", channels_last=channels_last)
  assert torch.isfinite(run(arguments[0]))
