"""The table of prepared data."""

from vamcei_jax.pipeline.preparation import prepare_run


def test_the_table_names_the_grid_the_patients_and_their_masks(tiny_config, capsys):
  """Of data that are not resampled to a spacing; tests/test_own_data.py has those that are."""
  assert tiny_config.data.spacing is None
  assert prepare_run(tiny_config)
  lines = capsys.readouterr().out.splitlines()
  described = [line.split(", in ")[0] for line in lines if " about the " in line]
  grid = "32 x 32 pixels, 0.333 of the files' grid whatever its spacing, about the image"
  assert described == [f"source: phantom/bssfp, {grid}", f"target: phantom/lge, {grid}"]
  rows = [line.split()[:3] for line in lines if line.startswith("  ")]
  expected = [["split", "volumes", "masks"], ["train", "2", "2"], ["validation", "1", "1"], ["test", "2", "2"]]
  assert [row for row in rows if row != expected[0]] == expected[1:] * 2
