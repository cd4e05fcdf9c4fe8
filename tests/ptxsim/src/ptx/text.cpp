// Text level of the parser: splitting statements, and literals.
#include "text.h"

#include <cstdlib>

namespace ptx {
using std::string;
using std::vector;

bool identChar(char c) { return isalnum((u8)c) || c == '_' || c == '$' || c == '%'; }
string trim(const string& s) {
  size_t a = s.find_first_not_of(" \t\r\n"), b = s.find_last_not_of(" \t\r\n");
  return a == string::npos ? "" : s.substr(a, b - a + 1);
}
vector<string> splitTop(const string& s, char sep) {
  vector<string> r;
  int d = 0;
  string cur;
  bool q = false;
  for (char c : s) {
    if (c == '"') q = !q;
    if (!q) {
      if (c == '{' || c == '[' || c == '(') d++;
      if (c == '}' || c == ']' || c == ')') d--;
    }
    if (c == sep && d == 0 && !q) {
      r.push_back(trim(cur));
      cur.clear();
    } else
      cur += c;
  }
  if (trim(cur).size() || r.size()) r.push_back(trim(cur));
  return r;
}
vector<string> split(const string& s, char sep) {
  vector<string> r;
  string c;
  for (char ch : s) {
    if (ch == sep) {
      r.push_back(c);
      c.clear();
    } else
      c += ch;
  }
  r.push_back(c);
  return r;
}

bool startsWith(const string& s, const char* prefix) { return s.rfind(prefix, 0) == 0; }
Num parseNum(string s) {
  Num n;
  s = trim(s);
  if (s.empty()) return n;
  bool neg = false;
  size_t p = 0;
  while (p < s.size() && (s[p] == '-' || s[p] == '+')) {
    if (s[p] == '-') neg = !neg;
    p++;
  }
  while (p < s.size() && s[p] == ' ') p++;
  string t = s.substr(p);
  if (t.empty()) return n;
  if (t == "WARP_SZ") {
    n.ok = true;
    n.i = 32;
    return n;
  }
  if (!isdigit((u8)t[0]) && !(t[0] == '.' && t.size() > 1 && isdigit((u8)t[1]))) return n;
  if (t.size() == 10 && t[0] == '0' && (t[1] == 'f' || t[1] == 'F')) {
    n.ok = n.isF = n.f32 = true;
    n.f32bits = strtoul(t.c_str() + 2, 0, 16);
    if (neg) n.f32bits ^= 0x80000000u;
    float f;
    memcpy(&f, &n.f32bits, 4);
    n.f = f;
    return n;
  }
  if (t.size() == 18 && t[0] == '0' && (t[1] == 'd' || t[1] == 'D')) {
    n.ok = n.isF = true;
    u64 b = strtoull(t.c_str() + 2, 0, 16);
    memcpy(&n.f, &b, 8);
    if (neg) n.f = -n.f;
    return n;
  }
  char* e;
  bool hex = t.size() > 1 && t[0] == '0' && (t[1] == 'x' || t[1] == 'X');
  if (!hex && (t.find('.') != string::npos || t.find('e') != string::npos || t.find('E') != string::npos)) {
    n.f = strtod(t.c_str(), &e);
    if (*e) return n;
    n.ok = n.isF = true;
    if (neg) n.f = -n.f;
    return n;
  }
  if (t.size() > 1 && t[0] == '0' && (t[1] == 'b' || t[1] == 'B'))
    n.i = strtoull(t.c_str() + 2, &e, 2);
  else
    n.i = strtoull(t.c_str(), &e, 0);
  if (*e == 'U' || *e == 'u') e++;
  if (*e) return n;
  n.ok = true;
  if (neg) n.i = -n.i;
  n.f = neg ? -(double)(u64)(-n.i) : (double)n.i;
  return n;
}
}  // namespace ptx
