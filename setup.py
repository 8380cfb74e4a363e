"""Build and install mbt_fast. Metadata is in pyproject.toml; here is only what must be computed.

MBT_FAST_NATIVE  auto (default): build csrc/ into mbt_fast._C where a C++17 compiler is found and
                 works (g++ 11, clang++ 12 or newer); else install without it, and say why
                 1: build it or fail       0: never build it
CXX              the compiler; default c++, g++ or clang++, the first on the PATH
CXXFLAGS         more options for it, after ours
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOTS = {"mbt_fast": "mbt_fast", "mbt_fast.kernels": "kernels"}
AVX2 = "-mavx2 -mfma -mf16c -ffp-contract=off"  # kernels say where they want a multiply-add
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl"
SOURCES = {  # with flags of their own
    "csrc/bindings.cpp": "",
    "csrc/cpu/features.cpp": "",
    "csrc/cpu/attention.cpp": "",
    "csrc/cpu/bias_gelu.cpp": "",
    "csrc/cpu/add_layer_norm.cpp": "",
    "csrc/cpu/instruction_sets.cpp": "",
}
if platform.machine().lower() in ("x86_64", "amd64"):  # one translation unit per instruction set
    SOURCES |= {
        "csrc/cpu/avx2.cpp": AVX2,
        "csrc/cpu/avx512.cpp": AVX512,
        "csrc/cpu/avx512_bf16.cpp": f"{AVX512} -mavx512bf16",
        "csrc/cpu/amx.cpp": f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16",
        "csrc/cpu/amx_emulated.cpp": f"{AVX512} -mavx512bf16",
    }
FLAGS = (
    "-O3 -std=c++17 -fPIC -fvisibility=hidden -fopenmp -Wall -Wextra -Werror=return-type"
    " -Wno-maybe-uninitialized"  # false alarms inside GCC 12's own headers of intrinsics
)


def compiler() -> str | None:
    """The C++ compiler's command, if there is one."""
    named = os.environ.get("CXX")
    candidates = [named] if named else ["c++", "g++", "clang++"]
    return next((c for c in candidates if shutil.which(shlex.split(c)[0])), None)


def why_not_native() -> str | None:
    """The first reason against building csrc/, or None."""
    if os.environ.get("MBT_FAST_NATIVE", "auto") == "0":
        return "MBT_FAST_NATIVE=0"
    if os.name != "posix":
        return f"the build knows POSIX compilers only, and this is {sys.platform}"
    if compiler() is None:
        return "no C++ compiler is found; install g++ or clang++, or set CXX"
    try:
        import ninja  # noqa: F401
        import pybind11  # noqa: F401
    except ImportError as error:
        return f"the build needs the Python package {error.name!r}"
    return None


def first_error(output: str) -> str:
    """The line of a compiler's output that names the error, with a hint where one is known."""
    lines = output.splitlines() or ["it says nothing"]
    line = next((line for line in lines if "error:" in line.lower()), lines[-1]).strip()
    hint = "; install Python's headers (python3-dev or python3-devel)" if "Python.h" in line else ""
    return line + hint


class NinjaBuild(build_ext):
    """Compile and link the extension by ninja: parallel, and only what changed."""

    def build_extension(self, ext: Extension) -> None:
        """Write build.ninja beside the objects and run it; setuptools forgives an optional one."""
        import ninja

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(folder / "build.ninja", "w") as file:
            self.write_ninja(ninja.ninja_syntax.Writer(file), target)
        command = [Path(ninja.BIN_DIR) / "ninja", "-C", folder]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        print(done.stdout, flush=True)
        if done.returncode:
            reason = f"{compiler()} failed: {first_error(done.stdout)}"
            if ext.optional:
                print(f"mbt_fast: building without mbt_fast._C: {reason}", flush=True)
            raise CompileError(reason)

    def write_ninja(self, out, target: Path) -> None:
        """One rule to compile, one to link."""
        import pybind11

        includes = [pybind11.get_include(), sysconfig.get_path("include")]
        out.variable("cxx", compiler())
        out.variable("flags", f"{FLAGS} {' '.join(f'-isystem {path}' for path in includes)}")
        out.variable("more", os.environ.get("CXXFLAGS", ""))
        compile_one = "$cxx -MMD -MF $out.d $flags $extra $more -c $in -o $out"
        out.rule("compile", compile_one, depfile="$out.d", deps="gcc")
        undefined = "-undefined dynamic_lookup" if sys.platform == "darwin" else ""
        out.rule("link", f"$cxx -shared -fopenmp $more {undefined} $in -o $out")
        objects = []
        for source, extra in SOURCES.items():
            path = Path(source).resolve()
            name = str(Path(source).with_suffix(".o")).replace(os.sep, "_")
            objects += out.build(name, "compile", str(path), variables={"extra": extra})
        out.build(str(target), "link", objects)


def native() -> dict:
    """Arguments of ``setup`` for the extension, or none with a sentence that says why."""
    reason = why_not_native()
    if reason is None:
        optional = os.environ.get("MBT_FAST_NATIVE") != "1"
        extension = Extension("mbt_fast._C", list(SOURCES), language="c++", optional=optional)
        return {"ext_modules": [extension], "cmdclass": {"build_ext": NinjaBuild}}
    if os.environ.get("MBT_FAST_NATIVE") == "1":
        raise SystemExit(f"MBT_FAST_NATIVE=1, but {reason}")
    print(f"mbt_fast: building without mbt_fast._C: {reason}")
    return {}


setup(
    package_dir=ROOTS,
    packages=[
        f"{name}.{sub}" if sub else name
        for name, folder in ROOTS.items()
        for sub in ("", *find_packages(folder))
    ],
    **native(),
)
