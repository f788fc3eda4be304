from datetime import timedelta

from histories import collected_after_every_save, histories, kept, reasons, retentions, saved
from hypothesis import example, given
from hypothesis import strategies as st

from ckptmgr import retention as retention_module
from ckptmgr.retention import KeepBytes, KeepEvery, Retention, plan
from ckptmgr.step import StepInfo


@given(retentions, histories())
def test_newest_and_pinned_steps_are_always_kept(retention: Retention, steps: list[StepInfo]):
    survivors = kept(retention, steps)

    assert {info.step for info in steps[-1:]} <= set(survivors)
    assert {info.step for info in steps if info.pins} <= set(survivors)


@given(retentions, retentions, histories())
def test_a_union_keeps_what_either_keeps_for_the_reasons_of_both(one: Retention, other: Retention, steps: list[StepInfo]):
    both = reasons(one | other, steps)

    assert set(kept(one | other, steps)) == set(kept(one, steps)) | set(kept(other, steps))
    for policy in (one, other):
        assert all(set(reasons(policy, steps)[step]) <= set(both[step]) for step in kept(policy, steps))


@given(retentions, histories(), st.randoms(use_true_random=False))
def test_a_plan_does_not_depend_on_the_order_of_its_input(retention: Retention, steps: list[StepInfo], random):
    shuffled = random.sample(steps, len(steps))

    assert str(plan(retention, shuffled)) == str(plan(retention, steps))


@given(retentions, histories())
def test_every_step_has_one_verdict_with_a_reason_oldest_save_first(retention: Retention, steps: list[StepInfo]):
    verdicts = list(plan(retention, steps))

    assert [verdict.info for verdict in verdicts] == steps
    assert all(verdict.reasons and all(verdict.reasons) for verdict in verdicts)


@given(retentions, histories(), st.data())
def test_a_kept_step_stays_kept_when_dropped_ones_are_gone(retention: Retention, steps: list[StepInfo], data):
    first = plan(retention, steps)
    gone = {info.step for info in first.dropped if data.draw(st.booleans())}

    left = [info for info in steps if info.step not in gone]

    assert {info.step for info in first.kept} <= set(kept(retention, left))


@given(retentions, histories())
def test_collecting_twice_in_a_row_drops_nothing_more(retention: Retention, steps: list[StepInfo]):
    once = plan(retention, steps).kept

    assert plan(retention, once).dropped == []


@given(retentions, histories(forward_clock=True), st.data())
def test_deleting_steps_by_hand_costs_no_other_step_its_place(retention: Retention, steps: list[StepInfo], data):
    deleted = {info.step for info in steps if data.draw(st.booleans())}

    left = [info for info in steps if info.step not in deleted]

    assert set(kept(retention, steps)) - deleted <= set(kept(retention, left))


@given(retentions, histories(forward_clock=True))
@example(KeepEvery(10), [saved(15, 1), saved(12, 2), saved(10, 3)])
def test_collecting_after_every_save_leaves_what_collecting_once_would(retention: Retention, steps: list[StepInfo]):
    # Room that a big dropped step leaves behind is used by KeepBytes for older ones that are still there.
    makes_room = any(isinstance(policy, KeepBytes) for policy in retention.policies)

    left = set(collected_after_every_save(retention, steps))

    assert left >= set(kept(retention, steps)) if makes_room else left == set(kept(retention, steps))


@given(retentions)
def test_repr_is_what_was_typed(retention: Retention):
    names = {**vars(retention_module), "timedelta": timedelta}

    assert eval(repr(retention), names) == retention
