"""Write the record of the compiled kernels anew: ``python -m benchmarks.aot [PART ...]``.

Parts: ``triton`` compiles every Triton kernel for every architecture, in a quarter of an hour;
``cuda`` reads what nvcc built; ``predictions`` takes both records, and writes the tables in
``csrc/cuda/*.md`` and ``benchmarks/README.md``, and ``kernels/predicted.json``, which ``mbt-fast
info`` reads.
"""

import argparse
import json

from benchmarks.aot import predictions, record, tables

PARTS = {"triton": record.triton_record, "cuda": record.cuda_record}


def main() -> None:
    """Write the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    everything = [*PARTS, "predictions"]
    parser.add_argument("parts", nargs="*", choices=everything, default=everything, metavar="PART")
    parts = parser.parse_args().parts
    for name, path in record.PATHS.items():
        if name in parts:
            record.write(path, PARTS[name]())
    if "predictions" in parts:
        records = {name: json.loads(path.read_text()) for name, path in record.PATHS.items()}
        found = predictions.predictions(**records)
        predictions.PATH.write_text(json.dumps(found, indent=1) + "\n")
        tables.write(records["cuda"], found)


if __name__ == "__main__":
    main()
