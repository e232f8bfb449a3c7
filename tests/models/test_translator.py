import jax
import jax.numpy as jnp
import numpy as np

from vamcei_jax.models.layers import NORMS
from vamcei_jax.models.translator import PatchDiscriminator, Translator

INIT_KEY = jax.random.key(1, impl="rbg")  # XLA compiles an initialisation from keys of this kind four times as fast


def test_translations_have_their_image_s_shape_and_range():
  images = 10.0 * jax.random.normal(jax.random.key(0), (2, 24, 32, 1))
  translator = Translator(width=4, blocks=2)
  got, _ = jax.jit(translator.init_with_output)(INIT_KEY, images)
  assert got.shape == images.shape
  assert 0.0 <= float(got.min()) < float(got.max()) <= 1.0


def test_the_published_size_has_the_published_3_by_3_convolutions():
  """Two that halve the resolution, and two in each of nine residual blocks."""
  shapes = jax.eval_shape(Translator(width=64, blocks=9).init, jax.random.key(0), jnp.zeros((1, 64, 64, 1)))
  got = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]) if leaf.ndim == 4 and leaf.shape[:2] == (3, 3))
  assert got == 9 * (64 * 128 + 128 * 256 + 18 * 256 * 256)


def test_a_residual_block_adds_to_what_it_gets():
  """A block whose last norm gives zeros changes nothing, and any other block changes the image."""
  images = jax.random.uniform(jax.random.key(0), (1, 16, 16, 1))
  expected, variables = Translator(width=2, blocks=0).init_with_output(INIT_KEY, images)
  params = Translator(width=2, blocks=1).init(INIT_KEY, images)["params"]
  same = {"Conv_5": "Conv_3", "InstanceNorm_5": "InstanceNorm_3", "InstanceNorm_6": "InstanceNorm_4"}
  block = {name: params[name] for name in ("Conv_3", "Conv_4", "InstanceNorm_3", "InstanceNorm_4")}
  rest = {name: variables["params"][same.get(name, name)] for name in params if name not in block}
  zeros = jax.tree.map(jnp.zeros_like, params["InstanceNorm_4"])
  translate = lambda block: Translator(width=2, blocks=1).apply({"params": rest | block}, images)
  np.testing.assert_allclose(translate(block | {"InstanceNorm_4": zeros}), expected, atol=1e-6)
  assert float(jnp.abs(translate(block) - expected).max()) > 1e-3


def test_one_answer_sees_70_by_70_pixels(monkeypatch):
  """Without the norms, which see the whole image."""
  monkeypatch.setitem(NORMS, "none", lambda dtype: lambda x: x)
  discriminator = PatchDiscriminator(width=2, norm="none")
  image = jax.random.uniform(jax.random.key(0), (1, 128, 128, 1))
  variables = jax.jit(discriminator.init)(INIT_KEY, image)
  row, column = (size // 2 for size in jax.eval_shape(discriminator.apply, variables, image).shape[1:3])
  gradient = jax.jit(jax.grad(lambda x: discriminator.apply(variables, x)[0, row, column, 0]))(image)
  rows = np.flatnonzero(np.abs(gradient[0, :, :, 0]).sum(1))
  assert rows.max() - rows.min() + 1 == 70
