"""Programs for TPUs that are not there: what the compiler's text says, and what the chips send to each other."""

import dataclasses

import jax
import pytest

from experiments.compile_for import collective_bytes, describe_chips, lower, memory_bytes
from vamcei_jax.errors import InputError

PROGRAM = """HloModule step

%fused (p: f32[100]) -> f32[100] {
  %p = f32[100]{0} parameter(0)
  ROOT %n = f32[100]{0} negate(%p)
}

%body (state: (f32[100], s32[])) -> (f32[100], s32[]) {
  %state = (f32[100]{0:T(128)}, s32[]{:T(128)}) parameter(0)
  %row = f32[100]{0:T(128)} get-tuple-element(%state), index=0
  %near = f32[100]{0:T(128)S(1)} fusion(%row), kind=kLoop, calls=%fused
  %far = bf16[100]{0:T(128)} convert(%near), metadata={op_name="%row"}
  ROOT %next = (f32[100]{0:T(128)}, s32[]{:T(128)}) tuple(%row, %row)
}

ENTRY %main (a: f32[3,5]) -> f32[3,5] {
  %a = f32[3,5]{1,0:T(4,128)} parameter(0)
  %copy-start.1 = (f32[3,5]{1,0:T(4,128)S(1)}, f32[3,5]{1,0:T(4,128)}, u32[]{:S(2)}) copy-start(%a)
  %copy-done.1 = f32[3,5]{1,0:T(4,128)S(1)} copy-done(%copy-start.1)
  %slice-start.1 = ((f32[3,5]{1,0}), f32[1,5]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:1], [0:5]}
  %all-reduce.1 = f32[3,5]{1,0:T(4,128)S(1)} all-reduce(%copy-done.1), replica_groups={{0,1}}
  %all-reduce-start.2 = (bf16[7]{0:S(1)}, pred[]{:S(1)}) all-reduce-start(%all-reduce.1), to_apply=%add
  %all-reduce-done.2 = (bf16[7]{0:S(1)}, pred[]{:S(1)}) all-reduce-done(%all-reduce-start.2)
  %while.4 = (f32[100]{0}, s32[]) while(%tuple.5), condition=%condition, body=%body
  ROOT %add.3 = f32[3,5]{1,0} add(%all-reduce.1, %a)
}
"""


def test_collectives_are_counted_once_with_the_bytes_of_their_results():
  assert collective_bytes(PROGRAM) == [4 * 3 * 5, 2 * 7 + 1]


def test_the_main_memory_has_what_is_read_and_written_outside_the_vector_memory():
  body = 4 * 100 + 2 * 100  # reads the row, writes `far`
  entry = 60 + 20 + 60 + 60  # reads of the copy, the slice and the sum; the sum's result
  assert memory_bytes(PROGRAM) == body + entry


def test_an_unknown_topology_is_refused_in_one_line():
  with pytest.raises(InputError, match="--topology=gpu:8: begin with v4, v5e, v5p, v6e, as in v5e:2x4"):
    describe_chips("gpu:8")


@pytest.fixture
def quick_compiler():
  """Without the compiler's search for the fastest tiles, which takes minutes and changes no collective."""
  effort = jax.config.jax_exec_time_optimization_effort
  jax.config.update("jax_exec_time_optimization_effort", -1.0)
  yield
  jax.config.update("jax_exec_time_optimization_effort", effort)


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
