"""Write ptxas's reports as a header: ``python ptxas_report.py build_info.hpp *.log``.

ptxas says what a kernel needs while it compiles; nobody can ask the extension later without a GPU.
"""

import re
import sys
from pathlib import Path

KERNEL = re.compile(
    r"Function properties for \S*?\d([a-z_]+_kernel)(\S*)\n"
    r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
    r".*Used (\d+) registers"
)


def kernels(log: str) -> dict[str, tuple[int, int, int]]:
    """Registers at entry, stack bytes and spilled bytes per kernel, by name and arguments."""
    found = {}
    for name, arguments, stack, stores, loads, registers in KERNEL.findall(log):
        given = re.findall(r"Bfloat16|Float16|(?<=L[ib])\d+", arguments.partition("EEEv")[0])
        key = " ".join([name.removesuffix("_kernel"), *map(str.lower, given)])
        found[key] = (int(registers), int(stack), int(stores) + int(loads))
    return found


def warnings(log: str) -> list[str]:
    """Numbers of ptxas's warnings: C7510 to C7519 say that wgmma is serialised."""
    return re.findall(r"\((C\d{4})\)", log)


def main(header: str, *logs: str) -> None:
    """Write the header."""
    texts = [Path(log).read_text() for log in logs]
    found = {name: needs for text in texts for name, needs in kernels(text).items()}
    said = [f'"{number}"' for text in texts for number in warnings(text)]
    rows = [f'    {{"{name}", {{{", ".join(map(str, needs))}}}}},' for name, needs in found.items()]
    Path(header).write_text(
        "// Written by csrc/cuda/ptxas_report.py: registers, stack bytes, spilled bytes.\n"
        "const std::map<std::string, std::array<int, 3>> kPtxas = {\n" + "\n".join(rows) + "\n};\n"
        f"const std::vector<std::string> kPtxasWarnings = {{{', '.join(said)}}};\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
