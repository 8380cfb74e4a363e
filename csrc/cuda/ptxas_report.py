"""Write ptxas's reports as a header: ``python ptxas_report.py build_info.hpp *.log``.

ptxas says what a kernel needs while it compiles; nobody can ask the extension later without a GPU.
What it warns of is also printed.
"""

import json
import re
import sys
from pathlib import Path

NAME = r"\S*?\d([a-z_]+_kernel)([^\s']*)"  # mangled
KERNEL = re.compile(
    rf"Function properties for {NAME}\n"
    r"\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
    r".*Used (\d+) registers"
)


def kernels(log: str) -> dict[str, tuple[int, int, int]]:
    """Registers at entry, stack bytes and spilled bytes per kernel, by name and arguments."""
    found = {}
    for name, arguments, stack, stores, loads, registers in KERNEL.findall(log):
        found[readable(name, arguments)] = (int(registers), int(stack), int(stores) + int(loads))
    return found


def readable(name: str, arguments: str) -> str:
    """A kernel's name and the arguments of its template."""
    given = re.findall(r"Bfloat16|Float16|(?<=L[ib])\d+", arguments.partition("EEEv")[0])
    return " ".join([name.removesuffix("_kernel"), *map(str.lower, given)])


def warnings(log: str) -> list[str]:
    """Warnings of ptxas, number first; C7510 to C7519 say that products are serialised."""
    found = [f"{number}: {said}" for number, said in re.findall(r"\((C\d{4})\) *(.*)", log)]
    return [re.sub(f"'{NAME}'", lambda match: readable(*match.groups()), said) for said in found]


def main(header: str, *logs: str) -> None:
    """Write the header."""
    texts = [Path(log).read_text() for log in logs]
    found = {name: needs for text in texts for name, needs in kernels(text).items()}
    said = [warning for text in texts for warning in warnings(text)]
    for warning in said:
        sys.stdout.write(f"mbt_fast: ptxas warns: {warning}\n")
    rows = [f'    {{"{name}", {{{", ".join(map(str, needs))}}}}},' for name, needs in found.items()]
    Path(header).write_text(
        "// Written by csrc/cuda/ptxas_report.py: registers, stack bytes, spilled bytes.\n"
        "const std::map<std::string, std::array<int, 3>> kPtxas = {\n" + "\n".join(rows) + "\n};\n"
        f"const std::vector<std::string> kPtxasWarnings = {{{', '.join(map(json.dumps, said))}}};\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
