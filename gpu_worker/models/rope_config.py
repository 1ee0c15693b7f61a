"""The rotary embedding that a Hugging Face configuration describes."""

from batchyard.errors import ModelError
from gpu_worker.layers.rope import LinearRope, Llama3Rope, Rope, YarnRope, yarn_attention_factor
from gpu_worker.models.config_fields import ConfigFields

_SUPPORTED = "default, linear, dynamic, llama3, yarn"
_DEFAULT_THETA = 10_000.0


def parse_rope(fields: ConfigFields, max_position_embeddings: int) -> Rope:
    """Read `rope_theta` with `rope_scaling` (as before transformers 5) or `rope_parameters` (since).

    "dynamic" (NTK by length) is plain rotation here, as it is in `transformers` for texts no longer than
    `max_position_embeddings`; longer ones would change the keys already cached, and `Rope.max_context` rules
    them out. Raises ModelError for a type that is not supported or a parameter that is missing or bad.
    """
    theta = fields.positive("rope_theta", _DEFAULT_THETA)
    parameters = fields.nested("rope_scaling") or fields.nested("rope_parameters")
    if parameters is None:
        return Rope(_checked_theta(fields, theta))
    _refuse_partial(fields)
    _refuse_partial(parameters)
    if per_layer := parameters.nested_names():
        raise parameters.error(f"separate parameters per layer type ({per_layer[0]}) are not supported")
    theta = _checked_theta(parameters, parameters.positive("rope_theta", theta))
    rope_type = parameters.text("rope_type", parameters.text("type", "default"))
    match rope_type:
        case "default" | "dynamic":
            return Rope(theta)
        case "linear":
            return LinearRope(theta, factor=parameters.positive("factor"))
        case "llama3":
            original = _original_length(fields, parameters, max_position_embeddings)
            return _llama3(parameters, theta, original)
        case "yarn":
            original = _original_length(fields, parameters, max_position_embeddings)
            return _yarn(parameters, theta, original, max_position_embeddings)
    raise _unsupported(parameters, rope_type)


def _original_length(fields: ConfigFields, parameters: ConfigFields, default: int) -> int:
    # Some configurations state it beside the rope parameters, not among them; that one counts.
    name = "original_max_position_embeddings"
    return fields.optional_count(name) or parameters.count(name, default)


def _llama3(parameters: ConfigFields, theta: float, original: int) -> Llama3Rope:
    rope = Llama3Rope(
        theta,
        factor=parameters.positive("factor"),
        low_freq_factor=parameters.positive("low_freq_factor"),
        high_freq_factor=parameters.positive("high_freq_factor"),
        original_max_positions=original,
    )
    if rope.high_freq_factor <= rope.low_freq_factor:
        raise parameters.error("high_freq_factor must be greater than low_freq_factor")
    return rope


def _yarn(parameters: ConfigFields, theta: float, original: int, max_positions: int) -> YarnRope:
    factor = parameters.positive("factor", max_positions / original)
    default_factor = yarn_attention_factor(
        factor, parameters.optional_positive("mscale"), parameters.optional_positive("mscale_all_dim")
    )
    rope = YarnRope(
        theta,
        factor=factor,
        original_max_positions=original,
        cos_sin_factor=parameters.positive("attention_factor", default_factor),
        beta_fast=parameters.positive("beta_fast", 32.0),
        beta_slow=parameters.positive("beta_slow", 1.0),
        truncate=parameters.flag("truncate", True),
    )
    if rope.beta_fast < rope.beta_slow:
        raise parameters.error("beta_fast must not be less than beta_slow")
    return rope


def _checked_theta(fields: ConfigFields, theta: float) -> float:
    if theta <= 1:
        raise fields.error(f"rope_theta must be greater than 1, not {theta}")
    return theta


def _refuse_partial(fields: ConfigFields) -> None:
    if fields.positive("partial_rotary_factor", 1.0) != 1.0:
        raise fields.error("partial_rotary_factor other than 1 is not supported")


def _unsupported(parameters: ConfigFields, rope_type: str) -> ModelError:
    return parameters.error(f"rope type {rope_type!r} is not supported; supported are {_SUPPORTED}")
