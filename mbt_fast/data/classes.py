"""The classes of a task, and how the labels of a manifest are found among them."""

from collections.abc import Iterable, Sequence

from mbt_fast.errors import InputError

TASKS = ("multilabel", "single", "verb_noun")
PREFIX = {"labels": "", "verb": "verb:", "noun": "noun:"}  # in a list of classes, by column


class ClassIndex:
    """Finds a label among the names of the classes.

    A label is a name, or else the index of a class. With verbs and nouns there is one list, as
    the model has one head: first each verb as ``"verb:take"``, then each noun as ``"noun:plate"``.
    An index counts within the verbs or the nouns.

    >>> ClassIndex(["rain", "wind"]).find("wind")
    1
    >>> ClassIndex(["verb:take", "noun:pan", "noun:plate"]).find("plate", "noun")
    2

    Args:
        names: The names of all classes, in order.

    Raises:
        InputError: A name occurs twice, or a verb stands after a noun.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Check the names."""
        self._index = {name: position for position, name in enumerate(names)}
        if len(self._index) != len(names):
            twice = next(name for k, name in enumerate(names) if self._index[name] != k)
            raise InputError(f"each class must have a name of its own, got {twice!r} twice")
        self.n_verbs = count_verbs(names)

    def __len__(self) -> int:
        """Number of classes."""
        return len(self._index)

    def find(self, label: str, column: str = "labels") -> int | None:
        """The class of a label, counted over all classes; ``None`` if there is none.

        Args:
            label: A name, or an index as text.
            column: ``"labels"``, ``"verb"`` or ``"noun"``.
        """
        found = self._index.get(PREFIX[column] + label)
        if found is None and label.isdecimal():
            first = self.n_verbs if column == "noun" else 0
            last = self.n_verbs if column == "verb" else len(self)
            if first + int(label) < last:
                return first + int(label)
        return found


def count_verbs(names: Sequence[str]) -> int:
    """How many classes are verbs; these stand first.

    Raises:
        InputError: A verb stands after a noun.
    """
    verbs = [name.startswith(PREFIX["verb"]) for name in names]
    if not all(verbs[: sum(verbs)]):
        raise InputError("names of verbs must come first, got a verb after another class")
    return sum(verbs)


def sorted_names(labels: Iterable[str]) -> list[str]:
    """The classes that labels name: in order of the alphabet, or of number if all are indices.

    >>> sorted_names(["wind", "rain"]), sorted_names(["2", "0"])
    (['rain', 'wind'], ['0', '1', '2'])
    """
    labels = sorted(set(labels))
    if labels and all(label.isdecimal() for label in labels):
        return [str(index) for index in range(max(map(int, labels)) + 1)]
    return labels
