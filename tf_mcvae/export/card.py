"""The model card: a description of the signatures, their units and the model behind them."""

import datetime
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf
from tensorflow.types.experimental import ConcreteFunction

from tf_mcvae.export.signatures import (
    INPUTS,
    MAX_POSTERIOR_SAMPLES,
    OUTPUTS,
    UINT8_IMAGES,
    Named,
    Options,
)
from tf_mcvae.files import replacing, write_json
from tf_mcvae.models import MonteCarloVAE

CARD, README = "model_card.json", "README.md"


def model_card(
    model: MonteCarloVAE,
    functions: Mapping[str, ConcreteFunction],
    options: Options,
    num_calibration: int,
    version: int,
    sections: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the card of a version, as nested dictionaries for JSON.

    Args:
        model: The model.
        functions: Concrete functions by the names of their signatures.
        options: Options of the export.
        num_calibration: Number of images from which `p_value` is computed.
        version: Version number.
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


def _describe(signature: str, function: ConcreteFunction) -> dict[str, Any]:
    """Returns the names, shapes, dtypes, units and meanings of a signature's tensors."""
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


def _input_specs(function: ConcreteFunction) -> list[tf.TensorSpec]:
    return tf.nest.flatten(function.structured_input_signature)


def _tensor(
    spec: tf.TensorSpec, named: Mapping[str, Named], name: str | None = None
) -> dict[str, Any]:
    unit, text = named[name or spec.name]
    shape = ["B" if i == 0 else size for i, size in enumerate(spec.shape)]
    shape = ["num_samples" if size is None else size for size in shape]
    return {"shape": shape, "dtype": spec.dtype.name, "unit": unit, "text": text}


def write_card(folder: pathlib.Path, card: Mapping[str, Any]) -> None:
    """Writes a card as `model_card.json` and, for human readers, as `README.md`."""
    write_json(folder / CARD, card)
    with replacing(folder / README) as temporary:
        temporary.write_text(_readme(card), encoding="utf-8")


def _readme(card: Mapping[str, Any]) -> str:
    lines = [
        f"# {card['model']['class']}, version {card['serving']['version']}",
        "",
        "A SavedModel for TensorFlow Serving. B is any number of rows. The signatures that take",
        "images have a second form, `<name>_uint8`, that takes `uint8` images (0 to 255).",
        "",
        "| signature | tensor | shape | dtype | unit | meaning |",
        "|---|---|---|---|---|---|",
        *_table(card["signatures"]),
    ]
    for section, values in card.items():
        if section != "signatures":
            lines += ["", f"## {section.capitalize()}", "", *_listed(values)]
    return "\n".join(lines) + "\n"


def _table(signatures: Mapping[str, Any]) -> Iterator[str]:
    """Yields a row for each tensor of the signatures that are not for bytes."""
    for signature, tensors in signatures.items():
        if signature.endswith("_uint8"):
            continue
        for kind in ("inputs", "outputs"):
            for name, tensor in tensors[kind].items():
                shape = ", ".join(map(str, tensor["shape"]))
                yield (
                    f"| `{signature}` | `{name}` | [{shape}] | {tensor['dtype']} | "
                    f"{tensor['unit']} | {kind[:-1]}: {tensor['text']} |"
                )


def _listed(values: Any, indent: str = "") -> list[str]:
    """Returns nested dictionaries as a Markdown list."""
    if not isinstance(values, Mapping):
        return [f"{indent}{values}"]
    lines = []
    for name, value in values.items():
        nested = isinstance(value, Mapping) and value
        lines.append(f"{indent}- {name}:" if nested else f"{indent}- {name}: {value}")
        lines += _listed(value, indent + "  ") if nested else []
    return lines
