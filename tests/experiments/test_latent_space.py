"""Latents of both domains before and after adaptation: picture and distances."""

import json

import numpy as np
import pytest

from experiments.latent_space import compare_latents
from vamcei_jax.errors import InputError


def test_a_run_gets_a_picture_and_distances(tiny_run, capsys):
  distances = compare_latents(tiny_run)
  assert json.loads((tiny_run / "latent_space.json").read_text()) == distances
  assert list(distances) == ["no_adaptation", "vamcei"]
  assert len(distances["vamcei"]["global_kl"]["paper"]) == 1  # latent scale
  mean = np.mean(distances["vamcei"]["global_kl"]["paper"])
  assert f"after (vamcei): global KL {mean:.3f} nats" in capsys.readouterr().out
  assert (tiny_run / "latent_space.png").stat().st_size > 10_000


def test_a_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(InputError, match="config.json"):
    compare_latents(tmp_path)
