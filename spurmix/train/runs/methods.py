"""Methods of a recipe: debiasing with published settings, in one or two stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from spurmix.train.runs.recipes import RECIPES

HeadStage = Literal["dfr", "dispel", "afr"]


@dataclass(frozen=True)
class Method:
    """How a method trains on the dataset of a recipe.

    Attributes:
        settings: Settings of the training, or of its first stage, that differ from those of the recipe.
        source: Publication of the settings.
        head: Method that retrains the last layer in the second stage. None: no such stage.
        second: Settings of a second training (JTT) that differ from those of the first. None: no second training.
        factor: How often misclassified examples are drawn in the second training, relative to the others.
        gamma: Values of gamma that AFR tries. Empty: those of `retrain_afr`.
        l2: Penalties that AFR tries. Empty: those of `retrain_afr`.
        first_of: Method with the same first stage. `spurmix reproduce` trains it once.
        note: Difference from the publication.
    """

    settings: Mapping[str, object]
    source: str
    head: HeadStage | None = None
    second: Mapping[str, object] | None = None
    factor: float = 1.0
    gamma: tuple[float, ...] = ()
    l2: tuple[float, ...] = ()
    first_of: str = ""
    note: str = ""

    @property
    def num_stages(self) -> int:
        """Number of stages, 1 or 2."""
        return 2 if self.head is not None or self.second is not None else 1

    def stage_settings(self, stage: int) -> dict[str, object]:
        """Return the settings of the first training (stage 1) or of the second training (stage 2)."""
        if stage == 1 or self.second is None:
            return dict(self.settings)
        upweight = {"policy": "upweight", "policy_options": {"factors": {"misclassified": self.factor}}}
        return {**self.settings, "select": "best", **upweight, **self.second}


@dataclass(frozen=True)
class PublishedResult:
    """Accuracies of a publication, in percent.

    Attributes:
        worst_group: Accuracy of the worst group.
        source: Publication.
    """

    worst_group: float
    source: str


def _sgd(rate: float, decay: float, batch_size: int, epochs: float, **others: object) -> dict[str, object]:
    """Settings of SGD with momentum 0.9, a constant learning rate, and weight decay of all parameters."""
    return {
        "optimizer": "sgd", "learning_rate": rate, "weight_decay": decay, "decay_all": True, "momentum": 0.9,
        "schedule": "constant", "batch_size": batch_size, "epochs": epochs, "policy": "erm", **others,
    }  # fmt: skip


_CROP = {"crop": True, "crop_area": 0.7, "flip": True}
_DRO = {"policy": "group_balanced", "objective": "group_dro", "dro_step": 0.01}
_LISA = {"policy": "lisa", "policy_options": {"p": 0.5, "alpha": 2.0}}

_DFR_CODE = "Kirichenko et al. 2023 (DFR, arXiv 2204.02937): README of its code"
_DRO_CODE = "Sagawa et al. 2020 (GroupDRO, arXiv 1911.08731): README of its code"
_LISA_CODE = "Yao et al. 2022 (LISA, arXiv 2201.00299): README of its code"
_JTT_CODE = "Liu et al. 2021 (JTT, arXiv 2107.09044): README of its code"
_AFR_CODE = "Qiu et al. 2023 (AFR, arXiv 2306.11074): README of its code"
_WILDS = "Koh et al. 2021 (WILDS, arXiv 2012.07421): examples/configs of its code"
_NONE = "no publication"

_HALVES = "The layer is fitted on the validation split. Half of each group chooses C; the layer is then fitted on all."
_DISPEL = (
    "The bulk is the training split without its attributes, and the attributed examples are the validation split. Half of "
    "each group chooses s, alpha and C. The first stage has the settings of DFR."
)
_AFR = "The second stage computes the minimum exactly, where the publication stops gradient descent early."
_JTT = "The model of the last epoch of the first stage finds the errors."
_RECIPE = "Settings without a publication are those of ERM in this recipe."


def _methods(name: str, published: Mapping[str, Method]) -> dict[str, Method]:
    """The methods of a recipe: ERM, those with published settings, and the others with settings of ERM."""
    erm = {"policy": "erm"}
    base = published["dfr"].settings if "dfr" in published else erm
    methods = {
        "erm": Method(erm, RECIPES[name].source),
        "dfr": Method(erm, RECIPES[name].source, head="dfr", first_of="dfr", note=f"{_HALVES} {_RECIPE}"),
        "group_dro": Method(_DRO, _NONE, note=_RECIPE),
        "lisa": Method(_LISA, _NONE, note=_RECIPE),
        "afr": Method(erm, _NONE, head="afr", note=f"{_AFR} {_RECIPE} gamma and l2 are searched."),
        "dispel": Method(base, _NONE, head="dispel", first_of="dfr", note=_DISPEL),
        "balance_attributes": Method({**base, "policy": "balance_attributes"}, _NONE, note="Settings of DFR's first stage."),
    }  # fmt: skip
    return methods | dict(published)


# fmt: off
METHODS: dict[str, dict[str, Method]] = {
    "waterbirds": _methods(
        "waterbirds",
        {
            "dfr": Method(_sgd(1e-3, 1e-3, 32, 100.0, **_CROP), _DFR_CODE, head="dfr", first_of="dfr", note=_HALVES),
            "group_dro": Method(_sgd(1e-3, 1e-4, 128, 300.0) | _DRO, _DRO_CODE),
            "lisa": Method(_sgd(1e-3, 1e-4, 16, 300.0) | _LISA, _LISA_CODE),
            "jtt": Method(
                _sgd(1e-5, 1.0, 128, 60.0, select="last"), _JTT_CODE, second={"epochs": 300.0}, factor=100.0, note=_JTT
            ),
            "afr": Method(
                _sgd(3e-3, 1e-4, 32, 40.0, **_CROP),
                _AFR_CODE,
                head="afr",
                gamma=(14.0,),
                l2=(0.2,),
                note=f"{_AFR} Features of augmented images are not used.",
            ),
        },
    ),
    "celeba": _methods(
        "celeba",
        {
            "dfr": Method(_sgd(1e-3, 1e-4, 128, 50.0, **_CROP), _DFR_CODE, head="dfr", first_of="dfr", note=_HALVES),
            "group_dro": Method(_sgd(1e-4, 1e-4, 128, 50.0) | _DRO, _DRO_CODE),
            "lisa": Method(
                _sgd(1e-4, 1e-4, 16, 50.0) | _LISA,
                _LISA_CODE,
                note="The publication combines images by CutMix. Here they are mixed by weight, as on Waterbirds.",
            ),
            "jtt": Method(
                _sgd(1e-5, 0.1, 128, 1.0, select="last"), _JTT_CODE, second={"epochs": 50.0}, factor=50.0, note=_JTT
            ),
            "afr": Method(
                _sgd(3e-3, 1e-4, 100, 20.0, **_CROP) | {"schedule": "cosine"},
                _AFR_CODE,
                head="afr",
                gamma=(1.8,),
                l2=(0.01,),
                note=f"{_AFR} The publication has no penalty; the exact minimum requires one (0.01).",
            ),
        },
    ),
    "civilcomments": _methods(
        "civilcomments",
        {
            "group_dro": Method(_DRO, _WILDS),
            "jtt": Method(
                {
                    "policy": "erm",
                    "learning_rate": 2e-5,
                    "weight_decay": 0.0,
                    "batch_size": 24,
                    "epochs": 2.0,
                    "select": "last",
                },
                _JTT_CODE,
                second={"learning_rate": 1e-5, "weight_decay": 0.01, "batch_size": 16, "epochs": 3.0},
                factor=6.0,

                note=f"{_JTT} It is a complete run of 2 epochs; in the publication, it is epoch 2 of a run of 3 epochs.",
            ),
        },
    ),
    "imagenet": _methods("imagenet", {}),
}
# fmt: on
"""Methods by name, for each recipe."""
METHOD_NAMES = tuple(METHODS["waterbirds"])
"""Names of all methods."""

_JTT_PAPER, _WILDS_PAPER = "Liu et al. 2021 (JTT)", "Koh et al. 2021 (WILDS)"


def _reported(values: Mapping[str, float], source: str, **others: str) -> dict[str, PublishedResult]:
    """Results of one method on several datasets. `others` are datasets whose result is from another publication."""
    return {name: PublishedResult(value, others.get(name, source)) for name, value in values.items()}


_RESULTS = {
    "erm": _reported({"waterbirds": 72.6, "celeba": 47.2, "civilcomments": 57.4}, _JTT_PAPER),
    "jtt": _reported({"waterbirds": 86.7, "celeba": 81.1, "civilcomments": 69.3}, _JTT_PAPER),
    "lisa": _reported({"waterbirds": 89.2, "celeba": 89.3, "civilcomments": 72.6}, "Yao et al. 2022 (LISA)"),
    "afr": _reported({"waterbirds": 90.4, "celeba": 82.0, "civilcomments": 68.7}, "Qiu et al. 2023 (AFR)"),
    "group_dro": _reported(
        {"waterbirds": 91.4, "celeba": 88.9, "civilcomments": 70.0}, _JTT_PAPER, civilcomments=_WILDS_PAPER
    ),
    "dfr": _reported({"waterbirds": 92.9, "celeba": 88.3, "civilcomments": 70.1}, "Kirichenko et al. 2023 (DFR)"),
}


def published_result(recipe: str, method: str) -> PublishedResult | None:
    """Return the published worst-group accuracy of a method on the dataset of a recipe, or None."""
    return _RESULTS.get(method, {}).get(recipe)
