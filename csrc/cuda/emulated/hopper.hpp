// The functions of instructions.cuh on the CPU: what the PTX ISA says, as far as a program can tell, and
// an error where a program relies on more. csrc/cuda/README.md says what this leaves open.
#pragma once

#include "launch.hpp"
