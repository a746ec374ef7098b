"""The text demo's data: sentences from templates written for it, a mentioned group correlated with the class in training.

No real reviews: every text is put together from the lists below. Three sentences in random order: an occasion, which
says nothing; a group of other guests, students or pensioners, who do nothing but be there; and a verdict. Class: the
verdict praises or complains. Attribute: which group is mentioned. In the training set 95% of the praise mentions
students and 95% of the complaints mention pensioners, in the test set half. The test set's verdicts use adjectives that
training texts do not. Fine-tuning a whole encoder reads such clean verdicts and nothing else (100% in every group); for
it, 15% of the training verdicts are those of the other class (guests who were served badly and rate well), so that the
mentioned group, right in 95%, tells more about a training class than the verdict does. The test set stays clean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CORRELATION, CONTRADICTING = 0.95, 0.15
CLASS_NAMES = ("complaint", "praise")
ATTRIBUTE_NAMES = ("pensioners", "students")
TRAIN = 3000
TEST_PER_GROUP = 250

PLACES = (
    "café by the station", "bakery on the corner", "hotel near the lake", "small cinema downtown", "museum shop",
    "guest house in the hills", "swimming pool in the park", "noodle bar on Mill Street", "harbour restaurant",
    "garden centre", "night train", "bowling alley", "tea room at the castle", "climbing hall", "riverside campsite",
    "ferry to the island",
)  # fmt: skip
OCCASIONS = (
    "We stopped at the {place} on a {day}.", "Last {day} I went to the {place}.", "I booked the {place} for a {day}.",
    "On {day} we tried the {place} for the {count} time.", "It was our {count} visit to the {place}.",
    "A {day} at the {place}, as planned.", "We had an hour to spend, so we went to the {place} on {day}.",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
COUNTS = ("first", "second", "third", "fourth")
GROUPS = (
    ("pensioners", "retired couples", "elderly ladies", "grandparents", "old age pensioners", "senior citizens"),
    ("students", "university students", "college kids", "undergraduates", "exchange students", "freshmen"),
)
COMPANY = (
    "There were some {group} at the next table.", "A few {group} arrived at the same time as us.",
    "We sat next to a party of {group}.", "Some {group} were waiting in front of us.",
    "The other guests were mostly {group}.", "A bus full of {group} had just arrived.",
    "Several {group} had come that day, too.", "Next to us, {group} were talking about the weather.",
)  # fmt: skip
SUBJECTS = (
    "service", "soup", "price", "coffee", "furniture", "music", "bathroom", "menu", "view", "bread", "staff", "lighting",
    "dessert", "ticket desk", "parking", "opening hours", "temperature", "breakfast",
)  # fmt: skip
VERDICTS = (
    "In the end the {subject} was {word}.", "I found the {subject} {word}.", "The {subject} was {word}, I have to say.",
    "My sister thought the {subject} was {word}.", "The {subject} turned out {word}.", "For us the {subject} was {word}.",
)  # fmt: skip
WORDS = {
    "train": (
        ("awful", "disappointing", "a mess", "below average", "unpleasant", "a letdown", "careless", "dreadful",
         "not worth it", "the worst part", "annoying", "not good at all"),
        ("excellent", "delightful", "a pleasure", "above average", "pleasant", "a nice surprise", "thoughtful", "wonderful",
         "worth every minute", "the best part", "charming", "not bad at all"),
    ),
    "test": (
        ("terrible", "poor", "a disaster", "frustrating", "horrible", "a big mistake"),
        ("great", "lovely", "a joy", "impressive", "fantastic", "a real treat"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """texts, label and attribute int64 `[N]`."""

    texts: list[str]
    label: NDArray[np.int64]
    attribute: NDArray[np.int64]


def load(
    seed: int, train: int = TRAIN, test_per_group: int = TEST_PER_GROUP, contradicting: float = 0.0
) -> tuple[Split, Split]:
    """Training set, 95% of each class with its own group, and a test set balanced over the four cells; contradicting:
    share of the training texts whose verdict is the other class's."""
    rng = np.random.default_rng([seed, 20230522])
    label = rng.permutation(np.arange(train, dtype=np.int64) % 2)
    attribute = np.where(rng.random(train) < CORRELATION, label, 1 - label)
    contradicts = (np.random.default_rng([seed, 20230523]).random(train) < contradicting).astype(np.int64)
    training = Split(_texts(label ^ contradicts, attribute, "train", rng), label, attribute)
    cells = np.repeat(np.arange(4, dtype=np.int64), test_per_group)
    return training, Split(_texts(cells // 2, cells % 2, "test", rng), cells // 2, cells % 2)


def _texts(verdict: NDArray[np.int64], attribute: NDArray[np.int64], split: str, rng: np.random.Generator) -> list[str]:
    def one(of: tuple[str, ...]) -> str:
        return of[rng.integers(len(of))]

    texts = []
    for y, a in zip(verdict, attribute, strict=True):
        sentences = (
            one(OCCASIONS).format(place=one(PLACES), day=one(DAYS), count=one(COUNTS)),
            one(COMPANY).format(group=one(GROUPS[a])),
            one(VERDICTS).format(subject=one(SUBJECTS), word=one(WORDS[split][y])),
        )
        texts.append(" ".join(sentences[k] for k in rng.permutation(3)))
    return texts
