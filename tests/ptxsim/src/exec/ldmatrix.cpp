// Instructions of a whole warp: how they are entered, and ldmatrix, stmatrix, movmatrix.
#include "exec.h"

namespace ptx {

Flow Exec::tensor(Warp& w, const Instr& in, Step& s) {
  if (s.em != w.exists) {  // wait until all lanes are here
    save(w, s.mask & ~s.em, s.pc + 1);
    save(w, s.em, s.pc);
    if (w.live != w.exists) fail(w, -1, ".aligned instruction executed after lanes of the warp exited");
    if (gather(w, s.em, w.exists, false, s.pc)) w.parked = 0;
    return RESELECT;
  }
  if (chk && !cfg.strictWarp) {
    w.wfloor = w.b->stamp;
    bump(*w.b);
  }
  if (w.exists != ~0u) fail(w, -1, "warp-wide matrix instruction in a partial warp");
  switch (in.op) {
    case O_LDMATRIX:
    case O_STMATRIX:
      matrix(w, in);
      return NEXT;
    case O_MOVMATRIX:
      movmatrix(w, in);
      return NEXT;
    case O_MMA:
      mma(w, in);
      return NEXT;
    case O_WMMA:
      wmma(w, in);
      return NEXT;
    case O_WMMALD:
    case O_WMMAST:
      wmmaMem(w, in);
      return NEXT;
    default:
      return wgmma(w, in) ? NEXT : yield(w, s, s.pc);
  }
}

// An 8x8 matrix of 16-bit elements: lane l holds elements 2(l%4) and 2(l%4)+1 of row l/4, or, with .trans, of column
// l/4.
void Exec::matrix(Warp& w, const Instr& in) {
  const bool load = in.op == O_LDMATRIX, trans = in.flags & F_TRANS;
  const auto& regs = k.vecs[in.o[0].vec];
  u8* rows[4][8];
  u32 sa[32], own = 0;
  const u32 lanes = in.sub == 4 ? ~0u : (1u << 8 * in.sub) - 1;
  forLanes(lanes, [&](int l) {  // lanes 8i to 8i+7 hold the addresses of the rows of matrix i
    Block* b;
    rows[l / 8][l % 8] = shared(w, l, sharedAddr(w, l, in.space, addr(w, in.o[1], l)), 16, b, sa[l]);
    if (b == w.b) own |= 1u << l;
    if (chk && !load) shWrite(w, l, *b, sa[l], 16);
  });
  if (chk && load && own) shReadLanes(w, sa, own, 16, false);
  st.ldmWave += wavefronts(sa, lanes, 16);
  auto element = [&](int i, int l, int h) {  // address of the element in half h of the register
    const int a = l / 4, b = l % 4 * 2 + h;
    return trans ? rows[i][b] + a * 2 : rows[i][a] + b * 2;
  };
  // Registers may hold the addresses, which are all used by now.
  for (int i = 0; i < in.sub; i++) {
    if (regs[i].k != K_REG && load) continue;
    u32* reg = (u32*)P(w, regs[i]);
    for (int l = 0; l < 32; l++) {
      if (!trans) {
        u8* p = element(i, l, 0);
        if (load)
          memcpy(&reg[l], p, 4);
        else
          memcpy(p, &reg[l], 4);
        continue;
      }
      u16 half[2];
      if (!load) memcpy(half, &reg[l], 4);
      for (int h = 0; h < 2; h++)
        if (load)
          memcpy(&half[h], element(i, l, h), 2);
        else
          memcpy(element(i, l, h), &half[h], 2);
      if (load) memcpy(&reg[l], half, 4);
    }
  }
  st.ldmReq++;
  if (!load) w.b->g->progress++;
}
void Exec::movmatrix(Warp& w, const Instr& in) {  // transposes
  u16 s[32][2], d[32][2];
  memcpy(s, P(w, in.o[1]), sizeof s);
  for (int l = 0; l < 32; l++)
    for (int h = 0; h < 2; h++) {
      const int row = l % 4 * 2 + h, col = l / 4;
      d[l][h] = s[row * 4 + col / 2][col & 1];
    }
  memcpy(D(w, in.o[0]), d, sizeof d);
}
}  // namespace ptx
