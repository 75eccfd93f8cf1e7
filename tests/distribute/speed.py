"""Times an epoch: `python speed.py one|mirrored|workers [BATCH_SIZE]`; see docs/distributed.md."""

import sys
import time

import keras
from trained import strategy_of

import tf_mcvae
from tf_mcvae import distribute


class Times(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        print(f"{1000 * (time.perf_counter() - self.start) / self.params['steps']:.1f} ms a step")


def main(devices, batch_size="100"):
    strategy = strategy_of(devices)
    data = tf_mcvae.datasets.load("digits", batch_size=int(batch_size), binarize="dynamic")
    with distribute.scope(strategy):
        options = {"architecture": "dense", "hidden_units": (512, 512)}
        encoder = tf_mcvae.Encoder(16, **options)
        decoder = tf_mcvae.Decoder((8, 8, 1), **options)
        step_size = tf_mcvae.StepSize(0.01, "acceptance")
        model = tf_mcvae.LMCVAE(encoder, decoder, num_transitions=5, step_size=step_size)
        model.build((None, 8, 8, 1))
        model.compile("adam")
    model.fit(distribute.by_examples(data.train), epochs=5, verbose=0, callbacks=[Times()])


if __name__ == "__main__":
    main(*sys.argv[1:])
