// PTX targets: what a module was compiled for, and which devices run it.
#include <cstdlib>

#include "module.h"

namespace ptx {

Target parseTarget(const std::string& line) {
  Target r;
  size_t p = line.find("sm_");
  if (p == std::string::npos) return r;
  char* end;
  r.cc = strtol(line.c_str() + p + 3, &end, 10);
  if (*end == 'a' || *end == 'f') r.suffix = *end;
  return r;
}
bool runsOn(Target t, int cc) {
  if (!t.cc) return false;
  if (t.suffix == 'a') return t.cc == cc;                          // this device only
  if (t.suffix == 'f') return t.cc / 10 == cc / 10 && t.cc <= cc;  // its family
  return t.cc <= cc;
}
}  // namespace ptx
