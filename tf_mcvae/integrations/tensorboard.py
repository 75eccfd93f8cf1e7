"""A Keras callback that writes metrics and images during training, for TensorBoard.

TensorFlow writes the files. The `tensorboard` package is only needed to view them.
"""

import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_mcvae.evaluation import estimate_log_likelihood
from tf_mcvae.files import optional
from tf_mcvae.integrations.pictures import tile_images
from tf_mcvae.models import MonteCarloVAE
from tf_mcvae.models.annealed import AnnealedVAE

_SAMPLES = 64
_RECONSTRUCTIONS = 32
_NLL_EXAMPLES = 100

Array = np.ndarray[Any, Any]
Logs = Mapping[str, float] | None
Values = dict[str, float | Array]


class TensorBoardLogger(keras.callbacks.Callback):
    """Writes metrics, an NLL estimate and images at the end of each epoch.

    `log_dir` gets two runs, `train` and `validation`. Their step is the number of completed epochs,
    including those before the `initial_epoch` of `fit`. They hold

    - in both, every metric under its own name: `loss`, `bound`, `acceptance_1`, ...;
    - in `train`, `learning_rate` at the beginning of the epoch, `step_size_1`, ... (for each
      transition the median over the latent dimensions), and the image `samples`, decoded from the
      same 64 latents each time;
    - in `validation`, the image `reconstructions`, in which each image has its reconstruction to
      its right, and every `nll_every` epochs `nll`, the mean of `-log p(x)` in nats.

    The NLL is fast but loose: annealed importance sampling on up to 100 images, with 10 chains of 3
    Hamiltonian transitions of 3 leapfrog steps, whose step sizes are adapted each time. Its
    expectation is above the true NLL. To report numbers, use `estimate_log_likelihood` with more
    temperatures.

    Args:
        log_dir: Folder to write to.
        validation_data: Images `[N, ...]`, or a dataset of batches, whose first images are used for
            the NLL and the reconstructions. None leaves both out.
        nll_every: Number of epochs from one NLL estimate to the next. 0 disables them.
        seed: Seed of the latents and of the NLL's draws. The callback does not change the random
            numbers of training.

    Raises:
        TypeError: If the model is not a tf_mcvae model.
        ValueError: If `nll_every` is negative, or `log_dir` cannot be written to.

    Example:
        >>> import tempfile
        >>> import tf_mcvae
        >>> data = tf_mcvae.datasets.load("digits", batch_size=50)
        >>> model = tf_mcvae.VAE(
        ...     tf_mcvae.Encoder(2, architecture="dense"),
        ...     tf_mcvae.Decoder((8, 8, 1), architecture="dense"),
        ... )
        >>> model.compile("adam")
        >>> log_dir = tempfile.mkdtemp()
        >>> logger = TensorBoardLogger(log_dir, data.validation)
        >>> history = model.fit(
        ...     data.train.take(2), validation_data=data.validation, callbacks=[logger], verbose=0
        ... )
        >>> sorted(os.listdir(log_dir))
        ['train', 'validation']

    Reference:
        Wu et al., On the Quantitative Analysis of Decoder-Based Generative Models,
        arXiv 1611.04273.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        validation_data: Array | tf.data.Dataset | None = None,
        nll_every: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(nll_every, int) or nll_every < 0:
            raise ValueError(
                "`nll_every` must be a number of epochs, or 0 to disable estimates. "
                f"Received: nll_every={nll_every!r}"
            )
        self.log_dir = os.fspath(log_dir)
        self.nll_every = nll_every
        self.seed = seed
        self._validation = None if validation_data is None else _first(validation_data)
        self._writers: dict[str, tf.summary.SummaryWriter] = {}

    def on_train_begin(self, logs: Logs = None) -> None:
        """Checks the class of the model, and creates the folder."""
        if not isinstance(self.model, MonteCarloVAE):
            raise TypeError(
                f"The model must be a tf_mcvae model. Received: {type(self.model).__name__}"
            )
        try:
            tf.io.gfile.makedirs(self.log_dir)
        except tf.errors.OpError as error:
            raise ValueError(
                f"The folder for TensorBoard cannot be created ({error.message}): choose another. "
                f"Received: {self.log_dir!r}"
            ) from error

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Remembers the learning rate."""
        self._learning_rate = float(self.model.optimizer.learning_rate)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Writes the metrics and images of the epoch; if that fails, training continues."""
        with optional(f"TensorBoard's record of epoch {epoch + 1}"):
            self._record(epoch, logs or {})

    def _record(self, epoch: int, logs: Mapping[str, float]) -> None:
        training: Values = {"learning_rate": self._learning_rate, **self._step_sizes()}
        validation: Values = {}
        for name, value in logs.items():
            held_out = name.startswith("val_")
            (validation if held_out else training)[name.removeprefix("val_")] = float(value)
        if self._validation is not None and self.nll_every and (epoch + 1) % self.nll_every == 0:
            validation["nll"] = self._nll()
        if len(self.model.event_shape) == 3:
            training["samples"] = self.model.sample(_SAMPLES, seed=self.seed)
            if self._validation is not None:
                validation["reconstructions"] = self._pairs()
        self._write("train", training, epoch + 1)
        self._write("validation", validation, epoch + 1)

    def on_train_end(self, logs: Logs = None) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}

    def _step_sizes(self) -> dict[str, float]:
        if not isinstance(self.model, AnnealedVAE):
            return {}
        values = np.asarray(self.model.step_size.values())
        medians = np.median(values.reshape(len(values), -1), axis=1)
        return {f"step_size_{k}": float(value) for k, value in enumerate(medians, 1)}

    def _nll(self) -> float:
        """Returns the quick estimate."""
        return estimate_log_likelihood(
            self.model,
            self._validation,
            num_chains=10,
            num_temperatures=4,  # 3 transitions.
            num_leapfrog_steps=3,
            seed=self.seed,
        ).nll

    def _pairs(self) -> Array:
        """Returns images and reconstructions alternately, `[2 N, H, W, C]`."""
        x = np.asarray(self._validation)[:_RECONSTRUCTIONS]
        pairs = np.stack([x, self.model.reconstruct(x)], axis=1)
        return pairs.reshape(-1, *x.shape[1:])

    def _write(self, run: str, values: Values, step: int) -> None:
        if not values:
            return  # Without validation data there is no run `validation`.
        if run not in self._writers:
            path = os.path.join(self.log_dir, run)
            self._writers[run] = tf.summary.create_file_writer(path)
        summary = tf.compat.v1.Summary(value=[_value(tag, value) for tag, value in values.items()])
        with self._writers[run].as_default():
            # Unlike this, `tf.summary.scalar` and `image` need the `tensorboard` package.
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=step)
        self._writers[run].flush()


def _first(data: Array | tf.data.Dataset) -> Array:
    """Returns the first images of an array or of a dataset of batches."""
    if not isinstance(data, tf.data.Dataset):
        return np.asarray(data[:_NLL_EXAMPLES], np.float32)
    batch = next(iter(data.unbatch().batch(_NLL_EXAMPLES)))
    return np.asarray(keras.utils.unpack_x_y_sample_weight(batch)[0], np.float32)


def _value(tag: str, value: float | Array) -> tf.compat.v1.Summary.Value:
    """Returns a number, or images `[N, H, W, C]` as one picture, in TensorBoard's format."""
    protocol = tf.compat.v1.Summary
    if isinstance(value, float):
        return protocol.Value(tag=tag, simple_value=value)
    picture = tile_images(value)
    height, width, channels = picture.shape
    encoded = tf.io.encode_png(picture).numpy()
    image = protocol.Image(
        height=height, width=width, colorspace=channels, encoded_image_string=encoded
    )
    return protocol.Value(tag=tag, image=image)
