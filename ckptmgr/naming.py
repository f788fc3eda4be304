"""Names of steps: which name a step gets among the files of a run, and which step a name means.

The law: ``parse(format(step)) == step`` for every step that has a name, and nothing but a whole name is ever parsed:
``step-100-backup`` is not step 100.
"""

import functools
import itertools
import operator
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, SupportsIndex

from ckptmgr.step import JSON

NAME_NBYTES = 255  # the longest file name that every file system takes

_STEP_SPEC = re.compile(r"(0[1-9][0-9]?)?d?")
_UNSAFE = re.compile(r'[/\\<>:"|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.IGNORECASE)  # devices on Windows

_INTEGER = r"[-+]?[0-9]+"
_REAL = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|inf|nan|INF|NAN)%?"
_VALUES = {"d": _INTEGER, **dict.fromkeys("eEfFgG%", _REAL)}  # by the last letter of a placeholder's format
_TEXT = ".+?"


@dataclass(frozen=True, slots=True)
class StepNaming:
    """Names after a template with one ``{step}``, as ``"step-{step:08d}"``.

    ``{step}`` may have a zero-padded width; numbers of any other width are parsed all the same. Further placeholders,
    as ``{epoch:04d}`` or ``{val_loss:.2f}``, are filled from the step's metadata, and match what their format gives (an
    integer, a real number, otherwise any text).

    Raises:
        ValueError: there is not exactly one ``{step}``, names could not be parsed back, or some file system or object
            store would not take them.
    """

    template: str = "step-{step:08d}"

    def __post_init__(self) -> None:
        _pattern(self.template)
        fields = _fields(self.template)
        for digit in range(10):
            _check_name("".join(field.text + str(digit) * (field.name is not None) for field in fields), self.template)

    def format(self, step: SupportsIndex, metadata: Mapping[str, JSON] | None = None) -> str:
        """The name of ``step``; ``metadata`` fills the template's other placeholders.

        Raises:
            TypeError: the step is not an integer.
            ValueError: the step is negative, a placeholder has no fitting value, or the name would be unsafe, too long
                or read back as another step.
        """
        number = checked_step(step)
        values = {**(metadata or {}), "step": number}
        try:
            name = self.template.format_map(values)
        except KeyError as error:
            raise ValueError(f"naming {self.template!r} needs metadata[{error.args[0]!r}] for step {number}") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"naming {self.template!r} has no fitting metadata for step {number}: {error}") from error
        _check_name(name, self.template)
        if self.parse(name) != number:
            raise ValueError(f"naming {self.template!r} gives {name!r}, which does not read back as step {number}")
        return name

    @property
    def needs_metadata(self) -> bool:
        """Whether names depend on more than the step."""
        return any(field.name not in (None, "step") for field in _fields(self.template))

    def parse(self, name: str) -> int | None:
        """The step that ``name`` means, or None if it is not a name of this naming."""
        match = _pattern(self.template).fullmatch(name) if len(name) <= NAME_NBYTES else None
        return int(match["step"]) if match else None


def checked_step(step: SupportsIndex) -> int:
    """``step`` as an int: any integer from 0 on, numpy's included.

    Raises:
        TypeError: not an integer; a bool is none.
        ValueError: negative.
    """
    if isinstance(step, bool) or not hasattr(step, "__index__"):
        found = repr(step) if isinstance(step, str | float | bool) else f"a {type(step).__name__}"  # it may be a whole state
        raise TypeError(f"a step is an integer, not {found}")
    number = operator.index(step)
    if number < 0:
        raise ValueError(f"a step is 0 or more, not {number}")
    return number


class _Field(NamedTuple):
    """Literal text and the placeholder after it; ``name`` is None after the last one."""

    text: str
    name: str | None
    spec: str | None
    conversion: str | None


def _fields(template: str) -> list[_Field]:
    try:
        return [_Field(*field) for field in string.Formatter().parse(template)]
    except ValueError as error:
        raise ValueError(f"naming template {template!r}: {error}") from error


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """What ``template`` gives, with each placeholder as a group of its name."""
    fields = _fields(template)
    names = [field.name for field in fields if field.name is not None]
    if names.count("step") != 1 or len(set(names)) < len(names):
        raise ValueError(f"a naming template has {{step}} once and no other placeholder twice: {template!r}")
    if any(before.name is not None and not after.text for before, after in itertools.pairwise(fields)):
        raise ValueError(f"a naming template needs text between two placeholders, to tell them apart: {template!r}")
    return re.compile("".join(re.escape(field.text) + _group(field, template) for field in fields))


def _group(field: _Field, template: str) -> str:
    name, spec = field.name, field.spec or ""
    if name is None:
        return ""
    if not name.isidentifier() or field.conversion or "{" in spec:
        raise ValueError(f"a placeholder is a plain name with a format, as {{epoch:04d}}: {template!r}")
    if name != "step":
        return f"(?P<{name}>{_VALUES.get(spec[-1:], _TEXT)})"
    if not _STEP_SPEC.fullmatch(spec):
        raise ValueError(f"{{step}} takes only a zero-padded width of at most 99 digits, as {{step:08d}}: {template!r}")
    return "(?P<step>[0-9]+)"


def _check_name(name: str, template: str) -> None:
    if problem := _problem(name):
        raise ValueError(f"naming {template!r} gives the name {name!r}, which {problem}")


def _problem(name: str) -> str | None:
    """Why some file system or object store would not take ``name`` as it is; None if all do."""
    if name.startswith("."):
        return "starts with a dot"
    if name.endswith(".") or name != name.strip():
        return "ends with a dot, or starts or ends with a space"
    if not name.isprintable():
        return "has characters that cannot be shown"
    if unsafe := _UNSAFE.search(name):
        return f"has {unsafe[0]!r} in it"
    if _RESERVED.fullmatch(name):
        return "is reserved on Windows"
    if len(name.encode()) > NAME_NBYTES:
        return f"is longer than {NAME_NBYTES} bytes"
    return None


# Templates of other tools' names. They are read, never written.
FOREIGN = (
    StepNaming("{step}"),  # Orbax
    StepNaming("step_{step}"),
    StepNaming("step-{step}"),  # torchtitan
    StepNaming("ckpt-{step}"),  # tf.train.CheckpointManager
    StepNaming("model.ckpt-{step}"),  # TensorFlow 1 Saver
    StepNaming("checkpoint-{step}"),  # Transformers
    StepNaming("checkpoint_{step}"),  # Flax, Accelerate
    StepNaming("iter_{step}"),  # Megatron-LM
    StepNaming("global_step_{step}"),
    StepNaming("global_step{step}"),  # DeepSpeed
    StepNaming("cp-{step}.ckpt"),  # the Keras tutorials, whose number is an epoch
    StepNaming("cp-{step}.weights"),
    StepNaming("cp-{step}.keras"),
    StepNaming("epoch_{epoch:d}_step_{step}"),
    StepNaming("epoch_{epoch:d}_step_{step}_loss={loss:f}"),
    StepNaming("epoch={epoch:d}-step={step}"),  # Lightning
    StepNaming("epoch={epoch:d}-step={step}.ckpt"),
)


def parse_foreign(name: str) -> int | None:
    """The step that ``name`` means in one of the usual schemes of other tools, or None."""
    return next((step for naming in FOREIGN if (step := naming.parse(name)) is not None), None)
