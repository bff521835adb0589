"""The units of several runs in one picture: `python -m benchmark.diagnosis.together OUT.svg RUN_DIR
...`, each diagnosed before."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmark.diagnosis import figures
from benchmark.diagnosis.drawing import svg

COLUMNS = ("signal", "noise", "rate", "bound", "capacity", "heterogeneity", "mismatch")


def together(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One record of all their units, numbered on; of the same thresholds, the first one's."""
    units = {name: [v for each in records for v in each["units"][name]] for name in COLUMNS}
    words = {name: [v for each in records for v in each[name]] for name in ("verdicts", "flags")}
    return {"thresholds": records[0]["thresholds"], "units": units, **words}


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    if len(arguments) < 2 or {"-h", "--help"} & {*arguments}:
        sys.stdout.write(f"{__doc__}\n")
        return 0 if {"-h", "--help"} & {*arguments} else 2
    out, *runs = map(Path, arguments)
    try:
        record = together([json.loads((run / "diagnosis.json").read_bytes()) for run in runs])
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"no diagnosis: {error}; python -m benchmark.diagnose RUN_DIR makes it\n")
        return 1
    ((_, sheet),) = figures.sheets(record, ["signal"])
    root = svg(sheet.figure, sheet.summary, "units")
    out.write_text(ElementTree.tostring(root, encoding="unicode") + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
