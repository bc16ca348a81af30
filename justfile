# The Python to use and where its environment goes: `just PYTHON=python3.13 VENV=.venv-3.13 test`
export PYTHON := env("PYTHON", "python3")
export VENV := env("VENV", ".venv")
bin := quote(VENV / "bin")
DOCKER := env("DOCKER", "docker")

# Whatever the environment says, keep what Python has compiled: the tests start hundreds of processes.
export PYTHONDONTWRITEBYTECODE := ""

# How requirements are pinned: for every platform and every Python from 3.11 on.
pins := "--quiet --universal --generate-hashes --no-header --no-strip-extras --python-version 3.11"

# What ruff does not know yet: cancellation that is swallowed or not shielded, yields and returns across nurseries.
async_rules := "ASYNC101,ASYNC102,ASYNC103,ASYNC104,ASYNC113,ASYNC118,ASYNC119,ASYNC120,ASYNC121,ASYNC122,ASYNC123"

set positional-arguments

# build and run the service
default: run

# run the service; flags go to `jobpipe serve`: just run --port 9090
[continue]  # Ctrl+C is the service's to handle, not an error. An older just? It takes 1.54: pip install -U rust-just
run *flags: (_venv "build")
    @exec {{bin}}/jobpipe serve "$@"

# run the tests; arguments go to pytest: just test tests/store -k claim
test *args: (_venv "dev")
    {{bin}}/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal "$@"

# run the slow ones: real processes, every command of the docs, a million rows, long lives of jobs, the benchmarks
test-slow *args: (_venv "dev")
    {{bin}}/python -m pytest -m "slow and not crash and not nodes" --numprocesses auto --maxprocesses 4 --dist worksteal "$@"

# run the tests that kill the real process again and again, 50 times under load; more: JOBPIPE_TEST_KILLS=200 just test-crash
test-crash *args: (_venv "dev")
    {{bin}}/python -m pytest -m crash --numprocesses auto --maxprocesses 4 --dist worksteal "$@"

# the same with 10 kills, half a minute
test-crash-short: (_venv "dev")
    JOBPIPE_TEST_KILLS=10 {{bin}}/python -m pytest -m crash --numprocesses auto --maxprocesses 4 --dist worksteal

# run three nodes over one PostgreSQL that end again and again, 50 kills in one run; more: JOBPIPE_TEST_KILLS=200 just test-nodes
test-nodes *args: (_venv "dev")
    {{bin}}/python -m pytest -m nodes "$@"

# the same with 4 kills, a minute and a half
test-nodes-short: (_venv "dev")
    JOBPIPE_TEST_KILLS=4 {{bin}}/python -m pytest -m nodes

# run the tests with disks and clocks that fail and with bad handlers; thorough: JOBPIPE_TEST_COPIES=200 just test-faults
test-faults *args: (_venv "dev")
    {{bin}}/python -m pytest -m faults --numprocesses auto --maxprocesses 4 --dist worksteal "$@"

# the quick half of test-faults, a quarter of a minute: a full disk, a failed fsync, a moved file, clocks, copies
test-faults-short: (_venv "dev")
    {{bin}}/python -m pytest -m faults --numprocesses auto --maxprocesses 4 -k "full_disk or one_failure or moved_away_is or short_lock or clock_that or copies or cleanup or come_back"

# run everything at once under many schedules of Trio; fewer: just test-race --race-seeds 25; one again: --race-seed 17
test-race *args: (_venv "dev")
    {{bin}}/python -m pytest -m race tests/race --race-seeds 200 --numprocesses auto --maxprocesses 8 --dist worksteal "$@"

# test the tests: broken variants of jobpipe, each of which must be caught
test-mutants *args: (_venv "dev")
    {{bin}}/python -m pytest -m mutants tests/mutants --numprocesses auto --maxprocesses 8 "$@"

# run the tests that drive Chromium (Debian: apt-get install chromium)
test-browser *args: (_venv "dev")
    {{bin}}/python -m pytest -m browser "$@"

# check the alert rules, and test when each of them fires (Debian: apt-get install prometheus)
test-alerts:
    @command -v promtool >/dev/null || { echo "There is no promtool here: install it with Debian's package prometheus, or from a release of Prometheus" >&2; exit 1; }
    promtool check rules docs/monitoring/alerts.yml
    promtool test rules tests/monitoring/alerts.yml

# generate clients from the spec in TypeScript and Python, compile and use them (needs Node.js 20.19 or newer, and npm)
test-clients *args: (_venv "dev")
    VENV="$VENV-clients" {{quote(just_executable())}} _venv clients
    JOBPIPE_TEST_CLIENTS="$VENV-clients" {{bin}}/python -m pytest -m clients "$@"

# run the tests and show which lines and branches they did not reach
coverage *args: (_venv "dev")
    {{bin}}/python -m pytest --numprocesses auto --maxprocesses 8 --cov --cov-report term-missing "$@"

# measure what jobpipe costs beside the least that the same work can cost, about half an hour: just bench --help
bench *args: (_venv "build")
    {{bin}}/python -m benchmarks "$@"

# the same in a minute: shows that it runs, not how fast
bench-short *args: (_venv "build")
    {{bin}}/python -m benchmarks --short "$@"

# the same over PostgreSQL, beside PgQueuer and Procrastinate, with 1, 2 and 4 nodes: just bench-postgres --help
bench-postgres *args:
    VENV="$VENV-bench-postgres" {{quote(just_executable())}} _venv bench-postgres
    "$VENV-bench-postgres/bin/python" -m benchmarks.postgres "$@"

# compare a revision with this tree as it is, in turns: just bench-ab HEAD~5 drain; what there is: just bench-ab --help
bench-ab *args: (_venv "dev")
    @exec {{bin}}/python -m benchmarks.ab "$@"

# write stores as this version does, for the tests of later versions: once a release
keep-stores: (_venv "dev")
    {{bin}}/python -W ignore -m tests.store.writing

# read the code without running it: lint, format, types, imports
vet: (_venv "dev")
    {{bin}}/ruff check . && {{bin}}/ruff format --check . && {{bin}}/mypy && {{bin}}/lint-imports --no-cache --no-logo
    git ls-files --cached --others --exclude-standard '*.py' | xargs -n 50 -P "$(nproc 2>/dev/null || echo 2)" {{bin}}/flake8-async --enable {{async_rules}}

# put right what `vet` can put right by itself
fix: (_venv "dev")
    {{bin}}/ruff check --fix-only . && {{bin}}/ruff format .

# everything that CI runs
check: test vet test-slow test-mutants (test-race "--race-seeds" "10") test-faults-short test-browser test-alerts test-nodes-short test-crash-short

# build the Docker image `jobpipe`
build: _docker
    {{DOCKER}} build --tag jobpipe .

# run the image on port 8080, its database in the volume `jobpipe-data`; flags go to `jobpipe serve`
docker-run *flags: build
    {{DOCKER}} run --rm --name jobpipe --publish 127.0.0.1:8080:8080 --volume jobpipe-data:/data --stop-timeout 40 jobpipe serve "$@"

# remake requirements/*.txt from pyproject.toml (needs uv); newest of all: just lock --upgrade
lock *flags:
    uv pip compile {{pins}} "$@" --all-extras --output-file requirements/runtime.txt pyproject.toml
    for group in build clients dev just bench-postgres; do uv pip compile {{pins}} "$@" --constraints requirements/runtime.txt --group $group --output-file requirements/$group.txt; done

_docker:
    @command -v {{DOCKER}} >/dev/null || { echo "There is no {{DOCKER}} here: install it, or name another: just DOCKER=podman build" >&2; exit 1; }

# bring the environment up to date: the pins of runtime.txt and GROUP.txt, hashes checked, and the package itself
_venv group:
    #!/usr/bin/env bash
    set -euo pipefail
    runtime=requirements/runtime.txt tools="requirements/$1.txt" stamp="$VENV/$1.stamp"
    python="$("$PYTHON" -VV)"
    wanted="$python $(cat pyproject.toml "$runtime" "$tools" | cksum)"
    if [ "$wanted" = "$(cat "$stamp" 2>/dev/null)" ]; then exit; fi
    "$PYTHON" -c 'import sys; sys.version_info < (3, 11) and sys.exit("jobpipe needs Python 3.11 or newer: just PYTHON=python3.11")'
    echo "Setting up $VENV (${python%% (*}) ..." >&2
    if [ "$python" != "$("$VENV/bin/python" -VV 2>/dev/null)" ]; then clear=--clear; else clear=; fi
    "$PYTHON" -m venv $clear "$VENV"
    pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --quiet install "$@"; }
    pip --require-hashes --requirement "$runtime" --requirement "$tools"
    pip --no-deps --no-build-isolation --editable .
    echo "$wanted" > "$stamp"
