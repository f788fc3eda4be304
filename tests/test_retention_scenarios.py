"""What has gone wrong in other checkpoint managers, replayed save by save."""

from datetime import timedelta

from histories import NAN, collected_after_every_save, kept, saved, scored

from ckptmgr.naming import StepNaming
from ckptmgr.retention import KeepBest, KeepLast, plan


def test_file_times_on_a_network_mount_do_not_make_the_newest_look_old():
    # transformers#26961, #27138: checkpoint-1000 was removed seconds after it was written.
    hours = {600: 4, 800: 9, 1000: 0}

    saves = [saved(step, after=timedelta(hours=hour)) for step, hour in hours.items()]

    assert collected_after_every_save(KeepLast(2), saves) == [800, 1000]


def test_a_fresh_run_in_a_folder_of_higher_steps_keeps_its_own_first_step():
    # transformers#37260, unsloth-zoo#782: ordered by number, the new run's only checkpoint goes and a stale one stays.
    old = [saved(step, step, run="first") for step in (900, 1000)]
    fresh = [saved(100, 1001, run="second")]

    assert collected_after_every_save(KeepLast(1), old + fresh) == [100]
    assert collected_after_every_save(KeepLast(2), old + fresh) == [1000, 100]


def test_a_limit_of_one_with_a_best_step_does_not_delete_everything():
    # transformers#25136, #11748, #35070.
    saves = scored(s500=0.2, s1000=0.6, s1500=0.9)

    assert collected_after_every_save(KeepLast(1), saves) == [1500]
    assert collected_after_every_save(KeepLast(1) | KeepBest("loss"), saves) == [500, 1500]


def test_the_best_steps_have_a_budget_beside_that_of_the_last():
    # transformers#41899, #11769.
    saves = scored(s1=0.1, s2=0.2, s3=0.3, s4=0.4, s5=0.5)

    assert collected_after_every_save(KeepLast(2) | KeepBest("loss", n=2), saves) == [1, 2, 4, 5]


def test_a_worsening_metric_does_not_evict_the_newest_step():
    # orbax#526: 100, 200, 300 were left, and 500 could not be restored.
    saves = scored(s100=0.1, s200=0.2, s300=0.3, s400=0.4, s500=0.5)

    assert collected_after_every_save(KeepBest("loss", n=3), saves) == [100, 200, 300, 500]


def test_nan_accuracies_do_not_push_out_the_best_one():
    # Orbax sorts NaN among the numbers, and deleted the 0.9.
    saves = scored(s1=0.9, s2=NAN, s3=0.5, s4=NAN, s5=0.7)

    assert collected_after_every_save(KeepBest("loss", n=2, mode="max"), saves) == [1, 5]


def test_names_that_sort_as_text_do_not_choose_the_wrong_step():
    # accelerate#1163, FARM#282: checkpoint_9 sorts after checkpoint_10.
    naming = StepNaming("checkpoint_{step}")
    names = sorted(naming.format(step) for step in range(8, 12))

    steps = [saved(naming.parse(name)) for name in names]

    assert kept(KeepLast(2), steps) == [10, 11]


def test_a_limit_holds_through_a_long_run_and_its_restarts():
    # diffusers#2466, Lightning#5173: more than k remained, at once or after a resume.
    before = [saved(step) for step in range(0, 200, 10)]
    resumed = [saved(step, 1000 + step, run="second") for step in range(190, 400, 10)]

    assert collected_after_every_save(KeepLast(3), before + resumed) == [370, 380, 390]


def test_the_best_and_not_the_first_k_steps_are_kept_for_a_rising_score():
    # Lightning#19844, #2141.
    saves = scored(s1=0.1, s2=0.2, s3=0.3, s4=0.4, s5=0.0)

    assert collected_after_every_save(KeepBest("loss", n=2, mode="max"), saves) == [3, 4, 5]


def test_the_best_value_is_remembered_across_restarts():
    # keras#17012: a worse model overwrote the best one after a restart.
    before = scored(s1=0.9, s2=0.2)
    resumed = [saved(step, run="second", metrics={"loss": 0.5}) for step in (3, 4, 5)]

    assert collected_after_every_save(KeepBest("loss"), before + resumed) == [2, 5]


def test_a_manager_counts_only_names_of_its_own_naming():
    # tensorflow#34234: checkpoints that another manager wrote in the same folder were deleted.
    names = ["best-5", "step-10", "step-20", "step-20-backup", "old-step-30"]
    ours = StepNaming("step-{step}")

    steps = [saved(step) for name in names if (step := ours.parse(name)) is not None]

    assert [info.step for info in plan(KeepLast(1), steps).dropped] == [10]


def test_a_step_saved_below_the_newest_is_the_newest():
    # orbax#527: it was silently not saved.
    saves = [saved(100, 1), saved(200, 2), saved(150, 3)]

    assert collected_after_every_save(KeepLast(1), saves) == [150]


def test_an_overwritten_step_is_as_new_as_its_overwrite():
    saves = [saved(1, 1), saved(2, 2), saved(3, 3), saved(2, 4)]

    assert collected_after_every_save(KeepLast(2), saves) == [3, 2]
