#!/usr/bin/env bash
# Runs the tests with each supported version of TensorFlow, in an environment of its own.
#
#   scripts/test_versions.sh                               # all versions
#   scripts/test_versions.sh 2.18 2.20                     # these versions
#   scripts/test_versions.sh 2.18 -- -n 0 tests/kernels    # with arguments for pytest
#
# Variables:
#   PYTHON        Interpreter of the environments; python3 by default.
#   ENVIRONMENTS  Folder of the environments (2.5 GB each), which are kept and used again. By
#                 default a temporary folder, in which each is removed after its run.
#   RESULTS       Folder for table.md and for the output of pip and pytest; build/versions by
#                 default.
set -euo pipefail
cd "$(dirname "$0")/.."

# The constraints of each row. Later releases of tensorflow-metadata, which TFDS imports, need a
# protobuf that TensorFlow 2.18 and 2.19 do not allow, and do not tell pip.
declare -A ROWS=(
  [2.18]="tensorflow==2.18.1 keras==3.8.0 tf-keras==2.18.* numpy==2.0.*
    tensorflow-metadata<1.18"
  [2.19]="tensorflow==2.19.1 keras==3.10.* tf-keras==2.19.*
    tensorflow-metadata<1.18"
  [2.20]="tensorflow==2.20.* keras==3.12.* tf-keras==2.20.*"
  [2.21]="tensorflow==2.21.* keras==3.15.* tf-keras==2.21.*"
)
PACKAGES=(tensorflow keras tensorflow-probability numpy)
COUNTS=(passed failed error skipped)

# Installs this package and what its tests need into the environment $1, as $2 constrains.
install() {
  "${PYTHON:-python3}" -m venv "$1" &&
    "$1/bin/python" -m pip install --upgrade pip &&
    "$1/bin/python" -m pip install --editable '.[test]' --constraint "$2"
}

# Prints the exact versions in the environment $1, as cells of the table.
exact_versions() {
  "$1/bin/python" - "${PACKAGES[@]}" <<'END'
import importlib.metadata, platform, sys
print(platform.python_version(), *map(importlib.metadata.version, sys.argv[1:]), sep=" | ")
END
}

# Prints the number before the word $2 in the summary of pytest's output $1, or 0. Libraries may
# still write lines after the summary.
count() {
  grep -P " in [0-9.]+s" "$1" | tail -n 1 | grep -oP "[0-9]+(?= $2)" || echo 0
}

versions=()
while (($#)) && [[ $1 != -- ]]; do
  if [[ ! -v ROWS[$1] ]]; then
    echo "Expected versions out of ${!ROWS[*]}. Received: $1" >&2
    exit 2
  fi
  versions+=("$1")
  shift
done
if (($#)); then shift; fi # The `--`.
if ((${#versions[@]} == 0)); then
  mapfile -t versions < <(printf '%s\n' "${!ROWS[@]}" | sort)
fi

results=$(realpath -m "${RESULTS:-build/versions}")
mkdir -p "$results"
if [[ -v ENVIRONMENTS ]]; then
  environments=$(realpath -m "$ENVIRONMENTS")
else
  environments=$(mktemp -d)
  trap 'rm -rf "$environments"' EXIT
fi

table=$results/table.md
columns=(python "${PACKAGES[@]}" "${COUNTS[@]}" seconds)
{
  printf '| %s ' "${columns[@]}"
  printf '|\n'
  printf '| --- %.0s' "${columns[@]}"
  printf '|\n'
} >"$table"
status=0
for version in "${versions[@]}"; do
  environment=$environments/$version
  log=$results/$version
  printf '%s\n' ${ROWS[$version]} >"$log.constraints.txt"
  echo "TensorFlow $version: installing ($log.pip.txt)"
  if ! install "$environment" "$log.constraints.txt" >"$log.pip.txt" 2>&1; then
    echo "TensorFlow $version could not be installed" | tee -a "$table"
    status=1
    continue
  fi
  echo "TensorFlow $version: testing ($log.pytest.txt)"
  start=$SECONDS
  PATH=$environment/bin:$PATH python -m pytest "$@" >"$log.pytest.txt" 2>&1 || status=1
  {
    printf '| %s ' "$(exact_versions "$environment")"
    for word in "${COUNTS[@]}"; do printf '| %s ' "$(count "$log.pytest.txt" "$word")"; done
    echo "| $((SECONDS - start)) |"
  } >>"$table"
  if [[ ! -v ENVIRONMENTS ]]; then rm -rf "$environment"; fi
done
cat "$table"
exit "$status"
