"""Latents of both domains before and after adaptation: picture and distances."""

import json

import numpy as np
import pytest

from experiments import latent_space
from vamcei_jax.errors import InputError


def test_a_run_gets_a_picture_and_distances(run_command, tiny_run):
  finished = run_command("experiments.latent_space", f"--workdir={tiny_run}")
  assert finished.returncode == 0, finished.stderr
  distances = json.loads((tiny_run / "latent_space.json").read_text())
  assert list(distances) == ["no_adaptation", "vamcei"]
  assert len(distances["vamcei"]["global_kl"]["paper"]) == 2  # latent scales
  mean = np.mean(distances["vamcei"]["global_kl"]["paper"])
  assert f"after (vamcei): global KL {mean:.3f} nats" in finished.stdout
  assert (tiny_run / "latent_space.png").stat().st_size > 10_000


def test_a_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(InputError, match="config.json"):
    latent_space.compare_latents(tmp_path)
