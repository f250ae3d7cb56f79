"""Parameters of rotary positions (RoPE) in configurations: two generations of names, one canonical dict. No torch.

Old names: `rope_theta` with `rope_scaling` ({"type": "linear", "factor": 2.0}, or "rope_type"). New name:
`rope_parameters`, which holds both. Configurations keep the new form in memory and write the old one, which every
release of the reference reads. The tensors that follow from the parameters are made in `layers/rope.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from quintet.errors import ConfigError, suggest

__all__ = ["ROPE_TYPES", "check_same", "check_sizes", "merge", "rotary_size", "standardise"]

# Type: (keys it must have, keys it may have).
ROPE_TYPES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ("original_max_position_embeddings",)),
    "ntk": (("factor",), ()),
    "yarn": (
        ("factor",),
        (
            *("original_max_position_embeddings", "beta_fast", "beta_slow"),
            *("mscale", "mscale_all_dim", "attention_factor", "truncate"),
        ),
    ),
    "longrope": (
        ("short_factor", "long_factor", "original_max_position_embeddings"),
        ("factor", "attention_factor"),
    ),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
}
ALIASES = {"ntk-aware": "ntk", "ntk_aware": "ntk"}
# What a key that is left out means; used to compare two dicts that say the same.
MEANINGS: dict[str, dict[str, Any]] = {"yarn": {"beta_fast": 32, "beta_slow": 1, "truncate": True}}
COMMON_KEYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
# Above all numbers of this kind, and with room below the end of float32.
LARGEST = 1e30
ADVICE = "Correct it in config.json or the call."


def _number(value: Any, minimum: float, *, above: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return (minimum < value if above else minimum <= value) and value <= LARGEST


def _positive(value: Any) -> bool:
    return _number(value, 0.0, above=True)


# Key: (test of a value, what is allowed).
VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "rope_theta": (lambda v: _number(v, 1.0, above=True), "a number above 1, at most 1e30"),
    "partial_rotary_factor": (lambda v: _positive(v) and v <= 1, "a number above 0 and at most 1"),
    "factor": (lambda v: _number(v, 1.0), "a number from 1"),
    "original_max_position_embeddings": (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and 2 <= v < 2**31,
        "an integer from 2 to 2147483647",
    ),
    "beta_fast": (_positive, "a number above 0"),
    "beta_slow": (_positive, "a number above 0"),
    "mscale": (lambda v: _number(v, 0.0), "a number from 0"),
    "mscale_all_dim": (lambda v: _number(v, 0.0), "a number from 0"),
    "attention_factor": (_positive, "a number above 0"),
    "truncate": (lambda v: isinstance(v, bool), "true or false"),
    "low_freq_factor": (_positive, "a number above 0"),
    "high_freq_factor": (_positive, "a number above 0"),
    "short_factor": (lambda v: isinstance(v, list) and all(map(_positive, v)), "a list of numbers above 0"),
    "long_factor": (lambda v: isinstance(v, list) and all(map(_positive, v)), "a list of numbers above 0"),
}


def _got(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _flatten(owner: str, name: str, given: Any) -> dict[str, Any]:
    """Return a flat copy: entries nested per layer type must be equal, keys beside them are their defaults."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{owner}: {name} is {_got(given)}, but must be an object or None. {ADVICE}")
    nested = {key: value for key, value in given.items() if isinstance(value, Mapping)}
    flat = {key: value for key, value in given.items() if key not in nested}
    if not nested:
        return copy.deepcopy(flat)
    entries = {layer: {**flat, **entry} for layer, entry in nested.items()}
    (first, one), *others = entries.items()
    for layer, other in others:
        different = sorted((key for key in {*one, *other} if one.get(key) != other.get(key)), key=str)
        if different:
            key = different[0]
            raise ConfigError(
                f"{owner}: {name} has {key!r} {_got(one.get(key))} for {first!r} and {_got(other.get(key))} for "
                f"{layer!r}, but all layers must have the same. Give one flat object."
            )
    return copy.deepcopy(one)


def _type_of(owner: str, name: str, flat: dict[str, Any]) -> str:
    said = [flat[key] for key in ("rope_type", "type") if flat.get(key) is not None]
    found = [ALIASES.get(one, one) if isinstance(one, str) else one for one in said]
    if len(found) > 1 and found[0] != found[1]:
        raise ConfigError(
            f"{owner}: {name} has rope_type {flat['rope_type']!r} and type {flat['type']!r}, which is the older name "
            "of the same key. Remove one of them."
        )
    if not found:
        if any(key not in COMMON_KEYS for key in flat):
            raise ConfigError(
                f"{owner}: {name} is {_got(flat)}, which has no key 'rope_type'. Add one of {', '.join(ROPE_TYPES)}."
            )
        return "default"
    rope_type = found[0]
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        hint = suggest(rope_type, [*ROPE_TYPES, *ALIASES]) if isinstance(rope_type, str) else ""
        raise ConfigError(
            f"{owner}: {name} has rope_type {rope_type!r}, but must have one of {', '.join(ROPE_TYPES)}.{hint} {ADVICE}"
        )
    return rope_type


def _options(owner: str, name: str, rope_type: str, flat: dict[str, Any]) -> dict[str, Any]:
    """Return the type's own keys in the order of the table, checked; None means left out, but for YaRN's factor."""
    required, optional = ROPE_TYPES[rope_type]
    allowed = [*required, *optional]
    for key, value in flat.items():
        if key in COMMON_KEYS or key in allowed or value is None:
            continue
        users = [other for other, keys in ROPE_TYPES.items() if key in (*keys[0], *keys[1])]
        why = f"belongs to {', '.join(users)}" if users else f"is unknown.{suggest(str(key), allowed)}"
        raise ConfigError(
            f"{owner}: {name} has the key {key!r} ({_got(value)}), which {why}; rope_type {rope_type!r} takes "
            f"{', '.join(allowed) or 'no other keys'}. Remove it, or change rope_type."
        )
    out = {key: flat[key] for key in allowed if flat.get(key) is not None}
    if rope_type == "yarn" and "factor" in flat:
        out = {"factor": flat["factor"], **out}  # None: the ratio of the new length to the old
    for key in required:
        if key not in out:
            raise ConfigError(
                f"{owner}: {name} of rope_type {rope_type!r} has no key {key!r}; it needs {', '.join(required)}. "
                f"Add it, with {VALUES[key][1]}."
            )
    _check_values(owner, name, {"rope_type": rope_type, **out})
    return out


def _check_values(owner: str, name: str, found: Mapping[str, Any]) -> None:
    for key, value in found.items():
        if key not in VALUES or (key == "factor" and value is None and found["rope_type"] == "yarn"):
            continue
        good, allowed = VALUES[key]
        if not good(value):
            raise ConfigError(f"{owner}: {key} of {name} is {_got(value)}, but must be {allowed}. {ADVICE}")
    for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
        defaults = MEANINGS.get(found["rope_type"], {})
        small, large = (found.get(key, defaults.get(key)) for key in (low, high))
        if small is not None and large is not None and small >= large:
            raise ConfigError(f"{owner}: {name} has {low} {small} and {high} {large}, but {high} must be the larger.")


def check_same(owner: str, key: str, old: tuple[str, Any], new: tuple[str, Any]) -> None:
    """Raise ConfigError when two pairs (where it stands, value) of one key differ."""
    if old[1] != new[1]:
        raise ConfigError(
            f"{owner}: {key} is {_got(old[1])} in {old[0]} and {_got(new[1])} in {new[0]}. Remove one of them."
        )


def merge(
    owner: str,
    *,
    theta: Any = None,
    scaling: Any = None,
    parameters: Any = None,
    partial: Any = None,
    default_theta: float = 10000.0,
    default_partial: float = 1.0,
    names: tuple[str, str] = ("rope_theta", "partial_rotary_factor"),
) -> dict[str, Any]:
    """Make one canonical dict of what the two generations of names say.

    Args:
        owner: Whose parameters they are, for messages.
        theta: Base of the frequencies, None when not given.
        scaling: `rope_scaling`, an object or None.
        parameters: `rope_parameters`, flat or with equal entries per layer type, or None.
        partial: Share of each head that is rotated, None when not given.
        default_theta, default_partial: What counts when nobody says otherwise.
        names: How the owner calls `theta` and `partial`.

    Returns:
        `rope_type`, `rope_theta`, `partial_rotary_factor` unless it is 1, and the keys of that type.

    Raises:
        ConfigError: keys that are missing, unknown, of another type, out of range, or that contradict each other.
    """
    sources = {"rope_parameters": parameters, "rope_scaling": scaling}
    flats = {name: _flatten(owner, name, given) for name, given in sources.items() if given not in (None, {})}
    shared = {}
    for key, name, value, default in (
        ("rope_theta", names[0], theta, default_theta),
        ("partial_rotary_factor", names[1], partial, default_partial),
    ):
        said = [(source, flat[key]) for source, flat in flats.items() if flat.get(key) is not None]
        said += [("its own field", value)] if value is not None else []
        for one in said[1:]:
            check_same(owner, name, one, said[0])
        shared[key] = said[0][1] if said else default
        good, allowed = VALUES[key]
        if not good(shared[key]):
            raise ConfigError(f"{owner}: {name} is {_got(shared[key])}, but must be {allowed}. {ADVICE}")
    if shared["partial_rotary_factor"] == 1:
        del shared["partial_rotary_factor"]
    read = []
    for name, flat in flats.items():
        rope_type = _type_of(owner, name, flat)
        read.append((name, {"rope_type": rope_type, **_options(owner, name, rope_type, flat)}))
    if len(read) == 2:
        (new_name, new), (old_name, old) = ((name, {**MEANINGS.get(d["rope_type"], {}), **d}) for name, d in read)
        for key in sorted({*old, *new}, key=lambda key: (key != "rope_type", key)):
            check_same(owner, key, (old_name, old.get(key)), (new_name, new.get(key)))
    chosen = read[0][1] if read else {"rope_type": "default"}
    return {"rope_type": chosen["rope_type"], **shared, **chosen}


def rotary_size(parameters: Mapping[str, Any], head_dim: int) -> int:
    """Return how many features of a head the frequencies are made for: `int(head_dim * share)`."""
    return int(head_dim * parameters.get("partial_rotary_factor", 1.0))


def check_sizes(owner: str, parameters: Mapping[str, Any], *, head_dim: int, max_position_embeddings: int) -> None:
    """Check what depends on the sizes of the model.

    Args:
        owner: Whose parameters they are, for messages.
        parameters: The canonical dict.
        head_dim: Size of one head.
        max_position_embeddings: Longest sequence in tokens.

    Raises:
        ConfigError: a rotary size or a list length that does not fit.
    """
    rope_type, size = parameters["rope_type"], rotary_size(parameters, head_dim)
    share = parameters.get("partial_rotary_factor", 1.0)
    smallest = 3 if rope_type in ("dynamic", "ntk") else 1  # their exponent is size / (size - 2)
    if size < smallest:
        raise ConfigError(
            f"{owner}: the rotary size is {size} ({share} of head_dim {head_dim}), but rope_type {rope_type!r} needs "
            f"{smallest} or more. Make the heads larger, or rotate a larger share of them."
        )
    # An odd size is rounded up to whole pairs where the head has room for it.
    paired = rope_type in ("yarn", "longrope")
    if size % 2 and (paired or size == head_dim):
        where = f"rope_type {rope_type!r}" if paired else "a head that is rotated whole"
        raise ConfigError(
            f"{owner}: the rotary size is {size} ({share} of head_dim {head_dim}), but must be even for {where}. "
            "Change the head size or the rotated share."
        )
    for key in ("short_factor", "long_factor"):
        if key in parameters and len(parameters[key]) != size // 2:
            raise ConfigError(
                f"{owner}: {key} has {len(parameters[key])} numbers, but must have {size // 2}, one for each pair of "
                f"the rotary size {size}. {ADVICE}"
            )
    original = parameters.get("original_max_position_embeddings")
    if rope_type == "dynamic" and original not in (None, max_position_embeddings):
        raise ConfigError(
            f"{owner}: original_max_position_embeddings is {original} and max_position_embeddings is "
            f"{max_position_embeddings}, but rope_type 'dynamic' grows from max_position_embeddings. Remove the first, "
            "or make them equal."
        )


def standardise(
    owner: str,
    *,
    theta: Any = None,
    scaling: Any = None,
    parameters: Any = None,
    default_theta: float = 10000.0,
    partial: float = 1.0,
    head_dim: int,
    max_position_embeddings: int,
) -> dict[str, Any]:
    """Make the canonical dict, see `merge`, and check it against the sizes, see `check_sizes`.

    `theta` equal to `default_theta` and `partial` equal to 1 count as not given.
    """
    found = merge(
        owner,
        theta=None if theta == default_theta else theta,
        scaling=scaling,
        parameters=parameters,
        partial=None if partial == 1 else partial,
        default_theta=default_theta,
    )
    check_sizes(owner, found, head_dim=head_dim, max_position_embeddings=max_position_embeddings)
    return found
