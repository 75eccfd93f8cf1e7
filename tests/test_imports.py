"""The directions of the package's imports, by its syntax trees, and the modules that it loads."""

import ast
import functools
import os
import pathlib
import re
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "tf_mcvae"

ROOT = PACKAGE.parent
FILE = ROOT / "tests/saved_files/0.1.0/vae.keras"
COMMANDS = ROOT / "tf_mcvae_commands"


def read_directions():
    """The rooms that each room may import, from the table in CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", text, re.MULTILINE)
    rooms = {room for room, _ in rows}
    everything = {
        "all rooms": rooms,
        "all rooms but `cli`": rooms - {"cli", "commands"},
    }
    return {room: everything.get(cell) or set(re.findall(r"`(\w+)`", cell)) for room, cell in rows}


MAY_IMPORT = read_directions()

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
} | {f"commands.{path.stem}": ast.parse(path.read_text()) for path in COMMANDS.glob("*.py")}


def names_imported(tree, deep=True):
    """The dotted names that a module imports, only at its top or also within functions."""
    for node in ast.walk(tree) if deep else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Relative imports would hide the direction.
            assert node.level == 0, f"line {node.lineno}: import by the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name):
    """The module of this package that `tf_mcvae.a.b.C` is, or that contains it."""
    name = name.replace("tf_mcvae_commands", "tf_mcvae.commands")
    parts = name.split(".")[1:]
    for end in range(len(parts), 0, -1):
        for candidate in (parts[:end], [*parts[:end], "__init__"]):
            if ".".join(candidate) in MODULES:
                return ".".join(candidate)
    return "__init__"


@functools.cache
def imports(module, deep=True):
    """The modules of both packages that `module` imports, also within functions if `deep`."""
    names = names_imported(MODULES[module], deep)
    packages = ("tf_mcvae", "tf_mcvae_commands")
    return {module_of(name) for name in names if name.split(".")[0] in packages}


def entry(module):
    return module.split(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_imports_have_the_directions_of_the_design(module):
    allowed = MAY_IMPORT[entry(module)] | ({entry(module)} if "." in module else set())
    forbidden = {name for name in imports(module) if entry(name) not in allowed}
    assert not forbidden


def test_each_room_has_a_row():
    assert set(map(entry, MODULES)) == set(MAY_IMPORT)


@pytest.mark.parametrize("module", [name for name in MODULES if entry(name) == "commands"])
def test_commands_import_the_library_within_functions(module):
    """At the top they import no other room, which would import TensorFlow."""
    assert {entry(name) for name in imports(module, False)} <= {"commands"}


def test_no_cycles():
    """Neither between modules nor, at their top, between rooms."""
    for graph in (
        {module: imports(module) for module in MODULES},
        {
            name: {entry(i) for m in MODULES if entry(m) == name for i in imports(m, False)}
            - {name}
            for name in map(entry, MODULES)
        },
    ):
        while graph:
            leaves = {name for name in graph if not graph[name] & graph.keys()}
            assert leaves, f"a cycle among {sorted(graph)}"
            graph = {name: graph[name] for name in graph.keys() - leaves}


@pytest.mark.parametrize("module", MODULES)
def test_keras_2_is_not_used(module):
    """Neither TFP's Keras layers nor `tf.keras` are used."""
    tree = MODULES[module]
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= set(names_imported(tree))
    forbidden = ("tf_keras", "tfp.layers", "tensorflow_probability.layers", "tf.keras")
    forbidden += ("tensorflow_probability.python.layers", "tensorflow.keras", "keras.src")
    assert not [n for n in used if any(n == f or n.startswith(f"{f}.") for f in forbidden)]


def test_only_one_room_asks_about_strategies():
    """Docstrings may name `tf.distribute`; the code of the other rooms reads as for one device."""
    room = PACKAGE / "distribute"
    words = ("tf.distribute", "num_replicas_in_sync", "has_strategy", "get_replica_context")
    asking = set()
    for folder in (PACKAGE, PACKAGE.parent / "tf_mcvae_commands"):
        for path in folder.rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            names = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
            if any(word in name for word in words for name in names):
                asking.add(path)
    assert room / "replicas.py" in asking
    assert not [path for path in asking if room not in path.parents]


def test_walk_sees_all_imports():
    """A walk that sees nothing would pass the tests above."""
    tree = ast.parse(
        "def f():\n    from tf_mcvae.models.vae import VAE\n    import tf_mcvae_commands.train as c"
    )
    assert {module_of(name) for name in names_imported(tree)} == {"models.vae", "commands.train"}
    assert not list(names_imported(tree, deep=False))
    assert module_of("tf_mcvae.VAE") == module_of("tf_mcvae") == "__init__"
    assert module_of("tf_mcvae.kernels.MetropolisHastings") == "kernels.__init__"
    assert "base" not in imports("models.vae")
    assert "models.base" in imports("models.vae")


OPTIONAL = {"tensorflow_datasets", "sklearn", "matplotlib", "PIL"}
OPTIONAL |= {"ai_edge_litert", "onnx", "onnxruntime", "tf2onnx"}


@pytest.mark.parametrize("module", MODULES)
def test_optional_packages_are_imported_where_they_are_used(module):
    """Importing the module does not import them. (Keras imports some that are installed.)"""
    names = names_imported(MODULES[module], deep=False)
    assert not {name.split(".")[0] for name in names} & OPTIONAL


def test_importing_the_package_does_not_import_data_sets_or_the_command_line(tmp_path):
    """In a script named as a command, for `import tf_mcvae` is the same in every program."""
    script = tmp_path / "train_keras.py"
    script.write_text(
        "import sys, tf_mcvae\nprint(*sys.modules, sep='\\n')\n"
        f"import keras\nprint(keras.models.load_model({str(FILE)!r}).name)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, env=environment
    )
    *loaded, name = done.stdout.split()
    assert name == "vae"  # Keras knows the classes.
    loaded = set(loaded)
    assert "tf_mcvae.models.vae" in loaded
    # Keras imports matplotlib and parts of scikit-learn if they are installed.
    heavy = {"tensorflow_datasets", "sklearn.datasets"}
    assert not loaded & {*heavy, "tf_mcvae_commands.train", "tf_mcvae.cli.training"}


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["train_keras.py", "--help"], "--num-transitions"),
        (["train_keras.py", "--num-transitions", "0"], "error: --num-transitions"),
        (["-m", "tf_mcvae_commands.evaluate", "--help"], "--preset"),
        (
            ["-m", "tf_mcvae_commands.evaluate", "x", "--chains", "0"],
            "error: --num-chains/--chains",
        ),
        (["-m", "tf_mcvae_commands.evaluate", "nowhere"], "error: There is no such run"),
    ],
    ids=str,
)
def test_commands_answer_without_tensorflow(command, answer, tmp_path):
    """Importing TensorFlow would take seconds; here it fails."""
    for name in ("tensorflow", "keras", "tensorflow_probability"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('too slow')")
    root = PACKAGE.parent
    paths = os.pathsep.join([str(tmp_path), str(root)])
    done = subprocess.run(
        [sys.executable, *command],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert answer in done.stdout + done.stderr
    assert "too slow" not in done.stderr


def test_dir_lists_public_names_only():
    import tf_mcvae

    assert set(dir(tf_mcvae)) == {*tf_mcvae.__all__, "__version__"}
    assert all(hasattr(tf_mcvae, name) for name in dir(tf_mcvae))
