"""CivilComments with the published settings and a tiny BERT, from the file to the accuracy of cells."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.optim.lr_scheduler import LambdaLR
from transformers import BertConfig, BertForSequenceClassification

from spurmix import MixedInputs, MixLoader, TokenSource, evaluate, finetune, policies
from spurmix.data.pack.layouts.civilcomments import IDENTITIES, read_civilcomments
from spurmix.train.runs.recipes import CIVILCOMMENTS
from spurmix.train.schedule import factor

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "nice", "good", "awful", "hateful", *IDENTITIES, "people", "the"]


def write(folder: Path) -> None:
    """Write 120 comments. Toxic comments have a certain word. Several identities are mentioned at random."""
    rng = np.random.default_rng(3)
    with (folder / "all_data_with_identities.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "comment_text", "split", "toxicity", *IDENTITIES])
        for n in range(120):
            toxic, mentioned = n % 2, rng.random(8) < 0.35
            words = [*np.array(IDENTITIES)[mentioned], *rng.choice(["people", "the"], rng.integers(1, 9))]
            words.append(str(rng.choice(["awful", "hateful"] if toxic else ["nice", "good"])))
            split = "test" if n % 3 == 2 else "train"
            table.writerow([n, " ".join(rng.permutation(words)), split, 0.9 * toxic, *mentioned.astype(float)])


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({w: k for k, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made


def test_civilcomments_from_file_to_cells(tmp_path: Path) -> None:
    write(tmp_path)
    recipe = replace(CIVILCOMMENTS, learning_rate=2e-2, epochs=15)  # a tiny BERT with random weights learns slowly
    data = read_civilcomments(tmp_path)
    train, test = data.split("train"), data.split("test")
    words = tokenizer()
    texts = TokenSource.from_texts(train.texts, words, max_length=recipe.max_length)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=recipe.max_length)  # fmt: skip
    model = MixedInputs(BertForSequenceClassification(config))
    loader = MixLoader(texts, train.groups(), policies.balance_attributes(), **recipe.loader_options())
    finetune(model, loader, **recipe.finetune_options())
    held_out = TokenSource.from_texts(test.texts, words, max_length=recipe.max_length)
    result = evaluate(
        model, held_out, test.groups(), train_groups=train.groups(), membership=test.membership(),
        cell_names=test.cell_names, min_group_size=3,
    )  # fmt: skip
    assert len(result.cells) == 16
    assert sum(c.count for c in result.cells) > len(test)  # they overlap
    assert result.worst_name in test.cell_names
    assert result.worst_group > 0.8
    assert result.weights_from == "training"


def test_settings_are_the_published_ones() -> None:
    recipe = CIVILCOMMENTS
    assert (recipe.model, recipe.max_length, recipe.batch_size, recipe.epochs) == ("bert-base-uncased", 300, 16, 5)
    assert (recipe.learning_rate, recipe.weight_decay, recipe.clip) == (1e-5, 0.01, 1.0)
    # get_linear_schedule_with_warmup of transformers, without warmup
    parameter = torch.nn.Parameter(torch.zeros(1))
    schedule = LambdaLR(torch.optim.SGD([parameter], 1.0), lambda step: max(0.0, (10 - step) / 10))
    for step in range(10):
        assert abs(schedule.get_last_lr()[0] - factor(recipe.schedule, step, 10, recipe.warmup)) < 1e-12
        schedule.optimizer.step()
        schedule.step()
