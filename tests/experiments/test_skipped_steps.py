from experiments.grid_training import count_skipped


def test_only_a_dispatch_without_any_good_step_adds_to_the_skipped_steps_of_a_run():
  assert count_skipped([3, 3, 0], [1.0, 0.5, 0.0], 10) == [13, 0, 0]
