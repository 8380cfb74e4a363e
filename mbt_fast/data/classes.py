"""The classes of a task, and how the labels of a manifest are found among them."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

from mbt_fast.data.rows import HEAD
from mbt_fast.errors import InputError

TASKS = ("multilabel", "single", "verb_noun", "multitask")
ONE_HEAD = ("multilabel", "single")
_EPIC = ["verb", "noun"]


class ClassIndex:
    """Finds a label among the names of the classes.

    A label is a name, or else the index of a class. With several heads an index counts within its
    head; see ``head_sizes`` for how classes are named then.

    >>> ClassIndex(["rain", "wind"], "single").find("wind")
    1
    >>> ClassIndex(["verb:take", "noun:pan", "noun:plate"], "verb_noun").find("plate", "noun")
    2

    Args:
        names: The names of all classes, in order.
        task: One of ``TASKS``.

    Attributes:
        heads: The positions of each head's classes.

    Raises:
        InputError: A name occurs twice, or does not fit the task.
    """

    def __init__(self, names: Sequence[str], task: str) -> None:
        """Check the names."""
        self.task = task
        self._index = {name: position for position, name in enumerate(names)}
        if len(self._index) != len(names):
            twice = next(name for k, name in enumerate(names) if self._index[name] != k)
            raise InputError(f"each class must have a name of its own, got {twice!r} twice")
        sizes = head_sizes(names, task)
        ends = accumulate(sizes.values())
        self.heads = {
            head: range(end - size, end)
            for (head, size), end in zip(sizes.items(), ends, strict=True)
        }

    def __len__(self) -> int:
        """Number of classes."""
        return len(self._index)

    def find(self, label: str, head: str = "") -> int | None:
        """The class of a label, counted over all classes; ``None`` if there is none.

        Args:
            label: A name, or an index as text.
            head: One of ``heads``.
        """
        found = self._index.get(class_name(head, label))
        if found is None and label.isdecimal() and int(label) < len(self.heads[head]):
            return self.heads[head][int(label)]
        return found


def head_sizes(names: Sequence[str], task: str) -> dict[str, int]:
    """How many classes each head of a model has, in the order of the outputs.

    The outputs of a task with one head belong together; the head has no name. ``"verb_noun"`` and
    ``"multitask"`` have several, a softmax each. There is one list of classes all the same, head
    after head, and the name of each begins with its head's: ``"verb:take"``, ``"noun:plate"``.

    >>> head_sizes(["sum:even", "sum:odd", "shown:1"], "multitask")
    {'sum': 2, 'shown': 1}

    Raises:
        InputError: A name has no head, the classes of a head do not stand together, or those of
            ``"verb_noun"`` are not verbs and then nouns.
        ValueError: The task is unknown.
    """
    check_task(task)
    if task in ONE_HEAD:
        return {"": len(names)}
    sizes: dict[str, int] = {}
    for name in names:
        head, _, label = name.partition(":")
        if not (head and label):
            raise InputError(f"each class of task {task!r} must be HEAD:NAME, got {name!r}")
        if head in sizes and head != next(reversed(sizes)):
            raise InputError(f"classes of a head must stand together, got {name!r} after others")
        sizes[head] = sizes.get(head, 0) + 1
    if task == "verb_noun" and list(sizes) != _EPIC:
        raise InputError(
            f"classes of task 'verb_noun' must be verbs and then nouns, got {' and '.join(sizes)}"
        )
    return sizes


def class_name(head: str, label: str) -> str:
    """What a list of classes calls a class."""
    return f"{head}:{label}" if head else label


def label_column(head: str, task: str) -> str:
    """The column of a manifest that has the labels of a head."""
    if task in ONE_HEAD:
        return "labels"
    return head if task == "verb_noun" else HEAD + head


def heads_of_columns(columns: Iterable[str], task: str) -> list[str]:
    """The heads of a task, of a manifest with these columns of labels."""
    check_task(task)
    if task == "multitask":
        return [name.removeprefix(HEAD) for name in columns if name.startswith(HEAD)]
    return _EPIC if task == "verb_noun" else [""]


def check_task(task: str) -> None:
    """Refuse an unknown task.

    Raises:
        ValueError: It is not one of ``TASKS``.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")


def sorted_names(labels: Iterable[str]) -> list[str]:
    """The classes that labels name: in order of the alphabet, or of number if all are indices.

    >>> sorted_names(["wind", "rain"]), sorted_names(["2", "0"])
    (['rain', 'wind'], ['0', '1', '2'])
    """
    labels = sorted(set(labels))
    if labels and all(label.isdecimal() for label in labels):
        return [str(index) for index in range(max(map(int, labels)) + 1)]
    return labels
