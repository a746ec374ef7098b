"""Texts of the demo: sentences from templates. In training, the mentioned group of people and the class are correlated.

There are no real reviews. A text has three sentences in random order: an occasion, a group of other guests (students or
pensioners), and an opinion. Only the opinion determines the class: complaint or praise. The attribute is the mentioned
group. In the training set, 95% of the praise mentions students and 95% of the complaints mention pensioners. In the test
set, it is 50%. The adjectives of the test set do not occur in the training set.

An encoder that is fully fine-tuned learns such clear opinions and ignores the group (100% accuracy in every group).
Therefore `contradicting` replaces 15% of the training opinions by the opposite one. Then the group predicts a training
label (95%) better than the opinion does (85%). The test set does not change.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spurmix.cli.demo.split import DemoSplit

CORRELATION = 0.95
"""Fraction of training texts that mention the group of their class."""
CONTRADICTING = 0.15
"""Fraction of training texts with the opposite opinion, if the whole encoder is fine-tuned."""
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
OPINIONS = (
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


def load(
    seed: int, train: int = TRAIN, test_per_group: int = TEST_PER_GROUP, contradicting: float = 0.0
) -> tuple[DemoSplit[list[str]], DemoSplit[list[str]]]:
    """Make the texts.

    Args:
        seed: Random seed.
        train: Number of training texts.
        test_per_group: Number of test texts per group.
        contradicting: Fraction of training texts with the opposite opinion.

    Returns:
        The training set and the test set.
    """
    rng = np.random.default_rng([seed, 20230522])
    label = rng.permutation(np.arange(train, dtype=np.int64) % 2)
    attribute = np.where(rng.random(train) < CORRELATION, label, 1 - label)
    contradicts = (np.random.default_rng([seed, 20230523]).random(train) < contradicting).astype(np.int64)
    training = DemoSplit(_write_texts(label ^ contradicts, attribute, "train", rng), label, attribute, np.arange(train))
    group = np.repeat(np.arange(4, dtype=np.int64), test_per_group)
    texts = _write_texts(group // 2, group % 2, "test", rng)
    return training, DemoSplit(texts, group // 2, group % 2, np.arange(group.size))


def _write_texts(
    opinion: NDArray[np.int64], attribute: NDArray[np.int64], split: str, rng: np.random.Generator
) -> list[str]:
    """Write a text for each opinion (0: complaint, 1: praise) and mentioned group."""

    def pick(options: tuple[str, ...]) -> str:
        return options[rng.integers(len(options))]

    texts = []
    for y, a in zip(opinion, attribute, strict=True):
        sentences = (
            pick(OCCASIONS).format(place=pick(PLACES), day=pick(DAYS), count=pick(COUNTS)),
            pick(COMPANY).format(group=pick(GROUPS[a])),
            pick(OPINIONS).format(subject=pick(SUBJECTS), word=pick(WORDS[split][y])),
        )
        texts.append(" ".join(sentences[k] for k in rng.permutation(3)))
    return texts
