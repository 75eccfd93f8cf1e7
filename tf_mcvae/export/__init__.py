"""Export for serving: a SavedModel with named signatures that needs nothing but TensorFlow."""

from tf_mcvae.export.graphs import check_servable
from tf_mcvae.export.saved_model import export_saved_model

__all__ = ["check_servable", "export_saved_model"]
