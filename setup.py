"""Package metadata, dependencies, extras and the console scripts of tf_mcvae."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "tf_mcvae/__init__.py").read_text("utf-8"), re.MULTILINE
)

ONNX = ["tf2onnx>=1.17,<2", "onnx>=1.18", "onnxruntime>=1.20"]
TFLITE = ["ai-edge-litert>=2,<3"]
# importlib_resources is imported by TFDS, which does not require it on current Pythons.
TFDS = ["tensorflow-datasets>=4.9.10,<5", "importlib_resources>=6"]
PLOTS = ["matplotlib>=3.9"]
# scikit-learn is the reference for the digits that come with this package.
TEST = ["pytest>=8", "pytest-xdist>=3.6", "scikit-learn>=1.5", *TFDS, *PLOTS, *ONNX, *TFLITE]

setup(
    name="tf_mcvae",
    version=VERSION.group(1),
    description="Monte Carlo variational auto-encoders in TensorFlow and Keras 3",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["tf_mcvae", "tf_mcvae.*", "tf_mcvae_commands"]),
    package_data={"tf_mcvae": ["py.typed"], "tf_mcvae.datasets": ["digits.npz"]},
    install_requires=[
        "tensorflow>=2.18,<2.22",
        "keras>=3.8,<3.16",
        # The [tf] extra brings tf-keras, without which TFP cannot be imported.
        "tensorflow-probability[tf]>=0.25,<0.26",
        "numpy>=1.26,<3",
    ],
    extras_require={
        # For the data sets of TFDS, by name or by folder.
        "tfds": TFDS,
        # For the figures of experiments/ and benchmarks/.
        "plots": PLOTS,
        "test": TEST,
        # For clients of a server, and the tests of them.
        "serving": ["tensorflow-serving-api>=2.18,<2.22", "grpcio>=1.60"],
        # For ONNX files; the second to run TFLite files where TensorFlow is not installed.
        "onnx": ONNX,
        "tflite": TFLITE,
        # What benchmarks/ compares with.
        "bench": ["torch>=2.6"],
        "dev": [*TEST, "ruff>=0.12", "mypy>=1.16", "types-setuptools"],
    },
    entry_points={
        "console_scripts": [
            "tf-mcvae-train = tf_mcvae_commands.train:main",
            "tf-mcvae-evaluate = tf_mcvae_commands.evaluate:main",
        ]
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
