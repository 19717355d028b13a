"""Install the programs that `pytest --clients` runs: python -m tests.tools.client_programs FOLDER [NAME ...]

Each program in Python gets a virtual environment, FOLDER/NAME. Packages of JavaScript come into FOLDER/node_modules.
Names: llm, langchain, lm-eval, open-webui, javascript; without one, all but open-webui, which is large.
Needs a package index; for JavaScript, npm and node 20 or newer.
"""

import argparse
import subprocess
import sys
from pathlib import Path

# The versions that docs/clients.md names.
PYTHON = {
    "llm": ["llm==0.36"],
    "langchain": ["langchain==1.5.2", "langchain-openai==1.7.4", "langchain-deepseek==1.1.1"],
    # Without its pin, torch brings gigabytes of libraries for GPUs.
    "lm-eval": ["torch==2.13.0", "lm-eval[api]==0.4.13", "transformers>=5,<6"],
    "open-webui": ["torch==2.13.0", "open-webui==0.12.4"],
}
LARGE = ("open-webui",)
JAVASCRIPT = ["openai@7.59.0", "@continuedev/openai-adapters@1.37.0", "@continuedev/cli@1.5.47"]


def run(*command):
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True)


def install(folder, name):
    if name == "javascript":
        run("npm", "install", "--no-audit", "--no-fund", "--prefix", folder, *JAVASCRIPT)
        return
    run(sys.executable, "-m", "venv", folder / name)
    run(folder / name / "bin" / "python", "-m", "pip", "install", "-q", *PYTHON[name])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", choices=[*PYTHON, "javascript", []], default=[])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.names or [each for each in (*PYTHON, "javascript") if each not in LARGE]:
        install(options.folder, name)
    print(f"run QWQ_REF_CLIENTS={options.folder} pytest --clients tests/serve")


if __name__ == "__main__":
    main()
