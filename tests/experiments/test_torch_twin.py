"""The PyTorch twin against the JAX step: the same parameters, images and noise give the same numbers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import vamcei_paper
from tests.configs import tiny
from tests.methods import published
from tests.methods.test_published_step import STORED
from vamcei_jax import losses
from vamcei_jax.methods import distillation, vamcei
from vamcei_jax.methods.state import make_optimizer
from vamcei_jax.models.unet import _DROPOUT
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.prng import example_keys

torch = pytest.importorskip("torch")

from experiments.torch_twin import UNet, _schedule, global_alignment, load_jax_params, make_bare_unet, make_twin  # noqa: E402

TERMS = ["loss", "segmentation", "cross_entropy", "dice_loss", "reconstruction", "prior_kl", "global_alignment"]
TERMS += ["prototypes", "generator", "discriminator"]
# Relative error of gradients, of shallow and of deep networks. In the twin alone, parameters that differ by 1e-7 change
# the gradients of decoders with six ReLUs by up to 3.6e-2.
SHALLOW, DEEP = 3e-3, 2e-2


@pytest.fixture(scope="module", params=["lean", "published"])
def config(request):
  """The lean layers of the house, and those of the published code, at a small size."""
  return {"lean": lean, "published": published.small_config}[request.param]()


def lean():
  config = tiny.get_config()
  config.data.crop = published.SHAPE  # whose halves are odd in the discriminator
  config.model.update(widths=(8, 16, 24), latent_scales=2)
  config.loss.weights.global_alignment = (1e-3, 3e-3)
  config.loss.weights.reconstruction = 0.5
  config.loss.weights.prior_kl = 0.2
  config.loss.prototypes.confidence = 0.3  # an untrained network has small probabilities
  config.optimizer.clip = 1e6  # so that Adam's first moment is a tenth of the gradient
  config.train.steps = 1000
  return resolve(config).stages["vamcei"]


@pytest.fixture(scope="module")
def batch(config):
  return published.make_batch(config)


@pytest.fixture(scope="module")
def state(config):
  return published.make_state(config)


@pytest.fixture(scope="module")
def step(config):
  return jax.jit(vamcei.make_step(config))


@pytest.fixture(scope="module")
def arguments(config, state, batch):
  return arguments_of(config, state, batch)


def arguments_of(config, state, batch):
  """The arguments of the twin for the state's next step: the batch, and what the JAX step draws."""
  height, width = config.data.crop
  keys = example_keys(jax.random.fold_in(state.key, state.step), jnp.arange(2 * config.train.batch_size))
  noise, dropped = [], []
  for scale, channels in enumerate(config.model.widths[:-1]):
    shape = (height // 2**scale, width // 2**scale, channels)
    draw = lambda key, scale=scale, shape=shape: jax.random.normal(jax.random.fold_in(key, scale), shape)
    if scale < config.model.latent_scales:
      noise.append(nchw(jax.vmap(draw)(keys)))
    rate = config.model.dropout
    kept = lambda key, scale=scale, channels=channels, rate=rate: jax.random.bernoulli(
      jax.random.fold_in(key, _DROPOUT + scale), 1.0 - rate, (channels,)
    )
    dropped.append(torch.tensor(np.asarray(jax.vmap(kept)(keys) / (1.0 - rate))))
  images = [nchw(batch[domain]["image"]) for domain in ("source", "target")]
  return images[0], torch.tensor(np.asarray(batch["source"]["label"], np.int64)), images[1], noise, dropped


def twin_of(config, state):
  """A twin with the parameters and the step of a state; its optimizers are new."""
  twin = make_twin(config, "cpu")
  twin.steps = int(state.step)
  for name, params in state.params.items():
    load_jax_params(getattr(twin, name), params)
  for average, parameter in zip(twin.ema, twin.segmenter.parameters(), strict=True):
    average.copy_(parameter.detach())
  return twin


def still_twin(config, state):
  """A twin with a learning rate of zero, so that its second pass has the segmenter of the JAX step."""
  twin = twin_of(config, state)
  for group in (group for optimizer in twin.optimizers.values() for group in optimizer.param_groups):
    group["lr"] = 0.0
  return twin


def with_model(config, **fields):
  """The configuration with other fields of the section `model`."""
  return dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))


def nchw(images):
  return torch.tensor(np.asarray(images)).movedim(-1, 1).contiguous()


def gradient_norm(network):
  """The norm of a network's gradient, which is too small to be clipped."""
  return torch.stack([parameter.grad.norm() for parameter in network.parameters()]).norm()


def second_moment(twin, network):
  """The sum of Adam's second moments of a network."""
  optimizer = twin.optimizers["discriminator" if network == "discriminator" else "generator"]
  return sum(float(optimizer.state[p]["exp_avg_sq"].sum()) for p in getattr(twin, network).parameters())


def biases_of_upsampling(change, params):
  """The parameters with the biases of up-convolutions that differ by pixel, (4, width), changed."""
  applies = lambda path, x: "Upsample" in str(path) and "Dense" in str(path) and x.ndim == 1
  changed = lambda x: jnp.broadcast_to(change(x.reshape(4, -1)), (4, x.size // 4)).ravel()
  return jax.tree_util.tree_map_with_path(lambda path, x: changed(x) if applies(path, x) else x, params)


def assert_steps_agree(config, state, step, batch, arguments, limit=SHALLOW):
  """Asserts that losses, gradients and their norms are equal; `limit` is the largest error of an array's gradient."""
  after, metrics = step(state.replace(learning_rates=jax.tree.map(jnp.zeros_like, state.learning_rates)), batch)
  twin, reference = still_twin(config, state), make_twin(config, "cpu")
  terms = twin(*arguments)
  assert sorted(terms) == sorted(TERMS)
  for term in TERMS:
    np.testing.assert_allclose(terms[term], metrics[term], rtol=1e-4, err_msg=term)
  for network in ("segmenter", "decoders", "discriminator"):
    # Adam's first moment, without the weight decay that is added to the gradient.
    decay = 0.0 if network in config.optimizer.constant else config.optimizer.weight_decay
    moments = optax.tree.get(after.opt_state[network], "mu")
    moment_of = lambda moment, old, decay=decay: moment / (1.0 - config.optimizer.b1) - decay * old
    gradient = jax.tree.map(moment_of, moments, state.params[network])
    second = sum(float(np.sum(x)) for x in jax.tree.leaves(optax.tree.get(after.opt_state[network], "nu")))
    np.testing.assert_allclose(second_moment(twin, network), second, rtol=1e-2, err_msg=network)
    load_jax_params(getattr(reference, network), biases_of_upsampling(lambda pixels: pixels.sum(0), gradient))
    expected = dict(getattr(reference, network).named_parameters())
    largest = max(want.norm() for want in expected.values())
    norm = gradient_norm(getattr(twin, network))
    np.testing.assert_allclose(norm, metrics[f"gradient_{network}"], rtol=1e-3, err_msg=network)
    for name, parameter in getattr(twin, network).named_parameters():
      # By norm: where the input of a ReLU is zero but for rounding, single pixels may count in one library only.
      error = (parameter.grad - expected[name]).norm()
      largest_error = DEEP if network == "decoders" and config.model.decoder_widths else limit
      assert error <= largest_error * expected[name].norm() + 1e-5 * largest, (
        network,
        name,
        error,
        expected[name].norm(),
      )


def test_losses_and_gradients_are_those_of_the_jax_step(config, state, step, batch, arguments):
  assert_steps_agree(config, state, step, batch, arguments)


def test_learning_rates_are_those_of_the_jax_step(config):
  for network in vamcei.NETWORKS:
    optimizer = make_optimizer(config, network)
    start = optimizer.init(jnp.zeros(()))
    for step in (0, 1, 390, 391, 900):
      # The first step of Adam is as large as its rate.
      change, _ = optimizer.update(jnp.ones(()), (*start[:-1], start[-1]._replace(count=step)), jnp.zeros(()))
      assert _schedule(config, network)(step) == pytest.approx(-float(change), rel=1e-5)


def test_stored_numbers_of_the_published_step_are_those_of_the_twin():
  config = published.small_config()
  state, batch = published.make_state(config), published.make_batch(config)
  twin = still_twin(config, state)
  got = {name: float(value) for name, value in twin(*arguments_of(config, state, batch)).items()}
  got |= {f"gradient_{name}": float(gradient_norm(getattr(twin, name))) for name in vamcei.NETWORKS}
  stored = json.loads(STORED.read_text(encoding="utf-8"))
  assert stored == pytest.approx(got, rel=1e-4), json.dumps(got, indent=2)


@pytest.mark.slow
def test_the_published_step_is_that_of_the_twin():
  """At the size of configs/vamcei_paper.py."""
  config = resolve(vamcei_paper.get_config()).stages["vamcei"]
  state, batch = published.make_state(config), published.make_batch(config)
  assert_steps_agree(config, state, jax.jit(vamcei.make_step(config)), batch, arguments_of(config, state, batch), DEEP)


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
  expected = losses.global_alignment(*map(jnp.asarray, gaussians), estimator=estimator, guarded=True)
  got = global_alignment(*map(torch.tensor, gaussians), estimator)
  np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize("config", ["lean"], indirect=True)
@pytest.mark.parametrize("norm", ["instance", "group"])
def test_the_plain_unet_is_that_of_the_student(config, batch, norm):
  config = with_model(config, norm=norm)
  images = batch["target"]["image"]
  student = distillation.make_student(config)
  params = jax.jit(student.init)(jax.random.key(2), images)["params"]
  params = jax.tree_util.tree_map_with_path(published.perturbed, params)
  unet = UNet(4, config.model.widths, norm)
  load_jax_params(unet, params)
  got = unet(nchw(images)).detach().movedim(1, -1)
  np.testing.assert_allclose(got, jax.jit(student.apply)({"params": params}, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", ["lean"], indirect=True)
def test_up_convolutions_whose_bias_differs_by_pixel_are_refused(config):
  layer = {"kernel": np.zeros((24, 64)), "bias": np.arange(64.0)}
  with pytest.raises(ValueError, match="one a channel"):
    load_jax_params(UNet(4, config.model.widths).up[1], layer)


@pytest.mark.parametrize("config", ["lean"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_steps_on_drawn_noise_learn_in_either_dtype_and_layout(config, arguments, dtype, channels_last):
  config = with_model(config, dtype=dtype)
  torch.manual_seed(0)
  twin = make_twin(config, "cpu", channels_last=channels_last)
  drawn = arguments[:3]
  history = [twin(*drawn) for _ in range(12)]
  assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for step in history for loss in step.values())
  assert history[-1]["segmentation"] < 0.97 * history[0]["segmentation"]
  run = make_bare_unet(config, "cpu", channels_last=channels_last)
  assert torch.isfinite(run(arguments[0]))
