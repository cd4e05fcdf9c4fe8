// The decoded instruction: what the decoder (ptx/decode_*.cpp) produces and the executor (exec/*.cpp) runs.
#pragma once
#include "types.h"

namespace ptx {

// Operands. The registers of a warp lie lane after lane, so that an operation over the warp is a loop over an array;
// constants are replicated in the same way.
enum OpK : u8 { K_NONE, K_REG, K_CONST, K_VEC, K_ADDR, K_SINK };
struct Opnd {
  u8 k = K_NONE;
  u8 sz = 0;              // K_REG, K_CONST: 1 for predicates, else bytes per lane: 4, 8 or 16; K_ADDR: of the base
  u8 symSpace = GENERIC;  // K_ADDR of a variable: its state space
  bool hasBase = false;   // K_ADDR: has a base register
  bool neg = false;       // predicate with '!'
  u32 off = 0;            // byte offset in the register file of the warp, or in the constant pool
  s32 vec = -1;           // K_VEC: index into Kernel::vecs; K_ADDR: the same for the coordinates of a tensor
  s64 imm = 0;            // K_ADDR: displacement; K_CONST: value; K_VEC: number of registers
};

enum Op : u16 {
  // compute and go on
  O_BAD,
  O_NOP,
  O_ADD,
  O_SUB,
  O_MUL,
  O_MAD,
  O_FMA,
  O_DIV,
  O_REM,
  O_MIN,
  O_MAX,
  O_NEG,
  O_ABS,
  O_SAD,
  O_RCP,
  O_SQRT,
  O_RSQRT,
  O_EX2,
  O_LG2,
  O_SIN,
  O_COS,
  O_TANH,
  O_SELP,
  O_SETP,
  O_SET,
  O_SLCT,
  O_AND,
  O_OR,
  O_XOR,
  O_NOT,
  O_CNOT,
  O_SHL,
  O_SHR,
  O_SHF,
  O_PRMT,
  O_BFE,
  O_BFI,
  O_BREV,
  O_POPC,
  O_CLZ,
  O_BFIND,
  O_FNS,
  O_BMSK,
  O_SZEXT,
  O_LOP3,
  O_COPYSIGN,
  O_TESTP,
  O_MOV,
  O_CVT,
  O_CVTA,
  O_ISSPACEP,
  O_MAPA,
  O_CTARANK,
  O_DP4A,
  O_DP2A,
  O_ACTIVEMASK,
  O_CLOCK,
  O_TRAP,
  O_LD,
  O_ST,
  O_ATOM,
  O_VPRINTF,
  O_CPASYNC,
  O_CPCOMMIT,
  O_CPWAIT,
  O_CPMBAR,
  O_BULK,
  O_BULKCOMMIT,
  O_BULKWAIT,
  O_FENCEPROXY,
  // decide where the lanes go, or wait
  O_FIRST_FLOW,
  O_BRA = O_FIRST_FLOW,
  O_BRX,
  O_CALL,
  O_RET,
  O_EXIT,
  O_NANOSLEEP,
  O_SHFL,
  O_VOTE,
  O_MATCH,
  O_REDUX,
  O_ELECT,
  O_BARWARP,
  O_BAR,
  O_CLBAR,
  O_MBAR,
  // of a whole warp
  O_LDMATRIX,
  O_STMATRIX,
  O_MOVMATRIX,
  O_MMA,
  O_WMMALD,
  O_WMMAST,
  O_WMMA,
  O_WGMMA,
  O_WGFENCE,
  O_WGCOMMIT,
  O_WGWAIT
};

enum Cmp : u8 { C_EQ, C_NE, C_LT, C_LE, C_GT, C_GE, C_EQU, C_NEU, C_LTU, C_LEU, C_GTU, C_GEU, C_NUM, C_NAN };
enum Rnd : u8 { R_NONE, R_RN, R_RZ, R_RM, R_RP, R_RNA };
// Modifiers that are a matter of yes or no.
enum Flag : u32 {
  F_FTZ = 1 << 0,
  F_SAT = 1 << 1,
  F_HI = 1 << 2,
  F_WIDE = 1 << 3,
  F_CC = 1 << 4,
  F_CARRY = 1 << 5,
  F_NAN = 1 << 6,
  F_XORSIGN = 1 << 7,
  F_INTRND = 1 << 8,
  F_TRANS = 1 << 9,
  F_RELU = 1 << 10,
  F_NOALIGN = 1 << 11,  // barrier without .aligned
  F_WRAP = 1 << 12,
  F_VOL = 1 << 13,  // volatile or with a memory order: not subject to races
  F_SATFINITE = 1 << 14,
  F_NOINC = 1 << 15,
  F_MULTICAST = 1 << 16,
  F_RED = 1 << 17,
  F_READ = 1 << 18,
  F_LEFT = 1 << 19,
  F_SHIFTAMT = 1 << 20
};

// Values of Instr::sub, by instruction.
enum AtomOp : u8 { A_NONE, A_ADD, A_MIN, A_MAX, A_CAS, A_EXCH, A_AND, A_OR, A_XOR, A_INC, A_DEC };
enum ShflMode : u8 { SHFL_UP, SHFL_DOWN, SHFL_BFLY, SHFL_IDX };
enum VoteMode : u8 { VOTE_ALL, VOTE_ANY, VOTE_UNI, VOTE_BALLOT };
enum BarMode : u8 { BAR_SYNC, BAR_ARRIVE, BAR_RED };
enum MbarOp : u8 {
  MB_INIT,
  MB_INVAL,
  MB_ARRIVE,
  MB_ARRIVE_DROP,
  MB_TEST_WAIT,
  MB_TRY_WAIT,
  MB_EXPECT_TX,
  MB_COMPLETE_TX
};
enum BulkDir : u8 { BULK_LOAD, BULK_STORE };
// Values of Instr::bop: how setp combines with a predicate, how bar.red reduces.
enum BoolOp : u8 { B_NONE, B_AND, B_OR, B_XOR, B_POPC = B_XOR };

struct Instr {
  u16 op = O_BAD;
  Ty t = NONE, t2 = NONE, t3 = NONE, t4 = NONE;  // types, in the order in which they are written
  u8 cmp = 0, bop = 0, rnd = 0, sub = 0;         // sub: selector that depends on the instruction
  u8 space = GENERIC, vn = 1;                    // vn: elements of a vector access
  u8 cls = 0;                                    // class in the statistics
  bool pneg = false, hasPred = false;            // guard predicate
  u32 predOff = 0;
  u32 flags = 0, line = 0;
  s32 target = -1;                 // bra
  u16 m = 0, n = 0, k = 0;         // shape of a matrix operation, rank of a tensor
  bool rowA = true, rowB = false;  // layouts; wgmma: rowA means that A comes from shared memory
  s32 msg = -1;                    // index of an error text (O_BAD), a target list (brx) or a call record
  Opnd o[8];
};

// Classes of the statistics; their names are clsNames (exec/stats.cpp).
enum Cls : u8 {
  S_INT,
  S_FP32,
  S_FP64,
  S_FP16,
  S_SFU,
  S_MOVE,
  S_CVT,
  S_CTRL,
  S_LDG,
  S_STG,
  S_LDS,
  S_STS,
  S_LDL,
  S_STL,
  S_LDPARAM,
  S_ATOMG,
  S_ATOMS,
  S_SHFL,
  S_VOTE,
  S_BAR,
  S_CPASYNC,
  S_LDMATRIX,
  S_STMATRIX,
  S_MMA,
  S_WGMMA,
  S_TMA,
  S_MBAR,
  S_FENCE,
  S_OTHER,
  S_NCLS
};

}  // namespace ptx
