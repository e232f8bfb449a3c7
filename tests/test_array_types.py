"""The tests check types, shapes and ranks of the arrays of losses, models and methods at run time."""

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from vamcei_jax import losses
from vamcei_jax.methods.supervised import deep_segmentation
from vamcei_jax.models.decoder import Decoder
from vamcei_jax.models.layers import average_pool
from vamcei_jax.models.unet import UNet
from vamcei_jax.prng import example_keys

LOGITS = jnp.zeros((2, 4, 4, 3))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_loss_refuses_arrays_whose_shapes_disagree(compiled):
  segmentation = jax.jit(losses.segmentation) if compiled else losses.segmentation
  with pytest.raises(TypeCheckError, match="targets"):
    segmentation(LOGITS, jnp.zeros((2, 4, 4, 4)))
  with pytest.raises(TypeCheckError, match="targets"):
    segmentation(LOGITS, jnp.zeros((2, 4, 4)))


def test_a_loss_refuses_integers():
  with pytest.raises(TypeCheckError, match="targets"):
    losses.segmentation(LOGITS, jnp.zeros((2, 4, 4, 3), jnp.int32))


def test_a_model_refuses_arrays_whose_shapes_disagree():
  with pytest.raises(TypeCheckError, match="class_map"):
    jax.eval_shape(Decoder((4, 4)).init, jax.random.key(0), LOGITS, jnp.zeros((2, 2, 2, 4)))
  with pytest.raises(TypeCheckError, match="images"):
    jax.eval_shape(UNet(4, (4, 8)).init, jax.random.key(0), LOGITS)
  with pytest.raises(TypeCheckError, match="widths"):
    UNet(4, [4.0, 8.0])


def test_a_method_refuses_what_is_no_array():
  with pytest.raises(TypeCheckError, match="labels"):
    deep_segmentation((), [[0, 1]])


def test_keys_are_keys_and_positions_integers():
  with pytest.raises(TypeCheckError, match="key"):
    example_keys(jnp.zeros(2, jnp.uint32), jnp.arange(3))
  with pytest.raises(TypeCheckError, match="positions"):
    example_keys(jax.random.key(0), jnp.zeros(3))


def test_windows_need_a_rank_of_four():
  with pytest.raises(TypeCheckError, match="x"):
    average_pool(jnp.zeros((4, 4, 1)), 2)


def test_arrays_of_different_ranks_do_not_broadcast():
  with pytest.raises(ValueError, match="rank_promotion"):
    jnp.zeros((2, 3)) + jnp.zeros(3)
