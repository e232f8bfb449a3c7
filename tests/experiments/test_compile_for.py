"""Programs for TPUs, compiled without one: their collectives, and the errors of the command."""

import dataclasses

import jax
import pytest

from experiments.compile_for import collective_bytes, describe_chips, lower, main_memory_bytes
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


MOVES = """
%fused (x: f32[8,100]) -> bf16[100,3] {
  %x = f32[8,100]{1,0:T(8,128)} parameter(0)
  ROOT %y = bf16[100,3]{0,1:T(4,128)(2,1)} slice(%x)
}

%body.3 (b: f32[8,128]) -> f32[8,128] {
  %b = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %negate.3 = f32[8,128]{1,0:T(8,128)S(1)} negate(%b)
}

ENTRY %main.7 (p.1: f32[8,100]) -> f32[8,100] {
  %p.1 = f32[8,100]{1,0:T(8,128)} parameter(0)
  %copy-start.1 = (f32[8,100]{1,0:T(8,128)S(1)}, f32[8,100]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%p.1)
  %copy-done.1 = f32[8,100]{1,0:T(8,128)S(1)} copy-done(%copy-start.1)
  %slice-start.1 = ((f32[8,100]{1,0:T(8,128)}), f32[2,100]{1,0:T(2,128)S(1)}, s32[]{:S(2)}) slice-start(%p.1), slice={}
  %slice-done.1 = f32[2,100]{1,0:T(2,128)S(1)} slice-done(%slice-start.1)
  %fusion.1 = bf16[100,3]{0,1:T(4,128)(2,1)} fusion(%copy-done.1, /*index=1*/%slice-done.1), kind=kLoop, calls=%fused
  %while.1 = f32[8,128]{1,0:T(8,128)} while(%copy-done.1), condition=%less, body=%body.3
  ROOT %add.1 = f32[8,100]{1,0:T(8,128)} add(%p.1, %copy-done.1), metadata={op_name="jit(f)/add"}
}
"""


def test_bytes_of_the_main_memory_are_counted_with_padding_and_without_fusions_and_the_memory_of_the_chip():
  tile = 8 * 128 * 4
  expected = {"copy": tile, "slice": 2 * 128 * 4, "fusion": 128 * 4 * 2, "body": tile, "add": 2 * tile}
  assert main_memory_bytes(MOVES) == sum(expected.values())


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
  alone = lower(config, "step", chips).compile()
  assert collective_bytes(alone.as_text()) == []
  # The state and the images lie in main memory: a step reads them.
  assert main_memory_bytes(alone.as_text()) > alone.memory_analysis().argument_size_in_bytes
  sent, sent_by_more = (
    collective_bytes(lower(each, "all chips", chips).compile().as_text()) for each in (config, larger)
  )
  assert sum(sent) == sum(sent_by_more) > 0
