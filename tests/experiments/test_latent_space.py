import json

import numpy as np


def test_a_run_leaves_picture_and_numbers(run_command, tiny_run):
  finished = run_command("experiments.latent_space", f"--workdir={tiny_run}")
  assert finished.returncode == 0, finished.stderr
  measured = json.loads((tiny_run / "latent_space.json").read_text())
  assert list(measured) == ["no_adaptation", "vamcei"]
  assert len(measured["vamcei"]["global_kl"]["paper"]) == 2  # latent scales
  mean = np.mean(measured["vamcei"]["global_kl"]["paper"])
  assert f"after (vamcei): global KL {mean:.3f} nats" in finished.stdout
  assert (tiny_run / "latent_space.png").stat().st_size > 10_000


def test_a_run_that_was_not_adapted_is_refused(run_command, tmp_path):
  finished = run_command("experiments.latent_space", f"--workdir={tmp_path}")
  assert finished.returncode == 2
  assert "config.json" in finished.stderr
