// Text level of the parser: splitting statements at their top level, and literals.
#pragma once
#include <string>
#include <vector>

#include "types.h"

namespace ptx {

bool identChar(char c);
std::string trim(const std::string& s);
std::vector<std::string> split(const std::string& s, char sep);
std::vector<std::string> splitTop(const std::string& s, char sep = ',');  // not inside brackets or quotes
bool startsWith(const std::string& s, const char* prefix);

struct Num {
  bool ok = false, isF = false;
  u64 i = 0;
  double f = 0;
  u32 f32bits = 0;
  bool f32 = false;  // written as 0fXXXXXXXX
};
Num parseNum(std::string s);
}  // namespace ptx
