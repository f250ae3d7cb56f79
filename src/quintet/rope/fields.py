"""The fields of a configuration with rotary positions, as a mixin."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, ClassVar

from quintet.errors import ConfigError
from quintet.rope.parameters import check_same, check_sizes, merge

__all__ = ["RopeFields"]

# The types that are older than the key "rope_type": all readers know them as "type".
OLD_TYPES = ("linear", "dynamic")


class RopeFields:
    """Mixin of configurations with rotary positions; stands before PreTrainedConfig in the list of bases.

    The family's `__init__` sets its sizes and calls `set_rope` before `super().__init__`. In memory there is
    `rope_parameters`; `rope_theta` and `rope_scaling` (a copy, None for the default type) are read and set through
    it, and are what is written.
    """

    default_rope_theta: ClassVar[float] = 10000.0
    default_rope_scaling: ClassVar[dict[str, Any] | None] = None
    # How the family writes the base, and the rotated share; None when it always rotates whole heads.
    rope_theta_name: ClassVar[str] = "rope_theta"
    rope_partial_name: ClassVar[str | None] = None
    default_rope_partial: ClassVar[float] = 1.0

    _rope_parameters: dict[str, Any]

    def set_rope(self, *, theta: Any = None, scaling: Any = None, parameters: Any = None, partial: Any = None) -> None:
        """Take the arguments of the constructor; one that has its default value counts as not given.

        Raises:
            ConfigError: see `merge`.
        """
        if scaling and parameters and parameters == self.default_rope_scaling:
            parameters = None  # a family whose constructor has the new form as its default
        if parameters:
            scaling = None if scaling == self.default_rope_scaling else scaling
        self._rope_parameters = self._merge_rope(
            theta=None if theta == self.default_rope_theta else theta,
            scaling=scaling,
            parameters=parameters,
            partial=None if partial == self.default_rope_partial else partial,
        )

    @classmethod
    def _merge_rope(cls, **given: Any) -> dict[str, Any]:
        found = merge(
            cls.__name__,
            **{"default_theta": cls.default_rope_theta, "default_partial": cls.default_rope_partial, **given},
            names=(cls.rope_theta_name, cls.rope_partial_name or "partial_rotary_factor"),
        )
        if cls.rope_partial_name is None and "partial_rotary_factor" in found:
            raise ConfigError(
                f"{cls.__name__}: partial_rotary_factor is {found['partial_rotary_factor']}, but this family rotates "
                "whole heads. Remove it."
            )
        if cls.rope_partial_name is not None:
            found.setdefault("partial_rotary_factor", 1.0)  # said, so that the family's default cannot return
        return found

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The canonical dict: `rope_type`, `rope_theta`, and the keys of that type."""
        return self._rope_parameters

    @rope_parameters.setter
    def rope_parameters(self, value: Any) -> None:
        self._rope_parameters = self._merge_rope(
            parameters=value, default_theta=self.rope_theta, default_partial=self.partial_rotary_factor
        )

    @property
    def rope_theta(self) -> float:
        """Base of the frequencies."""
        return self._rope_parameters["rope_theta"]

    @rope_theta.setter
    def rope_theta(self, value: Any) -> None:
        self._rope_parameters = self._merge_rope(
            theta=value, scaling=self._scaling_of(self._rope_parameters), partial=self.partial_rotary_factor
        )

    @property
    def rope_scaling(self) -> dict[str, Any] | None:
        """A copy of the type and its keys; None for the default type. Set it to change it."""
        return self._scaling_of(self._rope_parameters)

    @rope_scaling.setter
    def rope_scaling(self, value: Any) -> None:
        self._rope_parameters = self._merge_rope(
            scaling=value, default_theta=self.rope_theta, default_partial=self.partial_rotary_factor
        )

    @property
    def partial_rotary_factor(self) -> float:
        """Share of each head that is rotated."""
        return self._rope_parameters.get("partial_rotary_factor", 1.0)

    @partial_rotary_factor.setter
    def partial_rotary_factor(self, value: Any) -> None:
        self._rope_parameters = self._merge_rope(
            scaling=self.rope_scaling, default_theta=self.rope_theta, default_partial=value
        )

    @staticmethod
    def _scaling_of(parameters: dict[str, Any]) -> dict[str, Any] | None:
        if parameters["rope_type"] == "default":
            return None
        return copy.deepcopy({k: v for k, v in parameters.items() if k not in ("rope_theta", "partial_rotary_factor")})

    def validate(self) -> None:
        """See PreTrainedConfig.validate; the RoPE parameters must fit the sizes."""
        super().validate()  # type: ignore[misc]
        config: Any = self
        # Again: the dict may have been changed in place.
        self._rope_parameters = self._merge_rope(parameters=self._rope_parameters, default_partial=1.0)
        check_sizes(
            type(self).__name__,
            self._rope_parameters,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_position_embeddings,
        )

    def to_dict(self) -> dict[str, Any]:
        """See PreTrainedConfig.to_dict; the old names are written, never both generations."""
        out = super().to_dict()  # type: ignore[misc]
        scaling = self.rope_scaling
        if scaling is not None and scaling["rope_type"] in OLD_TYPES:
            scaling = {"type": scaling.pop("rope_type"), **scaling}
        if scaling is None and self.default_rope_scaling is not None:
            scaling = {"rope_type": "default"}  # said, so that no reader puts the family's default in its place
        out[self.rope_theta_name] = self.rope_theta
        out["rope_scaling"] = scaling
        if self.rope_partial_name is not None:
            out[self.rope_partial_name] = self.partial_rotary_factor
        return out

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See PreTrainedConfig.from_dict; a file that has both generations must say the same in both."""
        thetas = dict.fromkeys(("rope_theta", cls.rope_theta_name))
        partials = dict.fromkeys(("partial_rotary_factor", cls.rope_partial_name or "partial_rotary_factor"))
        names = {*thetas, *partials, "rope_parameters", "rope_scaling"}
        file = {key: config_dict[key] for key in names if key in config_dict}
        call = {key: kwargs.pop(key) for key in names if key in kwargs}
        if file or call:
            config_dict = {key: value for key, value in config_dict.items() if key not in names}
            found = cls._read_rope(file, thetas, partials, {})
            if call:
                found = cls._read_rope(call, thetas, partials, found)
            config_dict["rope_parameters"] = found
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    @classmethod
    def _read_rope(
        cls, given: dict[str, Any], thetas: Iterable[str], partials: Iterable[str], before: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the canonical dict of what a file or a call gives; what it leaves out stays as `before`."""
        values: dict[str, Any] = {}
        for kind, aliases in (("theta", thetas), ("partial", partials)):
            said = [(name, given[name]) for name in aliases if given.get(name) is not None]
            for one in said[1:]:
                check_same(cls.__name__, said[0][0], one, said[0])
            values[kind] = said[0][1] if said else None
        if "rope_scaling" in given or given.get("rope_parameters"):
            values["scaling"] = given.get("rope_scaling")
        else:
            values["scaling"] = cls._scaling_of(before) if before else cls.default_rope_scaling
        if before:
            values["default_theta"] = before["rope_theta"]
            values["default_partial"] = before.get("partial_rotary_factor", 1.0)
        return cls._merge_rope(parameters=given.get("rope_parameters"), **values)
