"""The conditions of WHERE in the SQL of a C file.

SQL is made of string literals that stand next to each other, with macros between them. A macro is one character here
that is no text; the clause ends before it, unless an operator or keyword before it says that it goes on.
"""

import re

MACRO = "\x01"
ESCAPE = "\x02"
ENDS = {"GROUP", "ORDER", "LIMIT", "RETURNING", "FOR", "UNION", "EXCEPT", "INTERSECT", "WINDOW", "HAVING", "OFFSET",
        "FETCH", "ON", "SET"}
WORD = re.compile(r"'(?:[^']|'')*'|[A-Za-z_$][A-Za-z0-9_$]*|[()\[\];" + MACRO + r"]|\s+|.", re.DOTALL)
GOES_ON = re.compile(r"(?:[-+*/<>=(,]|\b(?:AND|OR|NOT|WHERE|IN|ANY|EXISTS|BETWEEN|LIKE|IS))\s*$")


def texts(source):
    """Runs of literals and macros: each a string, and where each of its characters stands (None: nowhere)."""
    tokens = source.tokens
    i = 0
    while i < len(tokens):
        if tokens[i].kind != "string":
            i += 1
            continue
        text, places = [], []
        while i < len(tokens):
            token = tokens[i]
            if token.kind == "string":
                for match in re.finditer(rb"\\.|[^\\]", token.text[1:-1], re.DOTALL):
                    piece = match.group()
                    text.append(ESCAPE if len(piece) > 1 else chr(piece[0]))
                    places.append(token.start + 1 + match.start())
            elif token.kind == "name":
                text.append(MACRO)
                places.append(None)
                if i + 1 < len(tokens) and tokens[i + 1].text == b"(":
                    close = source.closing(i + 1)
                    if close is None:
                        break
                    i = close
            else:
                break
            i += 1
        yield "".join(text), places
        i += 1


def clauses(text):
    """For each WHERE: its conditions as (start, end, joined by), by AND, and by OR where there is one."""
    for where in re.finditer(r"\bWHERE\b", text):
        yield list(conditions(text, where.end()))


def conditions(text, start):
    depth = cases = 0
    between = False
    marks = []  # (start, end, word) of each AND and OR
    end = len(text)
    for match in WORD.finditer(text, start):
        word = match.group()
        if word in "([":
            depth += 1
        elif word in ")]":
            depth -= 1
            if depth < 0:
                end = match.start()
                break
        elif depth:
            continue
        elif word == "CASE":
            cases += 1
        elif word == "END" and cases:
            cases -= 1
        elif cases:
            continue
        elif word == "BETWEEN":
            between = True
        elif word == "AND" and between:
            between = False
        elif word in ("AND", "OR"):
            marks.append((match.start(), match.end(), word))
        elif word in ENDS or word == ";" or (word == MACRO and not GOES_ON.search(text, start - 5, match.start())):
            end = match.start()
            break
    yield from pieces(text, start, end, marks, "AND")
    if any(word == "OR" for _, _, word in marks):
        yield from pieces(text, start, end, [mark for mark in marks if mark[2] == "OR"], "OR")


def pieces(text, start, end, marks, joined):
    for mark in marks + [(end, end, None)]:
        first, last = start, mark[0]
        while first < last and text[first].isspace():
            first += 1
        while last > first and text[last - 1].isspace():
            last -= 1
        if first < last:
            yield first, last, joined
        start = mark[1]


def insertions(source):
    """What drops a condition: pairs of places in the file, and what is put there."""
    for text, places in texts(source):
        for clause in clauses(text):
            for first, last, joined in clause:
                before = place_before(places, first)
                after = place_after(places, last)
                if before is not None and after is not None and before < after:
                    yield before, after, b"(", b" OR true)" if joined == "AND" else b" AND false)"


def place_before(places, first):
    if places[first] is not None:
        return places[first]
    return places[first - 1] + 1 if first > 0 and places[first - 1] is not None else None


def place_after(places, last):
    if places[last - 1] is not None:
        return places[last - 1] + 1
    return places[last] if last < len(places) else None
