// AMX for one thread of a machine that has none: SIGILL stops at each of its instructions, which is
// decoded, carried out on plain arrays, and skipped. So the very machine code of amx.cpp runs.
//
// Written from the encodings and operations of the Intel SDM, in scalar code, apart from the
// emulation in csrc/cpu/simd/amx_tiles_emulated.hpp. Anything unexpected ends the program.
#pragma once

#include <signal.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx_traps {

struct Tiles {
  bool are_set_up = false;
  uint32_t words[8][16][16];
};
inline Tiles tiles;
inline int64_t instructions = 0;

[[noreturn]] inline void fail(const char* why) {
  std::fprintf(stderr, "amx_traps: %s\n", why);
  std::abort();
}

// Number of a general register in an instruction, to its place in the saved context.
inline int64_t general(const ucontext_t& context, int number) {
  constexpr int kPlaces[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                             REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return context.uc_mcontext.gregs[kPlaces[number]];
}

// A three-byte VEX instruction of opcode map 0F38, W = 0, 128 bits.
struct Instruction {
  int prefix, opcode, mode, reg, rm, second;  // second: VEX.vvvv
  int64_t address = 0, stride = 0;            // of the memory operand: without index, and the index
  int length = 0;

  Instruction(const uint8_t* code, const ucontext_t& context) {
    if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84)) fail("not an AMX instruction");
    const int x = code[1] & 0x40 ? 0 : 8, b = code[1] & 0x20 ? 0 : 8;
    prefix = code[2] & 3;
    second = ~(code[2] >> 3) & 15;
    opcode = code[3];
    mode = code[4] >> 6;
    reg = (code[4] >> 3) & 7;
    rm = code[4] & 7;
    length = 5;
    if (mode == 3) return;
    bool has_base = true;
    int base = rm;
    if (rm == 4) {
      const int sib = code[length++], index = ((sib >> 3) & 7) | x;
      base = sib & 7;
      if (index != 4) stride = general(context, index) << (sib >> 6);
      has_base = !(base == 5 && mode == 0);
    } else if (rm == 5 && mode == 0) {
      has_base = false;
    }
    int64_t displacement = 0;
    if (mode == 1) displacement = static_cast<int8_t>(code[length++]);
    if (mode == 2 || !has_base) {
      int32_t wide;
      std::memcpy(&wide, code + length, 4);
      displacement = wide;
      length += 4;
    }
    address = displacement;
    if (has_base) address += general(context, base | b);
    if (rm == 5 && mode == 0) address += reinterpret_cast<int64_t>(code) + length;
  }
};

inline void set_up(const uint8_t* shapes) {
  uint8_t expected[64] = {1};  // palette 1, all else zero but the shapes of eight whole tiles
  for (int i = 0; i < 8; ++i) expected[16 + 2 * i] = 64, expected[48 + i] = 16;
  if (std::memcmp(shapes, expected, 64) != 0) fail("unexpected shapes of tiles");
  if (tiles.are_set_up) fail("tiles were not released");
  std::memset(tiles.words, 0, sizeof tiles.words);
  tiles.are_set_up = true;
}

inline float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? 0.0f : x; }
inline float element(uint32_t pair, int which) {
  const uint32_t bits = which ? pair & 0xffff0000u : pair << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return flushed(value);
}

inline void multiply(int c, int a, int b) {
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 16; ++n) {
      float sums[2] = {0, 0}, total;
      for (int k = 0; k < 16; ++k) {
        for (int i = 0; i < 2; ++i) {
          const float x = element(tiles.words[a][m][k], i), y = element(tiles.words[b][k][n], i);
          sums[i] = flushed(std::fma(x, y, sums[i]));
        }
      }
      std::memcpy(&total, &tiles.words[c][m][n], 4);
      total = flushed(flushed(total) + flushed(sums[0] + sums[1]));
      std::memcpy(&tiles.words[c][m][n], &total, 4);
    }
  }
}

inline void carry_out(const Instruction& i) {
  enum { kNone, k66, kF3, kF2 };
  const bool has_memory = i.mode != 3;
  if (i.opcode == 0x49 && i.prefix == kNone && has_memory) {
    return set_up(reinterpret_cast<const uint8_t*>(i.address + i.stride));
  }
  if (!tiles.are_set_up) fail("tiles are not set up");
  if (i.opcode == 0x49 && i.prefix == kNone && i.reg == 0 && i.rm == 0) {
    tiles.are_set_up = false;
  } else if (i.opcode == 0x49 && i.prefix == kF2 && !has_memory) {
    std::memset(tiles.words[i.reg], 0, sizeof tiles.words[i.reg]);
  } else if (i.opcode == 0x4b && i.prefix == kF2 && has_memory) {
    for (int r = 0; r < 16; ++r) {
      std::memcpy(tiles.words[i.reg][r], reinterpret_cast<void*>(i.address + r * i.stride), 64);
    }
  } else if (i.opcode == 0x4b && i.prefix == kF3 && has_memory) {
    for (int r = 0; r < 16; ++r) {
      std::memcpy(reinterpret_cast<void*>(i.address + r * i.stride), tiles.words[i.reg][r], 64);
    }
  } else if (i.opcode == 0x5c && i.prefix == kF3 && !has_memory) {
    multiply(i.reg, i.rm, i.second);
  } else {
    fail("unknown AMX instruction");
  }
}

inline void trap(int, siginfo_t*, void* saved) {
  ucontext_t& context = *static_cast<ucontext_t*>(saved);
  const Instruction instruction(reinterpret_cast<uint8_t*>(context.uc_mcontext.gregs[REG_RIP]),
                                context);
  carry_out(instruction);
  context.uc_mcontext.gregs[REG_RIP] += instruction.length;
  ++instructions;
}

// Traps are on while this lives.
class Traps {
 public:
  Traps() {
    struct sigaction action = {};
    action.sa_sigaction = &trap;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, &before_);
  }
  ~Traps() {
    sigaction(SIGILL, &before_, nullptr);
    if (tiles.are_set_up) fail("tiles were not released");
  }

 private:
  struct sigaction before_;
};

}  // namespace amx_traps
