"""A Markdown table of a test run from its JUnit file: `python -m tests.table FILE ...`.

With several files, a test's last result counts: what failed was mended and run again.
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict


def main(paths: list[str]) -> None:
    cases = {}
    for path in paths:
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            cases[case.attrib["classname"], case.attrib["name"]] = case
    rows: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0])
    for case in cases.values():
        row = rows[".".join(case.attrib["classname"].split(".")[:4])]
        outcome = {child.tag for child in case}
        row[1 if outcome & {"failure", "error"} else 2 if "skipped" in outcome else 0] += 1
        row[3] += float(case.attrib["time"])
    print("# The last run of all tests at full size\n")
    print("| Tests | Passed | Failed | Skipped | Seconds |\n|---|---|---|---|---|")
    for name, (passed, failed, skipped, seconds) in sorted(rows.items()):
        print(f"| {name} | {passed:.0f} | {failed:.0f} | {skipped:.0f} | {seconds:.1f} |")
    totals = [sum(column) for column in zip(*rows.values(), strict=True)]
    print(f"| **all** | {totals[0]:.0f} | {totals[1]:.0f} | {totals[2]:.0f} | {totals[3]:.1f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
