"""``ckptmgr ls``: the steps of a run."""

from ckptmgr.cli.output import AsJSON, complain, emit_json, emit_table, metrics, origin, size, step_json, when
from ckptmgr.cli.storing import Storage
from ckptmgr.cli.target import DEFAULT_NAMING, RunURL, Template, run


def list_steps(url: RunURL, template: Template = DEFAULT_NAMING, storage: Storage = None, as_json: AsJSON = False) -> None:
    """List the steps of a run, in the order of their saves.

    The last one is the latest. Those of other tools are marked foreign.
    """
    with run(url, template, storage=storage) as manager:
        steps = manager.steps()
    if as_json:
        emit_json({"run": url, "steps": [step_json(info) for info in steps]})
    elif not steps:
        complain(f"no committed step in {url!r} with a name like {template!r}")
    else:
        rows = [
            (
                str(info.step),
                when(info.created),
                size(info.nbytes),
                origin(info),
                metrics(info.metrics),
                " ".join(sorted(info.pins)),
            )
            for info in steps
        ]
        emit_table(("step", "saved", "size", "backend", "metrics", "pins"), rows, numbers=("step", "size"))
