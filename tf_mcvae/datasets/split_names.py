"""Names of splits as people write them: folders, files and keys called train, val, Testing, ...

What is named as a split is taken as that split or refused: mixed into the training images, or left
out, it would make numbers that look right.
"""

import re
from collections.abc import Iterable

SPLITS = ("train", "validation", "test")

_WORDS = {
    **dict.fromkeys(("train", "training", "trainset", "trn"), "train"),
    **dict.fromkeys(
        ("validation", "validate", "valid", "val", "valset", "dev", "devset"), "validation"
    ),
    **dict.fromkeys(("test", "testing", "testset", "tst"), "test"),
}
# They may stand for validation or for test.
_UNCLEAR = ("eval", "evaluation", "evalset", "holdout", "heldout")
# They say nothing about the split.
_PLAIN = ("x", "image", "images", "img", "imgs", "data", "dataset", "set", "split")

_BORDER = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z]+")
_MEND = f"rename it to one of {', '.join(SPLITS)}, or move it elsewhere"


def _words(name: str) -> list[str]:
    return [word.lower() for word in _BORDER.split(name) if word]


def splits_said(name: str) -> list[str]:
    """Returns the splits that occur in a name, sorted; an unclear word counts as both it may mean.

    Example:
        >>> splits_said("mnist-Valid.tfrecord-00000-of-00001"), splits_said("latest")
        (['validation'], [])
    """
    words = _words(name)
    unclear = SPLITS[1:] if any(word in _UNCLEAR for word in words) else ()
    return sorted({*unclear, *(_WORDS[word] for word in words if word in _WORDS)})


def is_only_split(name: str) -> bool:
    """Returns whether a name has no words but those of splits, like `X_val` and `train2017`."""
    return bool(splits_said(name)) and all(
        word in _WORDS or word in _UNCLEAR or word in _PLAIN for word in _words(name)
    )


def is_only_data(name: str) -> bool:
    """Returns whether a name says that it is data, and of no split, like `x` and `images`."""
    return all(word in _PLAIN for word in _words(name)) and bool(_words(name))


def find_splits(names: Iterable[str], kind: str, where: object) -> dict[str, str]:
    """Returns the names that stand for splits, by split.

    A name with further words (`test_tube`) is an ordinary one, unless others stand for splits.

    Args:
        names: All names in one place.
        kind: The kind of thing that has the names, in the singular, for errors.
        where: The place, for errors.

    Raises:
        ValueError: If a name is unclear, or two stand for one split.

    Example:
        >>> find_splits(["Train", "val", "labels"], "folder", "data")
        {'train': 'Train', 'validation': 'val'}
    """
    named = sorted(name for name in names if splits_said(name))
    only = [name for name in named if is_only_split(name)]
    if not only and len({split for name in named for split in splits_said(name)}) < 2:
        return {}
    found: dict[str, str] = {}
    for name in named:
        said = splits_said(name)
        if name not in only or len(said) > 1:
            raise ValueError(
                f"It is unclear which split a {kind} is: {_MEND}. Received: {name!r} in {where!r}"
            )
        if said[0] in found:
            raise ValueError(
                f"Two {kind}s are named as the {said[0]} split: remove one of them. "
                f"Received: {found[said[0]]!r} and {name!r} in {where!r}"
            )
        found[said[0]] = name
    return {split: found[split] for split in SPLITS if split in found}


def split_of_file(name: str, where: object) -> str | None:
    """Returns the split that occurs in a file's name; None if none does.

    Raises:
        ValueError: If several do.
    """
    said = splits_said(name)
    if len(said) > 1:
        raise ValueError(
            f"It is unclear which split a file is: {_MEND}. Received: {name!r} in {where!r}"
        )
    return said[0] if said else None
