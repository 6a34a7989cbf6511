"""Prints the CustomResourceDefinition, or says whether a file holds it.

python -m retrieval_operator.api.crd > crds/retrievalmodels.retrieval-operator.io.yaml
python -m retrieval_operator.api.crd --chart > charts/retrieval-operator/templates/crd.yaml
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from retrieval_operator.api.crd import chart_template, crd_yaml


def main(arguments: list[str] | None = None) -> int:
    """0: printed, or FILE is what would be printed; 1: it is not."""
    parser = argparse.ArgumentParser(prog="python -m retrieval_operator.api.crd", description=__doc__)
    parser.add_argument("--chart", action="store_true", help="the chart's template instead of the plain definition")
    parser.add_argument("--check", metavar="FILE", type=Path, help="compare FILE instead of printing")
    options = parser.parse_args(arguments)
    text = chart_template() if options.chart else crd_yaml()
    file: Path | None = options.check
    if file is None:
        sys.stdout.write(text)
        return 0
    if file.exists() and file.read_text(encoding="utf-8") == text:
        return 0
    command = f"{parser.prog}{' --chart' if options.chart else ''} > {file}"
    sys.stderr.write(f"{file} is not what the types say; if their change is intended: {command}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
