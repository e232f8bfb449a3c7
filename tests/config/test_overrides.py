"""Overrides on the command line of fields that may be None."""

import pytest

from vamcei_jax.cli import split_optional


@pytest.mark.parametrize("section", ["", "stage.locate."])
def test_a_field_that_may_be_none_gets_a_value_of_its_kind(section):
  flag = f"--config.{section}data.spacing"
  for text, value in (("1.5", 1.5), ("None", None), ("2", 2)):
    rest, optional = split_optional(["--config=configs/folder.py", f"{flag}={text}", "--config.seed=1"])
    assert rest == ["--config=configs/folder.py", "--config.seed=1"]
    assert optional == {f"{section}data.spacing": value}


def test_a_folder_may_have_the_name_of_a_value():
  _, optional = split_optional(["--config=a.py", "--config.data.root=12"])
  assert optional == {"data.root": "12"}
