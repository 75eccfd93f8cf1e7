"""The model card: what is served, in which units, and what it was made from."""

import datetime
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tf_mcvae.export.signatures import (
    INPUTS,
    MAX_POSTERIOR_SAMPLES,
    OUTPUTS,
    UINT8_IMAGES,
    Options,
)
from tf_mcvae.files import replacing, write_json
from tf_mcvae.models import MonteCarloVAE

CARD, README = "model_card.json", "README.md"


def model_card(
    model: MonteCarloVAE,
    functions: Mapping[str, Any],
    options: Options,
    num_calibration: int,
    version: int,
    sections: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the card of a version, as JSON knows it.

    Args:
        model: The model.
        functions: Concrete functions by the names of their signatures.
        options: What is fixed.
        num_calibration: Images behind `p_value`.
        version: Number of the version.
        sections: Further sections, such as data, metrics and settings.
    """
    return {
        "model": {
            "class": type(model).__name__,
            "likelihood": type(model.likelihood).__name__,
            "image_shape": list(model.event_shape),
            "latent_dim": model.latent_dim,
            "num_parameters": int(model.count_params()),
            "num_transitions": getattr(model, "num_transitions", 0),
        },
        "serving": {
            "version": version,
            "exported": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "num_samples": options.num_samples,
            "max_posterior_samples": MAX_POSTERIOR_SAMPLES,
            "chunk_size": options.chunk_size,
            "uint8_pixel_range": list(options.pixel_range),
            "xla": options.jit_compile,
            "calibration_images": num_calibration,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "signatures": {name: _describe(name, function) for name, function in functions.items()},
        **sections,
    }


def _describe(signature: str, function: Any) -> dict[str, Any]:
    """Returns names, shapes, dtypes, units and meaning of a signature's tensors."""
    outputs = OUTPUTS[signature.removesuffix("_uint8")]
    inputs = {
        spec.name: UINT8_IMAGES if spec.dtype == tf.uint8 else INPUTS[spec.name]
        for spec in _input_specs(function)
    }
    return {
        "inputs": {spec.name: _tensor(spec, inputs) for spec in _input_specs(function)},
        "outputs": {
            name: _tensor(spec, outputs, name) for name, spec in function.structured_outputs.items()
        },
    }


def _input_specs(function: Any) -> list[tf.TensorSpec]:
    return tf.nest.flatten(function.structured_input_signature)


def _tensor(spec: Any, named: Mapping[str, Any], name: str | None = None) -> dict[str, Any]:
    unit, text = named[name or spec.name]
    shape = ["B" if i == 0 else size for i, size in enumerate(spec.shape)]
    shape = ["num_samples" if size is None else size for size in shape]
    return {"shape": shape, "dtype": spec.dtype.name, "unit": unit, "text": text}


def write_card(folder: pathlib.Path, card: Mapping[str, Any]) -> None:
    """Writes a card as `model_card.json` and, for people, as `README.md`."""
    write_json(folder / CARD, card)
    with replacing(folder / README) as temporary:
        temporary.write_text(_readme(card), encoding="utf-8")


def _readme(card: Mapping[str, Any]) -> str:
    title = f"# {card['model']['class']}, version {card['serving']['version']}"
    lines = [
        title,
        "",
        "A SavedModel for TensorFlow Serving. B is any number of rows. The signatures that take",
    ]
    lines += ["images take them as `uint8` (0 to 255) too, under names that end in `_uint8`.", ""]
    lines += ["| signature | tensor | shape | dtype | unit | what |", "|---|---|---|---|---|---|"]
    for signature, tensors in card["signatures"].items():
        if signature.endswith("_uint8"):
            continue
        for kind in ("inputs", "outputs"):
            for name, tensor in tensors[kind].items():
                shape = ", ".join(map(str, tensor["shape"]))
                what = f"{kind[:-1]}: {tensor['text']}"
                lines.append(
                    f"| `{signature}` | `{name}` | [{shape}] | {tensor['dtype']} | "
                    f"{tensor['unit']} | {what} |"
                )
    for section, values in card.items():
        if section != "signatures":
            lines += ["", f"## {section.capitalize()}", "", *_listed(values)]
    return "\n".join(lines) + "\n"


def _listed(values: Any, indent: str = "") -> list[str]:
    """Returns nested values as a Markdown list."""
    if not isinstance(values, Mapping):
        return [f"{indent}{values}"]
    lines = []
    for name, value in values.items():
        nested = isinstance(value, Mapping) and value
        lines.append(f"{indent}- {name}:" if nested else f"{indent}- {name}: {value}")
        lines += _listed(value, indent + "  ") if nested else []
    return lines
