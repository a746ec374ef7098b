"""Deprecated arguments and attributes: they work, they warn, and they cannot be mixed with the new name."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import pytest

from spurmix.core.deprecation import renamed_argument, renamed_attribute, warn_renamed


@renamed_argument(where="mix_at", keep="max_checkpoints")
def configure(model: str, mix_at: str = "input", *, max_checkpoints: int = 3) -> tuple[str, str, int]:
    """Docstring."""
    return model, mix_at, max_checkpoints


class Config:
    @renamed_argument(where="mix_at")
    def __init__(self, mix_at: str = "input") -> None:
        self.mix_at = mix_at

    where = renamed_attribute("mix_at")

    def describe(self) -> str:
        return f"mixes at {self.mix_at}"

    describes = renamed_attribute("describe")

    @classmethod
    def create(cls) -> Config:
        return cls("head")

    make = renamed_attribute("create")


def test_old_argument_works_and_warns_with_the_callers_line() -> None:
    with pytest.warns(DeprecationWarning, match=r"^configure: where is deprecated, use mix_at$") as caught:
        assert configure("m", where="head") == ("m", "head", 3)
    assert Path(caught[0].filename).name == Path(__file__).name


def test_two_old_arguments_warn_twice() -> None:
    with pytest.warns(DeprecationWarning, match="is deprecated, use") as caught:
        assert configure("m", where="head", keep=5) == ("m", "head", 5)
    assert len(caught) == 2


def test_new_arguments_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert configure("m", "head", max_checkpoints=1) == ("m", "head", 1)
        assert Config(mix_at="head").mix_at == "head"


def test_both_names_are_an_error() -> None:
    with pytest.raises(TypeError, match="configure: where is the deprecated name of mix_at, got both; remove where"):
        configure("m", mix_at="head", where="head")
    with pytest.raises(TypeError, match="got both"):
        configure("m", "head", where="head")


def test_unknown_new_name_is_an_error() -> None:
    with pytest.raises(TypeError, match="has no argument 'size'"):
        renamed_argument(length="size")(configure)


def test_decorated_function_keeps_its_signature_and_docstring() -> None:
    assert list(inspect.signature(configure).parameters) == ["model", "mix_at", "max_checkpoints"]
    assert configure.__doc__ == "Docstring."


def test_constructor_argument_warns_with_the_class_name() -> None:
    with pytest.warns(DeprecationWarning, match=r"^Config: where is deprecated, use mix_at$"):
        assert Config(where="head").mix_at == "head"


def test_old_attribute_reads_and_writes_the_new_one() -> None:
    config = Config()
    with pytest.warns(DeprecationWarning, match=r"^Config: where is deprecated, use mix_at$") as caught:
        assert config.where == "input"
    assert Path(caught[0].filename).name == Path(__file__).name
    with pytest.warns(DeprecationWarning, match="use mix_at"):
        config.where = "head"
    assert config.mix_at == "head"


def test_old_method_name_calls_the_new_method() -> None:
    with pytest.warns(DeprecationWarning, match="use describe"):
        assert Config().describes() == "mixes at input"


def test_old_classmethod_name_works_on_the_class_and_on_instances() -> None:
    for owner in (Config, Config()):
        with pytest.warns(DeprecationWarning, match=r"^Config: make is deprecated, use create$") as caught:
            assert owner.make().mix_at == "head"
        assert Path(caught[0].filename).name == Path(__file__).name


def test_old_attribute_is_documented_on_the_class() -> None:
    assert Config.where.__doc__ == "Deprecated name of `mix_at`."


def test_warn_renamed_names_the_owner() -> None:
    with pytest.warns(DeprecationWarning, match=r"^run\.toml: where is deprecated, use mix_at$"):
        warn_renamed("run.toml", "where", "mix_at")
