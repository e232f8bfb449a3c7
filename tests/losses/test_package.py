"""The table in the docstring of the package."""

import inspect
import re
from pathlib import Path

from vamcei_jax import losses


def test_the_table_names_every_loss_its_file_and_its_equations():
  _, *rows = [re.split(" {2,}", line.strip()) for line in losses.__doc__.split("\n\n")[1].splitlines()]
  assert sorted(function for _, _, function, _ in rows) == sorted(losses.__all__)
  for equations, _, function, file in rows:
    module = inspect.getmodule(getattr(losses, function))
    assert Path(module.__file__).name == file
    first, last = re.search(r"VAMCEI eqs?\. (\d+)(?:–(\d+))?:|()CycleGAN", module.__doc__).group(1, 2)
    if equations == "–":
      assert first is None
    else:
      numbers = [int(number) for number in equations.split("–")]
      assert int(first) <= numbers[0] <= numbers[-1] <= int(last or first)
