"""Export of trained models: a SavedModel that needs TensorFlow only, and ONNX and TFLite files."""

from tf_mcvae.export.graphs import check_servable
from tf_mcvae.export.saved_model import export_saved_model
from tf_mcvae.export.to_onnx import check_onnx_packages, export_onnx
from tf_mcvae.export.to_tflite import export_tflite

__all__ = [
    "check_onnx_packages",
    "check_servable",
    "export_onnx",
    "export_saved_model",
    "export_tflite",
]


def __dir__() -> list[str]:
    """Lists the public names, and not the modules that define them."""
    return __all__
