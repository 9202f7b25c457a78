"""Provoke each fault of tests/e2e/faults.py on a real server and print the results, with figures, as a table.

`.venv/bin/python -m benchmarks.faults [names]` uses the folder of the end-to-end tests (.cache/e2e).
"""

import sys

from tests.e2e.conftest import fresh_project
from tests.e2e.faults import SCENARIOS


def main() -> None:
    """Run the scenarios and print a row for each."""
    names = sys.argv[1:] or list(SCENARIOS)
    project = fresh_project()
    print("| fault | what was said | exit code | seconds from fault to end | processes left |\n| --- | --- | --- | --- | --- |")
    try:
        for name in names:
            print(SCENARIOS[name](project).row(), flush=True)
    finally:
        project.run("stop")


if __name__ == "__main__":
    main()
