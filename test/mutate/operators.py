"""What can be changed in a C file, one place at a time.

libclang says what is a condition, a call whose value nobody uses, an assignment, a table; tokens say where it stands.
What a macro's body makes stands nowhere, and is not changed there; what stands in the arguments of a macro is. Bodies
of macros are changed where they are defined, by their tokens. No change adds or takes a line, so that the lines that
ereport() and Assert() remember stay what they are.
"""

import ctypes
import dataclasses
import pathlib
import re

from clang import cindex
from clang.cindex import CursorKind as Kind

import sql
from tokens import Source

NEXT_COMPARISON = {b"<": b"<=", b"<=": b"<", b">": b">=", b">=": b">"}
OTHER_JUNCTION = {b"&&": b"||", b"||": b"&&"}
OTHER_EQUALITY = {b"==": b"!=", b"!=": b"=="}
ASSIGNMENTS = {b"=", b"+=", b"-=", b"*=", b"/=", b"%=", b"&=", b"|=", b"^=", b"<<=", b">>="}
LARGE = 10  # from here on, a number is changed tenfold: one more would seldom be seen
NUMBER = re.compile(rb"(0[xX][0-9a-fA-F]+|[0-9]+)([uUlL]*)$")
FLOAT = re.compile(rb"([0-9]*\.[0-9]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)([fFlL]?)$")


@dataclasses.dataclass(frozen=True)
class Mutant:
    path: str  # below the root
    operator: str
    edits: tuple  # ((start, end, text), ...), in order
    line: int
    lines: tuple  # those whose tests are asked, the nearest first: ((first, last), ...)
    name: str  # of what stands outside of functions, for its users to be found; or ''

    def apply(self, text):
        done = []
        position = 0
        for start, end, new in self.edits:
            new += b"\n" * (text.count(b"\n", start, end) - new.count(b"\n"))
            done += [text[position:start], new]
            position = end
        return b"".join(done) + text[position:]


class Finder:
    """Finds the mutants of the files below a root."""

    def __init__(self, root, arguments):
        self.root = pathlib.Path(root)
        self.arguments = arguments
        self.index = cindex.Index.create()
        self.sources = {}
        self.found = {}
        self.functions = {}  # path => [(start, end)]
        self.variables = {}  # path => [(start, end, name)] outside of functions
        self.statements = {}

    def find(self, paths):
        """Of these files, and of the headers that they read. Sorted."""
        for path in paths:
            self._file(path)
        for path in list(self.sources):
            self._lexical(self.sources[path])
        return sorted(self.found.values(), key=lambda mutant: (mutant.path, mutant.edits, mutant.operator))

    def source(self, path):
        if path not in self.sources:
            self.sources[path] = Source(path, (self.root / path).read_bytes())
        return self.sources[path]

    def _file(self, path):
        _names.clear()
        unit = self.index.parse(str(self.root / path), args=self.arguments)
        errors = [d for d in unit.diagnostics if d.severity >= cindex.Diagnostic.Error]
        if errors:
            raise RuntimeError(f"libclang cannot read {path}: {errors[0]}")
        self.source(path)
        for cursor in unit.cursor.get_children():
            place = self._place(cursor)
            if place:
                self._top(cursor, *place)

    # ---- where things stand ----

    def _place(self, cursor):
        """The source, start and end of a cursor; None when it does not stand in one file below the root."""
        extent = cursor.extent
        start, end = spelled(extent.start), spelled(extent.end)
        if start[0] is None or start[0] != end[0]:
            return None
        try:
            path = str(pathlib.Path(start[0]).relative_to(self.root))
        except ValueError:
            return None
        return self.source(path), start[1], end[1]

    def _add(self, source, operator, *edits):
        start, end = edits[0][0], edits[-1][1]
        lines = [(source.line(start), source.line(max(start, end - 1)))]
        within = [s for s in self.statements.get(source.path, ()) if s[0] <= start and end <= s[1]]
        if within:
            lines.append(min(within, key=lambda s: s[1] - s[0]))
        function = next((f for f in self.functions.get(source.path, ()) if f[0] <= start and end <= f[1]), None)
        if function:
            lines.append(function)
        lines = tuple([lines[0]] + [(source.line(a), source.line(b - 1)) for a, b in lines[1:]])
        mutant = Mutant(source.path, operator, edits, lines[0][0], lines, '' if function else self.name)
        self.found.setdefault((source.path, edits), mutant)

    # ---- outside of functions ----

    def _top(self, cursor, source, start, end):
        self.name = cursor.spelling
        if cursor.kind == Kind.FUNCTION_DECL:
            body = next((c for c in cursor.get_children() if c.kind == Kind.COMPOUND_STMT), None)
            if not body or (start, end) in self.functions.setdefault(source.path, []):
                return
            self.functions[source.path].append((start, end))
            self._collect(body)
            self._visit(body)
        elif cursor.kind == Kind.ENUM_DECL:
            for constant in cursor.get_children():
                self.name = constant.spelling
                self._visit(constant)
        elif cursor.kind == Kind.VAR_DECL:
            self.variables.setdefault(source.path, []).append((start, end, cursor.spelling))
            self._visit(cursor)

    def _collect(self, cursor):
        """Notes the statements, for the lines that a change is looked for in."""
        place = self._place(cursor)
        if place and cursor.kind.is_statement() and cursor.kind not in (Kind.COMPOUND_STMT,):
            self.statements.setdefault(place[0].path, set()).add(place[1:])
        for child in cursor.get_children():
            child_place = self._place(child)
            if child_place and cursor.kind == Kind.COMPOUND_STMT:
                self.statements.setdefault(child_place[0].path, set()).add(child_place[1:])
            self._collect(child)

    # ---- the syntax tree ----

    def _visit(self, cursor):
        children = list(cursor.get_children())
        place = self._place(cursor)
        if place:
            self._cursor(cursor, children, *place)
        for child in self._statements_of(cursor, children):
            child_place = self._place(child)
            if child_place:
                self._statement(child, *child_place)
        for child in children:
            self._visit(child)

    @staticmethod
    def _statements_of(cursor, children):
        """Those of the children that are statements, or expressions that stand for one."""
        if cursor.kind == Kind.COMPOUND_STMT:
            return children
        if cursor.kind == Kind.IF_STMT:
            return children[1:]
        if cursor.kind in (Kind.WHILE_STMT, Kind.SWITCH_STMT, Kind.FOR_STMT, Kind.CASE_STMT, Kind.DEFAULT_STMT,
                           Kind.LABEL_STMT):
            return children[-1:]
        if cursor.kind == Kind.DO_STMT:
            return children[:1]
        return []

    def _cursor(self, cursor, children, source, start, end):
        kind = cursor.kind
        if kind in (Kind.IF_STMT, Kind.WHILE_STMT):
            self._condition(source, start, b"if" if kind == Kind.IF_STMT else b"while")
        elif kind == Kind.DO_STMT:
            self._until(source, end)
        elif kind == Kind.FOR_STMT:
            self._loop(source, start)
        elif kind == Kind.CONDITIONAL_OPERATOR:
            self._negate(children[0])
        elif kind == Kind.BINARY_OPERATOR and len(children) == 2:
            self._binary(source, *children)
        elif kind in (Kind.INTEGER_LITERAL, Kind.FLOATING_LITERAL, Kind.CHARACTER_LITERAL):
            token = self._token(source, start, end)
            if token:
                self._constant(source, token)
        elif kind == Kind.VAR_DECL:
            self._table(cursor, children)

    @staticmethod
    def _token(source, start, end):
        """The one token that the range is."""
        tokens = source.between(start, end)
        return tokens[0] if len(tokens) == 1 and (tokens[0].start, tokens[0].end) == (start, end) else None

    def _parenthesised(self, source, start, keyword):
        """The range between the parentheses after the keyword that stands here."""
        index = source.index(start)
        pair = source.tokens[index:index + 2]
        if [token.text for token in pair] != [keyword, b"("] or pair[0].start != start:
            return None
        close = source.closing(index + 1)
        return (source.tokens[index + 1].end, source.tokens[close].start) if close else None

    def _condition(self, source, start, keyword):
        inside = self._parenthesised(source, start, keyword)
        if not inside:
            return
        a, b = inside
        self._add(source, "negate", (a, a, b"!("), (b, b, b")"))
        if keyword == b"if":
            self._add(source, "always", (a, a, b"("), (b, b, b") || 1"))
            self._add(source, "never", (a, a, b"("), (b, b, b") && 0"))

    def _until(self, source, end):
        """The condition of do { ... } while (...)."""
        for index in range(source.index(end) - 1, 0, -1):
            if source.tokens[index].text == b"while":
                self._condition(source, source.tokens[index].start, b"while")
                return
            if source.tokens[index].text in (b"}", b";"):
                return

    def _loop(self, source, start):
        inside = self._parenthesised(source, start, b"for")
        if not inside:
            return
        depth = 0
        semicolons = []
        for token in source.between(*inside):
            depth += (token.text in b"([{") - (token.text in b")]}") if token.kind == "punct" else 0
            if token.text == b";" and depth == 0:
                semicolons.append(token)
        if len(semicolons) == 2:
            condition = source.between(semicolons[0].end, semicolons[1].start)
            if condition:
                a, b = condition[0].start, condition[-1].end
                self._add(source, "negate", (a, a, b"!("), (b, b, b")"))

    def _negate(self, cursor):
        place = self._place(cursor)
        if place and place[0].between(*place[1:]) and place[0].balanced(*place[1:]):
            source, a, b = place
            self._add(source, "negate", (a, a, b"!("), (b, b, b")"))

    def _between(self, left, right):
        """The token between two operands."""
        left, right = self._place(left), self._place(right)
        if not left or not right or left[0] is not right[0] or left[2] > right[1]:
            return None
        tokens = [token for token in left[0].between(left[2], right[1]) if token.text not in (b"(", b")")]
        return tokens[0] if len(tokens) == 1 else None

    def _binary(self, source, left, right):
        token = self._between(left, right)
        if not token:
            return
        change = token.start, token.end
        if token.text in NEXT_COMPARISON:
            self._add(source, "compare", (*change, NEXT_COMPARISON[token.text]))
        elif token.text in OTHER_EQUALITY:
            self._add(source, "negate", (*change, OTHER_EQUALITY[token.text]))
        elif token.text in OTHER_JUNCTION:
            self._add(source, "junction", (*change, OTHER_JUNCTION[token.text]))
            self._negate(left)
            self._negate(right)

    def _constant(self, source, token):
        for new in constants(token):
            self._add(source, "constant", (token.start, token.end, new))

    def _table(self, cursor, children):
        """A row of what an array begins with."""
        if cursor.type.get_canonical().kind not in (cindex.TypeKind.CONSTANTARRAY, cindex.TypeKind.INCOMPLETEARRAY):
            return
        rows = next((list(c.get_children()) for c in children if c.kind == Kind.INIT_LIST_EXPR), [])
        if len(rows) < 2:
            return
        for row in rows:
            place = self._place(row)
            if not place or not place[0].between(*place[1:]):
                continue
            source, a, b = place
            before, after = source.index(a) - 1, source.index(b)
            if source.tokens[before].text in (b"{", b",") and source.tokens[after].text in (b",", b"}"):
                if source.tokens[after].text == b",":
                    b = source.tokens[after].end
                self._add(source, "row", (a, b, b""))

    # ---- statements ----

    def _statement(self, cursor, source, start, end):
        tokens = source.between(start, end)
        if not tokens or cursor.kind in (Kind.RETURN_STMT, Kind.DECL_STMT, Kind.COMPOUND_STMT):
            return
        children = list(cursor.get_children())
        if cursor.kind == Kind.BINARY_OPERATOR or cursor.kind == Kind.COMPOUND_ASSIGNMENT_OPERATOR:
            token = self._between(*children) if len(children) == 2 else None
            if token and token.text in ASSIGNMENTS:
                self._assignment(source, start, end, children[1])
        elif cursor.kind == Kind.UNARY_OPERATOR and {tokens[0].text, tokens[-1].text} & {b"++", b"--"}:
            self._add(source, "assignment", (start, end, b""))
        else:
            self._call(source, start, end)

    def _assignment(self, source, start, end, value):
        """What is assigned is still called."""
        place = self._place(value)
        if place and place[0] is source and any(c.kind == Kind.CALL_EXPR for c in value.walk_preorder()):
            self._add(source, "assignment", (start, place[1], b"(void) ("), (place[2], place[2], b")"))
        else:
            self._add(source, "assignment", (start, end, b""))

    def _call(self, source, start, end):
        """NAME(...), all of it; after "(void)", too."""
        index = source.index(start)
        if [t.text for t in source.tokens[index:index + 3]] == [b"(", b"void", b")"]:
            index += 3
        pair = source.tokens[index:index + 2]
        if len(pair) < 2 or pair[0].kind != "name" or pair[1].text != b"(":
            return
        close = source.closing(index + 1)
        if close and source.tokens[close].end == end and source.tokens[close + 1].text == b";":
            self._add(source, "call", (start, end, b""))

    # ---- tokens ----

    def _lexical(self, source):
        for name, body in source.definitions:
            self.name = name
            for token in body:
                if token.text in NEXT_COMPARISON:
                    self._add(source, "compare", (token.start, token.end, NEXT_COMPARISON[token.text]))
                elif token.text in OTHER_EQUALITY:
                    self._add(source, "negate", (token.start, token.end, OTHER_EQUALITY[token.text]))
                elif token.text in OTHER_JUNCTION:
                    self._add(source, "junction", (token.start, token.end, OTHER_JUNCTION[token.text]))
                else:
                    self._constant(source, token)
        for before, after, left, right in sql.insertions(source):
            named = [(body[0].start, body[-1].end, name) for name, body in source.definitions]
            named += self.variables.get(source.path, [])
            self.name = next((name for start, end, name in named if start <= before and after <= end), '')
            self._add(source, "where", (before, before, left), (after, after, right))


def constants(token):
    """What a constant is changed to; nothing when it is none."""
    if token.text in (b"true", b"false"):
        return [b"false" if token.text == b"true" else b"true"]
    if token.kind == "char":
        return [b"(" + token.text + b" + 1)"]
    if token.kind != "number":
        return []
    match = FLOAT.match(token.text)
    if match:
        value = float(match.group(1))
        return [repr(v).encode() + match.group(2) for v in ((value * 10, value / 10) if value else (1.0,))]
    match = NUMBER.match(token.text)
    if not match:
        return []
    digits, suffix = match.groups()
    octal = digits.startswith(b"0") and len(digits) > 1 and digits[1:2] not in b"xX"
    value = int(digits, 8 if octal else 0)
    if value < LARGE or digits.startswith(b"0"):
        values = [value + 1] + ([value - 1] if value else [])
    else:
        values = [value * 10, value // 10]
    return [b"%d" % v + suffix for v in values]


_names = {}  # of files, by their addresses; those of one unit


def spelled(location):
    """The file and offset where a location is written: in the argument of a macro, not where it is expanded."""
    file, line, column, offset = cindex.c_object_p(), ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
    cindex.conf.lib.clang_getSpellingLocation(
        location, ctypes.byref(file), ctypes.byref(line), ctypes.byref(column), ctypes.byref(offset))
    if not file:
        return None, 0
    address = ctypes.addressof(file.contents)
    if address not in _names:
        _names[address] = cindex.File(file).name
    return _names[address], offset.value
