# Sourced by demo.sh and test.sh: creates .venv from a requirements file if needed, and activates it.
# Uses uv if it is installed, otherwise python3 -m venv and pip. PYTHON=python3.12 picks an interpreter.

make_environment() {  # make_environment requirements.txt
    local requirements=$1 python=${PYTHON:-python3} stamp
    stamp=.venv/.installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$(basename "$requirements" .txt)
    if [ ! -e "$stamp" ]; then
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            echo "error: Python 3.11 or newer is needed; pick one with PYTHON=python3.11" >&2
            exit 2
        fi
        echo "installing $requirements into .venv (once; takes a few minutes)"
        if command -v uv >/dev/null; then
            [ -e .venv ] || uv venv --quiet --python "$python" .venv
            uv pip install --quiet --python .venv -r "$requirements"
        else
            .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
            .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements"
        fi
        touch "$stamp"
    fi
    . .venv/bin/activate
    # Waiting threads sleep instead of spinning, so that training stays fast on a busy machine.
    export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
}
