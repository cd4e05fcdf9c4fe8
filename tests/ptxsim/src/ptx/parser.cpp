// PTX text -> Module: directives, declarations, and function bodies as raw statements. Instructions are understood
// later (decode.cpp), and only in the kernels that are launched.
#include <algorithm>
#include <functional>

#include "module.h"
#include "text.h"

namespace ptx {
using std::string;
using std::vector;

namespace {
bool oneOf(const string& s, std::initializer_list<const char*> names) {
  return std::any_of(names.begin(), names.end(), [&](const char* n) { return s == n; });
}
// The state space of a variable directive (with or without its dot), or GENERIC.
Space varSpace(const string& w) {
  const string s = startsWith(w, ".") ? w.substr(1) : w;
  return s == "global"   ? GLOBAL
         : s == "const"  ? CONSTSP
         : s == "shared" ? SHARED
         : s == "local"  ? LOCAL
         : s == "param"  ? PARAM
                         : GENERIC;
}

class Parser {
 public:
  Parser(Module& module, const string& text) : m(module), s(text) {
    blankComments();
    lineAt.push_back(0);
    for (size_t i = 0; i < s.size(); i++)
      if (s[i] == '\n') lineAt.push_back(i + 1);
  }
  void run() {
    for (ws(); p < s.size(); ws()) directive(word());
    placeVariables();
  }

 private:
  Module& m;
  string s;
  vector<u32> lineAt;
  size_t p = 0;

  // ---- text
  [[noreturn]] void err(const string& msg) { throw Error(strf("PTX parse error, line %u: %s", line(p), msg.c_str())); }
  u32 line(size_t q) { return std::upper_bound(lineAt.begin(), lineAt.end(), q) - lineAt.begin(); }
  void blankComments() {
    for (size_t i = 0; i < s.size();) {
      if (s[i] == '"') {
        i++;
        while (i < s.size() && s[i] != '"') i += s[i] == '\\' ? 2 : 1;
        i++;
      } else if (s.compare(i, 2, "//") == 0) {
        while (i < s.size() && s[i] != '\n') s[i++] = ' ';
      } else if (s.compare(i, 2, "/*") == 0) {
        for (; i < s.size() && s.compare(i, 2, "*/"); i++)
          if (s[i] != '\n') s[i] = ' ';
        if (i < s.size()) s[i] = s[i + 1] = ' ';
        i += 2;
      } else
        i++;
    }
  }
  char at(size_t q) const { return q < s.size() ? s[q] : 0; }
  void ws() {
    while (isspace((u8)at(p))) p++;
  }
  string word() {
    ws();
    size_t b = p;
    while (identChar(at(p)) || at(p) == '.' || (at(p) == ':' && (at(p + 1) == ':' || (p && s[p - 1] == ':')))) p++;
    return s.substr(b, p - b);
  }
  string digits() {
    size_t b = p;
    while (isdigit((u8)at(p))) p++;
    return s.substr(b, p - b);
  }
  string until(char c) {
    size_t b = p;
    for (bool quoted = false; p < s.size() && (quoted || s[p] != c); p++)
      if (s[p] == '"') quoted = !quoted;
    return s.substr(b, p++ - b);
  }
  string restOfLine() {
    size_t b = p;
    while (p < s.size() && s[p] != '\n') p++;
    return trim(s.substr(b, p - b));
  }

  // ---- declarations: attributes type name[dimensions] = initialiser, without the ';'
  Var variable(string d, Space sp) {
    Var v;
    v.sp = sp;
    v.t = NONE;
    string init;
    size_t eq = d.find('=');
    if (eq != string::npos) {
      init = trim(d.substr(eq + 1));
      d = d.substr(0, eq);
      v.hasInit = true;
    }
    d = trim(d);
    size_t i = 0;
    auto skip = [&] {
      while (i < d.size() && isspace((u8)d[i])) i++;
    };
    int vn = 1;
    while (i < d.size() && d[i] == '.') {
      size_t b = ++i;
      while (i < d.size() && (isalnum((u8)d[i]) || d[i] == '_')) i++;
      string w = d.substr(b, i - b);
      skip();
      if (w == "align") {
        size_t e;
        v.align = std::max<u64>(v.align, std::stoul(d.substr(i), &e));
        i += e;
      } else if (w == "attribute")
        i = d.find(')', i) + 1;
      else if (w == "v2" || w == "v4")
        vn = w[1] - '0';
      else if (w != "ptr" && varSpace(w) == GENERIC && (v.t = parseTy(w)) == NONE)
        err("unknown declaration attribute ." + w);
      skip();
    }
    size_t b = i;
    while (i < d.size() && identChar(d[i])) i++;
    v.name = d.substr(b, i - b);
    u64 es = (u64)tySize(v.t) * vn, n = 1;
    for (skip(); i < d.size() && d[i] == '['; skip()) {
      size_t close = d.find(']', i);
      string dim = trim(d.substr(i + 1, close - i - 1));
      n = dim.empty() ? 0 : n * parseNum(dim).i;
      i = close + 1;
    }
    v.size = es * n;
    v.align = std::max<u64>(v.align, es > 16 ? 16 : es);
    if (v.hasInit) initialiser(v, init);
    return v;
  }
  void initialiser(Var& v, const string& init) {
    vector<string> items;
    std::function<void(string)> flatten = [&](string q) {
      q = trim(q);
      if (!q.empty() && q[0] == '{') {
        for (auto& x : splitTop(q.substr(1, q.rfind('}') - 1))) flatten(x);
      } else if (!q.empty())
        items.push_back(q);
    };
    if (init[0] == '"') {
      string z = init.substr(1, init.rfind('"') - 1);
      v.init.assign(z.begin(), z.end());
      v.init.push_back(0);
    }
    flatten(init);
    u64 ts = tySize(v.t), o = 0;
    if (!v.size) v.size = items.size() * ts;
    v.init.resize(v.size, 0);
    for (auto& q : items) {
      Num n = parseNum(q);
      if (!n.ok)
        v.relocs.push_back(relocation(q, o));
      else if (v.t == F32) {
        float f = n.f;
        memcpy(&v.init[o], n.f32 ? (void*)&n.f32bits : &f, 4);
      } else if (v.t == F64)
        memcpy(&v.init[o], &n.f, 8);
      else
        memcpy(&v.init[o], &n.i, std::min<u64>(ts, 8));
      o += ts;
    }
  }
  static Reloc relocation(string sym, u64 at) {  // symbol, symbol+number, generic(symbol)+number
    if (startsWith(sym, "generic(")) {
      size_t c = sym.find(')');
      sym = trim(sym.substr(8, c - 8)) + sym.substr(c + 1);
    }
    s64 add = 0;
    size_t plus = sym.find('+');
    if (plus != string::npos) {
      add = parseNum(sym.substr(plus + 1)).i;
      sym = trim(sym.substr(0, plus));
    }
    return {at, sym, add};
  }
  vector<Var> parameters() {
    vector<Var> r;
    ws();
    if (at(p) != '(') return r;
    p++;
    u64 offset = 0;
    for (string& x : splitTop(until(')'))) {
      string y = trim(x);
      if (y.empty()) continue;
      if (startsWith(y, ".param"))
        y = trim(y.substr(6));
      else if (startsWith(y, ".reg"))
        err(".reg parameters are not supported");
      size_t q = y.find(".ptr");  // ".ptr .global .align 16": what the pointer points to
      if (q != string::npos) y = y.substr(0, q) + y.substr(y.find_last_of(" \t"));
      Var v = variable(y, PARAM);
      v.addr = offset = (offset + v.align - 1) / v.align * v.align;
      offset += v.size;
      r.push_back(v);
    }
    return r;
  }

  // ---- function bodies
  void body(Func& f) {  // p is just after '{'
    f.scopes.push_back({-1, {}, {}, {}, {}, {}});
    int cur = 0;
    for (;;) {
      ws();
      if (p >= s.size()) err("unexpected end of file in function body");
      char c = s[p];
      if (c == '{') {
        p++;
        f.scopes.push_back({cur, {}, {}, {}, {}, {}});
        cur = f.scopes.size() - 1;
      } else if (c == '}') {
        p++;
        cur = f.scopes[cur].parent;
        if (cur < 0) return;
      } else if (c == ';')
        p++;
      else if (c == '.')
        bodyDirective(f.scopes[cur]);
      else if (c == '@' || !label(f, cur))
        statement(f, cur);
    }
  }
  void bodyDirective(Scope& scope) {
    size_t b = p++;
    string w;
    while (isalnum((u8)at(p)) || at(p) == '_') w += s[p++];
    if (w == "loc" || w == "file")
      restOfLine();
    else if (oneOf(w, {"pragma", "callprototype", "calltargets"}))
      until(';');
    else if (w == "reg")
      registers(scope);
    else if (Space sp = varSpace(w)) {
      Var v = variable(until(';'), sp);
      scope.vars[v.name] = v;
    } else if (w == "branchtargets")
      err(".branchtargets without a label");
    else {
      p = b;
      err("unknown directive ." + w + " in function body");
    }
  }
  void registers(Scope& scope) {
    ws();
    p++;
    string type;
    while (isalnum((u8)at(p))) type += s[p++];
    Ty t = parseTy(type);
    if (type == "v2" || type == "v4") err(".reg vector declarations are not supported");
    if (t == NONE) err("unknown register type ." + type);
    for (auto& n : splitTop(until(';'))) {
      size_t q = n.find('<');
      if (q == string::npos)
        scope.regs[n] = {t, -1};
      else
        scope.regs[trim(n.substr(0, q))] = {t, (s64)parseNum(n.substr(q + 1, n.find('>') - q - 1)).i};
    }
  }
  bool label(Func& f, int cur) {
    size_t b = p;
    while (identChar(at(p))) p++;
    string name = s.substr(b, p - b);
    while (at(p) == ' ' || at(p) == '\t') p++;
    if (at(p) != ':' || at(p + 1) == ':') {
      p = b;
      return false;
    }
    p++;
    ws();
    if (s.compare(p, 14, ".branchtargets") == 0) {
      p += 14;
      f.scopes[cur].targets[name] = splitTop(until(';'));
    } else if (s.compare(p, 14, ".callprototype") == 0)
      until(';');
    else
      f.scopes[cur].labels[name] = f.code.size();
    return true;
  }
  void statement(Func& f, int cur) {
    RawInstr r;
    r.line = line(p);
    r.scope = cur;
    if (s[p] == '@') {
      p++;
      ws();
      if (at(p) == '!') {
        r.pneg = true;
        p++;
      }
      r.pred = word();
    }
    r.op = word();
    if (r.op.empty()) err(strf("cannot parse statement near '%.30s'", s.c_str() + p));
    r.args = splitTop(until(';'));
    f.code.push_back(std::move(r));
  }

  // ---- module level
  void directive(string w) {
    if (oneOf(w, {".version", ".address_size", ".file", ".loc"})) {
      restOfLine();
    } else if (w == ".target") {
      m.target = restOfLine();
    } else if (w == ".section") {
      until('{');
      for (int depth = 1; depth && p < s.size(); p++) depth += s[p] == '{' ? 1 : s[p] == '}' ? -1 : 0;
    } else if (w == ".pragma" || w == ".alias") {
      until(';');
    } else {
      bool ext = false;
      for (; oneOf(w, {".visible", ".weak", ".extern", ".common"}); w = word()) ext |= w == ".extern";
      Space sp = varSpace(w);
      if (w == ".entry" || w == ".func")
        function(w == ".entry");
      else if (sp != GENERIC && sp != PARAM && w[0] == '.') {
        Var v = variable(until(';'), sp);
        v.ext = ext;
        m.vars[v.name] = v;
      } else
        err("unknown top-level directive '" + w + "'");
    }
  }
  void function(bool entry) {
    auto f = std::make_unique<Func>();
    f->entry = entry;
    f->line = line(p);
    for (ws(); at(p) == '.'; ws()) word();  // .attribute, .noreturn
    f->rets = parameters();
    f->name = word();
    f->params = parameters();
    for (ws(); at(p) != '{' && at(p) != ';'; ws()) functionDirective(*f);
    f->proto = at(p++) == ';';
    if (!f->proto) body(*f);
    string n = f->name;
    bool known = m.funcs.count(n);
    if (f->proto && known) return;
    if (!known) m.order.push_back(n);
    m.funcs[n] = std::move(f);
  }
  void functionDirective(Func& f) {
    string d = word();
    if (d.empty()) err(strf("unexpected character '%c' after function header", at(p)));
    if (oneOf(d, {".noreturn", ".explicitcluster", ".blocksareclusters"})) return;
    if (d == ".pragma") {
      until(';');
      return;
    }
    u32 v[3] = {1, 1, 1};
    for (int n = 0;;) {
      ws();
      string t = digits();
      if (t.empty()) break;
      if (n < 3) v[n++] = std::stoul(t);
      ws();
      if (at(p) != ',') break;
      p++;
    }
    if (d == ".reqntid")
      memcpy(f.reqntid, v, sizeof v);
    else if (d == ".maxntid")
      memcpy(f.maxntid, v, sizeof v);
    else if (d == ".reqnctapercluster")
      memcpy(f.cluster, v, sizeof v);
    else if (!oneOf(d, {".minnctapersm", ".maxnreg", ".maxclusterrank", ".maxnctapersm", ".abi_preserve",
                        ".abi_preserve_control"}))
      err("unknown function directive " + d);
  }

  // ---- variables get their addresses, then initialisers that hold addresses are filled in
  void eachVariable(const std::function<void(Var&)>& f) {
    for (auto& v : m.vars) f(v.second);
    for (auto& fn : m.funcs)
      for (auto& scope : fn.second->scopes)
        for (auto& v : scope.vars) f(v.second);
  }
  void placeVariables() {
    eachVariable([&](Var& v) {
      if ((v.sp != GLOBAL && v.sp != CONSTSP) || !v.size) return;
      auto store = std::make_unique<u8[]>(v.size + 64);
      u8* h = (u8*)(((uintptr_t)store.get() + 63) & ~63ull);
      memset(h, 0, v.size);
      if (v.init.size()) memcpy(h, v.init.data(), v.init.size());
      v.addr = m.mem->add(h, v.size, false, v.name);
      m.store.push_back(std::move(store));
    });
    eachVariable([&](Var& v) {
      for (auto& r : v.relocs) {
        auto it = m.vars.find(r.symbol);
        u64 a = it == m.vars.end() ? 0 : it->second.addr + r.add;
        if (!a && !m.funcs.count(r.symbol)) throw Error("unknown symbol in initialiser: " + r.symbol);
        memcpy(m.mem->find(v.addr)->host + r.at, &a, 8);
      }
    });
  }
};
}  // namespace

Module* parseModule(const string& text, Memory* mem) {
  auto m = std::make_unique<Module>();
  m->mem = mem;
  Parser(*m, text).run();
  return m.release();
}
Module::~Module() {
  for (auto& v : vars)
    if (v.second.addr && mem->find(v.second.addr)) mem->free(v.second.addr);
}
}  // namespace ptx
