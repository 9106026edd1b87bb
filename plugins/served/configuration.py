"""A served plugin's configuration: HCL text from its host, bound to a model, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from generated.spire.service.common.config.v1 import config_pb2
from operations import config, hcl
from operations.errors import ConfigurationError, ConfigurationErrors

T = TypeVar("T", bound=msgspec.Struct)


def read(model: type[T], data: str, name: str) -> T:
    """Raises ConfigurationError, with the line in the plugin's data."""
    return config.bind(model, hcl.parse(data, "plugin_data"), section=name)


def validated(check: Callable[[], object]) -> config_pb2.ValidateResponse:
    """The answer to a host that asks whether a configuration can be used."""
    try:
        check()
    except ConfigurationErrors as error:
        return config_pb2.ValidateResponse(valid=False, notes=[str(problem) for problem in error.problems])
    except ConfigurationError as error:
        return config_pb2.ValidateResponse(valid=False, notes=[str(error)])
    return config_pb2.ValidateResponse(valid=True)


@contextmanager
def one_line() -> Generator[None]:
    """A status has one line for all that is wrong."""
    try:
        yield
    except ConfigurationErrors as error:
        raise ConfigurationError("; ".join(str(problem) for problem in error.problems)) from error
