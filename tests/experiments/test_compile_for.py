"""Programs for TPUs, compiled without one: their collectives, and the errors of the command."""

import dataclasses

import jax
import pytest

from experiments.compile_for import collective_bytes, describe_chips, lower
from vamcei_jax.errors import InputError

PROGRAM = """
ENTRY %main {
  %all-reduce.1 = f32[3,5]{1,0:T(4,128)S(1)} all-reduce(%a), replica_groups={{0,1}}, metadata={op_name="all-reduce(x)"}
  %all-reduce-start.2 = (bf16[7]{0:S(1)}, pred[]{:S(1)}) all-reduce-start(%b, %all-reduce.1), to_apply=%add
  %all-reduce-done.2 = (bf16[7]{0:S(1)}, pred[]{:S(1)}) all-reduce-done(%all-reduce-start.2)
  ROOT %add.3 = f32[3,5]{1,0} add(%all-reduce.1, %d)
}
"""


def test_collectives_are_counted_once_with_the_bytes_of_their_results():
  assert collective_bytes(PROGRAM) == [4 * 3 * 5, 2 * 7 + 1]


@pytest.mark.parametrize("topology", ["gpu:8", "v5e", "v5e:9x9"])
def test_an_unknown_topology_is_refused_in_one_line(topology):
  with pytest.raises(InputError, match=f"--topology={topology}: must be v5e or v6e with 1x1, 2x2, 2x4, as v5e:2x4"):
    describe_chips(topology)


def test_the_table_is_not_written_over_the_numbers(run_command):
  finished = run_command("experiments.compile_for", "--config=tests/configs/tiny.py", "--output=table.md")
  assert finished.returncode == 2
  assert finished.stderr.strip().endswith("--output=table.md: must end in .json")


@pytest.fixture
def quick_compiler():
  """Without the compiler's search for the fastest tiles, which takes minutes and changes no collective."""
  effort = jax.config.jax_exec_time_optimization_effort
  jax.config.update("jax_exec_time_optimization_effort", -1.0)
  yield
  jax.config.update("jax_exec_time_optimization_effort", effort)


# Needs the extra `tpu`: .venv/bin/python -m pytest -m slow tests/experiments/test_compile_for.py
@pytest.mark.slow
def test_the_demo_compiles_for_tpus_and_sends_the_same_bytes_whatever_the_batch(quick_compiler):
  pytest.importorskip("libtpu")
  from experiments.measurements import step_config

  chips, config = describe_chips("v5e:2x4"), step_config("demo")
  larger = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=2 * config.train.batch_size))
  alone = lower(config, "step", chips).compile().as_text()
  assert collective_bytes(alone) == []
  sent, sent_by_more = (
    collective_bytes(lower(each, "all chips", chips).compile().as_text()) for each in (config, larger)
  )
  assert sum(sent) == sum(sent_by_more) > 0
