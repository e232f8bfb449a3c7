"""Tables of results as csv files."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from vamcei_jax.files import write_text


def write_rows(path: Path, rows: Sequence[Mapping]) -> None:
  """Writes rows of the same columns as a csv file, with four decimals."""
  text = io.StringIO()
  writer = csv.DictWriter(text, rows[0], lineterminator="\n")
  writer.writeheader()
  writer.writerows({name: f"{v:.4f}" if isinstance(v, float) else v for name, v in row.items()} for row in rows)
  write_text(path, text.getvalue())
